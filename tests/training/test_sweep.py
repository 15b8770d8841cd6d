"""Runs of one program: the same as each by itself, wherever it is interrupted or split."""

import functools
import os
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_world import DATA, DATASET, SIMPLE, SMALL, logged, restored, train

from aadml_jax.errors import UserError
from aadml_jax.training import epochs, sweep
from aadml_jax.training.evaluation import embed
from aadml_jax.training.loop import TrainingDiverged
from aadml_jax.training.setup import resolve
from aadml_jax.training.signals import Interrupted
from aadml_jax.training.stacked_runs import Probe, StackedRuns
from aadml_jax.training.state import build_model
from aadml_jax.training.sweep import programs

BASE = resolve(SMALL.replace(epochs=3), len(DATASET.train))
# Different in every field that may differ, where the triplet loss has it.
RUNS = [
    # A margin that is set and one that is not are of two kinds.
    BASE.replace(margin=1.0),
    BASE.replace(seed=4, margin=0.3, num_neighbors=1, label_weight=0.3),
    BASE.replace(
        margin=0.9,
        attention_temperature=0.1,
        metric_weight=2.0,
        learning_rate=3e-3,
        weight_decay=0.2,
    ),
]
PROBES = {
    "test": Probe(DATA.test, similarity="posterior", ks=(1, 5), every=2),
    "cosine": Probe(DATA.test),
    "loss": Probe(DATA.test, with_loss=True),  # 20 rows are one batch of 12
}
# Where the objective does not matter.
PLAIN = resolve(SMALL.replace(epochs=3, **SIMPLE), len(DATASET.train))
PAIR = [PLAIN, PLAIN.replace(seed=4, margin=0.3)]
PLAIN_PROBES = {"test": Probe(DATA.test, every=2)}
ONE_DEVICE = jax.devices()[:1]
run_program = functools.partial(sweep.run_program, data=DATA, devices=ONE_DEVICE)
run_sweep = functools.partial(sweep.run_sweep, data=DATA, probes=PLAIN_PROBES, devices=ONE_DEVICE)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A function that trains a run by itself, once, and gives its folder."""

    @functools.cache
    def folder_of(number):
        folder = tmp_path_factory.mktemp("alone")
        train(folder, config=RUNS[number])
        return folder

    return folder_of


@pytest.fixture(scope="module")
def histories():
    return run_program(RUNS, probes=PROBES)


@pytest.fixture(scope="module")
def of_pair():
    """The histories of the pair."""
    return run_program(PAIR, probes=PLAIN_PROBES)


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A folder that holds them."""
    folder = tmp_path_factory.mktemp("swept")
    run_sweep(PAIR, folder=folder)
    return folder


@pytest.mark.parametrize("number", range(len(RUNS)))
def test_a_run_of_a_program_is_the_run_by_itself(histories, alone, number):
    lines = logged(alone(number))
    losses = [line["loss"] for line in lines]
    maps = {line["epoch"]: line["map_mean"] for line in lines if "map_mean" in line}
    assert RUNS[number].recipe.similarity == "posterior"
    history = histories[number]
    assert history.losses["loss"] == pytest.approx(losses, rel=1e-5)
    kept = history.reports["test"]
    assert kept["epochs"] == [2, 3] == list(maps)
    # Ranks are of 20 items: a rounding that swaps two of them would show.
    actual = [report["mean"]["map"] for report in kept["reports"]]
    assert actual == pytest.approx(list(maps.values()), abs=1e-5)
    assert set(kept["reports"][0]["mean"]["precision_at_k"]) == {"1", "5"}
    others = [other.losses["loss"] for other in histories if other is not history]
    assert all(np.abs(np.subtract(other, losses)).max() > 1e-3 for other in others)


