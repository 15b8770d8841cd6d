"""What several seeds say: mean and spread of values, and the interval of a paired difference.

>>> mean_and_spread([1.0, 2.0, 3.0])
MeanAndSpread(mean=2.0, std=1.0, count=3)
>>> paired_difference([0.75], [0.5])
PairedDifference(mean=0.25, low=None, high=None, count=1)
"""

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class MeanAndSpread(NamedTuple):
    """Mean of some values and how far they spread.

    Attributes:
      mean: arithmetic mean.
      std: standard deviation of the sample (divisor count − 1); None for a single value.
      count: number of values, from 1.
    """

    mean: float
    std: float | None
    count: int  # pyright: ignore[reportIncompatibleMethodOverride]  # hides the tuple's method


class PairedDifference(NamedTuple):
    """Mean difference of paired values, with a confidence interval.

    Attributes:
      mean: mean of values minus baseline.
      low: lower end of the interval; None for a single pair.
      high: upper end; None for a single pair.
      count: number of pairs, from 1.
    """

    mean: float
    low: float | None
    high: float | None
    count: int  # pyright: ignore[reportIncompatibleMethodOverride]  # hides the tuple's method


def mean_and_spread(values: Sequence[float]) -> MeanAndSpread:
    """Mean and standard deviation of a sample.

    Args:
      values: [n] finite numbers, n ≥ 1; one per seed, say.

    Raises:
      ValueError: if there is none, or one is not a finite number.
    """
    sample = _sample(values, "values")
    std = float(sample.std(ddof=1)) if sample.size > 1 else None
    return MeanAndSpread(float(sample.mean()), std, sample.size)


def paired_difference(
    values: Sequence[float], baseline: Sequence[float], confidence: float = 0.95
) -> PairedDifference:
    """How much better values are than a baseline that shares their seeds.

    The interval is Student's t for the mean of the differences (n − 1 degrees of freedom). Pairing
    takes out what a seed does to both sides, and with it most of the spread. The interval supposes
    that the differences are about normal, which so few cannot show.

    Args:
      values: [n] finite numbers, n ≥ 1.
      baseline: [n], its element i from the same seed as `values[i]`.
      confidence: share of such intervals that cover the true mean, in (0, 1).

    Raises:
      ValueError: if the lengths differ, a value is not a finite number, or the confidence is out
        of range.
    """
    from scipy import stats  # half a second that a page without it need not wait for

    sample, reference = _sample(values, "values"), _sample(baseline, "the baseline")
    if sample.size != reference.size:
        raise ValueError(
            f"{sample.size} values cannot be paired with {reference.size} of the baseline; give "
            "one of each per seed"
        )
    if not 0 < confidence < 1:
        raise ValueError(f"a confidence of {confidence} is not between 0 and 1; 0.95 is usual")
    mean, count = float((sample - reference).mean()), sample.size
    if count == 1:
        return PairedDifference(mean, None, None, count)
    with warnings.catch_warnings():
        # Told of differences that are all the same, which may well be: two variants can coincide.
        warnings.filterwarnings("ignore", "Precision loss occurred", RuntimeWarning)
        low, high = stats.ttest_rel(sample, reference).confidence_interval(confidence)
    return PairedDifference(mean, float(low), float(high), count)


def band_over_seeds(values: Sequence[Sequence[float]]) -> dict[str, np.ndarray]:
    """Mean over seeds and, from two seeds on, a standard deviation to either side.

    Args:
      values: [seeds, n] finite numbers.

    Returns:
      The fields of a `figures.Curve`: `y`, and `low` and `high` from two seeds on, [n] each.
    """
    of_seeds = np.asarray(values, np.float64)
    mean = of_seeds.mean(axis=0)
    if len(of_seeds) < 2:
        return {"y": mean}
    spread = of_seeds.std(axis=0, ddof=1)
    return {"y": mean, "low": mean - spread, "high": mean + spread}


def _sample(values: Sequence[float], what: str) -> np.ndarray:
    try:
        sample = np.asarray(values, np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"{what} must be numbers; {values!r:.80} are not") from None
    if sample.ndim != 1 or not sample.size:
        raise ValueError(f"{what} must be a list of one or more numbers, not shape {sample.shape}")
    if not np.isfinite(sample).all():
        raise ValueError(f"{what} hold {sample[~np.isfinite(sample)][0]}; leave that run out")
    return sample
