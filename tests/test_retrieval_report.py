"""The report of N queries and M items, against float64 loops over each query's ranking."""

import functools
import json
import statistics

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import aadml_jax as aa
from aadml_jax import _host_ranking

KS = (1, 3, 7)
# name in the report, name per query, oracle of a row
WHOLE = (
    ("map", "average_precision", oracles.average_precision_row),
    ("prefix_map", "prefix_average_precision", oracles.prefix_average_precision_row),
    ("map_at_r", "average_precision_at_r", oracles.average_precision_at_r_row),
    ("r_precision", "r_precision", oracles.r_precision_row),
    ("mrr", "reciprocal_rank", oracles.reciprocal_rank_row),
    ("mean_rank", "first_hit_rank", oracles.first_hit_rank_row),
)
AT_K = (
    ("precision_at_k", oracles.precision_at_row),
    ("hit_rate_at_k", oracles.recall_at_row),
    ("fraction_recall_at_k", oracles.fraction_recall_at_row),
    ("ndcg_at_k", oracles.ndcg_at_row),
)


@pytest.fixture
def way(request, monkeypatch):
    """Ranked on the host or, as on accelerators, in XLA."""
    if request.param == "xla":
        monkeypatch.setattr(_host_ranking, "is_on_host", lambda *_: False)
    return request.param


EVERY_WAY = pytest.mark.parametrize("way", ["host", "xla"], indirect=True)


def sets(seed=0, n=7, m=19, d=4):
    """Queries, gallery, and the float64 cosines of all pairs; no two of a query are equal."""
    rng = np.random.default_rng(seed)
    queries, gallery = rng.normal(size=(n, d)), rng.normal(size=(m, d)) + 0.2
    scores = oracles.pairwise(oracles.cosine, queries, gallery)
    return queries.astype(np.float32), gallery.astype(np.float32), scores


def per_query(scores, relevance, where=None, grades=None, ks=KS):
    """Values of each query, by the names of the report."""
    values = {name: oracles.by_row(oracle, scores, relevance, where) for _, name, oracle in WHOLE}
    for name, oracle in AT_K:
        values[name] = {k: oracles.by_row(oracle, scores, relevance, where, k=k) for k in ks}
    if grades is not None:
        where = np.ones(scores.shape, bool) if where is None else where
        values["ndcg_at_k"] = {
            k: np.array(
                [
                    oracles.ndcg_at_row(list(row[kept]), list(of_row[kept]), k=k)
                    for row, of_row, kept in zip(scores, grades, where, strict=True)
                ]
            )
            for k in ks
        }
    return values


def assert_means(report, values, rows=slice(None)):
    """Every mean of the report is that of the queries' values."""
    for in_report, name, _ in WHOLE:
        assert report[in_report] == pytest.approx(np.mean(values[name][rows]), rel=1e-5), in_report
    median = statistics.median(values["first_hit_rank"][rows].tolist())
    assert report["median_rank"] == pytest.approx(median)
    for name, _ in AT_K:
        for k, of_queries in values[name].items():
            assert report[name][k] == pytest.approx(np.mean(of_queries[rows]), rel=1e-5), (name, k)


@pytest.mark.parametrize("block_size", [3, 1024])
@EVERY_WAY
def test_all_metrics_equal_the_float64_loops(way, block_size):
    queries, gallery, scores = sets()
    relevance = np.random.default_rng(1).random(scores.shape) < 0.3
    relevance[2] = False
    report = aa.retrieval_report(
        queries, gallery, relevance=relevance, ks=KS, block_size=block_size
    )
    assert_means(report, per_query(scores, relevance))
    assert (report["num_queries"], report["num_without_relevant"]) == (7, 1)
    assert report["tied_pairs"] == 0


@EVERY_WAY
def test_where_leaves_items_out(way):
    queries, gallery, scores = sets(2)
    rng = np.random.default_rng(3)
    relevance, where = rng.random(scores.shape) < 0.3, rng.random(scores.shape) < 0.6
    gallery[:, 0] = np.where(np.arange(19) == 4, np.nan, gallery[:, 0])
    where[:, 4] = False  # not even a NaN of theirs matters
    report = aa.retrieval_report(queries, gallery, relevance=relevance, where=where, ks=KS)
    assert_means(report, per_query(scores, relevance, where))
    of_all = aa.retrieval_report(queries, gallery, relevance=relevance, where=where[0], ks=KS)
    assert_means(of_all, per_query(scores, relevance, np.broadcast_to(where[0], scores.shape)))


