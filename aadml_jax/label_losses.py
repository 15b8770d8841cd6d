"""Label losses: how far label-space outputs are from their labels.

In label space the last layer has one unit per class. Both losses take the outputs [B, C] and their
targets [B, C] of 0 and 1, and follow the conventions of `aadml_jax.losses`: `reduce_fn` takes the
values per row, None returns them.
"""

import jax
import jax.numpy as jnp

from aadml_jax._arrays import Array, ArrayLike, ReduceFn, as_embeddings, reduce_rows


def squared_label_loss(
    outputs: ArrayLike, targets: ArrayLike, *, reduce_fn: ReduceFn = jnp.mean
) -> Array:
    """Squared Euclidean distance of each output to its one-hot or multi-hot label.

    L_i = Σ_c (P_ic − y_ic)². This library's reading of the paper, which does not publish its label
    loss; it fits the outputs that the same group published later.

    Args:
      outputs: P [B, C].
      targets: y [B, C], 1 for the classes of a clip, else 0.
      reduce_fn: applied to the values per row; None returns them [B].

    Returns:
      The mean over all rows (or what `reduce_fn` makes of the values).

    Raises:
      ValueError: for shapes that do not fit.

    >>> import jax.numpy as jnp
    >>> print(squared_label_loss(jnp.array([[0.5, 2.0]]), jnp.array([[1, 0]])))  # 0.5² + 2²
    4.25
    """
    outputs, targets = _as_rows(outputs, targets)
    return reduce_rows(jnp.sum(jnp.square(outputs - targets), axis=1), reduce_fn)


def cross_entropy_label_loss(
    outputs: ArrayLike, targets: ArrayLike, *, reduce_fn: ReduceFn = jnp.mean
) -> Array:
    """Cross-entropy of the softmax; the classes of a clip share its target equally.

    L_i = −Σ_c t_ic log softmax(P_i)_c with t_i = y_i / Σ_c y_ic.

    Args:
      outputs: P [B, C].
      targets: y [B, C], 1 for the classes of a clip, else 0. A row without any class gets 0.
      reduce_fn: applied to the values per row; None returns them [B].

    Returns:
      The mean over all rows (or what `reduce_fn` makes of the values).

    Raises:
      ValueError: for shapes that do not fit.

    >>> import jax.numpy as jnp
    >>> loss = cross_entropy_label_loss(jnp.log(jnp.array([[3.0, 1.0]])), jnp.array([[0, 1]]))
    >>> print(jnp.exp(-loss))  # 1 / (3 + 1)
    0.25
    """
    outputs, targets = _as_rows(outputs, targets)
    shares = targets / jnp.maximum(jnp.sum(targets, axis=1, keepdims=True), 1)
    log_posteriors = jax.nn.log_softmax(outputs, axis=1)
    # One of −∞, of outputs that are 3e38 apart, is nothing to the other classes' share.
    surprises = jnp.where(targets > 0, shares * log_posteriors, 0)
    return reduce_rows(-jnp.sum(surprises, axis=1), reduce_fn)


def _as_rows(outputs: ArrayLike, targets: ArrayLike) -> tuple[Array, Array]:
    outputs, targets = as_embeddings(outputs, targets)
    if outputs.shape != targets.shape:
        raise ValueError(
            f"outputs and targets must both be [B, C]; got {outputs.shape} and {targets.shape}"
        )
    return outputs, targets
