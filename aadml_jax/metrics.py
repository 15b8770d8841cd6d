"""Retrieval metrics of a score matrix: each row is a query, each column a gallery item.

All take `scores` [N, M] (higher is better) and `relevance` bool [N, M], array arguments
positional, and keyword-only `where` (bool [N, M], False takes the item out of that query's
gallery) and `reduce_fn` (default None: one value per query [N]).

- The whole ranking counts, no cut-off unless the name says so.
- Equal scores, −0.0 and 0.0 among them, rank in gallery order with `ties="stable"`, the default. A
  gallery that is stored class by class then scores better or worse than its scores deserve.
  `ties="expected"` gives the expectation over all orders of tied items, in closed form (McSherry,
  Najork, "Computing Information Retrieval Performance Measures Efficiently in the Presence of Tied
  Scores", ECIR 2008).
- Scores of any integer or float type are compared as they are: 64-bit scores in NumPy arrays are
  not rounded to 32 bits first, though values are float32 unless jax_enable_x64 is set.
- A query without relevant items scores 0 and takes part in means.
- A NaN among a query's scores makes its value NaN.
- Nothing is excluded silently: for one set against itself pass `where=~jnp.eye(n, dtype=bool)`.
- Called outside of jit and vmap on a machine whose default device is a CPU, the ranks come from
  NumPy's sort, which is many times faster there than XLA's; otherwise XLA sorts where the arrays
  are. Both find the same ranks, ties included; values may differ by rounding.

    >>> import jax.numpy as jnp
    >>> scores = jnp.array([[0.9, 0.8, 0.7, 0.6]])
    >>> relevance = jnp.array([[True, False, False, True]])
    >>> print(average_precision(scores, relevance))         # (1/1 + 2/4) / 2
    [0.75]
    >>> print(prefix_average_precision(scores, relevance))  # (1 + 1 + 1 + 0.75) / 4
    [0.9375]
    >>> scores, relevance = jnp.array([[0.5, 0.5]]), jnp.array([[False, True]])
    >>> print(average_precision(scores, relevance))
    [0.5]
    >>> print(average_precision(scores, relevance, ties="expected"))  # (1/2 + 1/1) / 2
    [0.75]
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from aadml_jax import _host_ranking, _ranking
from aadml_jax._arrays import (
    Array,
    ReduceFn,
    as_labels,
    as_mask,
    as_pairs,
    check_count,
    reduce_rows,
)
from aadml_jax._sharding import gathered
from aadml_jax.row_blocks import in_row_blocks
from aadml_jax.similarity import cosine_similarity, posterior_similarity, same_label


@dataclasses.dataclass(frozen=True)
class _Metric:
    """A value per query, from a ranking in XLA or from the hits' ranks on the host."""

    in_xla: Callable[[_ranking.Ranking], Array]
    on_host: Callable[[_host_ranking.Hits], np.ndarray]


TIES = ("stable", "expected")
"""Rules for equal scores."""


def _check_ties(ties: str, shape: tuple[int, ...]) -> str:
    if ties not in TIES:
        raise ValueError(
            f"ties must be one of {sorted(TIES)}; got {ties!r} for an array of shape {shape}"
        )
    return ties


def _average_precision(ties: str) -> _Metric:
    if ties == "expected":
        return _Metric(
            _ranking.expected_average_precision, _host_ranking.expected_average_precision
        )
    return _Metric(_ranking.average_precision, _host_ranking.average_precision)


_PREFIX_AVERAGE_PRECISION = _Metric(
    _ranking.prefix_average_precision, _host_ranking.prefix_average_precision
)


def _precision_at(k: int, ties: str) -> _Metric:
    in_xla, on_host = _ranking.hits_within, _host_ranking.hits_within
    if ties == "expected":
        in_xla, on_host = _ranking.expected_hits_within, _host_ranking.expected_hits_within
    return _Metric(lambda ranking: in_xla(ranking, k) / k, lambda hits: on_host(hits, k) / k)


