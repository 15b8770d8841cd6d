"""Retrieval metrics of a score matrix: each row is a query, each column a gallery item.

All take `scores` [N, M] (higher is better) and `relevance` bool [N, M], array arguments
positional, and keyword-only `where` (bool [N, M], False takes the item out of that query's
gallery) and `reduce_fn` (default None: one value per query [N]).

- `ndcg_at` takes grades as `relevance` too.
- The whole ranking counts, no cut-off unless the name says so.
- Equal scores, −0.0 and 0.0 among them, rank in gallery order with `ties="stable"`, the default. A
  gallery that is stored class by class then scores better or worse than its scores deserve.
  `ties="expected"` gives the expectation over all orders of tied items, in closed form (McSherry,
  Najork, "Computing Information Retrieval Performance Measures Efficiently in the Presence of Tied
  Scores", ECIR 2008).
- Scores of any integer or float type are compared as they are: 64-bit scores in NumPy arrays are
  not rounded to 32 bits first, though values are float32 unless jax_enable_x64 is set.
- A query without relevant items scores 0 and takes part in means; `first_hit_rank` puts it behind
  the gallery.
- A NaN among a query's scores makes its value NaN.
- Nothing is excluded silently: for one set against itself pass `where=~jnp.eye(n, dtype=bool)`.
- Called outside of jit and vmap on a machine whose default device is a CPU, the ranks come from
  NumPy's sort, which is many times faster there than XLA's; otherwise XLA sorts where the arrays
  are. Both find the same ranks, ties included; values may differ by rounding.

    >>> import jax.numpy as jnp
    >>> scores = jnp.array([[0.9, 0.8, 0.7, 0.6]])
    >>> relevance = jnp.array([[True, False, False, True]])
    >>> print(average_precision(scores, relevance))         # (1/1 + 2/4) / 2
    [0.75]
    >>> print(prefix_average_precision(scores, relevance))  # (1 + 1 + 1 + 0.75) / 4
    [0.9375]
    >>> scores, relevance = jnp.array([[0.5, 0.5]]), jnp.array([[False, True]])
    >>> print(average_precision(scores, relevance))
    [0.5]
    >>> print(average_precision(scores, relevance, ties="expected"))  # (1/2 + 1/1) / 2
    [0.75]
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from aadml_jax import _host_ranking, _measures
from aadml_jax._arrays import (
    Array,
    ArrayLike,
    ReduceFn,
    as_given,
    as_grades,
    as_mask,
    as_pairs,
    as_same_float,
    reduce_rows,
)
from aadml_jax._graded_gain import graded_gain_within
from aadml_jax._sharding import split_alike


def _rounds(scores: Any) -> bool:
    """Whether the floats that JAX would make of concrete scores are not the scores themselves."""
    if not isinstance(scores, np.ndarray | jax.Array):
        return False
    if jnp.issubdtype(scores.dtype, jnp.integer):
        return scores.dtype.itemsize >= 4
    if scores.dtype != np.float64 or jax.dtypes.canonicalize_dtype(np.float64) == np.float64:
        return False
    with np.errstate(over="ignore"):
        return not np.array_equal(scores, scores.astype(np.float32), equal_nan=True)


def _in_order(scores: np.ndarray) -> np.ndarray:
    """The scores [N, M] in 32 bits; refuses those that would become equal or change places."""
    with np.errstate(over="ignore"):
        converted = scores.astype(jax.dtypes.canonicalize_dtype(scores.dtype))
    order = np.argsort(scores, axis=1)
    before, after = (np.take_along_axis(x, order, axis=1) for x in (scores, converted))
    is_lost = (before[:, 1:] > before[:, :-1]) & (after[:, 1:] <= after[:, :-1])
    if is_lost.any():
        row, column = np.argwhere(is_lost)[0]
        raise ValueError(
            f"scores of {scores.dtype} and shape {scores.shape} do not keep their order in "
            f"{after.dtype}: {before[row, column]!s} and {before[row, column + 1]!s} in row {row}; "
            "rank them outside of jit, or enable jax_enable_x64"
        )
    return converted


def _order_numbers(scores: np.ndarray) -> np.ndarray:
    """Floats of 32 bits in the order of each row's scores [N, M], equal for equal ones."""
    numbers = np.full(scores.shape, np.nan, np.float32)
    for row, values in enumerate(scores):
        is_number = values == values
        _, places = np.unique(values[is_number], return_inverse=True)
        numbers[row, is_number] = places
    return numbers


