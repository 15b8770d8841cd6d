"""Similarity and distance matrices between two sets of embeddings, and label equality.

All take two arrays whose rows are samples, anchors first, and return an [N, M] matrix: rows are
anchors (queries), columns are references (gallery). One set against itself is the same call with
the array given twice; the diagonal is then an ordinary entry, to be masked by the caller.

Inputs below float32 are raised to it; float64 stays. Products run at `Precision.HIGHEST`, since
TPUs and GPUs would otherwise round the factors to bfloat16 or TF32.
"""

import jax
import jax.numpy as jnp

from aadml_jax._arrays import Array, as_embeddings, as_labels


def _products(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b.T, precision=jax.lax.Precision.HIGHEST)


def _unit_rows(x: Array) -> Array:
    """Rows scaled to length 1; a zero row stays zero and passes no gradient.

    Dividing by the largest entry first keeps the squares in range for rows of any length. The
    result does not depend on that scale, so its derivative is exact with the scale held constant.
    """
    scale = jax.lax.stop_gradient(jnp.max(jnp.abs(x), axis=1, keepdims=True, initial=0))
    is_zero = scale == 0
    scaled = jnp.where(is_zero, 0, x) / jnp.where(is_zero, 1, scale)
    squares = jnp.sum(jnp.square(scaled), axis=1, keepdims=True)
    return scaled / jnp.sqrt(jnp.where(is_zero, 1, squares))


def cosine_similarity(a: Array, b: Array) -> Array:
    """Cosine of the angle between each row of `a` and each row of `b`.

    s_ij = a_i · b_j / (‖a_i‖ ‖b_j‖), in [−1, 1] up to rounding.

    Args:
      a: anchors [N, D], of any finite length (rows need not be normalised).
      b: references [M, D].

    Returns:
      [N, M]. A zero row has no direction: its similarities and its gradient are 0.

    Raises:
      ValueError: if the shapes are not [N, D] and [M, D].

    >>> import jax.numpy as jnp
    >>> print(cosine_similarity(jnp.array([[3.0, 4.0]]), jnp.array([[2.0, 0.0], [0.0, 0.0]])))
    [[0.6 0. ]]
    """
    a, b = as_embeddings(a, b)
    return _products(_unit_rows(a), _unit_rows(b))


def posterior_similarity(a: Array, b: Array) -> Array:
    """Probability that two samples are of one class, by the softmax of each row.

    s_ij = Σ_c p(c | i) p(c | j), p(· | i) = softmax(a_i), in (0, 1]. Where the softmaxes are the
    classes' true probabilities and the two modalities are independent given the class, this order
    has the highest expected precision at every cut-off. In label space, whose last layer has one
    unit per class, it stands beside the cosine of the outputs; the paper ranks by cosine.

    Args:
      a: logits of the queries [N, C].
      b: logits of the gallery [M, C].

    Returns:
      [N, M].

    Raises:
      ValueError: if the shapes are not [N, C] and [M, C].
    """
    a, b = as_embeddings(a, b)
    return _products(jax.nn.softmax(a, axis=1), jax.nn.softmax(b, axis=1))


def cosine_distance(a: Array, b: Array) -> Array:
    """1 − `cosine_similarity(a, b)`, in [0, 2] up to rounding; 1 from or to a zero row.

    Args:
      a: anchors [N, D].
      b: references [M, D].

    Returns:
      [N, M].

    Raises:
      ValueError: if the shapes are not [N, D] and [M, D].
    """
    return 1 - cosine_similarity(a, b)


@jax.custom_jvp
@jax.jit  # op by op, the differences would be stored: N×M×D numbers
def _sum_of_squared_differences(a: Array, b: Array) -> Array:
    return jnp.sum(jnp.square(a[:, None, :] - b[None, :, :]), axis=-1)