def _recall_at(k: int, ties: str) -> _Metric:
    in_xla, on_host = _ranking.any_hit_within, _host_ranking.any_hit_within
    if ties == "expected":
        in_xla, on_host = _ranking.expected_any_hit_within, _host_ranking.expected_any_hit_within
    return _Metric(functools.partial(in_xla, k=k), functools.partial(on_host, k=k))


def _check_cut_off(k: int, shape: tuple[int, ...]) -> int:
    k = check_count(k, "k", shape)
    if len(shape) == 2 and k > shape[1]:
        raise ValueError(f"k = {k} exceeds the gallery of {shape[1]}; scores have shape {shape}")
    return k


def _in_xla(metrics: Any, scores: Array, relevance: Array, where: Array | None) -> Any:
    """The values per query [N] of a pytree of metrics."""
    ranking = _ranking.rank(scores, relevance, where)
    return jax.tree.map(
        lambda metric: jnp.where(ranking.is_nan, jnp.nan, metric.in_xla(ranking)), metrics
    )


@jax.jit
def _host_keys(scores: Any, relevance: Any, where: Any) -> _host_ranking.RankingKeys:
    return _host_ranking.ranking_keys(*as_pairs(scores, relevance, where, "scores"))


def _rounds(scores: Any) -> bool:
    """Whether the floats that JAX would make of concrete scores are not the scores themselves."""
    if not isinstance(scores, np.ndarray | jax.Array):
        return False
    if jnp.issubdtype(scores.dtype, jnp.integer):
        return scores.dtype.itemsize >= 4
    if scores.dtype != np.float64 or jax.config.jax_enable_x64:
        return False
    with np.errstate(over="ignore"):
        return not np.array_equal(scores, scores.astype(np.float32), equal_nan=True)


def _in_order(scores: np.ndarray) -> np.ndarray:
    """The scores [N, M] in 32 bits; refuses those that would become equal or change places."""
    with np.errstate(over="ignore"):
        converted = scores.astype(jax.dtypes.canonicalize_dtype(scores.dtype))
    order = np.argsort(scores, axis=1)
    before, after = (np.take_along_axis(x, order, axis=1) for x in (scores, converted))
    is_lost = (before[:, 1:] > before[:, :-1]) & (after[:, 1:] <= after[:, :-1])
    if is_lost.any():
        row, column = np.argwhere(is_lost)[0]
        raise ValueError(
            f"scores of {scores.dtype} and shape {scores.shape} do not keep their order in "
            f"{after.dtype}: {before[row, column]!s} and {before[row, column + 1]!s} in row {row}; "
            "rank them outside of jit, or enable jax_enable_x64"
        )
    return converted


def _is_traced(*arrays: Any) -> bool:
    """Whether a function traces these arrays or, around them, constants."""
    probes = (*arrays, jnp.zeros(()) + 0)  # a tracer within jit
    return any(isinstance(probe, jax.core.Tracer) for probe in probes)


def _per_query(
    metric: _Metric, scores: Any, relevance: Any, where: Any, reduce_fn: ReduceFn
) -> Array:
    if not isinstance(scores, jax.Array):
        scores = np.asarray(scores)
    relevance = as_mask(relevance, scores.shape, "relevance")
    where = None if where is None else as_mask(where, scores.shape, "where")
    is_numpy = isinstance(scores, np.ndarray)
    if _is_traced(scores, relevance, where):
        if is_numpy and scores.ndim == 2 and scores.dtype.itemsize == 8 and _rounds(scores):
            scores = _in_order(scores)
        return reduce_rows(_in_xla(metric, scores, relevance, where), reduce_fn)
    is_on_host = _host_ranking.is_on_host(scores, relevance, where)
    if is_on_host and not _rounds(scores):
        keys = _host_keys(scores, relevance, where)
        dtype = f"float{8 * keys.keys.dtype.itemsize}"
    elif is_on_host or (is_numpy and _rounds(scores)):
        # Only for the masks: these scores are no floats of JAX's.
        values, *masks = as_pairs(jnp.zeros(scores.shape, jnp.float32), relevance, where, "scores")
        keys, dtype = _host_ranking.exact_keys(np.asarray(scores), *masks), values.dtype
    else:
        return reduce_rows(_in_xla(metric, scores, relevance, where), reduce_fn)
    values = _host_ranking.by_rows(keys, metric.on_host).astype(dtype)
    return reduce_rows(jax.device_put(values), reduce_fn)


