"""Corrections of scores for hubs: items that come first for more queries than they should.

In many dimensions, some items are near to a large part of all queries. Each function here takes a
score matrix [N, M] and lowers the scores of such items by what the other queries score them, so
that it can be handed to the metrics as any other.

These corrections are *transductive*: the scores of one query change with the other queries of the
matrix. Numbers made with them must not be compared with those of a retrieval that sees one query
at a time, and a report has to say so. Pass the scores of all queries at once, not of a part. A
score of −∞ stays one, as of a pair that is not there.

    >>> import jax.numpy as jnp
    >>> scores = jnp.array([[0.9, 0.1], [0.7, 0.6]])  # item 0 is near to both queries
    >>> print(jnp.argmax(scores, axis=1), jnp.argmax(csls(scores, k=1), axis=1))
    [0 0] [0 1]
"""

import functools

import jax
import jax.numpy as jnp

from aadml_jax._arrays import (
    Array,
    ArrayLike,
    as_float,
    as_mask,
    as_scalar,
    check_count,
    masked_row_mean,
    row_logsumexp,
)
from aadml_jax._sharding import gathered, split_alike
from aadml_jax._top_k import best_of_rows, search_keys


def csls(scores: ArrayLike, *, k: int = 10, where: ArrayLike | None = None) -> Array:
    """Cross-domain similarity local scaling; transductive.

    2 s_ij − r_i − c_j, where r_i is the mean of the k highest scores of query i, and c_j that of
    the k highest scores of item j over all queries (Conneau, Lample, Ranzato, Denoyer, Jégou, "Word
    Translation Without Parallel Data", ICLR 2018, eq. 3). Made for cosine similarities. r_i moves
    all scores of a query alike and changes no ranking; it makes scores of queries comparable.

    Args:
      scores: [N, M], higher is nearer.
      k: neighbours, static, ≥ 1; all of them where there are fewer.
      where: bool [N, M], the pairs that are there; default all. Others count in no mean.

    Returns:
      [N, M] in at least float32; −∞ for pairs outside `where`.

    Raises:
      ValueError: for k < 1 or shapes that do not fit.
    """
    scores, where = _as_scores(scores, where)
    return _csls(scores, where, k=check_count(k, "k", scores.shape))


def inverted_softmax(
    scores: ArrayLike, *, temperature: ArrayLike = 0.05, where: ArrayLike | None = None
) -> Array:
    """Log probability of a query given the item, instead of the item given the query; transductive.

    s_ij / τ − log Σ_i' exp(s_i'j / τ): an item that is near to many queries has little probability
    for each (Smith, Turban, Hamblin, Hammerla, "Offline Bilingual Word Vectors, Orthogonal
    Transformations and the Inverted Softmax", ICLR 2017). The logarithm ranks as the probability
    does, but does not underflow.

    Departure: the paper also divides by a sum over the items, which is the same for all items of
    a query and changes no ranking.

    Args:
      scores: [N, M], higher is nearer.
      temperature: τ > 0; may be traced.
      where: bool [N, M], the pairs that are there; default all. Others are in no sum.

    Returns:
      [N, M], ≤ 0 up to rounding, in at least float32; −∞ for pairs outside `where`.

    Raises:
      ValueError: for a temperature that is no number above 0 or shapes that do not fit.
    """
    scores, where = _as_scores(scores, where)
    temperature = as_scalar(temperature, scores.dtype, "temperature", above=0)
    return _log_softmaxes(scores, where, temperature)[1]


def dual_softmax(
    scores: ArrayLike, *, temperature: ArrayLike = 0.05, where: ArrayLike | None = None
) -> Array:
    """Log of the product of the softmaxes over items and over queries; transductive.

    log softmax_j(s_ij / τ) + log softmax_i(s_ij / τ): high only where query and item prefer each
    other (Rocco et al., "Neighbourhood Consensus Networks", NeurIPS 2018, as soft mutual nearest
    neighbours; Cheng et al., "Improving Video-Text Retrieval by Multi-Stream Corpus Alignment and
    Dual Softmax Loss", arXiv 2109.04290, for retrieval).

    Departure: Cheng et al. multiply the softmax over queries with the score itself, which turns the
    correction round for scores below 0.

    Args:
      scores: [N, M], higher is nearer.
      temperature: τ > 0; may be traced.
      where: bool [N, M], the pairs that are there; default all. Others are in no sum.

    Returns:
      [N, M], ≤ 0 up to rounding, in at least float32; −∞ for pairs outside `where`.

    Raises:
      ValueError: for a temperature that is no number above 0 or shapes that do not fit.
    """
    scores, where = _as_scores(scores, where)
    temperature = as_scalar(temperature, scores.dtype, "temperature", above=0)
    over_items, over_queries = _log_softmaxes(scores, where, temperature)
    return over_items + over_queries


def _as_scores(scores: ArrayLike, where: ArrayLike | None) -> tuple[Array, Array]:
    """Scores, 0 outside the mask, and the mask of pairs that are there; both split by rows alike.

    Of a score of −∞, a mean over others would be −∞ too, and ∞ − ∞ is NaN.
    """
    scores = as_float(scores)
    if scores.ndim != 2:
        raise ValueError(f"scores must be a matrix [N, M]; got shape {scores.shape}")
    if where is None:
        (scores,) = split_alike(scores)
        is_there = scores != -jnp.inf
    else:
        scores, where = split_alike(scores, as_mask(where, scores.shape, "where"))
        is_there = where & (scores != -jnp.inf)
    return jnp.where(is_there, scores, 0), is_there


@functools.partial(jax.jit, static_argnames="k")
def _csls(scores: Array, where: Array, *, k: int) -> Array:
    def mean_of_nearest(scores: Array, where: Array) -> Array:
        nearest, _ = best_of_rows(search_keys(scores, where), min(k, scores.shape[1]))
        return masked_row_mean(nearest, nearest > -jnp.inf)

    of_queries = mean_of_nearest(scores, where)[:, None]
    of_items = mean_of_nearest(gathered(scores).T, gathered(where).T)[None, :]
    return jnp.where(where, 2 * scores - of_queries - of_items, -jnp.inf)


def _log_softmaxes(scores: Array, where: Array, temperature: Array) -> tuple[Array, Array]:
    """The logarithms of the softmaxes over items and over queries, −∞ outside `where`."""
    logits = scores / temperature
    sums_of_items = row_logsumexp(gathered(logits).T, gathered(where).T)[None, :]
    sums_of_queries = row_logsumexp(logits, where)[:, None]
    over_items, over_queries = (
        jnp.where(where, logits - sums, -jnp.inf) for sums in (sums_of_queries, sums_of_items)
    )
    return over_items, over_queries
