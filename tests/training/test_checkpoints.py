"""Checkpoints: bytes in, bytes out, and what happens to damaged ones."""

import hashlib
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import logging
from small_world import first_state

from aadml_jax.data import FeatureStandardization
from aadml_jax.errors import UserError
from aadml_jax.training.checkpoints import FOLDER, Checkpoints, Progress
from aadml_jax.training.config import RecipeConfig
from aadml_jax.training.state import TrainedTowers, TrainState, build_optimizer

RNG = np.random.default_rng(0)
FLIPS = 2  # of bits of each file


def state_at(step, width=3):
    moments = RNG.normal(size=(width, 2)).astype(np.float32)
    return TrainState(
        step=jnp.int32(step),
        params={"audio": {"kernel": jnp.asarray(moments + 1)}},
        opt_state=(jnp.asarray(moments), ()),
        epoch_sums={"loss": jnp.float32(step)},
        standardization=FeatureStandardization(*np.ones((4, 2), np.float32)),
    )


def progress_at(epoch, mean_map=None):
    return Progress(epoch=epoch, seconds=epoch / 4, mean_map=mean_map)


def steps_in(folder):
    return sorted(int(path.name) for path in (folder / FOLDER).iterdir() if path.name.isdecimal())


def damage(folder, step):
    """Cuts every data file of a checkpoint in half, as a full disk or a failing one may do."""
    files = [path for path in (folder / FOLDER / str(step) / "state").rglob("*") if path.is_file()]
    assert files
    for path in files:
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])


def assert_same_bytes(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for left, right in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert np.asarray(left).dtype == np.asarray(right).dtype
        assert np.asarray(left).tobytes() == np.asarray(right).tobytes()


def test_a_checkpoint_restores_the_same_bytes_as_host_arrays(tmp_path):
    state = state_at(7)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state, progress_at(2, 0.5))
    with Checkpoints(tmp_path) as checkpoints:
        restored, progress = checkpoints.restore_latest(state_at(0))
    assert_same_bytes(restored, state)
    assert isinstance(restored, TrainState)
    assert isinstance(restored.params["audio"]["kernel"], np.ndarray)
    assert progress == progress_at(2, 0.5)


def test_the_state_of_a_real_run_survives(tmp_path):
    state = first_state(RecipeConfig(hidden_sizes=(4,)))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state, progress_at(0))
        assert_same_bytes(checkpoints.restore_latest(state)[0], state)


def towers_of(state):
    return TrainedTowers(state.params, state.standardization)


def test_the_towers_are_restored_without_the_rest(tmp_path):
    state = state_at(7)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state, progress_at(2, 0.5))
    template = jax.eval_shape(lambda: towers_of(state_at(0)))
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        for towers, progress in (
            checkpoints.restore_latest(template),
            checkpoints.restore(7, template),
        ):
            assert_same_bytes(towers, towers_of(state))
            assert progress == progress_at(2, 0.5)
            assert isinstance(towers.params["audio"]["kernel"], np.ndarray)


@pytest.mark.parametrize("changed", ["params", "opt_state"])
def test_arrays_that_are_not_restored_may_be_any(tmp_path, changed):
    """A checkpoint whose arrays are exchanged for those of a state that differs in one part."""
    state, other = state_at(7), state_at(7)
    for name, content in (
        ("own", state),
        ("other", state._replace(**{changed: getattr(other, changed)})),
    ):
        (tmp_path / name).mkdir()
        with Checkpoints(tmp_path / name) as checkpoints:
            checkpoints.save(content, progress_at(2))
    arrays = tmp_path / "own" / FOLDER / "7" / "state"
    shutil.rmtree(arrays)
    shutil.copytree(tmp_path / "other" / FOLDER / "7" / "state", arrays)
    with Checkpoints(tmp_path / "own", read_only=True) as checkpoints:
        with pytest.raises(UserError, match="arrays are not those that were written"):
            checkpoints.restore(7, state_at(0))
        if changed == "params":
            with pytest.raises(UserError, match="arrays are not those that were written"):
                checkpoints.restore(7, towers_of(state_at(0)))
        else:
            towers, _ = checkpoints.restore(7, towers_of(state_at(0)))
            assert_same_bytes(towers, towers_of(state))


def test_towers_of_another_width_are_of_another_configuration(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state_at(7), progress_at(2))
        with pytest.raises(
            UserError, match=r"params/audio/kernel is float32 \(3, 2\), but the con"
        ):
            checkpoints.restore_latest(towers_of(state_at(0, width=4)))


