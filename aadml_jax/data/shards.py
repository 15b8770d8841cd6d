"""Rows of a data set in array_record shards: written once, read in any order, a few at a time.

A record is one clip in the format of TensorFlow Datasets (the Example protobuf): `audio` and
`visual`, float32 vectors stored as bytes, and `label`, or `labels` where a clip has several
classes. Records stand in the order of the rows. They are not compressed: feature vectors shrink
little, and compressing them takes eight times as long as writing them.

A shard appears under its name once it is complete, so that writing can go on where it stopped.
"""

import errno
import functools
import itertools
import math
import os
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordWriter
from tensorflow_datasets.proto import tf_example_pb2
from tqdm import tqdm

from aadml_jax._files import publish
from aadml_jax.data.file_kinds import ARRAY_RECORD, first_bytes, require_no_other_kind
from aadml_jax.data.paired_features import PairedFeatures, StoredFeatures
from aadml_jax.errors import UserError, one_line

SPLITS = ("train", "test")

# A shard is what an interrupted writing loses at most.
_SHARD_BYTES = 64 * 2**20
# Of a split, when it is opened.
_COMPARED_RECORDS = 64
# Groups of one record are what makes reading in any order fast.
_WRITER_OPTIONS = "group_size:1,uncompressed"


class WrittenSplit(NamedTuple):
    """The shards of a split.

    Attributes:
      paths: Of the files, in order.
      lengths: Rows of each.
      num_bytes: Of all files.
    """

    paths: tuple[pathlib.Path, ...]
    lengths: tuple[int, ...]
    num_bytes: int


def write_split(
    features: PairedFeatures | StoredFeatures, folder: pathlib.Path, name: str
) -> WrittenSplit:
    """Writes the shards of a split, or those that are not complete in the folder.

    Args:
      features: What to write; rows are read block by block.
      folder: That exists, with no shards of other rows in it.
      name: First part of the file names.

    Raises:
      UserError: Rows can't be read.
      OSError: A file can't be written.
    """
    row_bytes = 4 * (features.audio_dim + features.visual_dim)
    count = min(len(features), math.ceil(len(features) * row_bytes / _SHARD_BYTES))
    ends = [round(len(features) * number / count) for number in range(1, count + 1)]
    lengths = tuple(end - start for start, end in itertools.pairwise([0, *ends]))
    paths = tuple(
        folder / f"{name}.array_record-{number:05d}-of-{count:05d}" for number in range(count)
    )
    complete = [_is_complete(path, length) for path, length in zip(paths, lengths, strict=True)]
    if any(complete):
        rows = sum(itertools.compress(lengths, complete))
        print(
            f"{features.name}: going on behind an interruption, {rows:,} of {len(features):,} rows "
            "are there",
            file=sys.stderr,
        )
    with tqdm(total=len(features), desc=features.name, unit="row", disable=None) as progress:
        for path, length, end, is_there in zip(paths, lengths, ends, complete, strict=True):
            if is_there:
                progress.update(length)
            else:
                _write_shard(features.select(slice(end - length, end)), path, progress)
    return WrittenSplit(paths, lengths, sum(path.stat().st_size for path in paths))


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


def _is_complete(path: pathlib.Path, length: int) -> bool:
    try:
        return path.exists() and len(ArrayRecordDataSource([os.fspath(path)])) == length
    except Exception:  # array_record raises errors of its own
        return False


def _write_shard(
    features: PairedFeatures | StoredFeatures, path: pathlib.Path, progress: tqdm
) -> None:
    partial = path.with_name(f"{path.name}.partial")
    writer = ArrayRecordWriter(os.fspath(partial), _WRITER_OPTIONS)
    try:
        for block in features.blocks():
            for record in _records(block):
                writer.write(record)
            progress.update(len(block))
    finally:
        writer.close()
    publish(partial, path)


def _records(features: PairedFeatures) -> Iterator[bytes]:
    """Each clip as a serialised Example."""
    audio, visual = (array.astype("<f4", copy=False) for array in (features.audio, features.visual))
    is_multi_hot = features.labels.ndim == 2
    for audio_row, visual_row, label in zip(audio, visual, features.labels, strict=True):
        example = tf_example_pb2.Example()
        feature = example.features.feature
        feature["audio"].bytes_list.value.append(audio_row.tobytes())
        feature["visual"].bytes_list.value.append(visual_row.tobytes())
        if is_multi_hot:
            feature["labels"].int64_list.value.extend(np.flatnonzero(label).tolist())
        else:
            feature["label"].int64_list.value.append(int(label))
        yield example.SerializeToString(deterministic=True)


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
            tf_example_pb2.Example.FromString(record).features.feature
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
