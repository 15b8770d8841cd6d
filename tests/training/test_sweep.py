"""Runs of one program: the same as each by itself, wherever it is interrupted or split."""

import json
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aadml_jax.data import SyntheticSpec, make_synthetic
from aadml_jax.errors import UserError
from aadml_jax.training import epochs, sweep
from aadml_jax.training.config import TrainConfig
from aadml_jax.training.local_data import load_local_data
from aadml_jax.training.loop import TrainingDiverged, run_training
from aadml_jax.training.run_folder import RunFolder
from aadml_jax.training.setup import resolve
from aadml_jax.training.signals import Interrupted
from aadml_jax.training.stacked_runs import Probe, StackedRuns
from aadml_jax.training.state import adam, build_model, init_state, run_keys
from aadml_jax.training.step import Batch, epoch_order, make_train_step
from aadml_jax.training.sweep import programs, run_program, run_sweep

SPEC = SyntheticSpec(num_classes=3, audio_dim=8, visual_dim=12, train_size=50, test_size=20)
DATASET = make_synthetic(SPEC)
DATA = load_local_data(DATASET)
BASE = resolve(
    TrainConfig.of(
        epochs=3,
        batch_size=12,  # 4 steps an epoch, two rows left out
        eval_every=2,
        hidden_sizes=(16,),
        learning_rate=1e-2,
        tensorboard=False,
    ),
    50,
)
PROBES = {"test": Probe(DATA.test, similarity=BASE.recipe.similarity, ks=(1, 5), every=2)}
# Different in every field that may differ, where the triplet loss has it.
RUNS = [
    BASE,
    BASE.replace(seed=4, margin=0.3, num_neighbors=1),
    BASE.replace(seed=5, num_neighbors=5, label_weight=0.3, margin=0.9),
    BASE.replace(attention_temperature=0.1, metric_weight=2.0),
    BASE.replace(learning_rate=3e-3, weight_decay=0.2),
]
# A margin that is set and one that is not are of two kinds.
RUNS = [run.replace(margin=1.0 if run.recipe.margin is None else run.recipe.margin) for run in RUNS]
ONE_DEVICE = jax.devices()[:1]


def alone(config, folder):
    """Losses and mean MAP by epoch of a run by itself."""
    with RunFolder(folder) as run_folder:
        run_training(config, DATA, run_folder)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    maps = {line["epoch"]: line["map_mean"] for line in lines if "map_mean" in line}
    return [line["loss"] for line in lines], maps


@pytest.fixture(scope="module")
def histories():
    return run_program(RUNS, DATA, PROBES, devices=ONE_DEVICE)


@pytest.mark.parametrize("number", range(len(RUNS)))
def test_a_run_of_a_program_is_the_run_by_itself(histories, tmp_path, number):
    losses, maps = alone(RUNS[number], tmp_path)
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
    base = BASE.replace(loss="margin", margin=0.25, epochs=2)
    runs = [base.replace(loss_parameters={"beta": beta}) for beta in (0.4, 0.9)]
    for run, history in zip(runs, run_program(runs, DATA, {}, devices=ONE_DEVICE), strict=True):
        losses, _ = alone(run, tmp_path / str(run.recipe.loss_parameters["beta"]))
        assert history.losses["loss"] == pytest.approx(losses, rel=1e-5)


def test_the_loss_of_other_rows_is_the_objective_of_their_outputs():
    rows = DATA.test  # 20 rows are one batch of 12
    probes = {"test": Probe(rows, with_loss=True)}
    runs = [run.replace(epochs=1, dropout=0.4) for run in RUNS[:3]]
    histories = run_program(runs, DATA, probes, devices=jax.devices()[:2])
    for run, history in zip(runs, histories, strict=True):
        state = init_state(run.recipe, num_classes=3, standardization=DATA.standardization)
        keys, model = run_keys(run.recipe.seed), build_model(run.recipe, 3)
        step = make_train_step(model, adam(run.recipe.learning_rate, 0.0), run.recipe.objective())
        order = epoch_order(keys, jnp.int32(0), 50)
        for number in range(4):
            chosen = order[12 * number : 12 * number + 12]
            state = jax.jit(step)(state, Batch(*(x[chosen] for x in DATA.train)), keys.dropout)
        order = jax.random.permutation(jax.random.key(0), 20)[:12]
        outputs = model.apply({"params": state.params}, rows.audio[order], rows.visual[order])
        expected, _ = run.recipe.objective()(*outputs, rows.labels[order])
        (report,) = history.reports["test"]["reports"]
        assert report["loss"] == pytest.approx(float(expected), rel=1e-4)


