"""What `_xla_measures` computes, from the ranks of the hits on the host."""

import numpy as np

from aadml_jax._host_ranking import (
    Hits,
    Ties,
    expected_hits_within,
    hits_within,
)


def _queries_of(hits: Hits) -> np.ndarray:
    """The query of each hit [H]."""
    return np.repeat(np.arange(len(hits.counts)), hits.counts)


def _sum_by_query(hits: Hits, values: np.ndarray) -> np.ndarray:
    """The values of the hits added up for each query [n]."""
    return np.bincount(_queries_of(hits), weights=values, minlength=len(hits.counts))


def _mean_over_relevant(hits: Hits, values: np.ndarray) -> np.ndarray:
    """The sum of the values of the hits over their number [n]; 0 without any."""
    return _sum_by_query(hits, values) / np.maximum(hits.counts, 1)


def _with_ties(hits: Hits, values: np.ndarray, of_groups: np.ndarray) -> np.ndarray:
    """The hits' values [H], those of each tied group replaced by one for all of its hits."""
    values = values.astype(np.float64)
    values[hits.ties.places] = np.repeat(of_groups, hits.ties.hits)
    return values


def _places_in(ties: Ties) -> np.ndarray:
    """0 … g − 1 of each group of g items, group by group."""
    return np.arange(ties.sizes.sum()) - np.repeat(_begins_of(ties), ties.sizes)


def _begins_of(ties: Ties) -> np.ndarray:
    """Where each group begins among the items of all groups."""
    return np.cumsum(ties.sizes) - ties.sizes


def _sums_of_groups(ties: Ties, of_places: np.ndarray) -> np.ndarray:
    """Values of all places of all groups added up by group."""
    if not len(ties.sizes):
        return np.zeros(0)
    return np.add.reduceat(of_places, _begins_of(ties))


def num_relevant(hits: Hits) -> np.ndarray:
    """See `aadml_jax._xla_measures.num_relevant`."""
    return hits.counts.astype(np.float64)


def share_within(hits: Hits, k: int) -> np.ndarray:
    """See `aadml_jax.metrics.fraction_recall_at`."""
    return hits_within(hits, k) / np.maximum(hits.counts, 1)


def expected_share_within(hits: Hits, k: int) -> np.ndarray:
    """The expectation of `share_within` over the orders of equal scores [n]."""
    return expected_hits_within(hits, k) / np.maximum(hits.counts, 1)


def _is_within_r(hits: Hits) -> np.ndarray:
    return hits.ranks <= np.repeat(hits.counts, hits.counts)


def r_precision(hits: Hits) -> np.ndarray:
    """See `aadml_jax.metrics.r_precision`."""
    return _mean_over_relevant(hits, _is_within_r(hits))


def expected_r_precision(hits: Hits) -> np.ndarray:
    """The expectation of `r_precision` over the orders of equal scores [n]."""
    ties = hits.ties
    shares = np.clip(hits.counts[ties.queries] - ties.before, 0, ties.sizes) / ties.sizes
    return _mean_over_relevant(hits, _with_ties(hits, _is_within_r(hits), shares))


def average_precision_at_r(hits: Hits) -> np.ndarray:
    """See `aadml_jax.metrics.average_precision_at_r`."""
    return _mean_over_relevant(hits, _is_within_r(hits) * (hits.orders / hits.ranks))


def expected_average_precision_at_r(hits: Hits) -> np.ndarray:
    """The expectation of `average_precision_at_r`; see `_xla_measures`."""
    ties, place = hits.ties, _places_in(hits.ties)
    ranks = np.repeat(ties.before + 1, ties.sizes) + place
    others_before = place * np.repeat((ties.hits - 1) / np.maximum(ties.sizes - 1, 1), ties.sizes)
    precisions = (np.repeat(ties.hits_before + 1, ties.sizes) + others_before) / ranks
    precisions *= ranks <= np.repeat(hits.counts[ties.queries], ties.sizes)
    of_groups = _sums_of_groups(ties, precisions) / ties.sizes
    untied = _is_within_r(hits) * (hits.orders / hits.ranks)
    return _mean_over_relevant(hits, _with_ties(hits, untied, of_groups))


