"""Writes a data set as TFDS shards: `python -m experiments.prepare --dataset=vegas --output=DIR`.

Then `python -m experiments.train --dataset=tfds:vegas --data_dir=DIR` trains on it as on the file
that it was made from; with `--input=stream` the rows are read while training goes on.
"""

import dataclasses

import numpy as np
from absl import flags

from aadml_jax.data import DATASETS, PairedFeatures, RetrievalDataset, StoredFeatures, open_dataset
from aadml_jax.errors import UserError
from experiments import command_line

_DATASET = flags.DEFINE_string("dataset", "synthetic", f"data set to write: {', '.join(DATASETS)}")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "folder with the feature file of vegas or ave")
_FEATURES_FILE = flags.DEFINE_string(
    "features_file", None, "HDF5 feature file for --dataset=features"
)
_OUTPUT = flags.DEFINE_string("output", None, "folder of data sets, in which to write this one")
_NAME = flags.DEFINE_string(
    "name", None, "name of the data set there; default that of --dataset, or of the feature file"
)


def summary_table(dataset: RetrievalDataset) -> str:
    """Rows of each split and class."""
    lines = [f"{'':12}{'train':>10}{'test':>10}", f"{'rows':12}{_counts(dataset, len)}"]
    for number in range(dataset.num_classes):
        counts = _counts(dataset, lambda split, number=number: np.sum(split.labels == number))
        lines.append(f"{f'class {number}':12}{counts}")
    return "\n".join(lines)


def _counts(dataset: RetrievalDataset, count) -> str:
    splits: tuple[PairedFeatures | StoredFeatures, ...] = (dataset.train, dataset.test)
    return "".join(f"{count(split):>10,}" for split in splits)


def main() -> None:
    """Wires data set and writer together."""
    if _OUTPUT.value is None:
        raise UserError("--output is needed: a folder of data sets, in which to write this one")
    dataset = open_dataset(
        _DATASET.value, data_dir=_DATA_DIR.value, features_file=_FEATURES_FILE.value
    )
    if _NAME.value is not None:
        dataset = dataclasses.replace(dataset, name=_NAME.value)
    from aadml_jax.data.tfds_folders import write_tfds_folder  # TFDS is slow to import

    folder = write_tfds_folder(dataset, _OUTPUT.value)
    print(
        f"{summary_table(dataset)}\n\nwritten to {folder}; train on it with\n"
        f"python -m experiments.train --dataset=tfds:{dataset.name} --data_dir={_OUTPUT.value}\n"
        "and, for rows that are read while training goes on, --input=stream"
    )


if __name__ == "__main__":
    command_line.run(main)