def _per_query(
    metric: _measures.Metric, scores: Any, relevance: Any, where: Any, reduce_fn: ReduceFn
) -> Array:
    if not isinstance(scores, jax.Array):
        scores = np.asarray(scores)
    relevance = as_mask(relevance, scores.shape, "relevance")
    where = None if where is None else as_mask(where, scores.shape, "where")
    is_numpy = isinstance(scores, np.ndarray)
    if _measures.is_traced(scores, relevance, where):
        if is_numpy and scores.ndim == 2 and scores.dtype.itemsize == 8 and _rounds(scores):
            scores = _in_order(scores)
        return reduce_rows(_measures.values_in_xla(metric, scores, relevance, where), reduce_fn)
    is_on_host = _host_ranking.is_on_host(scores, relevance, where)
    if is_on_host and not _rounds(scores):
        keys = _measures.host_keys(scores, relevance, where)
        dtype = f"float{8 * keys.keys.dtype.itemsize}"
    elif is_on_host or (is_numpy and _rounds(scores)):
        # Only for the masks: these scores are no floats of JAX's.
        values, *masks = as_pairs(jnp.zeros(scores.shape, jnp.float32), relevance, where, "scores")
        keys, dtype = _host_ranking.exact_keys(np.asarray(scores), *masks), values.dtype
    else:
        return reduce_rows(_measures.values_in_xla(metric, scores, relevance, where), reduce_fn)
    values = _host_ranking.by_rows(keys, metric.on_host).astype(dtype)
    return reduce_rows(jax.device_put(values), reduce_fn)


def average_precision(
    scores: ArrayLike,
    relevance: ArrayLike,
    *,
    where: ArrayLike | None = None,
    ties: str = "stable",
    reduce_fn: ReduceFn = None,
) -> Array:
    """AP of each query: the mean over its relevant items of the precision at their rank.

    AP_i = 1/R_i Σ_{t=1..R_i} t / rank(t-th relevant item), over all ranks.

    With `ties="expected"`, a group of g tied items, r of them relevant, behind b items, h of them
    relevant, adds Σ_{t=1..g} r/g · (h + 1 + (r − 1)(t − 1)/(g − 1)) / (b + t) to the sum.

    Args:
      scores: [N, M], higher ranks first.
      relevance: bool [N, M].
      where: bool [N, M], the items that belong to the query's gallery; default all.
      ties: `"stable"`, equal scores rank in gallery order, or `"expected"`, the expectation over
        all orders of tied items.
      reduce_fn: applied to the values per query; None returns them.

    Returns:
      [N] in [0, 1] (or what `reduce_fn` makes of it); 0 for a query without relevant items.

    Raises:
      ValueError: for an unknown rule for ties or shapes that do not fit; and within jit, for
        constant scores of 64 bits whose order 32 bits would lose.
    """
    ties = _measures.check_ties(ties, jnp.shape(scores))
    return _per_query(_measures.average_precision(ties), scores, relevance, where, reduce_fn)


def mean_average_precision(
    scores: ArrayLike, relevance: ArrayLike, *, where: ArrayLike | None = None, ties: str = "stable"
) -> Array:
    """MAP: `average_precision` averaged over all queries, those without relevant items included.

    Args:
      scores: [N, M], N ≥ 1.
      relevance: bool [N, M].
      where: bool [N, M], default all.
      ties: see `average_precision`.

    Returns:
      A scalar in [0, 1].

    Raises:
      ValueError: for no queries, whose mean would be 0 / 0, or as `average_precision`.
    """
    if jnp.shape(scores)[:1] == (0,):
        raise ValueError(
            f"the mean needs at least one query; scores have shape {jnp.shape(scores)}"
        )
    return average_precision(scores, relevance, where=where, ties=ties, reduce_fn=jnp.mean)


