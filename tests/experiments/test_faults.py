"""Whatever stops a run, the same command ends it with the bytes of an undisturbed one.

The long form is marked `full`; AADML_TEST_KILLS says how many kills it makes.
"""

import functools
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from running import ROOT, final_state, run, start, write_feature_file

from aadml_jax.data import open_feature_file
from aadml_jax.data.tfds_builders import write_tfds_folder
from aadml_jax.training.checkpoints import FOLDER
from aadml_jax.training.run_folder import RunFolder

NUM_KILLS = int(os.environ.get("AADML_TEST_KILLS", 8))
SETTINGS = (
    "--epochs=12",
    "--eval_every=4",
    "--checkpoint_every=1",
    "--batch_size=10",
    "--steps_per_call=1",
    "--hidden_sizes=16,16",
    "--learning_rate=0.01",
    "--notensorboard",
)


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    path = write_feature_file(tmp_path_factory.mktemp("data") / "features.h5")
    return ("--dataset=features", f"--features_file={path}", *SETTINGS)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, flags):
    folder = tmp_path_factory.mktemp("undisturbed")
    train(folder, flags)
    return folder


def train(folder, flags):
    status, output, errors = run("train", f"--workdir={folder}", *flags)
    assert status == 0, errors
    return output, errors


def assert_same_end(folder, undisturbed):
    log, wanted = ((run / "metrics.jsonl").read_bytes() for run in (folder, undisturbed))
    assert log == wanted
    for leaf, wanted in zip(final_state(folder), final_state(undisturbed), strict=True):
        np.testing.assert_array_equal(leaf, wanted)


def wait_until(process, happened):
    deadline = time.monotonic() + 200
    while not happened():
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.001)


def num_lines(folder):
    path = folder / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def has_lines(folder, count):
    return num_lines(folder) >= count


def is_writing_a_checkpoint(folder):
    return any((folder / FOLDER).glob("*.orbax-checkpoint-tmp*"))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_stopped_run_ends_as_an_undisturbed_one(flags, undisturbed, tmp_path, number):
    process = start("train", f"--workdir={tmp_path}", *flags)
    wait_until(process, lambda: num_lines(tmp_path) >= 2)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    if number == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
    else:
        assert process.returncode == 1, errors
        assert "stopped by SIGTERM" in errors and "the same command resumes" in errors
    assert not (tmp_path / "result.json").exists()
    train(tmp_path, flags)
    assert_same_end(tmp_path, undisturbed)


@pytest.mark.full
def test_kills_while_a_checkpoint_is_written(flags, undisturbed, tmp_path):
    folder, lines = tmp_path / "0", 0
    for number in range(NUM_KILLS):
        process = start("train", f"--workdir={folder}", *flags)
        # One epoch further each time.
        wait_until(process, functools.partial(has_lines, folder, lines + 1))
        wait_until(process, functools.partial(is_writing_a_checkpoint, folder))
        process.kill()
        process.communicate()
        lines = num_lines(folder)
        if lines > 8 or number == NUM_KILLS - 1:
            train(folder, flags)
            assert_same_end(folder, undisturbed)
            folder, lines = tmp_path / str(number + 1), 0


@pytest.mark.full
@pytest.mark.parametrize("rows", ["held", "streamed"])
def test_kills_at_random_moments(flags, tmp_path, rows):
    flags = (*flags, "--epochs=60", "--eval_every=4")
    if rows == "streamed":
        pytest.importorskip("grain", reason="the extra 'stream' is not installed")
        path = next(flag for flag in flags if flag.startswith("--features_file=")).split("=")[1]
        write_tfds_folder(open_feature_file(path), tmp_path)
        flags = (*flags[2:], "--dataset=tfds:features", f"--data_dir={tmp_path}", "--input=stream")
    started = time.monotonic()
    train(tmp_path / "undisturbed", flags)
    length = time.monotonic() - started
    moments = random.Random(0)
    for _ in range(NUM_KILLS):
        process = start("train", f"--workdir={tmp_path / 'killed'}", *flags)
        time.sleep(moments.uniform(0.2, 1.0) * length)
        process.kill()
        process.communicate()
    train(tmp_path / "killed", flags)
    assert_same_end(tmp_path / "killed", tmp_path / "undisturbed")


@pytest.mark.full
def test_a_disk_that_fills_up_costs_nothing_that_was_saved(flags, tmp_path):
    # A limit on the size of files stands in for the full disk; the log is the file that grows.
    flags = (*flags, "--epochs=80", "--eval_every=40", "--checkpoint_every=10", "--hidden_sizes=4")
    flags = (*flags, "--compilation_cache=off")
    undisturbed, folder = tmp_path / "undisturbed", tmp_path / "full"
    train(undisturbed, flags)
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
    output, _ = train(folder, flags)
    assert "resuming after 30 of 80 epochs" in output or "resuming after 40 of" in output
    assert_same_end(folder, undisturbed)


def test_a_truncated_newest_checkpoint_is_told_and_passed_over(flags, undisturbed, tmp_path):
    train(tmp_path, (*flags, "--epochs=6"))
    newest = max(
        (path for path in (tmp_path / FOLDER).iterdir() if path.name.isdecimal()),
        key=lambda path: int(path.name),
    )
    for path in (newest / "state").rglob("*"):
        if path.is_file():
            os.truncate(path, path.stat().st_size // 2)
    output, errors = train(tmp_path, flags)
    assert f"{FOLDER}/{newest.name} is damaged" in errors
    assert "resuming after 5 of 12 epochs" in output
    assert_same_end(tmp_path, undisturbed)


def test_a_second_trainer_in_the_folder_refuses_and_the_first_goes_on(flags, undisturbed, tmp_path):
    process = start("train", f"--workdir={tmp_path}", *flags)
    wait_until(process, lambda: num_lines(tmp_path) >= 1)
    process.send_signal(signal.SIGSTOP)  # so that it is not done before the second comes
    status, _, errors = run("train", f"--workdir={tmp_path}", *flags)
    process.send_signal(signal.SIGCONT)
    assert status == 2
    assert "in use by another process" in errors and errors.count("\n") == 1
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    assert_same_end(tmp_path, undisturbed)
    with RunFolder(tmp_path):
        pass  # and the folder is free again
