"""Ranking on the host: where each query's relevant items stand, by NumPy's vectorised integer sort.

XLA's sort of integers on a CPU takes several times as long as NumPy's where that has vector
instructions, and a second operand makes it several times slower again. Ranking metrics only ask at
which ranks the relevant items stand, so one bit of each key, the lowest, can say whether the item
is relevant. Two scores that differ in nothing but that bit, or not at all, are then out of order if
one is relevant and the other is not; such neighbours are found after the sort and put right, row by
row.
"""

import concurrent.futures
import os
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

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

    keys: Array
    relevant: Array


class Hits(NamedTuple):
    """The relevant items of n queries, query by query and in ranked order.

    Attributes:
      ranks: [H], from 1 on, rising within a query.
      orders: [H], 1, 2, … within a query.
      counts: [n], relevant items of each query.
      num_items: [n], size of each query's gallery.
      is_nan: bool [n], whether the query's scores hold a NaN.
    """

    ranks: np.ndarray
    orders: np.ndarray
    counts: np.ndarray
    num_items: np.ndarray
    is_nan: np.ndarray


def ranking_keys(scores: Array, relevant: Array, irrelevant: Array) -> RankingKeys:
    """Keys of scores [N, M] with disjoint masks; to be compiled with what makes the scores."""
    keys = order_keys(-scores)
    last = last_key(keys)
    keys = jnp.where(jnp.isnan(scores), last - 2, keys)
    return RankingKeys(jnp.where(relevant | irrelevant, keys, last), relevant)


def is_on_host(*arrays: object) -> bool:
    """Whether all of the arrays (None aside) hold values, in the memory of this process's CPU."""
    for array in arrays:
        if isinstance(array, jax.core.Tracer):
            return False
        if isinstance(array, jax.Array) and not (
            array.is_fully_addressable and all(d.platform == "cpu" for d in array.devices())
        ):
            return False
    return jax.default_backend() == "cpu"


def by_rows(keys: RankingKeys, metric: Callable[[Hits], np.ndarray]) -> np.ndarray:
    """`metric` of all queries' hits: a float64 array [N, …], made part by part of the rows.

    A NaN among a query's scores makes its values NaN.
    """
    keys, relevant = (np.asarray(array) for array in keys)
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
    tie_ends = np.flatnonzero(next_keys == flat[places] + 1)
    tie_ends = tie_ends[ranks[tie_ends] < num_columns]
    tie_rows = places[tie_ends] // max(1, num_columns)
    bounds = np.searchsorted(tie_rows, np.arange(num_rows + 1))
    for row in np.flatnonzero(np.diff(bounds)):
        ends_of_groups = tie_ends[bounds[row] : bounds[row + 1]]
        _order_ties(
            ranks, ends_of_groups, flat[places[ends_of_groups]] | 1, keys[row], relevant[row]
        )
    orders = np.arange(1, len(ranks) + 1) - np.repeat(firsts, counts)
    return Hits(ranks, orders, counts, num_items, is_nan)


def _order_ties(
    ranks: np.ndarray, ends: np.ndarray, groups: np.ndarray, keys: np.ndarray, relevant: np.ndarray
) -> None:
    """Puts right the ranks of relevant items within a query's groups of equal keys.

    Args:
      ranks: [H] of all hits, changed in place.
      ends: the place in `ranks` of each group's last relevant item, rising.
      groups: the keys of these groups with their lowest bit set, rising.
      keys: of all items of the query [M].
      relevant: bool [M].
    """
    upper = keys | 1
    if len(groups) <= _MOST_SCANNED_GROUPS:
        is_member = upper == groups[0]
        for key in groups[1:]:
            is_member |= upper == key
    else:
        is_member = upper == groups.take(np.searchsorted(groups, upper), mode="clip")
    members = np.flatnonzero(is_member)
    members = members[np.argsort(keys[members], kind="stable")]
    group = np.searchsorted(groups, upper[members])
    is_hit = relevant[members]
    hits_in_group = np.bincount(group[is_hit], minlength=len(groups))
    size = np.bincount(group, minlength=len(groups))
    # Relevant items came first, so the group begins as many ranks before its last one as it has.
    before_group = ranks[ends] - hits_in_group
    place_in_group = np.arange(1, len(members) + 1) - np.repeat(np.cumsum(size) - size, size)
    first_hits = np.repeat(ends - hits_in_group + 1, hits_in_group)
    ordinal = np.arange(hits_in_group.sum()) - np.repeat(
        np.cumsum(hits_in_group) - hits_in_group, hits_in_group
    )
    ranks[first_hits + ordinal] = (before_group[group] + place_in_group)[is_hit]


def _sums(hits: Hits, values: np.ndarray) -> np.ndarray:
    """The values of the hits added up for each query [n]."""
    firsts, is_hit = np.cumsum(hits.counts) - hits.counts, hits.counts > 0
    sums = np.zeros(len(hits.counts))
    if len(values):
        sums[is_hit] = np.add.reduceat(values, firsts[is_hit], dtype=np.float64)
    return sums


def average_precision(hits: Hits) -> np.ndarray:
    """See `aadml_jax.metrics.average_precision`."""
    return _sums(hits, hits.orders / hits.ranks) / np.maximum(hits.counts, 1)


def prefix_average_precision(hits: Hits) -> np.ndarray:
    """See `aadml_jax.metrics.prefix_average_precision`."""
    totals = np.concatenate([[0.0], np.cumsum(hits.orders / hits.ranks)])
    firsts = np.cumsum(hits.counts) - hits.counts
    running = (totals[1:] - np.repeat(totals[firsts], hits.counts)) / hits.orders
    # The running value of a hit holds until the next hit, that of the last until the gallery ends.
    until = np.append(hits.ranks[1:], 0)
    ends = (firsts + hits.counts - 1)[hits.counts > 0]
    until[ends] = hits.num_items[hits.counts > 0] + 1
    return _sums(hits, running * (until - hits.ranks)) / np.maximum(hits.num_items, 1)


def hits_within(hits: Hits, k: int) -> np.ndarray:
    """Relevant items among the first k of each query [n]."""
    return _sums(hits, hits.ranks <= k)
