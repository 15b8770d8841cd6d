"""A world of three classes in which a whole run takes half a second, and what a folder holds."""

import json

import jax
import numpy as np

from aadml_jax.data import SyntheticSpec, identity_standardization, make_synthetic
from aadml_jax.training.checkpoints import Checkpoints
from aadml_jax.training.config import TrainConfig, config_from_json
from aadml_jax.training.local_data import load_local_data
from aadml_jax.training.loop import run_training
from aadml_jax.training.run_folder import RunFolder
from aadml_jax.training.setup import resolve
from aadml_jax.training.state import init_state
from aadml_jax.training.stored_runs import recorded_data

SPEC = SyntheticSpec(num_classes=3, audio_dim=8, visual_dim=12, train_size=50, test_size=20)
DATASET = make_synthetic(SPEC)
DATA = load_local_data(DATASET)
# Nearly all the time of a run goes into tracing and compiling its step, and most of that into the
# objective. Where it does not matter which, it is one of the simplest.
SIMPLE = {"loss": "contrastive", "anchor_aware": False}
SMALL = TrainConfig.of(
    epochs=4,
    batch_size=12,  # 4 steps an epoch, two rows left out
    eval_every=2,
    hidden_sizes=(16,),
    learning_rate=1e-2,
    tensorboard=False,
)


def train(folder, dataset=DATASET, placement=None, *, config=SMALL, **settings):
    """Runs a configuration with some settings changed, or goes on with it; returns the result."""
    config = config.replace(workdir=str(folder), **settings)
    with RunFolder(folder) as run_folder:
        data = load_local_data(dataset, placement, standardized=config.recipe.standardize)
        return run_training(resolve(config, len(dataset.train)), data, run_folder, placement)


def first_state(recipe):
    """The state of a run before its first step."""
    return init_state(recipe, num_classes=SPEC.num_classes, standardization=DATA.standardization)


def stored_config(folder):
    """The content of config.json."""
    return json.loads((folder / "config.json").read_text())


def restored(folder, which="latest"):
    """Whole state and progress of a checkpoint."""
    stored = stored_config(folder)
    data = recorded_data(stored)
    template = init_state(
        config_from_json(stored["config"]).recipe,
        num_classes=data["num_classes"],
        standardization=identity_standardization(data["audio_dim"], data["visual_dim"]),
    )
    with Checkpoints(folder, read_only=True) as checkpoints:
        if which == "latest":
            return checkpoints.restore_latest(template)
        return checkpoints.restore(checkpoints.best()[0], template)


def restored_bytes(folder, which="latest"):
    """The arrays of a checkpoint, and the number of its epoch."""
    state, progress = restored(folder, which)
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state)], progress.epoch


def log_of(folder):
    """The text of metrics.jsonl."""
    return (folder / "metrics.jsonl").read_text()


def logged(folder):
    """The lines of metrics.jsonl."""
    return [json.loads(line) for line in log_of(folder).splitlines()]
