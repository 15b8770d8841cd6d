"""Corrections for hubs against float64 loops, and what they are for."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

import aadml_jax as aa

WAYS = {"plain": functools.partial, "compiled": oracles.compiled}
EVERY_WAY = pytest.mark.parametrize("way", WAYS)
EVERY_FUNCTION = pytest.mark.parametrize("name", ["csls", "inverted_softmax", "dual_softmax"])


def case(seed=0, n=6, m=9):
    scores, _, where = oracles.pair_case(seed, n, m, -1.0, 1.0)
    where[:, 3] = False  # an item without queries
    return scores.astype(np.float32), where


def loop(name, scores, where=None, k=10, temperature=0.05):
    """The corrected scores in float64, entry by entry."""
    n, m = scores.shape
    where = np.ones((n, m), bool) if where is None else where
    corrected = np.full((n, m), -math.inf)
    for i in range(n):
        for j in range(m):
            if not where[i, j]:
                continue
            row = [float(scores[i, c]) for c in range(m) if where[i, c]]
            column = [float(scores[r, j]) for r in range(n) if where[r, j]]
            value = float(scores[i, j])
            if name == "csls":
                nearest = [sorted(side, reverse=True)[:k] for side in (row, column)]
                corrected[i, j] = 2 * value - sum(map(oracles.mean, nearest))
                continue
            of_row, of_column = (
                oracles.logsumexp([s / temperature for s in side]) for side in (row, column)
            )
            corrected[i, j] = value / temperature - of_column
            if name == "dual_softmax":
                corrected[i, j] += value / temperature - of_row
    return corrected


@EVERY_FUNCTION
@EVERY_WAY
@pytest.mark.parametrize("masked", [False, True])
def test_corrected_scores_equal_the_float64_loop(name, way, masked):
    scores, where = case()
    where = where if masked else None
    for options in (
        ({"k": 1}, {"k": 3}, {"k": 10})
        if name == "csls"
        else (
            {"temperature": 0.05},
            {"temperature": 2.0},
        )
    ):
        actual = WAYS[way](getattr(aa, name), **options)(scores, where=where)
        assert actual.dtype == jnp.float32
        np.testing.assert_allclose(
            actual, loop(name, scores, where, **options), rtol=1e-5, atol=1e-5
        )


def test_softmaxes_sum_to_one():
    scores, where = case(1)
    of_items = np.exp(aa.inverted_softmax(scores, where=where, temperature=0.3))
    np.testing.assert_allclose(of_items.sum(axis=0), where.any(axis=0), rtol=1e-5)
    # A single pair is certain both ways.
    assert float(aa.dual_softmax(np.array([[0.3]]))[0, 0]) == pytest.approx(0, abs=1e-6)


@EVERY_FUNCTION
def test_a_hub_no_longer_comes_first_for_all_queries(name):
    # Item i belongs to query i, and item 0 is near to all queries.
    scores = np.full((4, 4), 0.1) + 0.5 * np.eye(4)
    scores[:, 0] = [0.9, 0.7, 0.7, 0.7]
    relevance = np.eye(4, dtype=bool)
    assert float(aa.recall_at(scores, relevance, k=1).mean()) == 1 / 4
    options = {"k": 2} if name == "csls" else {"temperature": 0.1}
    corrected = getattr(aa, name)(scores, **options)
    assert float(aa.recall_at(corrected, relevance, k=1).mean()) == 1


@EVERY_FUNCTION
def test_order_of_rows_and_columns_does_not_matter(name):
    scores, where = case(2)
    rows, columns = np.array([3, 0, 4, 1, 2, 5]), np.array([5, 2, 0, 6, 1, 4, 3, 8, 7])
    take = np.ix_(rows, columns)
    whole = np.asarray(getattr(aa, name)(scores, where=where))
    shuffled = getattr(aa, name)(scores[take], where=where[take])
    np.testing.assert_allclose(shuffled, whole[take], rtol=1e-5, atol=1e-5)


@EVERY_FUNCTION
def test_where_clears_what_it_excludes(name):
    scores, where = case(3)
    garbage = np.where(where, scores, np.nan).astype(np.float32)
    actual = np.asarray(getattr(aa, name)(garbage, where=where))
    np.testing.assert_array_equal(actual, getattr(aa, name)(scores, where=where))
    assert np.array_equal(np.isneginf(actual), ~where)

    def total(scores, **options):
        corrected = getattr(aa, name)(scores, where=where, **options)
        return jnp.sum(jnp.where(where, corrected, 0))

    assert np.all(np.isfinite(jax.grad(total)(garbage)))
    if name != "csls":
        assert np.isfinite(jax.grad(lambda t: total(garbage, temperature=t))(0.5))


@EVERY_FUNCTION
def test_a_score_of_minus_infinity_is_a_pair_that_is_not_there(name):
    scores, where = case(4)
    filled = np.where(where, scores, -np.inf).astype(np.float32)
    actual = np.asarray(getattr(aa, name)(filled))
    np.testing.assert_allclose(actual, loop(name, scores, where), rtol=1e-5, atol=1e-5)


@EVERY_FUNCTION
@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0)])
def test_without_queries_or_items_there_are_no_scores(name, shape):
    assert getattr(aa, name)(np.zeros(shape, np.float32)).shape == shape


@pytest.mark.parametrize("name", ["inverted_softmax", "dual_softmax"])
def test_extreme_scores_stay_finite_and_temperatures_may_be_traced(name):
    scores = np.array([[1e4, -1e4], [0.0, 1.0]], np.float32)
    actual = np.asarray(getattr(aa, name)(scores))
    assert np.all(np.isfinite(actual)) and np.all(actual <= 1e-6)
    temperatures = jnp.array([0.1, 1.0])
    sweep = jax.vmap(lambda t: getattr(aa, name)(case()[0], temperature=t))(temperatures)
    for values, temperature in zip(sweep, (0.1, 1.0), strict=True):
        by_loop = loop(name, case()[0], temperature=temperature)
        np.testing.assert_allclose(values, by_loop, rtol=1e-5, atol=1e-5)


@EVERY_FUNCTION
def test_mistakes_raise_an_error_that_prints_them(name):
    function = getattr(aa, name)
    with pytest.raises(ValueError, match=r"\(3,\)"):
        function(np.ones(3))
    with pytest.raises(ValueError, match=r"where has shape \(2, 2\).*\(2, 3\)"):
        function(np.ones((2, 3)), where=np.ones((2, 2), bool))
    wrong = {"k": 0} if name == "csls" else {"temperature": 0.0}
    with pytest.raises(ValueError, match=r"(k must be .*got 0|temperature must be above 0; got 0)"):
        function(np.ones((2, 3)), **wrong)


@EVERY_FUNCTION
def test_docstrings_say_that_the_correction_is_transductive(name):
    assert "transductive" in getattr(aa, name).__doc__.splitlines()[0]
