"""Reading of audio-visual feature files (HDF5), in the two layouts that circulate.

Six keys: `audio_train`, `visual_train`, `lab_train` and the same with `_test`.

One table: `audio_feat`, `visual_feat`, `Label_ID`, and `Split` or `Train_test`, which marks
training rows with 1 (text or number) and test rows with one other value.

Features are (N, D), or (N, T, D) over T time steps, which are averaged. Labels are class numbers,
(N,) or (N, 1), that start at 0 or at 1, or one-hot rows (N, C). Nothing is repaired or skipped:
whatever doesn't fit is a `UserError` that names file, key and row.
"""

import contextlib
import os
import pathlib
from collections.abc import Iterator
from typing import NamedTuple

import h5py
import numpy as np

from aadml_jax.data.paired_features import PairedFeatures, RetrievalDataset
from aadml_jax.data.validation import (
    NonFiniteRows,
    as_float32,
    class_numbers,
    require_equal_lengths,
    require_every_class,
    require_labels_in_range,
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
_TRAINING_MARK = "1"

# Bytes of a feature array held at once, in the file's own dtype. Averaging over time raises a block
# to float64, which takes up to eight times as much for a moment.
_BLOCK_BYTES = 8 * 2**20
# Values of a wrong row that a message shows.
_LISTED_VALUES = 12


def load_feature_file(
    path: str | os.PathLike[str], *, num_classes: int | None = None, name: str | None = None
) -> RetrievalDataset:
    """Reads and checks a feature file.

    Args:
      path: An HDF5 file in either layout (see the module's docstring); `~` is expanded.
      num_classes: Number of classes C that the file must have. None takes it from the labels: the
        columns of one-hot labels, else the largest class number counted from the first.
      name: Name of the data set; None takes the file's name without its suffix.

    Returns:
      The data set in float32 with labels from 0, whatever the file counts from: its numbers are
      taken to start at 1 if the smallest one in training and test rows together is 1.

    Raises:
      UserError: The file can't be read, lacks a key, or holds what doesn't fit: another rank or
        dtype, unequal numbers of rows, NaN or infinity, values beyond float32, class numbers out
        of range, a class without training rows, a split without rows.
    """
    path = pathlib.Path(os.path.expanduser(path)).absolute()
    with _open(path) as file:
        if not any(key in file for key in _SIX_KEYS) and any(key in file for key in _TABLE_KEYS):
            content = _read_table(file, path)
        else:
            content = _read_six_keys(file, path)
    first_class, num_classes = _class_numbering(content.stored_labels, num_classes)
    require_every_class(
        content.train_numbers,
        num_classes,
        what=content.stored_labels[0].what,
        first_class=first_class,
    )
    train, test = (
        PairedFeatures(*features, numbers - first_class, name=f"{split} split of {path}")
        for split, features, numbers in (
            ("train", content.train, content.train_numbers),
            ("test", content.test, content.test_numbers),
        )
    )
    return RetrievalDataset(
        name=path.stem if name is None else name,
        train=train,
        test=test,
        num_classes=num_classes,
        source=str(path),
    )


class _StoredLabels(NamedTuple):
    """The labels under one key, in the file's own numbers and rows.

    Attributes:
      numbers: Class numbers, int32 [N]; from 0 where they were one-hot.
      num_columns: C of one-hot labels, None for class numbers.
      what: Their name in messages.
    """

    numbers: np.ndarray
    num_columns: int | None
    what: str


class _Content(NamedTuple):
    """A file's rows by split, before the classes are renumbered.

    Attributes:
      train: Audio and visual features, float32 [N, Da] and [N, Dv].
      test: The same of the test rows.
      train_numbers: Class numbers as stored, int32 [N].
      test_numbers: The same of the test rows.
      stored_labels: Each label array of the file, the one with the training rows first. Checks of
        single labels go over these, so that they can name the row of the file.
    """

    train: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]
    train_numbers: np.ndarray
    test_numbers: np.ndarray
    stored_labels: tuple[_StoredLabels, ...]


@contextlib.contextmanager
def _open(path: pathlib.Path) -> Iterator[h5py.File]:
    """Opens an HDF5 file for reading."""
    # HDF5 reports each of these cases as "unable to open file" in a paragraph of its own.
    if os.path.isdir(path):
        raise UserError(f"{path} is a directory; give the HDF5 file itself")
    try:
        with open(path, "rb") as raw:
            raw.read(1)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; give the path of an HDF5 feature file") from None
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}); check its permissions"
        ) from error
    if not h5py.is_hdf5(path):
        raise UserError(
            f"{path} is not an HDF5 file ({path.stat().st_size} bytes); fetch it again, a "
            "download link may have answered with a web page"
        )
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise UserError(
            f"{path} is damaged or in use ({_one_line(error)}); fetch it again"
        ) from error
    with file:
        yield file


