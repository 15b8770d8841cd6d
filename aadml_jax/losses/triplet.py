"""The triplet loss over all valid triplets of the batch, without ever building them."""

import jax
import jax.numpy as jnp

from aadml_jax._arrays import (
    Array,
    ArrayLike,
    ReduceFn,
    as_pairs,
    as_scalar,
    divide_or_zero,
    masked_row_mean,
    reduce_rows,
)
from aadml_jax._ordering import (
    COUNTED_DENSELY,
    count_below,
    last_key,
    order_keys,
    running_sum,
    sorted_keys,
)

# Positives that a TPU compares with the whole row in one turn.
_POSITIVES_AT_ONCE = 16


def _violation_weights(
    distances: Array, margin: Array, positives: Array, negatives: Array
) -> Array:
    """The derivative of each row's mean hinge by its distances [N, M].

    A positive p weighs (number of its violating negatives: d_q < d_p + margin) / (|P| |Q|), a
    negative q minus (number of its violating positives) / (|P| |Q|).
    """
    num_positives = jnp.sum(positives, axis=1, keepdims=True, dtype=jnp.int32)
    num_negatives = jnp.sum(negatives, axis=1, keepdims=True, dtype=jnp.int32)
    per_positive, per_negative = _violations(distances, margin, positives, negatives)
    counts = jnp.where(positives, per_positive, jnp.where(negatives, -per_negative, 0))
    # Divided one after the other: the number of triplets of a row can exceed an int32.
    return divide_or_zero(
        divide_or_zero(counts.astype(distances.dtype), num_positives), num_negatives
    )


# Compiled also where the caller is not: plain calls would trace its two ways every time.
@jax.jit
def _violations(
    distances: Array, margin: Array, positives: Array, negatives: Array
) -> tuple[Array, Array]:
    """Violating negatives of each positive, and positives of each negative: int32 [N, M] each.

    Entries of the other side hold anything.
    """
    arguments = (distances, margin, positives, negatives)
    is_narrow = 0 < distances.shape[1] <= COUNTED_DENSELY
    on_gpu = _violations_by_comparison if is_narrow else _violations_by_full_search
    on_tpu = _violations_in_turns if is_narrow else _violations_by_search
    return jax.lax.platform_dependent(
        *arguments, cuda=on_gpu, rocm=on_gpu, tpu=on_tpu, default=_violations_by_search
    )


def _violations_by_comparison(
    distances: Array, margin: Array, positives: Array, negatives: Array
) -> tuple[Array, Array]:
    """Compares all pairs of a row within one reduction: O(N M²) time, none of it in memory."""
    keys = order_keys(jnp.where(positives, distances + margin, distances))
    # For a positive the negatives below it, for a negative the positives above: on flipped signs
    # the one is the other, and one reduction gives both.
    is_below = keys[:, None, :] < keys[:, :, None]
    is_above = keys[:, None, :] > keys[:, :, None]
    is_violation = jnp.where(
        positives[:, :, None], negatives[:, None, :] & is_below, positives[:, None, :] & is_above
    )
    counts = jnp.sum(is_violation, axis=2, dtype=jnp.int32)
    return counts, counts


