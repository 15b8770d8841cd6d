"""Retrieval metrics of a score matrix: each row is a query, each column a gallery item.

All take `scores` [N, M] (higher is better) and `relevance` bool [N, M], array arguments
positional, and keyword-only `where` (bool [N, M], False takes the item out of that query's
gallery) and `reduce_fn` (default None: one value per query [N]).

- The whole ranking counts, no cut-off unless the name says so.
- Equal scores rank in gallery order (stable), −0.0 equal to 0.0.
- A query without relevant items scores 0 and takes part in means.
- A NaN among a query's scores makes its value NaN.
- Nothing is excluded silently: for one set against itself pass `where=~jnp.eye(n, dtype=bool)`.

    >>> import jax.numpy as jnp
    >>> scores = jnp.array([[0.9, 0.8, 0.7, 0.6]])
    >>> relevance = jnp.array([[True, False, False, True]])
    >>> print(average_precision(scores, relevance))         # (1/1 + 2/4) / 2
    [0.75]
    >>> print(prefix_average_precision(scores, relevance))  # (1 + 1 + 1 + 0.75) / 4
    [0.9375]
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from aadml_jax._arrays import (
    Array,
    ReduceFn,
    as_labels,
    as_pairs,
    check_count,
    divide_or_zero,
    masked_row_mean,
    reduce_rows,
)
from aadml_jax._ordering import last_key, order_keys
from aadml_jax.row_blocks import in_row_blocks
from aadml_jax.similarity import cosine_similarity, same_label


class _Ranking(NamedTuple):
    """The galleries of all queries in ranked order; every metric derives from it.

    Attributes:
      is_hit: bool [N, M], whether the item at each rank is relevant; False past the gallery's end.
      num_hits: int32 [N, M], relevant items up to and including each rank.
      num_items: int32 [N], size of each query's gallery.
      is_nan: bool [N], whether the query's scores hold a NaN.
      dtype: of the metrics' values, that of the scores.
    """

    is_hit: Array
    num_hits: Array
    num_items: Array
    is_nan: Array
    dtype: jnp.dtype

    @property
    def ranks(self) -> Array:
        """1 … M as floats [1, M]."""
        return jnp.arange(1, self.is_hit.shape[1] + 1, dtype=self.dtype)[None, :]

    @property
    def precisions(self) -> Array:
        """Precision at the rank of each hit [N, M]; 0 elsewhere."""
        return jnp.where(self.is_hit, self.num_hits.astype(self.dtype) / self.ranks, 0)


def _rank(scores: Any, relevance: Any, where: Any) -> _Ranking:
    scores, relevant, irrelevant = as_pairs(scores, relevance, where, "scores")
    items = relevant | irrelevant
    keys = order_keys(-scores)
    keys = jnp.where(items, keys, last_key(keys))
    # Stable, so that equal scores stay in gallery order.
    _, is_hit = jax.lax.sort((keys, relevant), dimension=1, is_stable=True, num_keys=1)
    return _Ranking(
        is_hit=is_hit,
        num_hits=jnp.cumsum(is_hit, axis=1, dtype=jnp.int32),
        num_items=jnp.sum(items, axis=1, dtype=jnp.int32),
        is_nan=jnp.any(items & jnp.isnan(scores), axis=1),
        dtype=scores.dtype,
    )


def _finish(ranking: _Ranking, per_query: Array, reduce_fn: ReduceFn) -> Array:
    return reduce_rows(jnp.where(ranking.is_nan, jnp.nan, per_query), reduce_fn)


def _average_precision(ranking: _Ranking) -> Array:
    num_relevant = jnp.sum(ranking.is_hit, axis=1, dtype=jnp.int32)
    return divide_or_zero(jnp.sum(ranking.precisions, axis=1), num_relevant)


def _prefix_average_precision(ranking: _Ranking) -> Array:
    running = divide_or_zero(jnp.cumsum(ranking.precisions, axis=1), ranking.num_hits)
    in_gallery = ranking.ranks <= ranking.num_items[:, None].astype(ranking.dtype)
    return masked_row_mean(running, in_gallery)


def _hits_within(ranking: _Ranking, k: int) -> Array:
    return jnp.sum(ranking.is_hit[:, :k], axis=1, dtype=jnp.int32)


def _precision_at(ranking: _Ranking, k: int) -> Array:
    return _hits_within(ranking, k).astype(ranking.dtype) / k


def _recall_at(ranking: _Ranking, k: int) -> Array:
    return (_hits_within(ranking, k) > 0).astype(ranking.dtype)


def _check_cut_off(k: int, num_items: int, shape: tuple[int, ...]) -> int:
    k = check_count(k, "k", shape)
    if k > num_items:
        raise ValueError(f"k = {k} exceeds the gallery of {num_items}; scores have shape {shape}")
    return k


def average_precision(
    scores: Array, relevance: Array, *, where: Array | None = None, reduce_fn: ReduceFn = None
) -> Array:
    """AP of each query: the mean over its relevant items of the precision at their rank.

    AP_i = 1/R_i Σ_{t=1..R_i} t / rank(t-th relevant item), over all ranks.

    Args:
      scores: [N, M], higher ranks first; ties rank in gallery order.
      relevance: bool [N, M].
      where: bool [N, M], the items that belong to the query's gallery; default all.
      reduce_fn: applied to the values per query; None returns them.

    Returns:
      [N] in [0, 1] (or what `reduce_fn` makes of it); 0 for a query without relevant items.

    Raises:
      ValueError: for shapes that do not fit.
    """
    ranking = _rank(scores, relevance, where)
    return _finish(ranking, _average_precision(ranking), reduce_fn)


def mean_average_precision(scores: Array, relevance: Array, *, where: Array | None = None) -> Array:
    """MAP: `average_precision` averaged over all queries, those without relevant items included.

    Args:
      scores: [N, M].
      relevance: bool [N, M].
      where: bool [N, M], default all.

    Returns:
      A scalar in [0, 1].

    Raises:
      ValueError: for shapes that do not fit.
    """
    return average_precision(scores, relevance, where=where, reduce_fn=jnp.mean)


def prefix_average_precision(
    scores: Array, relevance: Array, *, where: Array | None = None, reduce_fn: ReduceFn = None
) -> Array:
    """The running AP averaged over *every* cut-off; not the standard AP, and usually higher.

    At cut-off m the running AP is (sum of the precisions at the hits so far) / (hits so far), 0
    before the first hit. Some published scripts of audio-visual retrieval compute this by an
    indentation slip, so that their numbers can be compared only with this metric. Never mix it
    with `average_precision`.

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
    ranking = _rank(scores, relevance, where)
    return _finish(ranking, _prefix_average_precision(ranking), reduce_fn)