@EVERY_WAY
def test_labels_may_be_class_numbers_or_multi_hot(way):
    queries, gallery, scores = sets(4)
    rng = np.random.default_rng(4)
    classes, of_gallery = rng.integers(0, 4, 7), rng.integers(0, 3, 19)
    report = aa.retrieval_report(
        queries, gallery, query_labels=classes, gallery_labels=of_gallery, ks=KS
    )
    assert_means(report, per_query(scores, classes[:, None] == of_gallery[None, :]))
    several, of_gallery = rng.random((7, 5)) < 0.4, rng.random((19, 5)) < 0.4
    shared = several.astype(int) @ of_gallery.T.astype(int)
    options = {"query_labels": several, "gallery_labels": of_gallery, "ks": KS}
    report = aa.retrieval_report(queries, gallery, **options)
    assert_means(report, per_query(scores, shared > 0))
    report = aa.retrieval_report(queries, gallery, threshold=2, **options)
    assert_means(report, per_query(scores, shared >= 2, grades=shared))
    assert np.any(shared == 1) and np.any(shared >= 2)


@EVERY_WAY
def test_grades_are_relevant_from_the_threshold_on_and_the_gains_of_ndcg(way):
    queries, gallery, scores = sets(5)
    grades = np.random.default_rng(5).integers(0, 5, scores.shape) / 2
    where = np.random.default_rng(6).random(scores.shape) < 0.7
    options = {"relevance": grades, "threshold": 1.5, "ks": KS}
    report = aa.retrieval_report(queries, gallery, where=where, **options)
    assert_means(report, per_query(scores, grades >= 1.5, where, grades))
    report = aa.retrieval_report(queries, gallery, per_query=True, block_size=2, **options)
    assert_means(report, per_query(scores, grades >= 1.5, grades=grades))


@EVERY_WAY
def test_exclude_self_takes_the_query_out_of_its_gallery(way):
    queries, _, _ = sets(7, n=11)
    scores, labels = oracles.pairwise(oracles.cosine, queries, queries), np.arange(11) % 3
    report = aa.retrieval_report(
        queries,
        queries,
        query_labels=labels,
        gallery_labels=labels,
        exclude_self=True,
        where=np.arange(11) != 5,
        ks=KS,
        block_size=4,
    )
    others = ~np.eye(11, dtype=bool) & (np.arange(11) != 5)[None, :]
    assert_means(report, per_query(scores, labels[:, None] == labels[None, :], others))


@EVERY_WAY
def test_ties_are_taken_by_their_expectation_or_in_gallery_order(way):
    # One of four equal items is relevant, the second.
    relevance = np.array([[False, True, False, False]])
    ones = {"queries": np.ones((1, 2)), "gallery": np.ones((4, 2)), "relevance": relevance}
    report = aa.retrieval_report(**ones, ks=(1, 2))
    assert report["mrr"] == pytest.approx((1 + 1 / 2 + 1 / 3 + 1 / 4) / 4)
    assert report["mean_rank"] == report["median_rank"] == pytest.approx(2.5)
    assert report["hit_rate_at_k"] == pytest.approx({1: 1 / 4, 2: 1 / 2})
    assert report["ndcg_at_k"] == pytest.approx({1: 1 / 4, 2: (1 + 1 / np.log2(3)) / 4})
    assert report["tied_pairs"] == 1
    report = aa.retrieval_report(**ones, ks=(1, 2), ties="stable")
    assert (report["mrr"], report["mean_rank"]) == (1 / 2, 2)
    assert report["hit_rate_at_k"] == {1: 0, 2: 1}


def test_values_of_each_query_are_those_of_the_metrics_of_the_scores():
    queries, gallery, scores = sets(8)
    labels, of_gallery = np.arange(7) % 4, np.arange(19) % 5
    report = aa.retrieval_report(
        queries, gallery, query_labels=labels, gallery_labels=of_gallery, ks=KS, per_query=True
    )
    relevance = labels[:, None] == of_gallery[None, :]
    values = per_query(scores, relevance)
    rows = report["per_query"]
    assert rows["num_relevant"] == relevance.sum(axis=1).tolist()
    assert set(rows) == set(values) | {"num_relevant"}
    for _, name, _ in WHOLE:
        assert rows[name] == pytest.approx(values[name], rel=1e-5)
        assert rows[name] == pytest.approx(
            np.asarray(getattr(aa, name)(scores, relevance)), rel=1e-5
        )
    for name, _ in AT_K:
        for k in KS:
            assert rows[name][k] == pytest.approx(values[name][k], rel=1e-5)


