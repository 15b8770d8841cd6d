"""Checks of features and labels, shared by in-memory rows and rows on disk.

Every check takes `what`, the name that its message gives the array ("audio of train split of …" or
"/data/vegas.h5: audio_train"), and raises a `UserError` of one line that names that array, the
first culprit (row or value) and the remedy. Rows are counted from 0.
"""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from aadml_jax.errors import UserError

# Labels end up as int32, the integers of a program without x64.
_LARGEST_LABEL = np.iinfo(np.int32).max
# A stray label of a billion makes a billion absent classes: a message lists the first few.
_LISTED_CLASSES = 10


def require_real_dtype(dtype: np.dtype, *, what: str) -> None:
    """Requires an integer or floating dtype.

    Args:
      dtype: Of the features.
      what: The array's name in the message.

    Raises:
      UserError: Any other dtype, including bool and complex.
    """
    if dtype.kind not in "iuf":
        raise UserError(f"{what} must hold real numbers, got dtype {dtype}; store float32 features")


def as_float32(values: np.ndarray) -> np.ndarray:
    """Converts to contiguous float32 in native byte order.

    Args:
      values: Real array of any shape.

    Returns:
      The same shape; a value beyond the range of float32 becomes infinite, which `NonFiniteRows`
      reports.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        return np.ascontiguousarray(values, np.float32)


class NonFiniteRows:
    """Count of unusable feature values over blocks of rows, for a single message at the end.

    Values that were NaN or infinite from the start are told apart from finite ones that became
    infinite in float32: the first call for other data, the second for another scale.
    """

    def __init__(self, what: str):
        self._what = what
        self._bad_values = 0
        self._bad_rows = 0
        self._first_bad_row = 0
        self._overflow_rows = 0
        self._first_overflow = (0, 0.0)

    def add(self, start: int, original: np.ndarray, converted: np.ndarray) -> None:
        """Counts one block.

        Args:
          start: Number of the block's first row.
          original: The rows as given, real [rows, …].
          converted: What became of them, float32 [rows, D].
        """
        finite = np.isfinite(original).reshape(len(original), -1)
        bad = ~finite.all(axis=1)
        if bad.any():
            if not self._bad_rows:
                self._first_bad_row = start + int(np.argmax(bad))
            self._bad_rows += int(bad.sum())
            self._bad_values += int((~finite).sum())
        overflow = ~bad & ~np.isfinite(converted).all(axis=1)
        if overflow.any():
            if not self._overflow_rows:
                row = int(np.argmax(overflow))
                self._first_overflow = start + row, float(np.abs(original[row]).max())
            self._overflow_rows += int(overflow.sum())

    def raise_if_any(self, num_rows: int) -> None:
        """Reports what the blocks held.

        Args:
          num_rows: Rows in all, for the message.

        Raises:
          UserError: Some value was NaN, infinite or beyond float32.
        """
        if self._bad_rows:
            raise UserError(
                f"{self._what} holds {self._bad_values} NaN or infinite values in "
                f"{self._bad_rows} of {num_rows} rows, first in row {self._first_bad_row}; remove "
                "or recompute these rows"
            )
        if self._overflow_rows:
            row, magnitude = self._first_overflow
            raise UserError(
                f"{self._what} exceeds the range of float32 in {self._overflow_rows} of "
                f"{num_rows} rows, first in row {row} with magnitude {magnitude:.4g}; rescale the "
                "features"
            )


def checked_labels(labels: npt.ArrayLike, *, what: str) -> np.ndarray:
    """Checks labels of either kind; the number of dimensions decides which.

    Args:
      labels: Class numbers [N], see `class_numbers`, or multi-hot rows [N, C], see
        `multi_hot_labels`.
      what: The array's name in messages.

    Returns:
      int32 [N] or bool [N, C].

    Raises:
      UserError: They are neither.
    """
    require_unmasked(labels, what=what)
    labels = np.asarray(labels)
    check = multi_hot_labels if labels.ndim == 2 else class_numbers
    return check(labels, what=what)


def require_unmasked(values: npt.ArrayLike, *, what: str) -> None:
    """Refuses masked entries, of which NumPy would hand out what stands beneath.

    Raises:
      UserError: Some entry is masked.
    """
    if np.ma.is_masked(values):
        raise UserError(
            f"{what} holds {np.ma.count_masked(values)} masked values; leave out their rows, or "
            "fill them"
        )


def class_numbers(labels: np.ndarray, *, what: str) -> np.ndarray:
    """Checks class numbers and converts them to int32.

    Args:
      labels: Any real dtype, [N]; floats must be whole numbers.
      what: The array's name in messages.

    Returns:
      int32 [N], each 0 or more.

    Raises:
      UserError: Wrong rank or dtype, no rows, or an entry that is negative, fractional, NaN or
        beyond int32.
    """
    if labels.ndim != 1:
        raise UserError(
            f"{what} must be a vector with one class number per row, got shape {labels.shape}"
        )
    if labels.dtype.kind not in "iuf":
        raise UserError(f"{what} must hold class numbers, got dtype {labels.dtype}; store integers")
    if not len(labels):
        raise UserError(f"{what} has no rows; at least one is needed")
    # Written so that NaN, which fails every comparison, counts as wrong.
    right = (labels >= 0) & (labels <= _LARGEST_LABEL)
    right &= labels == np.floor(labels)
    if not right.all():
        row = int(np.argmin(right))
        raise UserError(
            f"{what}: row {row} holds {labels[row]}; class numbers must be whole, from 0 to "
            f"{_LARGEST_LABEL}"
        )
    return labels.astype(np.int32, copy=False)


def multi_hot_labels(labels: np.ndarray, *, what: str) -> np.ndarray:
    """Checks multi-hot labels and converts them to bool.

    Args:
      labels: bool or any real dtype, [N, C] with C of at least 2; each entry 0 or 1.
      what: The array's name in messages.

    Returns:
      bool [N, C], at least one True in each row.

    Raises:
      UserError: Wrong rank or dtype, no rows, fewer than two columns, another entry than 0 and 1,
        or a row without any class.
    """
    if labels.ndim != 2:
        raise UserError(
            f"{what} must be a matrix with one column per class, got shape {labels.shape}"
        )
    if labels.dtype.kind not in "biuf":
        raise UserError(
            f"{what} must hold multi-hot rows of numbers, got dtype {labels.dtype}; store 0 and 1"
        )
    if 0 in labels.shape:
        raise UserError(
            f"{what} is empty, shape {labels.shape}; give at least one row and one class"
        )
    if labels.shape[1] == 1:
        raise UserError(
            f"{what} has shape {labels.shape}, one column; give class numbers as a vector, "
            "labels[:, 0], or multi-hot rows with a column for each class"
        )
    ones = np.ascontiguousarray(labels == 1)
    right = (ones | (labels == 0)).all(axis=1)
    if not right.all():
        row = int(np.argmin(right))
        column = int(np.argmin(ones[row] | (labels[row] == 0)))
        raise UserError(
            f"{what}: row {row} holds {float(labels[row, column]):.9g} for class {column}; mark "
            "the classes of a clip with 1 and the others with 0"
        )
    require_a_class(ones, what=what)
    return ones


def require_a_class(labels: np.ndarray, *, what: str) -> None:
    """Requires a class in each row.

    Args:
      labels: Multi-hot labels, bool [N, C].
      what: The array's name in the message.

    Raises:
      UserError: A row has none.
    """
    has_class = labels.any(axis=1)
    if not has_class.all():
        raise UserError(
            f"{what}: {int((~has_class).sum())} of {len(labels)} rows have no class, first row "
            f"{int(np.argmin(has_class))}; each clip needs at least one class"
        )


def require_equal_lengths(
    lengths: Mapping[str, int], *, what: str, remedy: str | None = None
) -> None:
    """Requires the same number of rows everywhere.

    Args:
      lengths: Number of rows by the name that the message gives each array.
      what: What the arrays belong to.
      remedy: End of the message, where more is known of the cause.

    Raises:
      UserError: The numbers differ; the message lists them all.
    """
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{key} has {length}" for key, length in lengths.items())
        raise UserError(
            f"{what}: numbers of rows differ ({listed}); "
            f"{remedy or 'each clip needs one row in all'}"
        )


def require_labels_in_range(
    labels: np.ndarray, num_classes: int, *, what: str, first_class: int = 0
) -> None:
    """Requires first_class ≤ label < first_class + C.

    Args:
      labels: Class numbers, integers [N].
      num_classes: C.
      what: The array's name in the message.
      first_class: Number of the first class.

    Raises:
      UserError: A label lies outside.
    """
    wrong = (labels < first_class) | (labels >= first_class + num_classes)
    if wrong.any():
        row = int(np.argmax(wrong))
        raise UserError(
            f"{what}: row {row} holds class {labels[row]}, but {num_classes} classes run from "
            f"{first_class} to {first_class + num_classes - 1}; correct the labels or the number "
            "of classes"
        )


def require_columns(labels: np.ndarray, num_classes: int, *, what: str) -> None:
    """Requires a column for each class.

    Args:
      labels: Multi-hot labels, bool [N, C].
      num_classes: C.
      what: The array's name in the message.

    Raises:
      UserError: The number of columns is another one.
    """
    if labels.shape[1] != num_classes:
        raise UserError(
            f"{what} has {labels.shape[1]} columns, but the data set has {num_classes} classes; "
            "give each class a column of its own in both splits"
        )


def require_every_class(
    labels: np.ndarray, num_classes: int, *, what: str, first_class: int = 0
) -> None:
    """Requires that each class has a training row.

    Args:
      labels: Class numbers of the training rows, integers [N], all within range.
      num_classes: C.
      what: The array's name in the message.
      first_class: Number of the first class.

    Raises:
      UserError: A class is absent; the message lists the absent ones (ten at most).
    """
    present = set(np.unique(labels).tolist())
    absent_count = num_classes - len(present)
    if not absent_count:
        return
    listed: list[str] = []
    candidate = first_class
    while len(listed) < min(absent_count, _LISTED_CLASSES):
        if candidate not in present:
            listed.append(str(candidate))
        candidate += 1
    if absent_count > len(listed):
        listed.append(f"… ({absent_count} in all)")
    raise UserError(
        f"{what}: no training row has class {', '.join(listed)}, out of {num_classes} classes "
        f"from {first_class} to {first_class + num_classes - 1}; add such rows or number the "
        "classes without gaps"
    )
