"""Paired audio and visual feature vectors with labels: the form in which all data is trained on.

Whatever the origin (feature file, generator), a data set arrives here as two `PairedFeatures`, a
training and a test split, inside one `RetrievalDataset`. Both check what they are given on
construction, so that code further on may rely on it: finite float32 features, labels 0 … C − 1,
every class present in training.
"""

import dataclasses
import hashlib
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

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

# Rows per block where a float64 copy of the whole array is to be avoided.
_BLOCK_ROWS = 4096


@dataclasses.dataclass(frozen=True, eq=False)
class PairedFeatures:
    """N clips, each with an audio vector, a visual vector and a class.

    Attributes:
      audio: Audio features, float32 [N, Da]. Other real dtypes are converted.
      visual: Visual features, float32 [N, Dv], row for row of the same clips.
      labels: Class of each clip, int32 [N], counted from 0. Other integers, and floats without
        a fractional part, are converted.
      name: What error messages call these rows, such as "train split of /data/vegas.h5".

    Raises:
      UserError: An array has the wrong rank, no rows, no columns or another number of rows than
        its fellows; a feature is NaN, infinite or beyond float32; a label is no class index.
    """

    audio: np.ndarray
    visual: np.ndarray
    labels: np.ndarray
    name: str = "paired features"

    def __post_init__(self):
        for field in ("audio", "visual"):
            what = f"{field} of {self.name}"
            object.__setattr__(self, field, _as_finite_float32(getattr(self, field), what))
        labels = class_numbers(np.asarray(self.labels), what=f"labels of {self.name}")
        object.__setattr__(self, "labels", labels)
        require_equal_lengths(
            {"audio": len(self.audio), "visual": len(self.visual), "labels": len(labels)},
            what=self.name,
        )

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: np.ndarray) -> "PairedFeatures":
        """The given rows, in the given order.

        Args:
          rows: Row indices, integers [K], or a mask, bool [N].

        Raises:
          IndexError: A row doesn't exist.
          UserError: No row is selected.
        """
        return dataclasses.replace(
            self, audio=self.audio[rows], visual=self.visual[rows], labels=self.labels[rows]
        )


@dataclasses.dataclass(frozen=True, eq=False)
class RetrievalDataset:
    """A training split, a test split and what is known about them.

    Attributes:
      name: Short name, such as "vegas".
      train: Rows to learn from; every class has at least one.
      test: Rows to rank, both as queries and as gallery.
      num_classes: C; labels run from 0 to C − 1.
      source: Where the rows come from: an absolute path, or a description of the generator.
      test_posteriors: Exact class probabilities (p(c | audio), p(c | visual)) of the test rows,
        real [len(test), C] each, where the density is known; else None.

    Raises:
      UserError: The splits differ in their numbers of features, a label is C or above, or a class
        is absent from training.
      ValueError: The posteriors have another shape than [len(test), C].
    """

    name: str
    train: PairedFeatures
    test: PairedFeatures
    num_classes: int
    source: str
    test_posteriors: tuple[np.ndarray, np.ndarray] | None = None

    def __post_init__(self):
        for field in ("audio", "visual"):
            train_dim, test_dim = (
                getattr(split, field).shape[1] for split in (self.train, self.test)
            )
            if train_dim != test_dim:
                raise UserError(
                    f"{field} features have {train_dim} columns in {self.train.name} but "
                    f"{test_dim} in {self.test.name}; extract both with the same model"
                )
        for split in (self.train, self.test):
            require_labels_in_range(split.labels, self.num_classes, what=f"labels of {split.name}")
        require_every_class(
            self.train.labels, self.num_classes, what=f"labels of {self.train.name}"
        )
        expected = (len(self.test), self.num_classes)
        for posteriors in self.test_posteriors or ():
            if np.shape(posteriors) != expected:
                raise ValueError(
                    f"test_posteriors of {self.name} must have shape {expected}, "
                    f"got {np.shape(posteriors)}"
                )

    @property
    def audio_dim(self) -> int:
        """Number of audio features, Da."""
        return self.train.audio.shape[1]

    @property
    def visual_dim(self) -> int:
        """Number of visual features, Dv."""
        return self.train.visual.shape[1]

    def class_balanced_subset(self, max_train: int, max_test: int) -> "RetrievalDataset":
        """The first rows of each class of either split, with their posteriors.

        Args:
          max_train: Most training rows to keep.
          max_test: Most test rows to keep.

        Raises:
          UserError: A class would be left without a row.
        """
        train_rows, test_rows = (
            class_balanced_rows(split.labels, max_rows, what=split.name)
            for split, max_rows in ((self.train, max_train), (self.test, max_test))
        )
        posteriors = self.test_posteriors and tuple(p[test_rows] for p in self.test_posteriors)
        return dataclasses.replace(
            self,
            train=self.train.take(train_rows),
            test=self.test.take(test_rows),
            test_posteriors=posteriors,
        )

    def fingerprint(self) -> str:
        """Digest of all features and labels, 32 hexadecimal digits, the same on every machine.

        Two data sets share it only if their splits hold the same values in the same order and they
        count the same classes. Names, source and posteriors don't enter.
        """
        digest = hashlib.blake2b(str(self.num_classes).encode(), digest_size=16)
        for split_name, split in (("train", self.train), ("test", self.test)):
            for field in ("audio", "visual", "labels"):
                array = getattr(split, field)
                little_endian = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
                header = f"{split_name} {field} {little_endian.dtype.str} {array.shape}"
                digest.update(header.encode())
                digest.update(memoryview(little_endian).cast("B"))
        return digest.hexdigest()