def prefix_average_precision(
    scores: ArrayLike,
    relevance: ArrayLike,
    *,
    where: ArrayLike | None = None,
    reduce_fn: ReduceFn = None,
) -> Array:
    """The running AP averaged over *every* cut-off; not the standard AP, and usually higher.

    At cut-off m the running AP is (sum of the precisions at the hits so far) / (hits so far), 0
    before the first hit. Some published scripts of audio-visual retrieval compute this by an
    indentation slip, so that their numbers can be compared only with this metric. Never mix it
    with `average_precision`. As in those scripts, ties rank in gallery order; there is no other
    rule to choose.

    Args:
      scores: [N, M], higher ranks first; ties rank in gallery order.
      relevance: bool [N, M].
      where: bool [N, M], the items that belong to the query's gallery; default all.
      reduce_fn: applied to the values per query; None returns them.

    Returns:
      [N] in [0, 1]; 0 for a query without relevant items.

    Raises:
      ValueError: for shapes that do not fit.
    """
    return _per_query(_measures.PREFIX_AVERAGE_PRECISION, scores, relevance, where, reduce_fn)


def precision_at(
    scores: ArrayLike,
    relevance: ArrayLike,
    *,
    k: int,
    where: ArrayLike | None = None,
    ties: str = "stable",
    reduce_fn: ReduceFn = None,
) -> Array:
    """Share of relevant items among the first k: precision-scope@k of the retrieval literature.

    Args:
      scores: [N, M], higher ranks first.
      relevance: bool [N, M].
      k: the cut-off, static, 1 ≤ k ≤ M.
      where: bool [N, M], the items that belong to the query's gallery; default all. The divisor is
        k even where fewer items are left.
      ties: `"stable"`, equal scores rank in gallery order, or `"expected"`, the expectation over
        all orders of tied items.
      reduce_fn: applied to the values per query; None returns them.

    Returns:
      [N] in [0, 1].

    Raises:
      ValueError: for k outside 1 … M, an unknown rule for ties or shapes that do not fit.
    """
    shape = jnp.shape(scores)
    k, ties = _measures.check_cut_off(k, shape), _measures.check_ties(ties, shape)
    return _per_query(_measures.precision_at(k, ties), scores, relevance, where, reduce_fn)


def recall_at(
    scores: ArrayLike,
    relevance: ArrayLike,
    *,
    k: int,
    where: ArrayLike | None = None,
    ties: str = "stable",
    reduce_fn: ReduceFn = None,
) -> Array:
    """1 if any of the first k items is relevant, else 0: the retrieval literature's R@k.

    Also called hit rate. For the share of a query's relevant items see `fraction_recall_at`.

    Args:
      scores: [N, M], higher ranks first.
      relevance: bool [N, M].
      k: the cut-off, static, 1 ≤ k ≤ M.
      where: bool [N, M], the items that belong to the query's gallery; default all.
      ties: `"stable"`, equal scores rank in gallery order, or `"expected"`, the expectation over
        all orders of tied items.
      reduce_fn: applied to the values per query; None returns them.

    Returns:
      [N], each 0 or 1, or with `ties="expected"` the probability of 1.

    Raises:
      ValueError: for k outside 1 … M, an unknown rule for ties or shapes that do not fit.
    """
    shape = jnp.shape(scores)
    k, ties = _measures.check_cut_off(k, shape), _measures.check_ties(ties, shape)
    return _per_query(_measures.recall_at(k, ties), scores, relevance, where, reduce_fn)


