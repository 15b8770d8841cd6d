"""A finished run in a few seconds, and copies of its folder that say something else."""

import json
import shutil

import small_world

from aadml_jax.data import SyntheticSpec, make_synthetic
from aadml_jax.training.config import TrainConfig

_SPEC = SyntheticSpec(num_classes=3, audio_dim=7, visual_dim=6, train_size=20, test_size=10)
_CONFIG = TrainConfig.of(
    epochs=3, eval_every=2, hidden_sizes=(4,), learning_rate=1e-2, tensorboard=False
)


def train_a_little(folder):
    """Three epochs on generated data, evaluated in the last two."""
    small_world.train(folder, make_synthetic(_SPEC), config=_CONFIG)


def copy_run(source, folder, *, config=(), data=(), result=()):
    """Copies a run, without its checkpoints, with changes to its JSON files."""
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("checkpoints"))
    change_json(folder / "config.json", lambda stored: change_settings(stored, dict(config)))
    change_json(folder / "config.json", lambda stored: stored["data"].update(data))
    change_json(folder / "result.json", lambda stored: stored.update(result))
    return folder


def change_settings(stored, settings):
    """Sets settings of a stored configuration by their names, whatever part they are in."""
    parts = stored["config"]
    for name, value in settings.items():
        part = next((part for part in parts.values() if name in part), parts["recipe"])
        part[name] = value


def change_json(path, change):
    """Calls `change` on the content of a file, and writes it back."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
