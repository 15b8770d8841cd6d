"""Standardisation of features by the statistics of the training rows.

A feature that is constant in the training rows, or nearly so, tells nothing of the classes; divided
by its tiny deviation, a test row that differs in it would be thrown far out, and retrieval would
fall to chance. Such features are left out: they are 0 in every row, which a scale of 0 stands for.

What varies in a few training rows alone does the same to a lesser degree. Standardised values are
therefore limited to ±`LARGEST_DEVIATION`: by Chebyshev's inequality at most 4 % of the training
rows of a feature lie beyond 5 deviations, and of a normally distributed one 1 in 1.7 million.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from aadml_jax.data.paired_features import PairedFeatures, StoredFeatures
from aadml_jax.errors import UserError

LARGEST_DEVIATION = 5.0
"""Largest magnitude of a standardised value."""

# Deviations that are nearly 0: some eighty steps of float32 at the feature's mean, so that what is
# left of it has lost most digits; and a millionth of what the modality's features have.
_NEARLY_ZERO_OF_MEAN = 1e-5
_NEARLY_ZERO_OF_MEDIAN = 1e-6


class FeatureStandardization(NamedTuple):
    """Per-feature mean and standard deviation of a training split.

    Attributes:
      audio_mean: float32 [Da].
      audio_scale: float32 [Da], 0 or above; 0 leaves the feature out.
      visual_mean: float32 [Dv].
      visual_scale: float32 [Dv], likewise.
    """

    audio_mean: np.ndarray
    audio_scale: np.ndarray
    visual_mean: np.ndarray
    visual_scale: np.ndarray


class MeasuredStandardization(NamedTuple):
    """What was measured of the training rows.

    Attributes:
      statistics: To standardise by.
      nearly_constant: Column numbers, of audio and of visual features, that are left out although
        some training rows differ in them.
    """

    statistics: FeatureStandardization
    nearly_constant: tuple[tuple[int, ...], tuple[int, ...]]


Sums = Callable[[], list[np.ndarray]]


def fit_standardization(
    train: PairedFeatures | StoredFeatures,
    num_rows: int | None = None,
    sum_over_all: Callable[[Sums], list[np.ndarray]] = lambda compute: compute(),
) -> FeatureStandardization:
    """Measures mean and standard deviation (divisor N) of each feature, in float64.

    A feature gets scale 0, which leaves it out, if its deviation σ is nearly 0: σ ≤ 1e-5 |mean|, or
    σ ≤ 1e-6 of the median of the modality's deviations that are not 0.

    Args:
      train: The rows to measure. Fitting on test rows would leak them into training.
      num_rows: N, where `train` holds only a part of the rows.
      sum_over_all: Then gives the sums over all parts, float64 [Da] and [Dv], for a function that
        computes those over one.
    """
    return measure_standardization(train, num_rows, sum_over_all).statistics


def measure_standardization(
    train: PairedFeatures | StoredFeatures,
    num_rows: int | None = None,
    sum_over_all: Callable[[Sums], list[np.ndarray]] = lambda compute: compute(),
) -> MeasuredStandardization:
    """What `fit_standardization` gives, and which features are nearly constant.

    Args:
      train: See `fit_standardization`.
      num_rows: See `fit_standardization`.
      sum_over_all: See `fit_standardization`.
    """
    num_rows = num_rows or len(train)

    def sums(of_block: Callable[[PairedFeatures], tuple[np.ndarray, ...]]) -> list[np.ndarray]:
        def over_blocks() -> list[np.ndarray]:
            audio, visual = zip(*map(of_block, train.blocks()), strict=True)
            return [np.asarray(sum(audio)), np.asarray(sum(visual))]

        return sum_over_all(over_blocks)

    def squares_around_means(block: PairedFeatures) -> tuple[np.ndarray, ...]:
        return tuple(
            np.square(features - mean).sum(axis=0)
            for features, mean in zip((block.audio, block.visual), means, strict=True)
        )

    means = [
        total / num_rows
        for total in sums(
            lambda block: tuple(
                features.sum(axis=0, dtype=np.float64) for features in (block.audio, block.visual)
            )
        )
    ]
    statistics, nearly_constant = [], []
    for mean, total in zip(means, sums(squares_around_means), strict=True):
        # Equal float32 values add up exactly in float64, so a constant column deviates by 0.
        deviation = np.sqrt(total / num_rows)
        varies = deviation > 0
        median = np.median(deviation[varies]) if varies.any() else 0
        is_left_out = (deviation <= _NEARLY_ZERO_OF_MEAN * np.abs(mean)) | (
            deviation <= _NEARLY_ZERO_OF_MEDIAN * median
        )
        scale = np.where(is_left_out, 0, deviation).astype(np.float32)
        statistics += [mean.astype(np.float32), scale]
        nearly_constant.append(tuple(np.flatnonzero(is_left_out & varies).tolist()))
    return MeasuredStandardization(FeatureStandardization(*statistics), tuple(nearly_constant))


def identity_standardization(audio_dim: int, visual_dim: int) -> FeatureStandardization:
    """Statistics that leave features as they are."""
    means = (np.zeros(dim, np.float32) for dim in (audio_dim, visual_dim))
    (audio, visual) = ((mean, mean + 1) for mean in means)
    return FeatureStandardization(*audio, *visual)


def standardize(
    features: PairedFeatures,
    statistics: FeatureStandardization,
    *,
    limit: float | None = LARGEST_DEVIATION,
) -> PairedFeatures:
    """Maps each feature x to (x − mean) / scale, limited to ±`limit`; to 0 where the scale is 0.

    Args:
      features: Rows of any split.
      statistics: Of the training split, see `fit_standardization`.
      limit: Largest magnitude of a result; None for statistics that change nothing, and for those
        of runs and folders that were written before there was a limit.

    Returns:
      The same clips with features of about zero mean and unit variance.

    Raises:
      UserError: The statistics belong to features of another length, or a value leaves the range
        of float32.
    """
    standardized = {}
    for field in ("audio", "visual"):
        values = getattr(features, field)
        mean, scale = (
            np.asarray(getattr(statistics, f"{field}_{part}")) for part in ("mean", "scale")
        )
        if not mean.shape == scale.shape == values.shape[1:]:
            raise UserError(
                f"{field} of {features.name} has {values.shape[1]} columns, but the "
                f"standardisation was fitted on {mean.size}; use features of the same model"
            )
        with np.errstate(over="ignore"):
            result = (values - mean) / np.where(scale == 0, 1, scale)
        result[:, scale == 0] = 0
        standardized[field] = result if limit is None else np.clip(result, -limit, limit)
    return dataclasses.replace(features, name=f"standardised {features.name}", **standardized)
