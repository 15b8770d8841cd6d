"""Labels and split marks of feature files, in the forms in which they circulate."""

from typing import NamedTuple

import numpy as np

from aadml_jax.data.readers.hdf5 import OpenFile, StoredArray
from aadml_jax.data.validation import (
    class_numbers,
    multi_hot_labels,
    require_labels_in_range,
)
from aadml_jax.errors import UserError

CLASS_NAMES_KEY = "class_names"
_TRAINING_MARK = "1"
# Values of a wrong row that a message shows.
_LISTED_VALUES = 12


class StoredLabels(NamedTuple):
    """The labels under one key, in the file's own numbers and rows.

    Attributes:
      values: Class numbers, int32 [N], from 0 where they were one-hot; or multi-hot, bool [N, C].
      num_columns: C of one-hot or multi-hot labels, None for class numbers.
      what: Their name in messages.
    """

    values: np.ndarray
    num_columns: int | None
    what: str


def read_labels(array: StoredArray, *, multi_label: bool) -> StoredLabels:
    """Reads class numbers or one-hot rows; with `multi_label`, multi-hot rows."""
    what = array.what
    if multi_label and (array.ndim != 2 or array.shape[1] == 1):
        raise UserError(
            f"{what} must have shape (N, C) with a column per class, got {array.shape}; leave "
            "--multi_label out for class numbers"
        )
    if array.ndim > 2:
        raise UserError(
            f"{what} must have shape (N,), (N, 1) or one-hot (N, C), got {array.shape}; store "
            "one label per clip"
        )
    values = array.rows()
    if multi_label:
        return StoredLabels(multi_hot_labels(values, what=what), values.shape[1], what)
    if values.ndim == 2 and values.shape[1] > 1:
        return StoredLabels(_one_hot_to_numbers(values, what), values.shape[1], what)
    return StoredLabels(class_numbers(values.reshape(-1), what=what), None, what)


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
            f"{len(rows)} rows are not, each needs exactly one 1 among zeros; for clips of several "
            "classes set --multi_label"
        )
    return np.argmax(ones, axis=1).astype(np.int32)


def read_training_mask(array: StoredArray) -> np.ndarray:
    """Which rows of a table are training rows, bool [N]."""
    what = array.what
    if array.ndim > 2 or array.shape[1:] not in ((), (1,)):
        raise UserError(
            f"{what} must have shape (N,) or (N, 1), got {array.shape}; store one mark per row"
        )
    values = array.rows().reshape(-1)
    if not array.is_text and values.dtype.kind not in "biuf":
        raise UserError(f"{what} must hold text or numbers, got dtype {values.dtype}")
    if not array.is_text and not np.isfinite(values).all():
        row = int(np.argmin(np.isfinite(values)))
        raise UserError(f"{what}: row {row} holds {values[row]}; mark test rows with 0")
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


def read_class_names(file: OpenFile, num_classes: int) -> tuple[str, ...]:
    """The names of classes, empty if the file has none."""
    if CLASS_NAMES_KEY not in file:
        return ()
    array = file.array(CLASS_NAMES_KEY, expected="it names the classes")
    what = array.what
    if not array.is_text or array.shape != (num_classes,):
        raise UserError(
            f"{what} has shape {array.shape} and dtype {array.dtype}; store a text for each of the "
            f"{num_classes} classes, or leave it out"
        )
    names = []
    for number, value in enumerate(array.rows()):
        try:
            names.append(value.decode())
        except UnicodeDecodeError:
            raise UserError(
                f"{what}: the name of class {number} is not UTF-8 text; write it as such"
            ) from None
        if names[-1] in names[:-1]:
            raise UserError(
                f"{what}: classes {names.index(names[-1])} and {number} are both called "
                f"{names[-1]!r}; give each class a name of its own"
            )
    return tuple(names)


def class_numbering(stored: tuple[StoredLabels, ...], num_classes: int | None) -> tuple[int, int]:
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
    first_class = int(min(labels.values.min() for labels in stored))
    if first_class > 1:
        raise UserError(
            f"{first.what}: the smallest class number of the file is {first_class}; number the "
            "classes from 0 or from 1"
        )
    if num_classes is None:
        num_classes = int(max(labels.values.max() for labels in stored)) - first_class + 1
    for labels in stored:
        require_labels_in_range(
            labels.values, num_classes, what=labels.what, first_class=first_class
        )
    return first_class, num_classes


def _label_form(labels: StoredLabels) -> str:
    """How a file stores its labels, in words."""
    if labels.num_columns is None:
        return "class numbers"
    kind = "multi-hot" if labels.values.ndim == 2 else "one-hot"
    return f"{kind} rows of {labels.num_columns}"
