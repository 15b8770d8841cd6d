"""Losses of single pairs against fixed thresholds: contrastive and margin loss."""

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


def contrastive_loss(
    distances: ArrayLike,
    relevance: ArrayLike,
    *,
    margin: ArrayLike = 1.0,
    where: ArrayLike | None = None,
    reduce_fn: ReduceFn = jnp.mean,
) -> Array:
    """Pulls positives to distance 0 and pushes negatives beyond the margin.

    L_i = mean over P(i) of d_ij² + mean over Q(i) of max(0, margin − d_ij)².

    Hadsell, Chopra, LeCun, "Dimensionality Reduction by Learning an Invariant Mapping", CVPR 2006,
    equation 4. Departures: positives and negatives are averaged apart, so that the few positives
    of a batch weigh as much as its many negatives, and the factors ½ are dropped.

    Args:
      distances: [N, M], ≥ 0.
      relevance: bool [N, M].
      margin: distance from which on negatives are left alone. The default 1 is the cosine distance
        of unrelated (orthogonal) embeddings.
      where: bool [N, M], the pairs that count; default all.
      reduce_fn: applied to the values per anchor; None returns them [N].

    Returns:
      The mean over all anchors (or what `reduce_fn` makes of the values). An anchor without
      positives or without negatives gets 0 for that side.

    Raises:
      ValueError: for shapes that do not fit, or a margin that is no scalar or, unless traced, not
        finite.

    >>> import jax.numpy as jnp
    >>> distances = jnp.array([[0.5, 0.25, 2.0]])
    >>> relevance = jnp.array([[True, False, False]])
    >>> print(contrastive_loss(distances, relevance))  # 0.5² + (0.75² + 0²) / 2
    0.53125
    """
    distances, positives, negatives = as_pairs(distances, relevance, where, "distances")
    margin = as_scalar(margin, distances.dtype, "margin")
    pull = masked_row_mean(jnp.square(jnp.where(positives, distances, 0)), positives)
    gaps = jnp.where(negatives, margin - distances, 0)
    push = masked_row_mean(jnp.square(jax.nn.relu(gaps)), negatives)
    return reduce_rows(pull + push, reduce_fn)


def margin_loss(
    distances: ArrayLike,
    relevance: ArrayLike,
    *,
    margin: ArrayLike = 0.2,
    beta: ArrayLike = 1.2,
    where: ArrayLike | None = None,
    reduce_fn: ReduceFn = jnp.mean,
) -> Array:
    """Wants positives within beta − margin and negatives beyond beta + margin.

    L_i = mean over P(i) of max(0, d_ij − beta + margin)
        + mean over Q(i) of max(0, beta − d_ij + margin).

    Wu et al., "Sampling Matters in Deep Embedding Learning", ICCV 2017, arXiv:1706.07567, its
    margin based loss. Departures: positives and negatives are averaged apart instead of being
    sampled, and no penalty on beta is added; beta may be learned, by differentiating in it.

    Args:
      distances: [N, M]; Euclidean distances of unit vectors for the defaults.
      relevance: bool [N, M].
      margin: half the width of the gap between positives and negatives. The default 0.2 is the
        paper's.
      beta: distance that separates positives from negatives. The default 1.2 is the paper's start
        value; the cosine distance that corresponds to it is 0.72.
      where: bool [N, M], the pairs that count; default all.
      reduce_fn: applied to the values per anchor; None returns them [N].

    Returns:
      The mean over all anchors (or what `reduce_fn` makes of the values). An anchor without
      positives or without negatives gets 0 for that side.

    Raises:
      ValueError: for shapes that do not fit, or a parameter that is no scalar or, unless traced,
        not finite.

    >>> import jax.numpy as jnp
    >>> distances = jnp.array([[1.25, 0.75, 2.0]])
    >>> relevance = jnp.array([[True, False, False]])
    >>> print(margin_loss(distances, relevance, margin=0.25, beta=1.0))  # 0.5 + (0.5 + 0) / 2
    0.75
    """
    distances, positives, negatives = as_pairs(distances, relevance, where, "distances")
    margin = as_scalar(margin, distances.dtype, "margin")
    excess = distances - as_scalar(beta, distances.dtype, "beta")
    pull = masked_row_mean(jax.nn.relu(margin + excess), positives)
    push = masked_row_mean(jax.nn.relu(margin - excess), negatives)
    return reduce_rows(pull + push, reduce_fn)