@_sum_of_squared_differences.defjvp
def _sum_of_squared_differences_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    # Reverse mode through the differences would store them, N×M×D numbers. Matrix products need
    # neither that memory nor its time; moving the origin into the data spares them most of the
    # cancellation.
    (a, b), (a_dot, b_dot) = primals, tangents
    origin = jnp.mean(jax.lax.stop_gradient(b), axis=0, keepdims=True) if b.shape[0] else 0
    a_near, b_near = a - origin, b - origin
    of_anchors = jnp.sum(a_near * a_dot, axis=1)[:, None] - _products(a_dot, b_near)
    of_references = jnp.sum(b_near * b_dot, axis=1)[None, :] - _products(a_near, b_dot)
    return _sum_of_squared_differences(a, b), 2 * (of_anchors + of_references)


def squared_euclidean_distance(a: Array, b: Array) -> Array:
    """Σ_c (a_ic − b_jc)², summed over the differences themselves.

    The usual ‖a‖² + ‖b‖² − 2 a·b is a matrix product, but loses every digit for points much closer
    to each other than to the origin; this form keeps a relative error of about 1e-6 in float32.

    Args:
      a: anchors [N, D].
      b: references [M, D].

    Returns:
      [N, M], ≥ 0. Differences below about 1e-19 in float32 underflow to 0 when squared. The
      derivative is rounded relative to the spread of the data instead: an error of about 1e-7
      times (spread / distance) for a pair much closer than the others.

    Raises:
      ValueError: if the shapes are not [N, D] and [M, D].
    """
    return _sum_of_squared_differences(*as_embeddings(a, b))


def euclidean_distance(a: Array, b: Array) -> Array:
    """Square root of `squared_euclidean_distance(a, b)`.

    Args:
      a: anchors [N, D].
      b: references [M, D].

    Returns:
      [N, M], ≥ 0. The derivative at coincident points, where none exists, is 0; its rounding is
      that of `squared_euclidean_distance`.

    Raises:
      ValueError: if the shapes are not [N, D] and [M, D].
    """
    squared = squared_euclidean_distance(a, b)
    is_zero = squared == 0
    return jnp.where(is_zero, 0, jnp.sqrt(jnp.where(is_zero, 1, squared)))


def same_label(a: Array, b: Array) -> Array:
    """Which references carry a label of the anchor: the usual `relevance`.

    Args:
      a: class numbers of the anchors, any integer dtype [N], or multi-hot labels, bool or 0/1 of
        any dtype [N, C].
      b: labels of the references in the same form, [M] or [M, C].

    Returns:
      bool [N, M]: equal class numbers, or at least one class shared. A row of zeros in multi-hot
      labels is relevant to nothing.

    Raises:
      ValueError: if one is [N] and the other [M, C], if C differs, if class numbers are floats, or
        if NumPy class numbers of 64 bits do not fit into JAX's 32.

    >>> import numpy as np
    >>> print(same_label(np.array([0, 1]), np.array([1, 1, 0])))
    [[False False  True]
     [ True  True False]]
    """
    a, b = as_labels(a), as_labels(b)
    if a.ndim != b.ndim or a.ndim not in (1, 2) or a.shape[1:] != b.shape[1:]:
        raise ValueError(
            f"labels must be [N] and [M], or [N, C] and [M, C]; got {a.shape} and {b.shape}"
        )
    if a.ndim == 2:
        return _products(*(labels.astype(bool).astype(jnp.float32) for labels in (a, b))) > 0
    for labels in (a, b):
        if jnp.issubdtype(labels.dtype, jnp.inexact):
            raise ValueError(
                f"class numbers must be integers; got {labels.dtype} of shape {labels.shape}"
            )
    if a.dtype != b.dtype:
        # No integer dtype holds every pair of them: those beyond the common one equal nothing.
        with jax.numpy_dtype_promotion("standard"):
            common = jnp.result_type(a.dtype, b.dtype)
        fits = [(labels.astype(common) < 0) == (labels < 0) for labels in (a, b)]
        equal = a.astype(common)[:, None] == b.astype(common)[None, :]
        return equal & (fits[0][:, None] & fits[1][None, :])
    return a[:, None] == b[None, :]
