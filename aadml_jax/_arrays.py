"""What every function of the pure core does to its arguments: checks, promotion, masked sums.

Messages print the shapes, because a wrong axis is the usual culprit.
"""

import math
import operator
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike

from aadml_jax._sharding import split_alike

Array = jax.Array

LabelsLike = ArrayLike | Sequence[int] | Sequence[Sequence[int]]
"""Class numbers [N] or multi-hot rows [N, C], in lists too: see `as_labels`."""

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


def as_given(argument: Any, name: str) -> Array | np.ndarray:
    """A JAX array as it is, anything else as NumPy reads it, before JAX narrows it to 32 bits.

    Reads whatever NumPy does: numbers, lists, a pandas.Series, a torch.Tensor.
    """
    if isinstance(argument, jax.Array | np.ndarray):
        return argument
    try:
        return np.asarray(argument)
    except jax.errors.TracerArrayConversionError:  # a list of traced numbers
        return jnp.asarray(argument)
    except ValueError as error:
        raise ValueError(f"{name} cannot be read as an array: {error}") from None


def known_values(given: Array | np.ndarray) -> np.ndarray | None:
    """The values of an array; None while they are traced, or where other processes hold them."""
    if isinstance(given, Tracer):
        return None
    if isinstance(given, jax.Array) and not given.is_fully_addressable:
        return None
    return np.asarray(given)


def _is_integer(given: Array | np.ndarray) -> bool:
    # NumPy counts time spans among the integers.
    return jnp.issubdtype(given.dtype, jnp.integer) and given.dtype.kind != "m"


def _check_zeros_and_ones(given: Array | np.ndarray, name: str, remedy: str) -> None:
    """Checks the values, where they are known; booleans cost nothing."""
    values = None if given.dtype == bool else known_values(given)
    if values is None:
        return
    is_wrong = (values != 0) & (values != 1)
    if np.any(is_wrong):
        place = tuple(int(i) for i in np.unravel_index(np.argmax(is_wrong), values.shape))
        raise ValueError(
            f"{name} of shape {values.shape} must hold 0 and 1 alone; "
            f"got {values[place]} at {list(place)}; {remedy}"
        )


def as_mask(mask: Any, shape: tuple[int, ...], name: str) -> Array:
    """Checks that `mask` has `shape` and is boolean, or integers of exactly 0 and 1.

    While integers are traced, their values cannot be checked: any but 0 is true.
    """
    given = as_given(mask, name)
    of_labels = ""
    if name == "relevance" and given.shape != shape:
        of_labels = "; labels become relevance by same_label(anchor_labels, reference_labels)"
    if given.dtype != bool and not _is_integer(given):
        raise ValueError(
            f"{name} must be bool; got {given.dtype} of shape {given.shape}{of_labels}"
        )
    if given.shape != shape:
        raise ValueError(
            f"{name} has shape {given.shape}, but the pairs have shape {shape}{of_labels}"
        )
    _check_zeros_and_ones(given, name, "compare it with what counts as true, as in grades > 1")
    return jnp.asarray(given).astype(bool)


def as_grades(grades: Any, shape: tuple[int, ...], name: str) -> Array:
    """Checks that `grades` has `shape` and holds real numbers of at least 0, where known."""
    given = as_given(grades, name)
    if not (given.dtype == bool or _is_integer(given) or jnp.issubdtype(given.dtype, jnp.floating)):
        raise ValueError(f"{name} must be bool or grades; got {given.dtype} of shape {given.shape}")
    if given.shape != shape:
        raise ValueError(f"{name} has shape {given.shape}, but the pairs have shape {shape}")
    values = None if given.dtype == bool else known_values(given)
    if values is not None:
        is_wrong = ~((values >= 0) & (values < np.inf))
        if np.any(is_wrong):
            place = tuple(int(i) for i in np.unravel_index(np.argmax(is_wrong), shape))
            raise ValueError(
                f"grades in {name} of shape {shape} must be finite and at least 0; "
                f"got {values[place]} at {list(place)}"
            )
    return as_float(given)


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
        values, relevance = split_alike(values, relevance)
        return values, relevance, ~relevance
    where = as_mask(where, values.shape, "where")
    values, relevance, where = split_alike(values, relevance, where)
    return jnp.where(where, values, 0), relevance & where, ~relevance & where


