"""Runs at their real size: minutes, hence marked `full`."""

import json
import pathlib
import subprocess
import sys

import pytest

from aadml_jax.training.named_losses import NAMED_LOSSES

pytestmark = pytest.mark.full

ROOT = pathlib.Path(__file__).parents[2]
DIGITS = ROOT.parent / "shared" / "data" / "fsdd_mnist.h5"


def command(folder, *flags):
    return [sys.executable, "-m", "experiments.train", f"--workdir={folder}", *flags]


def train(folder, *flags):
    subprocess.run(command(folder, *flags), cwd=ROOT, check=True, capture_output=True)
    return json.loads((folder / "result.json").read_text())


@pytest.mark.parametrize("loss", NAMED_LOSSES)
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


@pytest.mark.skipif(not DIGITS.exists(), reason="the digits features are not beside the project")
def test_a_smoke_run_on_spoken_and_written_digits_learns(tmp_path):
    result = train(tmp_path, "--smoke", "--dataset=features", f"--features_file={DIGITS}")
    assert result["map"]["mean"] > 0.5


def test_bfloat16_retrieves_as_well_as_float32(tmp_path):
    runs = (train(tmp_path / name, f"--precision={name}") for name in ("float32", "bfloat16"))
    maps = [run["map"]["mean"] for run in runs]
    assert maps[0] == pytest.approx(maps[1], abs=0.005)