def test_a_run_with_loss_parameters_of_its_own_is_the_run_by_itself(tmp_path):
    base = PLAIN.replace(loss="margin", margin=0.25, epochs=2)
    runs = [base.replace(loss_parameters={"beta": beta}) for beta in (0.4, 0.9)]
    for run, history in zip(runs, run_program(runs, probes={}), strict=True):
        folder = tmp_path / str(run.recipe.loss_parameters["beta"])
        train(folder, config=run)
        losses = [line["loss"] for line in logged(folder)]
        assert history.losses["loss"] == pytest.approx(losses, rel=1e-5)


@pytest.mark.parametrize("number", [0, 1])
def test_the_loss_of_other_rows_is_the_objective_of_their_outputs(histories, alone, number):
    recipe = RUNS[number].recipe
    state, _ = restored(alone(number))
    audio, visual = embed(build_model(recipe, 3), state.params, DATA.test)
    chosen = np.asarray(jax.random.permutation(jax.random.key(0), 20)[:12])
    rows = audio[chosen], visual[chosen], DATA.test.labels[chosen]
    expected, _ = jax.jit(recipe.objective())(*rows)
    assert recipe.dropout > 0  # which is for training alone
    (report,) = histories[number].reports["loss"]["reports"]
    assert report["loss"] == pytest.approx(float(expected), rel=1e-4)