def _read_six_keys(file: h5py.File, path: pathlib.Path) -> _Content:
    """Reads the layout with a key for each split."""
    datasets = {key: _dataset(file, path, key) for key in _SIX_KEYS}
    splits, labels = [], []
    for split in ("train", "test"):
        keys = [f"{part}_{split}" for part in ("audio", "visual", "lab")]
        _require_equal_rows({key: datasets[key] for key in keys}, path)
        audio, visual, lab = keys
        splits.append(tuple(_read_features(datasets[key], path, key) for key in (audio, visual)))
        labels.append(_read_labels(datasets[lab], path, lab))
    return _Content(*splits, *(stored.numbers for stored in labels), tuple(labels))


def _read_table(file: h5py.File, path: pathlib.Path) -> _Content:
    """Reads the layout with one table and a column that marks the training rows."""
    audio, visual, label = (_dataset(file, path, key) for key in _TABLE_KEYS)
    split_keys = [key for key in _SPLIT_KEYS if key in file]
    if len(split_keys) > 1:
        raise UserError(
            f"{path}: both {' and '.join(split_keys)} mark training rows; keep only one of them"
        )
    split_key = split_keys[0] if split_keys else _SPLIT_KEYS[0]
    split = _dataset(file, path, split_key)
    _require_equal_rows(
        dict(zip((*_TABLE_KEYS, split_key), (audio, visual, label, split), strict=True)), path
    )
    features = tuple(
        _read_features(dataset, path, key)
        for key, dataset in zip(_TABLE_KEYS[:2], (audio, visual), strict=True)
    )
    labels = _read_labels(label, path, _TABLE_KEYS[2])
    training = _read_training_mask(split, path, split_key)
    return _Content(
        *(tuple(array[rows] for array in features) for rows in (training, ~training)),
        *(labels.numbers[rows] for rows in (training, ~training)),
        (labels,),
    )


def _dataset(file: h5py.File, path: pathlib.Path, key: str) -> h5py.Dataset:
    """Looks up a key that must be an array with rows."""
    try:
        node = file[key]
    except KeyError:
        there = ", ".join(file) or "none"
        raise UserError(
            f"{path}: key {key} is missing (keys there: {there}); a feature file has "
            f"{' '.join(_SIX_KEYS)}, or else {' '.join(_TABLE_KEYS)} and {' or '.join(_SPLIT_KEYS)}"
        ) from None
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"{path}: {key} cannot be opened ({_one_line(error)}); fetch the file again"
        ) from error
    if not isinstance(node, h5py.Dataset):
        raise UserError(f"{path}: {key} is a group; store an array under this key")
    if not node.shape or 0 in node.shape:
        raise UserError(
            f"{path}: {key} is empty or has no rows (shape {node.shape}); store one row per clip"
        )
    try:
        _ = node.dtype
    except TypeError as error:
        raise UserError(
            f"{path}: {key} has a dtype unknown to NumPy ({_one_line(error)}); store float32 "
            "features and integer labels"
        ) from error
    return node


def _require_equal_rows(datasets: dict[str, h5py.Dataset], path: pathlib.Path) -> None:
    require_equal_lengths(
        {key: dataset.shape[0] for key, dataset in datasets.items()}, what=str(path)
    )


def _read_features(dataset: h5py.Dataset, path: pathlib.Path, key: str) -> np.ndarray:
    """Reads features block by block; returns float32 [N, D], averaged over time if need be."""
    what = f"{path}: {key}"
    if dataset.ndim not in (2, 3):
        raise UserError(
            f"{what} must have shape (N, D) or (N, T, D), got {dataset.shape}; store one vector "
            "or one series of vectors per clip"
        )
    require_real_dtype(dataset.dtype, what=what)
    num_rows = dataset.shape[0]
    features = np.empty((num_rows, dataset.shape[-1]), np.float32)
    bad = NonFiniteRows(what)
    row_bytes = dataset.dtype.itemsize * int(np.prod(dataset.shape[1:]))
    block_rows = max(1, _BLOCK_BYTES // row_bytes)
    for start in range(0, num_rows, block_rows):
        rows = slice(start, min(start + block_rows, num_rows))
        block = vectors = _read_rows(dataset, rows, what)
        if block.ndim == 3:
            # A sum that leaves float64 ends infinite and is reported with the other overflows.
            with np.errstate(over="ignore", invalid="ignore"):
                vectors = block.mean(axis=1, dtype=np.float64)
        features[rows] = as_float32(vectors)
        bad.add(start, block, features[rows])
    bad.raise_if_any(num_rows)
    return features


def _read_rows(dataset: h5py.Dataset, rows: slice, what: str) -> np.ndarray:
    """Reads a range of rows; damage that only shows here is reported with that range."""
    try:
        return dataset[rows]
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"{what}: rows {rows.start} to {rows.stop - 1} cannot be read ({_one_line(error)}); "
            "the file is damaged, fetch it again"
        ) from error


