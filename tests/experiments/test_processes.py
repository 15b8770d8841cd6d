"""Several processes of one run on this machine, two devices each."""

import dataclasses
import json
import os
import random
import re
import shutil
import signal
import socket
import time

import h5py
import numpy as np
import pytest
import running
from running import final_state, flags_of, log_of
from waiting import finish, wait_until

from aadml_jax.data import SyntheticSpec, make_synthetic, open_feature_file
from aadml_jax.data.tfds_builders import write_tfds_folder
from aadml_jax.errors import UserError

NUM_KILLS = int(os.environ.get("AADML_TEST_KILLS", 4))
# Runs that are to be stopped have no end of their own to reach before.
ENDLESS = "--epochs=1000000"
WORDS_AT_THE_END = {
    -signal.SIGKILL: [""],
    1: ["the others stop with it"],
    2: ["the other processes cannot be joined"],
    -signal.SIGABRT: ["another task died", "leader task was preempted/died"],
}
# Threads of JAX's collectives on CPUs write "[Gloo] Rank 0 is connected to 1 peer ranks. Expected
# number of connected peer ranks is : 1" piece by piece, so that pieces and line ends may mix.
GLOO = re.compile(
    r"\[Gloo\] Rank |\d+| is connected to "
    r"| peer ranks\. Expected number of connected peer ranks is : "
)


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """A short run on a file, of which each process reads its rows."""
    spec = SyntheticSpec(train_size=301, test_size=99, audio_dim=12, visual_dim=16)
    dataset = make_synthetic(spec)
    path = tmp_path_factory.mktemp("data") / "features.h5"
    with h5py.File(path, "w") as file:
        for name, split in (("train", dataset.train), ("test", dataset.test)):
            file[f"audio_{name}"], file[f"visual_{name}"] = split.audio, split.visual
            file[f"lab_{name}"] = split.labels
    return {
        "dataset": "features",
        "features_file": str(path),
        "batch_size": 100,
        "epochs": 6,
        "eval_every": 3,
        "hidden_sizes": (16,),
        "learning_rate": 1e-3,
        "tensorboard": False,
    }


@pytest.fixture(scope="module")
def small(settings):
    """Its flags."""
    return tuple(flags_of(settings))


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(folder, *flags, num_processes=2, devices_each=2, own=((), ()), platforms=("cpu", "cpu")):
    """Starts the processes of a run; `own` holds the flags of one of them only."""
    join = (f"--coordinator_address=127.0.0.1:{free_port()}", f"--num_processes={num_processes}")
    return [
        running.start(
            "train",
            f"--workdir={folder}",
            *flags,
            *own[number],
            *((*join, f"--process_id={number}") if num_processes > 1 else ()),
            JAX_NUM_CPU_DEVICES=str(devices_each),
            JAX_PLATFORMS=platforms[number],
        )
        for number in range(num_processes)
    ]


def finish_all(processes):
    outputs = [finish(process) for process in processes]
    return [process.returncode for process in processes], outputs


def train(folder, *flags, **options):
    statuses, outputs = finish_all(start(folder, *flags, **options))
    assert statuses == [0] * len(statuses), outputs
    return outputs


def wait_for_lines(processes, folder, count):
    wait_until(lambda: len(log_of(folder)) >= count, *processes)


def assert_ends_undisturbed(folder, other, *flags):
    """Goes on for two epochs, to what a run in another folder has after as many."""
    flags = (*flags, f"--epochs={len(log_of(folder)) + 2}")
    (shown, _), _ = train(folder, *flags)
    assert "resuming after" in shown
    train(other, *flags)
    assert log_of(folder) == log_of(other)
    for leaf, wanted in zip(final_state(folder), final_state(other), strict=True):
        np.testing.assert_array_equal(leaf, wanted)


