"""Reading of audio-visual feature files (HDF5), in the two layouts that circulate.

Six keys: `audio_train`, `visual_train`, `lab_train` and the same with `_test`.

One table: `audio_feat`, `visual_feat`, `Label_ID`, and `Split` or `Train_test`, which marks
training rows with 1 (text or number) and test rows with one other value.

Features are (N, D), or (N, T, D) over T time steps, which are averaged. (N, T, 1) is refused, for
it may as well be T features. Labels are class numbers, (N,) or (N, 1), that start at 0 or at 1, or
one-hot rows (N, C); multi-hot rows where clips may have several classes. Nothing is repaired or
skipped: whatever doesn't fit is a `UserError` that names file, key and row.
"""

import functools
import math
import os
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from aadml_jax._files import local_path
from aadml_jax.data.paired_features import StoredFeatures
from aadml_jax.data.readers.feature_labels import (
    StoredLabels,
    class_numbering,
    read_class_names,
    read_labels,
    read_training_mask,
)
from aadml_jax.data.readers.hdf5 import OpenFile, StoredArray, open_hdf5
from aadml_jax.data.retrieval_dataset import RetrievalDataset
from aadml_jax.data.validation import (
    NonFiniteRows,
    as_float32,
    require_equal_lengths,
    require_every_class,
    require_real_dtype,
)
from aadml_jax.errors import UserError

_SIX_KEYS = (
    "audio_train",
    "visual_train",
    "lab_train",
    "audio_test",
    "visual_test",
    "lab_test",
)
_TABLE_KEYS = ("audio_feat", "visual_feat", "Label_ID")
_SPLIT_KEYS = ("Split", "Train_test")
_EXPECTED = (
    f"a feature file has {' '.join(_SIX_KEYS)}, or else {' '.join(_TABLE_KEYS)} and "
    f"{' or '.join(_SPLIT_KEYS)}"
)

# Bytes of a feature array held at once, in the file's own dtype. Averaging over time raises a block
# to float64, which takes up to eight times as much for a moment.
_BLOCK_BYTES = 8 * 2**20


def open_feature_file(
    path: str | os.PathLike[str],
    *,
    num_classes: int | None = None,
    name: str | None = None,
    multi_label: bool = False,
    dims: tuple[int, int] | None = None,
) -> RetrievalDataset:
    """Reads the labels of a feature file; features are read when rows are taken.

    Args:
      path: An HDF5 file in either layout (see the module's docstring); `~` is expanded.
      num_classes: Number of classes C that the file must have. None takes it from the labels: the
        columns of one-hot or multi-hot labels, else the largest class number counted from the
        first.
      name: Name of the data set; None takes the file's name without its suffix.
      multi_label: Whether clips may have several classes: labels must then be rows (N, C) of 0 and
        1, at least one 1 each.
      dims: Numbers of audio and of visual features, where they are known beforehand. They decide
        which axis is which where the shape leaves it open; a file may have others.

    Returns:
      The data set, its splits as `StoredFeatures`, with labels from 0, whatever the file counts
      from: its numbers are taken to start at 1 if the smallest one in training and test rows
      together is 1. With `multi_label` they are bool [N, C].

    Raises:
      UserError: The file can't be read, lacks a key, or holds what doesn't fit: another rank or
        dtype, unequal numbers of rows, class numbers out of range, a class without training rows
        (unless `multi_label`), a split without rows. Taking rows raises it for NaN or infinity and
        for values beyond float32.
    """
    path = local_path(path)
    with open_hdf5(path) as file:
        if not any(key in file for key in _SIX_KEYS) and any(key in file for key in _TABLE_KEYS):
            splits, stored_labels = _open_table(file, multi_label, dims)
        else:
            splits, stored_labels = _open_six_keys(file, multi_label, dims)
        first_class, num_classes = class_numbering(stored_labels, num_classes)
        class_names = read_class_names(file, num_classes)
    if not multi_label:
        require_every_class(
            splits[0].labels, num_classes, what=stored_labels[0].what, first_class=first_class
        )
    train, test = (
        StoredFeatures(
            labels=split.labels if multi_label else split.labels - first_class,
            audio_dim=split.dims[0],
            visual_dim=split.dims[1],
            read=functools.partial(_read_split, path, split.keys, split.dims),
            rows=split.rows,
            name=f"{name_of_split} split of {path}",
        )
        for name_of_split, split in zip(("train", "test"), splits, strict=True)
    )
    return RetrievalDataset(
        name=path.stem if name is None else name,
        train=train,
        test=test,
        num_classes=num_classes,
        source=str(path),
        class_names=class_names,
        source_files=(str(path),),
        averaged_over=(
            _steps_in_words(splits[0].steps[0], splits[1].steps[0]),
            _steps_in_words(splits[0].steps[1], splits[1].steps[1]),
        ),
    )


