"""Counting in sorted rows, and running sums, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aadml_jax import _ordering


@pytest.mark.parametrize("width", [0, 1, 2, 15, 16, 17, 63, 64, 65, 127, 128, 200, 1000])
@pytest.mark.parametrize("largest", [3, 10_000])
def test_counts_are_those_of_a_sorted_search(width, largest):
    rng = np.random.default_rng(width)
    rows = np.sort(rng.integers(-largest, largest, (3, width), dtype=np.int32), axis=1)
    keys = rng.integers(-largest - 2, largest + 2, (3, 77), dtype=np.int32)
    keys[:, :2] = np.iinfo(np.int32).min, np.iinfo(np.int32).max
    expected = [np.searchsorted(row, key) for row, key in zip(rows, keys, strict=True)]
    np.testing.assert_array_equal(jax.jit(_ordering.count_below)(rows, keys), expected)


@pytest.mark.parametrize("most", [0, 1, 15, 16, 17, 63, 64, 65, 130, 300])
def test_a_known_limit_of_the_counts_changes_none(most):
    rng = np.random.default_rng(most)
    rows = np.sort(rng.integers(0, 10**6, (4, 300), dtype=np.int32), axis=1)
    rows[np.arange(300) >= np.array([[most], [most // 2], [0], [most]])] = np.iinfo(np.int32).max
    keys = rng.integers(0, 10**6, (4, 50), dtype=np.int32)
    expected = [np.searchsorted(row, key) for row, key in zip(rows, keys, strict=True)]
    actual = jax.jit(_ordering.count_below)(rows, keys, jnp.int32(most))
    np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("width", [1, 15, 16, 17, 100])
def test_running_sums_are_exact(width):
    counts = np.random.default_rng(width).integers(0, 100_000, (3, width), dtype=np.int32)
    np.testing.assert_array_equal(_ordering.running_sum(counts), np.cumsum(counts, axis=1))
    mask = counts % 2 == 0
    np.testing.assert_array_equal(_ordering.running_sum(mask), np.cumsum(mask, axis=1))
    # On a CPU every product is exact enough; elsewhere the factors would be rounded to bfloat16.
    assert "Precision.HIGHEST" in str(jax.make_jaxpr(_ordering.running_sum)(counts))


def test_columns_are_those_of_the_true_entries():
    mask = np.random.default_rng(0).random((5, 90)) < 0.3
    places = np.broadcast_to(np.arange(40, dtype=np.int32), (5, 40))
    expected = np.full((5, 40), 90)
    for row, columns in zip(expected, map(np.flatnonzero, mask), strict=True):
        row[: len(columns)] = columns
    np.testing.assert_array_equal(
        _ordering.columns_of(_ordering.running_sum(mask), places), expected
    )


@pytest.mark.parametrize("count", [_ordering._count_rows_first, _ordering._count_rows_last])
@pytest.mark.parametrize("groups", [0, 1, 4])
def test_bounds_are_counted_in_groups_in_either_layout(count, groups):
    rng = np.random.default_rng(groups)
    bounds = np.sort(rng.integers(-20, 20, (7, 64)), axis=1).astype(np.int32)
    keys = rng.integers(-25, 25, (7, 33)).astype(np.int32)
    expected = (bounds[:, None, : 16 * groups] < keys[:, :, None]).sum(axis=2)
    actual = jax.jit(count)(bounds, keys, jnp.int32(groups))
    np.testing.assert_array_equal(actual, expected)
