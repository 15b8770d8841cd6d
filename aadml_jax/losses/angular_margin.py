"""Softmaxes over classes with a margin on the own class: ArcFace and CosFace.

Rows are samples, columns class proxies, which are vectors that are learned, or in label space the
one-hot vectors. The similarities are cosines, the logits of a classifier of unit vectors:

    loss = arcface_loss(
        cosine_similarity(samples, class_vectors),
        same_label(labels, jnp.arange(num_classes)))
"""

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


def _mean_surprise(
    own: Array, similarities: Array, positives: Array, negatives: Array, scale: Array
) -> Array:
    """Mean over p∈P(i) of −log( e^{scale own_ip} / (e^{scale own_ip} + Σ_Q e^{scale s_iq}) )."""
    against = row_logsumexp(scale * similarities, negatives)[:, None]
    return masked_row_mean(jax.nn.softplus(against - scale * own), positives)


def cosface_loss(
    similarities: ArrayLike,
    relevance: ArrayLike,
    *,
    margin: ArrayLike = 0.35,
    scale: ArrayLike = 64.0,
    where: ArrayLike | None = None,
    reduce_fn: ReduceFn = jnp.mean,
) -> Array:
    """Softmax over classes, the own class's cosine lowered by a margin.

    L_i = mean over p∈P(i) of
    −log( e^{γ(s_ip − m)} / (e^{γ(s_ip − m)} + Σ_{q∈Q(i)} e^{γ s_iq}) ), with the scale γ.

    Wang et al., "CosFace: Large Margin Cosine Loss for Deep Face Recognition", CVPR 2018,
    arXiv:1801.09414, equation 4. Departure: a sample may be of several classes; their terms are
    averaged, and none stands in another's denominator.

    Args:
      similarities: [N, C], cosines of samples and class proxies.
      relevance: bool [N, C], the classes of each sample.
      margin: m, scalar. The default 0.35 is the paper's.
      scale: γ > 0, s in the paper: 1 / temperature. The default 64 is the paper's, for hundreds of
        dimensions.
      where: bool [N, C], the classes that count; default all.
      reduce_fn: applied to the values per sample; None returns them [N].

    Returns:
      The mean over all samples (or what `reduce_fn` makes of the values). A sample of no class, or
      of all of them, gets 0.

    Raises:
      ValueError: for shapes that do not fit, or a parameter that is no scalar or, unless traced,
        not finite, or a scale not above 0.

    >>> import jax.numpy as jnp
    >>> similarities = jnp.array([[0.75, 0.25, 0.25]])
    >>> relevance = jnp.array([[True, False, False]])
    >>> loss = cosface_loss(similarities, relevance, margin=0.5, scale=1.0)
    >>> print(jnp.round(jnp.exp(loss), 5))  # (1 + 1 + 1) / 1
    3.0
    """
    similarities, positives, negatives = as_pairs(similarities, relevance, where, "similarities")
    similarities, negatives = without_impossible(similarities, negatives)
    own = similarities - as_scalar(margin, similarities.dtype, "margin")
    scale = as_scalar(scale, similarities.dtype, "scale", above=0)
    return reduce_rows(_mean_surprise(own, similarities, positives, negatives, scale), reduce_fn)


def arcface_loss(
    similarities: ArrayLike,
    relevance: ArrayLike,
    *,
    margin: ArrayLike = 0.5,
    scale: ArrayLike = 64.0,
    where: ArrayLike | None = None,
    reduce_fn: ReduceFn = jnp.mean,
) -> Array:
    """Softmax over classes, the angle to the own class widened by a margin.

    L_i = mean over p∈P(i) of
    −log( e^{γ cos(θ_ip + m)} / (e^{γ cos(θ_ip + m)} + Σ_{q∈Q(i)} e^{γ s_iq}) ),
    with s = cos θ and the scale γ.

    Deng et al., "ArcFace: Additive Angular Margin Loss for Deep Face Recognition", CVPR 2019,
    arXiv:1801.07698, equation 3. Departures: beyond θ + m = π, where the cosine would rise again,
    s_ip − m sin m takes its place, as in the authors' code; and a sample may be of several classes,
    whose terms are averaged, none standing in another's denominator.

    Args:
      similarities: [N, C], cosines of samples and class proxies; beyond ±1, by rounding, the angle
        is that of ±1.
      relevance: bool [N, C], the classes of each sample.
      margin: m, an angle in radians. The default 0.5 is the paper's.
      scale: γ > 0, s in the paper: 1 / temperature. The default 64 is the paper's, for hundreds of
        dimensions.
      where: bool [N, C], the classes that count; default all.
      reduce_fn: applied to the values per sample; None returns them [N].

    Returns:
      The mean over all samples (or what `reduce_fn` makes of the values). A sample of no class, or
      of all of them, gets 0. The derivative by a cosine grows without bound towards ±1, that by the
      vectors does not; at ±1 itself the angle counts as constant.

    Raises:
      ValueError: for shapes that do not fit, or a parameter that is no scalar or, unless traced,
        not finite, or a scale not above 0.

    >>> import jax.numpy as jnp
    >>> similarities = jnp.array([[0.5, -0.5, -0.5]])  # an angle of 60°, to 120° by the margin
    >>> relevance = jnp.array([[True, False, False]])
    >>> loss = arcface_loss(similarities, relevance, margin=jnp.pi / 3, scale=1.0)
    >>> print(jnp.round(jnp.exp(loss), 5))  # (1 + 1 + 1) / 1
    3.0
    """
    similarities, positives, negatives = as_pairs(similarities, relevance, where, "similarities")
    similarities, negatives = without_impossible(similarities, negatives)
    margin = as_scalar(margin, similarities.dtype, "margin")
    scale = as_scalar(scale, similarities.dtype, "scale", above=0)
    own = _cosine_of_wider_angle(similarities, margin)
    return reduce_rows(_mean_surprise(own, similarities, positives, negatives, scale), reduce_fn)


def _cosine_of_wider_angle(cosines: Array, margin: Array) -> Array:
    """cos(θ + m) of cos θ, and beyond θ + m = π what falls on with the cosine."""
    squared_sines = 1 - jnp.square(cosines)
    has_no_sine = squared_sines <= 0
    sines = jnp.where(has_no_sine, 0, jnp.sqrt(jnp.where(has_no_sine, 1, squared_sines)))
    wider = cosines * jnp.cos(margin) - sines * jnp.sin(margin)
    # θ ≤ π − m is cos θ ≥ −cos m for the margins from 0 to π.
    is_within = (margin <= 0) | ((margin <= jnp.pi) & (cosines >= -jnp.cos(margin)))
    return jnp.where(is_within, wider, cosines - margin * jnp.sin(margin))
