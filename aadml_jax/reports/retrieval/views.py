"""Numbers behind pictures of a retrieval: what is mistaken for what, what goes well and what badly.

All take NumPy arrays and return NumPy arrays. `scores` [N, M] are those of `aadml_jax.metrics`:
each row is a query, each column a gallery item, and higher ranks first. Labels are class numbers
[N], or multi-hot, bool [N, C].
"""

from typing import Any, NamedTuple

import numpy as np

# Scores that are ranked at a time.
_ENTRIES_AT_ONCE = 2**22


class QueryResults(NamedTuple):
    """One query and what is found first for it.

    Attributes:
      query: its row.
      average_precision: its AP.
      gallery: int64 [T], the first gallery items in ranked order.
      relevant: bool [T], whether each of them is relevant.
    """

    query: int
    average_precision: float
    gallery: np.ndarray
    relevant: np.ndarray


def retrieved_class_shares(
    scores: np.ndarray,
    query_labels: np.ndarray,
    gallery_labels: np.ndarray,
    num_classes: int,
) -> np.ndarray:
    """The share of each class among the first results of each query.

    As many results count as the gallery has items of the query's class. Averaged over the queries
    of each class (`mean_by_class`), the shares are a confusion matrix of retrieval: a perfect
    ranking gives the identity matrix, and the diagonal is the R-precision of each class. Of equal
    scores it is the expectation over their orders. Queries may be scored in parts.

    Args:
      scores: [N, M].
      query_labels: class numbers [N], 0 … C − 1.
      gallery_labels: class numbers [M].
      num_classes: C.

    Returns:
      float64 [N, C], whose rows add up to 1; NaN for a query whose class the gallery lacks.

    Raises:
      ValueError: for multi-hot labels, of which no result belongs to one class alone, for shapes
        that do not fit, labels out of range or NaN among the scores.
    """
    scores = _as_scores(scores)
    queries, gallery = np.asarray(query_labels), np.asarray(gallery_labels)
    if queries.ndim == 2 or gallery.ndim == 2:
        raise ValueError(
            "retrieved classes need one class a clip; got multi-hot labels of shapes "
            f"{queries.shape} and {gallery.shape}"
        )
    if (len(queries), len(gallery)) != scores.shape:
        raise ValueError(
            f"scores {scores.shape} need labels of as many queries and gallery items; got "
            f"{queries.shape} and {gallery.shape}"
        )
    for labels in (queries, gallery):
        _require_classes(labels, num_classes)
    sizes = np.bincount(gallery, minlength=num_classes)
    shares = np.full((len(scores), num_classes), np.nan)
    rows_at_once = max(1, _ENTRIES_AT_ONCE // max(1, scores.shape[1]))
    for first in range(0, len(scores), rows_at_once):
        order = np.argsort(-scores[first : first + rows_at_once], axis=1, kind="stable")
        for row, ranked in enumerate(order, start=first):
            if depth := int(sizes[queries[row]]):
                items, weights = _with_ties(scores[row], ranked, depth)
                counts = np.bincount(gallery[items], weights=weights, minlength=num_classes)
                shares[row] = counts / depth
    return shares


def _with_ties(scores: np.ndarray, ranked: np.ndarray, depth: int) -> tuple[np.ndarray, np.ndarray]:
    """The items that can be among the first of `ranked`, and the probability of each to be so.

    Scores 3 2 2 1 to a depth of 2: the first three items, with probabilities 1, 1/2 and 1/2.
    """
    cut_off = scores[ranked[depth - 1]]
    before = np.count_nonzero(scores > cut_off)
    size = np.count_nonzero(scores == cut_off)
    share = (depth - before) / size
    return ranked[: before + size], np.concatenate([np.ones(before), np.full(size, share)])


def per_class_map(
    average_precisions: np.ndarray, labels: np.ndarray, num_classes: int
) -> np.ndarray:
    """Mean AP of the queries of each class; of several classes a query counts in each of them.

    Args:
      average_precisions: [N], of each query.
      labels: class numbers [N] or multi-hot, bool [N, C].
      num_classes: C.

    Returns:
      float64 [C], NaN for a class without queries.

    Raises:
      ValueError: for shapes that do not fit or labels out of range.
    """
    average_precisions = np.asarray(average_precisions)
    if average_precisions.ndim != 1:
        raise ValueError(f"one AP a query [N] is needed; got {average_precisions.shape}")
    return mean_by_class(average_precisions, labels, num_classes)


def mean_by_class(values: np.ndarray, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Mean of the values of each class's rows; rows that hold NaN are left out.

    Args:
      values: [N] or [N, K].
      labels: class numbers [N] or multi-hot, bool [N, C]; a row counts in each of its classes.
      num_classes: C.

    Returns:
      float64 [C] or [C, K], NaN for a class without rows.

    Raises:
      ValueError: for shapes that do not fit or labels out of range.
    """
    values, labels = np.asarray(values, np.float64), np.asarray(labels)
    if len(values) != len(labels):
        raise ValueError(f"values {values.shape} and labels {labels.shape} differ in their rows")
    _require_classes(labels, num_classes)
    rows, classes = np.nonzero(labels) if labels.ndim == 2 else (np.arange(len(labels)), labels)
    is_known = ~np.any(np.isnan(values).reshape(len(values), -1), axis=1)[rows]
    rows, classes = rows[is_known], classes[is_known]
    totals = np.zeros((num_classes, *values.shape[1:]))
    np.add.at(totals, classes, values[rows])
    counts = np.bincount(classes, minlength=num_classes).astype(np.float64)
    counts[counts == 0] = np.nan
    return totals / counts.reshape(-1, *(1,) * (values.ndim - 1))


def best_and_worst_rows(
    average_precisions: np.ndarray, *, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the highest AP, best first, and of the lowest, worst first.

    Args:
      average_precisions: [N].
      count: most rows of either kind, at least 1.

    Returns:
      int64, at most `count` each; rows of equal AP rise.

    Raises:
      ValueError: for another shape, a count below 1 or NaN.
    """
    values = np.asarray(average_precisions, np.float64)
    if values.ndim != 1:
        raise ValueError(f"one AP a query [N] is needed; got {values.shape}")
    if count < 1:
        raise ValueError(f"count must be at least 1; got {count}")
    if np.isnan(values).any():
        raise ValueError(f"average precisions of shape {values.shape} hold NaN")
    best, worst = (np.argsort(order, kind="stable") for order in (-values, values))
    return best[:count], worst[:count]


def first_results(
    query: int,
    average_precision: float,
    scores: np.ndarray,
    relevance: np.ndarray,
    *,
    top: int = 10,
) -> QueryResults:
    """What one query finds first; equal scores rank in gallery order.

    Args:
      query: its row.
      average_precision: its AP.
      scores: [M], of the gallery's items.
      relevance: bool [M].
      top: most results, at least 1.

    Raises:
      ValueError: for a `top` below 1.
    """
    if top < 1:
        raise ValueError(f"top must be at least 1; got {top}")
    gallery = np.argsort(-scores, kind="stable")[:top]
    return QueryResults(query, float(average_precision), gallery, relevance[gallery])


def _as_scores(scores: Any) -> np.ndarray:
    scores = np.asarray(scores)
    if scores.ndim != 2:
        raise ValueError(f"scores must be a matrix [N, M]; got shape {scores.shape}")
    if np.isnan(scores).any():
        raise ValueError(f"scores of shape {scores.shape} hold NaN")
    return scores if np.issubdtype(scores.dtype, np.floating) else scores.astype(np.float64)


def _require_classes(labels: np.ndarray, num_classes: int) -> None:
    if labels.ndim == 2 and labels.shape[1] == num_classes:
        return
    if labels.ndim != 1:
        raise ValueError(f"labels [N] or [N, {num_classes}] are needed; got {labels.shape}")
    if len(labels) and not 0 <= labels.min() <= labels.max() < num_classes:
        raise ValueError(
            f"class numbers must be from 0 to {num_classes - 1}; got {labels.min()} to "
            f"{labels.max()}"
        )