def test_devices_share_the_runs(histories):
    # Three runs on two devices: one place is filled up.
    shared = run_program(RUNS, probes=PROBES, devices=jax.devices()[:2])
    assert len(shared) == len(RUNS)
    for actual, wanted in zip(shared, histories, strict=True):
        assert actual.losses["loss"] == pytest.approx(wanted.losses["loss"], rel=1e-5)
        maps = [history.last("test")["visual_to_audio"]["map"] for history in (actual, wanted)]
        assert maps[0] == pytest.approx(maps[1], abs=1e-5)
        losses = [history.last("loss")["loss"] for history in (actual, wanted)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_posteriors_rank_otherwise_than_cosines(histories):
    maps = [histories[0].last(name)["mean"]["map"] for name in ("test", "cosine")]
    assert maps[0] != maps[1]
    assert histories[0].reports["cosine"]["epochs"] == [3]


class Stopped(Exception):
    pass


def stop_after(epoch):
    def on_epoch(now):
        if now == epoch:
            raise Stopped

    return on_epoch


def test_an_interrupted_program_goes_on_to_the_same_numbers(of_pair, tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "_SECONDS_BETWEEN_CHECKPOINTS", 0.0)
    folder = tmp_path / "program"
    save = sweep.Checkpoints.save

    def stop_instead(checkpoints, state, progress):
        if progress.epoch == 2:  # whose history is written already
            raise Stopped
        save(checkpoints, state, progress)

    with monkeypatch.context() as patched:
        patched.setattr(sweep.Checkpoints, "save", stop_instead)
        with pytest.raises(Stopped):
            run_program(PAIR, probes=PLAIN_PROBES, folder=folder)
    begun = []
    again = run_program(PAIR, probes=PLAIN_PROBES, folder=folder, on_epoch=begun.append)
    assert begun == [2, 3]
    assert again == of_pair


def signalling(monkeypatch, number, steps):
    """Sends a signal to this process once a program of runs has taken so many steps."""
    run_steps = StackedRuns.run_steps

    def run_and_signal(program, state, num_steps):
        state = run_steps(program, state, num_steps)
        if int(state.step) == steps:
            os.kill(os.getpid(), number)
        return state

    monkeypatch.setattr(StackedRuns, "run_steps", run_and_signal)
    monkeypatch.setattr(epochs, "_STEPS_PER_SLOW_CALL", 2)  # one of each run's steps, for two runs


# Within the first epoch, at the end of the second, and in the last epoch of the sweep.
@pytest.mark.parametrize(
    ("number", "steps", "epochs"),
    [(signal.SIGTERM, 3, [1, 2, 3]), (signal.SIGHUP, 8, [3]), (signal.SIGINT, 12, [])],
)
def test_a_signal_saves_a_sweep_and_the_rerun_ends_with_the_same_numbers(
    of_pair, tmp_path, monkeypatch, default_disposition, number, steps, epochs
):
    default_disposition(number)
    handler = signal.getsignal(number)
    with monkeypatch.context() as patched:
        signalling(patched, number, steps)
        with pytest.raises(Interrupted, match=f"stopped by {number.name} .*same command resumes"):
            run_sweep(PAIR, folder=tmp_path)
    assert signal.getsignal(number) is handler
    taken, run_steps = [], StackedRuns.run_steps

    def counting(program, state, num_steps):
        taken.append(int(state.step))
        return run_steps(program, state, num_steps)

    monkeypatch.setattr(StackedRuns, "run_steps", counting)
    progress = []
    again = run_sweep(
        PAIR, folder=tmp_path, on_progress=lambda done, total: progress.append(done // 2)
    )
    assert progress == epochs
    assert taken[:1] == ([steps] if epochs else [])
    assert again == of_pair


def test_without_a_folder_a_signal_stops_a_program_and_says_so(monkeypatch):
    signalling(monkeypatch, signal.SIGTERM, 5)
    with pytest.raises(Interrupted, match=r"after 1 of 3 epochs .*no folder to be kept in"):
        run_program(PAIR, probes={})


@pytest.mark.parametrize("with_signal", [True, False])
def test_a_state_of_a_sweep_that_is_not_finite_is_not_saved(tmp_path, monkeypatch, with_signal):
    monkeypatch.setattr(sweep, "_SECONDS_BETWEEN_CHECKPOINTS", 0.0)
    run_steps = StackedRuns.run_steps
    broken_at = 7 if with_signal else 8

    def run_and_break(program, state, num_steps):
        state = run_steps(program, state, num_steps)
        if int(state.step) == broken_at:
            kernel = state.params["visual"]["label_space"]["kernel"]
            state.params["visual"]["label_space"]["kernel"] = kernel.at[1, 0, 0].set(jnp.inf)
            if with_signal:
                os.kill(os.getpid(), signal.SIGTERM)
        return state

    with monkeypatch.context() as patched:
        patched.setattr(StackedRuns, "run_steps", run_and_break)
        patched.setattr(epochs, "_STEPS_PER_SLOW_CALL", 2)
        # The second of the runs, which has seed 4.
        with pytest.raises(TrainingDiverged, match=r"the parameters of a run became .*seed 4"):
            run_program(PAIR, probes={}, folder=tmp_path / "program")
    begun = []
    run_program(PAIR, probes={}, folder=tmp_path / "program", on_epoch=begun.append)
    assert begun == [2, 3]


def test_an_output_that_is_gone_costs_no_run(of_pair, tmp_path):
    def show(done, total):
        raise BrokenPipeError

    assert run_sweep(PAIR, folder=tmp_path, on_progress=show) == of_pair


def test_what_another_sweep_left_is_not_taken_over(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "_SECONDS_BETWEEN_CHECKPOINTS", 0.0)
    folder = tmp_path / "program"
    with pytest.raises(Stopped):
        run_program(PAIR, probes={}, folder=folder, on_epoch=stop_after(3))
    begun = []
    others = [PAIR[0], PAIR[1].replace(seed=9)]
    run_program(others, probes={}, folder=folder, on_epoch=begun.append)
    assert begun == [1, 2, 3]


def test_a_sweep_trains_what_is_missing(swept, of_pair, tmp_path):
    folder = shutil.copytree(swept, tmp_path / "folder")
    progress = []
    new = PLAIN.replace(seed=9)
    again = run_sweep(
        [PAIR[1], new, PAIR[0], new],
        folder=folder,
        on_progress=lambda *counts: progress.append(counts),
    )
    assert progress == [(1, 3), (2, 3), (3, 3)]  # the epochs of one run
    assert [again[0], again[2]] == [of_pair[1], of_pair[0]]
    assert again[1] == again[3]
    assert again[1].losses["loss"] != again[2].losses["loss"]


@pytest.mark.parametrize("content", ["{", "[]", '{"name": {"losses": {}}}', '{"name": 3}'])
def test_a_damaged_file_of_histories_is_named(tmp_path, content):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(UserError, match=r"x.json is damaged .*remove it"):
        run_sweep(PAIR, folder=tmp_path)


def test_a_program_goes_on_with_other_devices(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "_SECONDS_BETWEEN_CHECKPOINTS", 0.0)
    runs = [*PAIR, PLAIN.replace(seed=5, margin=0.9)]
    whole = run_program(runs, probes={})
    with pytest.raises(Stopped):
        # Three runs on two devices: one place is filled up, and not stored.
        run_program(
            runs,
            probes={},
            folder=tmp_path / "program",
            devices=jax.devices()[:2],
            on_epoch=stop_after(2),
        )
    begun = []
    again = run_program(runs, probes={}, folder=tmp_path / "program", on_epoch=begun.append)
    assert begun == [2, 3]
    for actual, wanted in zip(again, whole, strict=True):
        assert actual.losses["loss"] == pytest.approx(wanted.losses["loss"], rel=1e-5)


def test_a_run_that_diverges_is_named_and_no_result(tmp_path):
    # Cross-entropy stays finite at outputs of any size, their squares do not.
    base = PLAIN.replace(epochs=2, label_loss="squared")
    runs = [base, base.replace(learning_rate=1e30)]
    words = r"of a run became (nan|inf) in epoch [12] \(loss contrastive, .*learning_rate 1e\+30"
    with pytest.raises(TrainingDiverged, match=words):
        run_sweep(runs, folder=tmp_path)
    assert not list(tmp_path.glob("*.json"))


def test_what_an_interrupted_sweep_left_is_cleared_away(swept, tmp_path):
    folder = shutil.copytree(swept, tmp_path / "folder")
    (folder / "partial-0123").mkdir()
    run_sweep(PAIR, folder=folder)
    assert [path.suffix for path in folder.iterdir()] == [".json"]


def test_sweeps_that_share_a_folder_leave_each_others_beginnings(swept, tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "_SECONDS_BETWEEN_CHECKPOINTS", 0.0)
    folder = shutil.copytree(swept, tmp_path / "folder")
    later = [run.replace(seed=seed) for run, seed in zip(PAIR, (7, 8), strict=True)]

    def stop(done, total):
        if done == 4:  # the second of three epochs of both
            raise Stopped

    with pytest.raises(Stopped):
        run_sweep(later, folder=folder, on_progress=stop)
    run_sweep(PAIR, folder=folder)
    progress = []
    run_sweep(later, folder=folder, on_progress=lambda done, total: progress.append(done))
    assert progress == [4, 6]
    # Of runs that were trained in other programs meanwhile, the beginning is cleared away.
    fresh = [run.replace(seed=seed) for run, seed in zip(PAIR, (10, 11), strict=True)]
    with pytest.raises(Stopped):
        run_sweep(fresh, folder=folder, on_progress=stop)
    assert list(folder.glob("partial-*"))
    run_sweep(fresh, folder=folder, most_runs=1)
    assert not list(folder.glob("partial-*"))


def test_programs_hold_runs_of_one_kind():
    runs = [
        BASE,
        BASE.replace(attention="channel"),
        BASE.replace(seed=1),
        BASE.replace(seed=2, num_neighbors=7, weight_decay=0.1),
        BASE.replace(attention="channel", seed=3),
    ]
    assert programs(runs, 2) == [[0, 2], [1, 4], [3]]
    with pytest.raises(ValueError, match="may differ in seed, margin"):
        run_program(runs, probes={})
