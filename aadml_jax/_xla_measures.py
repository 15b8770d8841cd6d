"""Metrics of the first hit, of the first R ranks and of discounted gain, from a ranking in XLA."""

import jax.numpy as jnp

from aadml_jax._arrays import Array, divide_or_zero
from aadml_jax._xla_ranking import (
    Groups,
    Ranking,
    expected_hits_within,
    hits_within,
)


def num_relevant(ranking: Ranking) -> Array:
    """Relevant items of each query's gallery, as floats [N]."""
    return ranking.num_relevant.astype(ranking.dtype)


def share_within(ranking: Ranking, k: int) -> Array:
    """See `aadml_jax.metrics.fraction_recall_at`."""
    return divide_or_zero(hits_within(ranking, k), ranking.num_relevant)


def expected_share_within(ranking: Ranking, k: int) -> Array:
    """The expectation of `share_within` over the orders of equal scores [N]."""
    return divide_or_zero(expected_hits_within(ranking, k), ranking.num_relevant)


def _within_r(ranking: Ranking) -> Array:
    """Which ranks are at most the number of the query's relevant items, bool [N, M]."""
    return ranking.places < ranking.num_relevant[:, None]


def _chances(ranking: Ranking) -> Array:
    """The probability of a hit at each rank over the orders of equal scores [N, M]."""
    groups = ranking.groups
    return groups.hits.astype(ranking.dtype) / groups.size.astype(ranking.dtype)


def r_precision(ranking: Ranking) -> Array:
    """See `aadml_jax.metrics.r_precision`."""
    hits = jnp.sum(ranking.is_hit & _within_r(ranking), axis=1).astype(ranking.dtype)
    return divide_or_zero(hits, ranking.num_relevant)


def expected_r_precision(ranking: Ranking) -> Array:
    """The expectation of `r_precision` over the orders of equal scores [N]."""
    hits = jnp.sum(jnp.where(_within_r(ranking), _chances(ranking), 0), axis=1)
    return divide_or_zero(hits, ranking.num_relevant)


def average_precision_at_r(ranking: Ranking) -> Array:
    """See `aadml_jax.metrics.average_precision_at_r`."""
    precisions = jnp.where(_within_r(ranking), ranking.precisions, 0)
    return divide_or_zero(jnp.sum(precisions, axis=1), ranking.num_relevant)


def expected_average_precision_at_r(ranking: Ranking) -> Array:
    """Its expectation, as `aadml_jax._xla_ranking.expected_average_precision` up to rank R [N]."""
    before, hits_before, size, hits = (part.astype(ranking.dtype) for part in ranking.groups)
    others_before = (hits - 1) / jnp.maximum(size - 1, 1) * (ranking.ranks - 1 - before)
    precisions = hits / size * (hits_before + 1 + others_before) / ranking.ranks
    precisions = jnp.where(_within_r(ranking), precisions, 0)
    return divide_or_zero(jnp.sum(precisions, axis=1), ranking.num_relevant)


def _first_place(ranking: Ranking) -> Array:
    """The place of the first hit, counted from 0, int32 [N, 1]; M without one."""
    num_columns = ranking.is_hit.shape[1]
    places = jnp.where(ranking.is_hit, ranking.places, num_columns)
    return jnp.min(places, axis=1, keepdims=True, initial=num_columns).astype(jnp.int32)


def _or_behind_all(ranking: Ranking, ranks: Array) -> Array:
    """The ranks [N], or the one behind the gallery for a query without relevant items."""
    behind = (ranking.num_items + 1).astype(ranking.dtype)
    return jnp.where(ranking.num_relevant > 0, ranks, behind)


def first_hit_rank(ranking: Ranking) -> Array:
    """See `aadml_jax.metrics.first_hit_rank`."""
    return _or_behind_all(ranking, (_first_place(ranking)[:, 0] + 1).astype(ranking.dtype))


def _first_group(ranking: Ranking) -> Groups:
    """The first group with a hit, each part [N]; 0 for a query without relevant items."""
    is_first = ranking.places == _first_place(ranking)
    return Groups(*(jnp.sum(jnp.where(is_first, part, 0), axis=1) for part in ranking.groups))


def expected_first_hit_rank(ranking: Ranking) -> Array:
    """Its expectation: r hits part a group of g items into r + 1 stretches of equal length [N]."""
    before, _, size, hits = (part.astype(ranking.dtype) for part in _first_group(ranking))
    return _or_behind_all(ranking, before + (size + 1) / (hits + 1))


def reciprocal_rank(ranking: Ranking) -> Array:
    """See `aadml_jax.metrics.reciprocal_rank`."""
    return jnp.where(ranking.num_relevant > 0, 1 / first_hit_rank(ranking), 0)


def expected_reciprocal_rank(ranking: Ranking) -> Array:
    """The expectation of `reciprocal_rank` over the orders of equal scores [N].

    If the first t places of a group of g items hold none of its r hits, which has probability
    Π_{i<t} (1 − r / (g − i)), the next one is a hit with probability r / (g − t).
    """
    groups = ranking.groups
    before, _, size, hits = (part.astype(ranking.dtype) for part in groups)
    # Past the last place at which the first hit may be, all that are left are hits, and r > g − t.
    place = ranking.ranks - 1 - before
    is_first_group = (groups.hits > 0) & (groups.hits_before == 0)
    may_be_first = is_first_group & (place <= size - hits)
    chance = jnp.where(may_be_first, hits / jnp.maximum(size - place, 1), 0)
    misses = jnp.where(may_be_first & (place < size - hits), jnp.log1p(-chance), 0)
    none_before = jnp.exp(jnp.cumsum(misses, axis=1) - misses)
    return jnp.sum(none_before * chance / ranking.ranks, axis=1)


def discounts(ranks: Array) -> Array:
    """1 / log2(1 + rank)."""
    return 1 / jnp.log2(1 + ranks)


def _gain(ranking: Ranking, at_ranks: Array, k: int) -> Array:
    """DCG of the gains at the first k ranks, divided by the best possible [N]."""
    of_ranks = discounts(ranking.ranks[:, :k])
    is_ideal = ranking.places[:, :k] < ranking.num_relevant[:, None]
    ideal = jnp.sum(jnp.where(is_ideal, of_ranks, 0), axis=1)
    gain = jnp.sum(at_ranks[:, :k] * of_ranks, axis=1)
    return jnp.where(ranking.num_relevant > 0, gain / jnp.where(ideal > 0, ideal, 1), 0)


def normalized_gain_within(ranking: Ranking, k: int) -> Array:
    """See `aadml_jax.metrics.ndcg_at`, of relevance without grades."""
    return _gain(ranking, ranking.is_hit.astype(ranking.dtype), k)


def expected_normalized_gain_within(ranking: Ranking, k: int) -> Array:
    """The expectation of `normalized_gain_within` over the orders of equal scores [N]."""
    return _gain(ranking, _chances(ranking), k)