def average_precision(
    scores: Array,
    relevance: Array,
    *,
    where: Array | None = None,
    ties: str = "stable",
    reduce_fn: ReduceFn = None,
) -> Array:
    """AP of each query: the mean over its relevant items of the precision at their rank.

    AP_i = 1/R_i Σ_{t=1..R_i} t / rank(t-th relevant item), over all ranks.

    With `ties="expected"`, a group of g tied items, r of them relevant, behind b items, h of them
    relevant, adds Σ_{t=1..g} r/g · (h + 1 + (r − 1)(t − 1)/(g − 1)) / (b + t) to the sum.

    Args:
      scores: [N, M], higher ranks first.
      relevance: bool [N, M].
      where: bool [N, M], the items that belong to the query's gallery; default all.
      ties: `"stable"`, equal scores rank in gallery order, or `"expected"`, the expectation over
        all orders of tied items.
      reduce_fn: applied to the values per query; None returns them.

    Returns:
      [N] in [0, 1] (or what `reduce_fn` makes of it); 0 for a query without relevant items.

    Raises:
      ValueError: for an unknown rule for ties or shapes that do not fit; and within jit, for
        constant scores of 64 bits whose order 32 bits would lose.
    """
    ties = _check_ties(ties, jnp.shape(scores))
    return _per_query(_average_precision(ties), scores, relevance, where, reduce_fn)


def mean_average_precision(
    scores: Array, relevance: Array, *, where: Array | None = None, ties: str = "stable"
) -> Array:
    """MAP: `average_precision` averaged over all queries, those without relevant items included.

    Args:
      scores: [N, M], N ≥ 1.
      relevance: bool [N, M].
      where: bool [N, M], default all.
      ties: see `average_precision`.

    Returns:
      A scalar in [0, 1].

    Raises:
      ValueError: for no queries, whose mean would be 0 / 0, or as `average_precision`.
    """
    if jnp.shape(scores)[:1] == (0,):
        raise ValueError(
            f"the mean needs at least one query; scores have shape {jnp.shape(scores)}"
        )
    return average_precision(scores, relevance, where=where, ties=ties, reduce_fn=jnp.mean)


def prefix_average_precision(
    scores: Array, relevance: Array, *, where: Array | None = None, reduce_fn: ReduceFn = None
) -> Array:
    """The running AP averaged over *every* cut-off; not the standard AP, and usually higher.

    At cut-off m the running AP is (sum of the precisions at the hits so far) / (hits so far), 0
    before the first hit. Some published scripts of audio-visual retrieval compute this by an
    indentation slip, so that their numbers can be compared only with this metric. Never mix it
    with `average_precision`. As in those scripts, ties rank in gallery order; there is no other
    rule to choose.

    Args:
      scores: [N, M], higher ranks first; ties rank in gallery order.
      relevance: bool [N, M].
      where: bool [N, M], the items that belong to the query's gallery; default all.
      reduce_fn: applied to the values per query; None returns them.

    Returns:
      [N] in [0, 1]; 0 for a query without relevant items.

    Raises:
      ValueError: for shapes that do not fit.
    """
    return _per_query(_PREFIX_AVERAGE_PRECISION, scores, relevance, where, reduce_fn)


