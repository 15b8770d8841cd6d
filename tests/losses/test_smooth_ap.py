"""Smooth-AP: values by hand, its limit, second derivatives, and memory at size."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

import aadml_jax as aa
from aadml_jax.losses import smooth_ap


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def test_value_and_derivative_by_hand():
    def loss(scores):
        relevance = jnp.array([[True, False, False]])
        return aa.smooth_ap_loss(scores, relevance, temperature=0.5)

    value, gradient = jax.jit(jax.value_and_grad(loss))(jnp.array([[0.5, 0.25, 1.0]]))
    below, above = sigmoid(-0.25 / 0.5), sigmoid(0.5 / 0.5)
    rank = 1 + below + above
    assert float(value) == pytest.approx(1 - 1 / rank)
    slopes = np.array([below * (1 - below), above * (1 - above)]) / 0.5 / rank**2
    np.testing.assert_allclose(gradient[0], [-slopes.sum(), *slopes], rtol=1e-5)


def test_two_positives_count_each_other_but_not_themselves():
    def precision(other):
        return (1 + other) / (1 + other + sigmoid(0))

    relevance = jnp.array([[True, True, False]])
    actual = jax.jit(aa.smooth_ap_loss)(jnp.array([[0.5, 0.5, 0.5]]), relevance)
    assert float(actual) == pytest.approx(1 - precision(sigmoid(0)))


@pytest.mark.parametrize("num_positives", [1, 3, 4, 5, 9, 16])
def test_tends_to_one_minus_average_precision(num_positives):
    rng = np.random.default_rng(num_positives)
    scores = jnp.asarray(rng.permutation(33)[None, :] / 33, jnp.float32)
    relevance = jnp.arange(33)[None, :] < num_positives
    smooth = oracles.compiled(aa.smooth_ap_loss)(scores, relevance, temperature=1e-4)
    exact = oracles.by_row(oracles.average_precision_row, scores, relevance)
    assert float(smooth) == pytest.approx(1 - exact[0], abs=1e-6)
    assert exact[0] < 1


def of_all_pairs(similarities, temperature, positives, negatives):
    """The loss per row as its formula has it, for JAX to differentiate."""
    gaps = (similarities[:, None, :] - similarities[:, :, None]) / temperature
    above = jax.nn.sigmoid(gaps) * ~np.eye(similarities.shape[1], dtype=bool)[None]
    rank_among_positives = 1 + jnp.sum(above * positives[:, None, :], axis=2)
    rank = 1 + jnp.sum(above * (positives | negatives)[:, None, :], axis=2)
    missing = jnp.sum((1 - rank_among_positives / rank) * positives, axis=1)
    return missing / jnp.maximum(positives.sum(axis=1), 1)


WAYS = {
    "loop": smooth_ap._by_loop,
    "loop of longer turns": functools.partial(smooth_ap._by_loop, at_once=16, is_searched=False),
    "comparison": smooth_ap._by_comparison,
}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_equals_the_formula_and_its_derivatives(way):
    rng = np.random.default_rng(4)
    similarities = np.round(rng.uniform(-1, 1, (7, 45)), 1)  # with ties
    positives = rng.random((7, 45)) < np.array([[0.0, 0.02, 0.2, 0.5, 0.9, 1.0, 0.4]]).T
    where = rng.random((7, 45)) < 0.8
    masks = positives & where, ~positives & where
    masks[1][6] = False  # a row without negatives
    with oracles.x64():
        run = jax.jit(functools.partial(WAYS[way], with_derivatives=True))
        value, by_similarity, by_temperature = run(similarities, 0.2, *masks)
        expected = jax.jit(of_all_pairs)(similarities, 0.2, *masks)
        slopes = jax.jit(
            jax.grad(lambda s, t: jnp.sum(of_all_pairs(s, t, *masks)), argnums=(0, 1))
        )(similarities, 0.2)
        rows = jax.jit(jax.jacfwd(of_all_pairs, argnums=1))(similarities, 0.2, *masks)
        value_alone, *nothing = jax.jit(functools.partial(WAYS[way], with_derivatives=False))(
            similarities, 0.2, *masks
        )
    value = np.asarray(value)
    np.testing.assert_allclose(value, expected, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(by_similarity, slopes[0], rtol=1e-9, atol=1e-13)
    np.testing.assert_allclose(by_temperature, rows, rtol=1e-9, atol=1e-13)
    np.testing.assert_allclose(value_alone, value, rtol=1e-14)
    assert nothing == [None, None]
    assert value[6] == 0
    assert np.all(value[2:5] > 0.001)


@pytest.mark.parametrize("way", WAYS)
def test_every_way_ranks_a_positive_at_minus_infinity_last(way):
    scores = np.array([[0.5, -np.inf, 0.25, 0.0]], np.float32)
    positives = np.array([[True, True, False, False]])
    run = jax.jit(functools.partial(WAYS[way], with_derivatives=True))
    value, by_similarity, _ = run(scores, np.float32(0.001), positives, ~positives)
    np.testing.assert_allclose(value, [1 - (1 + 2 / 4) / 2], rtol=1e-6)
    np.testing.assert_allclose(by_similarity, np.zeros((1, 4)), atol=1e-30)


def test_second_derivatives_equal_finite_differences():
    with oracles.x64():
        matrix, relevance, where = oracles.pair_case(0, 1, 6, -1.0, 1.0)
        loss = functools.partial(aa.smooth_ap_loss, where=where, temperature=0.3)
        hessian = jax.jit(jax.hessian(lambda row: loss(row[None], relevance)))(matrix[0])
        gradient = jax.jit(jax.grad(lambda row: loss(row[None], relevance)))
        for j in range(6):
            moved = np.eye(6)[j] * 1e-6
            numeric = (gradient(matrix[0] + moved) - gradient(matrix[0] - moved)) / 2e-6
            np.testing.assert_allclose(hessian[j], numeric, atol=1e-6)
        assert np.any(hessian)


def test_memory_stays_far_below_one_number_per_positive_and_column():
    n = 256
    relevance = jnp.asarray(np.random.default_rng(1).random((n, n)) < 0.5)
    used = oracles.temporary_bytes(
        jax.value_and_grad(aa.smooth_ap_loss), jnp.zeros((n, n)), relevance
    )
    assert used < 4 * n * 128 * n / 4


@pytest.mark.parametrize("num_positives", [13, 14, 27])
def test_without_negatives_it_is_exactly_zero(num_positives):
    scores = np.random.default_rng(2).random((1, num_positives)).astype(np.float32)
    assert float(aa.smooth_ap_loss(scores, np.ones_like(scores, bool))) == 0


def test_no_columns_at_all_gives_zero():
    empty = jnp.zeros((3, 0))
    np.testing.assert_array_equal(
        aa.smooth_ap_loss(empty, empty.astype(bool), reduce_fn=None), np.zeros(3)
    )


def test_a_positive_at_minus_infinity_ranks_last():
    similarities = np.array([[-np.inf, 0.5, -0.5, 0.25]], np.float32)
    relevance = np.array([[True, False, False, False]])
    loss = aa.smooth_ap_loss(similarities, relevance)
    assert float(loss) == pytest.approx(1 - 1 / 4, rel=1e-6)