def _by_first_hits(hits: Hits, of_first_hits: np.ndarray, without: np.ndarray) -> np.ndarray:
    """A value for each query with a relevant item, and one for each without [n]."""
    values = without.astype(np.float64)
    values[hits.counts > 0] = of_first_hits
    return values


def _first_ranks(hits: Hits) -> np.ndarray:
    """The rank of the first hit of each query that has one."""
    return hits.ranks[hits.orders == 1]


def first_hit_rank(hits: Hits) -> np.ndarray:
    """See `aadml_jax.metrics.first_hit_rank`."""
    return _by_first_hits(hits, _first_ranks(hits), hits.num_items + 1)


def expected_first_hit_rank(hits: Hits) -> np.ndarray:
    """The expectation of `first_hit_rank`; see `_xla_measures`."""
    ties, ranks = hits.ties, first_hit_rank(hits)
    is_first = ties.hits_before == 0
    expected = ties.before + (ties.sizes + 1) / (ties.hits + 1)
    ranks[ties.queries[is_first]] = expected[is_first]
    return ranks


def reciprocal_rank(hits: Hits) -> np.ndarray:
    """See `aadml_jax.metrics.reciprocal_rank`."""
    return _by_first_hits(hits, 1 / _first_ranks(hits), np.zeros(len(hits.counts)))


def expected_reciprocal_rank(hits: Hits) -> np.ndarray:
    """The expectation of `reciprocal_rank`; see `_xla_measures`."""
    values = reciprocal_rank(hits)
    is_first = hits.ties.hits_before == 0
    ties = Ties(*(part[is_first] for part in hits.ties))
    place, begins = _places_in(ties), _begins_of(ties)
    size, found = np.repeat(ties.sizes, ties.sizes), np.repeat(ties.hits, ties.sizes)
    chance = np.where(place <= size - found, found / (size - place), 0)
    misses = np.log1p(-np.where(place < size - found, chance, 0))
    before = np.cumsum(misses) - misses
    none_before = np.exp(before - np.repeat(before[begins], ties.sizes))
    ranks = np.repeat(ties.before + 1, ties.sizes) + place
    values[ties.queries] = _sums_of_groups(ties, none_before * chance / ranks)
    return values


def _discounts_until(k: int) -> np.ndarray:
    """The sums of 1 / log2(1 + rank) up to rank 0 … k."""
    return np.concatenate([[0.0], np.cumsum(1 / np.log2(np.arange(2, k + 2)))])


def _discounts_of(hits: Hits, k: int) -> np.ndarray:
    return np.where(hits.ranks <= k, 1 / np.log2(hits.ranks + 1.0), 0)


def _over_ideal(hits: Hits, gains: np.ndarray, k: int) -> np.ndarray:
    ideal = _discounts_until(k)[np.minimum(hits.counts, k)]
    return _sum_by_query(hits, gains) / np.where(ideal > 0, ideal, 1)


def normalized_gain_within(hits: Hits, k: int) -> np.ndarray:
    """See `aadml_jax.metrics.ndcg_at`, of relevance without grades."""
    return _over_ideal(hits, _discounts_of(hits, k), k)


def expected_normalized_gain_within(hits: Hits, k: int) -> np.ndarray:
    """The expectation of `normalized_gain_within` over the orders of equal scores [n]."""
    ties, until = hits.ties, _discounts_until(k)
    ends = np.minimum(ties.before + ties.sizes, k)
    of_groups = (until[ends] - until[np.minimum(ties.before, k)]) / ties.sizes
    return _over_ideal(hits, _with_ties(hits, _discounts_of(hits, k), of_groups), k)