def check_scalar(
    value: Any,
    dtype: Any,
    name: str,
    *,
    above: float | None = None,
    least: float | None = None,
) -> None:
    """Checks that a margin, temperature or the like is a real scalar, and its value if known.

    Args:
      value: a number, or an array without axes, possibly traced.
      dtype: floating, in which it is used.
      name: what it is called in messages.
      above: what it must exceed; numbers that `dtype` holds as 0, such as its subnormal ones, do
        not exceed 0.
      least: what it must reach.

    Raises:
      ValueError: if it is no real scalar; unless traced, if it is NaN, infinite or too small.
    """
    given = as_given(_within_64_bits(value), name)
    if given.ndim:
        raise ValueError(f"{name} must be a scalar; got shape {given.shape}")
    if not (_is_integer(given) or jnp.issubdtype(given.dtype, jnp.floating)):
        raise ValueError(f"{name} must be a real number; got {value!r}")
    known = known_values(given)
    if known is None:
        return
    dtype = jnp.dtype(dtype)
    with np.errstate(over="ignore", under="ignore"):
        held = known.astype(dtype)
    held = np.where(np.abs(held) < jnp.finfo(dtype).tiny, 0, held)
    in_words = f"{known}"
    if held != known and (held == 0 or np.isinf(held)):
        in_words += f", which {dtype} holds as {held}"
    if above is not None and not held > above:
        raise ValueError(f"{name} must be above {above:g}; got {in_words}")
    if least is not None and not held >= least:
        raise ValueError(f"{name} must be at least {least:g}; got {in_words}")
    if not np.isfinite(held):
        raise ValueError(f"{name} must be finite; got {in_words}")


def as_scalar(value: Any, dtype: Any, name: str, *, above: float | None = None) -> Array:
    """`value` in the floating `dtype`, checked as by `check_scalar`."""
    check_scalar(value, dtype, name, above=above)
    return jnp.asarray(_within_64_bits(value), dtype=dtype)


def _within_64_bits(value: Any) -> Any:
    """A Python integer that NumPy and JAX cannot hold, as a float; all else as it is."""
    if type(value) is not int or abs(value) < 2**63:
        return value
    return (
        float(value) if abs(value) <= sys.float_info.max else math.inf if value > 0 else -math.inf
    )


def as_labels(labels: Any, *, num_classes: int | None = None, dtype: Any = None) -> Array:
    """Checks that `labels` are class numbers [N] or multi-hot rows [N, C]; returns them.

    Class numbers are of any integer dtype, but must fit into what JAX holds: 32 bits unless
    jax_enable_x64 is set. Multi-hot rows are bool, or exactly 0 and 1 in any dtype. A column [N, 1]
    that is not bool is taken for class numbers of the wrong shape, whatever its values.

    Dtypes and shapes are always checked, values where they are known: those of NumPy, lists and
    whatever else NumPy reads, and of JAX arrays, but not of traced ones.

    Args:
      labels: to be checked. Of an array that has neither one axis nor two, all is left to the
        caller, who knows which shape is wanted.
      num_classes: C; class numbers must then be in 0 … C − 1.
      dtype: integer, into which class numbers must fit; default as JAX would hold them.

    Raises:
      ValueError: for anything else, with the first value that is wrong.
    """
    given = as_given(labels, "labels")
    is_integer = _is_integer(given)
    if not (is_integer or given.dtype == bool or jnp.issubdtype(given.dtype, jnp.floating)):
        remedy = ""
        if given.dtype.kind in "USTO":  # text, or objects that may be text
            remedy = (
                "; number the classes first, those of all sets together, as by "
                "np.unique(names, return_inverse=True)[1]"
            )
        raise ValueError(
            "labels must be class numbers, integers [N], or multi-hot rows of 0 and 1 [N, C]; "
            f"got {given.dtype} of shape {given.shape}{remedy}"
        )
    if given.ndim == 1:
        if not is_integer:
            raise ValueError(
                f"class numbers must be integers; got {given.dtype} of shape {given.shape}; if "
                "they are whole numbers, convert them by labels.astype(int)"
            )
        _check_class_numbers(given, num_classes, dtype)
    elif given.ndim == 2:
        if given.shape[1] == 1 and given.dtype != bool:
            raise ValueError(
                f"labels of shape {given.shape} are a column of class numbers; pass labels[:, 0] "
                "(multi-hot rows of a single class must be bool)"
            )
        _check_zeros_and_ones(
            given, "multi-hot labels", "decide which classes count, as in labels > 0.5"
        )
    labels = jnp.asarray(given)
    # JAX compares narrow integers among themselves: in 8 bits, class 261 of 300 would be class 5.
    is_narrow = labels.ndim == 1 and labels.dtype.itemsize < 4
    return labels.astype(jnp.int32) if is_narrow else labels


