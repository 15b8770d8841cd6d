"""Rows of a data set into array_record shards; `aadml_jax.data.readers.shards` reads them.

Records are not compressed: feature vectors shrink little, and compressing them takes eight times as
long as writing them. A shard appears under its name once it is complete, so that an interrupted
writer can resume.
"""

import itertools
import math
import os
import pathlib
import sys
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordWriter
from tqdm import tqdm

from aadml_jax._files import publish
from aadml_jax.data.paired_features import PairedFeatures, StoredFeatures
from aadml_jax.data.readers.shards import Example

# A shard is what an interrupted writer loses at most.
_SHARD_BYTES = 64 * 2**20
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
        example = Example()
        feature = example.features.feature
        feature["audio"].bytes_list.value.append(audio_row.tobytes())
        feature["visual"].bytes_list.value.append(visual_row.tobytes())
        if is_multi_hot:
            feature["labels"].int64_list.value.extend(np.flatnonzero(label).tolist())
        else:
            feature["label"].int64_list.value.append(int(label))
        yield example.SerializeToString(deterministic=True)