def fraction_recall_at(
    scores: ArrayLike,
    relevance: ArrayLike,
    *,
    k: int,
    where: ArrayLike | None = None,
    ties: str = "stable",
    reduce_fn: ReduceFn = None,
) -> Array:
    """Share of a query's relevant items that are among the first k: recall@k of the textbooks.

    Not `recall_at`, which asks for any of them, and is the same where each query has one.

    Args:
      scores: [N, M], higher ranks first.
      relevance: bool [N, M].
      k: the cut-off, static, 1 ≤ k ≤ M.
      where: bool [N, M], the items that belong to the query's gallery; default all.
      ties: `"stable"`, equal scores rank in gallery order, or `"expected"`, the expectation over
        all orders of tied items.
      reduce_fn: applied to the values per query; None returns them.

    Returns:
      [N] in [0, 1]; 0 for a query without relevant items.

    Raises:
      ValueError: for k outside 1 … M, an unknown rule for ties or shapes that do not fit.
    """
    shape = jnp.shape(scores)
    k, ties = _measures.check_cut_off(k, shape), _measures.check_ties(ties, shape)
    metric = _measures.fraction_recall_at(k, ties)
    return _per_query(metric, scores, relevance, where, reduce_fn)


def r_precision(
    scores: ArrayLike,
    relevance: ArrayLike,
    *,
    where: ArrayLike | None = None,
    ties: str = "stable",
    reduce_fn: ReduceFn = None,
) -> Array:
    """Share of relevant items among the first R_i, the number of the query's relevant items.

    Args:
      scores: [N, M], higher ranks first.
      relevance: bool [N, M].
      where: bool [N, M], the items that belong to the query's gallery; default all.
      ties: `"stable"`, equal scores rank in gallery order, or `"expected"`, the expectation over
        all orders of tied items.
      reduce_fn: applied to the values per query; None returns them.

    Returns:
      [N] in [0, 1]; 0 for a query without relevant items.

    Raises:
      ValueError: for an unknown rule for ties or shapes that do not fit.
    """
    ties = _measures.check_ties(ties, jnp.shape(scores))
    metric = _measures.of_whole_ranking("r_precision", ties)
    return _per_query(metric, scores, relevance, where, reduce_fn)


def average_precision_at_r(
    scores: ArrayLike,
    relevance: ArrayLike,
    *,
    where: ArrayLike | None = None,
    ties: str = "stable",
    reduce_fn: ReduceFn = None,
) -> Array:
    """AP of the first R_i items, whose mean over queries is MAP@R.

    1/R_i Σ_{m=1..R_i} P(m) rel(m), where P(m) is the precision at rank m, rel(m) is 1 for a
    relevant item and 0 otherwise, and R_i is the number of the query's relevant items (Musgrave,
    Belongie, Lim, "A Metric Learning Reality Check", ECCV 2020). Hits behind rank R_i add nothing.

    Args:
      scores: [N, M], higher ranks first.
      relevance: bool [N, M].
      where: bool [N, M], the items that belong to the query's gallery; default all.
      ties: `"stable"`, equal scores rank in gallery order, or `"expected"`, the expectation over
        all orders of tied items.
      reduce_fn: applied to the values per query; None returns them.

    Returns:
      [N] in [0, 1]; 0 for a query without relevant items.

    Raises:
      ValueError: for an unknown rule for ties or shapes that do not fit.
    """
    ties = _measures.check_ties(ties, jnp.shape(scores))
    metric = _measures.of_whole_ranking("average_precision_at_r", ties)
    return _per_query(metric, scores, relevance, where, reduce_fn)


def reciprocal_rank(
    scores: ArrayLike,
    relevance: ArrayLike,
    *,
    where: ArrayLike | None = None,
    ties: str = "stable",
    reduce_fn: ReduceFn = None,
) -> Array:
    """1 / rank of the first relevant item, whose mean over queries is MRR.

    Args:
      scores: [N, M], higher ranks first.
      relevance: bool [N, M].
      where: bool [N, M], the items that belong to the query's gallery; default all.
      ties: `"stable"`, equal scores rank in gallery order, or `"expected"`, the expectation over
        all orders of tied items.
      reduce_fn: applied to the values per query; None returns them.

    Returns:
      [N] in [0, 1]; 0 for a query without relevant items. With `ties="expected"` the expectation of
      the reciprocal, which is at least the reciprocal of the expected rank.

    Raises:
      ValueError: for an unknown rule for ties or shapes that do not fit.
    """
    ties = _measures.check_ties(ties, jnp.shape(scores))
    metric = _measures.of_whole_ranking("reciprocal_rank", ties)
    return _per_query(metric, scores, relevance, where, reduce_fn)


