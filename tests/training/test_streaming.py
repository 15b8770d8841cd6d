"""Streamed rows: the same training as on rows held on the devices, from any step on."""

import functools
import importlib.util

import jax
import numpy as np
import pytest
from small_world import DATA, DATASET, SIMPLE, SPEC, first_state

from aadml_jax.data import PairedFeatures, StoredFeatures, standardize
from aadml_jax.errors import UserError
from aadml_jax.models import TwoTowers
from aadml_jax.training import streaming
from aadml_jax.training.config import RecipeConfig
from aadml_jax.training.parallel import Placement, one_device
from aadml_jax.training.state import build_optimizer, run_keys
from aadml_jax.training.step import Batch, make_run_steps, make_train_step

pytest.importorskip("grain", reason="the extra 'stream' is not installed")

ROWS, BATCH_SIZE, CLASSES = 43, 8, SPEC.num_classes  # five steps an epoch, three rows left out
FEATURES = PairedFeatures(*(getattr(DATASET.train, name)[:ROWS] for name in Batch._fields))
MULTI_HOT = PairedFeatures(
    FEATURES.audio,
    FEATURES.visual,
    np.eye(CLASSES, dtype=bool)[FEATURES.labels]
    | (np.random.default_rng(0).random((ROWS, CLASSES)) < 0.3),
)
CONFIG = RecipeConfig(hidden_sizes=(5,), dropout=0.3, learning_rate=1e-2, seed=3, **SIMPLE)


def stored(seen=None, broken_row=None, labels=FEATURES.labels):
    def read(rows):
        if seen is not None:
            seen.append(rows)
        if broken_row in rows:
            raise UserError(f"row {broken_row} cannot be read")
        return FEATURES.audio[rows], FEATURES.visual[rows]

    dims = SPEC.audio_dim, SPEC.visual_dim
    return StoredFeatures(labels, *dims, read, np.arange(ROWS), "made", random_access=True)


@pytest.fixture(autouse=True)
def short_chunks(monkeypatch):
    """Chunks of two steps, so that an epoch of five ends within one."""
    monkeypatch.setattr(streaming, "_STEPS_PER_CHUNK", 2)


def initial_state(placement):
    return placement.replicate(first_state(CONFIG), donated=True)


def train_step(placement):
    return make_train_step(
        TwoTowers(CLASSES, CONFIG.hidden_sizes, CONFIG.dropout),
        build_optimizer(CONFIG),
        CONFIG.objective(),
        placement,
    )


def streamed(placement=None, features=None):
    placement = placement or one_device()
    return streaming.make_stream_steps(
        train_step(placement),
        features or stored(),
        batch_size=BATCH_SIZE,
        keys=run_keys(3),
        standardization=DATA.standardization,
        placement=placement,
    )


@functools.cache
def held(features=FEATURES):
    """The states after 7 and 12 steps of training on rows that the device holds, by these."""
    placement = one_device()
    rows = standardize(features, DATA.standardization)
    run = make_run_steps(
        train_step(placement),
        Batch(rows.audio, rows.visual, rows.labels),
        batch_size=BATCH_SIZE,
        keys=run_keys(3),
        placement=placement,
    )
    state, states = initial_state(placement), {}
    for num_steps in (7, 12):
        state = run_in_calls(run, state, num_steps, 5)
        states[num_steps] = jax.tree.map(np.array, state)  # whose memory is used again
    return states


def run_in_calls(run, state, num_steps, steps_per_call):
    """Runs some steps, in calls that stay within an epoch of five."""
    while (step := int(state.step)) < num_steps:
        state = run(state, min(steps_per_call, num_steps - step, 5 - step % 5))
    return state


def assert_close(actual, expected, tolerance):
    for leaf, wanted in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert np.linalg.norm(leaf - wanted) <= tolerance * max(np.linalg.norm(wanted), 1e-6)