def test_devices_share_the_runs(histories):
    # Five runs on three devices: one place is filled up.
    shared = run_program(RUNS, DATA, PROBES, devices=jax.devices()[:3])
    assert len(shared) == len(RUNS)
    for actual, wanted in zip(shared, histories, strict=True):
        assert actual.losses["loss"] == pytest.approx(wanted.losses["loss"], rel=1e-5)
        of_both = [history.reports["test"]["reports"][-1] for history in (actual, wanted)]
        maps = [report["visual_to_audio"]["map"] for report in of_both]
        assert maps[0] == pytest.approx(maps[1], abs=1e-5)


def test_posteriors_rank_otherwise_than_cosines():
    probes = {
        "cosine": Probe(DATA.test),
        "posterior": Probe(DATA.test, similarity="posterior"),
    }
    (history,) = run_program([BASE], DATA, probes, devices=ONE_DEVICE)
    maps = {name: kept["reports"][-1]["mean"]["map"] for name, kept in history.reports.items()}
    assert maps["cosine"] != maps["posterior"]
    assert history.reports["cosine"]["epochs"] == [3]


class Stopped(Exception):
    pass


def stop_after(epoch):
    def on_epoch(now):
        if now == epoch:
            raise Stopped

    return on_epoch


def test_an_interrupted_program_goes_on_to_the_same_numbers(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "_SECONDS_BETWEEN_CHECKPOINTS", 0.0)
    folder = tmp_path / "program"
    begun = []
    whole = run_program(RUNS[:2], DATA, PROBES, devices=ONE_DEVICE)
    # The second stop comes between the measurement of epoch 2 and its checkpoint.
    for stop in (1, 2):
        with pytest.raises(Stopped):
            run_program(
                RUNS[:2],
                DATA,
                PROBES,
                folder=folder,
                devices=ONE_DEVICE,
                on_epoch=stop_after(stop + 1),
            )
    again = run_program(
        RUNS[:2], DATA, PROBES, folder=folder, devices=ONE_DEVICE, on_epoch=begun.append
    )
    assert begun == [3]
    assert again == whole


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
    tmp_path, monkeypatch, default_disposition, number, steps, epochs
):
    default_disposition(number)
    whole = run_program(RUNS[:2], DATA, PROBES, devices=ONE_DEVICE)
    handler = signal.getsignal(number)
    with monkeypatch.context() as patched:
        signalling(patched, number, steps)
        with pytest.raises(Interrupted, match=f"stopped by {number.name} .*same command resumes"):
            run_sweep(RUNS[:2], DATA, PROBES, folder=tmp_path, devices=ONE_DEVICE)
    assert signal.getsignal(number) is handler
    taken, run_steps = [], StackedRuns.run_steps

    def counting(program, state, num_steps):
        taken.append(int(state.step))
        return run_steps(program, state, num_steps)

    monkeypatch.setattr(StackedRuns, "run_steps", counting)
    progress = []
    again = run_sweep(
        RUNS[:2],
        DATA,
        PROBES,
        folder=tmp_path,
        devices=ONE_DEVICE,
        on_progress=lambda done, total: progress.append(done // 2),
    )
    assert progress == epochs
    assert taken[:1] == ([steps] if epochs else [])
    assert again == whole


def test_without_a_folder_a_signal_stops_a_program_and_says_so(monkeypatch):
    signalling(monkeypatch, signal.SIGTERM, 5)
    with pytest.raises(Interrupted, match=r"after 1 of 3 epochs .*no folder to be kept in"):
        run_program(RUNS[:2], DATA, PROBES, devices=ONE_DEVICE)


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
            run_program(RUNS[:2], DATA, PROBES, folder=tmp_path / "program", devices=ONE_DEVICE)
    begun = []
    run_program(
        RUNS[:2],
        DATA,
        PROBES,
        folder=tmp_path / "program",
        devices=ONE_DEVICE,
        on_epoch=begun.append,
    )
    assert begun == [2, 3]


def test_an_output_that_is_gone_costs_no_run(tmp_path):
    def show(done, total):
        raise BrokenPipeError

    (history,) = run_sweep(
        [BASE], DATA, PROBES, folder=tmp_path, devices=ONE_DEVICE, on_progress=show
    )
    assert len(history.losses["loss"]) == 3


def test_what_another_sweep_left_is_not_taken_over(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "_SECONDS_BETWEEN_CHECKPOINTS", 0.0)
    folder = tmp_path / "program"
    with pytest.raises(Stopped):
        run_program([BASE], DATA, PROBES, folder=folder, on_epoch=stop_after(3))
    begun = []
    other = BASE.replace(seed=9)
    run_program([other], DATA, PROBES, folder=folder, on_epoch=begun.append)
    assert begun == [1, 2, 3]


def test_a_sweep_trains_what_is_missing(tmp_path):
    progress = []
    first = run_sweep(RUNS[:2], DATA, PROBES, folder=tmp_path, devices=ONE_DEVICE)
    contrastive = BASE.replace(loss="contrastive")
    runs = [RUNS[1], contrastive, RUNS[0], contrastive]
    again = run_sweep(
        runs,
        DATA,
        PROBES,
        folder=tmp_path,
        devices=ONE_DEVICE,
        on_progress=lambda *counts: progress.append(counts),
    )
    assert progress == [(1, 3), (2, 3), (3, 3)]  # the epochs of one run
    assert [again[0], again[2]] == [first[1], first[0]]
    assert again[1] == again[3]
    assert again[1].losses["loss"] != again[0].losses["loss"]


@pytest.mark.parametrize("content", ["{", "[]", '{"name": {"losses": {}}}', '{"name": 3}'])
def test_a_damaged_file_of_histories_is_named(tmp_path, content):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(UserError, match=r"x.json is damaged .*remove it"):
        run_sweep([BASE], DATA, PROBES, folder=tmp_path)


def test_a_program_goes_on_with_other_devices(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "_SECONDS_BETWEEN_CHECKPOINTS", 0.0)
    whole = run_program(RUNS[:3], DATA, PROBES, devices=ONE_DEVICE)
    with pytest.raises(Stopped):
        # Three runs on two devices: one place is filled up, and not stored.
        run_program(
            RUNS[:3],
            DATA,
            PROBES,
            folder=tmp_path / "program",
            devices=jax.devices()[:2],
            on_epoch=stop_after(2),
        )
    begun = []
    again = run_program(
        RUNS[:3],
        DATA,
        PROBES,
        folder=tmp_path / "program",
        devices=ONE_DEVICE,
        on_epoch=begun.append,
    )
    assert begun == [2, 3]
    for actual, wanted in zip(again, whole, strict=True):
        assert actual.losses["loss"] == pytest.approx(wanted.losses["loss"], rel=1e-5)


def test_a_run_that_diverges_is_no_result(tmp_path):
    # After the first step parameters are about 1e38, and squares of what they give are infinite.
    broken = BASE.replace(epochs=2, batch_size=50, learning_rate=1e38, label_loss="squared")
    with pytest.raises(TrainingDiverged, match=r"of a run became (nan|inf) in epoch [12]"):
        run_sweep([broken], DATA, PROBES, folder=tmp_path, devices=ONE_DEVICE)
    assert not list(tmp_path.glob("*.json"))


def test_what_an_interrupted_sweep_left_is_cleared_away(tmp_path):
    (tmp_path / "partial-0123").mkdir()
    run_sweep([BASE], DATA, PROBES, folder=tmp_path, devices=ONE_DEVICE)
    assert [path.suffix for path in tmp_path.iterdir()] == [".json"]


def test_sweeps_that_share_a_folder_leave_each_others_beginnings(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "_SECONDS_BETWEEN_CHECKPOINTS", 0.0)
    later = [BASE.replace(seed=7), BASE.replace(seed=8)]
    run_sweep([BASE], DATA, PROBES, folder=tmp_path, devices=ONE_DEVICE)

    def stop(done, total):
        if done == 4:  # the second of three epochs of both
            raise Stopped

    with pytest.raises(Stopped):
        run_sweep(later, DATA, PROBES, folder=tmp_path, devices=ONE_DEVICE, on_progress=stop)
    run_sweep([BASE], DATA, PROBES, folder=tmp_path, devices=ONE_DEVICE)
    progress = []
    run_sweep(
        later,
        DATA,
        PROBES,
        folder=tmp_path,
        devices=ONE_DEVICE,
        on_progress=lambda done, total: progress.append(done),
    )
    assert progress == [4, 6]
    # Of runs that were trained in other programs meanwhile, the beginning is cleared away.
    with pytest.raises(Stopped):
        fresh = [run.replace(learning_rate=2e-3) for run in later]
        run_sweep(fresh, DATA, PROBES, folder=tmp_path, devices=ONE_DEVICE, on_progress=stop)
    run_sweep(fresh, DATA, PROBES, folder=tmp_path, devices=ONE_DEVICE, most_runs=1)
    assert not list(tmp_path.glob("partial-*"))


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
        run_program(runs, DATA, PROBES)


def test_a_run_that_diverges_is_named():
    # Cross-entropy stays finite at outputs of any size, their squares do not.
    base = BASE.replace(label_loss="squared")
    runs = [base, base.replace(learning_rate=1e30)]
    with pytest.raises(TrainingDiverged, match=r"became .* \(loss triplet, .*learning_rate 1e\+30"):
        run_program(runs, DATA, PROBES, devices=ONE_DEVICE)
