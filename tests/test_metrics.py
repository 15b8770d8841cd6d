"""Ranking metrics by hand, by loop and by scikit-learn, each called both ways: plain and in jit.

Plain calls rank on the host where the machine has no accelerator, compiled ones in XLA.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import hypothesis
import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, ndcg_score

import aadml_jax as aa

WAYS = {"plain": functools.partial, "compiled": oracles.compiled}


class Metric(NamedTuple):
    name: str
    oracle: Callable
    params: dict
    way: str

    def __call__(self, scores, relevance, where=None, **options):
        run = WAYS[self.way](getattr(aa, self.name), **(self.params | options))
        return run(scores, relevance, where=where)

    def expected(self, scores, relevance, where=None):
        return oracles.by_row(self.oracle, scores, relevance, where, **self.params)


METRICS = [
    Metric(name, oracle, params, way)
    for name, oracle, params in (
        ("average_precision", oracles.average_precision_row, {}),
        ("prefix_average_precision", oracles.prefix_average_precision_row, {}),
        ("precision_at", oracles.precision_at_row, {"k": 3}),
        ("recall_at", oracles.recall_at_row, {"k": 2}),
        ("fraction_recall_at", oracles.fraction_recall_at_row, {"k": 3}),
        ("r_precision", oracles.r_precision_row, {}),
        ("average_precision_at_r", oracles.average_precision_at_r_row, {}),
        ("reciprocal_rank", oracles.reciprocal_rank_row, {}),
        ("ndcg_at", oracles.ndcg_at_row, {"k": 4}),
    )
    for way in WAYS
]
EVERY_METRIC = pytest.mark.parametrize("metric", METRICS, ids=lambda m: f"{m.name}-{m.way}")
EVERY_WAY = pytest.mark.parametrize("way", WAYS)
QUIET = hypothesis.settings(max_examples=80, deadline=None, database=None, derandomize=True)


def case(seed, n=5, m=7):
    scores, relevance, where = oracles.pair_case(seed, n, m, -1.0, 1.0)
    return jnp.asarray(scores, jnp.float32), jnp.asarray(relevance), jnp.asarray(where)


def close(actual, expected, rtol=1e-6, atol=1e-6):
    np.testing.assert_allclose(np.asarray(actual, np.float64), expected, rtol=rtol, atol=atol)


@pytest.mark.parametrize(
    ("name", "params", "expected"),
    [
        ("average_precision", {}, [(1 / 1 + 2 / 4) / 2, (1 / 2 + 2 / 3) / 2, 0.0]),
        (
            "prefix_average_precision",
            {},
            [(3 + (1 + 2 / 4) / 2) / 4, (1 / 2 + 7 / 12 * 2) / 4, 0.0],
        ),
        ("precision_at", {"k": 1}, [1.0, 0.0, 0.0]),
        ("precision_at", {"k": 3}, [1 / 3, 2 / 3, 0.0]),
        ("precision_at", {"k": 4}, [1 / 2, 1 / 2, 0.0]),
        ("recall_at", {"k": 1}, [1.0, 0.0, 0.0]),
        ("recall_at", {"k": 2}, [1.0, 1.0, 0.0]),
        ("fraction_recall_at", {"k": 2}, [1 / 2, 1 / 2, 0.0]),
        ("r_precision", {}, [1 / 2, 1 / 2, 0.0]),
        ("average_precision_at_r", {}, [1 / 2, 1 / 2 / 2, 0.0]),
        ("reciprocal_rank", {}, [1, 1 / 2, 0.0]),
        ("first_hit_rank", {}, [1, 2, 5]),
        (
            "ndcg_at",
            {"k": 3},
            [1 / (1 + 1 / np.log2(3)), (1 / np.log2(3) + 1 / 2) / (1 + 1 / np.log2(3)), 0.0],
        ),
    ],
)
@EVERY_WAY
def test_values_by_hand(name, params, expected, way):
    ranked = np.array([[1, 0, 0, 1], [0, 1, 1, 0], [0, 0, 0, 0]], dtype=bool)
    scores, columns = np.array([0.9, 0.5, 0.1, -2.0], np.float32), np.array([2, 0, 3, 1])
    scores = np.broadcast_to(scores[columns], (3, 4))
    run = WAYS[way](getattr(aa, name), **params)
    close(run(scores, ranked[:, columns]), expected)


@EVERY_WAY
def test_standard_and_prefix_average_precision_of_hit_miss_miss_hit(way):
    scores, relevance = jnp.array([[4.0, 3.0, 2.0, 1.0]]), jnp.array([[1, 0, 0, 1]])
    for function, expected in ((aa.average_precision, 0.75), (aa.prefix_average_precision, 0.9375)):
        assert float(WAYS[way](function)(scores, relevance)[0]) == expected


@pytest.mark.parametrize(
    ("relevance", "expected"),
    [([1, 0, 0], 1.0), ([0, 1, 0], 1 / 2), ([0, 0, 1], 1 / 3), ([0, 1, 1], (1 / 2 + 2 / 3) / 2)],
)
@pytest.mark.parametrize("scores", [[0.5, 0.5, 0.5], [-0.0, 0.0, -0.0], [0.0, -0.0, 0.0]])
@EVERY_WAY
def test_equal_scores_rank_in_gallery_order(scores, relevance, expected, way):
    actual = WAYS[way](aa.average_precision)(np.array([scores]), np.array([relevance]))
    assert float(actual[0]) == pytest.approx(expected)


@EVERY_METRIC
@pytest.mark.parametrize("masked", [False, True])
def test_each_row_equals_the_float64_loop(metric, masked):
    for seed in (0, 1, 2):
        scores, relevance, where = case(seed)
        where = where if masked else None
        rows = metric(scores, relevance, where=where)
        assert (rows.shape, rows.dtype) == ((5,), jnp.float32)
        close(rows, metric.expected(scores, relevance, where))


@QUIET
@hypothesis.given(
    hnp.arrays(np.float32, (3, 7), elements=st.sampled_from([-np.inf, -1, -0.0, 0.0, 0.5, np.inf])),
    hnp.arrays(np.bool_, (3, 7)),
    hnp.arrays(np.bool_, (3, 7)),
)
@EVERY_METRIC
def test_any_ties_infinities_and_masks_equal_the_float64_loop(metric, scores, relevance, where):
    close(metric(scores, relevance, where=where), metric.expected(scores, relevance, where))


@QUIET
@hypothesis.given(
    hnp.arrays(np.float32, (3, 7), elements=st.floats(-100, 100, width=16), unique=True),
    hnp.arrays(np.bool_, (3, 7)),
)
@EVERY_METRIC
def test_values_lie_in_the_unit_interval_and_depend_on_the_order_alone(metric, scores, relevance):
    rows = np.asarray(metric(scores, relevance))
    assert np.all((rows >= 0) & (rows <= 1 + 1e-6))
    close(
        metric(np.argsort(np.argsort(scores, axis=1), axis=1).astype(np.float32), relevance), rows
    )
    perfect = np.asarray(metric(relevance.astype(np.float32), relevance))
    assert np.all(perfect >= rows - 1e-6)
    if metric.name not in ("precision_at", "recall_at", "fraction_recall_at"):
        close(perfect, relevance.any(axis=1).astype(float))


@EVERY_METRIC
def test_rows_without_relevant_or_without_any_column_score_zero(metric):
    scores, relevance, where = oracles.degenerate_case(3)
    rows = metric(jnp.asarray(scores, jnp.float32), relevance, where=where)
    close(rows, metric.expected(scores, relevance, where))
    assert np.all(np.asarray(rows)[[1, 3, 5]] == 0) and rows[0] > 0


@EVERY_METRIC
def test_reduce_fn_sees_all_rows(metric):
    scores, relevance, where = oracles.degenerate_case(4)
    expected = metric.expected(scores, relevance, where)
    scores = jnp.asarray(scores, jnp.float32)
    close(metric(scores, relevance, where=where, reduce_fn=jnp.mean), expected.sum() / 6)


@pytest.mark.parametrize("masked", [False, True])
@EVERY_WAY
def test_mean_average_precision_is_the_mean_over_all_rows(masked, way):
    scores, relevance, where = oracles.degenerate_case(5)
    where = where if masked else None
    expected = oracles.by_row(oracles.average_precision_row, scores, relevance, where)
    actual = WAYS[way](aa.mean_average_precision)(
        jnp.asarray(scores, jnp.float32), relevance, where=where
    )
    assert actual.shape == ()
    close(actual, expected.sum() / 6)


@pytest.mark.parametrize("m", [7, 300])
@EVERY_WAY
def test_average_precision_equals_scikit_learn_on_distinct_scores(m, way):
    scores, relevance, where = case(6, 5, m)
    assert all(len(np.unique(row)) == m for row in np.asarray(scores))
    expected = [
        average_precision_score(relevant[kept], row[kept])
        for row, relevant, kept in zip(*map(np.asarray, (scores, relevance, where)), strict=True)
    ]
    close(WAYS[way](aa.average_precision)(scores, relevance, where=where), expected)
    mean = WAYS[way](aa.mean_average_precision)(scores, relevance, where=where)
    close(mean, np.mean(expected))


@EVERY_METRIC
def test_large_galleries_stay_accurate_in_float32(metric):
    scores, relevance, where = case(7, 2, 5000)
    expected = metric.expected(scores, relevance, where)
    close(metric(scores, relevance, where=where), expected, rtol=2e-6, atol=0)


@EVERY_METRIC
def test_where_is_the_same_as_dropping_columns(metric):
    scores, relevance, _ = case(8)
    keep = np.array([True, False, True, True, False, True, True])
    where = np.broadcast_to(keep, (5, 7))
    dropped = metric(scores[:, keep], relevance[:, keep])
    for garbage in (scores, jnp.where(where, scores, jnp.nan), jnp.where(where, scores, jnp.inf)):
        close(metric(garbage, relevance, where=where), np.asarray(dropped))


@EVERY_WAY
def test_excluded_columns_rank_behind_minus_infinity(way):
    scores, where = jnp.array([[9.0, -jnp.inf, 1.0]]), jnp.array([[False, True, True]])
    relevance = jnp.array([[True, True, False]])
    for name, params, expected in (
        ("average_precision", {}, 1 / 2),
        ("precision_at", {"k": 2}, 1 / 2),
        ("recall_at", {"k": 1}, 0.0),
    ):
        run = WAYS[way](getattr(aa, name), **params)
        assert float(run(scores, relevance, where=where)[0]) == expected


@pytest.mark.parametrize("k", [1, 3, 5])
def test_precision_divides_by_k_even_where_fewer_columns_are_left(k):
    scores, relevance = jnp.array([[3.0, 2.0, 1.0, 5.0, 4.0]]), jnp.ones((1, 5), bool)
    where = jnp.array([[True, True, False, False, False]])
    actual = jax.jit(lambda s: aa.precision_at(s, relevance, where=where, k=k))(scores)
    assert float(actual[0]) == pytest.approx(min(k, 2) / k)


@EVERY_METRIC
def test_nan_in_a_compared_entry_shows_in_its_row_alone(metric):
    scores, relevance, where = case(9)
    j = int(np.flatnonzero(np.asarray(where[2]))[0])
    rows = metric(scores.at[2, j].set(jnp.nan), relevance, where=where)
    np.testing.assert_array_equal(np.isnan(rows), np.arange(5) == 2)


@EVERY_METRIC
def test_order_of_rows_and_columns_does_not_matter(metric):
    scores, relevance, where = case(10)
    rows, columns = np.array([3, 0, 4, 1, 2]), np.array([5, 2, 0, 6, 1, 4, 3])
    take = np.ix_(rows, columns)
    shuffled = metric(scores[take], relevance[take], where=where[take])
    close(shuffled, np.asarray(metric(scores, relevance, where=where))[rows])


@EVERY_METRIC
def test_jit_and_vmap_change_nothing(metric):
    cases = [case(seed) for seed in (11, 12)]

    def run(scores, relevance, where):
        return getattr(aa, metric.name)(scores, relevance, where=where, **metric.params)

    close(run(*cases[0]), np.asarray(metric(*cases[0])))
    batch = jax.jit(jax.vmap(run))(*(jnp.stack(part) for part in zip(*cases, strict=True)))
    close(batch, np.stack([metric.expected(*one) for one in cases]))


@EVERY_METRIC
def test_types_in_and_out(metric):
    scores, relevance, where = case(13)
    half = jnp.asarray(scores, jnp.bfloat16)
    rows = metric(half, np.asarray(relevance, np.int32), where=np.asarray(where, np.uint8))
    assert rows.dtype == jnp.float32
    close(rows, metric.expected(half, relevance, where))
    with oracles.x64():
        crowded = 1.0 + np.asarray(scores, np.float64) * 1e-12  # all equal as float32
        rows = metric(jnp.asarray(crowded), relevance, where=where)
        assert rows.dtype == jnp.float64
        close(rows, metric.expected(crowded, relevance, where), rtol=1e-13, atol=0)


@EVERY_METRIC
@pytest.mark.parametrize(
    ("scores", "relevance", "where"),
    [
        ((5, 7), (5, 6), None),
        ((5, 7), (5, 7), (5, 6)),
        ((5, 7), (5, 7), (7,)),
        ((7,), (7,), None),
    ],
)
def test_shapes_that_do_not_fit_raise_an_error_that_prints_them(metric, scores, relevance, where):
    shapes = {scores, relevance, where} - {None}
    mask = None if where is None else np.ones(where, bool)
    with pytest.raises(ValueError) as error:
        metric(np.ones(scores), np.ones(relevance, bool), mask)
    assert all(str(shape) in str(error.value) for shape in shapes)


@pytest.mark.parametrize("name", ["precision_at", "recall_at", "fraction_recall_at", "ndcg_at"])
@pytest.mark.parametrize(("k", "message"), [(0, "k .*0"), (-1, "k .*-1"), (8, r"8.*\(5, 7\)")])
def test_k_outside_the_gallery_raises(name, k, message):
    scores, relevance, _ = case(14)
    with pytest.raises(ValueError, match=message):
        getattr(aa, name)(scores, relevance, k=k)


@pytest.mark.parametrize(
    "name",
    [
        "average_precision",
        "mean_average_precision",
        "prefix_average_precision",
        "precision_at",
        "recall_at",
        "fraction_recall_at",
        "r_precision",
        "average_precision_at_r",
        "reciprocal_rank",
        "first_hit_rank",
    ],
)
@pytest.mark.parametrize("culprit", ["relevance", "where"])
def test_masks_of_other_codings_are_refused_by_name(name, culprit):
    scores = np.random.default_rng(0).normal(size=(3, 4))
    relevant = np.array([[True, False, True, True]] * 3)
    metric = functools.partial(getattr(aa, name), **({"k": 2} if name.endswith("_at") else {}))
    masks = {"relevance": relevant, "where": np.ones((3, 4), bool)}
    for wrong in (np.where(relevant, 1, -1), 2 * relevant, jnp.asarray(2 * relevant)):
        with pytest.raises(
            ValueError, match=rf"{culprit} of shape \(3, 4\) must hold 0 and 1 alone"
        ):
            metric(scores, **(masks | {culprit: wrong}))
    with pytest.raises(ValueError, match=f"{culprit} must be bool; got float64"):
        metric(scores, **(masks | {culprit: relevant * 0.5}))


@EVERY_WAY
def test_the_first_hit_of_queries_without_one_is_behind_the_gallery(way):
    run = WAYS[way](aa.first_hit_rank)
    scores, relevance, where = oracles.degenerate_case(15)
    scores = jnp.asarray(scores, jnp.float32)
    rows = run(scores, relevance, where=where)
    close(rows, oracles.by_row(oracles.first_hit_rank_row, scores, relevance, where))
    # Of galleries of 5, 2 (the relevant ones are excluded: 3 of 6 are left) and none.
    assert [float(rows[i]) for i in (1, 3, 5)] == [6, 4, 1]
    for seed in (0, 1, 2):
        one = case(seed)
        close(run(*one[:2], where=one[2]), oracles.by_row(oracles.first_hit_rank_row, *one))


# nDCG of grades


@EVERY_WAY
def test_ndcg_of_grades_by_hand(way):
    scores = np.array([[4.0, 3.0, 2.0, 1.0]])
    grades = np.array([[0.5, 0, 3, 1]])
    run = WAYS[way](aa.ndcg_at, k=3)
    found, best = 0.5 + 3 / 2, 3 + 1 / np.log2(3) + 0.5 / 2
    close(run(scores, grades), [found / best])
    where = np.array([[True, False, True, False]])  # 0.5 and 3, in this order
    close(run(scores, grades, where=where), [(0.5 + 3 / np.log2(3)) / (3 + 0.5 / np.log2(3))])


@pytest.mark.parametrize("m", [9, 300])
@EVERY_WAY
def test_ndcg_of_grades_equals_scikit_learn_on_distinct_scores(m, way):
    rng = np.random.default_rng(16)
    scores = rng.permuted(np.tile(np.arange(m, dtype=np.float32), (6, 1)), axis=1)
    for grades in (rng.integers(0, 4, (6, m)), rng.random((6, m)) * (rng.random((6, m)) < 0.4)):
        grades[2] = 0
        for k in (1, 4, 9):
            by_row = [
                ndcg_score(g[None], s[None], k=k) for g, s in zip(grades, scores, strict=True)
            ]
            close(WAYS[way](aa.ndcg_at, k=k)(scores, grades), by_row)


@pytest.mark.parametrize("m", [9, 300])
@EVERY_WAY
def test_ndcg_of_grades_and_ties_equals_scikit_learn_in_expectation(m, way):
    rng = np.random.default_rng(17)
    scores, grades = rng.integers(0, 5, (6, m)).astype(np.float32), rng.integers(0, 4, (6, m))
    for k in (1, 4, 9):
        by_row = [ndcg_score(grades[[i]], scores[[i]], k=k) for i in range(6)]
        close(WAYS[way](aa.ndcg_at, k=k, ties="expected")(scores, grades), by_row, rtol=5e-6)


@QUIET
@hypothesis.given(
    hnp.arrays(np.float32, (3, 7), elements=st.sampled_from([-np.inf, -1, -0.0, 0.0, 0.5, np.inf])),
    hnp.arrays(np.float32, (3, 7), elements=st.sampled_from([0, 0, 0.25, 1, 3])),
    hnp.arrays(np.bool_, (3, 7)),
)
@EVERY_WAY
def test_ndcg_of_grades_with_any_ties_and_masks_equals_the_float64_loop(way, scores, grades, where):
    rows = []
    for row, of_row, kept in zip(scores, grades, where, strict=True):
        rows.append(oracles.ndcg_at_row(row[kept].tolist(), of_row[kept].tolist(), k=3))
    close(WAYS[way](aa.ndcg_at, k=3)(scores, grades, where=where), rows)


def test_ndcg_of_zeros_and_ones_is_that_of_relevance():
    scores, relevance, where = case(18)
    for ties in ("stable", "expected"):
        one, other = (
            aa.ndcg_at(scores, grades, k=3, where=where, ties=ties)
            for grades in (relevance, np.asarray(relevance, np.int32))
        )
        close(one, np.asarray(other))


def test_ndcg_of_grades_compares_scores_of_64_bits_as_they_are():
    crowded, grades = np.array([[1 + 1e-12, 1 + 3e-12, 1 + 2e-12]]), np.array([[1, 3, 2]])
    assert float(aa.ndcg_at(crowded, grades, k=2)[0]) == pytest.approx(1)
    crowded[0, 1] = np.nan
    assert np.isnan(aa.ndcg_at(crowded, grades, k=2)[0])
    where = np.array([[True, False, True]])
    assert float(aa.ndcg_at(crowded, grades, k=2, where=where)[0]) == pytest.approx(1)


@pytest.mark.parametrize(
    ("grades", "message"),
    [
        (np.array([[1, -1]]), r"grades in relevance of shape \(1, 2\).*got -1 at \[0, 1\]"),
        (np.array([[np.nan, 1.0]]), r"finite.*got nan at \[0, 0\]"),
        (np.array([[1.0, np.inf]]), r"finite.*got inf at \[0, 1\]"),
        (np.array([[1.0]]), r"relevance has shape \(1, 1\).*\(1, 2\)"),
        (np.array([["a", "b"]]), "bool or grades"),
    ],
)
def test_grades_that_cannot_be_are_refused(grades, message):
    with pytest.raises(ValueError, match=message):
        aa.ndcg_at(np.array([[2.0, 1.0]]), grades, k=1)