def precision_at(
    scores: Array,
    relevance: Array,
    *,
    k: int,
    where: Array | None = None,
    reduce_fn: ReduceFn = None,
) -> Array:
    """Share of relevant items among the first k: precision-scope@k of the retrieval literature.

    Args:
      scores: [N, M], higher ranks first; ties rank in gallery order.
      relevance: bool [N, M].
      k: the cut-off, static, 1 ≤ k ≤ M.
      where: bool [N, M], the items that belong to the query's gallery; default all. The divisor is
        k even where fewer items are left.
      reduce_fn: applied to the values per query; None returns them.

    Returns:
      [N] in [0, 1].

    Raises:
      ValueError: for k outside 1 … M or shapes that do not fit.
    """
    ranking = _rank(scores, relevance, where)
    k = _check_cut_off(k, ranking.is_hit.shape[1], ranking.is_hit.shape)
    return _finish(ranking, _precision_at(ranking, k), reduce_fn)


def recall_at(
    scores: Array,
    relevance: Array,
    *,
    k: int,
    where: Array | None = None,
    reduce_fn: ReduceFn = None,
) -> Array:
    """1 if any of the first k items is relevant, else 0: the retrieval literature's R@k.

    Args:
      scores: [N, M], higher ranks first; ties rank in gallery order.
      relevance: bool [N, M].
      k: the cut-off, static, 1 ≤ k ≤ M.
      where: bool [N, M], the items that belong to the query's gallery; default all.
      reduce_fn: applied to the values per query; None returns them.

    Returns:
      [N], each 0 or 1.

    Raises:
      ValueError: for k outside 1 … M or shapes that do not fit.
    """
    ranking = _rank(scores, relevance, where)
    k = _check_cut_off(k, ranking.is_hit.shape[1], ranking.is_hit.shape)
    return _finish(ranking, _recall_at(ranking, k), reduce_fn)