def precision_at(
    scores: Array,
    relevance: Array,
    *,
    k: int,
    where: Array | None = None,
    ties: str = "stable",
    reduce_fn: ReduceFn = None,
) -> Array:
    """Share of relevant items among the first k: precision-scope@k of the retrieval literature.

    Args:
      scores: [N, M], higher ranks first.
      relevance: bool [N, M].
      k: the cut-off, static, 1 ≤ k ≤ M.
      where: bool [N, M], the items that belong to the query's gallery; default all. The divisor is
        k even where fewer items are left.
      ties: `"stable"`, equal scores rank in gallery order, or `"expected"`, the expectation over
        all orders of tied items.
      reduce_fn: applied to the values per query; None returns them.

    Returns:
      [N] in [0, 1].

    Raises:
      ValueError: for k outside 1 … M, an unknown rule for ties or shapes that do not fit.
    """
    k, ties = _check_cut_off(k, jnp.shape(scores)), _check_ties(ties, jnp.shape(scores))
    return _per_query(_precision_at(k, ties), scores, relevance, where, reduce_fn)


def recall_at(
    scores: Array,
    relevance: Array,
    *,
    k: int,
    where: Array | None = None,
    ties: str = "stable",
    reduce_fn: ReduceFn = None,
) -> Array:
    """1 if any of the first k items is relevant, else 0: the retrieval literature's R@k.

    Args:
      scores: [N, M], higher ranks first.
      relevance: bool [N, M].
      k: the cut-off, static, 1 ≤ k ≤ M.
      where: bool [N, M], the items that belong to the query's gallery; default all.
      ties: `"stable"`, equal scores rank in gallery order, or `"expected"`, the expectation over
        all orders of tied items.
      reduce_fn: applied to the values per query; None returns them.

    Returns:
      [N], each 0 or 1, or with `ties="expected"` the probability of 1.

    Raises:
      ValueError: for k outside 1 … M, an unknown rule for ties or shapes that do not fit.
    """
    k, ties = _check_cut_off(k, jnp.shape(scores)), _check_ties(ties, jnp.shape(scores))
    return _per_query(_recall_at(k, ties), scores, relevance, where, reduce_fn)


SIMILARITIES: dict[str, Callable[[Array, Array], Array]] = {
    "cosine": cosine_similarity,
    "posterior": posterior_similarity,
}
"""Scores by which retrieval ranks, by name."""


def _report_metrics(ks: tuple[int, ...], ties: str) -> dict[str, Any]:
    return {
        "map": _average_precision(ties),
        "prefix_map": _PREFIX_AVERAGE_PRECISION,
        "precision_at_k": {k: _precision_at(k, ties) for k in ks},
        "recall_at_k": {k: _recall_at(k, ties) for k in ks},
        "tied_pairs": (
            _Metric(_ranking.tied_pairs, _host_ranking.tied_pairs),
            _Metric(_ranking.has_pairs, _host_ranking.has_pairs),
        ),
    }


def _as_report(means: dict[str, Any]) -> dict[str, Any]:
    """The means over all queries, with that of tied pairs over the queries that have pairs."""
    share, with_pairs = means["tied_pairs"]
    is_zero = with_pairs == 0
    tied = jnp.where(is_zero, 0, share) / jnp.where(is_zero, 1, with_pairs)
    return {**means, "tied_pairs": tied}


class _Clips(NamedTuple):
    """One side of all clips [N, D], their labels, and which of them count, bool [N]."""

    embeddings: Array
    labels: Array
    where: Array


