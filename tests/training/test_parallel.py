"""Any number of devices, in any mode, computes what one device computes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles
import pytest
from small_world import DATA, SPEC, first_state

from aadml_jax.data import PairedFeatures
from aadml_jax.errors import UserError
from aadml_jax.models import TwoTowers
from aadml_jax.training.config import RecipeConfig
from aadml_jax.training.evaluation import evaluate
from aadml_jax.training.named_losses import NAMED_LOSSES
from aadml_jax.training.parallel import Placement, one_device
from aadml_jax.training.state import build_optimizer, run_keys
from aadml_jax.training.step import Batch, TrainStep, make_run_steps, make_train_step

MODES = ("jit", "pmap")
ONE_MODE = ("jit", pytest.param("pmap", marks=pytest.mark.full))
# 50 rows, which no number of devices here but 1 and 2 divides; three steps an epoch.
CLASSES, ROWS, BATCH_SIZE = SPEC.num_classes, SPEC.train_size, 16
RNG = np.random.default_rng(0)
LABELS = DATA.train.labels
MULTI_HOT = np.eye(CLASSES, dtype=bool)[LABELS] | (RNG.random((ROWS, CLASSES)) < 0.3)
KEEP_GRADIENT = optax.GradientTransformation(
    init=lambda params: jax.tree.map(jnp.zeros_like, params),
    update=lambda gradient, state, params: (jax.tree.map(jnp.zeros_like, params), gradient),
)


def placement_of(mode, count):
    return Placement(tuple(jax.devices()[:count]), mode)


def trained(
    config, placement, *, num_steps=1, optimizer=KEEP_GRADIENT, dtype="float64", labels=LABELS
):
    """The state after some steps, as NumPy arrays."""
    with oracles.x64(dtype == "float64"):
        state = first_state(config)
        params = jax.tree.map(lambda leaf: leaf.astype(dtype), state.params)
        sums = jax.tree.map(lambda leaf: leaf.astype(dtype), state.epoch_sums)
        state = state._replace(params=params, opt_state=optimizer.init(params), epoch_sums=sums)
        towers = TwoTowers(CLASSES, config.hidden_sizes, config.dropout, dtype=dtype)
        run_steps = make_run_steps(
            make_train_step(towers, optimizer, config.objective(), placement),
            Batch(DATA.train.audio.astype(dtype), DATA.train.visual.astype(dtype), labels),
            batch_size=BATCH_SIZE,
            keys=run_keys(config.seed),
            placement=placement,
        )
        for _ in range(num_steps):
            state = run_steps(state, 1)
        return jax.tree.map(np.asarray, state)


def assert_close(actual, expected, tolerance):
    for (path, wanted), leaf in zip(
        jax.tree.leaves_with_path(expected), jax.tree.leaves(actual), strict=True
    ):
        assert leaf.dtype == wanted.dtype
        norm = np.linalg.norm(wanted)
        assert np.linalg.norm(leaf - wanted) <= tolerance * norm, jax.tree_util.keystr(path)


def config_of(loss, **options):
    return RecipeConfig(loss=loss, hidden_sizes=(8,), dropout=0.3, seed=3, **options)


@functools.cache
def on_one_device(config, dtype="float64", is_multi_hot=False):
    return trained(config, one_device(), dtype=dtype, labels=MULTI_HOT if is_multi_hot else LABELS)


def assert_independent_of_devices(
    config, mode, count, dtype="float64", tolerance=1e-12, is_multi_hot=False
):
    expected = on_one_device(config, dtype, is_multi_hot)
    assert all(np.any(leaf != 0) for leaf in jax.tree.leaves(expected.opt_state))
    labels = MULTI_HOT if is_multi_hot else LABELS
    actual = trained(config, placement_of(mode, count), dtype=dtype, labels=labels)
    assert_close(actual.epoch_sums, expected.epoch_sums, tolerance)
    assert_close(actual.opt_state, expected.opt_state, tolerance)


# What the losses themselves do with the rows of a shard, their own tests tell: here one is as good
# as another that is called in the same way.
@pytest.mark.parametrize("mode", MODES)
def test_loss_and_gradient_do_not_depend_on_four_devices(mode):
    assert_independent_of_devices(config_of("triplet"), mode, 4)


@pytest.mark.parametrize("mode", MODES)
def test_clips_of_several_classes_and_learned_class_proxies_do_not_depend_on_devices(mode):
    config = config_of("proxy_anchor", class_proxies="learned", label_loss="cross_entropy")
    assert_independent_of_devices(config, mode, 4, is_multi_hot=True)


@pytest.mark.parametrize("mode", ["pmap", pytest.param("jit", marks=pytest.mark.full)])
def test_proxies_on_both_sides_do_not_depend_on_devices(mode):
    config = config_of("supcon", proxy_role="both_sides", neighbors_from="other")
    assert_independent_of_devices(config, mode, 4)


@pytest.mark.parametrize("mode", ONE_MODE)
def test_without_proxies_float32_stays_within_its_rounding(mode):
    config = config_of("contrastive", intra_modal=True, anchor_aware=False)
    assert_independent_of_devices(config, mode, 8, "float32", 1e-5)


@pytest.mark.full
@pytest.mark.parametrize("loss", ["triplet", "contrastive"])
@pytest.mark.parametrize("mode", MODES)
def test_pairs_of_clips_of_several_classes_do_not_depend_on_devices(loss, mode):
    config = config_of(loss, label_loss="cross_entropy")
    assert_independent_of_devices(config, mode, 4, is_multi_hot=True)


@pytest.mark.full
@pytest.mark.parametrize("mode", MODES)
def test_learned_class_proxies_get_the_same_gradient(mode):
    config = config_of("proxy_anchor", class_proxies="learned")
    assert_independent_of_devices(config, mode, 4)


@pytest.mark.full
@pytest.mark.parametrize("anchor_aware", [False, True])
@pytest.mark.parametrize("count", [1, 2, 4, 8])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("loss", NAMED_LOSSES)
def test_no_loss_depends_on_mode_devices_or_proxies(loss, mode, count, anchor_aware):
    config = config_of(loss, anchor_aware=anchor_aware)
    assert_independent_of_devices(config, mode, count)
    assert_independent_of_devices(config, mode, count, "float32", 1e-5)


@pytest.mark.full
@pytest.mark.parametrize("mode", MODES)
def test_fifty_steps_end_at_the_same_place(mode):
    config = RecipeConfig(hidden_sizes=(8,), dropout=0.3, learning_rate=1e-2)
    run = functools.partial(trained, config, num_steps=50, optimizer=build_optimizer(config))
    assert_close(run(placement_of(mode, 8)).params, run(one_device()).params, 1e-9)


@pytest.mark.parametrize("mode", MODES)
def test_each_step_draws_the_same_rows(mode):
    # A stand-in for the training step that writes down which rows it saw.
    numbers = np.arange(ROWS, dtype=np.int32)
    placement = placement_of(mode, 4)

    def note(state, batch, _):
        assert batch.labels.dtype == bool
        seen = batch.audio
        if placement.axis_name is not None:
            share = jax.lax.axis_index(placement.axis_name) * len(seen)
            whole = jnp.zeros(BATCH_SIZE, jnp.int32)
            whole = jax.lax.dynamic_update_slice_in_dim(whole + 0 * seen[0], seen, share, axis=0)
            seen = jax.lax.psum(whole, placement.axis_name)
        return state._replace(step=state.step + 1, params=seen)

    state = first_state(config_of("contrastive"))
    state = state._replace(params=jnp.zeros(BATCH_SIZE, jnp.int32), epoch_sums={})
    run = make_run_steps(
        TrainStep(note),
        Batch(numbers, numbers, MULTI_HOT),
        batch_size=BATCH_SIZE,
        keys=run_keys(3),
        placement=placement,
    )
    epochs = [jax.random.fold_in(run_keys(3).shuffle, epoch) for epoch in range(2)]
    orders = [np.asarray(jax.random.permutation(key, ROWS)) for key in epochs]
    for step in range(4):
        state = run(state, 1)
        wanted = orders[step // 3][step % 3 * BATCH_SIZE :][:BATCH_SIZE]
        np.testing.assert_array_equal(np.sort(state.params), np.sort(wanted))
        np.testing.assert_array_equal(state.params, wanted)


@pytest.mark.parametrize("mode", MODES)
def test_each_device_computes_its_own_anchors_only(mode):
    config = RecipeConfig(hidden_sizes=(8,), seed=3)
    state = first_state(config)
    placement = placement_of(mode, 8)
    step = make_train_step(
        TwoTowers(CLASSES, config.hidden_sizes),
        build_optimizer(config),
        config.objective(),
        placement,
    )
    rows = np.arange(48, dtype=np.int32)

    def one_step(data, keys, state, _):
        return step(state, placement.take(data, jnp.asarray(rows)), keys.dropout)

    data = Batch(*(array[:48] for array in DATA.train))
    compiled = placement.compile(one_step).lower(
        placement.shard(data, 48), run_keys(0), state, jnp.int32(1)
    )
    program = compiled.compile().as_text()
    assert "[6,48]" in program
    assert "[48,48]" not in program


# With and without rows that fill the shards up.
@pytest.mark.parametrize(
    ("rows", "labels", "similarity"),
    [(48, None, "cosine"), (ROWS, None, "posterior"), (ROWS, MULTI_HOT, "cosine")],
)
def test_evaluation_shares_the_queries(rows, labels, similarity):
    rng = np.random.default_rng(5)
    labels = rng.integers(0, 3, rows) if labels is None else labels
    features = PairedFeatures(rng.normal(size=(rows, 4)), rng.normal(size=(rows, 6)), labels)
    model = TwoTowers(3, (8,))
    params = model.init(jax.random.key(0), features.audio, features.visual)["params"]
    expected = evaluate(model, params, features, similarity=similarity)
    actual = evaluate(model, params, features, placement_of("jit", 8), similarity=similarity)
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    np.testing.assert_allclose(jax.tree.leaves(actual), jax.tree.leaves(expected), atol=1e-6)


def test_a_batch_that_devices_cannot_share_is_refused():
    with pytest.raises(UserError, match=r"--batch_size=100 must be a multiple of the 8 devices"):
        placement_of("jit", 8).check_batch_size(100)
    placement_of("jit", 8).check_batch_size(96)
    with pytest.raises(UserError, match="such as 8"):
        placement_of("jit", 8).check_batch_size(3)


def test_a_placement_needs_devices_and_a_known_mode():
    with pytest.raises(ValueError, match="mode"):
        Placement(tuple(jax.devices()), "gspmd")
    with pytest.raises(ValueError, match="at least one device"):
        Placement(())
