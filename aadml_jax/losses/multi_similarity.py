"""Losses that add log(1 + Σ exp) of positives and of negatives: multi-similarity, proxy anchor."""

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
    without_impossible,
)


def multi_similarity_loss(
    similarities: ArrayLike,
    relevance: ArrayLike,
    *,
    alpha: ArrayLike = 2.0,
    beta: ArrayLike = 50.0,
    base: ArrayLike = 0.5,
    where: ArrayLike | None = None,
    reduce_fn: ReduceFn = jnp.mean,
) -> Array:
    """Weighs every pair by its own similarity and by those of the other pairs of its row.

    L_i = log(1 + Σ_{p∈P(i)} e^{−α (s_ip − base)}) / α
        + log(1 + Σ_{q∈Q(i)} e^{β (s_iq − base)}) / β.

    Wang et al., "Multi-Similarity Loss with General Pair Weighting for Deep Metric Learning", CVPR
    2019, arXiv:1904.06627, its final loss. Departure: the paper first mines pairs; this is the loss
    alone, over all pairs that `where` leaves.

    Args:
      similarities: [N, M], higher for more alike; cosine similarities for the defaults.
      relevance: bool [N, M].
      alpha: α > 0, how sharply the least similar positives stand out. The default 2 is the
        paper's.
      beta: β > 0, how sharply the most similar negatives stand out. The default 50 is the paper's.
      base: similarity that tells pairs that are near from those that are far. The default 0.5 is
        that of the authors' code; their paper is quoted with 1.
      where: bool [N, M], the pairs that count; default all.
      reduce_fn: applied to the values per anchor; None returns them [N].

    Returns:
      The mean over all anchors (or what `reduce_fn` makes of the values). An anchor without
      positives or without negatives gets 0 for that side.

    Raises:
      ValueError: for shapes that do not fit, or a parameter that is no scalar or, unless traced,
        not finite, or an alpha or beta not above 0.

    >>> import jax.numpy as jnp
    >>> similarities = jnp.array([[0.5, 0.5, 0.5]])
    >>> relevance = jnp.array([[True, False, False]])
    >>> loss = multi_similarity_loss(similarities, relevance, alpha=1.0, beta=1.0)
    >>> print(jnp.exp(loss))  # (1 + 1) (1 + 2)
    6.0
    """
    similarities, positives, negatives = as_pairs(similarities, relevance, where, "similarities")
    similarities, negatives = without_impossible(similarities, negatives)
    alpha = as_scalar(alpha, similarities.dtype, "alpha", above=0)
    beta = as_scalar(beta, similarities.dtype, "beta", above=0)
    base = as_scalar(base, similarities.dtype, "base")
    excess = similarities - base
    pull = jax.nn.softplus(row_logsumexp(-alpha * excess, positives)) / alpha
    push = jax.nn.softplus(row_logsumexp(beta * excess, negatives)) / beta
    return reduce_rows(pull + push, reduce_fn)


def proxy_anchor_loss(
    similarities: ArrayLike,
    relevance: ArrayLike,
    *,
    margin: ArrayLike = 0.1,
    alpha: ArrayLike = 32.0,
    where: ArrayLike | None = None,
    reduce_fn: ReduceFn = jnp.mean,
) -> Array:
    """Class proxies as anchors: each pulls the samples of its class and pushes all others.

    L_c = log(1 + Σ_{p∈P(c)} e^{−α (s_cp − margin)}) + log(1 + Σ_{q∈Q(c)} e^{α (s_cq + margin)}).

    Rows are class proxies, columns samples. In label space the one-hot vectors are proxies that
    need no training:

        proxies = jnp.eye(num_classes)
        loss = proxy_anchor_loss(
            cosine_similarity(proxies, samples),
            same_label(jnp.arange(num_classes), labels))

    Kim et al., "Proxy Anchor Loss for Deep Metric Learning", CVPR 2020, arXiv:2003.13911, equation
    4. Departure: the mean of both terms runs over all rows; the paper divides the first by the
    number of proxies that have positives in the batch. To have its form, `reduce_fn=None` and
    divide apart.

    Args:
      similarities: [N, M], cosine similarities for the defaults.
      relevance: bool [N, M].
      margin: δ, scalar. The default 0.1 is the paper's.
      alpha: α > 0, how sharply the hardest samples stand out. The default 32 is the paper's.
      where: bool [N, M], the pairs that count; default all.
      reduce_fn: applied to the values per proxy; None returns them [N].

    Returns:
      The mean over all proxies (or what `reduce_fn` makes of the values). A proxy without
      positives or without negatives gets 0 for that side.

    Raises:
      ValueError: for shapes that do not fit, or a parameter that is no scalar or, unless traced,
        not finite, or an alpha not above 0.

    >>> import jax.numpy as jnp
    >>> similarities = jnp.array([[0.25, -0.25, -0.25]])
    >>> relevance = jnp.array([[True, False, False]])
    >>> loss = proxy_anchor_loss(similarities, relevance, margin=0.25)
    >>> print(jnp.round(jnp.exp(loss), 5))  # (1 + 1) (1 + 2)
    6.0
    """
    similarities, positives, negatives = as_pairs(similarities, relevance, where, "similarities")
    similarities, negatives = without_impossible(similarities, negatives)
    margin = as_scalar(margin, similarities.dtype, "margin")
    alpha = as_scalar(alpha, similarities.dtype, "alpha", above=0)
    pull = jax.nn.softplus(row_logsumexp(-alpha * (similarities - margin), positives))
    push = jax.nn.softplus(row_logsumexp(alpha * (similarities + margin), negatives))
    return reduce_rows(pull + push, reduce_fn)
