"""Whole runs in one process: results, resumption to the byte, refusals."""

import concurrent.futures
import dataclasses
import functools
import json
import os
import shutil
import signal
import time

import jax
import numpy as np
import pytest
import small_world
from run_copies import change_json
from small_world import DATASET, SPEC, log_of, logged, restored, restored_bytes, stored_config

from aadml_jax.data import PairedFeatures, make_synthetic
from aadml_jax.errors import UserError
from aadml_jax.training import evaluation, loop, stored_runs
from aadml_jax.training.evaluation import chance_map
from aadml_jax.training.loop import Interrupted, TrainingDiverged

SIMPLE = small_world.SMALL.replace(**small_world.SIMPLE)
train = functools.partial(small_world.train, config=SIMPLE)


def after_each_call(monkeypatch, then):
    """Lets `then(state, num_steps)` see, and change, what each call of the compiled loop gives."""
    make_run_steps = loop.make_run_steps

    def making(*args, **kwargs):
        run_steps = make_run_steps(*args, **kwargs)
        return lambda state, num_steps: then(run_steps(state, num_steps), num_steps)

    monkeypatch.setattr(loop, "make_run_steps", making)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    result = train(folder)
    return folder, result, restored_bytes(folder)


@pytest.fixture(scope="module")
def first_half(tmp_path_factory):
    """The folder of a run of two of the four epochs, and its result."""
    folder = tmp_path_factory.mktemp("first_half")
    return folder, train(folder, epochs=2)


@pytest.fixture
def begun(first_half, tmp_path):
    """A copy of that folder."""
    shutil.copytree(first_half[0], tmp_path / "begun")
    return tmp_path / "begun"


def test_result_holds_what_is_promised(undisturbed):
    folder, result, _ = undisturbed
    assert json.loads((folder / "result.json").read_text()) == json.loads(json.dumps(result))
    for name in ("map", "prefix_map"):
        values = result[name]
        assert list(values) == ["audio_to_visual", "visual_to_audio", "mean"]
        both = (values["audio_to_visual"] + values["visual_to_audio"]) / 2
        assert values["mean"] == pytest.approx(both, abs=1e-6)
    assert result["chance"] == chance_map(DATASET.test.labels)
    assert result["map"]["mean"] > result["chance"] + 0.05
    assert result["chance"] < result["bayes_reference"] <= 1
    assert all(0 <= result["tied_pairs"][name] < 0.01 for name in evaluation.DIRECTIONS)
    assert result["seconds"] > 0
    assert result["versions"]["jax"] == jax.__version__


def test_log_has_a_line_an_epoch_with_parts_and_learning_rate(undisturbed):
    folder, result, _ = undisturbed
    lines = logged(folder)
    assert [line["epoch"] for line in lines] == [1, 2, 3, 4]
    assert [line["step"] for line in lines] == [4, 8, 12, 16]
    for line in lines:
        assert line["loss"] == pytest.approx(line["label_loss"] + line["metric_loss"], rel=1e-5)
        assert line["learning_rate"] == 1e-2
        assert ("map_mean" in line) == (line["epoch"] % 2 == 0)
    assert lines[-1]["map_mean"] == result["map"]["mean"]
    assert lines[-1]["loss"] < lines[0]["loss"]


def test_the_best_state_is_kept_and_labelled(undisturbed):
    folder, result, _ = undisturbed
    lines = logged(folder)
    evaluated = {line["epoch"]: line["map_mean"] for line in lines if "map_mean" in line}
    assert result["best"]["mean_map"] == max(evaluated.values())
    assert evaluated[result["best"]["epoch"]] == result["best"]["mean_map"]
    assert result["best"]["selected_on"] == "test"
    assert restored_bytes(folder, "best")[1] == result["best"]["epoch"]


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(undisturbed, tmp_path):
    folder, _, expected = undisturbed
    train(tmp_path / "again")
    assert restored_bytes(tmp_path / "again") == expected
    assert log_of(tmp_path / "again") == log_of(folder)
    train(tmp_path / "other", seed=1)
    assert restored_bytes(tmp_path / "other")[0] != expected[0]


