"""Metrics that take ties by their expectation, against the mean over all orders of the gallery."""

import functools
import itertools
import math

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

WAYS = {"plain": functools.partial, "compiled": oracles.compiled}
METRICS = {
    "average_precision": (oracles.average_precision_row, {}),
    "precision_at_1": (oracles.precision_at_row, {"k": 1}),
    "precision_at_3": (oracles.precision_at_row, {"k": 3}),
    "recall_at_2": (oracles.recall_at_row, {"k": 2}),
    "recall_at_4": (oracles.recall_at_row, {"k": 4}),
    "fraction_recall_at_3": (oracles.fraction_recall_at_row, {"k": 3}),
    "r_precision": (oracles.r_precision_row, {}),
    "average_precision_at_r": (oracles.average_precision_at_r_row, {}),
    "reciprocal_rank": (oracles.reciprocal_rank_row, {}),
    "first_hit_rank": (oracles.first_hit_rank_row, {}),
    "ndcg_at_2": (oracles.ndcg_at_row, {"k": 2}),
    "ndcg_at_4": (oracles.ndcg_at_row, {"k": 4}),
}
EVERY_METRIC = pytest.mark.parametrize("name", METRICS)
EVERY_WAY = pytest.mark.parametrize("way", WAYS)
QUIET = hypothesis.settings(max_examples=25, deadline=None, database=None, derandomize=True)


def expected(name, way, scores, relevance, where=None):
    function = getattr(aa, name.rstrip("_1234"))
    run = WAYS[way](function, ties="expected", **METRICS[name][1])
    return np.asarray(run(scores, relevance, where=where), np.float64)


def mean_over_orders(row_oracle, scores, relevance, where=None, **params):
    """By row: the mean of the oracle over all orders of a query's gallery."""

    def of_row(values, relevant):
        orders = list(itertools.permutations(range(len(values))))
        return oracles.mean(
            row_oracle([values[j] for j in order], [relevant[j] for j in order], **params)
            for order in orders
        )

    return oracles.by_row(of_row, scores, relevance, where)


def closed_form_row(values, relevant):
    """AP's expectation, group by group, in float64."""
    total = before = hits_before = 0
    for value in sorted(set(values), reverse=True):
        group = [r for v, r in zip(values, relevant, strict=True) if v == value]
        size, hits = len(group), sum(group)
        for place in range(1, size + 1):
            others = (hits - 1) * (place - 1) / (size - 1) if size > 1 else 0
            total += hits / size * (hits_before + 1 + others) / (before + place)
        before, hits_before = before + size, hits_before + hits
    return total / hits_before if hits_before else 0.0


@pytest.mark.parametrize(
    ("name", "by_hand"),
    [
        # The hit is at rank 2 or 3, or in the second row at rank 1. The third row has two hits
        # among three tied items, at ranks 1 2, 1 3 or 2 3: AP 1, (1 + 2/3) / 2 or (1/2 + 2/3) / 2.
        (
            "average_precision",
            [(1 / 2 + 1 / 3) / 2, 1, (1 + (1 + 2 / 3) / 2 + (1 / 2 + 2 / 3) / 2) / 3],
        ),
        ("precision_at_1", [0, 1, 2 / 3]),
        ("recall_at_2", [1 / 2, 1, 1]),
    ],
)
@EVERY_WAY
def test_values_by_hand(name, by_hand, way):
    scores = np.array([[1, 0.5, 0.5], [1, 0.5, 0.5], [2, 2, 2]], np.float32)
    relevance = np.array([[0, 1, 0], [1, 0, 0], [1, 1, 0]], bool)
    np.testing.assert_allclose(expected(name, way, scores, relevance), by_hand, rtol=1e-6)


@QUIET
@hypothesis.given(
    hnp.arrays(np.float32, (3, 6), elements=st.sampled_from([-np.inf, -1, -0.0, 0.0, np.inf])),
    hnp.arrays(np.bool_, (3, 6)),
    hnp.arrays(np.bool_, (3, 6)),
)
@EVERY_METRIC
@EVERY_WAY
def test_the_expectation_is_the_mean_over_all_orders(name, way, scores, relevance, where):
    oracle, params = METRICS[name]
    np.testing.assert_allclose(
        expected(name, way, scores, relevance, where),
        mean_over_orders(oracle, scores, relevance, where, **params),
        rtol=1e-5,
        atol=1e-6,
    )


