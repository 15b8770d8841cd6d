"""Values of metrics for each query, from embeddings: ranked once, in blocks of queries."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from aadml_jax import _host_ranking, _measures
from aadml_jax._arrays import Array, as_same_float, check_count
from aadml_jax._graded_gain import graded_gain_within
from aadml_jax.row_blocks import in_row_blocks


class Pairs(NamedTuple):
    """What a block of queries has to do with the gallery.

    Attributes:
      scores: [B, M].
      relevance: bool [B, M].
      where: bool [B, M], or None for all.
      grades: [B, M], or None where relevance has no grades.
    """

    scores: Array
    relevance: Array
    where: Array | None = None
    grades: Array | None = None


# (block of queries, their numbers [B], gallery) -> pairs; hashable, since programs are kept by it.
Compare = Callable[[Any, Array, Any], Pairs]


class Wanted(NamedTuple):
    """The values to be computed for each query.

    Attributes:
      metrics: a pytree of `_measures.Metric`.
      graded_ks: cut-offs at which the gain of grades is wanted.
      ties: the rule for those gains.
    """

    metrics: Any
    graded_ks: tuple[int, ...] = ()
    ties: str = "expected"


class Values(NamedTuple):
    """The values of all queries.

    Attributes:
      metrics: the pytree of `Wanted.metrics` with values [N].
      graded: {k: [N]}.
    """

    metrics: Any
    graded: dict[int, Any]


def _graded(pairs: Pairs, ks: tuple[int, ...], ties: str) -> dict[int, Array]:
    if pairs.grades is None or not ks:
        return {}
    scores, grades = as_same_float(pairs.scores, pairs.grades)
    return graded_gain_within(scores, grades, pairs.where, ks, ties)


def in_xla(
    wanted: Wanted, compare: Compare, queries: Any, gallery: Any, *, block_size: int
) -> Values:
    """The values as arrays [N] of a floating type; may be traced."""

    def of_block(block: Any, rows: Array) -> Values:
        pairs = compare(block, rows, gallery)
        values = _measures.values_in_xla(wanted.metrics, pairs.scores, pairs.relevance, pairs.where)
        return Values(values, _graded(pairs, wanted.graded_ks, wanted.ties))

    return in_row_blocks(of_block, queries, block_size=block_size)


@functools.partial(jax.jit, static_argnames=("compare", "graded_ks", "ties", "block_size"))
def _block_on_host(
    queries: Any,
    gallery: Any,
    first: Array,
    *,
    compare: Compare,
    graded_ks: tuple[int, ...],
    ties: str,
    block_size: int,
) -> tuple[_host_ranking.RankingKeys, dict[int, Array]]:
    num_queries = jax.tree.leaves(queries)[0].shape[0]
    # Of one shape for all blocks: the last one repeats the last query, to be dropped.
    rows = jnp.minimum(first + jnp.arange(block_size, dtype=jnp.int32), num_queries - 1)
    pairs = compare(jax.tree.map(lambda leaf: leaf[rows], queries), rows, gallery)
    keys = _measures.host_keys(pairs.scores, pairs.relevance, pairs.where)
    return keys, _graded(pairs, graded_ks, ties)


def on_host(
    wanted: Wanted, compare: Compare, queries: Any, gallery: Any, *, block_size: int
) -> tuple[Values, str]:
    """The values as float64 arrays [N] of NumPy, and the type of the scores that they are of.

    Args:
      wanted: the values to be computed.
      compare: what a block of queries has to do with the gallery.
      queries: a pytree of arrays [N, …], N ≥ 1, in the memory of this process's CPU.
      gallery: whatever `compare` takes.
      block_size: queries ranked at a time.
    """
    shape = jax.tree.leaves(queries)[0].shape
    block_size = min(check_count(block_size, "block_size", shape), shape[0])
    metrics, structure = jax.tree.flatten(wanted.metrics)

    def values(hits: _host_ranking.Hits) -> np.ndarray:
        return np.stack([metric.on_host(hits) for metric in metrics], axis=1)

    blocks, graded_blocks, dtype = [], [], "float32"
    for first in range(0, shape[0], block_size):
        keys, graded = _block_on_host(
            queries,
            gallery,
            first,
            compare=compare,
            graded_ks=wanted.graded_ks,
            ties=wanted.ties,
            block_size=block_size,
        )
        blocks.append(_host_ranking.by_rows(keys, values)[: shape[0] - first])
        graded_blocks.append(
            {k: np.asarray(v, np.float64)[: shape[0] - first] for k, v in graded.items()}
        )
        dtype = f"float{8 * keys.keys.dtype.itemsize}"
    of_metrics = jax.tree.unflatten(structure, list(np.concatenate(blocks).T))
    of_grades = {k: np.concatenate([block[k] for block in graded_blocks]) for k in graded_blocks[0]}
    return Values(of_metrics, of_grades), dtype