_SIMILARITIES = {"cosine": cosine_similarity}


@functools.partial(jax.jit, static_argnames=("similarity", "ks", "block_size"))
def _one_direction(
    queries: Array,
    gallery: Array,
    labels: Array,
    *,
    similarity: Callable[[Array, Array], Array],
    ks: tuple[int, ...],
    block_size: int,
) -> dict[str, Any]:
    def score(block: Array, rows: Array) -> dict[str, Any]:
        ranking = _rank(similarity(block, gallery), same_label(labels[rows], labels), None)
        return {
            "map": _finish(ranking, _average_precision(ranking), None),
            "prefix_map": _finish(ranking, _prefix_average_precision(ranking), None),
            "precision_at_k": {k: _finish(ranking, _precision_at(ranking, k), None) for k in ks},
            "recall_at_k": {k: _finish(ranking, _recall_at(ranking, k), None) for k in ks},
        }

    return jax.tree.map(jnp.mean, in_row_blocks(score, queries, block_size=block_size))


def cross_modal_report(
    audio: Array,
    visual: Array,
    labels: Array,
    *,
    similarity: str | Callable[[Array, Array], Array] = "cosine",
    ks: Sequence[int] = (1, 5, 10),
    block_size: int = 1024,
) -> dict[str, dict[str, Any]]:
    """All metrics of audio→visual and visual→audio retrieval of one set of clips.

    Each clip's audio ranks the visual side of all clips, its own included, and the other way
    round. Queries are scored in blocks: memory is O(block_size × M).

    Args:
      audio: audio embeddings [N, D].
      visual: visual embeddings [N, D] of the same clips.
      labels: class numbers [N] or multi-hot [N, C]; relevant are the clips that share a class.
      similarity: `"cosine"`, or a function (queries [B, D], gallery [N, D]) -> scores [B, N].
      ks: cut-offs of precision@k and recall@k, each at most N.
      block_size: queries scored at a time.

    Returns:
      {"audio_to_visual": r, "visual_to_audio": r, "mean": r}, where r is
      {"map", "prefix_map": scalar, "precision_at_k", "recall_at_k": {k: scalar}}, and "mean" is
      the mean of the two directions.

    Raises:
      ValueError: for an unknown similarity, k > N or shapes that do not fit.
    """
    if isinstance(similarity, str):
        if similarity not in _SIMILARITIES:
            raise ValueError(
                f"similarity must be one of {sorted(_SIMILARITIES)} or a function; "
                f"got {similarity!r} for audio of shape {jnp.shape(audio)}"
            )
        similarity = _SIMILARITIES[similarity]
    audio, visual, labels = jnp.asarray(audio), jnp.asarray(visual), as_labels(labels)
    same_length = audio.shape[:1] == visual.shape[:1] == labels.shape[:1]
    if audio.ndim != 2 or visual.ndim != 2 or not same_length or not len(audio):
        raise ValueError(
            "audio [N, D], visual [N, D] and labels [N] or [N, C] of the same N ≥ 1 clips are "
            f"needed; got {audio.shape}, {visual.shape} and {labels.shape}"
        )
    ks = tuple(_check_cut_off(k, len(audio), (len(audio), len(audio))) for k in ks)

    options = {"similarity": similarity, "ks": ks, "block_size": block_size}
    audio_to_visual = _one_direction(audio, visual, labels, **options)
    visual_to_audio = _one_direction(visual, audio, labels, **options)
    return {
        "audio_to_visual": audio_to_visual,
        "visual_to_audio": visual_to_audio,
        "mean": jax.tree.map(lambda a, b: (a + b) / 2, audio_to_visual, visual_to_audio),
    }
