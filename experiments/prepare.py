"""Writes a data set as TFDS shards or as one feature file, from whatever it comes in.

`python -m experiments.prepare --dataset=vegas --data_dir=DIR --output=SHARDS`; then
`python -m experiments.train --dataset=tfds:vegas --data_dir=SHARDS` trains on it as on the file
that it was made from; with `--input=stream` the rows are read while training goes on.

Run again after an interruption, it goes on where it was.
"""

import dataclasses
import glob
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from absl import flags

from aadml_jax._files import local_path
from aadml_jax.data import DATASETS, DatasetSpec, RetrievalDataset, open_dataset
from aadml_jax.data.readers.catalog import TFDS_PREFIX, unknown_name
from aadml_jax.data.writers.feature_file import require_absent, write_feature_file
from aadml_jax.data.writers.summary import DatasetSummary
from aadml_jax.errors import UserError
from experiments import command_line

_CLIPS, _VIDEO_RECORDS = "clips", "video_records"
# Missing clips that are named.
_LISTED = 5

_DATASET = flags.DEFINE_string(
    "dataset",
    "synthetic",
    f"data set to write: {', '.join(DATASETS)}; {_CLIPS}: clips with feature files of their own, "
    f"listed in --clip_list; {_VIDEO_RECORDS}: video-level TFRecord files of YouTube-8M",
)
_DATA_DIR = flags.DEFINE_string(
    "data_dir",
    None,
    f"folder with the feature file of vegas or ave, with the feature files of {_CLIPS} (default "
    "that of the list), or with files of av_digits that were fetched by hand",
)
_FEATURES_FILE = flags.DEFINE_string(
    "features_file", None, "HDF5 feature file for --dataset=features"
)
_CLIP_LIST = flags.DEFINE_string(
    "clip_list", None, "CSV file with the columns clip_id, label and split"
)
_ALLOW_MISSING = flags.DEFINE_bool(
    "allow_missing", False, "leave out listed clips that have no feature files"
)
_TRAIN_RECORDS = flags.DEFINE_list(
    "train_records", None, "TFRecord files of the training rows, or patterns such as 'train*'"
)
_TEST_RECORDS = flags.DEFINE_list("test_records", None, "TFRecord files of the test rows")
_NUM_CLASSES = flags.DEFINE_integer(
    "num_classes",
    None,
    "size of the vocabulary of --train_records; default as many as occur",
    lower_bound=1,
)
_MULTI_LABEL = flags.DEFINE_bool(
    "multi_label", False, "clips may have several classes; for features and clips"
)
_OUTPUT = flags.DEFINE_string(
    "output", None, "folder of data sets, in which to write this one as shards, or FILE.h5"
)
_NAME = flags.DEFINE_string(
    "name", None, "name of the data set among the shards; default that of --dataset, or of the file"
)
# Which data sets a flag is for; those of the catalogue see to the others themselves.
_SOURCES_OF_FLAG = {
    "clip_list": (_CLIPS,),
    "allow_missing": (_CLIPS,),
    "train_records": (_VIDEO_RECORDS,),
    "test_records": (_VIDEO_RECORDS,),
    "num_classes": (_VIDEO_RECORDS,),
    "features_file": ("features",),
    "multi_label": ("features", _CLIPS),
}


class Source(NamedTuple):
    """What to write.

    Attributes:
      dataset: The rows.
      spec: What the catalogue knows of them.
      missing: Ids of clips that were to be there, by their split.
    """

    dataset: RetrievalDataset
    spec: DatasetSpec | None = None
    missing: Mapping[str, Sequence[str]] = MappingProxyType({"train": (), "test": ()})


