"""Ranking in XLA: inside of compiled code, and on accelerators, where the sort stays there."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from aadml_jax._arrays import Array, divide_or_zero, masked_row_mean
from aadml_jax._ordering import last_key, order_keys


class Ranking(NamedTuple):
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


def rank(scores: Array, relevant: Array, irrelevant: Array) -> Ranking:
    """The ranking of scores [N, M] with disjoint masks."""
    items = relevant | irrelevant
    keys = order_keys(-scores)
    keys = jnp.where(items, keys, last_key(keys))
    # Stable, so that equal scores stay in gallery order.
    _, is_hit = jax.lax.sort((keys, relevant), dimension=1, is_stable=True, num_keys=1)
    return Ranking(
        is_hit=is_hit,
        num_hits=jnp.cumsum(is_hit, axis=1, dtype=jnp.int32),
        num_items=jnp.sum(items, axis=1, dtype=jnp.int32),
        is_nan=jnp.any(items & jnp.isnan(scores), axis=1),
        dtype=scores.dtype,
    )


def average_precision(ranking: Ranking) -> Array:
    """See `aadml_jax.metrics.average_precision`."""
    num_relevant = jnp.sum(ranking.is_hit, axis=1, dtype=jnp.int32)
    return divide_or_zero(jnp.sum(ranking.precisions, axis=1), num_relevant)


def prefix_average_precision(ranking: Ranking) -> Array:
    """See `aadml_jax.metrics.prefix_average_precision`."""
    running = divide_or_zero(jnp.cumsum(ranking.precisions, axis=1), ranking.num_hits)
    in_gallery = ranking.ranks <= ranking.num_items[:, None].astype(ranking.dtype)
    return masked_row_mean(running, in_gallery)


def hits_within(ranking: Ranking, k: int) -> Array:
    """Relevant items among the first k of each query [N]."""
    return jnp.sum(ranking.is_hit[:, :k], axis=1).astype(ranking.dtype)
