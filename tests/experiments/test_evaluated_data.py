"""Which rows an evaluation ranks after the data of a run were moved, changed or replaced."""

import dataclasses

import h5py
import numpy as np
import pytest

from aadml_jax.data import open_dataset, open_feature_file
from aadml_jax.data.tfds_builders import write_tfds_folder
from aadml_jax.errors import UserError
from aadml_jax.training import setup
from aadml_jax.training.config import TrainConfig
from aadml_jax.training.local_data import load_local_data
from aadml_jax.training.setup import resolve
from experiments.evaluated_data import dataset_of_file, recorded_dataset

TRAIN_ROWS, TEST_ROWS = 330, 120


def write_features(path, *, num_classes=10, seed=0, rows=(TRAIN_ROWS, TEST_ROWS), changes=()):
    random = np.random.default_rng(seed)
    content = {}
    for split, count in zip(("train", "test"), rows, strict=True):
        content[f"audio_{split}"] = random.normal(size=(count, 3))
        content[f"visual_{split}"] = random.normal(size=(count, 5))
        content[f"lab_{split}"] = np.arange(count) % num_classes
    with h5py.File(path, "w") as file:
        file.update({**content, **dict(changes)})
    return path


def stored_for(dataset, /, **settings):
    """What a run's config.json holds, and the test rows of the run."""
    config = TrainConfig.of(**settings)
    own = setup.split(config.data, dataset)
    config = resolve(config, len(own.train))
    stored = {"config": dataclasses.asdict(config), "data": load_local_data(own).description}
    return stored, own.test.take(slice(None))


def stored_for_file(path, /, **settings):
    settings = {"dataset": "features", "features_file": str(path), **settings}
    dataset = open_feature_file(path, multi_label=settings.get("multi_label", False))
    return stored_for(dataset, **settings)


def assert_same_rows(split, wanted):
    rows = split.take(slice(None))
    for name in ("audio", "visual", "labels"):
        np.testing.assert_array_equal(getattr(rows, name), getattr(wanted, name))


SPLITS = [
    ({}, ""),
    ({"fold": 1}, ", fold 1"),
    ({"fold": 1, "split_seed": 3}, ", fold 1, split seed 3"),
    ({"train_fraction": 0.5}, ", fraction 0.5 of the training rows"),
    ({"smoke": True}, ""),
    ({"fold": 4, "train_fraction": 0.5, "smoke": True}, ", fold 4, fraction 0.5 of the training "
     "rows"),
]  # fmt: skip


@pytest.mark.parametrize(("settings", "words"), SPLITS)
def test_a_moved_file_gives_the_rows_of_the_run(tmp_path, settings, words):
    path = write_features(tmp_path / "file.h5")
    stored, wanted = stored_for_file(path, **settings)
    moved = path.rename(tmp_path / "moved.h5")
    with pytest.raises(UserError, match=r"file\.h5.*not exist any more; set --features_file to wh"):
        recorded_dataset(stored)
    dataset, split, warnings = dataset_of_file(stored, str(moved))
    assert (split, warnings, dataset.source) == (words, (), str(moved))
    assert_same_rows(dataset.test, wanted)


@pytest.mark.parametrize(("settings", "words"), SPLITS)
def test_another_file_gives_its_own_test_rows_without_the_words_of_the_run(
    tmp_path, settings, words
):
    path = write_features(tmp_path / "file.h5")
    stored, _ = stored_for_file(path, **settings)
    with h5py.File(path, "a") as file:
        file["visual_train"][:, 0] += 1
    with pytest.raises(UserError, match="does not hold the data of this run; to evaluate on it"):
        recorded_dataset(stored)
    dataset, split, warnings = dataset_of_file(stored, str(path))
    assert split == ""
    assert_same_rows(dataset.test, open_feature_file(path).test.take(slice(None)))
    assert len(dataset.test) == TEST_ROWS
    # Without folds a run is trained on training rows alone.
    assert len(warnings) == ("fold" in settings)
    for warning in warnings:
        assert f"not those of --fold={settings['fold']}" in warning
        assert words.strip(", ") not in warning


def test_a_file_that_is_too_small_for_the_split_of_the_run_gives_its_own_test_rows(tmp_path):
    stored, _ = stored_for_file(write_features(tmp_path / "file.h5"), fold=1)
    # Six rows of class 0 and one of class 1, the only one to train on.
    labels = {"lab_train": [0, 0, 0, 0, 1], "lab_test": [0, 0]}
    small = write_features(tmp_path / "small.h5", rows=(5, 2), changes=labels)
    dataset, split, _ = dataset_of_file(stored, str(small))
    assert (split, len(dataset.test)) == ("", 2)


