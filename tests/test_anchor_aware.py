"""Anchor-aware proxies: attention of each anchor over its neighbours in the graph."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from jax.test_util import check_grads

import aadml_jax as aa
from aadml_jax import anchor_aware


@pytest.fixture(params=["neighbor", "channel"])
def attention(request):
    return request.param


def run(embeddings, labels, rows=None, **options):
    """The proxies, compiled once per shape and options for the whole file."""
    return oracles.compiled(aa.anchor_aware_proxies, **options)(embeddings, labels, rows=rows)


def case(seed, n=9, d=4):
    """Random embeddings whose classes have 1, 3 and 5 members."""
    rng = np.random.default_rng(seed)
    embeddings = jnp.asarray(rng.normal(size=(n, d)) * 1.5, jnp.float32)
    return embeddings, jnp.asarray(rng.permutation([0, 1, 1, 1, 2, 2, 2, 2, 2]), jnp.int32)


def close(actual, expected, rtol=1e-5, atol=1e-6):
    np.testing.assert_allclose(np.asarray(actual, np.float64), expected, rtol=rtol, atol=atol)


@pytest.mark.parametrize(
    ("num_neighbors", "same_class"), [(1, True), (4, True), (4, False), (11, True)]
)
def test_equals_the_float64_loop(attention, num_neighbors, same_class):
    embeddings, labels = case(0)
    options = {
        "num_neighbors": num_neighbors,
        "attention": attention,
        "same_class": same_class,
    }
    actual = run(embeddings, labels, **options)
    assert (actual.shape, actual.dtype) == ((9, 4), jnp.float32)
    close(actual, oracles.proxies(embeddings, labels, **options))


def test_neighbor_attention_by_hand():
    embeddings = jnp.array([[1.0, 0.0], [2.0, 1.0], [5.0, 5.0]])
    actual = run(embeddings, jnp.array([0, 0, 1]), num_neighbors=2)
    own, other = math.exp(1 / math.sqrt(2)), math.exp(2 / math.sqrt(2))  # of anchor 0
    share = other / (own + other)
    close(actual[0], [1 + share, share])  # (1 − share) · [1, 0] + share · [2, 1]
    own, other = math.exp(5 / math.sqrt(2)), math.exp(2 / math.sqrt(2))  # of anchor 1
    share = other / (own + other)
    close(actual[1], [2 - share, 1 - share])
    close(actual[2], [5.0, 5.0])  # alone in its class


def test_channel_attention_by_hand():
    embeddings = jnp.array([[1.0, 0.0], [2.0, 1.0], [5.0, 5.0]])
    actual = run(embeddings, jnp.array([0, 0, 1]), num_neighbors=2, attention="channel")
    root = math.sqrt(2)
    with_itself = [math.exp(1 / root) / (math.exp(1 / root) + 1), 0.5]
    with_other = [math.exp(2 / root) / (math.exp(2 / root) + math.exp(1 / root)), 0.5]
    close(actual[0], [(with_itself[0] + with_other[0]) / 2, 0.5])  # the anchor [1, 0] is the value
    close(actual[2], [5.0, 5.0])


def test_defaults_are_three_neighbours_of_the_own_class_and_neighbor_attention():
    embeddings, labels = case(1)
    expected = oracles.proxies(
        embeddings, labels, num_neighbors=3, attention="neighbor", same_class=True
    )
    close(run(embeddings, labels), expected)


@pytest.mark.parametrize("same_class", [True, False])
def test_one_neighbour_returns_the_embeddings_bit_for_bit(same_class):
    embeddings, labels = case(2)
    for factor in (1.0, 1e-3, 1e25):  # the squares of the last overflow
        actual = run(embeddings * factor, labels, num_neighbors=1, same_class=same_class)
        np.testing.assert_array_equal(actual, embeddings * factor)


def test_one_neighbour_has_the_identity_as_derivative():
    embeddings, labels = case(2)
    scale = jnp.asarray(np.random.default_rng(2).normal(size=(9, 4)), jnp.float32)
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(run(x, labels, num_neighbors=1) * scale)))(
        embeddings
    )
    close(gradient, np.asarray(scale))


def test_a_sample_of_another_class_changes_nothing(attention):
    embeddings, labels = case(3)
    i = int(np.flatnonzero(np.asarray(labels) == 1)[0])
    others = np.asarray(labels) != 1
    options = {"num_neighbors": 4, "attention": attention}
    plain = run(embeddings, labels, **options)
    for value in (100.0, jnp.nan):
        moved = run(embeddings.at[i].set(value), labels, **options)
        close(moved[others], np.asarray(plain)[others])


def test_large_embeddings_do_not_overflow(attention):
    embeddings, labels = case(4)
    options = {"num_neighbors": 4, "attention": attention}
    actual = run(embeddings * 100, labels, **options)
    close(actual, oracles.proxies(embeddings * 100, labels, **options), rtol=1e-3)


@functools.cache
def gradients_of_weighted_proxies(arguments, **options):
    def total(x, temperature, references, labels, scale):
        proxies = aa.anchor_aware_proxies(
            x, labels, references=references, temperature=temperature, **options
        )
        return jnp.sum(proxies * scale)

    return jax.jit(jax.grad(total, arguments))


@pytest.mark.parametrize("from_references", [False, True])
@pytest.mark.parametrize("length", [1e15, 1e19, 1e30, 1e38, 3.4e38])
def test_embeddings_whose_products_overflow_have_the_proxies_of_the_limit(
    attention, length, from_references
):
    embeddings, labels = case(4)
    embeddings = np.asarray(embeddings, np.float64) / np.abs(embeddings).max()
    far = (embeddings * length).astype(np.float32)
    references = far[::-1].copy() if from_references else None
    options = {"num_neighbors": 4, "attention": attention}
    expected = oracles.proxies(far, labels, references=references, **options)
    function = functools.partial(aa.anchor_aware_proxies, **options)
    for run in (function, oracles.compiled(aa.anchor_aware_proxies, **options)):
        actual = run(far, labels, references=references)
        close(np.asarray(actual, np.float64) / length, expected / length)

    # Weights are 0 and 1, so that a proxy moves with one neighbour, or with its own largest entry.
    scale = np.random.default_rng(4).normal(size=(9, 4)).astype(np.float32)
    arguments = (0, 1) if references is None else (0, 1, 2)
    gradient = gradients_of_weighted_proxies(arguments, **options)
    gradients = gradient(far, 1.0, references, labels, scale)
    if length < 1e38:  # beyond, sums over D of a reference times the proxy's gradient overflow
        assert all(np.all(np.isfinite(gradient)) for gradient in gradients)
        assert gradients[1] == 0
        step = np.random.default_rng(5).normal(size=(9, 4))
        numeric = oracles.finite_difference(
            lambda t: np.sum(
                oracles.proxies(
                    far / length + t * step,
                    labels,
                    references=None if references is None else references / length,
                    temperature=1e-30,
                    **options,
                )
                * scale
            ),
            0.0,
        )
        close(np.sum(np.asarray(gradients[0], np.float64) * step), numeric, rtol=1e-4, atol=1e-4)


def test_anchors_and_references_of_very_different_lengths():
    embeddings = np.array([[1e30, 1e29]], np.float32)
    references = np.array([[2e10, 0.0]], np.float32)
    actual = aa.anchor_aware_proxies(
        embeddings, np.array([0]), references=references, num_neighbors=2
    )
    np.testing.assert_array_equal(actual, embeddings)  # 1e60 against 2e40
    small = aa.anchor_aware_proxies(
        np.array([[1e-25, 0]], np.float32), np.array([0]), references=references * 1e15
    )
    # 1e-50 and 2 over √2 as logits: the softmax gives 1 / (1 + e^√2) and the rest.
    share = math.exp(math.sqrt(2)) / (1 + math.exp(math.sqrt(2)))
    close(small / 1e25, [[2 * share, 0]])


def test_ties_of_large_embeddings_share_the_weight():
    embeddings = np.array([[3e25, 1e20], [3e25, -1e20], [-1e25, 0.0]], np.float32)
    actual = aa.anchor_aware_proxies(embeddings, np.zeros(3, int), num_neighbors=3)
    # The second differs by 2e40 in its logit from the first's own, which is nothing to 9e50.
    close(np.asarray(actual[0]) / 1e25, [3, 0], atol=1e-4)
    assert np.all(np.isfinite(actual))


def test_rows_give_those_rows_of_all_proxies(attention):
    embeddings, labels = case(5)
    options = {"num_neighbors": 4, "attention": attention}
    rows = jnp.array([6, 1, 1, 8])
    some = run(embeddings, labels, rows=rows, **options)
    close(some, np.asarray(run(embeddings, labels, **options))[rows])


def test_proxies_follow_a_permutation_of_the_samples(attention):
    embeddings, labels = case(6)
    order = np.random.default_rng(6).permutation(9)
    options = {"num_neighbors": 4, "attention": attention}
    whole = run(embeddings, labels, **options)
    moved = run(embeddings[order], labels[order], **options)
    close(moved, np.asarray(whole)[order])


def test_jit_vmap_and_checkpoint_change_nothing(attention):
    (first, labels), (second, other_labels) = case(7), case(8)
    options = {"num_neighbors": 4, "attention": attention}

    def eager(embeddings, labels):
        return aa.anchor_aware_proxies(embeddings, labels, **options)

    close(run(first, labels, **options), np.asarray(eager(first, labels)))
    both = jax.jit(jax.vmap(eager))(jnp.stack([first, second]), jnp.stack([labels, other_labels]))
    close(both[0], np.asarray(run(first, labels, **options)))
    close(both[1], np.asarray(run(second, other_labels, **options)))
    plain, again = (
        jax.jit(jax.grad(lambda x, f=f: jnp.sum(f(x, labels) ** 3)))(first)
        for f in (eager, jax.checkpoint(eager))
    )
    close(again, np.asarray(plain))


def test_gradient_equals_finite_differences_away_from_ties(attention):
    with oracles.x64():
        embeddings, labels = case(9)

        options = {"num_neighbors": 4, "attention": attention}

        def value(embeddings):
            return run(embeddings, labels, **options)

        embeddings = embeddings.astype(jnp.float64)
        assert value(embeddings).dtype == jnp.float64
        check_grads(value, (embeddings,), order=1, atol=1e-6, rtol=1e-6, eps=1e-6)
        direction = np.random.default_rng(9).normal(size=(9, 4))
        _, forward = jax.jvp(value, (embeddings,), (jnp.asarray(direction),))
        numeric = oracles.finite_difference(
            lambda t: oracles.proxies(np.asarray(embeddings) + t * direction, labels, **options),
            0.0,
        )
        close(forward, numeric, rtol=1e-6)


def test_gradients_are_finite_in_classes_smaller_than_the_graph_and_at_zero(attention):
    embeddings, labels = case(10)
    embeddings = embeddings.at[4].set(0.0)
    gradient = jax.jit(
        jax.grad(lambda x: jnp.sum(run(x, labels, num_neighbors=4, attention=attention) ** 2))
    )(embeddings)
    assert bool(jnp.isfinite(gradient).all()) and np.any(gradient)


def test_bfloat16_is_computed_in_float32(attention):
    embeddings, labels = case(11)
    embeddings = embeddings.astype(jnp.bfloat16)
    options = {"num_neighbors": 4, "attention": attention}
    actual = run(embeddings, labels, **options)
    assert actual.dtype == jnp.float32
    close(actual, oracles.proxies(embeddings, labels, **options))


def test_matrix_products_ask_for_full_precision(attention):
    embeddings, labels = case(12)

    def total(x):
        return run(x, labels, num_neighbors=3, attention=attention).sum()

    assert oracles.rounded_products(total, embeddings) == []
    assert oracles.rounded_products(jax.grad(total), embeddings) == []


def test_an_unknown_attention_raises_and_names_the_known_ones():
    with pytest.raises(ValueError, match="anchor") as error:
        aa.anchor_aware_proxies(*case(13), attention="anchor")
    assert "neighbor" in str(error.value) and "channel" in str(error.value)


@pytest.mark.parametrize("same_class", [True, False])
def test_neighbours_of_the_other_modality_and_temperature_equal_the_float64_loop(
    attention, same_class
):
    embeddings, labels = case(20)
    references, _ = case(21)
    options = {"num_neighbors": 4, "attention": attention, "same_class": same_class}
    actual = jax.jit(functools.partial(aa.anchor_aware_proxies, **options))(
        embeddings, labels, references=references, temperature=0.3
    )
    expected = oracles.proxies(
        embeddings, labels, references=references, temperature=0.3, **options
    )
    close(actual, expected)
    assert not np.allclose(actual, oracles.proxies(embeddings, labels, **options), atol=1e-2)


def test_traced_numbers_of_neighbours_equal_static_ones(attention):
    embeddings, labels = case(22)

    def of_traced(num_neighbors):
        return aa.anchor_aware_proxies(
            embeddings,
            labels,
            num_neighbors=num_neighbors,
            max_neighbors=5,
            attention=attention,
            same_class=False,
        )

    several = jax.jit(jax.vmap(of_traced))(jnp.arange(1, 6))
    for number, actual in enumerate(several, start=1):
        expected = oracles.proxies(
            embeddings, labels, num_neighbors=number, attention=attention, same_class=False
        )
        close(actual, expected)


@pytest.mark.parametrize("dtype", [np.int32, np.int8, np.uint32])
def test_traced_numbers_of_neighbours_outside_their_range_act_as_its_ends(attention, dtype):
    embeddings, labels = case(22)

    def of_traced(num_neighbors):
        return aa.anchor_aware_proxies(
            embeddings, labels, num_neighbors=num_neighbors, max_neighbors=4, attention=attention
        )

    ends = [
        oracles.proxies(embeddings, labels, num_neighbors=k, attention=attention) for k in (1, 4)
    ]
    run = jax.jit(of_traced)
    for number in (np.iinfo(dtype).min, 0, 1):
        close(run(dtype(number)), ends[0])
    for number in (4, 5, np.iinfo(dtype).max):
        close(run(dtype(number)), ends[1])


def test_without_neighbor_gradient_the_neighbours_are_constants(attention):
    embeddings, labels = case(23)
    anchor = 3

    def value(moved, neighbor_gradient):
        proxies = aa.anchor_aware_proxies(
            moved,
            labels,
            num_neighbors=4,
            attention=attention,
            same_class=False,
            neighbor_gradient=neighbor_gradient,
        )
        return jnp.sum(proxies[anchor] * jnp.arange(1.0, 5.0))

    full = jax.grad(value)(embeddings, True)
    own = jax.grad(value)(embeddings, False)
    assert value(embeddings, True) == value(embeddings, False)
    others = np.arange(len(embeddings)) != anchor
    assert np.abs(full[others]).max() > 1e-3
    assert not np.any(own[others]) and np.abs(own[anchor]).max() > 1e-3


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"num_neighbors": 0, "max_neighbors": 3}, "num_neighbors must be an integer of at least"),
        ({"num_neighbors": 2.7, "max_neighbors": 3}, "num_neighbors must be an integer of at"),
        ({"num_neighbors": jnp.float32(2), "max_neighbors": 3}, "must be an integer; got float32"),
        ({"num_neighbors": 5, "max_neighbors": 2}, "num_neighbors=5 exceeds max_neighbors=2"),
        ({"max_neighbors": 0}, "max_neighbors must be an integer of at least 1"),
        ({"temperature": 0.0}, "temperature must be above 0; got 0.0"),
        ({"temperature": -1}, "temperature must be above 0; got -1"),
        ({"temperature": math.nan}, "temperature must be above 0; got nan"),
        ({"temperature": np.float32(0)}, r"temperature must be above 0; got 0\.0"),
        ({"temperature": np.array(-0.5)}, r"temperature must be above 0; got -0\.5"),
        ({"temperature": jnp.float32(0)}, r"temperature must be above 0; got 0\.0"),
        ({"temperature": math.inf}, "temperature must be finite; got inf"),
        ({"temperature": "1"}, "temperature must be a real number; got '1'"),
        ({"num_neighbors": jnp.int32(0), "max_neighbors": 3}, "num_neighbors must be an integer"),
        ({"num_neighbors": np.int32(0), "max_neighbors": 3}, "num_neighbors must be an integer of"),
        ({"num_neighbors": np.int64(4), "max_neighbors": 3}, "num_neighbors=4 exceeds max_nei"),
        ({"num_neighbors": True, "max_neighbors": 3}, "num_neighbors must be an integer of at"),
        ({"num_neighbors": np.arange(2), "max_neighbors": 3}, "num_neighbors must be a scalar"),
    ],
)
def test_values_that_cannot_be_raise(options, line):
    with pytest.raises(ValueError, match=line):
        aa.anchor_aware_proxies(*case(24), **options)


def test_rows_by_a_product_are_the_rows_and_so_is_their_gradient():
    rng = np.random.default_rng(0)
    array = jnp.asarray(rng.normal(size=(9, 4)), jnp.float32)
    rows = jnp.asarray(rng.integers(0, 9, (7, 3)), jnp.int32)  # some of them twice
    taken, transpose = jax.vjp(lambda a: anchor_aware._rows_by_product(a, rows), array)
    np.testing.assert_array_equal(taken, array[rows])
    cotangent = rng.normal(size=(7, 3, 4)).astype(np.float32)
    expected = np.zeros((9, 4))
    np.add.at(expected, np.asarray(rows), cotangent.astype(np.float64))
    close(transpose(cotangent)[0], expected)


def test_proxies_have_derivatives_of_second_order():
    embeddings, labels = case(0)

    def total(x):
        return jnp.sum(jnp.square(aa.anchor_aware_proxies(x, labels)))

    check_grads(total, (embeddings,), order=2, modes=["fwd", "rev"], rtol=2e-2, atol=2e-2)
