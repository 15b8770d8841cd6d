"""Ordering rows by integer keys: what triplet losses and ranking metrics share.

XLA sorts one array of integers several times faster on a CPU than floats, or than an array that
carries a second one along. The users need only counts ("how many positives lie below this
negative?"), which a search in a sorted row gives; so nothing is ever carried along.
"""

import jax
import jax.numpy as jnp

from aadml_jax._arrays import Array

# Entries that are compared or summed in one operation: XLA unrolls as many and then vectorises.
_AT_ONCE = 16
# A search starts with at most 2^6 comparisons of that kind, each far cheaper than a turn.
_COMPARED_BITS = 6

# Columns up to which a GPU compares all pairs of a row in less time than a search takes, every
# operation of which it must start by itself.
COUNTED_DENSELY = 1024


def order_keys(values: Array) -> Array:
    """Integers in the order of the floats: x < y ⇔ key(x) < key(y), and key(−0) = key(0).

    They have the floats' width. The key of every number, an infinity too, is below `last_key`.
    """
    integer = jnp.dtype(f"int{8 * values.dtype.itemsize}")
    bits = jax.lax.bitcast_convert_type(jnp.where(values == 0, 0, values), integer)
    return jnp.where(bits < 0, bits ^ jnp.iinfo(integer).max, bits)


def last_key(keys: Array) -> Array:
    """The key that fills up sorted rows: it comes after the key of any value."""
    return jnp.array(jnp.iinfo(keys.dtype).max, keys.dtype)


def sorted_keys(keys: Array, mask: Array) -> Array:
    """Each row's keys within `mask` in rising order, filled up with `last_key` [N, M]."""
    return jax.lax.sort(jnp.where(mask, keys, last_key(keys)), dimension=1, is_stable=False)


# Compiled also where the caller is not: plain calls would compile its loops every time.
@jax.jit
def count_below(sorted_rows: Array, keys: Array, most: Array | None = None) -> Array:
    """How many of a row of `sorted_rows` [N, M] are below each of its `keys` [N, K]: int32.

    With `keys + 1`, how many are below or equal. The keys are compared with up to 64 entries at
    equal strides; a binary search goes on between two of them.

    Args:
      sorted_rows: integers in rising order.
      keys: integers of the same type.
      most: integer scalar that no count exceeds, which saves turns; default M.
    """
    width = sorted_rows.shape[1]
    if width == 0:
        return jnp.zeros(keys.shape, jnp.int32)

    def entries(places: Array) -> Array:
        inside = jnp.minimum(places, jnp.uint32(width - 1))
        found = jnp.take_along_axis(sorted_rows, inside, axis=1, mode="promise_in_bounds")
        return jnp.where(places < width, found, last_key(found))

    # Unsigned: JAX checks every signed index for being negative, which takes as long again.
    most = jnp.asarray(width if most is None else most).astype(jnp.uint32)
    turns = jnp.maximum(32 - jax.lax.clz(most), _COMPARED_BITS) - _COMPARED_BITS
    strides = jnp.arange(1, 2**_COMPARED_BITS + 1, dtype=jnp.uint32) << turns
    bounds = entries(jnp.broadcast_to(strides - 1, (len(keys), len(strides))))

    def halve(turn: Array, counts: Array) -> Array:
        # Counts are in units of the stride, which each turn halves.
        middle = (2 * counts + 1) << (turns - 1 - turn)
        return 2 * counts + (entries(middle - 1) < keys).astype(jnp.uint32)

    groups = ((most >> turns) + _AT_ONCE - 1) // _AT_ONCE
    counts = jax.lax.platform_dependent(
        bounds, keys, groups, tpu=_count_rows_last, default=_count_rows_first
    )
    return jax.lax.fori_loop(jnp.zeros_like(turns), turns, halve, counts).astype(jnp.int32)


def _count_rows_first(bounds: Array, keys: Array, groups: Array) -> Array:
    """How many of the first 16 · `groups` bounds [N, 64] are below each key [N, K]: uint32."""

    def compare(turn: Array, counts: Array) -> Array:
        some = jax.lax.dynamic_slice_in_dim(bounds, turn * _AT_ONCE, _AT_ONCE, axis=1)
        return counts + jnp.sum(some[:, :, None] < keys[:, None, :], axis=1, dtype=jnp.uint32)

    # Made from the data: under shard_map what a loop carries must differ by device from the start.
    counts = (0 * (keys ^ bounds[:, :1])).astype(jnp.uint32)
    return jax.lax.fori_loop(jnp.zeros_like(groups), groups, compare, counts)


def _count_rows_last(bounds: Array, keys: Array, groups: Array) -> Array:
    """The same for a TPU, to which repeating a row costs nothing, and a column much."""
    bounds, keys = bounds.T, keys.T

    def compare(turn: Array, counts: Array) -> Array:
        some = jax.lax.dynamic_slice_in_dim(bounds, turn * _AT_ONCE, _AT_ONCE, axis=0)
        for place in range(_AT_ONCE):
            counts += (some[place : place + 1] < keys).astype(jnp.uint32)
        return counts

    counts = (0 * (keys ^ bounds[:1])).astype(jnp.uint32)
    return jax.lax.fori_loop(jnp.zeros_like(groups), groups, compare, counts).T


def running_sum(counts: Array) -> Array:
    """Sum of each row up to and including each column, of booleans or small integers: int32 [N, M].

    Block by block as a product with a triangle of ones, which a CPU does several times faster than
    a running sum. Exact for sums of 16 neighbours below 2²⁴.
    """
    num_rows, num_columns = counts.shape
    num_blocks = -(-num_columns // _AT_ONCE)
    padded = jnp.pad(counts, ((0, 0), (0, num_blocks * _AT_ONCE - num_columns)))
    blocks = padded.reshape(num_rows, num_blocks, _AT_ONCE).astype(jnp.float32)
    triangle = jnp.triu(jnp.ones((_AT_ONCE, _AT_ONCE), jnp.float32))
    within = jnp.matmul(blocks, triangle, precision=jax.lax.Precision.HIGHEST).astype(jnp.int32)
    of_blocks = within[:, :, -1]
    before = jnp.cumsum(of_blocks, axis=1, dtype=jnp.int32) - of_blocks
    sums = within + before[:, :, None]
    return sums.reshape(num_rows, num_blocks * _AT_ONCE)[:, :num_columns]


def columns_of(so_far: Array, places: Array) -> Array:
    """The columns of the true entries number `places` [N, K] of each row, counted from 0: int32.

    `so_far` is the `running_sum` of the mask. A row with fewer entries gives M.
    """
    return count_below(so_far, places + 1)
