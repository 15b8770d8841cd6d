"""Rows of a data set from array_record shards, in any order, a few at a time.

A record is one clip in the format of TensorFlow Datasets (the Example protobuf): `audio` and
`visual`, float32 vectors stored as bytes, and `label`, or `labels` where a clip has several
classes. Records are in the order of the rows. `aadml_jax.data.writers.shards` writes them.
"""

import errno
import functools
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource
from tensorflow_datasets.proto import tf_example_pb2

from aadml_jax.data.paired_features import StoredFeatures
from aadml_jax.data.readers.file_kinds import ARRAY_RECORD, first_bytes, require_no_other_kind
from aadml_jax.errors import UserError, one_line

# Protobuf makes the class when the module is imported.
Example = tf_example_pb2.Example  # pyright: ignore[reportAttributeAccessIssue]

SPLITS = ("train", "test")

# Of a split, when it is opened.
_COMPARED_RECORDS = 64


def open_shards(
    paths: Sequence[str | os.PathLike[str]],
    *,
    labels: np.ndarray,
    audio_dim: int,
    visual_dim: int,
    what: str,
) -> StoredFeatures:
    """Opens the shards of a split.

    Args:
      paths: Of the files, in order.
      labels: Of all rows; they are in the records as well, but reading them takes a pass: some are
        compared.
      audio_dim: Da.
      visual_dim: Dv.
      what: The split's name in messages.

    Raises:
      UserError: The files can't be opened, or hold another number of records or other labels.
        Taking rows raises it for damaged records.
    """
    try:
        source = ArrayRecordDataSource([os.fspath(path) for path in paths])
        count = len(source)
    except Exception as error:  # array_record raises errors of its own
        for path in map(pathlib.Path, paths):
            if path.is_file():
                require_no_other_kind(
                    f"{what}: {path.name}", first_bytes(path), "an ArrayRecord shard", ARRAY_RECORD
                )
        remedy = _remedy(error)
        raise UserError(f"{what} cannot be opened ({one_line(error)}); {remedy}") from error
    if count != len(labels):
        raise UserError(f"{what} holds {count} records instead of {len(labels)}; write it anew")
    _require_labels(source, labels, what)
    return StoredFeatures(
        labels=labels,
        audio_dim=audio_dim,
        visual_dim=visual_dim,
        read=functools.partial(_read, source, (audio_dim, visual_dim), what),
        rows=np.arange(len(labels)),
        name=what,
        random_access=True,
    )


def _remedy(error: BaseException) -> str:
    """What to do about an error of array_record, which holds the system's words."""
    causes = (errno.EIO, errno.ESTALE, errno.EACCES, errno.EMFILE, errno.ENOMEM)
    if any(os.strerror(number) in str(error) for number in causes):
        return "check the disk or the network drive that holds it, and try again"
    return "write it anew"


def _require_labels(source: ArrayRecordDataSource, labels: np.ndarray, what: str) -> None:
    """Compares labels from metadata with those of some records, spread over all of them.

    Comparing every record whenever it is read would slow streaming down by a fifth.
    """
    rows = np.unique(np.linspace(0, len(labels) - 1, _COMPARED_RECORDS).astype(np.int64))
    is_multi_hot = labels.ndim == 2
    key = "labels" if is_multi_hot else "label"
    for row, example in zip(rows.tolist(), _examples(source, rows, what), strict=True):
        found = list(example[key].int64_list.value) if key in example else None
        wanted = np.flatnonzero(labels[row]).tolist() if is_multi_hot else [int(labels[row])]
        if found != wanted:
            found, wanted = (
                ", ".join(map(str, classes or ("none",))) for classes in (found, wanted)
            )
            raise UserError(
                f"{what}: record {row} is of class {found}, but the metadata of its folder say "
                f"class {wanted}; write the folder anew"
            )


def _examples(source: ArrayRecordDataSource, rows: np.ndarray, what: str) -> list[Any]:
    """The features of some records by their names."""
    try:
        return [
            Example.FromString(record).features.feature
            for record in source.__getitems__(rows.tolist())
        ]
    except Exception as error:  # array_record and protobuf raise errors of their own
        raise UserError(f"{what} cannot be read ({one_line(error)}); {_remedy(error)}") from error


def _read(
    source: ArrayRecordDataSource, dims: tuple[int, int], what: str, rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Features of some records, float32 [K, Da] and [K, Dv]."""
    examples = _examples(source, rows, what)
    try:
        vectors = [
            tuple(example[key].bytes_list.value[0] for key in ("audio", "visual"))
            for example in examples
        ]
        audio, visual = (
            np.frombuffer(b"".join(column), "<f4").reshape(len(rows), dim)
            for column, dim in zip(zip(*vectors, strict=True), dims, strict=True)
        )
    except Exception as error:  # whatever a record of another form leads to
        raise UserError(f"{what} cannot be read ({one_line(error)}); write it anew") from error
    return audio, visual
