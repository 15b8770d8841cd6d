"""The loss over all triplets: values by hand, ties, accuracy and memory at size."""

import hypothesis
import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from hypothesis import strategies as st

import aadml_jax as aa
from aadml_jax.losses import triplet


@jax.jit
def summed_derivatives(distances, relevance, margin):
    return jax.grad(
        lambda d, m: aa.triplet_loss(d, relevance, margin=m, reduce_fn=jnp.sum), argnums=(0, 1)
    )(distances, margin)


def test_value_is_the_mean_over_all_pairs():
    distances = jnp.array([[0.4, 0.2, 0.9, 0.5]])
    relevance = jnp.array([[False, True, False, True]])
    hinges = [0.2 - 0.4 + 0.3, 0.0, 0.5 - 0.4 + 0.3, 0.0]
    actual = oracles.compiled(aa.triplet_loss)(distances, relevance, margin=0.3)
    assert float(actual) == pytest.approx(sum(hinges) / 4)


def test_default_margin_is_one():
    distances, relevance = jnp.array([[0.25, 0.75, 2.0]]), jnp.array([[True, False, False]])
    assert float(oracles.compiled(aa.triplet_loss)(distances, relevance)) == pytest.approx(
        (0.25 - 0.75 + 1) / 2
    )


def test_the_mean_is_per_row_and_not_over_the_triplets_of_all_rows():
    distances = jnp.array([[0.5, 0.5, 0.5], [0.5, 0.25, 0.75]])
    relevance = jnp.array([[True, True, True], [True, False, False]])
    second = (0.5 - 0.25 + 0.5 + 0.5 - 0.75 + 0.5) / 2
    actual = oracles.compiled(aa.triplet_loss)(distances, relevance, margin=0.5)
    assert float(actual) == pytest.approx(second / 2)


def test_derivatives_count_the_active_pairs():
    distances = jnp.array([[0.4, 0.2, 0.9, 0.5]])
    relevance = jnp.array([[False, True, False, True]])
    gradient, slope = summed_derivatives(distances, relevance, 0.3)
    np.testing.assert_allclose(gradient, [[-2 / 4, 1 / 4, 0, 1 / 4]], rtol=1e-6)
    np.testing.assert_allclose(slope, 2 / 4, rtol=1e-6)


def test_derivative_is_exactly_zero_at_the_tie_of_the_hinge():
    distances, relevance = jnp.array([[0.25, 0.75]]), jnp.array([[True, False]])

    def value(d, margin):
        return aa.triplet_loss(d, relevance, margin=margin)

    gradient, slope = jax.jit(jax.grad(value, argnums=(0, 1)))(distances, 0.5)
    np.testing.assert_array_equal(gradient, [[0.0, 0.0]])
    assert float(slope) == 0.0
    tangents = (jnp.array([[3.0, -2.0]]), 5.0)
    value_at, forward = jax.jit(lambda: jax.jvp(value, (distances, 0.5), tangents))()
    assert (float(value_at), float(forward)) == (0.0, 0.0)


@hypothesis.settings(max_examples=150, deadline=None, database=None, derandomize=True)
@hypothesis.given(
    hnp.arrays(np.int32, (2, 7), elements=st.integers(0, 16)),
    hnp.arrays(np.bool_, (2, 7)),
    st.integers(-4, 8),
)
def test_derivatives_are_exact_counts_among_many_ties(eighths, relevance, margin):
    def count(distances, relevant):
        positives = [j for j in range(7) if relevant[j]]
        negatives = [j for j in range(7) if not relevant[j]]
        pairs = max(1, len(positives) * len(negatives))
        row = np.zeros(8)
        for p in positives:
            for q in negatives:
                if distances[p] - distances[q] + margin > 0:
                    row[[p, q, 7]] += np.array([1, -1, 1]) / pairs
        return row

    distances = jnp.asarray(eighths / np.float32(8))
    expected = np.array([count(*row) for row in zip(eighths.tolist(), relevance, strict=True)])
    gradient, slope = summed_derivatives(distances, relevance, margin / 8)
    np.testing.assert_allclose(gradient, expected[:, :7], rtol=1e-6)
    np.testing.assert_allclose(slope, expected[:, 7].sum(), rtol=1e-6)


@pytest.mark.parametrize(
    "count",
    [
        triplet._violations_by_search,
        triplet._violations_by_full_search,
        triplet._violations_in_turns,
        triplet._violations_by_comparison,
    ],
)
@hypothesis.settings(max_examples=80, deadline=None, database=None, derandomize=True)
@hypothesis.given(
    hnp.arrays(np.int32, (3, 37), elements=st.integers(0, 40)),
    hnp.arrays(np.int32, (3, 37), elements=st.integers(0, 2)),
    st.integers(-8, 20),
)
def test_violations_are_counted_exactly(count, eighths, sides, margin):
    distances = jnp.asarray(eighths / np.float32(8))
    positives, negatives = sides == 1, sides == 2
    violates = eighths[:, None, :] < eighths[:, :, None] + margin  # [row, positive, negative]
    violates &= positives[:, :, None] & negatives[:, None, :]
    per_positive, per_negative = oracles.compiled(count)(
        distances, np.float32(margin / 8), positives, negatives
    )
    np.testing.assert_array_equal(per_positive[positives], violates.sum(axis=2)[positives])
    np.testing.assert_array_equal(per_negative[negatives], violates.sum(axis=1)[negatives])


