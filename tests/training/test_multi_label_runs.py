"""Whole runs on clips of several classes."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
import small_world
from small_world import DATASET, SIMPLE, SMALL, logged, restored, restored_bytes, stored_config

from aadml_jax.data import PairedFeatures, RetrievalDataset
from aadml_jax.training.evaluation import chance_map
from aadml_jax.training.parallel import Placement

train = functools.partial(small_world.train, config=SMALL.replace(**SIMPLE))


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


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    return folder, train(folder, SEVERAL)


def test_the_shared_classes_are_found(undisturbed):
    folder, result = undisturbed
    assert result["chance"] == chance_map(SEVERAL.test.labels)
    assert result["map"]["mean"] > result["chance"] + 0.1
    assert result["bayes_reference"] is None
    losses = [line["loss"] for line in logged(folder)]
    assert losses[-1] < losses[0]
    described = stored_config(folder)["data"]
    assert (described["multi_label"], described["num_classes"]) == (True, 5)


def test_a_run_that_is_resumed_ends_with_the_same_bytes(undisturbed, tmp_path):
    folder, result = undisturbed
    train(tmp_path, SEVERAL, epochs=2)
    resumed = train(tmp_path, SEVERAL)
    assert restored_bytes(tmp_path) == restored_bytes(folder)
    assert logged(tmp_path) == logged(folder)
    assert resumed["map"] == result["map"]


def test_four_devices_end_where_one_does(undisturbed, tmp_path):
    folder, _ = undisturbed
    train(tmp_path, SEVERAL, Placement(tuple(jax.devices()[:4]), "pmap"))
    expected = jax.tree.leaves(restored(folder)[0].params)
    actual = jax.tree.leaves(restored(tmp_path)[0].params)
    for leaf, wanted in zip(actual, expected, strict=True):
        assert np.linalg.norm(leaf - wanted) <= 1e-5 * np.linalg.norm(wanted)
    for line, wanted in zip(logged(tmp_path), logged(folder), strict=True):
        assert line == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("label_loss", ["squared", "cross_entropy"])
def test_clips_of_one_class_each_train_as_with_class_numbers(tmp_path, label_loss):
    splits = {name: one_hot(getattr(DATASET, name)) for name in ("train", "test")}
    rows = dataclasses.replace(DATASET, **splits)
    as_numbers = train(tmp_path / "numbers", label_loss=label_loss)
    as_rows = train(tmp_path / "rows", rows, label_loss=label_loss)
    for name in ("map", "prefix_map", "recall_at_k", "precision_at_k", "bayes_reference_map"):
        assert as_rows[name] == pytest.approx(as_numbers[name], abs=1e-6)
    assert as_rows["chance"] == pytest.approx(as_numbers["chance"], rel=1e-12)
    for line, wanted in zip(logged(tmp_path / "rows"), logged(tmp_path / "numbers"), strict=True):
        assert line == pytest.approx(wanted, rel=1e-6)
