import dataclasses
from types import MappingProxyType

import h5py
import numpy as np
import pytest

from aadml_jax.data import (
    DATASETS,
    SYNTHETIC,
    make_synthetic,
    open_dataset,
    reopen_dataset,
)
from aadml_jax.data.readers import catalog as catalog_module
from aadml_jax.errors import UserError


def write_features(path, num_classes, seed=0):
    random = np.random.default_rng(seed)
    with h5py.File(path, "w") as file:
        for split, rows in (("train", 2 * num_classes + 1), ("test", num_classes)):
            file[f"audio_{split}"] = random.normal(size=(rows, 3))
            file[f"visual_{split}"] = random.normal(size=(rows, 5))
            file[f"lab_{split}"] = np.arange(rows) % num_classes
    return path


def error_line(*arguments, **keywords):
    with pytest.raises(UserError) as raised:
        open_dataset(*arguments, **keywords)
    message = str(raised.value)
    assert "\n" not in message
    return message


def test_catalog_describes_each_data_set():
    assert list(DATASETS) == [
        "synthetic",
        "synthetic_vegas",
        "vegas",
        "ave",
        "av_digits",
        "features",
    ]
    classes = {name: spec.num_classes for name, spec in DATASETS.items()}
    assert classes == {
        "synthetic": 10,
        "synthetic_vegas": 10,
        "vegas": 10,
        "ave": 15,
        "av_digits": 10,
        "features": None,
    }
    for name, spec in DATASETS.items():
        assert spec.default_epochs == (60 if name.startswith(("synthetic", "av_")) else 400)
        assert spec.description and spec.obtain
        assert len(spec.class_names) in (0, spec.num_classes)
    assert DATASETS["ave"].class_names.index("Rodents/rats") == 6
    with pytest.raises(TypeError):
        DATASETS["mine"] = DATASETS["ave"]


def test_generated_data_are_drawn(monkeypatch):
    tiny = dataclasses.replace(SYNTHETIC, visual_dim=20, train_size=40, test_size=30)
    spec = dataclasses.replace(DATASETS["synthetic_vegas"], synthetic=tiny)
    changed = MappingProxyType(dict(DATASETS) | {"synthetic_vegas": spec})
    monkeypatch.setattr(catalog_module, "DATASETS", changed)
    dataset = open_dataset("synthetic_vegas")
    assert dataset.name == "synthetic_vegas"
    assert dataset.fingerprint() == make_synthetic(tiny).fingerprint()


@pytest.mark.parametrize(
    ("name", "first", "second"),
    [
        ("vegas", "vegas_feature.h5", "vegas_feature_norm.h5"),
        ("ave", "ave_feature_norm.h5", "AVE_feature_updated_squence.h5"),
    ],
)
def test_published_files_are_found_in_order(tmp_path, monkeypatch, name, first, second):
    monkeypatch.setenv("HOME", str(tmp_path))
    num_classes = DATASETS[name].num_classes
    write_features(tmp_path / second, num_classes)
    dataset = open_dataset(name, data_dir=tmp_path)
    assert dataset.source == str(tmp_path / second)
    assert (dataset.name, dataset.num_classes) == (name, num_classes)
    write_features(tmp_path / first, num_classes, seed=1)
    assert open_dataset(name, data_dir="~").source == str(tmp_path / first)


def test_published_file_with_other_classes_is_refused(tmp_path):
    write_features(tmp_path / "vegas_feature.h5", 15)
    message = error_line("vegas", data_dir=tmp_path)
    assert "vegas_feature.h5: lab_train: row 10 holds class 10, but 10 classes" in message


def test_published_numbers_of_features_tell_the_axes(tmp_path):
    path = write_features(tmp_path / "vegas_feature.h5", 10)
    random = np.random.default_rng(0)
    with h5py.File(path, "r+") as file:
        rows = {split: len(file[f"lab_{split}"]) for split in ("train", "test")}
        behind = {split: random.normal(size=(count, 128, 1)) for split, count in rows.items()}
        for split, values in behind.items():
            del file[f"audio_{split}"]
            file[f"audio_{split}"] = values
    dataset = open_dataset("vegas", data_dir=tmp_path).loaded()
    np.testing.assert_array_equal(dataset.train.audio, behind["train"][:, :, 0].astype(np.float32))
    assert reopen_dataset("vegas", dataset.source).audio_dim == 128
    with h5py.File(path, "r+") as file:
        for split, count in rows.items():
            del file[f"visual_{split}"]
            file[f"visual_{split}"] = np.ones((count, 1024, 10))
    message = error_line("vegas", data_dir=tmp_path)
    assert "visual_train has shape" in message and "1024 features" in message
    assert "features.transpose(0, 2, 1)" in message


