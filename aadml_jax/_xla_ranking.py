"""Ranking in XLA: inside of compiled code, and on accelerators, where the sort stays there."""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from aadml_jax._arrays import Array, ArrayLike, as_pairs, divide_or_zero, masked_row_mean
from aadml_jax._ordering import last_key, order_keys
from aadml_jax._sharding import split_alike

try:
    _enable_x64 = jax.enable_x64
except AttributeError:  # JAX 0.7
    from jax.experimental import enable_x64 as _enable_x64  # pyright: ignore


class Groups(NamedTuple):
    """For each rank, the group of equal scores that it belongs to: int32 [N, M] each.

    Attributes:
      before: items that rank before the group.
      hits_before: relevant ones among them.
      size: items of the group.
      hits: relevant ones among them; 0 past the gallery's end.
    """

    before: Array
    hits_before: Array
    size: Array
    hits: Array


@dataclasses.dataclass(frozen=True)
class Ranking:
    """The galleries of all queries in ranked order; every metric derives from it.

    Attributes:
      keys: integers [N, M], equal for equal scores.
      is_hit: bool [N, M], whether the item at each rank is relevant; False past the gallery's end.
      num_hits: int32 [N, M], relevant items up to and including each rank.
      num_items: int32 [N], size of each query's gallery.
      is_nan: bool [N], whether the query's scores hold a NaN.
      dtype: of the metrics' values, that of the scores raised to at least float32.
    """

    keys: Array
    is_hit: Array
    num_hits: Array
    num_items: Array
    is_nan: Array
    dtype: jnp.dtype

    @property
    def places(self) -> Array:
        """0 … M − 1 as integers [1, M]."""
        return jnp.arange(self.is_hit.shape[1], dtype=jnp.int32)[None, :]

    @property
    def ranks(self) -> Array:
        """1 … M as floats [1, M]."""
        return (self.places + 1).astype(self.dtype)

    @property
    def precisions(self) -> Array:
        """Precision at the rank of each hit [N, M]; 0 elsewhere."""
        return jnp.where(self.is_hit, self.num_hits.astype(self.dtype) / self.ranks, 0)

    @property
    def num_relevant(self) -> Array:
        """Relevant items of each query's gallery, int32 [N]."""
        return jnp.sum(self.is_hit, axis=1, dtype=jnp.int32)

    @functools.cached_property
    def groups(self) -> Groups:
        """Each rank's group of equal scores.

        Keys 3 5 5 8 with hits 1 0 1 0: before 0 1 1 3, size 1 2 2 1, hits_before 0 1 1 2, hits
        1 1 1 0.
        """
        num_columns = self.is_hit.shape[1]
        changes = self.keys[:, 1:] != self.keys[:, :-1]
        edge = ((0, 0), (1, 0))
        begins = jnp.pad(changes, edge, constant_values=True)[:, :num_columns]
        # What is not in the gallery comes last, and may have the key of its last item.
        begins = begins | (self.places == self.num_items[:, None])
        ends = jnp.pad(begins[:, 1:], ((0, 0), (0, 1)), constant_values=True)[:, :num_columns]
        num_before = self.num_hits - self.is_hit.astype(jnp.int32)

        def of_begin(values: Array) -> Array:
            return jax.lax.cummax(jnp.where(begins, values, 0), axis=1)

        def of_end(values: Array) -> Array:
            return jax.lax.cummin(jnp.where(ends, values, num_columns), axis=1, reverse=True)

        before, hits_before = of_begin(self.places), of_begin(num_before)
        size = of_end(self.places + 1) - before
        return Groups(before, hits_before, size, of_end(self.num_hits) - hits_before)


def _integer_keys(scores: Array) -> Array:
    """Signed integers that rise as integer scores fall."""
    if jnp.issubdtype(scores.dtype, jnp.unsignedinteger):
        signed = jnp.dtype(f"int{8 * scores.dtype.itemsize}")
        top_bit = jnp.array(1 << 8 * scores.dtype.itemsize - 1, scores.dtype)
        scores = jax.lax.bitcast_convert_type(scores ^ top_bit, signed)
    return ~scores  # −1 − score, which cannot overflow


def _sorted_galleries(keys: Array, relevant: Array, items: Array) -> tuple[Array, Array]:
    """Each row's keys in rising order; equal ones by column, those outside of `items` last.

    Returns:
      The keys, and whether the item of each is relevant: [N, M] each.
    """
    # Columns 0 to 2, of which 1 is relevant and 2 is no item: places 0, 3 and 2³¹ + 4. No two are
    # equal, so that no stable sort is needed, and relevance comes along in the lowest bit.
    columns = jax.lax.broadcasted_iota(jnp.uint32, keys.shape, 1)
    places = 2 * columns + relevant.astype(jnp.uint32)
    places = jnp.where(items, places, places | jnp.uint32(1 << 31))
    if keys.dtype.itemsize == 4:
        keys, places = jax.lax.platform_dependent(
            keys, places, cpu=_sort_packed, default=_sort_by_two_keys
        )
    else:
        keys, places = _sort_by_two_keys(keys, places)
    return keys, places % 2 == 1


def _sort_by_two_keys(keys: Array, places: Array) -> tuple[Array, Array]:
    keys, places = jax.lax.sort((keys, places), dimension=1, is_stable=False, num_keys=2)
    return keys, places


