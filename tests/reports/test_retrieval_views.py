"""Retrieved classes, MAP by class, best and worst queries: against loops and hand-made cases."""

import itertools

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, confusion_matrix

from aadml_jax.reports.retrieval import views


def random_case(seed, n=23, m=31, num_classes=4):
    """Scores without ties [n, m], and labels of queries and gallery in which each class occurs."""
    rng = np.random.default_rng(seed)
    queries, gallery = (rng.permutation(np.arange(size) % num_classes) for size in (n, m))
    return rng.permutation(n * m).reshape(n, m) / (n * m), queries, gallery


def ranked(scores):
    """Gallery items of one query, the best first; of equal ones the earlier first."""
    return sorted(range(len(scores)), key=lambda item: (-scores[item], item))


def retrieved_classes(scores, query_labels, gallery_labels, num_classes):
    """The shares averaged over the queries of each class, as the sections of a report do it."""
    shares = views.retrieved_class_shares(scores, query_labels, gallery_labels, num_classes)
    return views.mean_by_class(shares, query_labels, num_classes)


def counted_shares(scores, queries, gallery, num_classes):
    """Shares of the classes among each query's first results, ties in gallery order."""
    shares = np.zeros((len(queries), num_classes))
    for row, query in enumerate(queries):
        depth = list(gallery).count(query)
        for item in ranked(scores[row])[:depth]:
            shares[row, gallery[item]] += 1 / depth
    return shares


def test_retrieved_classes_are_the_counted_ones():
    scores, queries, gallery = random_case(0)
    shares = counted_shares(scores, queries, gallery, 4)
    expected = [shares[queries == number].mean(axis=0) for number in range(4)]
    result = retrieved_classes(scores, queries, gallery, 4)
    np.testing.assert_allclose(result, expected, rtol=1e-12)
    np.testing.assert_allclose(result.sum(axis=1), 1, rtol=1e-12)


def test_with_one_item_a_class_it_is_scikit_learns_confusion_of_a_nearest_neighbour_classifier():
    scores, queries, gallery = random_case(1, n=40, m=4)
    found = gallery[np.argmax(scores, axis=1)]
    expected = confusion_matrix(queries, found, normalize="true")
    np.testing.assert_allclose(retrieved_classes(scores, queries, gallery, 4), expected, rtol=1e-12)


def test_a_perfect_ranking_gives_the_identity():
    _, queries, gallery = random_case(2)
    scores = (queries[:, None] == gallery).astype(float)
    np.testing.assert_array_equal(retrieved_classes(scores, queries, gallery, 4), np.identity(4))


def test_items_of_equal_scores_share_the_last_places_whatever_the_sign_of_zero():
    scores = np.array([[0.0, -0.0, 0.0, -1.0, 0.0]])
    # Class 1 has two items, so two of the four at zero are found: each with probability 1/2.
    result = retrieved_classes(scores, np.array([1]), np.array([0, 1, 2, 1, 2]), 3)
    np.testing.assert_array_equal(result[1], [0.25, 0.25, 0.5])


def test_ties_are_the_mean_over_all_orders_of_the_gallery():
    rng = np.random.default_rng(8)
    scores = rng.integers(0, 3, (4, 6)) * 0.5
    scores[scores == 0] *= -1  # −0.0 is a tie of 0.0
    scores[0, 0] = 0.0
    queries, gallery = np.array([0, 1, 2, 1]), np.array([0, 1, 1, 2, 0, 1])
    expected = np.mean(
        [
            counted_shares(scores[:, order], queries, gallery[order], 3)
            for order in map(list, itertools.permutations(range(6)))
        ],
        axis=0,
    )
    shares = views.retrieved_class_shares(scores, queries, gallery, 3)
    np.testing.assert_allclose(shares, expected, rtol=1e-12)


def test_classes_without_queries_or_gallery_items_have_no_row():
    scores = np.array([[0.3, 0.2], [0.1, 0.2]])
    result = retrieved_classes(scores, np.array([0, 2]), np.array([0, 1]), 3)
    np.testing.assert_array_equal(result, [[1, 0, 0], [np.nan] * 3, [np.nan] * 3])


