"""The highest of each row of scores, without sorting the row."""

import jax
import jax.numpy as jnp

from aadml_jax._arrays import Array


def search_keys(scores: Array, where: Array | None) -> Array:
    """Floats in the order of the scores [N, M], −∞ for what is outside `where`.

    An item's own −∞ becomes the lowest number, which no item scores in earnest. `lax.top_k` would
    rank −0.0 below 0.0.
    """
    keys = jnp.maximum(jnp.where(scores == 0, 0, scores), jnp.finfo(scores.dtype).min)
    return keys if where is None else jnp.where(where, keys, -jnp.inf)


def best_of_rows(keys: Array, k: int) -> tuple[Array, Array]:
    """The k highest keys of each row [N, k], falling, and their columns, int32.

    Equal keys keep the order of the columns; the keys of a row with a NaN are in any order.

    Neighbouring columns form groups, of which only the maxima are ordered: the k highest keys lie
    in the k groups of the highest maxima. Two of 0 3 | 9 4 | 3 1 in groups of two: maxima 3 9 3,
    groups 1 and 0, in the order of the columns 0 3 9 4, of which 9 and 3 are highest.
    """
    num_rows, num_columns = keys.shape
    size = _group_size(num_columns, k)
    if size == 1:
        return _top_k(keys, k)
    num_groups = -(-num_columns // size)
    filling = num_groups * size - num_columns
    keys = jnp.pad(keys, ((0, 0), (0, filling)), constant_values=-jnp.inf)
    keys = keys.reshape(num_rows, num_groups, size)
    _, groups = _top_k(jnp.max(keys, axis=2), k)
    groups = jnp.sort(groups, axis=1)
    chosen = jnp.take_along_axis(keys, groups[:, :, None], axis=1, mode="promise_in_bounds")
    best, places = _top_k(chosen.reshape(num_rows, k * size), k)
    groups = jnp.take_along_axis(groups, places // size, axis=1, mode="promise_in_bounds")
    return best, groups * size + places % size


def _group_size(num_columns: int, k: int) -> int:
    """The size for which there are about as many maxima as columns of k groups; 1 if too small."""
    size = 1
    while 0 < k * (2 * size) ** 2 <= 2 * num_columns:
        size *= 2
    return size if size >= 4 else 1


def _top_k(keys: Array, k: int) -> tuple[Array, Array]:
    values, places = jax.lax.top_k(keys, k)
    return values, places.astype(jnp.int32)
