"""Binaries as functions, and started as a user starts them; small files to run them on."""

import contextlib
import json
import os
import pathlib
import subprocess
import sys

import h5py
import jax
import numpy as np
import pytest
from small_world import restored
from waiting import finish

from aadml_jax.data import SyntheticSpec, make_synthetic
from aadml_jax.training.config import TrainConfig
from aadml_jax.training.parallel import Placement
from experiments import evaluate as evaluate_binary
from experiments import train as train_binary

ROOT = pathlib.Path(__file__).parents[2]
STARTED = []
"""Processes of the test that runs; those that are left at its end are killed."""


def train(**given):
    """`experiments.train` with these settings, in this process; see `on_one_device`."""
    with on_one_device():
        return train_binary.run(TrainConfig.of(**given), frozenset(given))


def evaluate(**given):
    """`experiments.evaluate` with these options, in this process; see `on_one_device`."""
    with on_one_device():
        return evaluate_binary.run(evaluate_binary.Options(**given))


@contextlib.contextmanager
def on_one_device():
    """Lets the binaries take one device, as in a process of their own, where this one has eight."""

    def first_device(mode):
        return Placement(tuple(jax.devices()[:1]), mode)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(train_binary, "all_devices", first_device)
        patched.setattr(evaluate_binary, "all_devices", first_device)
        yield


def flags_of(settings):
    """The flags that say the same to a binary as these keyword arguments to its function."""
    for name, value in settings.items():
        if isinstance(value, bool):
            yield f"--{name}" if value else f"--no{name}"
        else:
            text = ",".join(map(str, value)) if isinstance(value, tuple) else value
            yield f"--{name}={text}"


def start(binary, *arguments, cwd=ROOT, **environment):
    """Starts a binary in a process of its own."""
    process = subprocess.Popen(
        [sys.executable, "-m", f"experiments.{binary}", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    STARTED.append(process)
    return process


def run(binary, *arguments, cwd=ROOT):
    """Runs a binary in a process to its end; returns exit status, output and errors."""
    process = start(binary, *arguments, cwd=cwd)
    output, errors = finish(process)
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


def log_of(folder):
    """The lines of a run's log so far."""
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def final_state(folder):
    """The arrays of a run's latest checkpoint."""
    state, _ = restored(folder)
    return [np.asarray(leaf) for leaf in jax.tree.leaves(state)]
