"""The metrics of a ranking, each in two forms: in XLA, and from NumPy's sort on the host."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from aadml_jax import _host_ranking, _xla_ranking
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


def average_precision(ties: str) -> Metric:
    if ties == "expected":
        return Metric(
            _xla_ranking.expected_average_precision, _host_ranking.expected_average_precision
        )
    return Metric(_xla_ranking.average_precision, _host_ranking.average_precision)


PREFIX_AVERAGE_PRECISION = Metric(
    _xla_ranking.prefix_average_precision, _host_ranking.prefix_average_precision
)


def precision_at(k: int, ties: str) -> Metric:
    in_xla, on_host = _xla_ranking.hits_within, _host_ranking.hits_within
    if ties == "expected":
        in_xla, on_host = _xla_ranking.expected_hits_within, _host_ranking.expected_hits_within
    return Metric(lambda ranking: in_xla(ranking, k) / k, lambda hits: on_host(hits, k) / k)


def recall_at(k: int, ties: str) -> Metric:
    in_xla, on_host = _xla_ranking.any_hit_within, _host_ranking.any_hit_within
    if ties == "expected":
        in_xla = _xla_ranking.expected_any_hit_within
        on_host = _host_ranking.expected_any_hit_within
    return Metric(functools.partial(in_xla, k=k), functools.partial(on_host, k=k))


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