def load_feature_file(
    path: str | os.PathLike[str],
    *,
    num_classes: int | None = None,
    name: str | None = None,
    multi_label: bool = False,
) -> RetrievalDataset:
    """What `open_feature_file` opens, with all features in memory."""
    dataset = open_feature_file(path, num_classes=num_classes, name=name, multi_label=multi_label)
    return dataset.loaded()


class _Split(NamedTuple):
    """A split's place in the file.

    Attributes:
      keys: Of the audio and the visual features.
      dims: Da and Dv.
      steps: T of the audio and of the visual features, 1 where they are vectors.
      rows: Of the arrays under these keys, ascending, int [N].
      labels: Class numbers as stored, int32 [N], or multi-hot, bool [N, C].
    """

    keys: tuple[str, str]
    dims: tuple[int, int]
    steps: tuple[int, int]
    rows: np.ndarray
    labels: np.ndarray


_Opened = tuple[tuple[_Split, _Split], tuple[StoredLabels, ...]]
"""Both splits, and each label array of the file, the one with the training rows first: checks of
single labels go over these, so that they can name the row of the file."""


def _open_six_keys(file: OpenFile, multi_label: bool, known: tuple[int, int] | None) -> _Opened:
    """Opens the layout with a key for each split."""
    arrays = {key: file.array(key, expected=_EXPECTED) for key in _SIX_KEYS}
    for part in ("audio", "visual"):
        _require_time_in_the_middle(arrays[f"{part}_train"], arrays[f"{part}_test"])

    def open_split(split: str) -> tuple[_Split, StoredLabels]:
        audio, visual, label = (arrays[f"{part}_{split}"] for part in ("audio", "visual", "lab"))
        _require_equal_rows((audio, visual, label), label)
        dims, steps = _dims_and_steps(audio, visual, known)
        labels = read_labels(label, multi_label=multi_label)
        rows = np.arange(len(label))
        return _Split((audio.key, visual.key), dims, steps, rows, labels.values), labels

    train, train_labels = open_split("train")
    test, test_labels = open_split("test")
    return (train, test), (train_labels, test_labels)


def _open_table(file: OpenFile, multi_label: bool, known: tuple[int, int] | None) -> _Opened:
    """Opens the layout with one table and a column that marks the training rows."""
    split_keys = [key for key in _SPLIT_KEYS if key in file]
    if len(split_keys) > 1:
        raise UserError(
            f"{file.path}: both {' and '.join(split_keys)} mark training rows; keep only one of "
            "them"
        )
    split_key = split_keys[0] if split_keys else _SPLIT_KEYS[0]
    audio, visual, label, marks = arrays = [
        file.array(key, expected=_EXPECTED) for key in (*_TABLE_KEYS, split_key)
    ]
    _require_equal_rows(arrays, label)
    dims, steps = _dims_and_steps(audio, visual, known)
    labels = read_labels(label, multi_label=multi_label)
    training = read_training_mask(marks)

    def split(mask: np.ndarray) -> _Split:
        keys = (audio.key, visual.key)
        return _Split(keys, dims, steps, np.flatnonzero(mask), labels.values[mask])

    return (split(training), split(~training)), (labels,)


def _require_equal_rows(arrays: Sequence[StoredArray], labels: StoredArray) -> None:
    """Requires the same number of rows everywhere; says which arrays look transposed if not."""
    hint = None
    # Clips are as many as the labels are long, along whichever axis: (N,), (N, C), (1, N), (C, N).
    for num_clips in (len(labels), labels.shape[-1]):
        fits = all(num_clips in (len(array), array.shape[-1]) for array in arrays)
        if fits and num_clips > 1:
            shapes = " and ".join(
                f"{array.key} {array.shape}" for array in arrays if len(array) != num_clips
            )
            hint = (
                f"the clips stand along the last axis of {shapes}, as MATLAB's version 7.3 stores "
                "them; transpose, by array.T, so that they stand along the first"
            )
            break
    lengths = {array.key: len(array) for array in arrays}
    require_equal_lengths(lengths, what=str(labels.path), remedy=hint)


