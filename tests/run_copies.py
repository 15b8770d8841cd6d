"""A finished run in a few seconds, and copies of its folder that say something else."""

import dataclasses
import json
import shutil

from aadml_jax.data import SyntheticSpec, make_synthetic
from aadml_jax.training.config import TrainConfig, resolve
from aadml_jax.training.held_data import hold
from aadml_jax.training.loop import run_training
from aadml_jax.training.run_folder import RunFolder

_CONFIG = TrainConfig(
    epochs=3, eval_every=2, hidden_sizes=(4,), learning_rate=1e-2, tensorboard=False
)
_SPEC = SyntheticSpec(num_classes=3, audio_dim=7, visual_dim=6, train_size=20, test_size=10)


def train_a_little(folder):
    """Three epochs on generated data, evaluated in the last two."""
    config = dataclasses.replace(_CONFIG, workdir=str(folder))
    dataset = make_synthetic(_SPEC)
    with RunFolder(folder) as run_folder:
        run_training(resolve(config, len(dataset.train)), hold(dataset), run_folder)


def copy_run(source, folder, *, config=(), data=(), result=()):
    """Copies a run, without its checkpoints, with changes to its JSON files."""
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("checkpoints"))
    change_json(folder / "config.json", lambda stored: stored["config"].update(config))
    change_json(folder / "config.json", lambda stored: stored["data"].update(data))
    change_json(folder / "result.json", lambda stored: stored.update(result))
    return folder


def change_json(path, change):
    """Calls `change` on the content of a file, and writes it back."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
