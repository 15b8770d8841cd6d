"""Ordering rows by integer keys: what triplet losses and ranking metrics share.

XLA sorts one array of integers several times faster on a CPU than floats, or than an array that
carries a second one along. Both users need only counts ("how many negatives lie below this
positive?"), which binary search in a sorted row gives; so nothing is ever carried along.
"""

import jax
import jax.numpy as jnp

from aadml_jax._arrays import Array


def order_keys(values: Array) -> Array:
    """Integers in the order of the floats: x < y ⇔ key(x) < key(y), and key(−0) = key(0).

    They have the floats' width. Every key, that of an infinity or NaN too, is below `last_key`.
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