@pytest.mark.parametrize("levels", [2, 5, 40, 400])
@EVERY_WAY
def test_ties_of_any_number_and_near_ties_equal_the_closed_form(levels, way):
    rng = np.random.default_rng(levels)
    scores = (rng.integers(1, levels + 1, (6, 500)) / levels).astype(np.float32)
    # Neighbours of a tied score differ in the lowest bit alone.
    scores = np.where(rng.random(scores.shape) < 0.3, np.nextafter(scores, np.float32(2)), scores)
    relevance = rng.random(scores.shape) < 0.2
    by_loop = oracles.by_row(closed_form_row, scores, relevance)
    actual = expected("average_precision", way, scores, relevance)
    np.testing.assert_allclose(actual, by_loop, rtol=2e-6)
    stable = np.asarray(aa.average_precision(scores, relevance))
    assert np.max(np.abs(actual - stable)) > 1e-3 or levels == 400


@pytest.mark.parametrize("num_relevant", [1, 40, 4999, 5000])
@EVERY_WAY
def test_a_gallery_that_is_one_tie_scores_by_chance(num_relevant, way):
    m, k, scores = 5000, 4, np.full((1, 5000), 0.25, np.float32)
    relevance = np.arange(m)[None, :] < num_relevant  # in gallery order all of them come first
    first = sum(1 / rank for rank in range(1, m + 1)) / m
    by_chance = first + (num_relevant - 1) / (m - 1) * (1 - first)
    assert expected("average_precision", way, scores, relevance)[0] == pytest.approx(
        by_chance, rel=3e-6
    )
    assert expected("precision_at_3", way, scores, relevance)[0] == pytest.approx(
        num_relevant / m, rel=1e-6
    )
    assert expected("r_precision", way, scores, relevance)[0] == pytest.approx(
        num_relevant / m, rel=1e-5
    )
    assert expected("first_hit_rank", way, scores, relevance)[0] == pytest.approx(
        (m + 1) / (num_relevant + 1), rel=1e-6
    )
    chances = [num_relevant / m]  # of the first hit at each rank
    for rank in range(1, m - num_relevant + 1):
        chances.append(chances[-1] * (m - rank - num_relevant + 1) / (m - rank))
    assert expected("reciprocal_rank", way, scores, relevance)[0] == pytest.approx(
        sum(chance / rank for rank, chance in enumerate(chances, start=1)), rel=1e-4
    )
    missed = math.comb(m - num_relevant, k) / math.comb(m, k)
    assert expected("recall_at_4", way, scores, relevance)[0] == pytest.approx(1 - missed, rel=1e-6)


@EVERY_METRIC
@EVERY_WAY
def test_without_ties_the_expectation_is_the_stable_value(name, way):
    scores, relevance, where = oracles.pair_case(1, 5, 7, -1.0, 1.0)
    scores = scores.astype(np.float32)
    oracle, params = METRICS[name]
    np.testing.assert_allclose(
        expected(name, way, scores, relevance, where),
        oracles.by_row(oracle, scores, relevance, where, **params),
        rtol=1e-6,
    )


@EVERY_METRIC
@EVERY_WAY
def test_nan_shows_in_its_row_alone_and_excluded_columns_not_at_all(name, way):
    scores = np.ones((3, 7), np.float32)
    relevance, where = np.arange(7) < [[2], [3], [4]], np.arange(7) < [[7], [7], [5]]
    scores[1, 4:6] = scores[2, 5:] = np.nan
    values = expected(name, way, scores, relevance, where)
    np.testing.assert_array_equal(np.isnan(values), [False, True, False])
    dropped = expected(name, way, scores[2:, :5], relevance[2:, :5])
    np.testing.assert_allclose(values[2:], dropped, rtol=1e-6)


