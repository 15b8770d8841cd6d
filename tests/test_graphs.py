"""The correlation graph: which neighbours, in which order, with which weights."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from jax.test_util import check_grads

import aadml_jax as aa
from aadml_jax import graphs


def run(embeddings, labels, rows=None, **options):
    """The graph, compiled once per shape and options for the whole file."""
    return oracles.compiled(aa.correlation_graph, **options)(embeddings, labels, rows=rows)


def case(seed, n=9, d=4, classes=3):
    rng = np.random.default_rng(seed)
    embeddings = jnp.asarray(rng.normal(size=(n, d)), jnp.float32)
    labels = rng.integers(classes, size=n)
    labels[:2] = classes, classes  # a class of two, smaller than most num_neighbors below
    return embeddings, jnp.asarray(rng.permutation(labels), jnp.int32)


def assert_same_graph(actual, expected):
    np.testing.assert_array_equal(actual[0], np.asarray(expected[0]))
    np.testing.assert_allclose(actual[1], np.asarray(expected[1]), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(actual[2], np.asarray(expected[2]))


@pytest.mark.parametrize(
    ("num_neighbors", "same_class"),
    [(1, True), (3, True), (4, True), (4, False), (12, True), (12, False)],
)
def test_equals_the_float64_loop(num_neighbors, same_class):
    for seed in (0, 1):
        embeddings, labels = case(seed)
        options = {"num_neighbors": num_neighbors, "same_class": same_class}
        actual = run(embeddings, labels, **options)
        assert_same_graph(actual, oracles.graph(embeddings, labels, **options))
        assert actual.indices.dtype == jnp.int32
        assert actual.weights.dtype == jnp.float32
        assert actual.mask.dtype == jnp.bool_


def test_values_by_hand():
    embeddings = jnp.array([[2.0, 0.0], [3.0, 4.0], [5.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    labels = jnp.array([7, 7, 1, 7, 7])
    indices, weights, mask = run(embeddings, labels, num_neighbors=5)
    np.testing.assert_array_equal(indices[0], [0, 1, 3, 4, 0])  # the last place is empty
    np.testing.assert_allclose(weights[0], [1.0, 0.6, 0.0, -1.0, 0.0], atol=1e-6)
    np.testing.assert_array_equal(mask[0], [True, True, True, True, False])
    np.testing.assert_array_equal(indices[2], [2, 2, 2, 2, 2])  # alone in its class
    np.testing.assert_allclose(weights[2], [1.0, 0.0, 0.0, 0.0, 0.0])
    np.testing.assert_array_equal(mask[2], [True, False, False, False, False])


def test_an_opposite_member_of_the_class_precedes_every_other_class():
    embeddings = jnp.array([[1.0, 0.0], [-1.0, 0.0], [1.0, 0.1], [0.0, 1.0]])
    indices, _, mask = run(embeddings, jnp.array([4, 4, 5, 5]), num_neighbors=3)
    np.testing.assert_array_equal(indices[:2], [[0, 1, 0], [1, 0, 1]])
    np.testing.assert_array_equal(mask[:2], [[1, 1, 0], [1, 1, 0]])


def test_the_anchor_is_first_even_when_it_is_a_copy_or_zero():
    embeddings = jnp.array([[1.0, 0.0], [2.0, 0.0], [0.0, 0.0], [3.0, 0.0]])
    indices, weights, mask = run(embeddings, jnp.zeros(4, jnp.int32), num_neighbors=4)
    np.testing.assert_array_equal(indices, [[0, 1, 3, 2], [1, 0, 3, 2], [2, 0, 1, 3], [3, 0, 1, 2]])
    np.testing.assert_array_equal(weights, [[1, 1, 1, 0], [1, 1, 1, 0], [0, 0, 0, 0], [1, 1, 1, 0]])
    assert bool(mask.all())


@pytest.mark.parametrize("num_neighbors", [3, 8])
def test_equal_correlations_keep_index_order_with_both_zeros(num_neighbors):
    embeddings = jnp.array(
        [[1.0, -0.0], [-0.0, 1.0], [0.0, -2.0], [0.0, 3.0], [-0.0, -1.0], [5.0, 0.0], [0.0, 1.0]]
    )
    labels = jnp.zeros(7, jnp.int32)
    actual = run(embeddings, labels, num_neighbors=num_neighbors)
    expected = [[0, 5, 1, 2, 3, 4, 6], [1, 3, 6, 0, 5, 2, 4]]
    np.testing.assert_array_equal(
        actual.indices[:2, :7], [row[: min(num_neighbors, 7)] for row in expected]
    )
    assert_same_graph(actual, oracles.graph(embeddings, labels, num_neighbors=num_neighbors))


@pytest.mark.parametrize("same_class", [True, False])
def test_rows_give_those_rows_of_the_whole_graph(same_class):
    embeddings, labels = case(2)
    options = {"num_neighbors": 4, "same_class": same_class}
    whole = run(embeddings, labels, **options)
    rows = jnp.array([7, 0, 3, 3])
    some = run(embeddings, labels, rows=rows, **options)
    assert_same_graph(some, [part[rows] for part in whole])


def test_multi_hot_labels_join_samples_that_share_a_class():
    embeddings, _ = case(3)
    labels = np.random.default_rng(3).random((9, 4)) < 0.35
    labels[4] = False  # bears no class at all, yet stays its own neighbour
    actual = run(embeddings, jnp.asarray(labels), num_neighbors=4)
    assert_same_graph(actual, oracles.graph(embeddings, labels, num_neighbors=4))
    np.testing.assert_array_equal(actual.mask[4], [True, False, False, False])


def test_graph_follows_a_permutation_of_the_samples():
    embeddings, labels = case(4)
    order = np.random.default_rng(4).permutation(9)
    whole = run(embeddings, labels, num_neighbors=3)
    moved = run(embeddings[order], labels[order], num_neighbors=3)
    expected = (np.argsort(order)[whole.indices[order]], whole.weights[order], whole.mask[order])
    assert_same_graph(moved, expected)


def test_jit_and_vmap_change_nothing():
    cases = [case(seed) for seed in (5, 6)]

    def eager(embeddings, labels):
        return aa.correlation_graph(embeddings, labels, num_neighbors=3)

    batch = jax.jit(jax.vmap(eager))(*(jnp.stack(part) for part in zip(*cases, strict=True)))
    for place, pair in enumerate(cases):
        assert_same_graph(run(*pair, num_neighbors=3), eager(*pair))
        assert_same_graph([part[place] for part in batch], eager(*pair))


def test_weights_carry_a_gradient_and_the_choice_does_not():
    with oracles.x64():
        embeddings, labels = case(7)
        scale = jnp.asarray(np.random.default_rng(7).normal(size=(9, 4)))

        @jax.jit
        def value(embeddings):
            weights = run(embeddings, labels, num_neighbors=4).weights
            return jnp.sum(weights * scale)

        embeddings = embeddings.astype(jnp.float64)
        check_grads(value, (embeddings,), order=1, atol=1e-6, rtol=1e-6, eps=1e-6)
        assert np.any(jax.jit(jax.grad(value))(embeddings))
        assert run(embeddings, labels, num_neighbors=4).weights.dtype == jnp.float64


def test_gradient_is_finite_at_zero_vectors():
    embeddings, labels = case(8)
    embeddings = embeddings.at[3].set(0.0)
    gradient = jax.jit(
        jax.grad(lambda x: run(x, labels, num_neighbors=5, same_class=False).weights.sum())
    )(embeddings)
    assert bool(jnp.isfinite(gradient).all())


def test_bfloat16_is_computed_in_float32():
    embeddings, labels = case(9)
    embeddings = embeddings.astype(jnp.bfloat16)
    actual = run(embeddings, labels, num_neighbors=3)
    assert actual.weights.dtype == jnp.float32
    assert_same_graph(actual, oracles.graph(embeddings, labels, num_neighbors=3))
    assert (
        oracles.rounded_products(
            lambda x: aa.correlation_graph(x, labels, num_neighbors=3), embeddings
        )
        == []
    )


@pytest.mark.parametrize("num_neighbors", [0, -1])
def test_fewer_than_one_neighbour_raises(num_neighbors):
    embeddings, labels = case(10)
    for function in (aa.correlation_graph, aa.anchor_aware_proxies):
        with pytest.raises(ValueError, match=f"num_neighbors.*{num_neighbors}"):
            function(embeddings, labels, num_neighbors=num_neighbors)


@pytest.mark.parametrize(("embeddings", "labels"), [((9, 4), (8,)), ((9,), (9,)), ((9, 4), (8, 3))])
def test_shapes_that_do_not_fit_raise_an_error_that_prints_them(embeddings, labels):
    for function in (aa.correlation_graph, aa.anchor_aware_proxies):
        with pytest.raises(ValueError) as error:
            function(jnp.ones(embeddings), jnp.ones(labels, jnp.int32), num_neighbors=2)
        assert str(embeddings) in str(error.value)
        assert embeddings == (9,) or str(labels) in str(error.value)


def test_negative_rows_count_from_the_end():
    embeddings = np.random.default_rng(0).normal(size=(6, 3))
    labels = np.array([0, 1, 0, 1, 0, 1])
    last = aa.correlation_graph(embeddings, labels, num_neighbors=3, rows=np.array([-1, -4]))
    expected = aa.correlation_graph(embeddings, labels, num_neighbors=3, rows=np.array([5, 2]))
    for left, right in zip(last, expected, strict=True):
        np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize(("num_neighbors", "same_class"), [(4, True), (4, False), (11, True)])
def test_neighbours_in_the_other_modality_equal_the_float64_loop(num_neighbors, same_class):
    rng = np.random.default_rng(21)
    embeddings, references = rng.normal(size=(2, 9, 4))
    labels = rng.permutation([0, 1, 1, 1, 2, 2, 2, 2, 2])
    options = {"num_neighbors": num_neighbors, "same_class": same_class}
    actual = jax.jit(functools.partial(aa.correlation_graph, **options))(
        embeddings, labels, references=references
    )
    expected = oracles.graph(embeddings, labels, references=references, **options)
    for values, wanted in zip(actual, expected, strict=True):
        np.testing.assert_allclose(values, wanted, atol=1e-6)
    # A clip can be a neighbour of itself by its other side.
    assert np.any(np.asarray(actual.indices)[:, 1:] == np.arange(9)[:, None])


def test_references_of_another_shape_raise():
    with pytest.raises(ValueError, match=r"references must be \(5, 3\).*got \(4, 3\)"):
        aa.correlation_graph(
            np.ones((5, 3)), np.arange(5), num_neighbors=2, references=np.ones((4, 3))
        )


@pytest.mark.parametrize("wrong", [np.nan, -np.nan, np.inf])
def test_a_neighbour_that_is_not_finite_shows_in_every_list(wrong):
    embeddings = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
    embeddings[2, 0] = wrong  # ∞ / ∞ is a NaN of negative sign on a CPU
    graph = aa.correlation_graph(embeddings, np.zeros(6, int), num_neighbors=3)
    assert np.isnan(graph.weights[:, 1]).all()
    np.testing.assert_array_equal(graph.indices[:, 1], [2, 2, 0, 2, 2, 2])


@pytest.mark.parametrize("count", [1, 3, 8])
def test_rounds_of_maxima_find_what_top_k_does(count):
    rng = np.random.default_rng(count)
    values = rng.integers(0, 12, (40, 17)).astype(np.float32)  # with many ties
    values[0, ::2] = -np.inf
    values[1, 5] = np.nan
    values[2, 3:] = -0.5
    expected, places = jax.lax.top_k(values, count)
    highest, columns = jax.jit(functools.partial(graphs._highest_by_rounds, count=count))(values)
    np.testing.assert_array_equal(highest, expected)
    np.testing.assert_array_equal(columns, places)


def test_places_beyond_a_rows_values_are_of_no_neighbour():
    values = np.full((1, 4), -np.inf, np.float32)
    values[0, 2] = 1
    highest, columns = graphs._highest_by_rounds(jnp.asarray(values), count=3)
    assert highest.tolist() == [[1, -np.inf, -np.inf]] and columns[0, 0] == 2