def test_saving_copies_before_the_memory_is_reused(tmp_path):
    state = state_at(1)
    expected = np.array(state.params["audio"]["kernel"])
    spoil = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf * 0 - 9, tree), donate_argnums=0)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state, progress_at(1))
        jax.block_until_ready(spoil(state.params))
        restored, _ = checkpoints.restore_latest(state_at(0))
    np.testing.assert_array_equal(restored.params["audio"]["kernel"], expected)


def test_an_empty_folder_has_no_checkpoint(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore_latest(state_at(0)) is None
        assert checkpoints.best() is None


def test_the_newest_two_and_the_best_are_kept(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        for step, mean_map in ((1, 0.3), (2, 0.9), (3, 0.5), (4, None), (5, 0.4), (6, None)):
            checkpoints.save(state_at(step), progress_at(step, mean_map))
        assert checkpoints.best() == (2, 0.9)
    assert steps_in(tmp_path) == [2, 5, 6]
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.best() == (2, 0.9)


def test_checkpoints_without_evaluation_are_never_best(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state_at(1), progress_at(1))
        assert checkpoints.best() is None


def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(tmp_path, monkeypatch):
    first = state_at(1)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(first, progress_at(1, 0.1))
        checkpoints.save(state_at(2), progress_at(2, 0.2))
    damage(tmp_path, 2)
    said = []
    monkeypatch.setattr(logging, "warning", lambda text, *args: said.append(text % args))

    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        restored, _ = checkpoints.restore_latest(state_at(0))
    assert_same_bytes(restored, first)
    assert steps_in(tmp_path) == [1, 2]
    assert len(said) == 1
    assert f"{FOLDER}/2 is damaged" in said[0]

    with Checkpoints(tmp_path) as checkpoints:
        restored, _ = checkpoints.restore_latest(state_at(0))
        assert_same_bytes(restored, first)
        assert steps_in(tmp_path) == [1, 2]
        again = state_at(2)
        checkpoints.save(again, progress_at(2, 0.2))
        assert_same_bytes(checkpoints.restore_latest(state_at(0))[0], again)


def test_only_damaged_checkpoints_are_an_error_and_stay(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state_at(1), progress_at(1))
    damage(tmp_path, 1)
    with (
        Checkpoints(tmp_path) as checkpoints,
        pytest.raises(UserError, match=r"none of the checkpoints \[1\] can be read"),
    ):
        checkpoints.restore_latest(state_at(0))
    assert steps_in(tmp_path) == [1]


def test_a_checkpoint_of_other_shapes_is_named(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state_at(1), progress_at(1))
        with pytest.raises(
            UserError, match=r"opt_state.* \(3, 2\).*needs .*\(5, 2\).*another conf"
        ):
            checkpoints.restore_latest(state_at(0, width=5))


def flip(path, bit):
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


# Orbax leaves further errors of a damaged file to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
# In a large array bytes are stored as they are, in a small one with checksums.
@pytest.mark.parametrize("width", [3, 3000])
def test_a_flipped_bit_is_passed_over_or_harmless_wherever_it_is(tmp_path, monkeypatch, width):
    monkeypatch.setattr(logging, "warning", lambda *_: None)
    states = {step: state_at(step, width) for step in (1, 2)}
    with Checkpoints(tmp_path) as checkpoints:
        for step, state in states.items():
            checkpoints.save(state, progress_at(step, step / 4))
    files = [path for path in (tmp_path / FOLDER / "2").rglob("*") if path.is_file()]
    changed = dict.fromkeys(files, 0)
    for path in files:
        for bit in RNG.choice(8 * path.stat().st_size, size=FLIPS, replace=False):
            flip(path, bit)
            with Checkpoints(tmp_path, read_only=True) as checkpoints:
                restored, progress = checkpoints.restore_latest(state_at(0, width))
                assert checkpoints.best() in {(2, 0.5), (1, 0.25)}
            assert_same_bytes(restored, states[progress.epoch])
            assert progress == progress_at(progress.epoch, progress.epoch / 4)
            changed[path] += progress.epoch == 1
            flip(path, bit)
    assert changed[tmp_path / FOLDER / "2" / "progress" / "metadata"] == FLIPS
    assert any(count for path, count in changed.items() if "state" in path.parts)


def stored_record(folder, step):
    return folder / FOLDER / str(step) / "progress" / "metadata"


def test_the_digest_is_that_of_the_arrays_that_were_written(tmp_path):
    state = state_at(7)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state, progress_at(2, 0.5))
    record = json.loads(stored_record(tmp_path, 7).read_text())
    assert record["leaves"]["params/audio/kernel"] == "float32 (3, 2)"
    named = {name: record[name] for name in ("epoch", "seconds", "mean_map")}
    assert named == {"epoch": 2, "seconds": 0.5, "mean_map": 0.5}
    content = json.dumps([record["leaves"], named], sort_keys=True).encode()
    # Leaves in the order of their names.
    leaves = [
        state.epoch_sums["loss"],
        state.opt_state[0],
        state.params["audio"]["kernel"],
        *state.standardization,
        state.step,
    ]
    content += b"".join(np.asarray(leaf).tobytes() for leaf in leaves)
    # The container is a dict, whose keys JAX sorts.
    order = ["epoch_sums", "opt_state", "params", "standardization", "step"]
    assert list(dict.fromkeys(name.split("/")[0] for name in record["leaves"])) == order
    assert record["digest"] == hashlib.blake2b(content, digest_size=16).hexdigest()


def without_digests(folder, step):
    """What a version wrote that knew no digest."""
    path = stored_record(folder, step)
    record = json.loads(path.read_text())
    kept = {name: record[name] for name in ("epoch", "seconds", "mean_map")}
    path.write_text(json.dumps(kept))


def test_checkpoints_without_a_digest_are_restored(tmp_path):
    state = state_at(1)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state, progress_at(1, 0.25))
    without_digests(tmp_path, 1)
    with Checkpoints(tmp_path) as checkpoints:
        restored, progress = checkpoints.restore_latest(state_at(0))
        assert_same_bytes(restored, state)
        assert progress == progress_at(1, 0.25)
        assert checkpoints.best() == (1, 0.25)