def test_classes_have_reports_of_their_queries():
    queries, gallery, scores = sets(9)
    labels, of_gallery = np.array([5, 0, 5, 5, 2, 2, 0]), np.arange(19) % 6
    report = aa.retrieval_report(
        queries, gallery, query_labels=labels, gallery_labels=of_gallery, ks=KS, per_class=True
    )
    values = per_query(scores, labels[:, None] == of_gallery[None, :])
    assert list(report["per_class"]) == [0, 2, 5]
    for c, of_class in report["per_class"].items():
        assert of_class["num_queries"] == np.sum(labels == c)
        assert_means(of_class, values, labels == c)

    several = np.array(
        [[1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]]
    )
    relevance = np.random.default_rng(9).random(scores.shape) < 0.3
    report = aa.retrieval_report(
        queries, gallery, relevance=relevance, query_labels=several, ks=KS, per_class=True
    )
    values = per_query(scores, relevance)
    assert list(report["per_class"]) == [0, 1]  # no query is of the last class
    for c, of_class in report["per_class"].items():
        assert_means(of_class, values, several[:, c] == 1)


def test_numbers_are_plain_and_json_takes_them():
    queries, gallery, _ = sets(10)
    report = aa.retrieval_report(
        queries,
        gallery,
        query_labels=np.arange(7) % 2,
        gallery_labels=np.arange(19) % 2,
        per_query=True,
        per_class=True,
    )
    assert {type(leaf) for leaf in jax.tree.leaves(report)} == {int, float}
    assert list(report["hit_rate_at_k"]) == [1, 5, 10]
    again = json.loads(json.dumps(report))
    assert again["map"] == report["map"] and again["hit_rate_at_k"]["5"] > 0


def test_similarities_by_name_and_of_ones_own():
    queries, gallery, _ = sets(11)
    relevance = np.random.default_rng(11).random((7, 19)) < 0.3
    products = queries.astype(np.float64) @ gallery.T.astype(np.float64)
    report = aa.retrieval_report(
        queries, gallery, relevance=relevance, similarity=lambda a, b: a @ b.T, ks=KS
    )
    assert_means(report, per_query(products, relevance))
    logs = np.asarray(aa.posterior_similarity(queries, gallery))
    report = aa.retrieval_report(
        queries, gallery, relevance=relevance, similarity="posterior", ks=KS
    )
    assert_means(report, per_query(logs, relevance))


@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
@EVERY_WAY
def test_rows_split_over_devices_give_the_same_report(way, kind):
    mesh = jax.make_mesh((4,), ("rows",), axis_types=(getattr(jax.sharding.AxisType, kind),))
    queries, gallery, scores = sets(12, n=8, m=20)
    labels, of_gallery = np.arange(8, dtype=np.int32) % 3, np.arange(20, dtype=np.int32) % 3
    where = np.arange(20) != 3
    arrays = [
        jax.device_put(array, NamedSharding(mesh, P("rows")))
        for array in (queries, gallery, labels, of_gallery)
    ]
    report = aa.retrieval_report(
        *arrays[:2], query_labels=arrays[2], gallery_labels=arrays[3], ks=KS, where=where
    )
    relevance = labels[:, None] == of_gallery[None, :]
    assert_means(report, per_query(scores, relevance, np.broadcast_to(where, scores.shape)))


def test_cross_modal_report_has_the_numbers_of_two_reports():
    audio, visual, _ = sets(13, n=12, m=12)
    labels = np.arange(12) % 4
    both = aa.cross_modal_report(audio, visual, labels, ks=KS)
    for side, arrays in (
        ("audio_to_visual", (audio, visual)),
        ("visual_to_audio", (visual, audio)),
    ):
        one = aa.retrieval_report(*arrays, query_labels=labels, gallery_labels=labels, ks=KS)
        for name in ("map", "prefix_map", "tied_pairs"):
            assert float(both[side][name]) == pytest.approx(one[name], rel=1e-6)
        for k in KS:
            assert float(both[side]["precision_at_k"][k]) == pytest.approx(
                one["precision_at_k"][k], rel=1e-6
            )
            assert float(both[side]["recall_at_k"][k]) == pytest.approx(
                one["hit_rate_at_k"][k], rel=1e-6
            )


@pytest.mark.parametrize("wrong", ["queries", "gallery"])
@EVERY_WAY
def test_a_row_with_nan_is_named(way, wrong):
    queries, gallery, _ = sets(14)
    arrays = {"queries": queries, "gallery": gallery}
    arrays[wrong][5, 1] = np.nan
    shape = r"\(7, 4\)" if wrong == "queries" else r"\(19, 4\)"
    with pytest.raises(ValueError, match=rf"row 5 of {wrong} of shape {shape} holds NaN"):
        aa.retrieval_report(**arrays, relevance=np.ones((7, 19), bool))


@pytest.mark.parametrize("of_each_query", [False, True])
@EVERY_WAY
def test_of_rows_with_nan_one_that_is_in_the_gallery_is_named(way, of_each_query):
    queries, gallery, _ = sets(14)
    gallery[[2, 8]] = np.nan
    where = np.arange(19) != 2
    where = np.tile(where, (7, 1)) if of_each_query else where
    with pytest.raises(ValueError, match=r"row 8 of gallery of shape \(19, 4\) holds NaN"):
        aa.retrieval_report(queries, gallery, relevance=np.ones((7, 19), bool), where=where)


