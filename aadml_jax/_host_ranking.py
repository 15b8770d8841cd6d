"""Ranking on the host: where each query's relevant items stand, by NumPy's vectorised integer sort.

XLA's sort of integers on a CPU takes several times as long as NumPy's where that has vector
instructions, and a second operand makes it several times slower again. Ranking metrics only ask at
which ranks the relevant items stand, so one bit of each key, the lowest, can say whether the item
is relevant. Two scores that differ in nothing but that bit, or not at all, are then out of order if
one is relevant and the other is not; such neighbours are found after the sort and put right. They
are also the only ties that matter to a metric.
"""

import concurrent.futures
import os
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from aadml_jax._arrays import Array
from aadml_jax._ordering import last_key, order_keys

_MOST_SCANNED_GROUPS = 32  # of tied items in a row; with more, one search in them is faster
_ENTRIES_AT_ONCE = 2**18  # of a thread: about a megabyte, which stays in its core's cache


class RankingKeys(NamedTuple):
    """What is sorted: [N, M] each.

    Attributes:
      keys: integers that rise as scores fall, equal for equal scores. NaN has one of its own behind
        all others; items outside the gallery have `last_key`.
      relevant: bool, within the gallery.
    """

    keys: Array | np.ndarray
    relevant: Array | np.ndarray


class Ties(NamedTuple):
    """Groups of equal scores with relevant items and others, query by query and in ranked order.

    Attributes:
      queries: [T], the row of each.
      before: [T], items that rank before the group.
      hits_before: [T], relevant ones among them.
      sizes: [T], items of the group.
      hits: [T], relevant ones among them.
      first_hits: [T], the place of the first of them among all `Hits`; the others follow it.
    """

    queries: np.ndarray
    before: np.ndarray
    hits_before: np.ndarray
    sizes: np.ndarray
    hits: np.ndarray
    first_hits: np.ndarray

    @property
    def places(self) -> np.ndarray:
        """The places among all `Hits` of these groups' relevant items, group by group."""
        return _concatenated_ranges(self.first_hits, self.hits)


class Hits(NamedTuple):
    """The relevant items of n queries, query by query and in ranked order.

    Attributes:
      ranks: [H], from 1 on, rising within a query; equal scores rank in gallery order.
      orders: [H], 1, 2, … within a query.
      counts: [n], relevant items of each query.
      num_items: [n], size of each query's gallery.
      is_nan: bool [n], whether the query's scores hold a NaN.
      ties: the groups of equal scores in which another order would give other ranks.
    """

    ranks: np.ndarray
    orders: np.ndarray
    counts: np.ndarray
    num_items: np.ndarray
    is_nan: np.ndarray
    ties: Ties


def ranking_keys(scores: Array, relevant: Array, irrelevant: Array) -> RankingKeys:
    """Keys of scores [N, M] with disjoint masks; to be compiled with what makes the scores."""
    keys = order_keys(-scores)
    last = last_key(keys)
    keys = jnp.where(jnp.isnan(scores), last - 2, keys)
    return RankingKeys(jnp.where(relevant | irrelevant, keys, last), relevant)


def exact_keys(scores: np.ndarray, relevant: Array, irrelevant: Array) -> RankingKeys:
    """Keys of scores [N, M] whatever their width; see `ranking_keys`."""
    if np.issubdtype(scores.dtype, np.integer):
        # Their order numbers are exact as floats, large integers are not.
        is_exact = scores.dtype.itemsize <= 4 or _all_within(scores, 2**53)
        if not is_exact:
            scores = np.unique(scores, return_inverse=True)[1].reshape(scores.shape)
    values = -scores.astype(np.float64)
    values[values == 0] = 0  # −0.0 equals 0.0
    bits = values.view(np.int64)
    last = np.iinfo(np.int64).max
    keys = np.where(bits < 0, bits ^ last, bits)
    keys[np.isnan(values)] = last - 2
    is_relevant = np.asarray(relevant)
    keys[~(is_relevant | np.asarray(irrelevant))] = last
    return RankingKeys(keys, is_relevant)


def _all_within(integers: np.ndarray, bound: int) -> bool:
    return not integers.size or (integers.min() >= -bound and integers.max() <= bound)


