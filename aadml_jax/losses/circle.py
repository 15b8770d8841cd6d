"""The circle loss."""

import jax
import jax.numpy as jnp

from aadml_jax._arrays import (
    Array,
    ArrayLike,
    ReduceFn,
    as_pairs,
    as_scalar,
    reduce_rows,
    row_logsumexp,
)


def circle_loss(
    similarities: ArrayLike,
    relevance: ArrayLike,
    *,
    margin: ArrayLike = 0.4,
    gamma: ArrayLike = 80.0,
    where: ArrayLike | None = None,
    reduce_fn: ReduceFn = jnp.mean,
) -> Array:
    """Pairs far from their optimum are moved faster: each similarity has a pace of its own.

    L_i = log(1 + Σ_{q∈Q(i)} e^{γ w_q (s_iq − margin)} · Σ_{p∈P(i)} e^{−γ w_p (s_ip − 1 + margin)}),
    w_q = max(0, s_iq + margin), w_p = max(0, 1 + margin − s_ip).

    The weights w are constants to the derivative, in the similarities as well as in the margin.

    Sun et al., "Circle Loss: A Unified Perspective of Pair Similarity Optimization", CVPR 2020,
    arXiv:2002.10857, equation 6 with the weights of equation 5 and O_p = 1 + margin, O_n = −margin,
    Δ_p = 1 − margin, Δ_n = margin. Departure: a mean over anchors.

    Args:
      similarities: [N, M], cosine similarities.
      relevance: bool [N, M].
      margin: relaxation, usually in (0, 1): positives shall exceed 1 − margin, negatives stay
        below it. The default 0.4 is what the paper uses for fine-grained retrieval.
      gamma: γ > 0, scale. The default 80 is the paper's for fine-grained retrieval.
      where: bool [N, M], the pairs that count; default all.
      reduce_fn: applied to the values per anchor; None returns them [N].

    Returns:
      The mean over all anchors (or what `reduce_fn` makes of the values). An anchor without
      positives or without negatives gets 0.

    Raises:
      ValueError: for shapes that do not fit, or a parameter that is no scalar or, unless traced,
        not finite, or a gamma not above 0.

    >>> import jax.numpy as jnp
    >>> similarities = jnp.array([[0.75, 0.25]])
    >>> relevance = jnp.array([[True, False]])
    >>> loss = circle_loss(similarities, relevance, margin=0.25, gamma=8.0)
    >>> print(jnp.round(jnp.expm1(loss), 5))  # both pairs sit on their margin: 1 · 1
    1.0
    """
    similarities, positives, negatives = as_pairs(similarities, relevance, where, "similarities")
    # A negative at −∞ has weight 0, and must be finite to be multiplied by it.
    similarities = jnp.where(negatives & jnp.isneginf(similarities), -1e9, similarities)
    margin = as_scalar(margin, similarities.dtype, "margin")
    gamma = as_scalar(gamma, similarities.dtype, "gamma", above=0)
    negative_weights = jax.lax.stop_gradient(jax.nn.relu(similarities + margin))
    positive_weights = jax.lax.stop_gradient(jax.nn.relu(1 + margin - similarities))
    push = row_logsumexp(gamma * negative_weights * (similarities - margin), negatives)
    pull = row_logsumexp(-gamma * positive_weights * (similarities - 1 + margin), positives)
    return reduce_rows(jax.nn.softplus(push + pull), reduce_fn)