@pytest.mark.parametrize("steps_per_call", [2, 5])
def test_streamed_rows_train_as_held_ones(steps_per_call):
    placement = one_device()
    state = run_in_calls(streamed(), initial_state(placement), 12, steps_per_call)
    assert_close(state, held()[12], 1e-6)
    assert int(state.step) == 12


@pytest.mark.parametrize("mode", ["jit", "pmap"])
def test_devices_share_the_streamed_rows(mode):
    placement = Placement(tuple(jax.devices()[:4]), mode)
    state = run_in_calls(streamed(placement), initial_state(placement), 7, 4)
    assert_close(jax.tree.map(np.asarray, state), held()[7], 1e-5)


def test_clips_of_several_classes_are_streamed():
    placement = Placement(tuple(jax.devices()[:4]), "pmap")
    run = streamed(placement, stored(labels=MULTI_HOT.labels))
    state = jax.tree.map(np.asarray, run_in_calls(run, initial_state(placement), 7, 4))
    assert_close(state, held(MULTI_HOT)[7], 1e-5)
    first = jax.tree.leaves(held()[7].params)[0]
    assert np.any(first != jax.tree.leaves(state.params)[0])


def test_a_stream_goes_on_from_any_step_with_the_same_bytes():
    whole = run_in_calls(streamed(), initial_state(one_device()), 12, 5)
    for stop in (3, 5):
        state = run_in_calls(streamed(), initial_state(one_device()), stop, 3)
        state = jax.tree.map(np.asarray, state)
        state = run_in_calls(streamed(), jax.device_put(state), 12, 2)
        assert_same_bytes(state, whole)


def assert_same_bytes(actual, expected):
    for leaf, wanted in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(leaf, wanted)


def test_steps_beyond_the_epoch_are_refused():
    run = streamed()
    state = run_in_calls(run, initial_state(one_device()), 3, 3)
    with pytest.raises(ValueError, match=r"num_steps=3 from step 3 on .* at most 2 are left"):
        run(state, 3)


def test_a_process_reads_its_part_of_each_batch_once(monkeypatch):
    seen = []
    placement = one_device()
    monkeypatch.setattr(Placement, "local_rows", lambda self, num_rows: slice(2, 5))
    monkeypatch.setattr(
        Placement, "shard", lambda self, arrays, *_, **__: jax.tree.map(pad_part, arrays)
    )
    run_in_calls(streamed(features=stored(seen)), initial_state(placement), 5, 5)
    order = np.asarray(jax.random.permutation(jax.random.fold_in(run_keys(3).shuffle, 0), ROWS))
    wanted = [np.sort(order[step * BATCH_SIZE :][2:5]).tolist() for step in range(5)]
    # What follows belongs to the next epoch and is read ahead.
    read = [rows.tolist() for rows in seen]
    assert all(read.count(rows) == 1 for rows in wanted)
    assert all(len(rows) == 3 for rows in read)


def test_a_chunk_holds_no_more_than_its_bytes(monkeypatch):
    shapes = []
    monkeypatch.setattr(streaming, "_STEPS_PER_CHUNK", 16)
    monkeypatch.setattr(streaming, "_CHUNK_BYTES", 4 * BATCH_SIZE * (8 + 12 + 1) * 4 - 1)
    shard = Placement.shard

    def note(self, arrays, *args, **options):
        shapes.append(arrays.audio.shape)
        return shard(self, arrays, *args, **options)

    monkeypatch.setattr(Placement, "shard", note)
    state = run_in_calls(streamed(), initial_state(one_device()), 7, 5)
    assert set(shapes) == {(3, BATCH_SIZE, 8)}
    assert_close(state, held()[7], 1e-6)


def pad_part(array):
    return np.pad(array, [(0, 0), (2, 3)] + [(0, 0)] * (array.ndim - 2))


def test_rows_that_cannot_be_read_are_told():
    with pytest.raises(UserError, match="row 7 cannot be read"):
        run_in_calls(streamed(features=stored(broken_row=7)), initial_state(one_device()), 10, 5)


def test_grain_is_asked_for_where_it_is_missing(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"--input=stream needs .*pip install -e '\.\[stream\]'"):
        streamed()