def _sort_packed(keys: Array, places: Array) -> tuple[Array, Array]:
    """As integers of 64 bits: XLA sorts one array several times faster on a CPU than two."""
    halves = jnp.stack([places, jax.lax.bitcast_convert_type(keys, jnp.uint32)], axis=2)
    with _enable_x64(True):
        packed = jax.lax.bitcast_convert_type(halves, jnp.int64)
    # Nothing is equal, but of the two algorithms there the stable one is faster.
    packed = jax.lax.sort(packed, dimension=1, is_stable=True)
    halves = jax.lax.bitcast_convert_type(packed, jnp.uint32)
    return jax.lax.bitcast_convert_type(halves[:, :, 1], jnp.int32), halves[:, :, 0]


def rank(scores: ArrayLike, relevance: Array, where: Array | None) -> Ranking:
    """The ranking of scores [N, M]; raises ValueError for arguments that do not fit.

    Integers of 32 bits and more are compared as such, since floats of their width are fewer.
    """
    scores = jnp.asarray(scores)
    values, relevant, irrelevant = as_pairs(scores, relevance, where, "scores")
    scores, values, relevant, irrelevant = split_alike(scores, values, relevant, irrelevant)
    items = relevant | irrelevant
    is_wide = jnp.issubdtype(scores.dtype, jnp.integer) and scores.dtype.itemsize >= 4
    keys = _integer_keys(scores) if is_wide else order_keys(-values)
    keys = jnp.where(items, keys, last_key(keys))
    keys, is_hit = _sorted_galleries(keys, relevant, items)
    return Ranking(
        keys=keys,
        is_hit=is_hit,
        num_hits=jnp.cumsum(is_hit, axis=1, dtype=jnp.int32),
        num_items=jnp.sum(items, axis=1, dtype=jnp.int32),
        is_nan=jnp.any(items & jnp.isnan(values), axis=1),
        dtype=values.dtype,
    )


def average_precision(ranking: Ranking) -> Array:
    """See `aadml_jax.metrics.average_precision`."""
    return divide_or_zero(jnp.sum(ranking.precisions, axis=1), ranking.num_relevant)


def expected_average_precision(ranking: Ranking) -> Array:
    """Its expectation over the orders of equal scores; see `aadml_jax.metrics`.

    The item at place t of a group is relevant with probability r/g, and the hits before it are then
    h + (r − 1) (t − 1) / (g − 1) on average.
    """
    before, hits_before, size, hits = (part.astype(ranking.dtype) for part in ranking.groups)
    others_before = (hits - 1) / jnp.maximum(size - 1, 1) * (ranking.ranks - 1 - before)
    precisions = hits / size * (hits_before + 1 + others_before) / ranking.ranks
    return divide_or_zero(jnp.sum(precisions, axis=1), ranking.num_relevant)


def prefix_average_precision(ranking: Ranking) -> Array:
    """See `aadml_jax.metrics.prefix_average_precision`."""
    running = divide_or_zero(jnp.cumsum(ranking.precisions, axis=1), ranking.num_hits)
    in_gallery = ranking.ranks <= ranking.num_items[:, None].astype(ranking.dtype)
    return masked_row_mean(running, in_gallery)


def hits_within(ranking: Ranking, k: int) -> Array:
    """Relevant items among the first k of each query [N]."""
    return jnp.sum(ranking.is_hit[:, :k], axis=1).astype(ranking.dtype)


def _groups_at(ranking: Ranking, k: int) -> tuple[Array, ...]:
    """The group of rank k of each query, as floats [N, 1]."""
    return tuple(part[:, k - 1 : k].astype(ranking.dtype) for part in ranking.groups)


def expected_hits_within(ranking: Ranking, k: int) -> Array:
    """The expectation of `hits_within` over the orders of equal scores [N]."""
    before, hits_before, size, hits = _groups_at(ranking, k)
    return (hits_before + (k - before) / size * hits)[:, 0]


def any_hit_within(ranking: Ranking, k: int) -> Array:
    """1 if any of the first k items of a query is relevant, else 0 [N]."""
    return jnp.minimum(hits_within(ranking, k), 1)


def expected_any_hit_within(ranking: Ranking, k: int) -> Array:
    """The probability of `any_hit_within` over the orders of equal scores [N].

    Drawing k − b of a group's g items misses all of its r hits with probability
    Π_{i<k−b} (1 − r / (g − i)).
    """
    before, hits_before, size, hits = _groups_at(ranking, k)
    drawn = jnp.arange(k, dtype=jnp.int32).astype(ranking.dtype)[None, :]
    share = jnp.minimum(hits / jnp.maximum(size - drawn, 1), 1)
    misses = jnp.sum(jnp.where(drawn < k - before, jnp.log1p(-share), 0), axis=1)
    return jnp.where(hits_before[:, 0] > 0, 1, -jnp.expm1(misses))


def tied_pairs(ranking: Ranking) -> Array:
    """Share of a query's pairs (relevant, irrelevant) with equal scores [N]; 0 without pairs."""
    ties = jnp.where(ranking.is_hit, ranking.groups.size - ranking.groups.hits, 0)
    # A hit's share of all irrelevant items, since the number of pairs may exceed an int32.
    shares = divide_or_zero(
        ties.astype(ranking.dtype), (ranking.num_items - ranking.num_relevant)[:, None]
    )
    return divide_or_zero(jnp.sum(shares, axis=1), ranking.num_relevant)


def has_pairs(ranking: Ranking) -> Array:
    """1 for a query with relevant and irrelevant items, else 0 [N]."""
    num_relevant = ranking.num_relevant
    return ((num_relevant > 0) & (num_relevant < ranking.num_items)).astype(ranking.dtype)
