"""Binaries started as a user starts them, and small files to start them on."""

import json
import os
import pathlib
import subprocess
import sys

import h5py
import jax
import numpy as np

from aadml_jax.data import SyntheticSpec, make_synthetic
from aadml_jax.training.stored_runs import restore_for_evaluation

ROOT = pathlib.Path(__file__).parents[2]


def start(binary, *arguments, cwd=ROOT):
    return subprocess.Popen(
        [sys.executable, "-m", f"experiments.{binary}", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(binary, *arguments, cwd=ROOT):
    """Runs a binary to its end; returns exit status, output and errors."""
    process = start(binary, *arguments, cwd=cwd)
    output, errors = process.communicate(timeout=240)
    return process.returncode, output, errors


def write_feature_file(path, seed=0, audio_dim=8):
    spec = SyntheticSpec(
        num_classes=3, audio_dim=audio_dim, visual_dim=12, train_size=50, test_size=20, seed=seed
    )
    dataset = make_synthetic(spec)
    with h5py.File(path, "w") as file:
        for split, rows in (("train", dataset.train), ("test", dataset.test)):
            file[f"audio_{split}"] = rows.audio
            file[f"visual_{split}"] = rows.visual
            file[f"lab_{split}"] = rows.labels + 1
    return path


def final_state(folder):
    """The arrays of a run's latest checkpoint."""
    stored = json.loads((folder / "config.json").read_text())
    _, state, _ = restore_for_evaluation(folder, stored, "latest")
    return [np.asarray(leaf) for leaf in jax.tree.leaves(state)]
