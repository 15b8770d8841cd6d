"""A check, for those who ask for it, that a loss gets the matrix that it is for."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np

from aadml_jax._arrays import Array, ArrayLike, as_given, known_values

# Of the matrix's largest magnitude, what rounding may do.
_ROUNDING = 1e-4


def checked(loss: Callable[..., Array]) -> Callable[..., Array]:
    """A loss that refuses a matrix which evidently is none of those that it is for.

    To be used while a program is written: `checked(triplet_loss)(distances, relevance)` computes
    what `triplet_loss` does, but raises for

    - distances below 0, as similarities are given to a loss on distances;
    - one set against itself whose diagonal shows the other kind of matrix: of distances it is 0, of
      similarities no entry of the row is larger;
    - one set against itself with the diagonal as positives, for want of `where`.

    One set against itself is a symmetric matrix of more than one row. Whether the loss takes
    distances or similarities its first parameter's name says, as all losses of this library have
    it. Values are looked at where they are known: under `jax.jit` nothing is checked. A matrix of
    two sets without negative entries cannot be told.

    Args:
      loss: of this library, with `functools.partial` or without, or a function of your own.

    Returns:
      A function of the same arguments, the matrix to be given by its place.

    Raises:
      ValueError: if the first parameter is neither `distances` nor `similarities`; when called, as
        above, or as `loss` does.

    >>> import jax.numpy as jnp
    >>> from aadml_jax import triplet_loss
    >>> print(checked(triplet_loss)(jnp.array([[0.5, 1.0]]), jnp.array([[True, False]])))
    0.5
    """
    needs = next(iter(inspect.signature(loss).parameters), "")
    if needs not in ("distances", "similarities"):
        raise ValueError(
            "the first parameter of a loss must be called distances or similarities; got "
            f"{needs or 'none'}"
        )

    @functools.wraps(loss)
    def checked_loss(
        matrix: ArrayLike,
        relevance: ArrayLike,
        *,
        where: ArrayLike | None = None,
        **options: Any,
    ) -> Array:
        result = loss(matrix, relevance, where=where, **options)  # which checks shapes and dtypes
        everything = np.ones(np.shape(matrix), bool)
        arrays = (matrix, relevance, everything if where is None else where)
        known = [known_values(as_given(array, needs)) for array in arrays]
        if all(values is not None for values in known):
            values, is_relevant, counts = (np.asarray(array) for array in known)
            _check(needs, values.astype(np.float64), is_relevant != 0, counts != 0)
        return result

    return checked_loss


def _check(needs: str, values: np.ndarray, relevance: np.ndarray, counts: np.ndarray) -> None:
    magnitudes = np.abs(values[np.isfinite(values)])
    rounding = _ROUNDING * float(magnitudes.max(initial=0))
    if needs == "distances":
        is_wrong = counts & (values < -rounding)
        if is_wrong.any():
            row, column = np.argwhere(is_wrong)[0].tolist()
            raise ValueError(
                f"distances must be at least 0; got {values[row, column]:.6g} at "
                f"[{row}, {column}] of shape {values.shape}; for similarities take cosine_distance "
                "of the same embeddings, or 1 − similarities"
            )
    if len(values) < 2 or values.shape[0] != values.shape[1]:
        return
    if not np.allclose(values, values.T, rtol=0, atol=rounding):
        return
    diagonal = np.diagonal(values)[:, None]
    are_distances = bool((np.abs(diagonal) <= rounding).all() and (values >= -rounding).all())
    are_similarities = bool((values <= diagonal + rounding).all())
    if are_distances == are_similarities:  # of all points alike, or of neither kind
        return
    is_right = are_distances if needs == "distances" else are_similarities
    if not is_right:
        other = "similarities" if needs == "distances" else "distances"
        remedy = "cosine_distance" if needs == "distances" else "cosine_similarity"
        raise ValueError(
            f"{needs} are needed, but the diagonal of the symmetric matrix of shape "
            f"{values.shape} is that of {other} of one set; compare by {remedy}"
        )
    own = np.diagonal(relevance & counts)
    if own.all():
        raise ValueError(
            f"one set of {len(values)} rows is compared with itself, and each row is its own "
            f"positive; pass where=~jnp.eye({len(values)}, dtype=bool)"
        )