@pytest.fixture(scope="module")
def two_processes(small, tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    return folder, train(folder, *small)


def assert_same_run(folder, other):
    lines, others = log_of(folder), log_of(other)
    assert [line["step"] for line in lines] == [line["step"] for line in others]
    assert len(lines) == 6
    for line, wanted in zip(lines, others, strict=True):
        assert line == pytest.approx(wanted, rel=2e-4, abs=2e-4)
    results = (json.loads((run / "result.json").read_text())["map"] for run in (folder, other))
    assert next(results) == pytest.approx(next(results), abs=1e-3)


def test_two_processes_train_what_one_trains(two_processes, settings, tmp_path):
    folder, ((shown, _), (silent, _)) = two_processes
    running.train(**settings, workdir=str(tmp_path))
    assert_same_run(folder, tmp_path)
    assert "on 4 × cpu (jit)" in shown and "MAP" in shown
    assert GLOO.sub("", silent).strip() == ""


@pytest.mark.full
def test_a_killed_process_ends_the_others_and_the_rerun_resumes_exactly(small, tmp_path):
    folder, flags = tmp_path / "killed", (*small, "--checkpoint_every=1", "--steps_per_call=1")
    processes = start(folder, *flags, ENDLESS)
    wait_for_lines(processes, folder, 2)
    processes[1].kill()
    statuses, outputs = finish_all(processes)
    assert statuses[0] == 1, outputs
    assert "Start all of them again, and the run resumes" in outputs[0][1]
    assert not (folder / "result.json").exists()
    assert_ends_undisturbed(folder, tmp_path / "undisturbed", *flags)


def refused(folder, *flags, **options):
    """The last line of each process of a run that must not begin."""
    statuses, outputs = finish_all(start(folder, *flags, **options))
    assert statuses == [2, 2], outputs
    return [errors.splitlines()[-1] for _, errors in outputs]


def test_processes_with_different_flags_are_refused(small, tmp_path):
    for line in refused(tmp_path / "run", *small, own=((), ("--seed=1",))):
        assert line.startswith("error: --seed differs between the processes of this run; give all")
    assert not (tmp_path / "run").exists()


@pytest.mark.full
@pytest.mark.parametrize("launcher", ["slurm", "open_mpi"])
def test_processes_find_each_other_by_the_launchers_variables(
    two_processes, small, tmp_path, launcher
):
    number = random.randrange(10_000)
    common = {
        "slurm": {
            "SLURM_JOB_ID": str(number),
            "SLURM_STEP_NODELIST": "localhost",
            "SLURM_NTASKS": "2",
            "SLURM_STEP_NUM_NODES": "1",
        },
        "open_mpi": {
            "OMPI_MCA_orte_hnp_uri": f"{number << 16}.0;tcp://127.0.0.1:34911",
            "OMPI_COMM_WORLD_SIZE": "2",
        },
    }[launcher]
    names = {
        "slurm": ("SLURM_PROCID", "SLURM_LOCALID"),
        "open_mpi": ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK"),
    }[launcher]
    processes = [
        running.start(
            "train",
            f"--workdir={tmp_path}",
            *small,
            "--distributed",
            JAX_NUM_CPU_DEVICES="2",
            **common,
            **dict.fromkeys(names, str(process)),
        )
        for process in range(2)
    ]
    statuses, outputs = finish_all(processes)
    assert statuses == [0, 0], outputs
    assert log_of(tmp_path) == log_of(two_processes[0])


@pytest.mark.full
def test_processes_with_different_data_are_refused(small, tmp_path):
    path = next(flag for flag in small if flag.startswith("--features_file=")).split("=")[1]
    other = shutil.copy(path, tmp_path / "other.h5")
    with h5py.File(other, "r+") as file:
        file["lab_test"][...] = file["lab_test"][()][::-1]
    for line in refused(tmp_path / "run", *small, own=((), (f"--features_file={other}",))):
        assert "differs between the processes of this run; give all of them the same data" in line


@pytest.mark.full
def test_processes_with_different_folders_are_refused(small, tmp_path):
    for line in refused(tmp_path / "a", *small, own=((), (f"--workdir={tmp_path / 'b'}",))):
        assert "must be one folder that all processes of the run see" in line


@pytest.mark.full
def test_a_process_that_cannot_start_ends_the_others(small, tmp_path):
    processes = start(tmp_path, *small, platforms=("cpu", "cuda"))
    statuses, outputs = finish_all(processes)
    assert statuses[1] == 1, outputs
    assert "the others stop with it" in outputs[1][1]
    assert statuses[0] != 0


@pytest.mark.full
def test_one_process_keeps_the_profile_of_all(small, tmp_path):
    train(tmp_path, *small, "--profile")
    (trace,) = (tmp_path / "profile" / "plugins" / "profile").iterdir()
    assert len(list(trace.glob("*.xplane.pb"))) == 1


@pytest.mark.full
def test_a_damaged_checkpoint_is_passed_over_by_all(two_processes, small, tmp_path):
    flags = (*small, "--checkpoint_every=1")
    train(tmp_path, *flags, "--epochs=4")
    newest = max(int(path.name) for path in (tmp_path / "checkpoints").iterdir())
    for path in (tmp_path / "checkpoints" / str(newest) / "state").rglob("*"):
        if path.is_file():
            os.truncate(path, path.stat().st_size // 2)
    (shown, said), _ = train(tmp_path, *flags)
    assert f"checkpoints/{newest} is damaged" in said
    assert "resuming after 3 of 6 epochs" in shown
    assert log_of(tmp_path) == log_of(two_processes[0])


@pytest.mark.full
def test_kills_of_either_process_at_random_moments(small, tmp_path):
    folder, flags = tmp_path / "killed", (*small, "--checkpoint_every=1", "--steps_per_call=1")
    moments = random.Random(0)
    for number in range(NUM_KILLS):
        processes = start(folder, *flags, ENDLESS)
        if number % 4:
            wait_for_lines(processes, folder, len(log_of(folder)) + moments.randrange(1, 4))
            time.sleep(moments.uniform(0, 0.2))  # to somewhere within an epoch
        else:
            time.sleep(moments.uniform(0.5, 4))  # to somewhere in the beginning, on most machines
        killed = processes[moments.randrange(2)]
        killed.kill()
        # The other one may not have joined yet; and where process 0, which keeps them in touch, is
        # gone, JAX may be first to notice, and aborts.
        statuses, outputs = finish_all(processes)
        for status, (_, errors) in zip(statuses, outputs, strict=True):
            assert any(words in errors for words in WORDS_AT_THE_END[status]), (status, errors)
    assert_ends_undisturbed(folder, tmp_path / "undisturbed", *flags)


@pytest.mark.full
@pytest.mark.parametrize("number", [0, 1])
def test_a_signal_to_one_process_stops_all_with_the_state_saved(small, tmp_path, number):
    folder, flags = tmp_path / "stopped", (*small, "--steps_per_call=1")
    processes = start(folder, *flags, ENDLESS)
    wait_for_lines(processes, folder, 1)
    processes[number].terminate()
    statuses, outputs = finish_all(processes)
    assert statuses == [1, 1], outputs
    assert "stopped by SIGTERM" in outputs[0][1]
    assert_ends_undisturbed(folder, tmp_path / "undisturbed", *flags)


@pytest.mark.full
def test_pmap_runs_on_two_processes(two_processes, small, tmp_path):
    train(tmp_path, *small, "--parallel=pmap")
    assert_same_run(tmp_path, two_processes[0])


@pytest.mark.full
@pytest.mark.parametrize("mode", ["jit", "pmap"])
def test_processes_stream_what_they_would_hold(two_processes, small, tmp_path, mode):
    pytest.importorskip("grain", reason="the extra 'stream' is not installed")
    path = next(flag for flag in small if flag.startswith("--features_file=")).split("=")[1]
    dataset = dataclasses.replace(open_feature_file(path), name="mine")
    write_tfds_folder(dataset, tmp_path)
    flags = ("--dataset=tfds:mine", f"--data_dir={tmp_path}", "--input=stream", *small[2:])
    folder = tmp_path / "run"
    train(folder, *flags, f"--parallel={mode}")
    assert_same_run(folder, two_processes[0])


@pytest.mark.full
def test_checkpoints_move_between_layouts(two_processes, small, tmp_path):
    half = tuple(flag.replace("--epochs=6", "--epochs=3") for flag in small)
    train(tmp_path, *half, num_processes=1, devices_each=4)
    train(tmp_path, *small)
    assert_same_run(tmp_path, two_processes[0])
    other = tmp_path / "other"
    train(other, *half)
    train(other, *small, num_processes=1, devices_each=1)
    assert_same_run(other, two_processes[0])


def test_flags_of_processes_go_together(tmp_path):
    with pytest.raises(UserError, match="--process_id go together") as caught:
        running.train(num_processes=2, workdir=str(tmp_path / "run"))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()
