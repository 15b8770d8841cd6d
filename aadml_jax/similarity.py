"""Similarity and distance matrices between two sets of embeddings, and label equality.

All take two arrays whose rows are samples, anchors first, and return an [N, M] matrix: rows are
anchors (queries), columns are references (gallery). One set against itself is the same call with
the array given twice; the diagonal is then an ordinary entry, to be masked by the caller.

Inputs below float32 are raised to it; float64 stays. Products run at `Precision.HIGHEST`, since
TPUs and GPUs would otherwise round the factors to bfloat16 or TF32.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from aadml_jax._arrays import Array, ArrayLike, LabelsLike, as_embeddings, as_labels
from aadml_jax._sharding import gathered, split_by_rows


def _as_queries_and_gallery(a: ArrayLike, b: ArrayLike) -> tuple[Array, Array]:
    a, b = as_embeddings(a, b)
    return split_by_rows(a), gathered(b)


def _products(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b.T, precision=jax.lax.Precision.HIGHEST)


def _unit_rows(x: Array) -> Array:
    """Rows scaled to length 1; a zero row stays zero and passes no gradient.

    Dividing by the largest entry first keeps the squares in range for rows of any length. The
    result does not depend on that scale, so its derivative is exact with the scale held constant.
    """
    limits = jnp.finfo(x.dtype)
    scale = jax.lax.stop_gradient(jnp.max(jnp.abs(x), axis=1, keepdims=True, initial=0))
    is_zero = scale < limits.tiny
    # XLA divides by multiplying with the reciprocal, and takes that of 3e38, 3e-39, for 0.
    shrink = jnp.where(scale > 2.0 ** (limits.maxexp // 2), 2.0 ** -(limits.maxexp // 2), 1)
    shrink = shrink.astype(x.dtype)
    scaled = jnp.where(is_zero, 0, x) * shrink / jnp.where(is_zero, 1, scale * shrink)
    squares = jnp.sum(jnp.square(scaled), axis=1, keepdims=True)
    return scaled / jnp.sqrt(jnp.where(is_zero, 1, squares))


def cosine_similarity(a: ArrayLike, b: ArrayLike) -> Array:
    """Cosine of the angle between each row of `a` and each row of `b`.

    s_ij = a_i · b_j / (‖a_i‖ ‖b_j‖), in [−1, 1] up to rounding.

    Args:
      a: anchors [N, D], of any finite length (rows need not be normalised).
      b: references [M, D].

    Returns:
      [N, M]. A zero row has no direction: its similarities and its gradient are 0. So are those of
      a row without a normal number, all below 1.2e-38 in float32; a subnormal entry beside normal
      ones may count as 0. XLA takes such numbers for 0 on a CPU, in gradients too: that of a row of
      length ℓ is about 1/ℓ, so that of the longest rows, from about 1e37 on, may be 0.

    Raises:
      ValueError: if the shapes are not [N, D] and [M, D].

    >>> import jax.numpy as jnp
    >>> print(cosine_similarity(jnp.array([[3.0, 4.0]]), jnp.array([[2.0, 0.0], [0.0, 0.0]])))
    [[0.6 0. ]]
    """
    a, b = _as_queries_and_gallery(a, b)
    return _products(_unit_rows(a), _unit_rows(b))


def cosine_to_itself(x: Array) -> Array:
    """The cosine of each row [N, D] with itself [N]: 1 up to rounding, 0 of a zero row."""
    return jnp.sum(jnp.square(_unit_rows(x)), axis=1)


class _Posteriors(NamedTuple):
    """Class probabilities of rows of logits, as accurate near 1 as near 0: [N, C] each.

    Attributes:
      logs: log p(c), ≤ 0; −∞ for a logit of −∞.
      values: p(c).
      missing: 1 − p(c), without the cancellation of the difference.
    """

    logs: Array
    values: Array
    missing: Array


def _posteriors(logits: Array) -> _Posteriors:
    # The sum leaves the largest class out, whose share is exactly 1: p = 1 / (1 + others) keeps
    # others = 1e-30, which 1 + others does not.
    #   logits 0 and 80: others = e⁻⁸⁰, log p = −80 and −e⁻⁸⁰, 1 − p = 1 and e⁻⁸⁰
    classes = jnp.arange(logits.shape[1], dtype=jnp.int32)[None, :]
    is_largest = classes == jnp.argmax(logits, axis=1)[:, None].astype(jnp.int32)
    largest = jnp.sum(jnp.where(is_largest, logits, 0), axis=1, keepdims=True)
    behind = jnp.where(is_largest, 0, logits - largest)
    others = jnp.sum(jnp.where(is_largest, 0, jnp.exp(behind)), axis=1, keepdims=True)
    logs = behind - jnp.log1p(others)
    values = jnp.exp(logs)
    return _Posteriors(logs, values, jnp.where(is_largest, others / (1 + others), 1 - values))


def _log_sum_of_products(queries: Array, gallery: Array) -> Array:
    """Log Σ_c exp(queries_ic + gallery_jc), class by class: O(N M C) time, O(N M) memory."""

    def term(of_class: tuple[Array, Array]) -> Array:
        of_queries, of_gallery = of_class
        return of_queries[:, None] + of_gallery[None, :]

    def larger(largest: Array, of_class: tuple[Array, Array]) -> tuple[Array, None]:
        return jnp.maximum(largest, term(of_class)), None

    classes = queries.T, gallery.T
    constants = jax.lax.stop_gradient(classes)
    first = term(jax.tree.map(lambda logs: logs[0], constants))
    largest, _ = jax.lax.scan(larger, first, constants)
    # Without a class that both find possible the sum is 0, and its logarithm has no derivative.
    is_zero = largest == -jnp.inf
    shift = jnp.where(is_zero, 0, largest)

    @jax.checkpoint  # or reverse mode would keep an N×M matrix of each class
    def add(total: Array, of_class: tuple[Array, Array]) -> tuple[Array, None]:
        return total + jnp.exp(term(of_class) - shift), None

    total, _ = jax.lax.scan(add, 0 * shift, classes)
    return jnp.where(is_zero, -jnp.inf, jnp.log(jnp.where(is_zero, 1, total)) + shift)


@jax.jit  # op by op, the loops would be compiled at every call
def _log_same_class(a: Array, b: Array) -> Array:
    if a.shape[1] == 0:
        return jnp.full((a.shape[0], b.shape[0]), -jnp.inf, a.dtype)
    queries, gallery = _posteriors(a), _posteriors(b)
    same = _products(queries.values, gallery.values)
    different = _products(queries.values, gallery.missing)

    # What underflows in the sum's C terms is then below its rounding.
    limits = jnp.finfo(same.dtype)
    least = min(0.25, a.shape[1] * float(limits.tiny) / float(limits.eps))
    is_tiny = same < least

    def from_products() -> Array:
        is_near_one = different <= 0.5
        near_one = jnp.log1p(-jnp.where(is_near_one, different, 0))
        # Cleared where the other form is taken; a NaN stays.
        return jnp.where(is_near_one, near_one, jnp.log(jnp.where(is_near_one | is_tiny, 1, same)))

    def with_tiny() -> Array:
        by_class = _log_sum_of_products(queries.logs, gallery.logs)
        return jnp.where(is_tiny, by_class, from_products())

    return jax.lax.cond(jnp.any(is_tiny), with_tiny, from_products)


def posterior_similarity(a: ArrayLike, b: ArrayLike) -> Array:
    """Log probability that two samples are of one class, by the softmax of each row.

    s_ij = log Σ_c p(c | i) p(c | j), p(· | i) = softmax(a_i), in [−∞, 0]. Where the softmaxes are
    the classes' true probabilities and the two modalities are independent given the class, this
    order has the highest expected precision at every cut-off. In label space, whose last layer has
    one unit per class, it is an alternative to the cosine of the outputs, by which the paper ranks.

    The probability itself rounds to 1 for sure classifiers that agree, and underflows to 0 for
    those that disagree, so that different pairs tie. Its logarithm does not: it is accurate to
    rounding relative to its distance from 0, down to 1e-38 in float32, and far below log 1e-38.

    Two matrix products give all pairs but those whose probability comes near the smallest float.
    Only if there are such pairs, the sum of all pairs is taken class by class, which needs
    O(N M C) exponentials, but O(N M) memory.

    Args:
      a: logits of the queries [N, C]; −∞ is a class of probability 0, of which a row may have
        C − 1 (of all −∞ the result is NaN). +∞ is a sure class.
      b: logits of the gallery [M, C].

    Returns:
      [N, M], ≤ 0; −∞ with derivative 0 for a pair without a class that both find possible.

    Raises:
      ValueError: if the shapes are not [N, C] and [M, C].

    >>> import jax.numpy as jnp
    >>> logits = jnp.log(jnp.array([[0.5, 0.5], [0.75, 0.25]]))
    >>> print(jnp.exp(posterior_similarity(logits, logits[1:])))  # 1/2·3/4 + 1/2·1/4; 9/16 + 1/16
    [[0.5  ]
     [0.625]]
    """
    a, b = _as_queries_and_gallery(a, b)
    return _log_same_class(a, b)


def cosine_distance(a: ArrayLike, b: ArrayLike) -> Array:
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


def _squares(a: Array, b: Array) -> Array:
    return jnp.sum(jnp.square(a[:, None, :] - b[None, :, :]), axis=-1)


def _half_derivative_of_squares(a: Array, b: Array, a_dot: Array, b_dot: Array) -> Array:
    """Σ_c (a_ic − b_jc) (ȧ_ic − ḃ_jc) for each pair [N, M]."""
    # Reverse mode through the differences would store them, N×M×D numbers. Matrix products need
    # neither that memory nor its time; moving the origin into the data spares them most of the
    # cancellation.
    origin = jnp.mean(jax.lax.stop_gradient(b), axis=0, keepdims=True) if b.shape[0] else 0
    a_near, b_near = a - origin, b - origin
    of_anchors = jnp.sum(a_near * a_dot, axis=1)[:, None] - _products(a_dot, b_near)
    of_references = jnp.sum(b_near * b_dot, axis=1)[None, :] - _products(a_near, b_dot)
    return of_anchors + of_references


@jax.custom_jvp
@jax.jit  # op by op, the differences would be stored: N×M×D numbers
def _sum_of_squared_differences(a: Array, b: Array) -> Array:
    return _squares(a, b)


@_sum_of_squared_differences.defjvp
def _sum_of_squared_differences_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    return _sum_of_squared_differences(*primals), 2 * _half_derivative_of_squares(
        *primals, *tangents
    )


def _safe_scale(dtype: jnp.dtype) -> float:
    """A power of two by which any two points may be scaled to be squared: 2⁻⁸⁰ in float32.

    A pair whose squares overflow is so far apart that those of the scaled pair do not underflow.
    """
    return 2.0 ** -(jnp.finfo(dtype).maxexp * 5 // 8)


def _root(squares: Array) -> Array:
    # Not the plain root: XLA would fuse that with the sum, which takes a CPU half as long again.
    is_zero = squares == 0
    return jnp.where(is_zero, 0, jnp.sqrt(jnp.where(is_zero, 1, squares)))


@jax.custom_jvp
@jax.jit
def _root_of_squares(a: Array, b: Array) -> Array:
    squares = _squares(a, b)

    def mend(turn: Array, distances: Array) -> Array:
        # Of the turn, or XLA would compute what is the same in all turns before the loop, always.
        shrink = jnp.where(turn == 0, _safe_scale(a.dtype), 1).astype(a.dtype)
        shrunk = _root(_squares(a * shrink, b * shrink))
        return jnp.where(jnp.isinf(distances), shrunk / shrink, distances)

    # A loop of one turn or none: under vmap `cond` would always compute both.
    turns = jnp.any(jnp.isinf(squares)).astype(jnp.int32)
    return jax.lax.fori_loop(0 * turns, turns, mend, _root(squares))


@_root_of_squares.defjvp
def _root_of_squares_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    distances = _root_of_squares(*primals)
    largest = [jnp.max(jnp.abs(jax.lax.stop_gradient(x)), initial=0) for x in primals]
    is_large = jnp.maximum(*largest) > 2.0 ** (jnp.finfo(distances.dtype).maxexp // 2 - 4)
    shrink = jnp.where(is_large, _safe_scale(distances.dtype), 1).astype(distances.dtype)
    half = _half_derivative_of_squares(*(x * shrink for x in primals), *tangents)
    divisors = distances * shrink
    is_zero = divisors == 0
    return distances, half * jnp.where(is_zero, 0, 1 / jnp.where(is_zero, 1, divisors))


def squared_euclidean_distance(a: ArrayLike, b: ArrayLike) -> Array:
    """Σ_c (a_ic − b_jc)², summed over the differences themselves.

    The usual ‖a‖² + ‖b‖² − 2 a·b is a matrix product, but loses every digit for points much closer
    to each other than to the origin; this form keeps a relative error of about 1e-6 in float32.

    Args:
      a: anchors [N, D].
      b: references [M, D].

    Returns:
      [N, M], ≥ 0. Differences below about 1e-19 in float32 underflow to 0 when squared, those above
      about 1e19 overflow to ∞. The derivative is rounded relative to the spread of the data
      instead: an error of about 1e-7 times (spread / distance) for a pair much closer than the
      others.

    Raises:
      ValueError: if the shapes are not [N, D] and [M, D].
    """
    return _sum_of_squared_differences(*_as_queries_and_gallery(a, b))


def euclidean_distance(a: ArrayLike, b: ArrayLike) -> Array:
    """Square root of `squared_euclidean_distance(a, b)`.

    Args:
      a: anchors [N, D].
      b: references [M, D].

    Returns:
      [N, M], ≥ 0, for points of any finite length. Differences below about 1e-19 in float32 count
      as 0, as in the squared distance. The derivative at coincident points, where none exists, is
      0; its rounding is that of `squared_euclidean_distance`.

    Raises:
      ValueError: if the shapes are not [N, D] and [M, D].
    """
    return _root_of_squares(*_as_queries_and_gallery(a, b))


def same_label(a: LabelsLike, b: LabelsLike) -> Array:
    """Which references carry a label of the anchor: the usual `relevance`.

    Args:
      a: class numbers of the anchors, any integer dtype [N], or multi-hot labels, bool or exactly
        0 and 1 of any dtype [N, C]. The values of traced labels cannot be checked: multi-hot ones
        then count as 1 if they are not 0.
      b: labels of the references in the same form, [M] or [M, C].

    Returns:
      bool [N, M]: equal class numbers, or at least one class shared. A row of zeros in multi-hot
      labels is relevant to nothing.

    Raises:
      ValueError: if one is [N] and the other [M, C], or if C differs; if class numbers are no
        integers, are a column [N, 1] (multi-hot labels of a single class must be bool), or are of
        64 bits and do not fit into JAX's 32; if multi-hot labels hold anything but 0 and 1, such as
        NaN, probabilities or −1.

    >>> import numpy as np
    >>> print(same_label(np.array([0, 1]), np.array([1, 1, 0])))
    [[False False  True]
     [ True  True False]]
    """
    a, b = split_by_rows(as_labels(a)), gathered(as_labels(b))
    if a.ndim != b.ndim or a.ndim not in (1, 2) or a.shape[1:] != b.shape[1:]:
        raise ValueError(
            f"labels must be [N] and [M], or [N, C] and [M, C]; got {a.shape} and {b.shape}"
        )
    if a.ndim == 2:
        return shared_labels(a, b) > 0
    if a.dtype != b.dtype:
        # No integer dtype holds every pair of them: those beyond the common one equal nothing.
        with jax.numpy_dtype_promotion("standard"):
            common = jnp.result_type(a.dtype, b.dtype)
        fits = [(labels.astype(common) < 0) == (labels < 0) for labels in (a, b)]
        equal = a.astype(common)[:, None] == b.astype(common)[None, :]
        return equal & (fits[0][:, None] & fits[1][None, :])
    return a[:, None] == b[None, :]


def shared_labels(a: Array, b: Array) -> Array:
    """How many classes multi-hot labels [N, C] and [M, C] share: floats [N, M]."""
    a, b = split_by_rows(a), gathered(b)
    if a.shape[1:] != b.shape[1:]:
        raise ValueError(f"labels must be [N, C] and [M, C]; got {a.shape} and {b.shape}")
    return _products(*(labels.astype(bool).astype(jnp.float32) for labels in (a, b)))


DISTANCES: dict[str, Callable[[ArrayLike, ArrayLike], Array]] = {
    "cosine": cosine_distance,
    "euclidean": euclidean_distance,
    "squared_euclidean": squared_euclidean_distance,
}
"""Distances that a metric loss may take, by name."""

SIMILARITIES: dict[str, Callable[[ArrayLike, ArrayLike], Array]] = {
    "cosine": cosine_similarity,
    "posterior": posterior_similarity,
}
"""Scores by which retrieval ranks, by name."""


def as_similarity(
    similarity: str | Callable[[Array, Array], Array], name: str, shape: tuple[int, ...]
) -> Callable[[Array, Array], Array]:
    """The function that a name of `SIMILARITIES` stands for; a function as it is.

    Args:
      similarity: a name, or (queries [B, D], gallery [M, D]) -> scores [B, M].
      name: of the queries, for the message.
      shape: of the queries, for the message.

    Raises:
      ValueError: for an unknown name.
    """
    if not isinstance(similarity, str):
        return similarity
    if similarity not in SIMILARITIES:
        raise ValueError(
            f"similarity must be one of {sorted(SIMILARITIES)} or a function; "
            f"got {similarity!r} for {name} of shape {shape}"
        )
    return SIMILARITIES[similarity]
