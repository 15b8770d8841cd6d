"""Video-level TFRecord files as YouTube-8M publishes them, read without TensorFlow.

A file is a sequence of records: the length as a little-endian 64-bit number, its masked CRC-32C,
the content, and the masked CRC-32C of that. The content is an Example protobuf with `id` (or
`video_id`), `labels` (class numbers), `mean_rgb` (the visual features) and `mean_audio`.

Abu-El-Haija et al., "YouTube-8M: A Large-Scale Video Classification Benchmark", 2016.
"""

import functools
import itertools
import os
import pathlib
import struct
from collections.abc import Iterator, Sequence
from typing import IO, NamedTuple

import google_crc32c
import numpy as np
from tqdm import tqdm

from aadml_jax._files import local_path, reading, require_readable_file
from aadml_jax.data.paired_features import StoredFeatures
from aadml_jax.data.readers.file_kinds import GZIP, START_BYTES, ZEROS, kind_of
from aadml_jax.data.readers.shards import Example
from aadml_jax.data.retrieval_dataset import RetrievalDataset
from aadml_jax.errors import UserError, one_line

AUDIO_KEY, VISUAL_KEY, LABELS_KEY = "mean_audio", "mean_rgb", "labels"
ID_KEYS = ("id", "video_id")

_HEADER = struct.Struct("<QI")
_FOOTER = struct.Struct("<I")
_CRC_MASK = 0xA282EAD8
# Video-level records have about 5 kB.
_LARGEST_RECORD_BYTES = 2**24
_LARGEST_CLASS = 2**16


class _Video(NamedTuple):
    video_id: bytes
    labels: list[int]
    audio: np.ndarray
    visual: np.ndarray


class _Place(NamedTuple):
    """Where a record's content lies."""

    path: pathlib.Path
    offset: int
    length: int


def open_video_records(
    train_files: Sequence[str | os.PathLike[str]],
    test_files: Sequence[str | os.PathLike[str]],
    *,
    name: str,
    num_classes: int | None = None,
) -> RetrievalDataset:
    """Reads the labels of all records; features are read when rows are taken.

    Args:
      train_files: TFRecord files with the training rows, in their order.
      test_files: The same with the test rows.
      name: Of the data set.
      num_classes: C; None counts up to the largest number there is.

    Returns:
      A multi-label data set, its rows in the order of files and records.

    Raises:
      UserError: A file can't be read, is damaged or compressed; a record lacks a feature, has no
        labels, one out of range or features that are not finite, or stands twice by its id.
    """
    places: dict[str, list[_Place]] = {}
    labels: dict[str, list[list[int]]] = {}
    dims: tuple[int, int] | None = None
    seen: dict[bytes, tuple[pathlib.Path, int]] = {}
    for split, files in (("train", train_files), ("test", test_files)):
        places[split], labels[split] = [], []
        if not files:
            raise UserError(f"no TFRecord files for the {split} rows; name some")
        for path in map(local_path, tqdm(files, f"index of {split} files", disable=None)):
            for number, (place, content) in enumerate(_records(path)):
                what = f"{path}: record {number}"
                video = _parse(content, what)
                if video.video_id in seen:
                    other_path, other = seen[video.video_id]
                    raise UserError(
                        f"{what} has the id {video.video_id.decode(errors='replace')!r}, as "
                        f"record {other} of {other_path} has; leave one of them out"
                    )
                seen[video.video_id] = path, number
                dims = dims or (len(video.audio), len(video.visual))
                _require_dims(video, dims, what)
                _require_classes(video.labels, num_classes, what)
                places[split].append(place)
                labels[split].append(video.labels)
        if not places[split]:
            raise UserError(
                f"{_files_in_words(files)}: no records for the {split} rows; name other files"
            )
    assert dims is not None  # both splits have records
    largest = max(max(classes) for of_split in labels.values() for classes in of_split)
    num_classes = num_classes or largest + 1
    splits = {
        split: StoredFeatures(
            labels=_multi_hot(labels[split], num_classes),
            audio_dim=dims[0],
            visual_dim=dims[1],
            read=functools.partial(_read_rows, places[split], dims),
            rows=np.arange(len(places[split])),
            name=f"{split} split of {_files_in_words(files)}",
        )
        for split, files in (("train", train_files), ("test", test_files))
    }
    paths = [str(local_path(path)) for path in (*train_files, *test_files)]
    return RetrievalDataset(
        name=name,
        num_classes=num_classes,
        source=_files_in_words(paths),
        source_files=tuple(paths),
        train=splits["train"],
        test=splits["test"],
    )


def _files_in_words(files: Sequence[str | os.PathLike[str]]) -> str:
    return f"{files[0]} and {len(files) - 1} more" if len(files) > 1 else f"{files[0]}"


