"""Writes a data set as TFDS shards or as one feature file, from whatever it comes in.

`python -m experiments.prepare --dataset=vegas --data_dir=DIR --output=SHARDS`; then
`python -m experiments.train --dataset=tfds:vegas --data_dir=SHARDS` trains on it as on the file
that it was made from; with `--input=stream` the rows are read while training goes on.

Run again after an interruption, it goes on where it was.
"""

import dataclasses
import glob
import os
import pathlib
import shlex
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from aadml_jax._files import local_path, require_absent
from aadml_jax.data import (
    DATASETS,
    TFDS_PREFIX,
    DatasetSpec,
    RetrievalDataset,
    open_clip_files,
    open_dataset,
    unknown_name,
)

# Past the face of `aadml_jax.data`, here and below: what needs TFDS is slow to import.
from aadml_jax.data.writers.feature_file import write_feature_file
from aadml_jax.data.writers.summary import DatasetSummary
from aadml_jax.errors import UserError
from aadml_jax.training.settings import COUNT, check_settings, setting
from experiments import command_line

_CLIPS, _VIDEO_RECORDS = "clips", "video_records"
# Missing clips that are named.
_LISTED = 5


@dataclasses.dataclass(frozen=True)
class Options:
    """What to write, and where."""

    dataset: str = setting(
        "synthetic",
        f"data set to write: {', '.join(DATASETS)}; {_CLIPS}: clips with feature files of their "
        f"own, listed in --clip_list; {_VIDEO_RECORDS}: video-level TFRecord files of YouTube-8M",
    )
    data_dir: str | None = setting(
        None,
        f"folder with the feature file of vegas or ave, with the feature files of {_CLIPS} "
        "(default that of the list), or with files of av_digits that were fetched by hand",
    )
    features_file: str | None = setting(None, "HDF5 feature file for --dataset=features")
    clip_list: str | None = setting(None, "CSV file with the columns clip_id, label and split")
    allow_missing: bool = setting(False, "listed clips without feature files are left out")
    train_records: tuple[str, ...] | None = setting(
        None, "TFRecord files of the training rows, or patterns such as 'train*'"
    )
    test_records: tuple[str, ...] | None = setting(None, "TFRecord files of the test rows")
    num_classes: int | None = setting(
        None,
        "size of the vocabulary of --train_records; default as many as occur",
        bounds=COUNT,
    )
    multi_label: bool = setting(False, "clips of several classes; for features and clips")
    output: str | None = setting(
        None, "folder of data sets, in which to write this one as shards, or FILE.h5"
    )
    name: str | None = setting(
        None,
        "name of the data set among the shards; default that of --dataset, or of the file",
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


def open_source(options: Options) -> Source:
    """Opens the data that the options name."""
    name = options.dataset
    choices = (*DATASETS, _CLIPS, _VIDEO_RECORDS)
    if name not in choices and not name.startswith(TFDS_PREFIX):
        raise unknown_name(name, choices)
    for flag, sources in _SOURCES_OF_FLAG.items():
        is_given = getattr(options, flag) not in (None, False)
        if is_given and name not in sources:
            raise UserError(f"--{flag} is for --dataset={' or '.join(sources)}, not {name}")
    if name == _CLIPS:
        if options.clip_list is None:
            raise UserError(f"--dataset={_CLIPS} needs a list of them; set --clip_list=FILE.csv")
        dataset, missing = open_clip_files(
            options.clip_list,
            options.data_dir,
            multi_label=options.multi_label,
            allow_missing=options.allow_missing,
        )
        return Source(dataset, missing=missing)
    if name == _VIDEO_RECORDS:
        if options.data_dir is not None:
            raise UserError(f"--dataset={name} does not use --data_dir; leave the flag out")
        from aadml_jax.data.readers.video_records import open_video_records

        dataset = open_video_records(
            _files(options.train_records, "train_records"),
            _files(options.test_records, "test_records"),
            name=name,
            num_classes=options.num_classes,
        )
        return Source(dataset)
    if name in DATASETS and DATASETS[name].is_built:
        from aadml_jax.data.tfds_builders import fetch_av_digits

        folder = options.output
        if _is_file(folder):
            folder = os.path.dirname(folder)
        dataset = fetch_av_digits(os.path.join(folder, "downloads"), options.data_dir)
        return Source(dataset, DATASETS[name])
    dataset = open_dataset(
        name,
        data_dir=options.data_dir,
        features_file=options.features_file,
        multi_label=options.multi_label,
    )
    return Source(dataset, DATASETS.get(name.removeprefix(TFDS_PREFIX)))


def _files(patterns: Sequence[str] | None, flag: str) -> list[str]:
    """The files that a flag names, patterns expanded."""
    if not patterns:
        raise UserError(
            f"--dataset={_VIDEO_RECORDS} needs the files of both splits; set --{flag}=FILES"
        )
    files = []
    for pattern in map(str, map(local_path, patterns)):
        found = sorted(glob.glob(pattern)) if glob.has_magic(pattern) else [pattern]
        if not found:
            raise UserError(f"--{flag}: no file matches {pattern}; give files that exist")
        files += found
    return files


def _is_file(output: str) -> bool:
    return output.endswith((".h5", ".hdf5"))


def require_room(options: Options) -> None:
    """Checks before anything is read that the output is not there yet, where its name is known."""
    if _is_file(options.output):
        require_absent(options.output)
    elif options.name or options.dataset in (*DATASETS, _VIDEO_RECORDS):
        name = options.name or options.dataset
        if name != "features":
            from aadml_jax.data.tfds_builders import require_no_folder  # TFDS is slow to import

            require_no_folder(name, options.output)


def empty_classes(summary: DatasetSummary, class_names: Sequence[str]) -> Iterator[str]:
    """Lines that name the classes without rows in a split."""
    for name in ("train", "test"):
        numbers = np.flatnonzero(getattr(summary, name).class_rows == 0).tolist()
        if numbers:
            names = [class_names[n] if class_names else f"class {n}" for n in numbers[:_LISTED]]
            more = ", …" if len(numbers) > _LISTED else ""
            count = f"{len(numbers)} class{'es' * (len(numbers) > 1)}"
            yield f"no {name} rows in {count}: {', '.join(names)}{more}"


def run(options: Options) -> pathlib.Path:
    """Writes a data set, and prints what it holds and how to train on it.

    Returns:
      The folder or file that was written.

    Raises:
      UserError: if the data cannot be read, or the output is there or cannot be written.
    """
    check_settings(options)
    if options.output is None:
        raise UserError(
            "--output is needed: a folder of data sets, in which to write this one, or FILE.h5"
        )
    require_room(options)
    dataset, spec, missing = open_source(options)
    if options.name is not None:
        dataset = dataclasses.replace(dataset, name=options.name)
    if _is_file(options.output):
        path, summary = write_feature_file(dataset, options.output)
        flag = " --multi_label" if dataset.is_multi_label else ""
        file = shlex.quote(str(path))
        advice = f"python -m experiments.train --dataset=features --features_file={file}{flag}"
    else:
        from aadml_jax.data.tfds_builders import write_tfds_folder

        path, summary = write_tfds_folder(dataset, options.output, spec=spec)
        advice = (
            f"python -m experiments.train --dataset={TFDS_PREFIX}{dataset.name} "
            f"--data_dir={shlex.quote(options.output)}\n"
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
    return pathlib.Path(path)


def main() -> None:
    """Writes what the flags name."""
    run(command_line.options_from_flags(Options)[0])


if __name__ == "__main__":
    command_line.run(main, flags_of=[Options])
