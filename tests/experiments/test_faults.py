"""Whatever stops a run, the same command ends it with the bytes of an undisturbed one.

A run that is to be stopped has no end of its own to reach before. What it is compared with is
trained afterwards, to an epoch beyond the one at which it was stopped.

The long form is marked `full`; AADML_TEST_KILLS says how many kills it makes.
"""

import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from running import ROOT, final_state, flags_of, log_of, run, start, train, write_feature_file
from waiting import finish, wait_until

from aadml_jax.data import open_feature_file
from aadml_jax.data.tfds_builders import write_tfds_folder
from aadml_jax.errors import UserError
from aadml_jax.training.checkpoints import FOLDER

NUM_KILLS = int(os.environ.get("AADML_TEST_KILLS", 8))
ENDLESS = {"epochs": 10**6}
SETTINGS = {
    "eval_every": 4,
    "checkpoint_every": 1,
    "batch_size": 10,
    "steps_per_call": 1,
    "hidden_sizes": (16, 16),
    "learning_rate": 0.01,
    "tensorboard": False,
}


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    path = write_feature_file(tmp_path_factory.mktemp("data") / "features.h5")
    return {"dataset": "features", "features_file": str(path), **SETTINGS}


def start_training(folder, settings):
    return start("train", *flags_of({"workdir": folder, **settings}))


def assert_ends_undisturbed(folder, settings, other):
    """Goes on for two epochs, to what a run in another folder has after as many."""
    epochs = len(log_of(folder)) + 2
    for path in (folder, other):
        train(**settings, epochs=epochs, workdir=str(path))
    assert_same_end(folder, other)


def assert_same_end(folder, undisturbed):
    log, wanted = ((path / "metrics.jsonl").read_bytes() for path in (folder, undisturbed))
    assert log == wanted
    for leaf, wanted in zip(final_state(folder), final_state(undisturbed), strict=True):
        np.testing.assert_array_equal(leaf, wanted)


def kill(process):
    process.kill()
    _, errors = finish(process)
    assert process.returncode == -signal.SIGKILL, errors


def test_a_run_that_was_asked_to_stop_and_then_killed_ends_as_an_undisturbed_one(
    settings, tmp_path, capsys
):
    folder = tmp_path / "stopped"
    process = start_training(folder, settings | ENDLESS)
    wait_until(lambda: log_of(folder), process)
    with pytest.raises(UserError, match="in use by another process") as refused:
        train(**settings, epochs=9, workdir=str(folder))
    assert "\n" not in str(refused.value)
    process.send_signal(signal.SIGTERM)
    _, errors = finish(process)
    assert process.returncode == 1, errors
    assert errors.startswith("stopped by SIGTERM") and errors.endswith("same command resumes\n")
    assert errors.count("\n") == 1
    assert not (folder / "result.json").exists()

    count = len(log_of(folder))
    process = start_training(folder, settings | ENDLESS)
    wait_until(lambda: len(log_of(folder)) >= count + 2, process)
    kill(process)
    capsys.readouterr()
    assert_ends_undisturbed(folder, settings, tmp_path / "undisturbed")
    assert "resuming after" in capsys.readouterr().out


@pytest.mark.full
def test_kills_while_a_checkpoint_is_written(settings, tmp_path):
    folder = tmp_path / "killed"
    for _ in range(NUM_KILLS):
        count = len(log_of(folder))
        process = start_training(folder, settings | ENDLESS)
        wait_until(lambda count=count: len(log_of(folder)) > count, process)
        wait_until(lambda: any((folder / FOLDER).glob("*.orbax-checkpoint-tmp*")), process)
        kill(process)
    assert_ends_undisturbed(folder, settings, tmp_path / "undisturbed")


@pytest.mark.full
@pytest.mark.parametrize("rows", ["held", "streamed"])
def test_kills_at_random_moments(settings, tmp_path, rows):
    if rows == "streamed":
        pytest.importorskip("grain", reason="the extra 'stream' is not installed")
        write_tfds_folder(open_feature_file(settings["features_file"]), tmp_path)
        of_shards = {"dataset": "tfds:features", "data_dir": str(tmp_path), "input": "stream"}
        settings = {**of_shards, **SETTINGS}
    folder = tmp_path / "killed"
    moments = random.Random(0)
    for number in range(NUM_KILLS):
        process = start_training(folder, settings | ENDLESS)
        if number % 4:
            count = len(log_of(folder)) + moments.randrange(1, 4)
            wait_until(lambda count=count: len(log_of(folder)) >= count, process)
            time.sleep(moments.uniform(0, 0.1))  # to somewhere within an epoch
        else:
            time.sleep(moments.uniform(0, 4))  # to somewhere in the beginning, on most machines
        kill(process)
    assert_ends_undisturbed(folder, settings, tmp_path / "undisturbed")


@pytest.mark.full
def test_a_disk_that_fills_up_costs_nothing_that_was_saved(settings, tmp_path):
    # A limit on the size of files stands in for the full disk; the log is the file that grows.
    settings = {**settings, "eval_every": 40, "checkpoint_every": 10, "hidden_sizes": (4,)}
    settings["epochs"] = 80
    flags = tuple(flags_of({**settings, "compilation_cache": "off"}))
    undisturbed, folder = tmp_path / "undisturbed", tmp_path / "full"
    train(**settings, workdir=str(undisturbed))
    limit = (undisturbed / "metrics.jsonl").stat().st_size // 2
    program = (
        "import resource, runpy; "
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit})); "
        "runpy.run_module('experiments.train', run_name='__main__')"
    )
    limited = subprocess.run(
        [sys.executable, "-c", program, f"--workdir={folder}", *flags],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert limited.returncode == 1
    errors = limited.stderr
    assert "\nerror: a file cannot be written (" in f"\n{errors}"
    status, output, errors = run("train", f"--workdir={folder}", *flags)
    assert status == 0, errors
    assert "resuming after 30 of 80 epochs" in output or "resuming after 40 of" in output
    assert_same_end(folder, undisturbed)


def test_a_truncated_newest_checkpoint_is_told_and_passed_over(settings, tmp_path, capsys, caplog):
    folder = tmp_path / "damaged"
    train(**settings, epochs=3, workdir=str(folder))
    newest = max(
        (path for path in (folder / FOLDER).iterdir() if path.name.isdecimal()),
        key=lambda path: int(path.name),
    )
    for path in (newest / "state").rglob("*"):
        if path.is_file():
            os.truncate(path, path.stat().st_size // 2)
    train(**settings, epochs=5, workdir=str(folder))
    assert f"{FOLDER}/{newest.name} is damaged" in caplog.text
    assert "resuming after 2 of 5 epochs" in capsys.readouterr().out
    train(**settings, epochs=5, workdir=str(tmp_path / "undisturbed"))
    assert_same_end(folder, tmp_path / "undisturbed")
