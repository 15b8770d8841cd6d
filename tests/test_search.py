"""Search for the best items of a gallery, against a sort of each row, ties included."""

import functools

import hypothesis
import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from hypothesis import strategies as st
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import aadml_jax as aa
from aadml_jax import search

WAYS = {"plain": functools.partial, "compiled": oracles.compiled}
EVERY_WAY = pytest.mark.parametrize("way", WAYS)
QUIET = hypothesis.settings(max_examples=60, deadline=None, database=None, derandomize=True)


def product(a, b):
    return a @ b.T


def as_scores(queries, gallery):
    """The first argument holds a row of scores for each query, the second columns of it."""
    return queries[:, gallery[:, 0].astype(jnp.int32)]


def search_scores(scores, k, way="plain", **options):
    """The best of given scores [N, M], of which a query is a row and an item is a column."""
    scores = np.asarray(scores)
    columns = np.zeros((scores.shape[1], scores.shape[1]), np.float32)
    columns[:, 0] = np.arange(scores.shape[1])
    if way == "plain":
        return aa.top_k(scores, columns, k, similarity=as_scores, **options)
    where = options.pop("where", None)
    run = jax.jit(functools.partial(aa.top_k, k=k, similarity=as_scores, **options))
    return run(scores, columns, where=where)


def expected(scores, k, where=None):
    """Scores and indices [N, k] by a sort of each row."""
    scores = np.asarray(scores)
    values, indices = np.full((len(scores), k), -np.inf), np.full((len(scores), k), -1)
    for i, row in enumerate(scores):
        columns = [j for j in oracles.ranking(row) if where is None or where[i, j]][:k]
        indices[i, : len(columns)], values[i, : len(columns)] = columns, row[columns]
    return values, indices


def assert_found(found, scores, k, where=None):
    values, indices = expected(scores, k, where)
    np.testing.assert_array_equal(found.indices, indices)
    np.testing.assert_array_equal(found.scores, values)
    assert found.indices.dtype == jnp.int32


def test_values_by_hand():
    # Cosines with (1, 0): 0, 1/√2, 1, 0.6 and −1; the second query is the first one's opposite.
    queries = np.array([[2, 0], [-1, 0]], np.float32)
    gallery = np.array([[0, 1], [1, 1], [5, 0], [3, 4], [-1, 0]], np.float32)
    found = aa.top_k(queries, gallery, 3)
    np.testing.assert_array_equal(found.indices, [[2, 1, 3], [4, 0, 3]])
    np.testing.assert_allclose(found.scores, [[1, 0.5**0.5, 0.6], [1, 0, -0.6]], rtol=1e-6)


@QUIET
@hypothesis.given(
    hnp.arrays(np.float32, (3, 40), elements=st.sampled_from([-np.inf, -1, -0.0, 0.0, 2, np.inf])),
    hnp.arrays(np.bool_, (3, 40)),
    st.sampled_from([1, 2, 5, 40]),
)
@EVERY_WAY
def test_any_ties_infinities_and_masks_equal_a_sort_of_the_row(way, scores, where, k):
    assert_found(search_scores(scores, k, way), scores, k)
    assert_found(search_scores(scores, k, way, where=where), scores, k, where)


@pytest.mark.parametrize("num_items", [1, 7, 64, 1000, 1027])
@pytest.mark.parametrize("at_once", [1, 16, 512])
def test_a_gallery_in_parts_and_groups_gives_the_same_items(monkeypatch, num_items, at_once):
    monkeypatch.setattr(search, "_ITEMS_AT_ONCE", at_once)
    monkeypatch.setattr(search, "_ITEMS_AT_ONCE_ON_ACCELERATORS", at_once)
    rng = np.random.default_rng(num_items)
    scores = rng.integers(0, 50, (6, num_items)).astype(np.float32)
    where = rng.random(scores.shape) < 0.5
    where[0] = False
    for k in {1, min(3, num_items), min(40, num_items)}:
        assert_found(search_scores(scores, k, block_size=4), scores, k)
        assert_found(search_scores(scores, k, block_size=4, where=where), scores, k, where)