def _read_labels(dataset: h5py.Dataset, path: pathlib.Path, key: str) -> _StoredLabels:
    """Reads class numbers or one-hot rows."""
    what = f"{path}: {key}"
    if dataset.ndim > 2:
        raise UserError(
            f"{what} must have shape (N,), (N, 1) or one-hot (N, C), got {dataset.shape}; store "
            "one label per clip"
        )
    values = _read_rows(dataset, slice(0, dataset.shape[0]), what)
    if values.ndim == 2 and values.shape[1] > 1:
        return _StoredLabels(_one_hot_to_numbers(values, what), values.shape[1], what)
    return _StoredLabels(class_numbers(values.reshape(-1), what=what), None, what)


def _one_hot_to_numbers(rows: np.ndarray, what: str) -> np.ndarray:
    """Column of the single 1 of each row, int32 [N]."""
    if rows.dtype.kind not in "biuf":
        raise UserError(
            f"{what} must hold one-hot rows of numbers, got dtype {rows.dtype}; store 0 and 1"
        )
    ones = rows == 1
    one_hot = (ones | (rows == 0)).all(axis=1) & (ones.sum(axis=1) == 1)
    if not one_hot.all():
        row = int(np.argmin(one_hot))
        listed = ", ".join(f"{value:g}" for value in rows[row, :_LISTED_VALUES].astype(np.float64))
        more = ", …" if rows.shape[1] > _LISTED_VALUES else ""
        raise UserError(
            f"{what}: row {row} is not one-hot ({listed}{more}); {int((~one_hot).sum())} of "
            f"{len(rows)} rows are not, each needs exactly one 1 among zeros"
        )
    return np.argmax(ones, axis=1).astype(np.int32)


def _read_training_mask(dataset: h5py.Dataset, path: pathlib.Path, key: str) -> np.ndarray:
    """Which rows of a table are training rows, bool [N]."""
    what = f"{path}: {key}"
    if dataset.ndim > 2 or dataset.shape[1:] not in ((), (1,)):
        raise UserError(
            f"{what} must have shape (N,) or (N, 1), got {dataset.shape}; store one mark per row"
        )
    values = _read_rows(dataset, slice(0, dataset.shape[0]), what).reshape(-1)
    is_text = h5py.check_string_dtype(dataset.dtype) is not None
    if not is_text and values.dtype.kind not in "biuf":
        raise UserError(f"{what} must hold text or numbers, got dtype {values.dtype}")
    marks = np.array([_mark(value) for value in values.tolist()])
    training = marks == _TRAINING_MARK
    others = sorted(set(marks[~training].tolist()))
    if not training.any() or not others:
        empty = "test" if training.any() else "training"
        raise UserError(
            f"{what} leaves no {empty} rows: values are {', '.join(others) or _TRAINING_MARK}; "
            f"mark training rows with {_TRAINING_MARK} and test rows with 0"
        )
    if len(others) > 1:
        row = int(np.argmax(marks == others[1]))
        raise UserError(
            f"{what}: test rows carry several marks ({', '.join(others)}; row {row} has "
            f"{others[1]}); leave out rows that belong to neither split and mark test rows with 0"
        )
    return training


def _mark(value: bytes | str | float) -> str:
    """Text of a split mark: b"1", "1 ", 1, 1.0 and True all read "1"."""
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    if isinstance(value, str):
        return value.strip()
    return f"{float(value):g}"


def _class_numbering(stored: tuple[_StoredLabels, ...], num_classes: int | None) -> tuple[int, int]:
    """Decides how the file numbers its classes, and checks that every label fits.

    Args:
      stored: All labels of the file.
      num_classes: C where it is known beforehand.

    Returns:
      The number of the first class (0 or 1) and C.
    """
    first = stored[0]
    for other in stored[1:]:
        if other.num_columns != first.num_columns:
            raise UserError(
                f"{first.what} holds {_label_form(first)} but {other.what} {_label_form(other)}; "
                "store both alike"
            )
    if first.num_columns is not None:
        if num_classes not in (None, first.num_columns):
            raise UserError(
                f"{first.what} holds {_label_form(first)}, but the data set has {num_classes} "
                "classes; give the file of that data set"
            )
        return 0, first.num_columns
    # Over all rows together: a test split may well lack the first class.
    first_class = int(min(labels.numbers.min() for labels in stored))
    if first_class > 1:
        raise UserError(
            f"{first.what}: the smallest class number of the file is {first_class}; number the "
            "classes from 0 or from 1"
        )
    if num_classes is None:
        num_classes = int(max(labels.numbers.max() for labels in stored)) - first_class + 1
    for labels in stored:
        require_labels_in_range(
            labels.numbers, num_classes, what=labels.what, first_class=first_class
        )
    return first_class, num_classes


def _label_form(labels: _StoredLabels) -> str:
    """How a file stores its labels, in words."""
    if labels.num_columns is None:
        return "class numbers"
    return f"one-hot rows of {labels.num_columns}"


def _one_line(error: Exception) -> str:
    """The message of an HDF5 error, which may span lines."""
    return " ".join(str(error).split())