def test_more_epochs_continue_to_the_same_bytes(undisturbed, first_half, begun):
    folder, _, expected = undisturbed
    again = train(begun)
    assert restored_bytes(begun) == expected
    assert log_of(begun) == log_of(folder)
    assert again["seconds"] > first_half[1]["seconds"]


# Within the first epoch, at the end of one, within one that is not the first, and at the end of an
# evaluated one.
@pytest.mark.parametrize("stop_after_steps", [1, pytest.param(4, marks=pytest.mark.full), 6, 8])
def test_a_signal_saves_the_state_and_the_rerun_ends_with_the_same_bytes(
    undisturbed, tmp_path, monkeypatch, stop_after_steps
):
    folder, result, expected = undisturbed

    def signal_in_time(state, _):
        if int(state.step) == stop_after_steps:
            os.kill(os.getpid(), signal.SIGTERM)
        return state

    handler = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patched:
        after_each_call(patched, signal_in_time)
        with pytest.raises(Interrupted, match=rf"SIGTERM after .* \(step {stop_after_steps}\)"):
            train(tmp_path, steps_per_call=1)
    if stop_after_steps == 8:  # its checkpoint says that it is evaluated
        _, progress = restored(tmp_path)
        assert (progress.epoch, progress.mean_map) == (2, logged(tmp_path)[-1]["map_mean"])
    assert signal.getsignal(signal.SIGTERM) is handler
    assert not (tmp_path / "result.json").exists()
    assert train(tmp_path)["best"] == result["best"]
    assert restored_bytes(tmp_path) == expected
    assert log_of(tmp_path) == log_of(folder)


def test_a_clock_that_is_set_changes_nothing(undisturbed, tmp_path, monkeypatch):
    folder, _, expected = undisturbed
    real, offset = time.time, [0]
    write = loop.MetricLog.write

    def write_and_set_back(*args):
        offset[0] -= 86_400
        write(*args)

    monkeypatch.setattr(time, "time", lambda: real() + offset[0])
    monkeypatch.setattr(loop.MetricLog, "write", write_and_set_back)
    train(tmp_path, epochs=2)
    offset[0] = 365 * 86_400
    result = train(tmp_path)
    assert restored_bytes(tmp_path) == expected
    assert log_of(tmp_path) == log_of(folder)
    assert 0 < result["seconds"] < 3_600


def test_a_finished_run_repeats_its_result_without_training(undisturbed, tmp_path):
    folder, result, expected = undisturbed
    log = log_of(folder)
    again = train(folder)
    assert again == result
    assert restored_bytes(folder) == expected
    assert log_of(folder) == log


@pytest.mark.parametrize(
    ("field", "was", "value"),
    [
        ("margin", 1.0, 0.5),
        ("seed", SIMPLE.recipe.seed, 9),
        ("hidden_sizes", SIMPLE.recipe.hidden_sizes, (17,)),
        ("batch_size", SIMPLE.recipe.batch_size, 10),
    ],
)
def test_another_configuration_is_refused_and_nothing_is_lost(undisturbed, field, was, value):
    folder, _, expected = undisturbed
    before = (log_of(folder), (folder / "config.json").read_text())
    with pytest.raises(UserError) as error:
        train(folder, **{field: value})
    message = str(error.value)
    assert f"checkpoint of another configuration: --{field} was {was}" in message
    assert "\n" not in message
    assert (log_of(folder), (folder / "config.json").read_text()) == before
    assert restored_bytes(folder) == expected


def test_settings_that_change_no_epoch_may_change(undisturbed, begun):
    launch = {"eval_every": 3, "checkpoint_every": 1, "compilation_cache": "off"}
    of_the_same_rows = {"features_file": "moved.h5", "multi_label": True, "smoke": True}
    train(begun, **launch, **of_the_same_rows)
    assert restored_bytes(begun) == undisturbed[2]


def test_of_other_rows_the_setting_that_gives_them_is_named(undisturbed):
    folder, _, _ = undisturbed
    other = make_synthetic(dataclasses.replace(SPEC, seed=1))
    with pytest.raises(UserError) as error:
        train(folder, other, fold=2)
    words = f"the data, {other.source}, are not those it was trained on (--fold was None, now 2)"
    assert words in str(error.value)