def _require_time_in_the_middle(train: StoredArray, test: StoredArray) -> None:
    """Refuses series of which the last axis is as long as the time in each split."""
    shapes = train.shape, test.shape
    if (
        train.ndim == test.ndim == 3
        and shapes[0][1] == shapes[1][1]
        and shapes[0][2] != shapes[1][2]
    ):
        raise UserError(
            f"{train.what} has shape {shapes[0]} and {test.key} {shapes[1]}, so time seems to be "
            "their last axis; store (N, T, D), by features.transpose(0, 2, 1), or extract both "
            "with the same model"
        )


def _dims_and_steps(
    audio: StoredArray, visual: StoredArray, known: tuple[int, int] | None
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Numbers of features and of time steps, audio and visual each."""
    known_audio, known_visual = known or (None, None)
    audio_dim, audio_steps = _dim_and_steps(audio, known_audio)
    visual_dim, visual_steps = _dim_and_steps(visual, known_visual)
    return (audio_dim, visual_dim), (audio_steps, visual_steps)


def _steps_in_words(train: int, test: int) -> str:
    """T of both splits; empty where nothing is averaged."""
    steps = sorted({train, test})
    return "" if steps == [1] else f"{' or '.join(map(str, steps))} time steps"


def _dim_and_steps(array: StoredArray, known_dim: int | None) -> tuple[int, int]:
    """Length of the vectors of an array that must hold features, and T.

    Where nothing else tells, the last axis is that of the features:

      (N, 128)      128 features
      (N, 10, 128)  128 features, averaged over 10 steps
      (N, 128, 1)   refused, unless 128 features are known to be right
      (N, 128, 10)  10 features, unless 128 are known to be right: then refused
    """
    what = array.what
    if array.ndim not in (2, 3):
        raise UserError(
            f"{what} must have shape (N, D) or (N, T, D), got {array.shape}; store one vector "
            "or one series of vectors per clip"
        )
    require_real_dtype(array.dtype, what=what)
    if array.ndim == 2:
        return array.shape[1], 1
    _, middle, last = array.shape
    is_turned = known_dim == middle != last
    if is_turned and last > 1:
        raise UserError(
            f"{what} has shape {array.shape}, but {known_dim} features, the length of its middle "
            "axis, should be the last; store (N, T, D), by features.transpose(0, 2, 1)"
        )
    if middle > 1 and last == 1 and not is_turned:
        raise UserError(
            f"{what} has shape {array.shape}, which may be {middle} features of a clip or {middle} "
            "steps of one; store (N, D), for features as features[..., 0], for steps as "
            "features.mean(axis=1)"
        )
    return (middle, 1) if is_turned else (last, middle)


def _read_split(
    path: pathlib.Path, keys: tuple[str, str], dims: tuple[int, int], rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Audio and visual features of some rows, float32 [K, Da] and [K, Dv]."""
    with open_hdf5(path) as file:
        audio, visual = (
            _read_features(file.array(key, expected=_EXPECTED), rows, dim)
            for key, dim in zip(keys, dims, strict=True)
        )
    return audio, visual


def _read_features(array: StoredArray, rows: np.ndarray, dim: int) -> np.ndarray:
    """Rows in ascending order, read block by block; float32 [K, D], averaged over time if need be.

    Whatever lies between the first and the last of them in a block is read and checked as well.
    """
    features = np.empty((len(rows), dim), np.float32)
    time_axis = 1 if array.shape[-1] == dim else 2  # an axis of length 1 behind the features
    bad = NonFiniteRows(array.what)
    row_bytes = array.dtype.itemsize * math.prod(array.shape[1:])
    block_rows = max(1, _BLOCK_BYTES // row_bytes)
    for start in range(0, len(array), block_rows):
        wanted = slice(*np.searchsorted(rows, (start, start + block_rows)))
        if wanted.start == wanted.stop:
            continue
        first, last = int(rows[wanted.start]), int(rows[wanted.stop - 1])
        block = vectors = array.rows(first, last + 1)
        if block.ndim == 3:
            # A sum that leaves float64 ends infinite and is reported with the other overflows.
            with np.errstate(over="ignore", invalid="ignore"):
                vectors = block.mean(axis=time_axis, dtype=np.float64)
        vectors = as_float32(vectors)
        bad.add(first, block, vectors)
        features[wanted] = vectors[rows[wanted] - first]
    bad.raise_if_any(len(array))
    return features
