"""The triplet loss over all valid triplets of the batch, without ever building them."""

import functools

import jax
import jax.numpy as jnp

from aadml_jax._arrays import (
    Array,
    ReduceFn,
    as_pairs,
    as_scalar,
    divide_or_zero,
    masked_row_mean,
    reduce_rows,
)
from aadml_jax._ordering import count_below, count_so_far, order_keys, sorted_keys

# XLA unrolls a reduction over 16 entries and vectorises what surrounds it; longer ones it does not.
_AT_ONCE = 16
# With more positives in a row, sorting is faster than comparing each with the whole row.
_MOST_COMPARED = 1024


# Compiled also where the caller is not: plain calls would compile the loops in it every time.
@functools.partial(jax.jit, static_argnames="most_compared")
def _violation_weights(
    distances: Array, margin: Array, positives: Array, negatives: Array, *, most_compared: int
) -> Array:
    """The derivative of each row's mean hinge by its distances [N, M].

    A positive p weighs (number of its violating negatives: d_q < d_p + margin) / (|P| |Q|), a
    negative q minus (number of its violating positives) / (|P| |Q|).
    """
    num_positives = jnp.sum(positives, axis=1, keepdims=True, dtype=jnp.int32)
    num_negatives = jnp.sum(negatives, axis=1, keepdims=True, dtype=jnp.int32)
    arguments = (distances, margin, positives, negatives)
    by_comparing = functools.partial(_violations_by_comparing, most_compared=most_compared)
    if distances.shape[1] <= most_compared:
        per_positive, per_negative = by_comparing(*arguments)
    else:
        per_positive, per_negative = jax.lax.cond(
            jnp.max(num_positives, initial=0) <= most_compared,
            by_comparing,
            _violations_by_sorting,
            *arguments,
        )
    counts = jnp.where(positives, per_positive, jnp.where(negatives, -per_negative, 0))
    # Divided one after the other: the number of triplets of a row can exceed an int32.
    return divide_or_zero(
        divide_or_zero(counts.astype(distances.dtype), num_positives), num_negatives
    )


