"""Normalised discounted gain of graded relevance, from the first ranks alone."""

import jax
import jax.numpy as jnp

from aadml_jax._arrays import Array
from aadml_jax._top_k import best_of_rows, search_keys
from aadml_jax._xla_measures import discounts


def graded_gain_within(
    scores: Array, gains: Array, where: Array | None, ks: tuple[int, ...], ties: str
) -> dict[int, Array]:
    """See `aadml_jax.metrics.ndcg_at`: the values per query [N] at each cut-off.

    Args:
      scores: floats [N, M].
      gains: floats of the same type [N, M], ≥ 0.
      where: bool [N, M] or None.
      ks: cut-offs, each at most M.
      ties: `"stable"` or `"expected"`.
    """
    if not ks:
        return {}
    if where is not None:
        scores, gains = jnp.where(where, scores, 0), jnp.where(where, gains, 0)
    keys, most = search_keys(scores, where), max(ks)
    best, columns = best_of_rows(keys, most)
    at_ranks = jnp.take_along_axis(gains, columns, axis=1, mode="promise_in_bounds")
    if ties == "expected":
        at_ranks = _means_of_ties(keys, gains, best, at_ranks)
    ideal = best_of_rows(gains, most)[0]
    weights = discounts(jnp.arange(1, most + 1, dtype=jnp.int32).astype(scores.dtype))[None, :]
    is_nan = jnp.any(jnp.isnan(scores), axis=1)

    def at(k: int) -> Array:
        total, largest = (
            jnp.sum(part[:, :k] * weights[:, :k], axis=1) for part in (at_ranks, ideal)
        )
        value = jnp.where(largest > 0, total / jnp.where(largest > 0, largest, 1), 0)
        return jnp.where(is_nan, jnp.nan, value)

    return {k: at(k) for k in ks}


def _means_of_ties(keys: Array, gains: Array, best: Array, at_ranks: Array) -> Array:
    """The mean gain of all items that tie with the one at each rank [N, K].

    Args:
      keys: of all items [N, M].
      gains: of all items [N, M].
      best: the keys at the first ranks [N, K], falling.
      at_ranks: the gains there [N, K].
    """
    num_ranks = best.shape[1]
    places = jnp.arange(num_ranks, dtype=jnp.int32)[None, :]
    changes = best[:, 1:] != best[:, :-1]
    begins = jnp.pad(changes, ((0, 0), (1, 0)), constant_values=True)
    ends = jnp.pad(changes, ((0, 0), (0, 1)), constant_values=True)
    first = jax.lax.cummax(jnp.where(begins, places, 0), axis=1)
    last = jax.lax.cummin(jnp.where(ends, places, num_ranks), axis=1, reverse=True)
    until = jnp.pad(jnp.cumsum(at_ranks, axis=1), ((0, 0), (1, 0)))

    def take(totals: Array, columns: Array) -> Array:
        return jnp.take_along_axis(totals, columns, axis=1, mode="promise_in_bounds")

    means = (take(until, last + 1) - take(until, first)) / (last + 1 - first).astype(gains.dtype)
    # The last group may go on beyond these ranks.
    is_last_group = keys == best[:, -1:]
    count = jnp.sum(is_last_group, axis=1, keepdims=True).astype(gains.dtype)
    total = jnp.sum(jnp.where(is_last_group, gains, 0), axis=1, keepdims=True)
    return jnp.where(best == best[:, -1:], total / jnp.maximum(count, 1), means)