def open_source() -> Source:
    """Opens the data that the flags name."""
    name = _DATASET.value
    choices = (*DATASETS, _CLIPS, _VIDEO_RECORDS)
    if name not in choices and not name.startswith(TFDS_PREFIX):
        raise unknown_name(name, choices)
    for flag, sources in _SOURCES_OF_FLAG.items():
        if flags.FLAGS[flag].present and name not in sources:
            raise UserError(f"--{flag} is for --dataset={' or '.join(sources)}, not {name}")
    if name == _CLIPS:
        if _CLIP_LIST.value is None:
            raise UserError(f"--dataset={_CLIPS} needs a list of them; set --clip_list=FILE.csv")
        from aadml_jax.data.readers.clip_files import open_clip_files

        dataset, missing = open_clip_files(
            _CLIP_LIST.value,
            _DATA_DIR.value,
            multi_label=_MULTI_LABEL.value,
            allow_missing=_ALLOW_MISSING.value,
        )
        return Source(dataset, missing=missing)
    if name == _VIDEO_RECORDS:
        if _DATA_DIR.value is not None:
            raise UserError(f"--dataset={name} does not use --data_dir; leave the flag out")
        from aadml_jax.data.readers.video_records import open_video_records

        dataset = open_video_records(
            _files(_TRAIN_RECORDS, "train"),
            _files(_TEST_RECORDS, "test"),
            name=name,
            num_classes=_NUM_CLASSES.value,
        )
        return Source(dataset)
    if name in DATASETS and DATASETS[name].is_built:
        from aadml_jax.data.tfds_builders import fetch_av_digits

        folder = os.path.dirname(_OUTPUT.value) if _writes_file() else _OUTPUT.value
        dataset = fetch_av_digits(os.path.join(folder, "downloads"), _DATA_DIR.value)
        return Source(dataset, DATASETS[name])
    dataset = open_dataset(
        name,
        data_dir=_DATA_DIR.value,
        features_file=_FEATURES_FILE.value,
        multi_label=_MULTI_LABEL.value,
    )
    return Source(dataset, DATASETS.get(name.removeprefix(TFDS_PREFIX)))


def _files(flag: flags.FlagHolder, split: str) -> list[str]:
    """The files that a flag names, patterns expanded."""
    if not flag.value:
        raise UserError(
            f"--dataset={_VIDEO_RECORDS} needs the files of both splits; set --{flag.name}=FILES"
        )
    files = []
    for pattern in map(str, map(local_path, flag.value)):
        found = sorted(glob.glob(pattern)) if glob.has_magic(pattern) else [pattern]
        if not found:
            raise UserError(f"--{flag.name}: no file matches {pattern}; give files that exist")
        files += found
    return files


def _writes_file() -> bool:
    return _OUTPUT.value.endswith((".h5", ".hdf5"))


def require_room() -> None:
    """Checks before anything is read that the output is not there yet, where its name is known."""
    if _writes_file():
        require_absent(_OUTPUT.value)
    elif _NAME.value or _DATASET.value in (*DATASETS, _VIDEO_RECORDS):
        name = _NAME.value or _DATASET.value
        if name != "features":
            from aadml_jax.data.tfds_builders import require_no_folder  # TFDS is slow to import

            require_no_folder(name, _OUTPUT.value)


def empty_classes(summary: DatasetSummary, class_names: Sequence[str]) -> Iterator[str]:
    """Lines that name the classes without rows in a split."""
    for name in ("train", "test"):
        numbers = np.flatnonzero(getattr(summary, name).class_rows == 0).tolist()
        if numbers:
            names = [class_names[n] if class_names else f"class {n}" for n in numbers[:_LISTED]]
            more = ", …" if len(numbers) > _LISTED else ""
            count = f"{len(numbers)} class{'es' * (len(numbers) > 1)}"
            yield f"no {name} rows in {count}: {', '.join(names)}{more}"


def main() -> None:
    """Wires source and writer together."""
    if _OUTPUT.value is None:
        raise UserError(
            "--output is needed: a folder of data sets, in which to write this one, or FILE.h5"
        )
    require_room()
    dataset, spec, missing = open_source()
    if _NAME.value is not None:
        dataset = dataclasses.replace(dataset, name=_NAME.value)
    if _writes_file():
        path, summary = write_feature_file(dataset, _OUTPUT.value)
        flag = " --multi_label" if dataset.is_multi_label else ""
        file = shlex.quote(str(path))
        advice = f"python -m experiments.train --dataset=features --features_file={file}{flag}"
    else:
        from aadml_jax.data.tfds_builders import write_tfds_folder

        path, summary = write_tfds_folder(dataset, _OUTPUT.value, spec=spec)
        advice = (
            f"python -m experiments.train --dataset={TFDS_PREFIX}{dataset.name} "
            f"--data_dir={shlex.quote(_OUTPUT.value)}\n"
            "  and, for rows that are read while training goes on, --input=stream"
        )
    print(summary.table(dataset.class_names, tuple(map(len, missing.values()))))
    if any(dataset.averaged_over):
        print(dataset.features_in_words())
    for split, ids in missing.items():
        if ids:
            more = ", …" if len(ids) > _LISTED else ""
            print(f"missing {split} clips: {', '.join(ids[:_LISTED])}{more}")
    for line in empty_classes(summary, dataset.class_names):
        print(line)
    print(f"\nwritten to {path}; train on it with\n  {advice}")
    command_line.warn_of_shared_rows(summary.shared_rows, summary.test.rows)


if __name__ == "__main__":
    command_line.run(main)