@pytest.mark.parametrize("has_digest", [True, False])
def test_another_structure_is_another_configuration_and_not_damage(
    tmp_path, monkeypatch, has_digest
):
    said = []
    monkeypatch.setattr(logging, "warning", lambda text, *args: said.append(text % args))
    config = RecipeConfig(hidden_sizes=(4,))
    state = first_state(config)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state, progress_at(0))
    if not has_digest:
        without_digests(tmp_path, 0)
    proxies = {**state.params, "class_proxies": jnp.eye(3)}
    others = {
        r"hidden_1.* is missing": first_state(RecipeConfig(hidden_sizes=(4, 4))),
        r"class_proxies.* is missing, but .* float32 \(3, 3\)": state._replace(
            params=proxies, opt_state=build_optimizer(config).init(proxies)
        ),
        r"opt_state.*count.* the configuration needs none": state._replace(opt_state=()),
    }
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        for message, template in others.items():
            with pytest.raises(UserError, match=message) as caught:
                checkpoints.restore_latest(template)
            assert "it is a checkpoint of another configuration" in str(caught.value)
            with pytest.raises(UserError, match=message):
                checkpoints.restore(0, template)
        assert_same_bytes(checkpoints.restore_latest(state)[0], state)
    assert said == []


def test_a_damaged_checkpoint_that_is_asked_for_is_an_error_of_one_line(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state_at(1), progress_at(1, 0.5))
    damage(tmp_path, 1)
    with (
        Checkpoints(tmp_path, read_only=True) as checkpoints,
        pytest.raises(UserError, match=r"checkpoints/1 is damaged .*restore it from a copy"),
    ):
        checkpoints.restore(1, state_at(0))


def test_the_sound_checkpoint_behind_a_damaged_one_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(logging, "warning", lambda *_: None)
    with Checkpoints(tmp_path) as checkpoints:
        for step in (1, 2, 5):
            checkpoints.save(state_at(step), progress_at(step))
    damage(tmp_path, 5)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore_latest(state_at(0))[1].epoch == 2
        checkpoints.save(state_at(3), progress_at(3))
    # The newest two that can be read, and the damaged one until the run comes to its step.
    assert steps_in(tmp_path) == [2, 3, 5]


def test_a_file_in_the_folders_place_is_an_error(tmp_path):
    (tmp_path / FOLDER).write_text("")
    with pytest.raises(UserError, match="is not a folder"):
        Checkpoints(tmp_path)


def test_what_a_crash_left_half_written_is_cleaned_up(tmp_path):
    leftover = tmp_path / FOLDER / "4.orbax-checkpoint-tmp"
    leftover.mkdir(parents=True)
    (leftover / "data").write_text("half")
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        assert checkpoints.restore_latest(state_at(0)) is None
    assert leftover.exists()
    with Checkpoints(tmp_path) as checkpoints:
        assert not leftover.exists()
        assert checkpoints.restore_latest(state_at(0)) is None
        checkpoints.save(state_at(4), progress_at(1))
    assert steps_in(tmp_path) == [4]
