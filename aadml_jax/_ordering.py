"""Ordering rows by integer keys: what triplet losses and ranking metrics share.

XLA sorts one array of integers several times faster on a CPU than floats, or than an array that
carries a second one along. The users need only counts ("how many negatives lie below this
positive?"), which binary search in a sorted row gives; so nothing is ever carried along.
"""

import jax
import jax.numpy as jnp

from aadml_jax._arrays import Array

_BLOCK = 16


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


def count_below(sorted_rows: Array, keys: Array) -> Array:
    """How many of a row of `sorted_rows` [N, M] are below each of its `keys` [N, K]: int32.

    With `keys + 1`, how many are below or equal.
    """
    return jax.vmap(jnp.searchsorted)(sorted_rows, keys)


def count_so_far(mask: Array) -> Array:
    """Number of true entries of each row up to and including each column: int32 [N, M].

    Block by block as a product with a triangle of ones, which a CPU does several times faster than
    a running sum. The numbers are small integers, exact at any precision of the product.
    """
    num_rows, num_columns = mask.shape
    num_blocks = -(-num_columns // _BLOCK)
    padded = jnp.pad(mask, ((0, 0), (0, num_blocks * _BLOCK - num_columns)))
    blocks = padded.reshape(num_rows, num_blocks, _BLOCK).astype(jnp.float32)
    within = jnp.matmul(blocks, jnp.triu(jnp.ones((_BLOCK, _BLOCK), jnp.float32)))
    within = within.astype(jnp.int32)
    of_blocks = within[:, :, -1]
    before = jnp.cumsum(of_blocks, axis=1, dtype=jnp.int32) - of_blocks
    counts = within + before[:, :, None]
    return counts.reshape(num_rows, num_blocks * _BLOCK)[:, :num_columns]


def columns_of(so_far: Array, places: Array) -> Array:
    """The columns of the true entries number `places` [N, K] of each row, counted from 0: int32.

    `so_far` comes from `count_so_far`. A row with fewer entries gives M.
    """
    return count_below(so_far, places + 1)
