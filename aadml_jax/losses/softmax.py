"""Losses that make positives win a softmax against the other columns of their row."""

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
    row_logsumexp,
    without_impossible,
)


def _logits(similarities: Array, temperature: ArrayLike, valid: Array) -> Array:
    """Similarities over temperature, each row moved so that its largest logit is 0.

    The losses do not feel such a move; rounding does, since the differences count.
    """
    largest = jnp.max(similarities, axis=1, keepdims=True, initial=-jnp.inf, where=valid)
    largest = jax.lax.stop_gradient(jnp.where(largest == -jnp.inf, 0, largest))
    temperature = as_scalar(temperature, similarities.dtype, "temperature", above=0)
    return (similarities - largest) / temperature


def ntxent_loss(
    similarities: ArrayLike,
    relevance: ArrayLike,
    *,
    temperature: ArrayLike = 0.07,
    where: ArrayLike | None = None,
    reduce_fn: ReduceFn = jnp.mean,
) -> Array:
    """Normalised temperature-scaled cross entropy: each positive alone against all negatives.

    L_i = mean over p∈P(i) of −log( e^{s_ip/τ} / (e^{s_ip/τ} + Σ_{q∈Q(i)} e^{s_iq/τ}) ).

    Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations" (SimCLR),
    ICML 2020, arXiv:2002.05709, equation 1. Departure: an anchor may have several positives; they
    do not stand in one another's denominators, and their terms are averaged.

    Other names for it: with one positive per anchor this is InfoNCE (van den Oord et al.,
    arXiv:1807.03748, equation 4), and with inner products as similarities and `temperature=1`, the
    multi-class N-pair loss (Sohn, NIPS 2016) without its regulariser.

    Args:
      similarities: [N, M], higher for more alike; cosine similarities for the default temperature.
      relevance: bool [N, M].
      temperature: τ > 0. The default 0.07 is widespread for cosine similarities (He et al., MoCo,
        arXiv:1911.05722); 0.1 was the best of those that SimCLR tried.
      where: bool [N, M], the pairs that count; default all.
      reduce_fn: applied to the values per anchor; None returns them [N].

    Returns:
      The mean over all anchors (or what `reduce_fn` makes of the values). An anchor without
      positives or without negatives gets 0.

    Raises:
      ValueError: for shapes that do not fit, or a temperature that is no scalar or, unless traced,
        not above 0.

    >>> import jax.numpy as jnp
    >>> similarities = jnp.log(jnp.array([[3.0, 1.0, 2.0]]))
    >>> relevance = jnp.array([[True, False, False]])
    >>> print(jnp.exp(-ntxent_loss(similarities, relevance, temperature=1.0)))  # 3 / (3 + 1 + 2)
    0.5
    """
    similarities, positives, negatives = as_pairs(similarities, relevance, where, "similarities")
    similarities, negatives = without_impossible(similarities, negatives)
    logits = _logits(similarities, temperature, positives | negatives)
    against = row_logsumexp(logits, negatives)[:, None]
    return reduce_rows(masked_row_mean(jax.nn.softplus(against - logits), positives), reduce_fn)


def supcon_loss(
    similarities: ArrayLike,
    relevance: ArrayLike,
    *,
    temperature: ArrayLike = 0.1,
    where: ArrayLike | None = None,
    reduce_fn: ReduceFn = jnp.mean,
) -> Array:
    """Supervised contrastive loss: positives share one softmax with each other and all negatives.

    L_i = mean over p∈P(i) of −log( e^{s_ip/τ} / Σ_{j∈P(i)∪Q(i)} e^{s_ij/τ} ).

    Khosla et al., "Supervised Contrastive Learning", NeurIPS 2020, arXiv:2004.11362, equation 2
    (the form with the sum over positives outside of the logarithm). Departure: a mean over anchors
    instead of a sum. It is smallest, log |P(i)|, when all positives are equally near.

    Other names for it: with class proxies as columns and squared Euclidean distances between unit
    vectors, negated, as similarities and `temperature=1`, this is Proxy-NCA (Movshovitz-Attias et
    al., arXiv:1703.07464) except that the paper leaves the own class's proxy out of the
    denominator.

    Args:
      similarities: [N, M], higher for more alike; cosine similarities for the default temperature.
      relevance: bool [N, M].
      temperature: τ > 0. The default 0.1 is the paper's.
      where: bool [N, M], the pairs that count; default all.
      reduce_fn: applied to the values per anchor; None returns them [N].

    Returns:
      The mean over all anchors (or what `reduce_fn` makes of the values). An anchor without
      positives gets 0; one without negatives still pulls its positives together.

    Raises:
      ValueError: for shapes that do not fit, or a temperature that is no scalar or, unless traced,
        not above 0.

    >>> import jax.numpy as jnp
    >>> similarities = jnp.log(jnp.array([[3.0, 3.0, 6.0]]))
    >>> relevance = jnp.array([[True, True, False]])
    >>> print(jnp.exp(-supcon_loss(similarities, relevance, temperature=1.0)))  # 3 / (3 + 3 + 6)
    0.25
    """
    similarities, positives, negatives = as_pairs(similarities, relevance, where, "similarities")
    similarities, negatives = without_impossible(similarities, negatives)
    valid = positives | negatives
    logits = _logits(similarities, temperature, valid)
    total = row_logsumexp(logits, valid)[:, None]
    # A row without any column has −∞ there, which must not reach its derivative.
    surprise = jnp.where(positives, total - logits, 0)
    return reduce_rows(masked_row_mean(surprise, positives), reduce_fn)
