"""Ranking on the host: near ties that differ in the lowest bit alone, many of them, many parts."""

import hypothesis
import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from hypothesis import strategies as st

import aadml_jax as aa
from aadml_jax import _host_ranking

# Neighbours among the floats on both sides of zero; XLA takes subnormal ones for 0, none is here.
ONE, THIRD = np.float32(1), np.float32(-1 / 3)
NEAR = [ONE, np.nextafter(ONE, 2, dtype=np.float32), np.nextafter(ONE, 0, dtype=np.float32)]
NEAR += [THIRD, np.nextafter(THIRD, 0, dtype=np.float32), np.nextafter(THIRD, -1, dtype=np.float32)]
NEAR += [np.float32(0), np.float32(-0.0), np.float32(1.5e-38), np.float32(-1.5e-38)]


@pytest.fixture(autouse=True)
def ranks_on_the_host():
    if jax.default_backend() != "cpu":
        pytest.skip("this machine ranks on its accelerator")


def average_precision(scores, relevance, where=None):
    return np.asarray(aa.average_precision(scores, relevance, where=where), np.float64)


def expected(scores, relevance, where=None):
    return oracles.by_row(oracles.average_precision_row, scores, relevance, where)


@hypothesis.settings(max_examples=300, deadline=None, database=None, derandomize=True)
@hypothesis.given(
    hnp.arrays(np.float32, (3, 9), elements=st.sampled_from(NEAR)),
    hnp.arrays(np.bool_, (3, 9)),
    hnp.arrays(np.bool_, (3, 9)),
)
def test_near_ties_and_ties_equal_the_float64_loop(scores, relevance, where):
    np.testing.assert_allclose(
        average_precision(scores, relevance, where), expected(scores, relevance, where), rtol=1e-6
    )


@pytest.mark.parametrize("levels", [2, 5, 40, 400])
@pytest.mark.parametrize("width", [np.float32, np.float64])
def test_any_number_of_tied_groups_equals_the_float64_loop(levels, width):
    with oracles.x64(width is np.float64):
        rng = np.random.default_rng(levels)
        scores = (rng.integers(1, levels + 1, (6, 500)) / levels).astype(width)
        scores = np.where(rng.random(scores.shape) < 0.3, np.nextafter(scores, width(2)), scores)
        relevance = rng.random(scores.shape) < 0.2
        actual = average_precision(scores, relevance)
        np.testing.assert_allclose(actual, expected(scores, relevance), rtol=1e-6)


def test_all_scores_equal_is_gallery_order():
    relevance = np.random.default_rng(0).random((4, 3000)) < 0.1
    precisions = [
        np.mean(np.arange(1, row.sum() + 1) / (np.flatnonzero(row) + 1)) for row in relevance
    ]
    actual = average_precision(np.full((4, 3000), 0.25, np.float32), relevance)
    np.testing.assert_allclose(actual, precisions, rtol=1e-6)


def test_rows_are_ranked_in_parts(monkeypatch):
    monkeypatch.setattr(_host_ranking, "_ENTRIES_AT_ONCE", 64)
    scores, relevance, where = oracles.pair_case(1, 23, 31, -1.0, 1.0)
    scores = scores.astype(np.float32)
    for metric, oracle in (
        (aa.average_precision, oracles.average_precision_row),
        (aa.prefix_average_precision, oracles.prefix_average_precision_row),
    ):
        rows = oracles.by_row(oracle, scores, relevance, where)
        np.testing.assert_allclose(metric(scores, relevance, where=where), rows, rtol=1e-6)


@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (1, 1)])
def test_empty_and_single(shape):
    actual = average_precision(np.zeros(shape, np.float32), np.ones(shape, bool))
    np.testing.assert_array_equal(actual, np.ones(shape[0]) * (shape[1] > 0))


def test_arrays_under_transformation_are_not_on_the_host():
    seen = []

    def look(x):
        seen.append(_host_ranking.is_on_host(x))
        return x

    array = jnp.ones(3)
    look(array)
    look(np.ones(3))
    jax.jit(look)(array)
    jax.vmap(look)(array)
    jax.grad(lambda x: look(x).sum())(array)
    assert seen == [True, True, False, False, False]


def test_constants_within_traced_code_are_ranked_there():
    scores, relevance, _ = oracles.pair_case(2, 3, 8, -1.0, 1.0)
    scores = jnp.asarray(scores, jnp.float32)
    ap = average_precision(scores, relevance)
    clips = scores, scores[:, ::-1], np.array([0, 1, 0])

    def scanned(carry, _):
        return carry + aa.average_precision(scores, relevance), None

    np.testing.assert_allclose(
        jax.jit(lambda: aa.average_precision(scores, relevance))(), ap, rtol=1e-6
    )
    total, _ = jax.lax.scan(scanned, jnp.zeros(3), None, length=2)
    np.testing.assert_allclose(total, 2 * ap, rtol=1e-6)
    assert jax.eval_shape(lambda: aa.average_precision(scores, relevance)).shape == (3,)
    report = jax.jit(lambda: aa.cross_modal_report(*clips, ks=(1,)))()
    expected = aa.cross_modal_report(*clips, ks=(1,))
    assert float(report["mean"]["map"]) == pytest.approx(float(expected["mean"]["map"]), rel=1e-6)