@functools.partial(jax.jit, static_argnames=("similarity", "ks", "ties", "block_size", "axis_name"))
def _one_direction_in_xla(
    queries: _Clips,
    gallery: _Clips,
    *,
    similarity: Callable[[Array, Array], Array],
    ks: tuple[int, ...],
    ties: str,
    block_size: int,
    axis_name: str | None = None,
) -> dict[str, Any]:
    if axis_name is not None:
        gallery = jax.lax.all_gather(gallery, axis_name, tiled=True)
    gallery = jax.tree.map(gathered, gallery)

    def score(block: _Clips, _: Array) -> dict[str, Any]:
        scores = similarity(block.embeddings, gallery.embeddings)
        relevance = same_label(block.labels, gallery.labels)
        in_gallery = jnp.broadcast_to(gallery.where[None, :], relevance.shape)
        return _in_xla(_report_metrics(ks, ties), scores, relevance, in_gallery)

    values = in_row_blocks(score, queries, block_size=block_size)
    sums = jax.tree.map(lambda v: jnp.sum(jnp.where(queries.where, v, 0)), values)
    count = jnp.sum(queries.where)
    if axis_name is not None:
        sums, count = jax.lax.psum((sums, count), axis_name)
    return _as_report(jax.tree.map(lambda total: total / count.astype(total.dtype), sums))


@functools.partial(jax.jit, static_argnames=("similarity", "block_size"))
def _block_keys(
    queries: Array,
    gallery: Array,
    labels: Array,
    first: Array,
    *,
    similarity: Callable[[Array, Array], Array],
    block_size: int,
) -> _host_ranking.RankingKeys:
    # Of one shape for all blocks: the last one repeats the last query, to be dropped.
    rows = jnp.minimum(first + jnp.arange(block_size, dtype=jnp.int32), len(queries) - 1)
    return _host_keys(similarity(queries[rows], gallery), same_label(labels[rows], labels), None)


def _one_direction_on_host(
    queries: Array,
    gallery: Array,
    labels: Array,
    *,
    similarity: Callable[[Array, Array], Array],
    ks: tuple[int, ...],
    ties: str,
    block_size: int,
) -> dict[str, Any]:
    block_size = min(check_count(block_size, "block_size", queries.shape), len(queries))
    metrics, structure = jax.tree.flatten(_report_metrics(ks, ties))

    def values(hits: _host_ranking.Hits) -> np.ndarray:
        return np.stack([metric.on_host(hits) for metric in metrics], axis=1)

    blocks = []
    for first in range(0, len(queries), block_size):
        keys = _block_keys(
            queries, gallery, labels, first, similarity=similarity, block_size=block_size
        )
        blocks.append(_host_ranking.by_rows(keys, values)[: len(queries) - first])
    dtype = f"float{8 * keys.keys.dtype.itemsize}"
    means = jnp.asarray(np.concatenate(blocks).mean(axis=0), dtype)
    return _as_report(jax.tree.unflatten(structure, list(means)))


