"""The training step and the compiled loop around it."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small_world import DATA, SIMPLE, SPEC, first_state

from aadml_jax.training.config import RecipeConfig
from aadml_jax.training.state import adam, build_model, build_optimizer, run_keys
from aadml_jax.training.step import Batch, TrainStep, make_run_steps, make_train_step

CONFIG = RecipeConfig(hidden_sizes=(8,), dropout=0.3, learning_rate=1e-2, seed=3, **SIMPLE)
ROWS, BATCH_SIZE, CLASSES = SPEC.train_size, 12, SPEC.num_classes
STEPS_PER_EPOCH = 4  # of 48 rows
ONE_BATCH = Batch(*(array[:BATCH_SIZE] for array in DATA.train))


def train_step_of(config):
    model = build_model(config, CLASSES)
    return make_train_step(model, build_optimizer(config), config.objective())


@functools.cache
def compiled_step_of(config):
    return jax.jit(train_step_of(config))


@pytest.fixture(scope="module")
def run_steps():
    return make_run_steps(
        train_step_of(CONFIG), DATA.train, batch_size=BATCH_SIZE, keys=run_keys(CONFIG.seed)
    )


def as_bytes(state):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state)]


def test_a_step_is_adam_on_the_objectives_gradient():
    config, keys = CONFIG, run_keys(CONFIG.seed)
    state = first_state(config)
    after = compiled_step_of(config)(state, ONE_BATCH, keys.dropout)

    def objective(params):
        outputs = build_model(config, CLASSES).apply(
            {"params": params},
            ONE_BATCH.audio,
            ONE_BATCH.visual,
            train=True,
            rngs={"dropout": jax.random.fold_in(keys.dropout, 0)},
        )
        return config.objective()(*outputs, ONE_BATCH.labels)[0]

    value, gradient = jax.jit(jax.value_and_grad(objective))(state.params)
    # The first step of Adam is −rate · g / (|g| + ε), whatever the size of g.
    expected = jax.tree.map(
        lambda p, g: p - config.learning_rate * g / (jnp.abs(g) + 1e-8), state.params, gradient
    )
    for leaf, wanted in zip(jax.tree.leaves(after.params), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(leaf, wanted, rtol=1e-4, atol=1e-6)
    assert int(after.step) == 1
    assert float(after.epoch_sums["loss"]) == pytest.approx(float(value), rel=1e-5)


def test_learned_class_proxies_start_one_hot_and_are_trained():
    config = dataclasses.replace(CONFIG, loss="proxy_anchor", class_proxies="learned")
    before = first_state(config)
    np.testing.assert_array_equal(before.params["class_proxies"], np.eye(CLASSES))
    key = run_keys(CONFIG.seed).dropout
    after = compiled_step_of(config)(before, ONE_BATCH, key)
    off_diagonal = ~np.eye(CLASSES, dtype=bool)  # the length of a proxy is free
    assert np.all(np.asarray(after.params["class_proxies"])[off_diagonal] != 0)
    fixed = first_state(dataclasses.replace(config, class_proxies="one_hot"))
    assert set(fixed.params) == {"audio", "visual"}
    assert float(after.epoch_sums["loss"]) == pytest.approx(
        float(compiled_step_of(config)(fixed, ONE_BATCH, key).epoch_sums["loss"]), rel=1e-6
    )


def test_the_dropout_mask_changes_with_the_step():
    keys = run_keys(0)
    step = compiled_step_of(CONFIG)
    state = first_state(CONFIG)
    first = step(state, ONE_BATCH, keys.dropout).epoch_sums["loss"]
    second = step(state._replace(step=jnp.int32(1)), ONE_BATCH, keys.dropout).epoch_sums["loss"]
    assert float(first) != float(second)


def test_however_an_epoch_is_cut_into_calls_the_bytes_are_the_same(run_steps):
    whole = first_state(CONFIG)
    for _ in range(3):
        whole = run_steps(whole, STEPS_PER_EPOCH)
    cut = first_state(CONFIG)
    for num_steps in (1, 3, 2, 2, 4):
        cut = run_steps(cut, num_steps)
    assert int(whole.step) == 12
    assert as_bytes(whole) == as_bytes(cut)


def test_steps_beyond_the_epoch_are_refused(run_steps):
    state = first_state(CONFIG)
    with pytest.raises(
        ValueError, match=r"num_steps=5 from step 0 on .* of 4 steps; at most 4 are"
    ):
        run_steps(state, STEPS_PER_EPOCH + 1)
    state = run_steps(run_steps(state, STEPS_PER_EPOCH), 3)
    with pytest.raises(ValueError, match=r"num_steps=2 from step 7 on .* at most 1 are left"):
        run_steps(state, np.int64(2))
    for wrong in (-1, 1.0, True):
        with pytest.raises(ValueError, match="num_steps must be an integer of at least 0"):
            run_steps(state, wrong)
    assert int(run_steps(run_steps(state, 0), np.int64(1)).step) == 8


@pytest.mark.parametrize(
    ("batch_size", "line"),
    [
        (51, "batch_size=51 exceeds the 50 training rows"),
        (0, "batch_size must be an integer of at"),
        (2.5, "batch_size must be an integer"),
    ],
)
def test_batches_that_the_rows_cannot_fill_are_refused(batch_size, line):
    with pytest.raises(ValueError, match=line):
        make_run_steps(train_step_of(CONFIG), DATA.train, batch_size=batch_size, keys=run_keys(0))


def test_the_seed_decides_the_bytes():
    def trained(seed):
        config = RecipeConfig(**{**CONFIG.__dict__, "seed": seed})
        run = make_run_steps(
            train_step_of(config), DATA.train, batch_size=BATCH_SIZE, keys=run_keys(seed)
        )
        return as_bytes(run(first_state(config), 2).params)

    assert trained(3) == trained(3)
    assert trained(3) != trained(4)


def test_an_epoch_draws_each_row_at_most_once_and_in_a_new_order():
    # A stand-in for the training step that writes down which rows it saw.
    rows = Batch(jnp.arange(ROWS), jnp.arange(ROWS), jnp.arange(ROWS))

    def note(state, batch, _):
        seen = jax.lax.dynamic_update_slice_in_dim(
            state.params, batch.audio, state.step * BATCH_SIZE, axis=0
        )
        return state._replace(step=state.step + 1, params=seen)

    state = first_state(CONFIG)._replace(params=jnp.full(96, -1), epoch_sums={})
    run = make_run_steps(TrainStep(note), rows, batch_size=BATCH_SIZE, keys=run_keys(0))
    state = run(run(state, STEPS_PER_EPOCH), STEPS_PER_EPOCH)
    first, second = np.asarray(state.params).reshape(2, 48)
    assert len(set(first.tolist())) == len(set(second.tolist())) == 48
    assert set(first.tolist()) <= set(range(ROWS))
    assert first.tolist() != second.tolist()
    assert first.tolist() != sorted(first.tolist())


def test_epoch_sums_start_anew_with_each_epoch(run_steps):
    state = run_steps(first_state(CONFIG), STEPS_PER_EPOCH)
    sums = {name: float(total) for name, total in state.epoch_sums.items()}
    state = run_steps(state, 1)
    one_step = {name: float(total) for name, total in state.epoch_sums.items()}
    assert all(0 < one_step[name] < 0.5 * sums[name] for name in ("loss", "label_loss"))
    parts = sums["label_loss_audio"] + sums["label_loss_visual"]
    assert sums["label_loss"] == pytest.approx(parts, rel=1e-5)


def test_training_lowers_the_objective(run_steps):
    state = first_state(CONFIG)
    losses = []
    for _ in range(30):
        state = run_steps(state, STEPS_PER_EPOCH)
        losses.append(float(state.epoch_sums["loss"]))
    assert np.mean(losses[-5:]) < 0.85 * np.mean(losses[:2])


def test_run_keys_are_independent_of_each_other_and_of_other_seeds():
    keys = [jax.random.key_data(key).tobytes() for seed in range(3) for key in run_keys(seed)]
    assert len(set(keys)) == 9


def test_optimizer_is_adam_at_the_configured_rate():
    params = {"w": jnp.array([1.0, -2.0])}
    gradient = {"w": jnp.array([0.5, -3.0])}
    optimizer = build_optimizer(RecipeConfig(learning_rate=0.25))
    updates, _ = optimizer.update(gradient, optimizer.init(params), params)
    np.testing.assert_allclose(optax.apply_updates(params, updates)["w"], [0.75, -1.75], rtol=1e-5)


def test_weight_decay_is_decoupled_and_of_the_towers_matrices():
    params = {
        "audio": {"kernel": jnp.array([[1.0, -2.0]]), "bias": jnp.array([1.0])},
        "class_proxies": jnp.eye(2),
    }
    gradient = jax.tree.map(jnp.zeros_like, params)
    optimizer = build_optimizer(RecipeConfig(learning_rate=0.25, weight_decay=0.1))
    updates, _ = optimizer.update(gradient, optimizer.init(params), params)
    after = optax.apply_updates(params, updates)
    kernel = after["audio"]["kernel"]
    np.testing.assert_allclose(kernel, [[0.975, -1.95]], rtol=1e-6)  # 1 − 0.25 · 0.1
    assert after["audio"]["bias"] == 1
    np.testing.assert_array_equal(after["class_proxies"], np.eye(2))


def test_a_traced_decay_of_nothing_is_adam_to_the_last_bit():
    kernel = jax.random.normal(jax.random.key(0), (3, 4))
    params = {"visual": {"kernel": kernel}}
    gradient = jax.tree.map(lambda leaf: leaf**2, params)

    def updated(decay):
        optimizer = adam(1e-3, decay)
        return optimizer.update(gradient, optimizer.init(params), params)[0]["visual"]["kernel"]

    without = jax.jit(functools.partial(updated, 0.0))()
    assert without.tobytes() == jax.jit(updated)(jnp.zeros(())).tobytes()
    assert without.tobytes() != jax.jit(updated)(jnp.ones(())).tobytes()


def test_a_program_is_compiled_once():
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: (
            compiled.append(event) if event.endswith("backend_compile_duration") else None
        )
    )
    numbers = np.arange(ROWS, dtype=np.int32)

    def count(state, batch, _):
        return state._replace(step=state.step + 1, params=state.params + batch.audio.sum())

    run = make_run_steps(
        TrainStep(count), Batch(numbers, numbers, numbers), batch_size=BATCH_SIZE, keys=run_keys(0)
    )
    state = first_state(CONFIG)._replace(params=jnp.zeros((), jnp.int32), epoch_sums={})
    state = run(state, 1)
    assert compiled
    compiled.clear()
    run(run(state, 1), 1)
    assert compiled == []
