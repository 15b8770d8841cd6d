"""Triplet losses that pick one negative per positive, or one triplet per anchor."""

import jax
import jax.numpy as jnp

from aadml_jax._arrays import (
    Array,
    ArrayLike,
    ReduceFn,
    as_pairs,
    as_scalar,
    masked_row_mean,
    reduce_rows,
)
from aadml_jax._ordering import COUNTED_DENSELY, count_below, last_key, order_keys


# Compiled also where the caller is not: plain calls would trace its two ways every time.
@jax.jit
def _semihard_columns(keys: Array, negatives: Array) -> Array:
    """Each entry's nearest negative that is farther than it, else the farthest: int32 [N, M].

    They are column numbers, of equal negatives the first; any of a row without negatives.
    """
    if keys.shape[1] > COUNTED_DENSELY:
        return _semihard_columns_by_search(keys, negatives)
    return jax.lax.platform_dependent(
        keys,
        negatives,
        cuda=_semihard_columns_by_comparison,
        rocm=_semihard_columns_by_comparison,
        default=_semihard_columns_by_search,
    )


def _semihard_columns_by_comparison(keys: Array, negatives: Array) -> Array:
    """Compares all pairs of a row within one reduction: O(N M²) time, none of it in memory."""
    of_negatives = jnp.where(negatives, keys, jnp.iinfo(keys.dtype).min)
    largest = jnp.max(of_negatives, axis=1, keepdims=True)
    first_largest = jax.lax.argmax(of_negatives, 1, jnp.int32)[:, None]
    is_farther = negatives[:, None, :] & (keys[:, None, :] > keys[:, :, None])
    # The smallest key, and of equal ones the first, as `argmin` has it.
    nearest = jax.lax.argmin(jnp.where(is_farther, keys[:, None, :], last_key(keys)), 2, jnp.int32)
    return jnp.where(keys < largest, nearest, first_largest)


def _semihard_columns_by_search(keys: Array, negatives: Array) -> Array:
    """Orders the negatives of each row and searches all entries among them."""
    negative_keys = jnp.where(negatives, keys, last_key(keys))
    order = jnp.argsort(negative_keys, axis=1, stable=True)
    ordered_keys = jnp.take_along_axis(negative_keys, order, axis=1)
    last = jnp.sum(negatives, axis=1, keepdims=True, dtype=jnp.int32) - 1
    farther = count_below(ordered_keys, keys + 1)
    # "The largest" may stand in several columns; step back to the first of them.
    largest = count_below(ordered_keys, jnp.take_along_axis(ordered_keys, last, axis=1))
    place = jnp.where(farther <= last, farther, largest)
    # `argsort` gives 64 bits where they are enabled; both ways must give one type.
    return jnp.take_along_axis(order, place, axis=1).astype(jnp.int32)


def semihard_triplet_loss(
    distances: ArrayLike,
    relevance: ArrayLike,
    *,
    margin: ArrayLike = 1.0,
    where: ArrayLike | None = None,
    reduce_fn: ReduceFn = jnp.mean,
) -> Array:
    """For each positive, the nearest negative that is farther than it, else the farthest negative.

    L_i = mean over p∈P(i) of max(0, d_ip − d_iq(p) + margin), where d_iq(p) is the smallest
    negative distance greater than d_ip, or, where there is none, the largest one.

    Schroff et al., "FaceNet", CVPR 2015, arXiv:1503.03832, section 3.2, equation 4. The paper
    leaves open what happens without a semi-hard negative; the farthest is the common choice.

    Args:
      distances: [N, M].
      relevance: bool [N, M].
      margin: scalar, the distance wanted between a positive and its negative.
      where: bool [N, M], the pairs that count; default all.
      reduce_fn: applied to the values per anchor; None returns them [N].

    Returns:
      The mean over all anchors (or what `reduce_fn` makes of the values). An anchor without
      positives or without negatives gets 0. Among negatives of equal distance the first column
      gets the derivative.

    Raises:
      ValueError: for shapes that do not fit, or a margin that is no scalar or, unless traced, not
        finite.

    >>> import jax.numpy as jnp
    >>> distances = jnp.array([[0.5, 0.25, 0.75, 1.0]])
    >>> relevance = jnp.array([[True, False, False, False]])
    >>> print(semihard_triplet_loss(distances, relevance))  # 0.5 − 0.75 + 1
    0.75
    """
    distances, positives, negatives = as_pairs(distances, relevance, where, "distances")
    if distances.shape[1] == 0:
        return reduce_rows(jnp.zeros(distances.shape[0], distances.dtype), reduce_fn)
    keys = order_keys(jax.lax.stop_gradient(distances))
    chosen = _semihard_columns(keys, negatives)

    valid = positives & jnp.any(negatives, axis=1, keepdims=True)
    margin = as_scalar(margin, distances.dtype, "margin")
    negative_distances = jnp.take_along_axis(distances, chosen, axis=1)
    violations = jnp.where(valid, distances - negative_distances + margin, 0)
    # A NaN negative orders last and may not be chosen; it must show all the same.
    is_broken = jnp.any(negatives & jnp.isnan(distances), axis=1) & jnp.any(positives, axis=1)
    per_row = masked_row_mean(jax.nn.relu(violations), valid)
    return reduce_rows(jnp.where(is_broken, jnp.nan, per_row), reduce_fn)


def hard_triplet_loss(
    distances: ArrayLike,
    relevance: ArrayLike,
    *,
    margin: ArrayLike = 1.0,
    where: ArrayLike | None = None,
    reduce_fn: ReduceFn = jnp.mean,
) -> Array:
    """The hardest triplet of each anchor: its farthest positive against its nearest negative.

    L_i = max(0, max_{p∈P(i)} d_ip − min_{q∈Q(i)} d_iq + margin).

    Hermans, Beyer, Leibe, "In Defense of the Triplet Loss for Person Re-Identification",
    arXiv:1703.07737, equation 5. Departure: a mean over anchors instead of a sum.

    Args:
      distances: [N, M].
      relevance: bool [N, M].
      margin: scalar, the distance wanted between the two.
      where: bool [N, M], the pairs that count; default all.
      reduce_fn: applied to the values per anchor; None returns them [N].

    Returns:
      The mean over all anchors (or what `reduce_fn` makes of the values). An anchor without
      positives or without negatives gets 0. Entries that tie for hardest share the derivative.

    Raises:
      ValueError: for shapes that do not fit, or a margin that is no scalar or, unless traced, not
        finite.

    >>> import jax.numpy as jnp
    >>> distances = jnp.array([[0.5, 0.25, 0.75, 1.0]])
    >>> relevance = jnp.array([[True, True, False, False]])
    >>> print(hard_triplet_loss(distances, relevance))  # 0.5 − 0.75 + 1
    0.75
    """
    distances, positives, negatives = as_pairs(distances, relevance, where, "distances")
    farthest = jnp.max(distances, axis=1, initial=-jnp.inf, where=positives)
    nearest = jnp.min(distances, axis=1, initial=jnp.inf, where=negatives)
    valid = jnp.any(positives, axis=1) & jnp.any(negatives, axis=1)
    margin = as_scalar(margin, distances.dtype, "margin")
    gaps = jnp.where(valid, farthest, 0) - jnp.where(valid, nearest, 0)
    return reduce_rows(jnp.where(valid, jax.nn.relu(gaps + margin), 0), reduce_fn)