def test_parts_of_the_queries_give_what_all_give(monkeypatch):
    scores, queries, gallery = random_case(3)
    whole = views.retrieved_class_shares(scores, queries, gallery, 4)
    monkeypatch.setattr(views, "_ENTRIES_AT_ONCE", 100)  # three rows at a time
    np.testing.assert_array_equal(views.retrieved_class_shares(scores, queries, gallery, 4), whole)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"query_labels": np.eye(3, dtype=bool)}, "one class a clip"),
        ({"scores": np.full((3, 5), np.nan)}, "NaN"),
        ({"scores": np.zeros(3)}, r"matrix \[N, M\]"),
        ({"query_labels": np.array([0, 1])}, "as many queries"),
        ({"gallery_labels": np.array([0, 1, 2, 3, 0])}, "from 0 to 2; got 0 to 3"),
        ({"query_labels": np.array([0, -1, 0])}, "got -1 to 0"),
    ],
)
def test_retrieved_classes_refuse_what_does_not_fit(changes, said):
    arguments = {
        "scores": np.zeros((3, 5)),
        "query_labels": np.array([0, 1, 2]),
        "gallery_labels": np.array([0, 1, 2, 0, 1]),
        "num_classes": 3,
    }
    with pytest.raises(ValueError, match=said):
        retrieved_classes(**{**arguments, **changes})


def test_per_class_map_is_scikit_learns_ap_averaged_over_the_class():
    scores, queries, gallery = random_case(4)
    values = [
        average_precision_score(gallery == label, row)
        for label, row in zip(queries, scores, strict=True)
    ]
    expected = [
        np.mean([v for v, q in zip(values, queries, strict=True) if q == c]) for c in range(4)
    ]
    result = views.per_class_map(np.array(values), queries, 5)
    np.testing.assert_allclose(result, [*expected, np.nan], rtol=1e-12)


def test_a_query_of_several_classes_counts_in_each():
    labels = np.array([[1, 1, 0, 0], [0, 1, 0, 0], [0, 1, 1, 0]], bool)
    result = views.per_class_map(np.array([0.5, 0.25, 0.75]), labels, 4)
    np.testing.assert_allclose(result, [0.5, (0.5 + 0.25 + 0.75) / 3, 0.75, np.nan])


def test_per_class_map_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="differ in their rows"):
        views.per_class_map(np.zeros(3), np.zeros(4, int), 2)
    with pytest.raises(ValueError, match="one AP a query"):
        views.per_class_map(np.zeros((3, 1)), np.zeros(3, int), 2)
    with pytest.raises(ValueError, match=r"\[N, 2\]"):
        views.per_class_map(np.zeros(3), np.zeros((3, 4), bool), 2)


def test_best_and_worst_are_those_of_a_sorted_list():
    values = np.round(np.random.default_rng(6).random(23), 1)  # with ties
    best, worst = views.best_and_worst_rows(values, count=6)
    assert best.tolist() == sorted(range(23), key=lambda row: (-values[row], row))[:6]
    assert worst.tolist() == sorted(range(23), key=lambda row: (values[row], row))[:6]
    assert len(set(values[worst])) < 6


def test_the_first_results_are_those_of_a_sorted_list_ties_in_gallery_order():
    scores = np.round(np.random.default_rng(5).random(31), 1)  # with ties
    relevance = np.arange(31) % 3 == 0
    first = views.first_results(7, 0.25, scores, relevance, top=20)
    assert (first.query, first.average_precision) == (7, 0.25)
    assert first.gallery.tolist() == ranked(scores)[:20]
    assert first.relevant.tolist() == [item % 3 == 0 for item in first.gallery]


@pytest.mark.parametrize(
    ("values", "count", "said"),
    [
        (np.ones(2), 0, "count must be at least 1"),
        (np.array([1, np.nan]), 1, "hold NaN"),
        (np.zeros((3, 1)), 1, r"one AP a query \[N\] is needed; got \(3, 1\)"),
    ],
)
def test_best_and_worst_refuse_what_does_not_fit(values, count, said):
    with pytest.raises(ValueError, match=said):
        views.best_and_worst_rows(values, count=count)


def test_no_results_at_all_are_refused():
    with pytest.raises(ValueError, match="top must be at least 1"):
        views.first_results(0, 1.0, np.zeros(3), np.ones(3, bool), top=0)