def all_files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "gone",
    [
        ("checkpoints",),
        ("checkpoints", "result.json"),
        ("checkpoints", "metrics.jsonl"),
    ],
)
def test_without_its_checkpoints_a_folder_still_belongs_to_its_run(undisturbed, tmp_path, gone):
    folder = tmp_path / "run"
    shutil.copytree(undisturbed[0], folder)
    for name in gone:
        shutil.rmtree(folder / name) if name == "checkpoints" else (folder / name).unlink()
    before = all_files(folder)
    for changes, words in (
        ({"seed": 9}, "--seed was 0, now 9"),
        ({"dataset": make_synthetic(dataclasses.replace(SPEC, seed=1))}, "the data, synthetic"),
    ):
        with pytest.raises(UserError, match=f"checkpoint of another configuration: {words}"):
            train(folder, **changes)
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match=r"config\.json cannot be read .*holds a run"):
        train(folder)
    after = all_files(folder)
    lock = folder / ".lock"
    assert after.keys() == before.keys() - {folder / "config.json"}
    assert all(after[path] == before[path] for path in after.keys() - {lock})


def test_the_same_command_begins_again_and_keeps_what_was_there(undisturbed, tmp_path, capsys):
    source, result, expected = undisturbed
    shutil.copytree(source, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    (tmp_path / "run" / "result.1.json").write_text("of mine")
    before = all_files(tmp_path / "run")
    again = train(tmp_path / "run")
    words = "holds no checkpoint: the run starts from its beginning; what it left is kept"
    output = capsys.readouterr().out
    assert words in output
    assert "metrics.jsonl as metrics.1.jsonl and result.json as result.2.json" in output
    assert again["map"] == result["map"]
    assert restored_bytes(tmp_path / "run") == expected
    assert log_of(tmp_path / "run") == log_of(source)
    after = all_files(tmp_path / "run")
    for name, kept in (("metrics.jsonl", "metrics.1.jsonl"), ("result.json", "result.2.json")):
        assert after[tmp_path / "run" / kept] == before[tmp_path / "run" / name]
    assert after[tmp_path / "run" / "result.1.json"] == b"of mine"


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_again(
    undisturbed, tmp_path, monkeypatch, capsys
):
    with monkeypatch.context() as patched:
        patched.setattr(loop.ProgressDisplay, "epoch_done", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(tmp_path, eval_every=4)
    assert len(log_of(tmp_path).splitlines()) == 1
    train(tmp_path)
    words = (
        "the run starts from its beginning; what it left is kept, metrics.jsonl as metrics.1.jsonl"
    )
    assert f"holds no checkpoint: {words}\n" in capsys.readouterr().out
    assert len((tmp_path / "metrics.1.jsonl").read_text().splitlines()) == 1
    assert log_of(tmp_path) == log_of(undisturbed[0])


def test_fewer_epochs_than_begun_are_refused(undisturbed):
    folder, _, _ = undisturbed
    with pytest.raises(UserError, match=r"--epochs=3: the run in .* is already at epoch 4"):
        train(folder, epochs=3)


def test_a_run_that_diverges_says_so_and_its_folder_takes_any_configuration(undisturbed, tmp_path):
    with pytest.raises(TrainingDiverged, match=r"loss became (nan|inf).*--learning_rate"):
        train(tmp_path, learning_rate=1e38, label_loss="squared")
    assert stored_config(tmp_path)["config"]["recipe"]["learning_rate"] == 1e38
    train(tmp_path)
    assert restored_bytes(tmp_path) == undisturbed[2]


def test_checkpoints_without_their_configuration_are_refused(begun):
    (begun / "config.json").unlink()
    with pytest.raises(UserError, match=r"config\.json cannot be read"):
        train(begun)


def test_other_data_are_refused(undisturbed):
    folder, _, _ = undisturbed
    other = make_synthetic(dataclasses.replace(SPEC, seed=1))
    with pytest.raises(
        UserError, match="the data, synthetic data generated with seed 1, are not those"
    ):
        train(folder, dataset=other)


def test_features_are_standardised_by_training_statistics_and_evaluation_gets_them(
    undisturbed, tmp_path
):
    state, _ = restored(undisturbed[0])
    audio = DATASET.train.audio.astype(np.float64)
    np.testing.assert_allclose(state.standardization.audio_mean, audio.mean(axis=0), rtol=1e-4)
    np.testing.assert_allclose(state.standardization.audio_scale, audio.std(axis=0), rtol=1e-4)
    assert SIMPLE.recipe.standardize

    train(tmp_path, standardize=False)
    state, _ = restored(tmp_path)
    assert np.all(state.standardization.visual_mean == 0)
    assert np.all(state.standardization.visual_scale == 1)


def test_scaling_the_features_does_not_change_a_standardised_run(first_half, tmp_path):
    def scaled(split):
        return PairedFeatures(split.audio * 64, split.visual / 8, split.labels, name="scaled")

    other = dataclasses.replace(DATASET, train=scaled(DATASET.train), test=scaled(DATASET.test))
    result = train(tmp_path, dataset=other, epochs=2)
    assert result["map"]["mean"] == pytest.approx(first_half[1]["map"]["mean"], abs=1e-3)


# At a signal within an epoch, and at the end of one that is not evaluated and of one that is.
@pytest.mark.parametrize(
    ("part", "name", "after_steps"),
    [
        ("params", "parameters", 11),
        ("opt_state", "state of the optimizer", 12),
        ("epoch_sums", "sums of the objective", 16),
    ],
)
def test_a_state_that_is_not_finite_is_neither_logged_nor_saved(
    undisturbed, begun, monkeypatch, part, name, after_steps
):
    def break_in_time(state, _):
        if int(state.step) != after_steps:
            return state
        if after_steps % 4:
            os.kill(os.getpid(), signal.SIGTERM)
        # One number, of which no sum shows anything.
        leaves, structure = jax.tree.flatten(getattr(state, part))
        broken = np.array(leaves[-1])
        broken.flat[0] = np.nan
        return state._replace(**{part: jax.tree.unflatten(structure, [*leaves[:-1], broken])})

    saved = restored_bytes(begun)
    with monkeypatch.context() as patched:
        after_each_call(patched, break_in_time)
        with pytest.raises(TrainingDiverged, match=f"the {name} became infinite or not a number"):
            train(begun, checkpoint_every=1 if after_steps == 12 else None, steps_per_call=1)
    assert [line["epoch"] for line in logged(begun)] == list(range(1, -(-after_steps // 4)))
    assert restored_bytes(begun) == saved
    # What was good before is there, and goes on to the end of an undisturbed run.
    train(begun)
    assert restored_bytes(begun) == undisturbed[2]


def test_an_epoch_is_saved_before_it_is_shown(undisturbed, tmp_path, monkeypatch):
    def fail(*_):
        raise BrokenPipeError

    for thing in (loop.ProgressDisplay, loop.TensorBoard):
        name = "epoch_done" if thing is loop.ProgressDisplay else "write"
        with monkeypatch.context() as patched:
            patched.setattr(thing, name, fail)
            with pytest.raises(BrokenPipeError):
                train(tmp_path / name, eval_every=1)
        assert len(log_of(tmp_path / name).splitlines()) == 1
        assert restored_bytes(tmp_path / name)[1] == 1


def test_signals_before_a_kill_save_the_state(
    undisturbed, tmp_path, monkeypatch, default_disposition
):
    write = loop.MetricLog.write
    default_disposition(signal.SIGHUP)

    def write_and_signal(*args):
        write(*args)
        # As of a connection that is closed: the shell's own and the one it passes on.
        os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patched:
        patched.setattr(loop.MetricLog, "write", write_and_signal)
        with pytest.raises(Interrupted, match=r"stopped by SIGHUP after 1 of 4 epochs"):
            train(tmp_path)
    assert restored_bytes(tmp_path)[1] == 1
    train(tmp_path)
    assert restored_bytes(tmp_path) == undisturbed[2]


def test_a_run_in_another_thread_gives_the_same_bytes(undisturbed, tmp_path):
    with concurrent.futures.ThreadPoolExecutor() as threads:
        threads.submit(train, tmp_path).result()
    assert restored_bytes(tmp_path) == undisturbed[2]


def test_a_config_of_an_earlier_version_is_resumed_and_evaluated(undisturbed, begun):
    stored = stored_config(begun)
    for name in ("steps_per_call", "profile"):
        del stored["config"]["launch"][name]
    del stored["environment"], stored["data"]["multi_label"]
    (begun / "config.json").write_text(json.dumps(stored))
    assert stored_runs.restore_for_evaluation(begun, stored, "latest")[0].launch.epochs == 2
    train(begun)
    assert restored_bytes(begun) == undisturbed[2]


COUNTS, COLUMNS = {"audio": 0, "visual": 0}, {"audio": [], "visual": []}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_classes", "3"),
        ("audio_dim", 0),
        ("visual_dim", True),
        ("source", 3),
        ("standardization", {}),
        ("standardization", "x"),
        ("standardization", {"limit": 5.0}),
        *(
            ("standardization", {"limit": limit, "constant": COUNTS, "nearly_constant": COLUMNS})
            for limit in (-1, True, "a", float("nan"))
        ),
        ("standardization", {"limit": 5.0, "constant": {"audio": 0}, "nearly_constant": COLUMNS}),
        ("standardization", {"limit": 5.0, "constant": COUNTS, "nearly_constant": {"audio": [0]}}),
    ],
)
def test_a_damaged_description_of_the_data_is_one_line(undisturbed, name, value):
    stored = stored_config(undisturbed[0])
    stored["data"][name] = value
    with pytest.raises(UserError, match=r"config\.json does not describe its data; restore it"):
        stored_runs.recorded_data(stored)


def test_a_run_with_other_numerics_is_refused(undisturbed, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(undisturbed[0], folder)
    assert stored_config(folder)["environment"]["enable_x64"] is False
    change_json(
        folder / "config.json", lambda stored: stored["environment"].update(enable_x64=True)
    )
    with pytest.raises(UserError, match="JAX_ENABLE_X64 was True, now False; use the same value"):
        train(folder)


def test_strict_promotion_of_dtypes_changes_nothing(undisturbed, tmp_path):
    former = jax.config.jax_numpy_dtype_promotion
    jax.config.update("jax_numpy_dtype_promotion", "strict")
    try:
        train(tmp_path)
    finally:
        jax.config.update("jax_numpy_dtype_promotion", former)
    assert restored_bytes(tmp_path) == undisturbed[2]


@pytest.mark.parametrize("content", ["{}", '{"config": 3, "data": {}}'])
def test_a_foreign_config_file_is_refused(begun, content):
    (begun / "config.json").write_text(content)
    with pytest.raises(UserError, match="stored configuration"):
        train(begun)


def test_evaluation_needs_a_checkpoint(undisturbed, tmp_path):
    stored = stored_config(undisturbed[0])
    with pytest.raises(UserError, match=r"holds no latest checkpoint yet"):
        stored_runs.restore_for_evaluation(tmp_path, stored, "latest")
    assert not (tmp_path / "checkpoints").exists()


def test_a_profile_of_a_few_steps_is_written_once_and_changes_nothing(
    undisturbed, tmp_path, monkeypatch
):
    taken = []

    def note(state, num_steps):
        taken.append(num_steps)
        return state

    after_each_call(monkeypatch, note)
    monkeypatch.setattr(loop, "_PROFILED_STEPS", 2)
    train(tmp_path, profile=True)
    # The step that compiles, two that are traced, the rest of the epoch, and three whole ones.
    assert taken == [1, 2, 1, 4, 4, 4]
    (trace,) = (tmp_path / "profile" / "plugins" / "profile").iterdir()
    names = [path.name for path in trace.iterdir()]
    assert any(name.endswith(".xplane.pb") for name in names)  # for XProf
    assert "perfetto_trace.json.gz" in names
    assert restored_bytes(tmp_path) == undisturbed[2]


@pytest.mark.parametrize("steps_per_call", [3, pytest.param(100, marks=pytest.mark.full)])
def test_steps_per_call_changes_nothing(undisturbed, tmp_path, steps_per_call):
    train(tmp_path, steps_per_call=steps_per_call)
    assert restored_bytes(tmp_path) == undisturbed[2]


def test_bfloat16_is_for_the_products_only(undisturbed, tmp_path):
    result = train(tmp_path, precision="bfloat16")
    leaves = jax.tree.leaves(restored(tmp_path)[0].params)
    assert {str(leaf.dtype) for leaf in leaves} == {"float32"}
    expected = undisturbed[1]["map"]
    assert result["map"] != expected
    assert result["map"] == pytest.approx(expected, abs=0.1)