def first_hit_rank(
    scores: ArrayLike,
    relevance: ArrayLike,
    *,
    where: ArrayLike | None = None,
    ties: str = "stable",
    reduce_fn: ReduceFn = None,
) -> Array:
    """Rank of the first relevant item, of which papers report the median and the mean (MdR, MnR).

    Args:
      scores: [N, M], higher ranks first.
      relevance: bool [N, M].
      where: bool [N, M], the items that belong to the query's gallery; default all.
      ties: `"stable"`, equal scores rank in gallery order, or `"expected"`, the expectation over
        all orders of tied items.
      reduce_fn: applied to the values per query; None returns them.

    Returns:
      [N], 1 at best. A query without relevant items has the rank behind its gallery, 1 more than
      that has items, so that it counts as a failure.

    Raises:
      ValueError: for an unknown rule for ties or shapes that do not fit.
    """
    ties = _measures.check_ties(ties, jnp.shape(scores))
    metric = _measures.of_whole_ranking("first_hit_rank", ties)
    return _per_query(metric, scores, relevance, where, reduce_fn)


def ndcg_at(
    scores: ArrayLike,
    relevance: ArrayLike,
    *,
    k: int,
    where: ArrayLike | None = None,
    ties: str = "stable",
    reduce_fn: ReduceFn = None,
) -> Array:
    """Normalised discounted cumulative gain of the first k items.

    nDCG_i = Σ_{m=1..k} g(m) / log2(1 + m) divided by the largest value that any order of the
    query's gallery gives, where g(m) is the grade of the item at rank m (Järvelin, Kekäläinen,
    "Cumulated Gain-Based Evaluation of IR Techniques", TOIS 2002, with the discount of later
    literature, which counts from rank 1 on). For the gain 2^grade − 1 pass that as the grades.

    Args:
      scores: [N, M], higher ranks first.
      relevance: bool [N, M], or grades ≥ 0, integers or floats, which are the gains.
      k: the cut-off, static, 1 ≤ k ≤ M.
      where: bool [N, M], the items that belong to the query's gallery; default all.
      ties: `"stable"`, equal scores rank in gallery order, or `"expected"`, the expectation over
        all orders of tied items.
      reduce_fn: applied to the values per query; None returns them.

    Returns:
      [N] in [0, 1]; 0 for a query without an item of a grade above 0.

    Raises:
      ValueError: for k outside 1 … M, an unknown rule for ties, shapes that do not fit, or known
        grades that are negative or not finite.
    """
    shape = jnp.shape(scores)
    k, ties = _measures.check_cut_off(k, shape), _measures.check_ties(ties, shape)
    given = as_given(relevance, "relevance")
    if given.dtype == bool:
        return _per_query(_measures.ndcg_at(k, ties), scores, given, where, reduce_fn)
    grades = as_grades(given, shape, "relevance")
    if not isinstance(scores, jax.Array):
        scores = np.asarray(scores)
    if not _measures.is_traced(scores, grades, where):
        scores = _order_numbers(np.asarray(scores)) if _rounds(scores) else scores
    elif isinstance(scores, np.ndarray) and scores.dtype.itemsize == 8 and _rounds(scores):
        scores = _in_order(scores)
    where = None if where is None else as_mask(where, shape, "where")
    values = _graded_at(scores, grades, where, k=k, ties=ties)
    return reduce_rows(values, reduce_fn)


@functools.partial(jax.jit, static_argnames=("k", "ties"))
def _graded_at(scores: Array, grades: Array, where: Array | None, *, k: int, ties: str) -> Array:
    scores, grades = as_same_float(scores, grades)
    if scores.ndim != 2:
        raise ValueError(f"scores must be a matrix [N, M]; got shape {scores.shape}")
    if where is None:
        scores, grades = split_alike(scores, grades)
    else:
        scores, grades, where = split_alike(scores, grades, where)
    return graded_gain_within(scores, grades, where, (k,), ties)[k]