@EVERY_METRIC
def test_rows_without_relevant_or_without_any_column_score_zero(name):
    _, relevance, where = oracles.degenerate_case(3)
    # The first hit counts as behind galleries of 5, 3 and none.
    without = [6, 4, 1] if name == "first_hit_rank" else [0, 0, 0]
    for way in WAYS:
        values = expected(name, way, np.ones((6, 7), np.float32), relevance, where)
        assert values[[1, 3, 5]].tolist() == without and np.all(values[[0, 2, 4]] > 0)


def test_parts_of_the_rows_keep_their_ties(monkeypatch):
    if jax.default_backend() != "cpu":
        pytest.skip("this machine ranks on its accelerator")
    rng = np.random.default_rng(3)
    scores, relevance = rng.integers(0, 4, (23, 31)).astype(np.float32), rng.random((23, 31)) < 0.3
    monkeypatch.setattr(_host_ranking, "_ENTRIES_AT_ONCE", 64)
    by_loop = oracles.by_row(closed_form_row, scores, relevance)
    actual = expected("average_precision", "plain", scores, relevance)
    np.testing.assert_allclose(actual, by_loop, rtol=1e-6)


@EVERY_WAY
def test_mean_average_precision_takes_the_rule(way):
    scores, relevance = np.ones((2, 2), np.float32), np.eye(2, dtype=bool)
    run = WAYS[way](aa.mean_average_precision, ties="expected")
    assert float(run(scores, relevance)) == pytest.approx(3 / 4)
    run = WAYS[way](aa.mean_average_precision)
    assert float(run(scores, relevance)) == pytest.approx((1 + 1 / 2) / 2)


@pytest.mark.parametrize("function", [aa.average_precision, aa.mean_average_precision])
def test_an_unknown_rule_raises(function):
    with pytest.raises(ValueError, match=r"ties.*expected.*stable.*'random'.*\(2, 3\)"):
        function(jnp.ones((2, 3)), jnp.ones((2, 3), bool), ties="random")


@pytest.mark.parametrize("shape", [(0, 5), (3, 0)])
@EVERY_WAY
def test_empty_matrices_score_zero(shape, way):
    values = expected("average_precision", way, np.zeros(shape, np.float32), np.ones(shape, bool))
    np.testing.assert_array_equal(values, np.zeros(shape[0]))


# The report


def report_of(way, audio, visual, labels, **options):
    return WAYS[way](aa.cross_modal_report, ks=(1, 2), **options)(audio, visual, labels)


@EVERY_WAY
def test_equal_embeddings_are_reported_at_chance_whatever_the_order_of_the_clips(way):
    labels, same = np.repeat(np.arange(3), 4), np.ones((12, 2), np.float32)
    first = sum(1 / rank for rank in range(1, 13)) / 12
    report = report_of(way, same, same, labels)
    for side in ("audio_to_visual", "visual_to_audio", "mean"):
        values = report[side]
        assert float(values["map"]) == pytest.approx(first + 3 / 11 * (1 - first), rel=1e-6)
        assert float(values["precision_at_k"][2]) == pytest.approx(1 / 3, rel=1e-6)
        assert float(values["recall_at_k"][2]) == pytest.approx(1 - 8 / 12 * 7 / 11, rel=1e-6)
        assert float(values["tied_pairs"]) == pytest.approx(1.0)
    shuffled = report_of(way, same, same, np.random.default_rng(0).permutation(labels))
    assert float(shuffled["mean"]["map"]) == pytest.approx(float(report["mean"]["map"]), rel=1e-6)
    assert float(report["mean"]["prefix_map"]) != pytest.approx(
        float(shuffled["mean"]["prefix_map"]), rel=1e-3
    )
    stable = report_of(way, same, same, labels, ties="stable")
    # In the order of the clips, the classes' hits are at ranks 1–4, 5–8 and 9–12.
    by_hand = np.mean([[t / (4 * c + t) for t in range(1, 5)] for c in range(3)])
    assert float(stable["mean"]["map"]) == pytest.approx(by_hand, rel=1e-6)