def _records(path: pathlib.Path) -> Iterator[tuple[_Place, bytes]]:
    """Place and content of each record of a file, checked against their sums."""
    size = require_readable_file(path, "a TFRecord file").st_size
    with reading(path), open(path, "rb") as file:
        offset = 0
        while offset < size:
            what = f"{path}: the record at byte {offset}"
            header = file.read(_HEADER.size)
            if len(header) < _HEADER.size:
                raise UserError(f"{what} is cut off; fetch the file again")
            length, length_crc = _HEADER.unpack(header)
            if _masked_crc(header[:8]) != length_crc:
                if not offset:
                    _require_no_other_kind(path, header + file.read(START_BYTES))
                raise UserError(f"{what} is damaged (its length); fetch the file again")
            start = offset + _HEADER.size
            end = start + length + _FOOTER.size
            if length > _LARGEST_RECORD_BYTES:
                raise UserError(f"{what} has {length} bytes, too many for video-level features")
            if end > size:
                raise UserError(f"{what} is cut off; fetch the file again")
            yield _Place(path, start, length), _read_content(file, length, what)
            offset = end


def _require_no_other_kind(path: pathlib.Path, start: bytes) -> None:
    """Refuses files that do not begin with a record for they are compressed, or something else."""
    kind = kind_of(start)
    is_zlib = start[0] == 0x78 and int.from_bytes(start[:2], "big") % 31 == 0
    if kind is GZIP or (kind is None and is_zlib):
        remedy = "gunzip" if kind is GZIP else "zlib.decompress of Python"
        raise UserError(f"{path} is compressed; decompress it by {remedy}")
    if kind is not None and kind is not ZEROS:
        raise UserError(
            f"{path} is {kind.name}, not a TFRecord file (at byte 0 stands no record, its length "
            f"does not fit its sum); {kind.remedy or 'give TFRecord files'}"
        )


def _read_content(file: IO[bytes], length: int, what: str) -> bytes:
    """The content that begins here, checked against the sum that follows it."""
    content = file.read(length)
    if file.read(_FOOTER.size) != _FOOTER.pack(_masked_crc(content)):
        raise UserError(f"{what} is damaged (its content); fetch the file again")
    return content


def _masked_crc(content: bytes) -> int:
    crc = google_crc32c.value(content)
    return (((crc >> 15) | (crc << 17)) + _CRC_MASK) & 0xFFFFFFFF


def _parse(content: bytes, what: str) -> _Video:
    """The features of a record."""
    try:
        feature = Example.FromString(content).features.feature
    except Exception as error:  # protobuf raises errors of its own
        raise UserError(
            f"{what} is no Example ({one_line(error)}); fetch the file again"
        ) from error
    id_key = next((key for key in ID_KEYS if key in feature), None)
    lists = {}
    for key, kind in (
        (id_key or ID_KEYS[0], "bytes_list"),
        (LABELS_KEY, "int64_list"),
        (AUDIO_KEY, "float_list"),
        (VISUAL_KEY, "float_list"),
    ):
        # Looking a key up would add it.
        if key not in feature:
            there = ", ".join(sorted(feature)[:10]) or "none"
            raise UserError(f"{what} lacks {key} (features there: {there}); give video-level files")
        values = getattr(feature[key], kind).value
        if feature[key].WhichOneof("kind") != kind or not len(values):
            raise UserError(f"{what}: {key} holds no {kind.removesuffix('_list')} values")
        lists[key] = values
    vectors = [np.array(lists[key], np.float32) for key in (AUDIO_KEY, VISUAL_KEY)]
    for key, vector in zip((AUDIO_KEY, VISUAL_KEY), vectors, strict=True):
        if not np.isfinite(vector).all():
            raise UserError(f"{what}: {key} holds NaN or infinity; recompute this record")
    return _Video(lists[id_key][0], list(lists[LABELS_KEY]), *vectors)


def _require_dims(video: _Video, dims: tuple[int, int], what: str) -> None:
    for key, values, dim in zip((AUDIO_KEY, VISUAL_KEY), video[2:], dims, strict=True):
        if len(values) != dim:
            raise UserError(f"{what}: {key} has {len(values)} values, the first record's {dim}")


def _require_classes(labels: list[int], num_classes: int | None, what: str) -> None:
    largest = (num_classes or _LARGEST_CLASS) - 1
    for label in labels:
        if not 0 <= label <= largest:
            raise UserError(f"{what}: the label {label} is not from 0 to {largest}; correct it")


def _multi_hot(labels: Sequence[Sequence[int]], num_classes: int) -> np.ndarray:
    """Bool [N, C]."""
    rows = np.repeat(np.arange(len(labels)), [len(classes) for classes in labels])
    multi_hot = np.zeros((len(labels), num_classes), bool)
    multi_hot[rows, np.concatenate(labels)] = True
    return multi_hot


def _read_rows(
    places: Sequence[_Place], dims: tuple[int, int], rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Features of some records, float32 [K, Da] and [K, Dv]."""
    audio, visual = (np.empty((len(rows), dim), np.float32) for dim in dims)
    chosen = [places[row] for row in rows.tolist()]
    number = 0
    for path, group in itertools.groupby(chosen, lambda place: place.path):
        require_readable_file(path, "a TFRecord file")
        with reading(path), open(path, "rb") as file:
            for place in group:
                what = f"{path}: the record at byte {place.offset - _HEADER.size}"
                file.seek(place.offset)
                video = _parse(_read_content(file, place.length, what), what)
                _require_dims(video, dims, what)
                for array, values in zip((audio, visual), video[2:], strict=True):
                    array[number] = values
                number += 1
    return audio, visual
