"""The sort of XLA's ranking, in the form of each platform, against NumPy's stable sort."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from aadml_jax import _xla_ranking

INT32, INT64 = np.iinfo(np.int32), np.iinfo(np.int64)
SORTS = {
    "two keys": (_xla_ranking._sort_by_two_keys, INT32),
    "two keys of 64 bits": (_xla_ranking._sort_by_two_keys, INT64),
    "packed": (_xla_ranking._sort_packed, INT32),
}


@pytest.mark.parametrize("width", [0, 1, 2, 300])
@pytest.mark.parametrize("name", SORTS)
def test_keys_rise_and_equal_ones_by_their_places_to_the_last_bit(name, width):
    sort, limits = SORTS[name]
    rng = np.random.default_rng(width)
    # All of them several times, with both signs and neighbours in the lowest bit.
    some = [limits.min, limits.min + 1, -2, -1, 0, 1, 2, limits.max - 1, limits.max]
    keys = rng.choice(np.array(some, limits.dtype), (4, width))
    places = rng.permuted(np.tile(np.arange(width, dtype=np.uint32) << 23, (4, 1)), axis=1)
    order = np.lexsort((places, keys), axis=1)
    with oracles.x64(limits is INT64):
        ordered = jax.jit(sort)(keys, places)
        assert [part.dtype for part in ordered] == [limits.dtype, np.uint32]
    for actual, part in zip(ordered, (keys, places), strict=True):
        np.testing.assert_array_equal(actual, np.take_along_axis(part, order, axis=1))


def integer_scores(num_rows=8, num_columns=50):
    """Scores with ties, relevance, gallery; the smallest integer is in and outside of galleries."""
    rng = np.random.default_rng(0)
    scores = rng.choice(np.array([INT32.min, -1, 0, 7, INT32.max], np.int32), (num_rows, 50))
    return scores[:, :num_columns], *(rng.random((2, num_rows, 50)) < [[[0.3]], [[0.7]]])


def ranked_in_numpy(scores, relevance, where):
    """Whether the item at each rank is relevant; those outside of the gallery come last."""
    order = np.lexsort((-scores.astype(np.int64), ~where), axis=1)  # stable
    return np.take_along_axis(relevance & where, order, axis=1)


@pytest.mark.parametrize("dtype", ["int32", "float32"])
def test_equal_scores_rank_in_gallery_order_and_what_is_outside_last(dtype):
    scores, relevance, where = integer_scores()
    ranking = _xla_ranking.rank(scores.astype(dtype), relevance, jnp.asarray(where))
    np.testing.assert_array_equal(ranking.is_hit, ranked_in_numpy(scores, relevance, where))
    np.testing.assert_array_equal(ranking.num_items, where.sum(axis=1))


def hits(*arrays):
    return _xla_ranking.rank(*arrays).is_hit


MAPS = {
    "vmap": lambda: lambda *arrays: jax.vmap(hits)(*(x[:, None] for x in arrays))[:, 0],
    "shard_map": lambda: jax.shard_map(
        hits, mesh=Mesh(np.array(jax.devices()), ("x",)), in_specs=P("x"), out_specs=P("x")
    ),
}


@pytest.mark.parametrize("is_compiled", [True, False])
@pytest.mark.parametrize("name", MAPS)
def test_mapping_over_rows_changes_nothing(name, is_compiled):
    arrays = integer_scores()
    run = MAPS[name]()
    run = jax.jit(run) if is_compiled else run
    np.testing.assert_array_equal(run(*arrays), ranked_in_numpy(*arrays))