@EVERY_WAY
def test_tied_pairs_are_counted_by_query(way):
    # Audio 1 of class 0 has equal scores for visual 0 and 2, of which the first is relevant; of its
    # 4 pairs (relevant, irrelevant) one is tied.
    visual = np.array([[1, 0], [2, 1], [1, 0], [0, 1]], np.float32)
    audio = np.array([[0, 1], [1, 0], [3, 1], [1, 1]], np.float32)
    labels = np.array([0, 0, 1, 2])
    pairs = 0.0
    for i, query in enumerate(audio):
        tied, all_pairs = 0, 0
        for j, k in itertools.product(range(4), repeat=2):
            if labels[j] == labels[i] and labels[k] != labels[i]:
                all_pairs += 1
                tied += query @ visual[j] == query @ visual[k]
        pairs += tied / all_pairs / 4

    def product(a, b):
        return a @ b.T

    report = report_of(way, audio, visual, labels, similarity=product)
    assert float(report["audio_to_visual"]["tied_pairs"]) == pytest.approx(pairs, rel=1e-6)
    assert pairs > 0


@EVERY_WAY
def test_queries_without_pairs_do_not_count_for_tied_pairs(way):
    # Clip 2 shares a class with all others, so it has no irrelevant clip; 0 and 1 have one each.
    labels, same = np.array([[1, 0], [0, 1], [1, 1]]), np.ones((3, 2), np.float32)
    assert float(report_of(way, same, same, labels)["mean"]["tied_pairs"]) == pytest.approx(1.0)
    alike = report_of(way, same, same, np.zeros(3, np.int32))
    assert float(alike["mean"]["tied_pairs"]) == 0


# Scores that floats of 32 bits would round


@pytest.mark.parametrize(
    "scores",
    [
        np.array([[2**24, 2**24 + 1, 2**24 + 2]], np.int32),
        np.array([[-(2**31), -(2**31) + 1, 2**31 - 1]], np.int32),
        np.array([[0, 2**32 - 2, 2**32 - 1]], np.uint32),
        np.array([[2**33, 2**60, 2**60 + 1]], np.int64),
        np.array([[1, 2**64 - 2, 2**64 - 1]], np.uint64),
        np.array([[-1e300, 1 + 1e-12, 1 + 2e-12]]),
    ],
)
@pytest.mark.parametrize("masked", [False, True])
def test_scores_of_any_type_are_compared_as_they_are(scores, masked):
    # The smallest score twice, then rising scores. The first item is left out where masked.
    scores = np.concatenate([scores[:, :1], scores], axis=1)
    where = np.array([[not masked, True, True, True]])
    of_smallest = 1 / 3 if masked else (1 / 3 + 1 / 4) / 2  # behind its equal half of the times
    for column, expectation in ((3, 1), (2, 1 / 2), (1, of_smallest)):
        relevance = np.arange(4)[None, :] == column
        value = aa.average_precision(scores, relevance, where=where, ties="expected")
        assert value.dtype == jnp.float32
        assert float(value[0]) == pytest.approx(expectation)
        if scores.dtype.itemsize == 4:
            for way in WAYS.values():
                run = way(aa.average_precision, ties="expected")
                again = run(jnp.asarray(scores), relevance, where=where)
                assert float(again[0]) == pytest.approx(expectation)


def test_scores_of_64_bits_that_jit_would_confuse_are_refused():
    relevance = np.array([[True, False]])
    close, large = np.array([[1.0, 1 + 1e-12]]), np.array([[5, 2**33]])
    for scores in (close, large):
        with pytest.raises(ValueError, match=r"64.*\(1, 2\).*row 0.*outside of jit.*x64"):
            jax.jit(lambda scores=scores: aa.average_precision(scores, relevance))()
    apart = np.array([[0.9, 0.1]])  # neither of them a float32, but still in order
    value = jax.jit(lambda: aa.average_precision(apart, relevance))()
    assert float(value[0]) == 1
    with oracles.x64():
        value = jax.jit(lambda: aa.average_precision(close, relevance))()
        assert float(value[0]) == 1 / 2


def test_the_mean_of_no_queries_raises():
    for run in (aa.mean_average_precision, jax.jit(aa.mean_average_precision)):
        with pytest.raises(ValueError, match=r"at least one query.*\(0, 3\)"):
            run(jnp.ones((0, 3)), jnp.ones((0, 3), bool))
    assert aa.average_precision(jnp.ones((0, 3)), jnp.ones((0, 3), bool)).shape == (0,)
