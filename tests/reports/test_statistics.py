"""Statistics over seeds, against arithmetic and a table of Student's t."""

import math
import statistics

import numpy as np
import pytest

from aadml_jax.reports.statistics import (
    MeanAndSpread,
    band_over_seeds,
    mean_and_spread,
    paired_difference,
)


def test_spread_is_that_of_a_sample():
    mean, std, count = mean_and_spread([1.0, 2.0, 6.0])
    assert mean == 3.0
    assert std == pytest.approx(math.sqrt((4 + 1 + 9) / 2))
    assert count == 3


def test_one_value_has_no_spread():
    assert mean_and_spread([0.25]) == MeanAndSpread(0.25, None, 1)


def test_a_band_is_a_standard_deviation_about_the_mean_over_seeds():
    band = band_over_seeds([[1, 10], [3, 10], [5, 16]])
    np.testing.assert_allclose(band["y"], [3, 12])
    np.testing.assert_allclose(band["low"], [1, 12 - math.sqrt(12)])
    np.testing.assert_allclose(band["high"], [5, 12 + math.sqrt(12)])
    alone = band_over_seeds([[1, 2]])
    assert list(alone) == ["y"] and alone["y"].tolist() == [1, 2]


def test_interval_by_hand():
    # Differences 1, 2, 6; Student's t of 2 degrees of freedom has its .975 quantile at 4.302653.
    mean, low, high, count = paired_difference([11.0, 22.0, 36.0], [10.0, 20.0, 30.0])
    half = 4.302653 * math.sqrt(7) / math.sqrt(3)
    assert (mean, count) == (3.0, 3)
    assert low == pytest.approx(3 - half, rel=1e-6)
    assert high == pytest.approx(3 + half, rel=1e-6)


@pytest.mark.parametrize(
    ("count", "confidence", "quantile"),
    [
        # Student's t of count - 1 degrees of freedom, from a printed table.
        (2, 0.8, 3.078),
        (2, 0.95, 12.706),
        (2, 0.99, 63.657),
        (5, 0.8, 1.533),
        (5, 0.95, 2.776),
        (5, 0.99, 4.604),
        (30, 0.8, 1.311),
        (30, 0.95, 2.045),
        (30, 0.99, 2.756),
    ],
)
def test_interval_reaches_a_quantile_of_students_t_to_either_side(count, confidence, quantile):
    generator = np.random.default_rng(count)
    values, baseline = generator.normal([[0.3], [0.0]], 1.0, (2, count))
    mean, low, high, pairs = paired_difference(values, baseline, confidence)
    differences = (values - baseline).tolist()
    half = quantile * statistics.stdev(differences) / math.sqrt(count)
    assert (mean, pairs) == (pytest.approx(statistics.fmean(differences)), count)
    assert (high - mean, mean - low) == pytest.approx((half, half), rel=1e-3)


def test_one_pair_has_no_interval():
    assert paired_difference([0.75], [0.5]) == (0.25, None, None, 1)


def test_equal_differences_have_an_interval_without_width():
    assert paired_difference([1.5, 2.5, 4.5], [1.0, 2.0, 4.0]) == (0.5, 0.5, 0.5, 3)
    assert paired_difference([0.25, 0.5], [0.25, 0.5]) == (0, 0, 0, 2)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([], r"one or more numbers, not shape \(0,\)"),
        ([[1.0]], r"not shape \(1, 1\)"),
        ([1.0, math.nan], "hold nan; leave that run out"),
        (["x"], "must be numbers"),
    ],
)
def test_bad_values_are_named(values, message):
    with pytest.raises(ValueError, match=message):
        mean_and_spread(values)


def test_unpaired_values_and_an_odd_confidence_are_named():
    with pytest.raises(ValueError, match="2 values cannot be paired with 1 of the baseline"):
        paired_difference([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="confidence of 95 is not between 0 and 1"):
        paired_difference([1.0, 2.0], [1.0, 2.0], confidence=95)
