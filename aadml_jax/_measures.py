"""The metrics of a ranking, each in two forms: in XLA, and from NumPy's sort on the host."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from aadml_jax import _host_measures, _host_ranking, _xla_measures, _xla_ranking
from aadml_jax._arrays import Array, ArrayLike, as_pairs, check_count


@dataclasses.dataclass(frozen=True)
class Metric:
    """A value per query, from a ranking in XLA or from the hits' ranks on the host."""

    in_xla: Callable[[_xla_ranking.Ranking], Array]
    on_host: Callable[[_host_ranking.Hits], np.ndarray]


TIES = ("stable", "expected")
"""Rules for equal scores."""


def check_ties(ties: str, shape: tuple[int, ...]) -> str:
    if ties not in TIES:
        raise ValueError(
            f"ties must be one of {sorted(TIES)}; got {ties!r} for an array of shape {shape}"
        )
    return ties


def _metric(name: str, ties: str, xla: Any, host: Any, **params: Any) -> Metric:
    """The functions of that name, or `expected_` and that name, of two modules."""
    if ties == "expected":
        name = f"expected_{name}"
    return Metric(
        functools.partial(getattr(xla, name), **params),
        functools.partial(getattr(host, name), **params),
    )


def average_precision(ties: str) -> Metric:
    return _metric("average_precision", ties, _xla_ranking, _host_ranking)


PREFIX_AVERAGE_PRECISION = Metric(
    _xla_ranking.prefix_average_precision, _host_ranking.prefix_average_precision
)
TIED_PAIRS = Metric(_xla_ranking.tied_pairs, _host_ranking.tied_pairs)
HAS_PAIRS = Metric(_xla_ranking.has_pairs, _host_ranking.has_pairs)
NUM_RELEVANT = Metric(_xla_measures.num_relevant, _host_measures.num_relevant)


def precision_at(k: int, ties: str) -> Metric:
    hits = _metric("hits_within", ties, _xla_ranking, _host_ranking, k=k)
    return Metric(
        lambda ranking: hits.in_xla(ranking) / k, lambda of_host: hits.on_host(of_host) / k
    )


def recall_at(k: int, ties: str) -> Metric:
    return _metric("any_hit_within", ties, _xla_ranking, _host_ranking, k=k)


def fraction_recall_at(k: int, ties: str) -> Metric:
    return _metric("share_within", ties, _xla_measures, _host_measures, k=k)


def ndcg_at(k: int, ties: str) -> Metric:
    """Of relevance without grades."""
    return _metric("normalized_gain_within", ties, _xla_measures, _host_measures, k=k)


def of_whole_ranking(name: str, ties: str) -> Metric:
    """`r_precision`, `average_precision_at_r`, `reciprocal_rank` or `first_hit_rank`."""
    return _metric(name, ties, _xla_measures, _host_measures)


def check_cut_off(k: int, shape: tuple[int, ...]) -> int:
    k = check_count(k, "k", shape)
    if len(shape) == 2 and k > shape[1]:
        raise ValueError(f"k = {k} exceeds the gallery of {shape[1]}; scores have shape {shape}")
    return k


def values_in_xla(metrics: Any, scores: ArrayLike, relevance: Array, where: Array | None) -> Any:
    """The values per query [N] of a pytree of metrics."""
    ranking = _xla_ranking.rank(scores, relevance, where)
    return jax.tree.map(
        lambda metric: jnp.where(ranking.is_nan, jnp.nan, metric.in_xla(ranking)), metrics
    )


@jax.jit
def host_keys(scores: Any, relevance: Any, where: Any) -> _host_ranking.RankingKeys:
    return _host_ranking.ranking_keys(*as_pairs(scores, relevance, where, "scores"))


def is_traced(*arrays: Any) -> bool:
    """Whether a function traces these arrays or, around them, constants."""
    probes = (*arrays, jnp.zeros(()) + 0)  # a tracer within jit
    return any(isinstance(probe, Tracer) for probe in probes)
