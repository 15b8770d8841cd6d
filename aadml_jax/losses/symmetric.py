"""Both directions of a loss on one matrix."""

import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from aadml_jax._arrays import Array, ArrayLike


def symmetric(loss: Callable[..., Array]) -> Callable[..., Array]:
    """A loss that takes the rows as anchors, then the columns, and averages both.

    L = (loss(S, R) + loss(Sᵀ, Rᵀ)) / 2. Of `ntxent_loss`, with one positive in each row and column,
    this is the loss of CLIP (Radford et al., ICML 2021, arXiv:2103.00020, figure 3).

    Args:
      loss: of this library, with `functools.partial` or without, or a function of your own with the
        same arguments.

    Returns:
      A function of the same arguments, the matrix to be given by its place. With `reduce_fn=None`
      it needs a square matrix and gives [N], the mean of row i's value and column i's.

    Raises:
      ValueError: when called with `reduce_fn=None` and a matrix that is not square, or as `loss`
        does.

    >>> import jax.numpy as jnp
    >>> from aadml_jax import hard_triplet_loss
    >>> distances = jnp.array([[0.5, 0.25], [0.75, 0.0]])  # the first row has a hinge of 1/2
    >>> relevance = jnp.eye(2, dtype=bool)
    >>> print(symmetric(hard_triplet_loss)(distances, relevance, margin=0.25, reduce_fn=None))
    [0.25 0.  ]
    """

    @functools.wraps(loss)
    def both_directions(
        matrix: ArrayLike,
        relevance: ArrayLike,
        *,
        where: ArrayLike | None = None,
        **options: Any,
    ) -> Array:
        of_rows = loss(matrix, relevance, where=where, **options)
        turned = [None if array is None else jnp.asarray(array).T for array in (matrix, where)]
        of_columns = loss(turned[0], jnp.asarray(relevance).T, where=turned[1], **options)
        if jnp.shape(of_rows) != jnp.shape(of_columns):
            raise ValueError(
                "without reduce_fn rows and columns are put together one by one; got a matrix of "
                f"shape {jnp.shape(matrix)}, which is not square"
            )
        return (of_rows + of_columns) / 2

    return both_directions