def _check_class_numbers(
    given: Array | np.ndarray, num_classes: int | None, dtype: Any = None
) -> None:
    holder = "the memory's " if dtype is not None else ""
    limits = jnp.iinfo(jax.dtypes.canonicalize_dtype(given.dtype) if dtype is None else dtype)
    own = jnp.iinfo(given.dtype)
    may_not_fit = own.min < limits.min or own.max > limits.max
    if not given.shape[0] or not (may_not_fit or num_classes is not None):
        return
    values = known_values(given)
    if values is None:
        return
    if int(values.min()) < limits.min or int(values.max()) > limits.max:
        raise ValueError(
            f"class numbers of {values.dtype} and shape {values.shape} do not fit into "
            f"{holder}{limits.dtype}; number the classes from 0"
            + ("" if holder else ", or enable jax_enable_x64")
        )
    if num_classes is not None:
        is_wrong = (values < 0) | (values >= num_classes)
        if np.any(is_wrong):
            row = int(np.argmax(is_wrong))
            raise ValueError(
                f"class numbers must be in 0 … {num_classes - 1} for {num_classes} classes; "
                f"got {values[row]} in row {row} of labels of shape {values.shape}"
            )


def nan_message(query: int, queries: Array, gallery: Array, where: Array | None = None) -> str:
    """What to say of a query with a NaN among its scores: which row holds the NaN.

    Args:
      query: the number of such a query.
      queries: [N, D].
      gallery: [M, D].
      where: bool [M] or [N, M], the items that belong to the gallery; default all.
    """
    belongs = None if where is None else known_values(where)
    for name, rows in (("queries", queries), ("gallery", gallery)):
        values = known_values(rows)
        if values is None or not jnp.issubdtype(values.dtype, jnp.floating):
            continue
        is_wrong = np.asarray(np.isnan(values).any(axis=1))
        if name == "gallery" and belongs is not None:
            is_wrong &= belongs if belongs.ndim == 1 else belongs[query]
        if name == "queries" and not is_wrong[query]:
            continue
        if is_wrong.any():
            row = query if name == "queries" else int(np.argmax(is_wrong))
            return f"row {row} of {name} of shape {rows.shape} holds NaN; leave it out"
    return (
        f"the similarity of row {query} of queries of shape {queries.shape} with some row of the "
        f"gallery of shape {gallery.shape} is NaN; look for infinite or very large values"
    )


def without_impossible(values: Array, negatives: Array) -> tuple[Array, Array]:
    """Similarities and negatives without those at −∞, which add nothing to any sum of exponentials.

    They are cleared, since 0 · ∞ would be NaN in the derivative by a temperature.
    """
    is_impossible = negatives & (values == -jnp.inf)
    return jnp.where(is_impossible, 0, values), negatives & ~is_impossible


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

    softplus of it is log(1 + Σ exp), which is 0 for such a row. Entries of −∞ add nothing, like
    those outside `mask`; one of ∞ gives ∞, where there is no derivative.
    """
    largest = jnp.max(jax.lax.stop_gradient(values), axis=1, initial=-jnp.inf, where=mask)
    is_empty = largest == -jnp.inf
    shift = jnp.where(jnp.isinf(largest), 0, largest)
    # Cleared before exp as well: an entry outside the mask may be far above the largest within.
    exponents = jnp.where(mask, values - shift[:, None], -jnp.inf)
    total = jnp.sum(jnp.exp(exponents), axis=1)
    return jnp.where(is_empty, -jnp.inf, jnp.log(jnp.where(is_empty, 1, total)) + shift)


def check_count(
    value: Any, name: str, shape: tuple[int, ...] | None = None, *, least: int = 1
) -> int:
    """Checks that a static count such as k is an integer, large enough, and returns it as an int.

    Args:
      value: an int, a NumPy integer or an array without axes of one.
      name: what it is called in the message.
      shape: of the array that it is for, for the message.
      least: the smallest value that can be.
    """
    is_bool = isinstance(value, bool) or getattr(value, "dtype", None) == np.bool_
    try:
        count = None if is_bool else operator.index(value)
    except jax.errors.TracerIntegerConversionError:
        raise  # it tells how to make the argument static
    except TypeError:
        count = None
    if count is None or count < least:
        of_what = "" if shape is None else f" for an array of shape {shape}"
        raise ValueError(f"{name} must be an integer of at least {least}; got {value!r}{of_what}")
    return count


def global_row_numbers(num_local_rows: int, axis_name: str | None) -> Array:
    """Numbers in the whole batch of this device's local rows: int32 [num_local_rows].

    Args:
      num_local_rows: how many rows each device holds, in the order of the devices.
      axis_name: of `jax.shard_map` or `jax.pmap`; None where one program holds all rows.
    """
    rows = jnp.arange(num_local_rows, dtype=jnp.int32)
    if axis_name is None:
        return rows
    return rows + num_local_rows * jax.lax.axis_index(axis_name).astype(jnp.int32)
