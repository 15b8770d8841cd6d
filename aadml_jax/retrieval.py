"""All metrics of a retrieval: N queries, a gallery of M items, relevance of any kind."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from aadml_jax import _host_ranking, _measures, _query_values
from aadml_jax._arrays import (
    Array,
    ArrayLike,
    LabelsLike,
    as_given,
    as_grades,
    as_labels,
    as_mask,
    check_scalar,
    nan_message,
)
from aadml_jax._query_values import Pairs
from aadml_jax._sharding import gathered
from aadml_jax.similarity import as_similarity, same_label, shared_labels


class _Queries(NamedTuple):
    """Rows of queries; what was not given is None."""

    embeddings: Array
    labels: Array | None
    relevance: Array | None
    where: Array | None


class _Gallery(NamedTuple):
    """Rows of the gallery; what was not given is None."""

    embeddings: Array
    labels: Array | None
    where: Array | None


class _Compare(NamedTuple):
    """How a block of queries is compared with the gallery."""

    similarity: Callable[[Array, Array], Array]
    threshold: float | None
    exclude_self: bool

    def __call__(self, queries: _Queries, rows: Array, gallery: _Gallery) -> Pairs:
        scores = self.similarity(queries.embeddings, gallery.embeddings)
        where = queries.where
        if gallery.where is not None:
            where = jnp.broadcast_to(gallery.where[None, :], scores.shape)
        if self.exclude_self:
            items = jnp.arange(scores.shape[1], dtype=jnp.int32)
            others = rows[:, None] != items[None, :]
            where = others if where is None else where & others
        if self.threshold is None:
            relevance = queries.relevance
            if queries.labels is not None and gallery.labels is not None:
                relevance = same_label(queries.labels, gallery.labels)
            assert relevance is not None  # one of the two is there
            return Pairs(scores, relevance, where)
        grades = queries.relevance
        if queries.labels is not None and gallery.labels is not None:
            grades = shared_labels(queries.labels, gallery.labels)
        assert grades is not None
        return Pairs(scores, grades >= self.threshold, where, grades)


_OF_RANKING = ("average_precision_at_r", "r_precision", "reciprocal_rank", "first_hit_rank")

_AT_K = ("precision_at_k", "hit_rate_at_k", "fraction_recall_at_k", "ndcg_at_k")


def _wanted(ks: tuple[int, ...], ties: str, has_grades: bool) -> _query_values.Wanted:
    metrics: dict[str, Any] = {
        "average_precision": _measures.average_precision(ties),
        "prefix_average_precision": _measures.PREFIX_AVERAGE_PRECISION,
        **{name: _measures.of_whole_ranking(name, ties) for name in _OF_RANKING},
        "precision_at_k": {k: _measures.precision_at(k, ties) for k in ks},
        "hit_rate_at_k": {k: _measures.recall_at(k, ties) for k in ks},
        "fraction_recall_at_k": {k: _measures.fraction_recall_at(k, ties) for k in ks},
        "num_relevant": _measures.NUM_RELEVANT,
        "tied_pairs": _measures.TIED_PAIRS,
        "has_pairs": _measures.HAS_PAIRS,
    }
    if not has_grades:
        metrics["ndcg_at_k"] = {k: _measures.ndcg_at(k, ties) for k in ks}
    return _query_values.Wanted(metrics, ks if has_grades else (), ties)


def retrieval_report(
    queries: ArrayLike,
    gallery: ArrayLike,
    *,
    relevance: ArrayLike | None = None,
    query_labels: LabelsLike | None = None,
    gallery_labels: LabelsLike | None = None,
    threshold: float | None = None,
    similarity: str | Callable[[Array, Array], Array] = "cosine",
    ks: Sequence[int] = (1, 5, 10),
    exclude_self: bool = False,
    where: ArrayLike | None = None,
    ties: str = "expected",
    per_query: bool = False,
    per_class: bool = False,
    block_size: int = 1024,
) -> dict[str, Any]:
    """All metrics of ranking a gallery for each query, from embeddings, as plain numbers.

    Each query is ranked once for all metrics, in blocks: memory is O(block_size × M), beside what
    is passed. What is relevant is said by exactly one of

    - `relevance`, bool [N, M]; or, with `threshold`, grades [N, M], of which those from it on make
      an item relevant;
    - `query_labels` and `gallery_labels`: relevant is what shares a class; with `threshold`, what
      shares at least as many classes, of multi-hot labels.

    Grades, or the numbers of shared classes, are the gains of nDCG, those below the threshold too.

    Args:
      queries: embeddings [N, D], N ≥ 1.
      gallery: embeddings [M, D], M ≥ 1.
      relevance: bool [N, M], or grades ≥ 0 [N, M] with a threshold.
      query_labels: class numbers [N] or multi-hot [N, C]. Beside `relevance` they only name the
        classes of `per_class`.
      gallery_labels: labels of the gallery in the same form, [M] or [M, C].
      threshold: the least grade, above 0, that is relevant.
      similarity: `"cosine"`, `"posterior"` (of logits), or a function
        (queries [B, D], gallery [M, D]) -> scores [B, M].
      ks: cut-offs, each at most M.
      exclude_self: whether item i is no part of query i's gallery, as for one set against itself.
      where: which items belong to the gallery, bool [M] for all queries or [N, M]; default all.
      ties: `"expected"`, the expectation over the orders of equal scores, or `"stable"`, the order
        of the gallery; see `average_precision`. "prefix_map" is always of the latter.
      per_query: whether to add the values of each query.
      per_class: whether to add the means over the queries of each class of `query_labels`.
      block_size: queries ranked at a time.

    Returns:
      Floats, or {k: float}, each the mean over all queries of a metric of a score matrix. A query
      without relevant items counts as there, as 0 or, for ranks, as found behind the gallery.

      - "map" `average_precision`; "prefix_map" `prefix_average_precision`; "map_at_r"
        `average_precision_at_r`; "r_precision" `r_precision`; "mrr" `reciprocal_rank`;
      - "mean_rank" and "median_rank": mean and median of `first_hit_rank`;
      - "precision_at_k" `precision_at`; "hit_rate_at_k" `recall_at`, the R@k of the retrieval
        literature; "fraction_recall_at_k" `fraction_recall_at`; "ndcg_at_k" `ndcg_at`;
      - "tied_pairs": the share of a query's pairs of a relevant and an irrelevant item that have
        equal scores, averaged over the queries that have such pairs; 0 if there are none;
      - "num_queries" and "num_without_relevant", ints: all queries, and those of them without a
        relevant item;
      - with `per_query`, "per_query": the values of each query, lists [N] or {k: list [N]}, by the
        names of the metrics' functions or, with cut-offs, as above, and "num_relevant";
      - with `per_class`, "per_class": {class: a report of its queries}. A query of several classes
        counts for each.

    Raises:
      ValueError: unless relevance is said in one way; for shapes that do not fit, an unknown
        similarity or rule for ties, k > M, exclude_self where N is not M; for a score that is NaN,
        with the row that it comes from; and within jit, where only the metrics of a score matrix
        and `cross_modal_report` can be.

    >>> import jax.numpy as jnp
    >>> images, captions = jnp.eye(2), jnp.array([[1.0, 0.1], [0.2, 1.0], [0.9, 1.0]])
    >>> report = retrieval_report(
    ...     images, captions, query_labels=[0, 1], gallery_labels=[0, 0, 1], ks=(1, 2))
    >>> report["hit_rate_at_k"]  # the second image finds a caption of the first one first
    {1: 0.5, 2: 1.0}
    >>> report["median_rank"]
    1.5
    """
    given = (queries, gallery, relevance, query_labels, gallery_labels, where)
    if _measures.is_traced(*(x for x in given if x is not None)):
        raise ValueError(
            "retrieval_report returns plain numbers, which traced arrays do not have; call it "
            "outside of jit, or use the metrics of a score matrix or cross_modal_report within"
        )
    queries, gallery = jnp.asarray(queries), jnp.asarray(gallery)
    shape = _check_sets(queries, gallery, exclude_self)
    ks = tuple(_measures.check_cut_off(k, shape) for k in ks)
    ties = _measures.check_ties(ties, shape)
    compare = _Compare(
        as_similarity(similarity, "queries", queries.shape),
        None if threshold is None else _as_threshold(threshold),
        exclude_self,
    )
    labels = _checked_labels(query_labels, gallery_labels, relevance, threshold, shape)
    if relevance is not None:
        relevance = _as_relevance(relevance, shape, threshold)
    if per_class and labels[0] is None:
        raise ValueError("per_class needs query_labels, [N] or [N, C]; none were given")
    of_gallery = of_queries = None
    if where is not None and jnp.ndim(where) == 1:
        of_gallery = as_mask(where, shape[1:], "where")
    elif where is not None:
        of_queries = as_mask(where, shape, "where")

    values = _values(
        _Queries(queries, labels[0] if relevance is None else None, relevance, of_queries),
        _Gallery(gallery, labels[1], of_gallery),
        ks=ks,
        ties=ties,
        compare=compare,
        block_size=block_size,
    )
    is_nan = np.isnan(values["average_precision"])
    if is_nan.any():
        among = of_gallery if of_queries is None else of_queries
        raise ValueError(nan_message(int(np.argmax(is_nan)), queries, gallery, among))
    report = _means(values)
    if per_query:
        names = [name for name in values if name not in ("tied_pairs", "has_pairs")]
        report["per_query"] = jax.tree.map(
            lambda v: v.tolist(), {name: values[name] for name in names}
        )
        counts = values["num_relevant"]
        report["per_query"]["num_relevant"] = [int(count) for count in counts]
    if per_class:
        report["per_class"] = _by_class(values, np.asarray(labels[0]))
    return report


def _check_sets(queries: Array, gallery: Array, exclude_self: bool) -> tuple[int, int]:
    shapes = queries.shape, gallery.shape
    if queries.ndim != 2 or gallery.ndim != 2 or 0 in (*shapes[0][:1], *shapes[1][:1]):
        raise ValueError(
            "queries [N, D] and a gallery [M, D] of at least one row each are needed; got "
            f"{shapes[0]} and {shapes[1]}"
        )
    if exclude_self and shapes[0][0] != shapes[1][0]:
        raise ValueError(
            "exclude_self is for one set against itself, of N = M rows; got "
            f"{shapes[0]} and {shapes[1]}; leave items out by where"
        )
    return shapes[0][0], shapes[1][0]


def _as_threshold(threshold: float) -> float:
    check_scalar(threshold, jnp.float32, "threshold", above=0)
    return float(threshold)


def _as_relevance(relevance: ArrayLike, shape: tuple[int, int], threshold: float | None) -> Array:
    if threshold is not None:
        return as_grades(relevance, shape, "relevance")
    given = as_given(relevance, "relevance")
    if jnp.issubdtype(given.dtype, jnp.floating):
        raise ValueError(
            f"relevance must be bool; got {given.dtype} of shape {given.shape}; for grades pass "
            "the threshold from which on they are relevant"
        )
    return as_mask(given, shape, "relevance")


def _checked_labels(
    query_labels: LabelsLike | None,
    gallery_labels: LabelsLike | None,
    relevance: ArrayLike | None,
    threshold: float | None,
    shape: tuple[int, int],
) -> tuple[Array | None, Array | None]:
    """Labels of queries and gallery, where they were given and fit."""
    has_labels = query_labels is not None and gallery_labels is not None
    is_said_once = has_labels if relevance is None else gallery_labels is None
    if not is_said_once:
        names = [
            name
            for name, value in (
                ("relevance", relevance),
                ("query_labels", query_labels),
                ("gallery_labels", gallery_labels),
            )
            if value is not None
        ]
        raise ValueError(
            "what is relevant must be said by either relevance or both query_labels and "
            f"gallery_labels; got {' and '.join(names) or 'none of them'}"
        )
    sides = []
    for name, labels, length in (
        ("query_labels", query_labels, shape[0]),
        ("gallery_labels", gallery_labels, shape[1]),
    ):
        labels = None if labels is None else as_labels(labels)
        if labels is not None and labels.shape[:1] != (length,):
            raise ValueError(f"{name} have shape {labels.shape} for {length} rows")
        if labels is not None and relevance is None and threshold is not None and labels.ndim != 2:
            raise ValueError(
                f"a threshold of shared classes needs multi-hot labels; {name} have shape "
                f"{labels.shape}"
            )
        sides.append(labels)
    return sides[0], sides[1]


def _values(
    queries: _Queries,
    gallery: _Gallery,
    *,
    ks: tuple[int, ...],
    ties: str,
    compare: _Compare,
    block_size: int,
) -> dict[str, Any]:
    """The values of each query, float64 [N] of NumPy."""
    wanted = _wanted(ks, ties, compare.threshold is not None)
    if _host_ranking.is_on_host(*jax.tree.leaves((queries, gallery))):
        queries, gallery = jax.tree.map(gathered, (queries, gallery))
        values, _ = _query_values.on_host(wanted, compare, queries, gallery, block_size=block_size)
    else:
        values = _values_in_xla(
            queries, gallery, ks=ks, ties=ties, compare=compare, block_size=block_size
        )
    of_grades = {"ndcg_at_k": values.graded} if wanted.graded_ks else {}
    return jax.tree.map(lambda v: np.asarray(v, np.float64), {**values.metrics, **of_grades})


@functools.partial(jax.jit, static_argnames=("ks", "ties", "compare", "block_size"))
def _values_in_xla(
    queries: _Queries,
    gallery: _Gallery,
    *,
    ks: tuple[int, ...],
    ties: str,
    compare: _Compare,
    block_size: int,
) -> _query_values.Values:
    wanted = _wanted(ks, ties, compare.threshold is not None)
    gallery = jax.tree.map(gathered, gallery)
    return _query_values.in_xla(wanted, compare, queries, gallery, block_size=block_size)


def _means(values: dict[str, Any]) -> dict[str, Any]:
    def mean(of_queries: np.ndarray) -> float:
        return float(np.mean(of_queries))

    ranks, with_pairs = values["first_hit_rank"], values["has_pairs"].sum()
    return {
        "num_queries": len(ranks),
        "num_without_relevant": int(np.sum(values["num_relevant"] == 0)),
        "map": mean(values["average_precision"]),
        "prefix_map": mean(values["prefix_average_precision"]),
        "map_at_r": mean(values["average_precision_at_r"]),
        "r_precision": mean(values["r_precision"]),
        "mrr": mean(values["reciprocal_rank"]),
        "mean_rank": mean(ranks),
        "median_rank": float(np.median(ranks)),
        **{name: jax.tree.map(mean, values[name]) for name in _AT_K},
        "tied_pairs": float(values["tied_pairs"].sum() / max(with_pairs, 1)),
    }


def _by_class(values: dict[str, Any], labels: np.ndarray) -> dict[int, dict[str, Any]]:
    """The means over the queries of each class that has some."""
    if labels.ndim == 1:
        members = {int(c): labels == c for c in np.unique(labels)}
    else:
        members = {c: labels[:, c].astype(bool) for c in range(labels.shape[1])}
    return {
        c: _means(jax.tree.map(lambda v, rows=rows: v[rows], values))
        for c, rows in members.items()
        if rows.any()
    }