def _violations_in_turns(
    distances: Array, margin: Array, positives: Array, negatives: Array
) -> tuple[Array, Array]:
    """Compares all entries of each row with 16 of its positives a turn: O(N P M) time, no search.

    Rows are the last axis, along whose lanes a TPU works: what differs by row alone is then
    repeated for nothing, and a row's sum needs no exchange between lanes.
    """
    num_positives = jnp.sum(positives, axis=1, keepdims=True, dtype=jnp.int32)
    keys = order_keys(jnp.where(positives, distances + margin, distances))
    of_positives = sorted_keys(keys, positives).T
    padding = ((0, -len(of_positives) % _POSITIVES_AT_ONCE), (0, 0))
    of_positives = jnp.pad(of_positives, padding, constant_values=jnp.iinfo(keys.dtype).max)
    of_negatives = jnp.where(negatives, keys, last_key(keys)).T
    keys = keys.T

    def compare(turn: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        positives_up_to, negatives_below = carry
        first = turn * _POSITIVES_AT_ONCE
        some = jax.lax.dynamic_slice_in_dim(of_positives, first, _POSITIVES_AT_ONCE)
        of_turn = []
        for place in range(_POSITIVES_AT_ONCE):
            positive = some[place : place + 1]
            positives_up_to += (positive <= keys).astype(jnp.int32)
            of_turn.append(jnp.sum(of_negatives < positive, axis=0, dtype=jnp.int32))
        of_turn = jnp.stack(of_turn)
        below = jax.lax.dynamic_update_slice_in_dim(negatives_below, of_turn, first, axis=0)
        return positives_up_to, below

    most = jnp.max(num_positives, initial=0)
    turns = (most + _POSITIVES_AT_ONCE - 1) // _POSITIVES_AT_ONCE
    carry = (0 * keys.astype(jnp.int32), 0 * of_positives.astype(jnp.int32))
    positives_up_to, below = jax.lax.fori_loop(0 * most, turns, compare, carry)
    # Equal positives have the same negatives below them, so the last of them may stand for each.
    place = jnp.maximum(positives_up_to, 1).astype(jnp.uint32) - 1
    per_positive = jnp.take_along_axis(below, place, axis=0, mode="promise_in_bounds")
    return per_positive.T, num_positives - positives_up_to.T


def _violations_by_full_search(
    distances: Array, margin: Array, positives: Array, negatives: Array
) -> tuple[Array, Array]:
    """The search in whole rows: its number of turns is known when it is compiled.

    A GPU would wait for the host at every turn of a loop whose end depends on the data.
    """
    return _violations_by_search(distances, margin, positives, negatives, is_bounded=False)


def _violations_by_search(
    distances: Array,
    margin: Array,
    positives: Array,
    negatives: Array,
    *,
    is_bounded: bool = True,
) -> tuple[Array, Array]:
    """Orders the positives of each row and searches all entries among them.

    With `is_bounded` among as many as the row with the most positives has.
    """
    # Positives at 0.1 and 0.4, negatives at 0.3, 0.6 and 0.2, margin 0.25:
    #   in order 0.2 0.3 0.35′ 0.6 0.65′ (′ is a positive), positives up to each: 0 0 1 1 2;
    #   negatives violate the 2 2 1 positives after them; those with fewer than 1 positive up to
    #   them are 2, with fewer than 2 they are 3: the violating negatives of the two positives.
    num_positives = jnp.sum(positives, axis=1, keepdims=True, dtype=jnp.int32)
    keys = order_keys(jnp.where(positives, distances + margin, distances))
    # Keys are integers, so that the positives up to an entry are those below the next key.
    most = jnp.max(num_positives, initial=0) if is_bounded else None
    positives_up_to = count_below(sorted_keys(keys, positives), keys + 1, most)
    # A negative violates the positives that come after it. So those of a positive are the
    # negatives that have fewer positives before them than it has with itself and its equals.
    # Row by row, so that rows may be sharded on an explicit mesh.
    count = jax.vmap(lambda zeros, places, ones: zeros.at[places].add(ones, mode="drop"))
    negatives_at = count(
        0 * positives_up_to, positives_up_to.astype(jnp.uint32), negatives.astype(jnp.int32)
    )
    before = jnp.maximum(positives_up_to, 1).astype(jnp.uint32) - 1
    per_positive = jnp.take_along_axis(
        running_sum(negatives_at), before, axis=1, mode="promise_in_bounds"
    )
    return per_positive, num_positives - positives_up_to


def _weighted_hinges(
    weights: Array, distances: Array, margin: Array, positives: Array, negatives: Array
) -> Array:
    # An infinite negative violates no finite positive, and 0 · ∞ must not make a NaN of it. Beside
    # an infinite positive it stays: ∞ − ∞ is NaN.
    is_far = jnp.isposinf(distances)
    has_far_positive = jnp.any(positives & is_far, axis=1, keepdims=True)
    valid = positives | (negatives & ~(is_far & ~has_far_positive))
    # The weights of a row sum to 0, so its mean may be taken out; what remains is small, and so is
    # its rounding error.
    mean = masked_row_mean(distances, valid & ~is_far)[:, None]
    centered = distances - mean
    hinges = weights * jnp.where(valid, centered, 0) + jnp.where(positives, weights * margin, 0)
    return jnp.sum(hinges, axis=1)


@jax.custom_jvp
def _mean_hinge(distances: Array, margin: Array, positives: Array, negatives: Array) -> Array:
    arguments = (distances, margin, positives, negatives)
    weights = _violation_weights(*arguments)
    return _weighted_hinges(weights, distances, margin, positives, negatives)


@_mean_hinge.defjvp
def _mean_hinge_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    distances, margin, positives, negatives = primals
    distances_dot, margin_dot, _, _ = tangents
    weights = _violation_weights(*primals)
    value = _weighted_hinges(weights, distances, margin, positives, negatives)
    by_margin = jnp.sum(jnp.where(positives, weights, 0), axis=1)
    return value, jnp.sum(weights * distances_dot, axis=1) + by_margin * margin_dot


def triplet_loss(
    distances: ArrayLike,
    relevance: ArrayLike,
    *,
    margin: ArrayLike = 1.0,
    where: ArrayLike | None = None,
    reduce_fn: ReduceFn = jnp.mean,
) -> Array:
    """Mean hinge over *all* triplets (anchor, positive, negative) of each anchor.

    L_i = 1 / (|P(i)| |Q(i)|) Σ_{p∈P(i)} Σ_{q∈Q(i)} max(0, d_ip − d_iq + margin).

    The hinge is that of Weinberger, Saul, "Distance Metric Learning for Large Margin Nearest
    Neighbor Classification", JMLR 2009, equation 12, and of Schroff et al., "FaceNet", CVPR 2015,
    arXiv:1503.03832, equation 3. Departure: those sum over triplets, here every anchor counts the
    same, and triplets without violation stay in the mean.

    The value and the derivative are exact and need no triplets: the number of violations per entry
    is both its weight in the sum and its derivative. They are counted by ordering the positives
    (d + margin) of each row once and searching all entries among them: O(N M log M) time,
    O(N M) memory.

    Args:
      distances: [N, M], above −∞. A negative at ∞ violates nothing, but counts in |Q|; a positive
        there makes its row infinite, or NaN if a negative is there too.
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
      ValueError: for shapes that do not fit, or a margin that is no scalar or, unless traced, not
        finite.

    >>> import jax.numpy as jnp
    >>> distances = jnp.array([[0.5, 0.75, 2.0]])
    >>> relevance = jnp.array([[True, False, False]])
    >>> print(triplet_loss(distances, relevance, margin=0.5))  # (0.25 + 0) / 2
    0.125
    """
    distances, positives, negatives = as_pairs(distances, relevance, where, "distances")
    margin = as_scalar(margin, distances.dtype, "margin")
    return reduce_rows(_mean_hinge(distances, margin, positives, negatives), reduce_fn)
