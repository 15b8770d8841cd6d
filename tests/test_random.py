"""A seed alone decides what is drawn, whatever generator the environment asks for."""

import contextlib

import jax
import numpy as np
import pytest

from aadml_jax._random import fixed_generator, seed_key
from aadml_jax.data import FeatureStandardization
from aadml_jax.models import TwoTowers, fixed_draws
from aadml_jax.training.config import RecipeConfig
from aadml_jax.training.parallel import Placement
from aadml_jax.training.state import init_state, run_keys
from aadml_jax.training.step import epoch_order


@contextlib.contextmanager
def options(**values):
    """Options of JAX, as variables of the environment set them."""
    former = {name: getattr(jax.config, name) for name in values}
    try:
        for name, value in values.items():
            jax.config.update(name, value)
        yield
    finally:
        for name, value in former.items():
            jax.config.update(name, value)


OTHERS = [
    {"jax_default_prng_impl": "rbg"},
    {"jax_default_prng_impl": "unsafe_rbg"},
    {"jax_threefry_partitionable": False},
    {"jax_random_seed_offset": 5},
    {"jax_enable_x64": True},
]


@pytest.mark.parametrize("seed", [0, 7, 2**31, 2**32 - 1])
def test_a_seed_gives_the_key_that_jax_gives_by_default(seed):
    expected = jax.random.key_data(jax.random.key(seed))
    for others in ({}, *OTHERS):
        with options(**others):
            np.testing.assert_array_equal(jax.random.key_data(seed_key(seed)), expected)


def drawn():
    """Everything that a run draws: keys, first parameters, an order of rows, a dropout mask."""
    jax.clear_caches()  # what was compiled with other options must not be taken
    keys = run_keys(3)
    statistics = FeatureStandardization(*np.ones((4, 5), np.float32))
    state = init_state(RecipeConfig(hidden_sizes=(4,)), num_classes=3, standardization=statistics)
    towers = TwoTowers(num_classes=3, hidden_sizes=(4,), dropout_rate=0.5)
    mask = jax.jit(
        lambda key: towers.apply(
            {"params": state.params},
            np.ones((6, 5), np.float32),
            np.ones((6, 5), np.float32),
            train=True,
            rngs={"dropout": key},
        )[0]
    )(keys.dropout)
    order = jax.jit(lambda keys: epoch_order(keys, np.int32(2), 20))(keys)
    words = [jax.random.key_data(key) for key in keys]
    return [np.asarray(leaf) for leaf in (*words, *jax.tree.leaves(state.params), mask, order)]


@pytest.fixture(scope="module")
def expected():
    # The library's generator is JAX's own by default.
    plain = jax.random.permutation(jax.random.fold_in(run_keys(3).shuffle, 2), 20)
    values = drawn()
    np.testing.assert_array_equal(values[-1], plain)
    return values


@pytest.mark.parametrize("others", OTHERS, ids=lambda others: "-".join(map(str, others.items())))
def test_draws_do_not_follow_the_environment(expected, others):
    with options(**others):
        actual = drawn()
    for value, wanted in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(value, wanted)


def test_draws_do_not_follow_how_flax_derives_keys(expected):
    from flax import configurations

    configurations.config.update("flax_fix_rng_separator", True)
    try:
        actual = drawn()
        assert configurations.config.flax_fix_rng_separator
        with fixed_draws():
            assert not configurations.config.flax_fix_rng_separator
    finally:
        configurations.config.update("flax_fix_rng_separator", False)
    for value, wanted in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(value, wanted)


def test_keys_keep_their_generator_when_they_are_placed():
    placement = Placement(tuple(jax.devices()[:2]), "jit")
    with options(jax_default_prng_impl="rbg"):
        placed = placement.replicate(run_keys(0))
        for key, wanted in zip(placed, run_keys(0), strict=True):
            np.testing.assert_array_equal(jax.random.key_data(key), jax.random.key_data(wanted))


def test_the_generator_is_fixed_within_the_context_alone():
    with options(jax_threefry_partitionable=False):
        with fixed_generator():
            assert jax.config.jax_threefry_partitionable
        assert not jax.config.jax_threefry_partitionable