@pytest.mark.parametrize("share", [0.02, 0.5, 0.98])
def test_rows_with_few_and_with_many_positives_agree_with_the_loop(share):
    rng = np.random.default_rng(3)
    distances = rng.uniform(0, 2, (6, 700))
    relevance = rng.random((6, 700)) < share
    relevance[0] = np.arange(700) > 0
    rows = oracles.compiled(aa.triplet_loss, reduce_fn=None)(
        *oracles.as_float32(distances), relevance, margin=0.4
    )
    np.testing.assert_allclose(rows, loop_over_positives(distances, relevance, 0.4), rtol=1e-5)


@pytest.mark.parametrize("shift", [-3.0, 50.0])
def test_adding_the_same_number_to_a_row_changes_nothing(shift):
    eighths, relevance, where = oracles.pair_case(0, 5, 7, 0.0, 16.0)
    distances = jnp.asarray(np.round(eighths) / 8, jnp.float32)  # the sum below is exact
    run = oracles.compiled(aa.triplet_loss, reduce_fn=None)
    plain, moved = (run(d, relevance, where=where) for d in (distances, distances + shift))
    np.testing.assert_allclose(moved, plain, rtol=1e-5, atol=1e-6)


def loop_over_positives(distances, relevance, margin):
    """The float64 loop with the inner loop over negatives left to NumPy."""
    rows = []
    for row, relevant in zip(np.asarray(distances, np.float64), relevance, strict=True):
        negatives = row[~relevant]
        total = sum(np.maximum(0, p - negatives + margin).sum() for p in row[relevant])
        rows.append(total / (relevant.sum() * len(negatives)))
    return np.array(rows)


@pytest.mark.parametrize(("margin", "offset"), [(0.05, 0.0), (0.3, 0.0), (1.0, 0.0), (0.3, 30.0)])
def test_float32_is_accurate_at_64_by_512(margin, offset):
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(64, 16)), rng.normal(size=(512, 16)) + 0.5
    relevance = rng.integers(10, size=(64, 1)) == rng.integers(10, size=512)[None, :]
    distances = aa.cosine_distance(*oracles.as_float32(a, b)) + offset
    expected = loop_over_positives(distances, relevance, margin)
    rows = oracles.compiled(aa.triplet_loss, reduce_fn=None)(distances, relevance, margin=margin)
    np.testing.assert_allclose(rows, expected, rtol=1e-6)
    scalar = oracles.compiled(aa.triplet_loss)(distances, relevance, margin=margin)
    np.testing.assert_allclose(scalar, expected.mean(), rtol=1e-6)


def test_the_number_of_pairs_may_pass_32_bits():
    relevance = (jnp.arange(2**17) % 2 == 0)[None, :]  # 2**16 × 2**16 pairs
    distances = jnp.where(relevance, 0.5, 0.25)
    run = jax.jit(jax.value_and_grad(lambda d: aa.triplet_loss(d, relevance, margin=0.5)))
    value, gradient = run(distances)
    assert float(value) == pytest.approx(0.5 - 0.25 + 0.5)
    np.testing.assert_allclose(gradient, jnp.where(relevance, 2.0**-16, -(2.0**-16)), rtol=1e-5)


@pytest.mark.parametrize("mode", ["reverse", "forward"])
def test_memory_stays_far_below_one_number_per_triplet(mode):
    n = 512
    relevance = jnp.asarray(np.random.default_rng(2).random((n, n)) < 0.5)
    distances = jnp.zeros((n, n))

    def reverse(d, r):
        return jax.value_and_grad(aa.triplet_loss)(d, r)

    def forward(d, r):
        return jax.jvp(lambda x: aa.triplet_loss(x, r), (d,), (d,))

    triplets = 4 * n * 256 * 256  # 128 MiB for the relevant × other pairs alone
    used = oracles.temporary_bytes(
        {"reverse": reverse, "forward": forward}[mode], distances, relevance
    )
    assert used < triplets / 4


def test_infinite_positives_beside_infinite_negatives_are_nan():
    distances = np.array([[np.inf, np.inf, 0.5], [np.inf, 0.5, 0.5], [0.5, np.inf, np.inf]])
    relevance = np.array([[True, False, False]] * 3)
    rows = aa.triplet_loss(distances.astype(np.float32), relevance, reduce_fn=None)
    np.testing.assert_array_equal(rows, [np.nan, np.inf, 0])  # ∞ − ∞, ∞ − 0.5, 0.5 − ∞
