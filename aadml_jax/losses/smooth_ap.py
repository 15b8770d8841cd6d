"""Smooth-AP: average precision made differentiable."""

import functools
from collections.abc import Callable

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
from aadml_jax._ordering import columns_of, running_sum, sorted_keys
from aadml_jax._sharding import split_as

# Columns up to which a GPU compares each with each, positives or not: 0.13 billion sigmoids for a
# square matrix, in about the time of a loop's turns, whose operations a GPU starts one by one.
_COMPARED_DENSELY = 512

# Positives compared with the whole row at a time: 4 keep the memory at a few times that of the row.
# Accelerators lose time with every turn, and take 16 as long as their pairs fill at most 64 MiB.
_POSITIVES_AT_ONCE = 4
_POSITIVES_AT_ONCE_ON_ACCELERATORS = 16
_PAIRS_AT_ONCE_ON_ACCELERATORS = 2**24

_PerRow = tuple[Array, Array | None, Array | None]


# Compiled also where the caller is not: plain calls would compile the loop in it every time.
@functools.partial(jax.jit, static_argnames="with_derivatives")
def _smooth_ap(
    similarities: Array,
    temperature: Array,
    positives: Array,
    negatives: Array,
    *,
    with_derivatives: bool,
) -> _PerRow:
    """1 − Smooth-AP per row [N], its derivatives by similarities [N, M] and temperature [N]."""
    at_once = _POSITIVES_AT_ONCE_ON_ACCELERATORS
    if at_once * similarities.size > _PAIRS_AT_ONCE_ON_ACCELERATORS:
        at_once = _POSITIVES_AT_ONCE
    in_few_turns = functools.partial(_by_loop, at_once=at_once, is_searched=False)
    is_narrow = similarities.shape[1] <= _COMPARED_DENSELY
    on_gpu = _by_comparison if is_narrow else in_few_turns
    ways = {"cuda": on_gpu, "rocm": on_gpu, "tpu": in_few_turns, "default": _by_loop}
    return jax.lax.platform_dependent(
        similarities,
        temperature,
        positives,
        negatives,
        **{
            platform: functools.partial(way, with_derivatives=with_derivatives)
            for platform, way in ways.items()
        },
    )


def _by_comparison(
    similarities: Array,
    temperature: Array,
    positives: Array,
    negatives: Array,
    *,
    with_derivatives: bool,
) -> _PerRow:
    """Compares all pairs of a row within three reductions: O(N M²) time, none of it in memory."""
    columns = jnp.arange(similarities.shape[1], dtype=jnp.int32)
    is_other = (columns[:, None] != columns[None, :])[None]
    # By how much the other, o, is above entry e.
    gaps = (similarities[:, None, :] - similarities[:, :, None]) * (1 / temperature)
    gaps = jnp.where(is_other, gaps, 0)  # [N, e, o]
    above = jax.nn.sigmoid(gaps)
    positive, other_positive = positives[:, :, None], positives[:, None, :]
    other_negative = negatives[:, None, :]

    ahead = jnp.sum(jnp.where(other_positive & is_other, above, 0), axis=2)
    wrongly_ahead = jnp.sum(jnp.where(other_negative, above, 0), axis=2)
    rank = 1 + ahead + wrongly_ahead
    missing = jnp.where(positives, wrongly_ahead / rank, 0)
    num_positives = jnp.sum(positives, axis=1, keepdims=True, dtype=jnp.int32)
    value = divide_or_zero(jnp.sum(missing, axis=1), num_positives[:, 0])
    if not with_derivatives:
        return value, None, None

    # A negative that rises over positive p takes `lift` of p, a positive that does gives `drop`.
    by_rank = divide_or_zero(jnp.where(positives, 1 / rank, 0), num_positives) / temperature
    lift, drop = by_rank * (1 - missing), by_rank * missing
    slopes = above * (1 - above)  # the same seen from e and from o
    as_positive = jnp.where(
        other_positive, -drop[:, :, None], jnp.where(other_negative, lift[:, :, None], 0)
    )
    as_other = jnp.where(
        positive, -drop[:, None, :], jnp.where(negatives[:, :, None], lift[:, None, :], 0)
    )
    as_positive = jnp.where(positive, as_positive, 0)
    as_other = jnp.where(other_positive, as_other, 0)
    by_similarity = jnp.sum(slopes * (as_other - as_positive), axis=2)
    by_temperature = -jnp.sum(slopes * as_positive * gaps, axis=(1, 2))
    return value, by_similarity, by_temperature


def _by_loop(
    similarities: Array,
    temperature: Array,
    positives: Array,
    negatives: Array,
    *,
    with_derivatives: bool,
    at_once: int = _POSITIVES_AT_ONCE,
    is_searched: bool = True,
) -> _PerRow:
    """Compares `at_once` positives of each row with the whole row at a time.

    The loop runs as often as the row with the most positives needs, which reverse mode could not
    follow; hence the derivatives are summed up on the way.
    """
    columns = jnp.arange(similarities.shape[1], dtype=jnp.int32)[None, None, :]
    num_positives = jnp.sum(positives, axis=1, dtype=jnp.int32)
    is_valid = positives | negatives
    own_columns = _positive_columns(positives, is_searched=is_searched)

    def add_positives(turn: Array, carry: tuple) -> tuple:
        missing, by_similarity, by_temperature = carry
        places = turn * at_once + jnp.arange(at_once, dtype=jnp.int32)[None, :]
        exists = places < num_positives[:, None]
        places = jnp.broadcast_to(places, exists.shape)
        own = jnp.where(exists, own_columns(places), 0)  # [N, K] columns
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
    turns = (most + at_once - 1) // at_once
    missing, *derivatives = jax.lax.fori_loop(zero, turns, add_positives, carry)
    return divide_or_zero(missing, num_positives), *derivatives


def _positive_columns(positives: Array, *, is_searched: bool) -> Callable[[Array], Array]:
    """A function that gives the columns of the positives number `places` [N, K] of each row.

    Of places past a row's positives it gives any number.
    """
    if is_searched:
        so_far = running_sum(positives)
        return lambda places: columns_of(so_far, places)
    # A search is a loop within the loop; one sort before it finds all columns.
    columns = jnp.arange(positives.shape[1], dtype=jnp.int32)[None, :]
    ordered = sorted_keys(jnp.broadcast_to(columns, positives.shape), positives)
    return lambda places: jnp.take_along_axis(ordered, places, axis=1)


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

    The positives of a row are compared with the row four at a time, up to sixteen on accelerators,
    and the derivative is summed up on the way: O(N P M) time, O(N M) memory. A GPU compares up to
    512 columns all at once: O(N M²) time in few operations, and O(N M) memory all the same. Second
    derivatives need forward mode outside (`jax.hessian` has it).

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
