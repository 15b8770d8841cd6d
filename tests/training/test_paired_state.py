"""A state whose towers' like arrays are one: the same state, and the same step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_world import DATA, SMALL

from aadml_jax.training.paired_state import BOTH, pair_state, part_state
from aadml_jax.training.parallel import Placement
from aadml_jax.training.setup import resolve
from aadml_jax.training.stacked_runs import StackedRuns
from aadml_jax.training.state import build_model, build_optimizer, init_state, run_keys
from aadml_jax.training.step import make_run_steps, make_train_step


def config_of(**settings):
    return resolve(SMALL.replace(hidden_sizes=(16, 12), **settings), DATA.num_train).recipe


def state_of(recipe):
    return init_state(recipe, num_classes=DATA.num_classes, standardization=DATA.standardization)


@pytest.mark.parametrize(
    "settings",
    [{}, {"weight_decay": 0.1}, {"loss": "proxy_anchor", "class_proxies": "learned"}],
    ids=["adam", "adamw", "class proxies"],
)
def test_a_paired_state_is_parted_again_without_a_change(settings):
    state = state_of(config_of(**settings))
    numbers = iter(range(100))
    state = jax.tree.map(lambda leaf: leaf + next(numbers), state)
    paired = pair_state(state)
    assert paired.params[BOTH]["hidden_1"]["kernel"].shape == (2, 16, 12)
    assert paired.params["audio"].keys() == {"hidden_0"}  # of other widths than the visual one
    again = part_state(paired)
    assert jax.tree.structure(again) == jax.tree.structure(state)
    jax.tree.map(np.testing.assert_array_equal, again, state)


@pytest.mark.parametrize(
    ("settings", "mode", "num_devices"),
    [
        ({"weight_decay": 0.1, "dropout": 0.3}, "jit", 1),
        ({"loss": "proxy_anchor", "class_proxies": "learned", "weight_decay": 0.1}, "jit", 1),
        ({"dropout": 0.3}, "jit", 4),
        ({"dropout": 0.3}, "pmap", 4),
    ],
    ids=["adamw", "class proxies", "four devices", "pmap"],
)
def test_paired_steps_end_where_the_others_do(settings, mode, num_devices):
    recipe = config_of(**settings)
    placement = Placement(tuple(jax.devices()[:num_devices]), mode)
    model = build_model(recipe, DATA.num_classes)

    def after_an_epoch(paired):
        step = make_train_step(
            model,
            build_optimizer(recipe),
            recipe.objective(stacked=paired),
            placement,
            paired=paired,
        )
        run = make_run_steps(
            step,
            jax.tree.map(lambda rows: rows[placement.local_rows(DATA.num_train)], DATA.train),
            DATA.num_train,
            batch_size=recipe.batch_size,
            keys=run_keys(recipe.seed),
            placement=placement,
        )
        state = run(placement.replicate(state_of(recipe), donated=True), 3)
        return jax.device_get(state)

    with jax.numpy_dtype_promotion("standard"):
        paired, expected = after_an_epoch(True), after_an_epoch(False)
    assert jax.tree.structure(paired) == jax.tree.structure(expected)
    # Adam divides by the size of a gradient, so that rounding shows where that is small.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5), paired, expected
    )
    assert paired.step == 3 and expected.epoch_sums["loss"] > 0


def test_stacked_runs_end_in_the_form_of_gpus_where_they_do_in_that_of_cpus(monkeypatch):
    recipes = [
        config_of(loss="proxy_anchor", class_proxies="learned", dropout=0.3, seed=seed, **varying)
        for seed, varying in enumerate(
            [{"weight_decay": 0.1}, {"weight_decay": 0.0}, {"learning_rate": 0.02}]
        )
    ]

    def after_an_epoch(is_on_gpus):
        monkeypatch.setattr(Placement, "is_on_gpus", is_on_gpus)
        runs = StackedRuns(recipes, DATA, tuple(jax.devices()[:1]))
        return runs.on_host(runs.run_steps(runs.placed(runs.first_state()), 3))

    with jax.numpy_dtype_promotion("standard"):
        paired, expected = after_an_epoch(True), after_an_epoch(False)
    assert jax.tree.structure(paired) == jax.tree.structure(expected)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5), paired, expected
    )


def test_weights_decay_and_biases_do_not():
    recipe = config_of(weight_decay=0.5, learning_rate=0.01)
    optimizer = build_optimizer(recipe)
    state = pair_state(state_of(recipe))
    ones = jax.tree.map(jnp.ones_like, state.params)
    zeros = jax.tree.map(jnp.zeros_like, ones)
    with jax.numpy_dtype_promotion("standard"):
        updates, _ = optimizer.update(zeros, optimizer.init(ones), ones)
    # No gradient: what is left is the decay of 1, learning rate × 0.5.
    for layer in (updates[BOTH]["hidden_1"], updates["audio"]["hidden_0"]):
        np.testing.assert_allclose(layer["kernel"], -0.005, rtol=1e-6)
        np.testing.assert_array_equal(layer["bias"], 0)
