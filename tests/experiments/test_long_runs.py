"""Runs at their real size, and kills at random moments: minutes, hence marked `full`."""

import json
import os
import pathlib
import random
import resource
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from aadml_jax.data import load_dataset
from aadml_jax.data.tfds_folders import write_tfds_folder
from aadml_jax.objective import METRIC_LOSSES
from aadml_jax.training.loop import restore_for_evaluation

pytestmark = pytest.mark.full

ROOT = pathlib.Path(__file__).parents[2]
DIGITS = ROOT.parent / "shared" / "data" / "fsdd_mnist.h5"


def command(folder, *flags):
    return [sys.executable, "-m", "experiments.train", f"--workdir={folder}", *flags]


def train(folder, *flags):
    subprocess.run(command(folder, *flags), cwd=ROOT, check=True, capture_output=True)
    return json.loads((folder / "result.json").read_text())


def final_bytes(folder):
    stored = json.loads((folder / "config.json").read_text())
    _, state, _ = restore_for_evaluation(folder, stored, "latest")
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state)]


@pytest.mark.parametrize("placed", ["device", "stream"])
def test_kills_at_random_moments_change_nothing(tmp_path, placed):
    flags = ("--smoke", "--epochs=30", "--eval_every=2", "--checkpoint_every=1")
    if placed == "stream":
        pytest.importorskip("grain", reason="the extra 'stream' is not installed")
        write_tfds_folder(load_dataset("synthetic"), tmp_path)
        flags = (*flags, "--dataset=tfds:synthetic", f"--data_dir={tmp_path}", "--input=stream")
    started = time.monotonic()
    train(tmp_path / "undisturbed", *flags)
    length = time.monotonic() - started
    moments = random.Random(0)
    for _ in range(int(os.environ.get("AADML_TEST_KILLS", 8))):
        process = subprocess.Popen(
            command(tmp_path / "killed", *flags), cwd=ROOT, stdout=subprocess.DEVNULL
        )
        time.sleep(moments.uniform(0.2, 1.0) * length)
        process.kill()
        process.wait()
    train(tmp_path / "killed", *flags)
    assert final_bytes(tmp_path / "killed") == final_bytes(tmp_path / "undisturbed")
    logs = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in ("killed", "undisturbed")]
    assert logs[0] == logs[1]


def test_a_disk_that_fills_up_costs_nothing_that_was_saved(tmp_path):
    # The limit on a file's size stands in for the full disk; the log is the file that grows.
    flags = ("--smoke", "--epochs=40", "--eval_every=4", "--checkpoint_every=1", "--hidden_sizes=8")
    flags = (*flags, "--notensorboard", "--compilation_cache=off")
    train(tmp_path / "undisturbed", *flags)
    size = (tmp_path / "undisturbed" / "metrics.jsonl").stat().st_size
    folder = tmp_path / "full"
    run = subprocess.run(
        command(folder, *flags),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, size // 2)),
    )
    assert run.returncode == 1
    assert run.stderr.splitlines()[-1].startswith("error: a file cannot be written (")
    train(folder, *flags)
    assert final_bytes(folder) == final_bytes(tmp_path / "undisturbed")
    logs = [(run / "metrics.jsonl").read_bytes() for run in (folder, tmp_path / "undisturbed")]
    assert logs[0] == logs[1]


@pytest.mark.parametrize("loss", METRIC_LOSSES)
def test_every_loss_learns_to_retrieve(tmp_path, loss):
    # Without labels to hold on to, the hardest of many noisy triplets lead to collapse.
    label_weight = 1 if loss == "hard_triplet" else 0
    result = train(tmp_path, "--smoke", f"--loss={loss}", f"--label_weight={label_weight}")
    assert result["map"]["mean"] > 0.25 > 1.5 * result["chance"]


def test_the_default_run_lies_between_chance_and_reference(tmp_path):
    result = train(tmp_path)
    assert result["epochs"] == 60
    assert 0.6 < result["map"]["mean"] < result["bayes_reference"]
    assert result["map"]["mean"] > 5 * result["chance"]


@pytest.mark.skipif(not DIGITS.exists(), reason="the digits features are not beside the project")
def test_digits_beat_linear_cca(tmp_path):
    result = train(
        tmp_path, "--dataset=features", f"--features_file={DIGITS}", "--epochs=40"
    )  # fmt: skip
    # CCA with 10 components and ridge 0.1 reaches .622 and .644 on these features.
    assert result["map"]["audio_to_visual"] > 0.7
    assert result["map"]["visual_to_audio"] > 0.7


def test_bfloat16_retrieves_as_well_as_float32(tmp_path):
    runs = (train(tmp_path / name, f"--precision={name}") for name in ("float32", "bfloat16"))
    maps = [run["map"]["mean"] for run in runs]
    assert maps[0] == pytest.approx(maps[1], abs=0.005)