def test_a_file_of_other_classes_is_ranked_with_a_warning(tmp_path):
    stored, _ = stored_for_file(write_features(tmp_path / "file.h5"))
    other = write_features(tmp_path / "other.h5", num_classes=7)
    dataset, _, (warning,) = dataset_of_file(stored, str(other))
    assert dataset.num_classes == 7
    assert "other.h5 has 7 classes, but the run learned 10" in warning


def test_a_moved_file_of_clips_of_several_classes_is_known_again(tmp_path):
    rng = np.random.default_rng(1)
    labels = {
        f"lab_{split}": np.eye(10)[np.arange(count) % 10] + np.eye(10)[rng.integers(10, size=count)]
        > 0
        for split, count in (("train", TRAIN_ROWS), ("test", TEST_ROWS))
    }
    path = write_features(tmp_path / "file.h5", changes=labels)
    stored, wanted = stored_for_file(path, fold=2, multi_label=True)
    assert_same_rows(recorded_dataset(stored).dataset.test, wanted)
    moved = path.rename(tmp_path / "moved.h5")
    dataset, split, _ = dataset_of_file(stored, str(moved))
    assert split == ", fold 2"
    assert_same_rows(dataset.test, wanted)


def test_a_moved_folder_of_published_features_is_named_by_data_dir_or_file(tmp_path):
    path = write_features(tmp_path / "ave_feature_norm.h5", num_classes=15)
    opened = open_dataset("ave", data_dir=tmp_path)
    stored, wanted = stored_for(opened, dataset="ave", data_dir=str(tmp_path), fold=0)
    again = recorded_dataset(stored).dataset
    assert (again.name, again.class_names[0]) == ("ave", "Clock")
    (tmp_path / "new").mkdir()
    moved = path.rename(tmp_path / "new" / path.name)
    with pytest.raises(UserError, match=r"not exist any more.* or --data_dir to the folder"):
        recorded_dataset(stored)
    for dataset, split, _ in (
        recorded_dataset(stored, str(tmp_path / "new")),
        dataset_of_file(stored, str(moved)),
    ):
        assert (split, dataset.class_names[0]) == (", fold 0", "Clock")
        assert_same_rows(dataset.test, wanted)


def test_a_moved_file_is_read_in_the_sizes_of_the_run(tmp_path):
    """A trailing axis of one and channels first, which only the sizes tell from a series."""
    random = np.random.default_rng(0)
    changes = {
        f"{name}_{split}": random.normal(size=(count, size, 1))
        for name, size in (("audio", 128), ("visual", 1024))
        for split, count in (("train", 30), ("test", 15))
    }
    path = tmp_path / "ave_feature_norm.h5"
    write_features(path, num_classes=15, rows=(30, 15), changes=changes)
    stored, wanted = stored_for(
        open_dataset("ave", data_dir=tmp_path), dataset="ave", data_dir=str(tmp_path)
    )
    assert wanted.audio.shape == (15, 128)
    assert_same_rows(
        dataset_of_file(stored, str(path.rename(tmp_path / "m.h5"))).dataset.test, wanted
    )
    other = write_features(
        tmp_path / "other.h5",
        num_classes=15,
        rows=(30, 15),
        changes={
            f"audio_{split}": random.normal(size=(count, 128, 7))
            for split, count in (("train", 30), ("test", 15))
        },
    )
    with pytest.raises(UserError, match=r"audio_train.*\(30, 128, 7\).*transpose"):
        dataset_of_file(stored, str(other))


def test_rows_that_were_prepared_are_known_again_in_shards_and_in_the_file(tmp_path):
    path = write_features(tmp_path / "file.h5")
    write_tfds_folder(dataclasses.replace(open_feature_file(path), name="mine"), tmp_path / "a")
    settings = {"dataset": "tfds:mine", "data_dir": str(tmp_path / "a"), "fold": 3}
    stored, wanted = stored_for(open_dataset("tfds:mine", data_dir=tmp_path / "a"), **settings)
    (tmp_path / "a").rename(tmp_path / "b")
    with pytest.raises(UserError, match="set --data_dir to the folder in which mine is now"):
        recorded_dataset(stored)
    for dataset, split, _ in (
        recorded_dataset(stored, str(tmp_path / "b")),
        dataset_of_file(stored, str(path)),
    ):
        assert split == ", fold 3"
        assert_same_rows(dataset.test, wanted)


@pytest.mark.parametrize(
    ("settings", "remedy"),
    [({"dataset": "features"}, "name the file itself by --features_file"), ({}, "leave it out")],
)
def test_a_folder_is_refused_where_the_data_are_in_none(tmp_path, settings, remedy):
    path = write_features(tmp_path / "file.h5")
    stored, _ = stored_for(open_feature_file(path), **settings)
    with pytest.raises(UserError, match=f"--data_dir=.* is not for --dataset=.*; {remedy}"):
        recorded_dataset(stored, str(tmp_path))
