"""What every function of the pure core does to its arguments: checks, promotion, masked sums.

Messages print the shapes, because a wrong axis is the usual culprit.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array
ReduceFn = Callable[[Array], Array] | None


def as_float(array: Any) -> Array:
    """`array` in its own floating dtype, raised to at least float32."""
    return as_same_float(array)[0]


def as_same_float(*arrays: Any) -> tuple[Array, ...]:
    """All `arrays` in one floating dtype that holds each of them, at least float32."""
    arrays = tuple(jnp.asarray(array) for array in arrays)
    dtype = jnp.dtype(jnp.float32)
    with jax.numpy_dtype_promotion("standard"):  # an explicit choice, also for strict users
        for array in arrays:
            dtype = jnp.promote_types(dtype, array.dtype)
    return tuple(array.astype(dtype) for array in arrays)


def as_embeddings(a: Any, b: Any) -> tuple[Array, Array]:
    """Checks that `a` [N, D] and `b` [M, D] share D; returns both in one floating dtype."""
    a, b = as_same_float(a, b)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise ValueError(
            f"two matrices [N, D] and [M, D] with one D are needed; got {a.shape} and {b.shape}"
        )
    return a, b


def as_mask(mask: Any, shape: tuple[int, ...], name: str) -> Array:
    """Checks that `mask` is boolean (or integer, non-zero is true) and has `shape`."""
    mask = jnp.asarray(mask)
    if mask.dtype != jnp.bool_ and not jnp.issubdtype(mask.dtype, jnp.integer):
        raise ValueError(f"{name} must be bool; got {mask.dtype} of shape {mask.shape}")
    if mask.shape != shape:
        raise ValueError(f"{name} has shape {mask.shape}, but the pairs have shape {shape}")
    return mask.astype(bool)


def as_pairs(values: Any, relevance: Any, where: Any, name: str) -> tuple[Array, Array, Array]:
    """Checks one row-wise problem and returns (values, positives, negatives).

    Args:
      values: distances, similarities or scores [N, M].
      relevance: bool [N, M].
      where: bool [N, M] or None.
      name: what `values` are called in messages.

    Returns:
      `values` in at least float32, those outside `where` cleared to 0 so that not even a NaN of
      theirs reaches a result or a derivative; and the disjoint masks P (relevant) and Q (not
      relevant), both within `where`.
    """
    values = as_float(values)
    if values.ndim != 2:
        raise ValueError(f"{name} must be a matrix [N, M]; got shape {values.shape}")
    relevance = as_mask(relevance, values.shape, "relevance")
    if where is None:
        return values, relevance, ~relevance
    where = as_mask(where, values.shape, "where")
    return jnp.where(where, values, 0), relevance & where, ~relevance & where


def as_scalar(value: Any, dtype: Any, name: str) -> Array:
    """Checks that a margin, temperature or the like is a scalar (possibly traced); casts it."""
    value = jnp.asarray(value, dtype=dtype)
    if value.ndim:
        raise ValueError(f"{name} must be a scalar; got shape {value.shape}")
    return value


def as_labels(labels: Any) -> Array:
    """`labels` as a JAX array; NumPy's 64-bit class numbers must fit into what JAX holds."""
    array = jnp.asarray(labels)
    if isinstance(labels, np.ndarray) and not np.array_equal(labels, labels.astype(array.dtype)):
        raise ValueError(
            f"class numbers of {labels.dtype} and shape {labels.shape} do not fit into "
            f"{array.dtype}; number the classes from 0, or enable jax_enable_x64"
        )
    return array


def reduce_rows(per_row: Array, reduce_fn: ReduceFn) -> Array:
    """Applies `reduce_fn` to the values per row [N]; None returns them as they are."""
    return per_row if reduce_fn is None else reduce_fn(per_row)


def divide_or_zero(numerator: Array, count: Array) -> Array:
    """The quotient; 0 with derivative 0 where the integer `count` is 0."""
    return jnp.where(count > 0, numerator, 0) / jnp.maximum(count, 1).astype(numerator.dtype)


def masked_row_mean(values: Array, mask: Array) -> Array:
    """Mean over the true entries of each row [N]; 0 for a row without any.

    Entries outside `mask` have no influence, not even as NaN; a NaN inside it shows.
    """
    total = jnp.sum(jnp.where(mask, values, 0), axis=1)
    return divide_or_zero(total, jnp.sum(mask, axis=1, dtype=jnp.int32))


def row_logsumexp(values: Array, mask: Array) -> Array:
    """Log Σ exp over the true entries of each row [N]; −∞ with derivative 0 for a row without any.

    softplus of it is log(1 + Σ exp), which is 0 for such a row.
    """
    is_empty = ~jnp.any(mask, axis=1)
    largest = jnp.max(jax.lax.stop_gradient(values), axis=1, initial=-jnp.inf, where=mask)
    shift = jnp.where(is_empty, 0, largest)
    # Cleared before exp as well: an entry outside the mask may be far above the largest within.
    exponents = jnp.where(mask, values - shift[:, None], -jnp.inf)
    total = jnp.sum(jnp.exp(exponents), axis=1)
    return jnp.where(is_empty, -jnp.inf, jnp.log(jnp.where(is_empty, 1, total)) + shift)


def check_count(value: int, name: str, shape: tuple[int, ...]) -> int:
    """Checks that a static count such as k is an int of at least 1; `shape` is for the message."""
    if isinstance(value, bool) or not hasattr(value, "__index__") or value.__index__() < 1:
        raise ValueError(
            f"{name} must be an integer of at least 1; got {value!r} for an array of shape {shape}"
        )
    return value.__index__()


def rows_of_share(share: int, axis_name: str | None) -> Array:
    """Numbers in the whole batch of the rows that this device holds: int32 [share].

    Args:
      share: how many rows each device holds, in the order of the devices.
      axis_name: of `jax.shard_map` or `jax.pmap`; None where one program holds all rows.
    """
    rows = jnp.arange(share, dtype=jnp.int32)
    if axis_name is None:
        return rows
    return rows + share * jax.lax.axis_index(axis_name).astype(jnp.int32)