class ForeignArray:
    """What other libraries' arrays are: NumPy reads it, but its dtype is none of NumPy's."""

    dtype = "theirs.bool"

    def __init__(self, values):
        self.values = values

    def __array__(self, dtype=None, copy=None):
        return self.values


def test_relevance_may_be_an_array_of_another_library():
    queries, gallery, _ = sets(15)
    relevance = np.random.default_rng(0).random((7, 19)) < 0.4
    ours = aa.retrieval_report(queries, gallery, relevance=relevance)
    theirs = aa.retrieval_report(queries, gallery, relevance=ForeignArray(relevance))
    assert theirs == ours


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"relevance": None}, "either relevance or both.*got none of them"),
        ({"gallery_labels": np.zeros(4, int)}, "got relevance and gallery_labels"),
        ({"relevance": None, "query_labels": np.zeros(3, int)}, "got query_labels"),
        ({"relevance": np.ones((3, 5), bool)}, r"relevance has shape \(3, 5\).*\(3, 4\)"),
        ({"relevance": np.ones((3, 4))}, r"must be bool; got float64.*pass the threshold"),
        ({"relevance": np.full((3, 4), 2)}, "relevance.*must hold 0 and 1 alone"),
        ({"relevance": -np.ones((3, 4)), "threshold": 1}, r"at least 0; got -1.0 at \[0, 0\]"),
        ({"threshold": 0}, "threshold must be above 0; got 0"),
        ({"threshold": np.nan}, "threshold must be .*nan"),
        ({"query_labels": np.zeros(4, int)}, r"query_labels have shape \(4,\) for 3 rows"),
        (
            {
                "relevance": None,
                "query_labels": np.zeros(3, int),
                "gallery_labels": np.zeros(4, int),
                "threshold": 2,
            },
            r"multi-hot labels; query_labels have shape \(3,\)",
        ),
        (
            {
                "relevance": None,
                "query_labels": np.ones((3, 2), int),
                "gallery_labels": np.ones((4, 3), int),
            },
            r"\(3, 2\) and \(4, 3\)",
        ),
        ({"per_class": True}, "per_class needs query_labels"),
        ({"exclude_self": True}, r"exclude_self.*\(3, 2\) and \(4, 2\)"),
        ({"where": np.ones((4, 3), bool)}, r"where has shape \(4, 3\)"),
        ({"where": np.ones(3, bool)}, r"where has shape \(3,\)"),
        ({"ks": (1, 5)}, "k = 5 exceeds the gallery of 4"),
        ({"ties": "random"}, "ties.*'random'"),
        ({"similarity": "dot"}, r"cosine.*'dot'.*\(3, 2\)"),
        ({"queries": np.ones((0, 2))}, r"\(0, 2\) and \(4, 2\)"),
        ({"gallery": np.ones(4)}, r"\(3, 2\) and \(4,\)"),
        ({"gallery": np.ones((4, 3))}, r"\(3, 2\) and \(4, 3\)"),
        ({"block_size": 0}, "block_size"),
    ],
)
def test_mistakes_raise_an_error_that_prints_them(change, message):
    arguments = {
        "queries": np.ones((3, 2)),
        "gallery": np.ones((4, 2)),
        "relevance": np.ones((3, 4), bool),
        "ks": (1,),
    }
    with pytest.raises(ValueError, match=message):
        aa.retrieval_report(**(arguments | change))


@pytest.mark.parametrize("floating", ["bfloat16", "float32"])
@EVERY_WAY
def test_types_of_arrays_need_no_implicit_promotion(way, floating):
    queries, gallery, _ = sets(15)
    queries, gallery = jnp.asarray(queries, floating), jnp.asarray(gallery, floating)
    grades = np.random.default_rng(15).integers(0, 3, (7, 19))
    where = np.arange(19, dtype=np.uint8) % 3 > 0
    scores = np.asarray(aa.cosine_similarity(queries, gallery))
    with jax.numpy_dtype_promotion("strict"):
        report = aa.retrieval_report(
            queries, gallery, relevance=grades, threshold=2, where=where, ks=KS, ties="stable"
        )
    kept = np.broadcast_to(where, grades.shape)
    assert_means(report, per_query(scores, grades >= 2, kept, grades))


def test_traced_arrays_are_refused():
    report = functools.partial(aa.retrieval_report, relevance=np.ones((3, 4), bool), ks=(1,))
    with pytest.raises(ValueError, match="outside of jit"):
        jax.jit(report)(jnp.ones((3, 2)), jnp.ones((4, 2)))