@pytest.mark.parametrize("block_size", [1, 3, 1000])
def test_queries_in_blocks_of_any_size_find_the_same_items(block_size):
    rng = np.random.default_rng(1)
    queries, gallery = rng.integers(-2, 3, (7, 3)), rng.integers(-2, 3, (50, 3))
    found = aa.top_k(queries, gallery, 4, similarity=product, block_size=block_size)
    assert_found(found, queries @ gallery.T, 4)


def test_one_mask_for_all_queries_and_one_for_each_are_the_same():
    rng = np.random.default_rng(2)
    queries, gallery, where = (
        rng.normal(size=(4, 3)),
        rng.normal(size=(30, 3)),
        np.arange(30) % 3 > 0,
    )
    of_all = aa.top_k(queries, gallery, 5, where=where)
    of_each = aa.top_k(queries, gallery, 5, where=np.broadcast_to(where, (4, 30)))
    np.testing.assert_array_equal(of_all.indices, of_each.indices)
    kept = aa.top_k(queries, gallery[where], 5)
    np.testing.assert_array_equal(of_all.indices, np.flatnonzero(where)[kept.indices])


@pytest.mark.parametrize("similarity", ["cosine", "posterior"])
def test_named_similarities_find_what_their_matrix_ranks_first(similarity):
    rng = np.random.default_rng(3)
    queries, gallery = rng.normal(size=(5, 4)), rng.normal(size=(60, 4))
    matrix = {"cosine": aa.cosine_similarity, "posterior": aa.posterior_similarity}[similarity]
    scores = np.asarray(matrix(queries, gallery))
    found = aa.top_k(queries, gallery, 6, similarity=similarity)
    np.testing.assert_array_equal(found.indices, expected(scores, 6)[1])
    np.testing.assert_allclose(found.scores, expected(scores, 6)[0], rtol=1e-6)


def test_where_clears_what_it_excludes_and_64_bits_stay():
    scores = np.array([[1.0, np.nan, 3.0, np.inf]])
    where = np.array([True, False, True, False])
    found = search_scores(scores, 3, where=where)
    np.testing.assert_array_equal(found.indices, [[2, 0, -1]])
    np.testing.assert_array_equal(found.scores, [[3, 1, -np.inf]])
    with oracles.x64():
        crowded = 1 + np.array([[1e-12, 3e-12, 2e-12]])
        found = search_scores(crowded, 2)
        np.testing.assert_array_equal(found.indices, [[1, 2]])
        assert found.scores.dtype == jnp.float64


def test_a_nan_is_refused_with_its_row_and_shows_within_jit():
    queries, gallery = np.ones((3, 2), np.float32), np.ones((4, 2), np.float32)
    wrong = queries.copy()
    wrong[1, 0] = np.nan
    with pytest.raises(ValueError, match=r"row 1 of queries of shape \(3, 2\) holds NaN"):
        aa.top_k(wrong, gallery, 2)
    with pytest.raises(ValueError, match=r"row 1 of gallery of shape \(3, 2\) holds NaN"):
        aa.top_k(gallery, wrong, 2)
    with pytest.raises(ValueError, match=r"row 1 of queries of shape \(3, 2\) holds NaN"):
        aa.top_k(jnp.asarray(wrong, jnp.bfloat16), gallery, 2)
    both = np.where(np.arange(4)[:, None] % 2, np.nan, gallery)
    where = np.array([True, False, True, True])
    for among in (where, np.tile(where, (3, 1))):
        with pytest.raises(ValueError, match=r"row 3 of gallery of shape \(4, 2\) holds NaN"):
            aa.top_k(queries, both, 2, where=among)
    with pytest.raises(ValueError, match=r"row 2 of queries.*NaN.*infinite"):
        aa.top_k(np.array([[1, 0], [0, 1], [np.inf, 0]]), gallery, 2)
    found = oracles.compiled(aa.top_k, k=2)(wrong, gallery)
    np.testing.assert_array_equal(found.indices, [[0, 1], [-1, -1], [0, 1]])
    np.testing.assert_array_equal(np.isnan(found.scores), np.arange(3)[:, None] == [1, 1])