def cross_modal_report(
    audio: Array,
    visual: Array,
    labels: Array,
    *,
    similarity: str | Callable[[Array, Array], Array] = "cosine",
    ks: Sequence[int] = (1, 5, 10),
    ties: str = "expected",
    block_size: int = 1024,
) -> dict[str, dict[str, Any]]:
    """All metrics of audio→visual and visual→audio retrieval of one set of clips.

    Each clip's audio ranks the visual side of all clips, its own included, and the other way
    round. Queries are scored in blocks: memory is O(block_size × M).

    Unlike the metrics of a score matrix, the report takes ties by their expectation unless told
    otherwise: clips are usually stored class by class, and their order shall not count. Only
    `prefix_map` always ranks them in that order.

    Args:
      audio: audio embeddings [N, D].
      visual: visual embeddings [N, D] of the same clips.
      labels: class numbers [N] or multi-hot [N, C]; relevant are the clips that share a class.
      similarity: `"cosine"`, `"posterior"` (of logits), or a function
        (queries [B, D], gallery [N, D]) -> scores [B, N].
      ks: cut-offs of precision@k and recall@k, each at most N.
      ties: `"expected"`, the expectation over the orders of equal scores, or `"stable"`, the order
        of the clips; see `average_precision`.
      block_size: queries scored at a time.

    Returns:
      {"audio_to_visual": r, "visual_to_audio": r, "mean": r}, where r is
      {"map", "prefix_map", "tied_pairs": scalar, "precision_at_k", "recall_at_k": {k: scalar}}, and
      "mean" is the mean of the two directions. "tied_pairs" is the share of a query's pairs of a
      relevant and an irrelevant clip that have equal scores, averaged over the queries that have
      such pairs; 0 if there are none.

    Raises:
      ValueError: for an unknown similarity or rule for ties, k > N or shapes that do not fit.
    """
    if isinstance(similarity, str):
        if similarity not in SIMILARITIES:
            raise ValueError(
                f"similarity must be one of {sorted(SIMILARITIES)} or a function; "
                f"got {similarity!r} for audio of shape {jnp.shape(audio)}"
            )
        similarity = SIMILARITIES[similarity]
    audio, visual, labels = jnp.asarray(audio), jnp.asarray(visual), as_labels(labels)
    same_length = audio.shape[:1] == visual.shape[:1] == labels.shape[:1]
    if audio.ndim != 2 or visual.ndim != 2 or not same_length or not len(audio):
        raise ValueError(
            "audio [N, D], visual [N, D] and labels [N] or [N, C] of the same N ≥ 1 clips are "
            f"needed; got {audio.shape}, {visual.shape} and {labels.shape}"
        )
    ks = tuple(_check_cut_off(k, (len(audio), len(audio))) for k in ks)

    options = {"similarity": similarity, "ks": ks, "block_size": block_size}
    options["ties"] = _check_ties(ties, audio.shape)
    if not _is_traced(audio, visual, labels) and _host_ranking.is_on_host(audio, visual, labels):
        audio, visual, labels = map(gathered, (audio, visual, labels))
        return _both_directions(
            functools.partial(_one_direction_on_host, labels=labels, **options), audio, visual
        )
    everything = jnp.ones(len(audio), bool)
    sides = (_Clips(side, labels, everything) for side in (audio, visual))
    return _both_directions(functools.partial(_one_direction_in_xla, **options), *sides)


def cross_modal_report_of_shares(
    audio: Array,
    visual: Array,
    labels: Array,
    where: Array,
    *,
    axis_name: str,
    similarity: str = "cosine",
    ks: Sequence[int] = (1, 5, 10),
    ties: str = "expected",
    block_size: int = 1024,
) -> dict[str, dict[str, Any]]:
    """`cross_modal_report` of clips that are split over devices.

    The galleries are gathered; each device ranks them for its own queries and gets the whole
    report.

    Args:
      audio: the device's share of the audio embeddings [S, D].
      visual: its share of the visual embeddings [S, D] of the same clips.
      labels: its share of the class numbers [S] or multi-hot labels [S, C].
      where: bool [S], False for what only fills up the share; at least one clip must count.
      axis_name: of `jax.shard_map` or `jax.pmap`.
      similarity: `"cosine"` or `"posterior"`.
      ks: cut-offs of precision@k and recall@k, each at most the number of clips that count.
      ties: see `cross_modal_report`.
      block_size: queries scored at a time.
    """
    sides = (_Clips(side, as_labels(labels), where) for side in (audio, visual))
    one_direction = functools.partial(
        _one_direction_in_xla,
        similarity=SIMILARITIES[similarity],
        ks=tuple(ks),
        ties=_check_ties(ties, audio.shape),
        block_size=block_size,
        axis_name=axis_name,
    )
    return _both_directions(one_direction, *sides)


def _both_directions(
    one_direction: Callable[..., dict[str, Any]], audio: Any, visual: Any
) -> dict[str, dict[str, Any]]:
    audio_to_visual, visual_to_audio = one_direction(audio, visual), one_direction(visual, audio)
    return {
        "audio_to_visual": audio_to_visual,
        "visual_to_audio": visual_to_audio,
        "mean": jax.tree.map(lambda a, b: (a + b) / 2, audio_to_visual, visual_to_audio),
    }