def _violations_by_comparing(
    distances: Array,
    margin: Array,
    positives: Array,
    negatives: Array,
    *,
    most_compared: int = _MOST_COMPARED,
) -> tuple[Array, Array]:
    """Violating negatives of each positive, and positives of each negative: int32 [N, M] each.

    Sixteen positives at a time are compared with the whole row; entries of the other side hold
    anything.
    """
    num_rows, num_columns = distances.shape
    place = count_so_far(positives) - 1
    width = max(1, -(-num_columns // _AT_ONCE)) * _AT_ONCE
    padding = ((0, 0), (0, width - num_columns))
    row = jnp.pad(jnp.where(negatives, distances, jnp.inf), padding, constant_values=jnp.inf)
    slices = row.reshape(num_rows, 1, _AT_ONCE, width // _AT_ONCE)
    # d + margin of each row's positives moved to its front, −∞ behind them.
    rows = jnp.arange(num_rows, dtype=jnp.int32)[:, None]
    ordered = jnp.full((num_rows, width), -jnp.inf, distances.dtype)
    ordered = ordered.at[rows, jnp.where(positives, place, width)].set(
        distances + margin, mode="drop"
    )

    def compare(turn: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        of_places, of_negatives = carry
        first = turn * _AT_ONCE
        # The barriers keep XLA from computing what stands before them anew for every entry.
        bounds = jax.lax.optimization_barrier(
            jax.lax.dynamic_slice_in_dim(ordered, first, _AT_ONCE, axis=1)
        )
        of_negatives += jnp.sum(row[:, None, :] < bounds[:, :, None], axis=1, dtype=jnp.int32)
        in_slices = jnp.sum(slices < bounds[:, :, None, None], axis=2, dtype=jnp.int32)
        totals = jnp.sum(jax.lax.optimization_barrier(in_slices), axis=2, dtype=jnp.int32)
        return jax.lax.dynamic_update_slice_in_dim(of_places, totals, first, axis=1), of_negatives

    most = jnp.max(jnp.sum(positives, axis=1, dtype=jnp.int32), initial=0)
    # Under vmap both branches run, and rows beyond the limit must not hold this one up.
    turns = (jnp.minimum(most, most_compared) + _AT_ONCE - 1) // _AT_ONCE
    # Made from the data: under shard_map what a loop carries must differ by device from the start.
    zero = 0 * most
    zeros = jnp.zeros((num_rows, width), jnp.int32) + zero
    of_places, of_negatives = jax.lax.fori_loop(zero, turns, compare, (zeros, zeros))
    place = jnp.maximum(place, 0)
    per_positive = jnp.take_along_axis(of_places, place, axis=1, mode="promise_in_bounds")
    return per_positive, of_negatives[:, :num_columns]


def _violations_by_sorting(
    distances: Array, margin: Array, positives: Array, negatives: Array
) -> tuple[Array, Array]:
    """The same counts from the ordered row: O(N M log M) whatever the number of positives."""
    positive_keys = order_keys(distances + margin)
    negative_keys = order_keys(distances)
    num_positives = jnp.sum(positives, axis=1, keepdims=True, dtype=jnp.int32)
    # One sort and one search serve both sides, stacked: XLA takes seconds to compile each of them.
    # Keys are integers, so that the positives ≤ a negative are those below the next key.
    sides = jnp.concatenate([negatives, positives])
    sorted_sides = sorted_keys(jnp.concatenate([negative_keys, positive_keys]), sides)
    per_positive, not_violating = jnp.split(
        count_below(sorted_sides, jnp.concatenate([positive_keys, negative_keys + 1])), 2
    )
    return per_positive, num_positives - not_violating


def _weighted_hinges(
    weights: Array, distances: Array, margin: Array, positives: Array, negatives: Array
) -> Array:
    # The weights of a row sum to 0, so its mean may be taken out; what remains is small, and so is
    # its rounding error.
    valid = positives | negatives
    centered = distances - masked_row_mean(distances, valid)[:, None]
    hinges = weights * jnp.where(valid, centered, 0) + jnp.where(positives, weights * margin, 0)
    return jnp.sum(hinges, axis=1)


@jax.custom_jvp
def _mean_hinge(distances: Array, margin: Array, positives: Array, negatives: Array) -> Array:
    arguments = (distances, margin, positives, negatives)
    weights = _violation_weights(*arguments, most_compared=_MOST_COMPARED)
    return _weighted_hinges(weights, distances, margin, positives, negatives)


@_mean_hinge.defjvp
def _mean_hinge_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    distances, margin, positives, negatives = primals
    distances_dot, margin_dot, _, _ = tangents
    weights = _violation_weights(*primals, most_compared=_MOST_COMPARED)
    value = _weighted_hinges(weights, distances, margin, positives, negatives)
    by_margin = jnp.sum(jnp.where(positives, weights, 0), axis=1)
    return value, jnp.sum(weights * distances_dot, axis=1) + by_margin * margin_dot


def triplet_loss(
    distances: Array,
    relevance: Array,
    *,
    margin: float | Array = 1.0,
    where: Array | None = None,
    reduce_fn: ReduceFn = jnp.mean,
) -> Array:
    """Mean hinge over *all* triplets (anchor, positive, negative) of each anchor.

    L_i = 1 / (|P(i)| |Q(i)|) Σ_{p∈P(i)} Σ_{q∈Q(i)} max(0, d_ip − d_iq + margin).

    The hinge is that of Weinberger, Saul, "Distance Metric Learning for Large Margin Nearest
    Neighbor Classification", JMLR 2009, equation 12, and of Schroff et al., "FaceNet", CVPR 2015,
    arXiv:1503.03832, equation 3. Departure: those sum over triplets, here every anchor counts the
    same, and triplets without violation stay in the mean.

    The value and the derivative are exact and need no triplets: the number of violations per entry
    is both its weight in the sum and its derivative. Where no row has more than 1,024 positives,
    they are counted by comparing, O(N P M) time with P of the row that has most; else by ordering
    positives (d + margin) and negatives (d) of each row once, O(N M log M). O(N M) memory.

    Args:
      distances: [N, M], finite.
      relevance: bool [N, M].
      margin: scalar, by how much every negative shall be farther than every positive; may be
        traced and differentiated. The default 1 suits the cosine distance in label space: it never
        saturates before all classes are orthogonal.
      where: bool [N, M], the pairs that count; default all.
      reduce_fn: applied to the values per anchor; None returns them [N].

    Returns:
      The mean over all anchors (or what `reduce_fn` makes of the values). An anchor without
      positives or without negatives gets 0.

    Raises:
      ValueError: for shapes that do not fit, or a margin that is no scalar.

    >>> import jax.numpy as jnp
    >>> distances = jnp.array([[0.5, 0.75, 2.0]])
    >>> relevance = jnp.array([[True, False, False]])
    >>> print(triplet_loss(distances, relevance, margin=0.5))  # (0.25 + 0) / 2
    0.125
    """
    distances, positives, negatives = as_pairs(distances, relevance, where, "distances")
    margin = as_scalar(margin, distances.dtype, "margin")
    return reduce_rows(_mean_hinge(distances, margin, positives, negatives), reduce_fn)