@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
@pytest.mark.parametrize("split", ["queries", "gallery", "both"])
def test_rows_split_over_devices_find_the_same_items(kind, split):
    axis_types = (getattr(jax.sharding.AxisType, kind),)
    mesh = jax.make_mesh((4,), ("rows",), axis_types=axis_types)
    rng = np.random.default_rng(4)
    queries, gallery = rng.integers(-2, 3, (8, 3)), rng.integers(-2, 3, (40, 3))
    scores, where = queries @ gallery.T, rng.random((8, 40)) < 0.6
    arrays = [
        jax.device_put(array, NamedSharding(mesh, P("rows") if split in (name, "both") else P()))
        for name, array in (("queries", queries), ("gallery", gallery))
    ]
    for k in (2, 15):  # 15 of 10 on each device
        find = functools.partial(aa.top_k, *arrays, k, similarity=product, block_size=3)
        assert_found(find(), scores, k)
        assert_found(find(where=where), scores, k, where)
        assert_found(find(where=where[0]), scores, k, np.broadcast_to(where[0], scores.shape))


def test_a_split_gallery_is_not_gathered():
    mesh = jax.make_mesh((4,), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))
    gallery = jax.device_put(np.ones((400, 3), np.float32), NamedSharding(mesh, P("rows")))
    queries = jnp.ones((8, 3))
    split = search._Split.of(queries, gallery)
    static = search._Search(2, product, 8, 16)
    arrays = split.placed(queries, gallery, None)
    program = search._search_on_mesh.lower(*arrays, static, split).compile().as_text()
    gathers = [line for line in program.splitlines() if "all-gather(" in line]
    assert gathers and not any("400,3" in line for line in gathers)


@pytest.mark.parametrize("masked", [False, True])
def test_shards_find_the_items_of_all_devices(masked):
    mesh = jax.make_mesh((4,), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))
    rng = np.random.default_rng(5)
    queries, gallery = rng.integers(-2, 3, (8, 3)), rng.integers(-2, 3, (40, 3))
    scores, where = queries @ gallery.T, rng.random(40) < (0.6 if masked else 2)

    def of_device(queries, gallery, where):
        return search.sharded_top_k(
            queries,
            gallery,
            12,
            axis_name="rows",
            similarity=product,
            where=where if masked else None,
            block_size=3,
        )

    run = jax.shard_map(of_device, mesh=mesh, in_specs=P("rows"), out_specs=P("rows"))
    found = jax.jit(run)(queries, gallery, where)
    assert_found(found, scores, 12, np.broadcast_to(where, scores.shape))


def test_scores_of_all_pairs_are_never_held():
    queries, gallery = jnp.ones((2000, 4)), jnp.ones((100_000, 4))
    used = oracles.temporary_bytes(functools.partial(aa.top_k, k=10), queries, gallery)
    assert used < 2000 * 100_000 * 4 / 10


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 0}, "k .*0"),
        ({"k": 5}, r"k = 5 exceeds the gallery of 4.*\(3, 4\)"),
        ({"k": 1.5}, "k .*1.5"),
        ({"similarity": "dot"}, r"cosine.*posterior.*'dot'.*\(3, 2\)"),
        ({"similarity": lambda a, b: a}, r"similarity must make \[B, G\].*\(3, 2\) of .*\(4, 2\)"),
        ({"queries": np.ones((3, 5))}, r"\(3, 5\) and \(4, 2\)"),
        ({"gallery": np.ones(4)}, r"\(3, 2\) and \(4,\)"),
        ({"where": np.ones((3, 3), bool)}, r"where has shape \(3, 3\).*\(3, 4\)"),
        ({"where": np.ones(3, bool)}, r"where has shape \(3,\).*\(4,\)"),
        ({"where": np.ones(4)}, "where must be bool; got float64"),
        ({"block_size": 0}, r"block_size.*0.*\(3, 2\)"),
    ],
)
def test_mistakes_raise_an_error_that_prints_them(change, message):
    arguments = {"queries": np.ones((3, 2)), "gallery": np.ones((4, 2)), "k": 1} | change
    with pytest.raises(ValueError, match=message):
        aa.top_k(**arguments)


def test_no_queries_find_nothing():
    found = aa.top_k(np.ones((0, 2)), np.ones((4, 2)), 3)
    assert found.scores.shape == found.indices.shape == (0, 3)
