"""The lifted structure loss."""

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


def lifted_structure_loss(
    distances: ArrayLike,
    relevance: ArrayLike,
    *,
    margin: ArrayLike = 1.0,
    where: ArrayLike | None = None,
    reduce_fn: ReduceFn = jnp.mean,
) -> Array:
    """Smooth maximum of the positives' distances against the smooth minimum of the negatives'.

    L_i = max(0, log Σ_{p∈P(i)} e^{d_ip} + log Σ_{q∈Q(i)} e^{margin − d_iq}).

    The generalised form per anchor of Hermans, Beyer, Leibe, "In Defense of the Triplet Loss for
    Person Re-Identification", arXiv:1703.07737, equation 7 (misprinted in its first version), after
    Oh Song et al., "Deep Metric Learning via Lifted Structured Feature Embedding", CVPR 2016,
    arXiv:1511.06452, which sums squared hinges over pairs of positives. Departure: a mean over
    anchors instead of a sum.

    Args:
      distances: [N, M].
      relevance: bool [N, M].
      margin: scalar. The default 1 is the one with which Hermans et al. found this form's best
        MAP. The smooth maxima grow with the logarithm of the number of columns, so that the hinge
        rarely reaches 0 on large batches.
      where: bool [N, M], the pairs that count; default all.
      reduce_fn: applied to the values per anchor; None returns them [N].

    Returns:
      The mean over all anchors (or what `reduce_fn` makes of the values). An anchor without
      positives or without negatives gets 0.

    Raises:
      ValueError: for shapes that do not fit, or a margin that is no scalar or, unless traced, not
        finite.

    >>> import jax.numpy as jnp
    >>> distances = jnp.array([[0.5, 0.25, 0.25]])
    >>> relevance = jnp.array([[True, False, False]])
    >>> loss = lifted_structure_loss(distances, relevance)
    >>> print(jnp.round(loss - jnp.log(2.0), 6))  # 0.5 + 1 − 0.25, and log 2 for the two negatives
    1.25
    """
    distances, positives, negatives = as_pairs(distances, relevance, where, "distances")
    margin = as_scalar(margin, distances.dtype, "margin")
    # An empty side is −∞, and so the hinge 0.
    smooth_gap = row_logsumexp(distances, positives) + row_logsumexp(margin - distances, negatives)
    return reduce_rows(jax.nn.relu(smooth_gap), reduce_fn)
