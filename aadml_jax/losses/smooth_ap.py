"""Smooth-AP: average precision made differentiable."""

import functools

import jax
import jax.numpy as jnp

from aadml_jax._arrays import (
    Array,
    ArrayLike,
    ReduceFn,
    as_pairs,
    as_scalar,
    divide_or_zero,
    reduce_rows,
    without_impossible,
)
from aadml_jax._ordering import columns_of, running_sum
from aadml_jax._sharding import split_as

# Positives compared with the whole row at a time: 4 keep the memory at a few times that of the row.
_POSITIVES_AT_ONCE = 4


# Compiled also where the caller is not: plain calls would compile the loop in it every time.
@functools.partial(jax.jit, static_argnames="with_derivatives")
def _smooth_ap(
    similarities: Array,
    temperature: Array,
    positives: Array,
    negatives: Array,
    *,
    with_derivatives: bool,
) -> tuple[Array, Array | None, Array | None]:
    """1 − Smooth-AP per row [N], its derivatives by similarities [N, M] and temperature [N].

    The loop runs as often as the row with the most positives needs, which reverse mode could not
    follow; hence the derivatives are summed up on the way.
    """
    columns = jnp.arange(similarities.shape[1], dtype=jnp.int32)[None, None, :]
    num_positives = jnp.sum(positives, axis=1, dtype=jnp.int32)
    positives_so_far = running_sum(positives)
    is_valid = positives | negatives

    def add_positives(turn: Array, carry: tuple) -> tuple:
        missing, by_similarity, by_temperature = carry
        places = (
            turn * _POSITIVES_AT_ONCE + jnp.arange(_POSITIVES_AT_ONCE, dtype=jnp.int32)[None, :]
        )
        exists = places < num_positives[:, None]
        places = jnp.broadcast_to(places, exists.shape)
        own = jnp.where(exists, columns_of(positives_so_far, places), 0)  # [N, K] columns
        is_own = columns == own[:, :, None]

        scores = jnp.take_along_axis(similarities, own, axis=1)
        gaps = (similarities[:, None, :] - scores[:, :, None]) / temperature
        above = jnp.where(is_valid[:, None, :] & ~is_own, jax.nn.sigmoid(gaps), 0)  # [N, K, M]
        rank = 1 + jnp.sum(above, axis=2)
        rank_among_positives = 1 + jnp.sum(jnp.where(positives[:, None, :], above, 0), axis=2)
        precision = jnp.where(exists, rank_among_positives / rank, 1)
        missing += jnp.sum(1 - precision, axis=1)
        if with_derivatives:
            by_rank = divide_or_zero(jnp.where(exists, 1 / rank, 0), num_positives[:, None])
            pull = precision[:, :, None] - jnp.where(positives[:, None, :], 1, 0)
            pull *= by_rank[:, :, None] * above * (1 - above) / temperature
            own_pull = jnp.where(is_own, jnp.sum(pull, axis=2, keepdims=True), 0)
            by_similarity += jnp.sum(pull - own_pull, axis=1)
            by_temperature -= jnp.sum(pull * gaps, axis=(1, 2))
        return missing, by_similarity, by_temperature

    most = jnp.max(num_positives, initial=0)
    # Made from the data: under shard_map what a loop carries must differ by device from the start.
    zero = 0 * most
    zeros = jnp.zeros_like(similarities) + zero.astype(similarities.dtype)
    zeros = split_as(zeros, similarities)
    of_row = zeros[:, 0]
    carry = (of_row, zeros, of_row) if with_derivatives else (of_row, None, None)
    # Counted turn by turn: XLA of JAX 0.10 takes a loop from 0 to a constant 1 in steps of 4 for
    # one that never runs.
    turns = (most + _POSITIVES_AT_ONCE - 1) // _POSITIVES_AT_ONCE
    missing, *derivatives = jax.lax.fori_loop(zero, turns, add_positives, carry)
    return divide_or_zero(missing, num_positives), *derivatives


@jax.custom_jvp
def _missing_precision(
    similarities: Array, temperature: Array, positives: Array, negatives: Array
) -> Array:
    arguments = (similarities, temperature, positives, negatives)
    return _smooth_ap(*arguments, with_derivatives=False)[0]


@_missing_precision.defjvp
def _missing_precision_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    value, by_similarity, by_temperature = _smooth_ap(*primals, with_derivatives=True)
    similarities_dot, temperature_dot, _, _ = tangents
    tangent = jnp.sum(by_similarity * similarities_dot, axis=1) + by_temperature * temperature_dot
    return value, tangent


def smooth_ap_loss(
    similarities: ArrayLike,
    relevance: ArrayLike,
    *,
    temperature: ArrayLike = 0.01,
    where: ArrayLike | None = None,
    reduce_fn: ReduceFn = jnp.mean,
) -> Array:
    """1 − average precision, with a sigmoid in place of every comparison of two scores.

    With G_jp = 1 / (1 + e^{−(s_ij − s_ip)/τ}), "j ranks above p",

    L_i = 1 − 1/|P(i)| Σ_{p∈P(i)} (1 + Σ_{j∈P(i), j≠p} G_jp) / (1 + Σ_{j∈P(i)∪Q(i), j≠p} G_jp).

    Brown et al., "Smooth-AP: Smoothing the Path Towards Large-Scale Image Retrieval", ECCV 2020,
    arXiv:2007.12163, its smoothed AP and loss. For τ → 0 it becomes 1 − `average_precision`, except
    at ties.

    The positives of a row are compared with the row four at a time, and the derivative is summed up
    on the way: O(N P M) time, O(N M) memory. Second derivatives need forward mode outside
    (`jax.hessian` has it).

    Args:
      similarities: [N, M], higher for more alike; cosine similarities for the default temperature.
      relevance: bool [N, M].
      temperature: τ > 0, the width of the sigmoid in units of the similarity. The default 0.01 is
        the paper's: smaller is nearer to AP, larger reaches more pairs with its gradient.
      where: bool [N, M], the pairs that count; default all.
      reduce_fn: applied to the values per anchor; None returns them [N].

    Returns:
      The mean over all anchors (or what `reduce_fn` makes of the values), each in [0, 1). An anchor
      without positives or without negatives gets 0.

    Raises:
      ValueError: for shapes that do not fit, or a temperature that is no scalar or, unless traced,
        not above 0.

    >>> import jax.numpy as jnp
    >>> similarities = jnp.array([[0.5, 0.5]])
    >>> relevance = jnp.array([[True, False]])
    >>> print(jnp.round(smooth_ap_loss(similarities, relevance), 4))  # 1 − 1 / (1 + 1/2)
    0.3333
    """
    similarities, positives, negatives = as_pairs(similarities, relevance, where, "similarities")
    similarities, negatives = without_impossible(similarities, negatives)
    temperature = as_scalar(temperature, similarities.dtype, "temperature", above=0)
    if similarities.shape[1] == 0:
        return reduce_rows(jnp.zeros(similarities.shape[0], similarities.dtype), reduce_fn)
    per_row = _missing_precision(similarities, temperature, positives, negatives)
    return reduce_rows(per_row, reduce_fn)