def test_broken_link_is_not_skipped(tmp_path):
    write_features(tmp_path / "vegas_feature_norm.h5", 10)
    (tmp_path / "vegas_feature.h5").symlink_to(tmp_path / "gone.h5")
    assert "vegas_feature.h5 does not exist" in error_line("vegas", data_dir=tmp_path)


def test_any_feature_file_is_read(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    path = write_features(tmp_path / "mine.h5", 4)
    dataset = open_dataset("features", features_file="~/mine.h5")
    assert (dataset.name, dataset.num_classes, dataset.source) == ("mine", 4, str(path))


def test_a_file_of_several_classes_is_opened_and_opened_again(tmp_path):
    path = write_features(tmp_path / "mine.h5", 4)
    with h5py.File(path, "r+") as file:
        for split in ("train", "test"):
            numbers = file[f"lab_{split}"][:]
            del file[f"lab_{split}"]
            file[f"lab_{split}"] = np.eye(4)[numbers] + np.eye(4)[(numbers + 1) % 4]
    opened = open_dataset("features", features_file=path, multi_label=True)
    assert opened.is_multi_label
    again = reopen_dataset("features", opened.source, multi_label=True)
    assert again.fingerprint() == opened.fingerprint()
    # What the run was told of its labels is not forgotten where a folder is given.
    with pytest.raises(UserError, match="does not use --multi_label"):
        reopen_dataset("vegas", opened.source, data_dir=tmp_path, multi_label=True)
    assert "set --multi_label" in error_line("features", features_file=path)
    assert opened.train.labels.sum(axis=1).tolist() == [2] * 9


@pytest.mark.parametrize(
    ("name", "hint"),
    [("vegass", "did you mean vegas?"), ("AVE", "did you mean ave?"), ("imagenet", "'imagenet';")],
)
def test_unknown_names_are_answered_with_the_known_ones(name, hint):
    message = error_line(name)
    assert hint in message
    assert "synthetic, synthetic_vegas, vegas, ave, av_digits, features" in message


@pytest.mark.parametrize("name", ["vegas", "ave"])
def test_missing_folders_are_answered_with_the_way_to_the_data(tmp_path, name):
    (tmp_path / "other.h5").touch()
    for message, culprit in (
        (error_line(name), f"data set {name} needs"),
        (error_line(name, data_dir=tmp_path / "gone"), f"{tmp_path / 'gone'} does not exist"),
        (error_line(name, data_dir=tmp_path / "other.h5"), "other.h5 is not a folder"),
        (error_line(name, data_dir=tmp_path), f"{tmp_path} (.h5 files there: other.h5)"),
    ):
        for word in (culprit, "ZenzenDatabase/CMR", "--data_dir", *DATASETS[name].file_names):
            assert word in message


@pytest.mark.parametrize(
    ("name", "flags", "culprit"),
    [
        ("features", {}, "--features_file"),
        ("features", {"features_file": "a.h5", "data_dir": "b"}, "--data_dir=b"),
        ("vegas", {"features_file": "a.h5", "data_dir": "b"}, "--features_file=a.h5"),
        ("synthetic", {"features_file": "a.h5"}, "--features_file=a.h5"),
        ("synthetic", {"data_dir": "b"}, "--data_dir=b"),
        ("synthetic", {"multi_label": True}, "does not use --multi_label; leave the flag out"),
        ("vegas", {"multi_label": True}, "does not use --multi_label; leave the flag out"),
        (
            "tfds:mine",
            {"multi_label": True},
            "does not use --multi_label: what was prepared tells by itself",
        ),
    ],
)
def test_flags_that_do_not_fit_are_named(name, flags, culprit):
    message = error_line(name, **flags)
    assert culprit in message
    assert f"data set {name} " in message
