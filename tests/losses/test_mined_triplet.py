"""Semi-hard and hard triplets: which pair is chosen, and what its derivative is."""

import functools

import hypothesis
import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from hypothesis import strategies as st

import aadml_jax as aa
from aadml_jax._ordering import order_keys
from aadml_jax.losses import mined_triplet


@functools.cache
def derivatives(name):
    """The gradients in distances and margin, compiled."""
    function = getattr(aa, name)
    return jax.jit(jax.grad(lambda d, m, r, w: function(d, r, margin=m, where=w), argnums=(0, 1)))


def one_row(positives, negatives):
    """Distances, relevance and where of one row, the negatives first, filled up to five columns."""
    distances, relevance, where = np.zeros((3, 1, 5))
    count = len(negatives) + len(positives)
    distances[0, :count] = [*negatives, *positives]
    relevance[0, len(negatives) : count], where[0, :count] = 1, 1
    return distances.astype(np.float32), relevance.astype(bool), where.astype(bool)


def value(name, row, **margin):
    distances, relevance, where = row
    return float(oracles.compiled(getattr(aa, name))(distances, relevance, where=where, **margin))


@pytest.mark.parametrize(
    ("positives", "negatives", "margin", "expected"),
    [
        ([0.5], [0.9, 0.4, 0.6], 0.3, 0.5 - 0.6 + 0.3),  # the nearest one farther than the positive
        ([0.95], [0.9, 0.4, 0.6], 0.3, 0.95 - 0.9 + 0.3),  # none is farther: the farthest
        ([0.5, 0.95], [0.9, 0.4, 0.6], 0.3, (0.2 + 0.35) / 2),  # mean over the positives
        ([0.5], [0.75, 0.5], 0.5, 0.5 - 0.75 + 0.5),  # equally far is not farther
        ([0.5], [0.5], 0.5, 0.5),  # equally far is all there is
        ([0.1], [0.9], 0.5, 0.0),
        ([0.1, 0.5], [0.9, 0.6], 0.3, (0.0 + 0.5 - 0.6 + 0.3) / 2),  # an inactive one counts too
    ],
)
def test_semihard_chooses_the_nearest_negative_beyond_each_positive(
    positives, negatives, margin, expected
):
    actual = value("semihard_triplet_loss", one_row(positives, negatives), margin=margin)
    assert actual == pytest.approx(expected)


@pytest.mark.parametrize(
    ("positives", "negatives", "margin", "expected"),
    [
        ([0.5, 0.2], [0.9, 0.4, 0.6], 0.3, 0.5 - 0.4 + 0.3),
        ([0.5, 0.95], [0.9, 0.4, 0.6], 0.3, 0.95 - 0.4 + 0.3),
        ([0.1, 0.2], [0.9, 0.6], 0.3, 0.0),
    ],
)
def test_hard_compares_the_farthest_positive_with_the_nearest_negative(
    positives, negatives, margin, expected
):
    actual = value("hard_triplet_loss", one_row(positives, negatives), margin=margin)
    assert actual == pytest.approx(expected)


@pytest.mark.parametrize(
    "columns_of",
    [mined_triplet._semihard_columns_by_search, mined_triplet._semihard_columns_by_comparison],
)
@hypothesis.settings(max_examples=80, deadline=None, database=None, derandomize=True)
@hypothesis.given(
    hnp.arrays(
        np.float32, (3, 29), elements=st.sampled_from([-0.0, 0.0, *np.arange(1, 9) / 8, np.inf])
    ),
    hnp.arrays(np.bool_, (3, 29), elements=st.booleans(), fill=st.just(False)),
)
def test_both_ways_choose_the_first_column_of_the_semihard_negative(
    columns_of, distances, negatives
):
    actual = oracles.compiled(columns_of)(order_keys(jnp.asarray(distances)), negatives)
    for row, is_negative, columns in zip(distances, negatives, actual, strict=True):
        candidates = [(d, column) for column, d in enumerate(row) if is_negative[column]]
        for distance, column in zip(row, columns, strict=True):
            farther = [c for c in candidates if c[0] > distance]
            farthest = [c for c in candidates if c[0] == max(candidates)[0]]
            if candidates:
                assert column == min(farther or farthest)[1]
            assert 0 <= column < len(row)


@pytest.mark.parametrize("name", ["semihard_triplet_loss", "hard_triplet_loss"])
def test_default_margin_is_one(name):
    assert value(name, one_row([0.25], [0.75])) == pytest.approx(0.25 - 0.75 + 1.0)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # columns: negatives 0.9, 0.4, 0.6, then positives 0.5 (against 0.6) and 0.95 (against 0.9)
        ("semihard_triplet_loss", [-1 / 2, 0, -1 / 2, 1 / 2, 1 / 2]),
        ("hard_triplet_loss", [0, -1, 0, 0, 1]),
    ],
)
def test_derivative_falls_on_the_chosen_entries_alone(name, expected):
    distances, relevance, where = one_row([0.5, 0.95], [0.9, 0.4, 0.6])
    gradient, slope = derivatives(name)(distances, 0.3, relevance, where)
    np.testing.assert_allclose(gradient, [expected], rtol=1e-6)
    assert float(slope) == pytest.approx(1.0)


@pytest.mark.parametrize("name", ["semihard_triplet_loss", "hard_triplet_loss"])
def test_derivative_is_exactly_zero_at_the_tie_of_the_hinge(name):
    distances, relevance, where = one_row([0.25], [0.75])
    gradient, slope = derivatives(name)(distances, 0.5, relevance, where)
    np.testing.assert_array_equal(gradient, np.zeros((1, 5)))
    assert float(slope) == 0.0
    _, forward = jax.jit(
        lambda: jax.jvp(
            lambda d, margin: getattr(aa, name)(d, relevance, where=where, margin=margin),
            (distances, 0.5),
            (jnp.array([[3.0, -2.0, 1.0, 1.0, 1.0]]), 5.0),
        )
    )()
    assert float(forward) == 0.0


@pytest.mark.parametrize(
    ("positives", "negatives", "expected"),
    [
        ([0.5, 0.5, 0.25], [0.75], [-1, 1 / 2, 1 / 2, 0, 0]),
        ([0.5], [0.25, 0.75, 0.25], [-1 / 2, 0, -1 / 2, 1, 0]),
    ],
)
def test_hard_derivative_splits_evenly_over_equal_extremes(positives, negatives, expected):
    distances, relevance, where = one_row(positives, negatives)
    gradient, _ = derivatives("hard_triplet_loss")(distances, 0.5, relevance, where)
    np.testing.assert_allclose(gradient, [expected], rtol=1e-6)


@pytest.mark.parametrize("name", ["semihard_triplet_loss", "hard_triplet_loss"])
def test_mining_sees_only_the_pairs_that_where_leaves(name):
    distances, relevance, _ = one_row([0.5, 0.95], [0.9, 0.4, 0.6])
    where = np.array([[True, False, False, True, False]])  # 0.9 against 0.5
    actual = value(name, (distances, relevance, where), margin=0.5)
    assert actual == pytest.approx(0.5 - 0.9 + 0.5)


def test_semihard_memory_stays_far_below_one_number_per_triplet():
    n = 256
    relevance = jnp.asarray(np.random.default_rng(3).random((n, n)) < 0.5)
    run = jax.value_and_grad(aa.semihard_triplet_loss)
    used = oracles.temporary_bytes(run, jnp.zeros((n, n)), relevance)
    assert used < 4 * n * 128 * 128 / 4
