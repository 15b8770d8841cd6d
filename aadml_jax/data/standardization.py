"""Standardisation of features by the statistics of the training rows."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from aadml_jax.data.paired_features import PairedFeatures, StoredFeatures
from aadml_jax.errors import UserError


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


Sums = Callable[[], list[np.ndarray]]


def fit_standardization(
    train: PairedFeatures | StoredFeatures,
    num_rows: int | None = None,
    sum_over_all: Callable[[Sums], list[np.ndarray]] = lambda compute: compute(),
) -> FeatureStandardization:
    """Measures mean and standard deviation (divisor N) of each feature, in float64.

    A constant feature gets scale 1, so that standardising maps it to 0 and not to NaN.

    Args:
      train: The rows to measure. Fitting on test rows would leak them into training.
      num_rows: N, where `train` holds only a part of the rows.
      sum_over_all: Then gives the sums over all parts, float64 [Da] and [Dv], for a function that
        computes those over one.
    """
    num_rows = num_rows or len(train)

    def sums(of_block: Callable[[PairedFeatures], tuple[np.ndarray, ...]]) -> list[np.ndarray]:
        return sum_over_all(
            lambda: list(map(sum, zip(*map(of_block, train.blocks()), strict=True)))
        )

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
    statistics = []
    for mean, total in zip(means, sums(squares_around_means), strict=True):
        scale = np.sqrt(total / num_rows).astype(np.float32)
        # Equal float32 values add up exactly in float64, so a constant column deviates by 0.
        scale[scale == 0] = 1
        statistics += [mean.astype(np.float32), scale]
    return FeatureStandardization(*statistics)


def identity_standardization(audio_dim: int, visual_dim: int) -> FeatureStandardization:
    """Statistics that leave features as they are."""
    means = (np.zeros(dim, np.float32) for dim in (audio_dim, visual_dim))
    (audio, visual) = ((mean, mean + 1) for mean in means)
    return FeatureStandardization(*audio, *visual)


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