def is_on_host(*arrays: object) -> bool:
    """Whether all of the arrays (None aside) hold values, in the memory of this process's CPU."""
    for array in arrays:
        if isinstance(array, Tracer):
            return False
        if isinstance(array, jax.Array) and not (
            array.is_fully_addressable and all(d.platform == "cpu" for d in array.devices())
        ):
            return False
    return jax.default_backend() == "cpu"


def by_rows(ranking: RankingKeys, metric: Callable[[Hits], np.ndarray]) -> np.ndarray:
    """`metric` of all queries' hits: a float64 array [N, …], made part by part of the rows.

    A NaN among a query's scores makes its values NaN.
    """
    keys, relevant = np.asarray(ranking.keys), np.asarray(ranking.relevant)
    num_rows, num_columns = keys.shape
    rows_at_once = max(1, _ENTRIES_AT_ONCE // max(1, num_columns))

    def part(first: int) -> np.ndarray:
        rows = slice(first, first + rows_at_once)
        hits = _hits(keys[rows], relevant[rows])
        values = metric(hits)
        values[hits.is_nan] = np.nan
        return values

    starts = range(0, max(1, num_rows), rows_at_once)
    if len(starts) == 1:
        return part(0)
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        return np.concatenate(list(pool.map(part, starts)))


def _hits(keys: np.ndarray, relevant: np.ndarray) -> Hits:
    # Two queries of three items, whose keys are 4′ 2 8 and 8′ 6 2′ (′ is relevant):
    #   ordered 3 4 9 | 2 7 8, hits are even; places 1 | 3 5 in `flat`, counts 1 2, firsts 0 1;
    #   ranks 2 | 1 3, each place less that at which its row begins, and 1 more.
    num_rows, num_columns = keys.shape
    ordered = keys | 1
    ordered -= relevant  # the lowest bit is 0 for relevant items, 1 for all others
    ordered.sort(axis=1)
    flat = ordered.ravel()
    places = np.flatnonzero((flat & 1) == 0)
    ends = np.searchsorted(places, np.arange(num_rows + 1) * num_columns)
    counts, firsts = np.diff(ends), ends[:-1]
    ranks = places - np.repeat(np.arange(num_rows) * num_columns - 1, counts)

    last = np.iinfo(keys.dtype).max
    num_items = np.full(num_rows, num_columns)
    if num_columns:
        short = np.flatnonzero(ordered[:, -1] == last)
        num_items[short] -= np.count_nonzero(ordered[short] == last, axis=1)
    is_nan = np.zeros(num_rows, bool)
    filled = np.flatnonzero(num_items)
    is_nan[filled] = ordered[filled, num_items[filled] - 1] >= last - 3

    # Within a group of equal keys the relevant items came first; where another item follows, the
    # group's true order is not known yet.
    next_keys = flat.take(places + 1, mode="clip") if len(flat) else places
    group_ends = np.flatnonzero(next_keys == flat[places] + 1)
    group_ends = group_ends[ranks[group_ends] < num_columns]
    ties = _order_ties(ranks, group_ends, flat[places[group_ends]] | 1, firsts, keys, relevant)
    orders = np.arange(1, len(ranks) + 1) - np.repeat(firsts, counts)
    return Hits(ranks, orders, counts, num_items, is_nan, ties)


def _order_ties(
    ranks: np.ndarray,
    ends: np.ndarray,
    groups: np.ndarray,
    firsts: np.ndarray,
    keys: np.ndarray,
    relevant: np.ndarray,
) -> Ties:
    """Puts right the ranks of relevant items within groups of keys that are equal but for a bit.

    Keys 4 5 5 4, of which the first and the third are relevant, are sorted as 4′ 4′ 5 5: group 5
    with two hits. In truth they rank 4′ 4 5 5′: hits at places 1 and 4, and both pairs are ties.

    Args:
      ranks: [H] of all hits, changed in place.
      ends: [G], the place in `ranks` of each group's last relevant item, rising.
      groups: [G], the keys of these groups with their lowest bit set.
      firsts: [n], the place in `ranks` of each query's first relevant item.
      keys: of all items of all queries [n, M].
      relevant: bool [n, M].

    Returns:
      The groups of equal keys among them.
    """
    num_columns = keys.shape[1]
    group_rows = np.searchsorted(firsts, ends, side="right") - 1
    bounds = np.searchsorted(group_rows, np.arange(len(keys) + 1))
    members = [
        row * num_columns + _members(keys[row], groups[bounds[row] : bounds[row + 1]])
        for row in np.flatnonzero(np.diff(bounds))
    ]
    if not members:
        return Ties(*(np.zeros(0, np.int64) for _ in Ties._fields))
    members = np.concatenate(members)
    rows, of_members = members // num_columns, keys.ravel()[members]
    order = np.lexsort((of_members, rows))  # stable: equal keys stay in gallery order
    rows, of_members = rows[order], of_members[order]
    is_hit = relevant.ravel()[members[order]]
    # In the example: members 0 1 2 3, in order 0 3 1 2, of which the first and the last are hits.
    # The group's last hit has rank 2 and is the second of 2, so the members rank from 1 to 4;
    # the hits' ranks, 1 and 2 so far, become 1 and 4.
    hits_until = np.cumsum(is_hit)

    def begins(values: np.ndarray) -> np.ndarray:
        changes = (values[1:] != values[:-1]) | (rows[1:] != rows[:-1])
        return np.concatenate([[0], np.flatnonzero(changes) + 1])

    def hits_from(begin: np.ndarray) -> np.ndarray:
        return np.diff(np.append(hits_until[begin] - is_hit[begin], hits_until[-1]))

    begin = begins(of_members | 1)
    sizes, hits = np.diff(np.append(begin, len(rows))), hits_from(begin)
    # Relevant items came first, so the group begins as many ranks before its last one as it has.
    member_ranks = _concatenated_ranges(ranks[ends] - hits + 1, sizes)
    ranks[_concatenated_ranges(ends - hits + 1, hits)] = member_ranks[is_hit]

    # The place among all hits that the next hit has, of each member.
    next_hits = np.repeat(ends - hits + 1 - (hits_until - is_hit)[begin], sizes)
    next_hits += hits_until - is_hit
    begin = begins(of_members)
    sizes, hits = np.diff(np.append(begin, len(rows))), hits_from(begin)
    is_mixed = (hits > 0) & (hits < sizes)
    begin = begin[is_mixed]
    return Ties(
        queries=rows[begin],
        before=member_ranks[begin] - 1,
        hits_before=next_hits[begin] - firsts[rows[begin]],
        sizes=sizes[is_mixed],
        hits=hits[is_mixed],
        first_hits=next_hits[begin],
    )


def _members(keys: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Which of a query's keys [M] belong to the groups, whose lowest bit is set and which rise."""
    upper = keys | 1
    if len(groups) <= _MOST_SCANNED_GROUPS:
        is_member = upper == groups[0]
        for key in groups[1:]:
            is_member |= upper == key
    else:
        is_member = upper == groups.take(np.searchsorted(groups, upper), mode="clip")
    return np.flatnonzero(is_member)


def _concatenated_ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Integers counted on from each start: starts 5 and 2, lengths 2 and 3 give 5 6 2 3 4."""
    skipped = np.cumsum(lengths) - lengths
    return np.repeat(starts - skipped, lengths) + np.arange(lengths.sum())


def _sum_by_query(hits: Hits, values: np.ndarray) -> np.ndarray:
    """The values of the hits added up for each query [n]."""
    firsts, is_hit = np.cumsum(hits.counts) - hits.counts, hits.counts > 0
    sums = np.zeros(len(hits.counts))
    if len(values):
        sums[is_hit] = np.add.reduceat(values, firsts[is_hit], dtype=np.float64)
    return sums


def average_precision(hits: Hits) -> np.ndarray:
    """See `aadml_jax.metrics.average_precision`."""
    return _sum_by_query(hits, hits.orders / hits.ranks) / np.maximum(hits.counts, 1)


def expected_average_precision(hits: Hits) -> np.ndarray:
    """See `aadml_jax._xla_ranking.expected_average_precision`."""
    ties = hits.ties
    precisions = hits.orders / hits.ranks
    if len(ties.sizes):
        place = _concatenated_ranges(np.zeros_like(ties.sizes), ties.sizes)
        others_before = place * np.repeat((ties.hits - 1) / (ties.sizes - 1), ties.sizes)
        hits_at_place = np.repeat(ties.hits_before + 1, ties.sizes) + others_before
        of_places = hits_at_place / (np.repeat(ties.before + 1, ties.sizes) + place)
        # The sum of the group's r hits is r/g of this one.
        totals = np.add.reduceat(of_places, np.cumsum(ties.sizes) - ties.sizes)
        precisions[ties.places] = np.repeat(totals / ties.sizes, ties.hits)
    return _sum_by_query(hits, precisions) / np.maximum(hits.counts, 1)


def prefix_average_precision(hits: Hits) -> np.ndarray:
    """See `aadml_jax.metrics.prefix_average_precision`."""
    totals = np.concatenate([[0.0], np.cumsum(hits.orders / hits.ranks)])
    firsts = np.cumsum(hits.counts) - hits.counts
    running = (totals[1:] - np.repeat(totals[firsts], hits.counts)) / hits.orders
    # The running value of a hit holds until the next hit, that of the last until the gallery ends.
    until = np.append(hits.ranks[1:], 0)
    ends = (firsts + hits.counts - 1)[hits.counts > 0]
    until[ends] = hits.num_items[hits.counts > 0] + 1
    return _sum_by_query(hits, running * (until - hits.ranks)) / np.maximum(hits.num_items, 1)


def _queries_of(hits: Hits, places: np.ndarray) -> np.ndarray:
    """Which queries the hits at these places belong to."""
    return np.searchsorted(np.cumsum(hits.counts), places, side="right")


def hits_within(hits: Hits, k: int) -> np.ndarray:
    """Relevant items among the first k of each query [n]."""
    queries = _queries_of(hits, np.flatnonzero(hits.ranks <= k))
    return np.bincount(queries, minlength=len(hits.counts)).astype(np.float64)


def _untied_hits_within(hits: Hits, k: int) -> np.ndarray:
    tied = hits.ties.places
    queries = _queries_of(hits, tied[hits.ranks[tied] <= k])
    return hits_within(hits, k) - np.bincount(queries, minlength=len(hits.counts))


def _shares_within(ties: Ties, k: int) -> np.ndarray:
    """How much of each group ranks among the first k, in [0, 1]."""
    return np.clip(k - ties.before, 0, ties.sizes) / ties.sizes


def expected_hits_within(hits: Hits, k: int) -> np.ndarray:
    """The expectation of `hits_within` over the orders of equal scores [n]."""
    ties = hits.ties
    if not len(ties.sizes):
        return hits_within(hits, k)
    of_ties = ties.hits * _shares_within(ties, k)
    tied = np.bincount(ties.queries, weights=of_ties, minlength=len(hits.counts))
    return _untied_hits_within(hits, k) + tied


def any_hit_within(hits: Hits, k: int) -> np.ndarray:
    """1 if any of the first k items of a query is relevant, else 0 [n]."""
    return np.minimum(hits_within(hits, k), 1)


def expected_any_hit_within(hits: Hits, k: int) -> np.ndarray:
    """The probability of `any_hit_within`; see `aadml_jax._xla_ranking.expected_any_hit_within`."""
    ties = hits.ties
    if not len(ties.sizes):
        return any_hit_within(hits, k)
    shares = _shares_within(ties, k)
    found = np.minimum(_untied_hits_within(hits, k), 1)
    found[ties.queries[shares == 1]] = 1
    # A group that the cut-off parts, with no hit before it.
    is_cut = (shares > 0) & (shares < 1) & (ties.hits_before == 0)
    before, sizes, relevant = (part[is_cut, None] for part in (ties.before, ties.sizes, ties.hits))
    drawn = np.arange(k)[None, :]
    missed = 1 - np.minimum(relevant / np.maximum(sizes - drawn, 1), 1)
    found[ties.queries[is_cut]] = 1 - np.prod(np.where(drawn < k - before, missed, 1), axis=1)
    return found


def tied_pairs(hits: Hits) -> np.ndarray:
    """Share of a query's pairs (relevant, irrelevant) with equal scores [n]; 0 without pairs."""
    ties = hits.ties
    pairs = ties.hits * (ties.sizes - ties.hits)
    tied = np.bincount(ties.queries, weights=pairs, minlength=len(hits.counts))
    return tied / np.maximum(hits.counts * (hits.num_items - hits.counts), 1)


def has_pairs(hits: Hits) -> np.ndarray:
    """1 for a query with relevant and irrelevant items, else 0 [n]."""
    return ((hits.counts > 0) & (hits.counts < hits.num_items)).astype(np.float64)
