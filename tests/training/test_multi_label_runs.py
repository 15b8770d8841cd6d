"""Whole runs on clips of several classes."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from aadml_jax.data import PairedFeatures, RetrievalDataset, SyntheticSpec, make_synthetic
from aadml_jax.training import stored_runs
from aadml_jax.training.config import TrainConfig
from aadml_jax.training.evaluation import chance_map
from aadml_jax.training.local_data import load_local_data
from aadml_jax.training.loop import run_training
from aadml_jax.training.parallel import Placement
from aadml_jax.training.run_folder import RunFolder
from aadml_jax.training.setup import resolve

SMALL = TrainConfig.of(
    epochs=4,
    batch_size=12,  # 4 steps an epoch, two rows left out
    eval_every=2,
    hidden_sizes=(16,),
    learning_rate=1e-2,
    tensorboard=False,
)
SINGLE = make_synthetic(
    SyntheticSpec(num_classes=3, audio_dim=8, visual_dim=12, train_size=50, test_size=20)
)


def several_classes():
    """Clips that sound and look like the sum of their one or two classes of four."""
    random = np.random.default_rng(0)
    directions = {"audio": random.normal(size=(4, 8)), "visual": random.normal(size=(4, 12))}

    def split(num_rows, name):
        labels = np.zeros((num_rows, 5), bool)  # nothing has class 4
        for row in range(num_rows):
            labels[row, random.choice(4, random.integers(1, 3), replace=False)] = True
        features = {
            field: labels[:, :4] @ directions[field]
            + 0.5 * random.normal(size=(num_rows, directions[field].shape[1]))
            for field in directions
        }
        return PairedFeatures(**features, labels=labels, name=name)

    return RetrievalDataset("several", split(50, "train"), split(21, "test"), 5, "made here")


SEVERAL = several_classes()


def one_hot(features):
    return dataclasses.replace(features, labels=np.eye(3, dtype=bool)[features.labels])


def train(folder, dataset, placement=None, **changes):
    config = SMALL.replace(workdir=str(folder), **changes)
    with RunFolder(folder) as run_folder:
        data = load_local_data(dataset, placement)
        return run_training(resolve(config, len(dataset.train)), data, run_folder, placement)


def restored_state(folder):
    stored = json.loads((folder / "config.json").read_text())
    return stored_runs.restore_for_evaluation(folder, stored, "latest")[1]


def as_bytes(folder):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(restored_state(folder))]


def log_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    return folder, train(folder, SEVERAL)


def test_the_shared_classes_are_found(undisturbed):
    folder, result = undisturbed
    assert result["chance"] == chance_map(SEVERAL.test.labels)
    assert result["map"]["mean"] > result["chance"] + 0.1
    assert result["bayes_reference"] is None
    losses = [line["loss"] for line in log_of(folder)]
    assert losses[-1] < losses[0]
    described = json.loads((folder / "config.json").read_text())["data"]
    assert (described["multi_label"], described["num_classes"]) == (True, 5)


def test_a_run_that_is_resumed_ends_with_the_same_bytes(undisturbed, tmp_path):
    folder, result = undisturbed
    train(tmp_path, SEVERAL, epochs=2)
    resumed = train(tmp_path, SEVERAL)
    assert as_bytes(tmp_path) == as_bytes(folder)
    assert log_of(tmp_path) == log_of(folder)
    assert resumed["map"] == result["map"]


def test_four_devices_end_where_one_does(undisturbed, tmp_path):
    folder, _ = undisturbed
    train(tmp_path, SEVERAL, Placement(tuple(jax.devices()[:4]), "pmap"))
    expected = jax.tree.leaves(restored_state(folder).params)
    for leaf, wanted in zip(
        jax.tree.leaves(restored_state(tmp_path).params), expected, strict=True
    ):
        assert np.linalg.norm(leaf - wanted) <= 1e-5 * np.linalg.norm(wanted)
    for line, wanted in zip(log_of(tmp_path), log_of(folder), strict=True):
        assert line == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("label_loss", ["squared", "cross_entropy"])
def test_clips_of_one_class_each_train_as_with_class_numbers(tmp_path, label_loss):
    rows = dataclasses.replace(SINGLE, train=one_hot(SINGLE.train), test=one_hot(SINGLE.test))
    as_numbers = train(tmp_path / "numbers", SINGLE, label_loss=label_loss)
    as_rows = train(tmp_path / "rows", rows, label_loss=label_loss)
    for name in ("map", "prefix_map", "recall_at_k", "precision_at_k", "bayes_reference_map"):
        assert as_rows[name] == pytest.approx(as_numbers[name], abs=1e-6)
    assert as_rows["chance"] == pytest.approx(as_numbers["chance"], rel=1e-12)
    for line, wanted in zip(log_of(tmp_path / "rows"), log_of(tmp_path / "numbers"), strict=True):
        assert line == pytest.approx(wanted, rel=1e-6)
