"""All metrics of retrieval between two modalities, in both directions, in blocks of queries."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from aadml_jax import _host_ranking, _measures, _query_values
from aadml_jax._arrays import Array, ArrayLike, LabelsLike, as_labels
from aadml_jax._query_values import Pairs
from aadml_jax._sharding import gathered
from aadml_jax.similarity import SIMILARITIES, as_similarity, same_label


def _report_metrics(ks: tuple[int, ...], ties: str) -> dict[str, Any]:
    return {
        "map": _measures.average_precision(ties),
        "prefix_map": _measures.PREFIX_AVERAGE_PRECISION,
        "precision_at_k": {k: _measures.precision_at(k, ties) for k in ks},
        "recall_at_k": {k: _measures.recall_at(k, ties) for k in ks},
        "tied_pairs": (_measures.TIED_PAIRS, _measures.HAS_PAIRS),
    }


def _as_report(means: dict[str, Any]) -> dict[str, Any]:
    """The means over all queries, with that of tied pairs over the queries that have pairs."""
    share, with_pairs = means["tied_pairs"]
    is_zero = with_pairs == 0
    tied = jnp.where(is_zero, 0, share) / jnp.where(is_zero, 1, with_pairs)
    return {**means, "tied_pairs": tied}


class _Clips(NamedTuple):
    """One side of all clips [N, D], their labels, and which of them count, bool [N]; None: all."""

    embeddings: Array
    labels: Array
    where: Array | None = None


class _SameClass(NamedTuple):
    """Pairs of clips, relevant where they share a class."""

    similarity: Callable[[Array, Array], Array]

    def __call__(self, queries: _Clips, _: Array, gallery: _Clips) -> Pairs:
        scores = self.similarity(queries.embeddings, gallery.embeddings)
        relevance = same_label(queries.labels, gallery.labels)
        if gallery.where is None:
            return Pairs(scores, relevance)
        return Pairs(scores, relevance, jnp.broadcast_to(gallery.where[None, :], relevance.shape))


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
    wanted = _query_values.Wanted(_report_metrics(ks, ties))
    values = _query_values.in_xla(
        wanted, _SameClass(similarity), queries, gallery, block_size=block_size
    ).metrics
    is_real = jnp.ones(len(queries.labels), bool) if queries.where is None else queries.where
    sums = jax.tree.map(lambda v: jnp.sum(jnp.where(is_real, v, 0)), values)
    count = jnp.sum(is_real)
    if axis_name is not None:
        sums, count = jax.lax.psum((sums, count), axis_name)
    return _as_report(jax.tree.map(lambda total: total / count.astype(total.dtype), sums))


def _one_direction_on_host(
    queries: _Clips,
    gallery: _Clips,
    *,
    similarity: Callable[[Array, Array], Array],
    ks: tuple[int, ...],
    ties: str,
    block_size: int,
) -> dict[str, Any]:
    values, dtype = _query_values.on_host(
        _query_values.Wanted(_report_metrics(ks, ties)),
        _SameClass(similarity),
        queries,
        gallery,
        block_size=block_size,
    )
    return _as_report(jax.tree.map(lambda v: jnp.asarray(v.mean(), dtype), values.metrics))


def cross_modal_report(
    audio: ArrayLike,
    visual: ArrayLike,
    labels: LabelsLike,
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
    similarity = as_similarity(similarity, "audio", jnp.shape(audio))
    audio, visual, labels = jnp.asarray(audio), jnp.asarray(visual), as_labels(labels)
    same_length = audio.shape[:1] == visual.shape[:1] == labels.shape[:1]
    if audio.ndim != 2 or visual.ndim != 2 or not same_length or not len(audio):
        raise ValueError(
            "audio [N, D], visual [N, D] and labels [N] or [N, C] of the same N ≥ 1 clips are "
            f"needed; got {audio.shape}, {visual.shape} and {labels.shape}"
        )
    ks = tuple(_measures.check_cut_off(k, (len(audio), len(audio))) for k in ks)

    options = {"similarity": similarity, "ks": ks, "block_size": block_size}
    options["ties"] = _measures.check_ties(ties, audio.shape)
    arrays = audio, visual, labels
    one_direction = _one_direction_in_xla
    if not _measures.is_traced(*arrays) and _host_ranking.is_on_host(*arrays):
        audio, visual, labels = map(gathered, arrays)
        one_direction = _one_direction_on_host
    sides = (_Clips(side, labels) for side in (audio, visual))
    return _both_directions(functools.partial(one_direction, **options), *sides)


def sharded_cross_modal_report(
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
      audio: the device's shard of the audio embeddings [S, D].
      visual: its shard of the visual embeddings [S, D] of the same clips.
      labels: its shard of the class numbers [S] or multi-hot labels [S, C].
      where: bool [S], False for what only pads the shard; at least one clip must count.
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
        ties=_measures.check_ties(ties, audio.shape),
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
