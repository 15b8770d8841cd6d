"""A loss that decides on each pair by itself: the sigmoid loss of SigLIP."""

import jax
import jax.numpy as jnp

from aadml_jax._arrays import (
    Array,
    ArrayLike,
    ReduceFn,
    as_pairs,
    as_scalar,
    reduce_rows,
    without_impossible,
)


def sigmoid_loss(
    similarities: ArrayLike,
    relevance: ArrayLike,
    *,
    temperature: ArrayLike = 0.1,
    bias: ArrayLike = -10.0,
    where: ArrayLike | None = None,
    reduce_fn: ReduceFn = jnp.mean,
) -> Array:
    """Whether a pair belongs together, as a logistic regression of its own: no softmax over a row.

    L_i = Σ_{p∈P(i)} log(1 + e^{−(s_ip/τ + b)}) + Σ_{q∈Q(i)} log(1 + e^{s_iq/τ + b}).

    Zhai et al., "Sigmoid Loss for Language Image Pre-Training" (SigLIP), ICCV 2023,
    arXiv:2303.15343, section 3.2 and algorithm 1, with t = 1/τ. Departure: an anchor may have
    several positives.

    Temperature and bias are to be learned: differentiate in both, with the temperature as the
    exponential of what the optimizer changes, so that it stays above 0:

        sigmoid_loss(s, relevance, temperature=jnp.exp(params["log_temperature"]),
                     bias=params["bias"])

    Args:
      similarities: [N, M], higher for more alike; cosine similarities for the defaults.
      relevance: bool [N, M].
      temperature: τ > 0. The default 0.1, t = 10, is where the paper begins.
      bias: b, scalar. With the default −10, where the paper begins, the many negatives of a batch
        cost little at first.
      where: bool [N, M], the pairs that count; default all.
      reduce_fn: applied to the values per anchor; None returns them [N].

    Returns:
      The mean over all anchors (or what `reduce_fn` makes of the values), which are sums over
      pairs, as in the paper. An anchor without any pair gets 0.

    Raises:
      ValueError: for shapes that do not fit, or a parameter that is no scalar or, unless traced,
        not finite, or a temperature not above 0.

    >>> import jax.numpy as jnp
    >>> similarities = jnp.log(jnp.array([[3.0, 1.0]]))
    >>> relevance = jnp.array([[True, False]])
    >>> loss = sigmoid_loss(similarities, relevance, temperature=1.0, bias=0.0)
    >>> print(jnp.exp(-loss))  # 3 / (1 + 3) · 1 / (1 + 1)
    0.375
    """
    similarities, positives, negatives = as_pairs(similarities, relevance, where, "similarities")
    similarities, negatives = without_impossible(similarities, negatives)
    temperature = as_scalar(temperature, similarities.dtype, "temperature", above=0)
    logits = similarities / temperature + as_scalar(bias, similarities.dtype, "bias")
    surprise = jax.nn.softplus(jnp.where(positives, -logits, logits))
    return reduce_rows(jnp.sum(jnp.where(positives | negatives, surprise, 0), axis=1), reduce_fn)