class FeatureStandardization(NamedTuple):
    """Per-feature mean and standard deviation of a training split.

    Attributes:
      audio_mean: float32 [Da].
      audio_scale: float32 [Da], above 0.
      visual_mean: float32 [Dv].
      visual_scale: float32 [Dv], above 0.
    """

    audio_mean: np.ndarray
    audio_scale: np.ndarray
    visual_mean: np.ndarray
    visual_scale: np.ndarray


def fit_standardization(train: PairedFeatures) -> FeatureStandardization:
    """Measures mean and standard deviation (divisor N) of each feature, in float64.

    A constant feature gets scale 1, so that standardising maps it to 0 and not to NaN.

    Args:
      train: The rows to measure. Fitting on test rows would leak them into training.
    """
    return FeatureStandardization(*_mean_and_scale(train.audio), *_mean_and_scale(train.visual))


def standardize(features: PairedFeatures, statistics: FeatureStandardization) -> PairedFeatures:
    """Maps each feature x to (x − mean) / scale.

    Args:
      features: Rows of any split.
      statistics: Of the training split, see `fit_standardization`.

    Returns:
      The same clips with features of about zero mean and unit variance.

    Raises:
      UserError: The statistics belong to features of another length, or a value leaves the range
        of float32.
    """
    standardized = {}
    for field in ("audio", "visual"):
        values = getattr(features, field)
        mean, scale = (getattr(statistics, f"{field}_{part}") for part in ("mean", "scale"))
        if not mean.shape == scale.shape == values.shape[1:]:
            raise UserError(
                f"{field} of {features.name} has {values.shape[1]} columns, but the "
                f"standardisation was fitted on {mean.size}; use features of the same model"
            )
        with np.errstate(over="ignore"):
            standardized[field] = (values - mean) / scale
    return dataclasses.replace(features, name=f"standardised {features.name}", **standardized)


def class_balanced_rows(labels: np.ndarray, max_rows: int, *, what: str) -> np.ndarray:
    """The first rows of each class, for a smoke run.

    Rows are dealt to the classes in turn, each taking its next row in file order, until `max_rows`
    are dealt: counts differ by one at most, except where a class has no more rows.

    Args:
      labels: Class of each row, integers [N].
      max_rows: Most rows to keep.
      what: What the message calls these rows.

    Returns:
      The chosen row numbers in file order; all of them if there are no more than `max_rows`.

    Raises:
      UserError: `max_rows` leaves a class without a row.
    """
    classes, counts = np.unique(labels, return_counts=True)
    if max_rows < len(classes):
        raise UserError(
            f"{max_rows} rows cannot represent the {len(classes)} classes of {what}; "
            f"keep at least {len(classes)} rows"
        )
    by_class = np.argsort(labels, kind="stable")
    turns = np.concatenate([np.arange(count) for count in counts])
    dealt = by_class[np.argsort(turns, kind="stable")]
    return np.sort(dealt[:max_rows])


def _as_finite_float32(features: np.ndarray, what: str) -> np.ndarray:
    """Checks a feature matrix and converts it to float32 [N, D]."""
    features = np.asarray(features)
    if features.ndim != 2:
        raise UserError(f"{what} must be a matrix, one row per clip, got shape {features.shape}")
    require_real_dtype(features.dtype, what=what)
    if 0 in features.shape:
        raise UserError(
            f"{what} is empty, shape {features.shape}; give at least one row and column"
        )
    converted = as_float32(features)
    bad = NonFiniteRows(what)
    for start in _block_starts(len(features)):
        rows = slice(start, start + _BLOCK_ROWS)
        bad.add(start, features[rows], converted[rows])
    bad.raise_if_any(len(features))
    return converted


def _mean_and_scale(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Column means and standard deviations of a matrix, float32 [D] each."""
    mean = features.mean(axis=0, dtype=np.float64)
    squares = np.zeros_like(mean)
    for start in _block_starts(len(features)):
        squares += np.square(features[start : start + _BLOCK_ROWS] - mean).sum(axis=0)
    scale = np.sqrt(squares / len(features)).astype(np.float32)
    # Equal float32 values add up exactly in float64, so a constant column deviates by exactly 0.
    scale[scale == 0] = 1
    return mean.astype(np.float32), scale


def _block_starts(num_rows: int) -> Iterable[int]:
    return range(0, num_rows, _BLOCK_ROWS)
