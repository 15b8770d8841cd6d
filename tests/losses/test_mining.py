"""Mining: which pairs are kept, against a loop over all pairs."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

import aadml_jax as aa


def multi_similarity_by_loop(similarities, relevance, where, epsilon):
    kept = np.zeros_like(where)
    for i, row in enumerate(similarities):
        positives = [j for j in range(len(row)) if where[i, j] and relevance[i, j]]
        negatives = [j for j in range(len(row)) if where[i, j] and not relevance[i, j]]
        for p in positives:
            kept[i, p] = any(row[p] < row[q] + epsilon for q in negatives)
        for q in negatives:
            kept[i, q] = any(row[q] > row[p] - epsilon for p in positives)
    return kept


def hard_negatives_by_loop(similarities, relevance, where, k):
    kept = where & relevance
    for i, row in enumerate(similarities):
        negatives = [j for j in range(len(row)) if where[i, j] and not relevance[i, j]]
        kept[i, sorted(negatives, key=lambda j: -row[j])[:k]] = True  # a stable sort
    return kept


def cases():
    for seed in range(4):
        yield oracles.pair_case(seed, 6, 9, -1.0, 1.0)
    yield oracles.degenerate_case(11, -1.0, 1.0)
    matrix, relevance, where = oracles.pair_case(9, 6, 9, -1.0, 1.0)
    yield np.round(2 * matrix) / 2, relevance, where  # ties


@pytest.mark.parametrize("epsilon", [-0.25, 0.0, 0.125, 0.5])
def test_pairs_near_one_of_the_other_kind_are_kept(epsilon):
    mine = jax.jit(aa.mine_multi_similarity)
    counts = []
    for matrix, relevance, where in cases():
        matrix = matrix.astype(np.float32)
        expected = multi_similarity_by_loop(matrix, relevance, where, np.float32(epsilon))
        actual = mine(matrix, relevance, where=where, epsilon=epsilon)
        assert actual.dtype == bool
        np.testing.assert_array_equal(actual, expected)
        counts.append((expected.sum(), where.sum()))
    assert all(0 < kept < all_pairs for kept, all_pairs in counts)


@pytest.mark.parametrize("k", [1, 2, 20])
def test_the_most_similar_negatives_are_kept(k):
    mine = jax.jit(aa.mine_hard_negatives, static_argnames="k")
    for matrix, relevance, where in cases():
        expected = hard_negatives_by_loop(matrix.astype(np.float32), relevance, where, k)
        np.testing.assert_array_equal(
            mine(matrix.astype(np.float32), relevance, where=where, k=k), expected
        )
    default = aa.mine_hard_negatives(matrix, relevance)
    np.testing.assert_array_equal(
        default, hard_negatives_by_loop(matrix, relevance, np.ones_like(where), 1)
    )


def test_a_mined_loss_is_that_of_the_mined_pairs_alone():
    matrix, relevance, where = oracles.pair_case(3, 6, 9, -1.0, 1.0)
    matrix = jnp.asarray(matrix, jnp.float32)

    def loss(matrix):
        mined = aa.mine_hard_negatives(matrix, relevance, where=where, k=2)
        return aa.multi_similarity_loss(matrix, relevance, where=mined)

    value, gradient = jax.jit(jax.value_and_grad(loss))(matrix)
    kept = hard_negatives_by_loop(np.asarray(matrix), relevance, where, 2)
    params = {"alpha": 2.0, "beta": 50.0, "base": 0.5}
    expected = oracles.by_row(oracles.multi_similarity_row, matrix, relevance, kept, **params)
    assert float(value) == pytest.approx(expected.mean(), rel=1e-5)
    assert np.any(gradient) and not np.any(np.asarray(gradient)[~kept])


def test_hard_negatives_of_distances_are_those_of_negated_ones():
    matrix, relevance, where = oracles.pair_case(4, 6, 9, 0.0, 2.0)
    mined = aa.mine_hard_negatives(-matrix, relevance, where=where)
    hinges = aa.triplet_loss(matrix, relevance, where=mined, margin=0.3, reduce_fn=None)
    params = {"margin": 0.3}
    expected = []
    for i in range(6):
        nearest = min(matrix[i, j] for j in range(9) if where[i, j] and not relevance[i, j])
        positives = [matrix[i, j] for j in range(9) if where[i, j] and relevance[i, j]]
        expected.append(np.mean([max(0, d - nearest + params["margin"]) for d in positives]))
    np.testing.assert_allclose(hinges, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mine", [aa.mine_multi_similarity, aa.mine_hard_negatives])
def test_a_nan_is_kept_so_that_it_shows(mine):
    matrix = jnp.array([[0.9, jnp.nan, 0.1, 0.2], [0.9, 0.8, 0.1, 0.2]])
    relevance = jnp.array([[True, False, False, False]] * 2)
    kept = np.asarray(mine(matrix, relevance))
    assert kept[0, 1]
    np.testing.assert_array_equal(kept[1], mine(matrix[1:], relevance[1:])[0])


def test_what_cannot_be_mined_is_refused():
    matrix, relevance = jnp.ones((2, 3)), jnp.ones((2, 3), bool)
    with pytest.raises(ValueError, match=r"k must be an integer of at least 1; got 0 for .*\(2, 3"):
        aa.mine_hard_negatives(matrix, relevance, k=0)
    with pytest.raises(ValueError, match="epsilon must be finite; got nan"):
        aa.mine_multi_similarity(matrix, relevance, epsilon=jnp.nan)
    for mine in (aa.mine_multi_similarity, aa.mine_hard_negatives):
        with pytest.raises(ValueError, match=r"relevance has shape \(2, 3\), but .* \(2, 2\)"):
            mine(matrix[:, :2], relevance)
