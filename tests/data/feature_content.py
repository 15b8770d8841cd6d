"""Content of small feature files in both layouts, and what reading a damaged one says."""

import h5py
import numpy as np
import pytest

from aadml_jax.data import load_feature_file
from aadml_jax.errors import UserError

TRAIN_LABELS = np.array([2, 0, 1, 1, 0, 2, 2, 0, 1])
TEST_LABELS = np.array([1, 2, 0, 2])
MARKS = np.array([b"1", b"0", b"1", b"1", b"1", b"1", b"0", b"1"])


def six_keys(seed=0):
    random = np.random.default_rng(seed)
    return {
        "audio_train": random.normal(size=(9, 3)).astype(np.float32),
        "visual_train": random.normal(size=(9, 5)).astype(np.float32),
        "lab_train": TRAIN_LABELS,
        "audio_test": random.normal(size=(4, 3)).astype(np.float32),
        "visual_test": random.normal(size=(4, 5)).astype(np.float32),
        "lab_test": TEST_LABELS,
    }


def one_table(marks, seed=0, split_key="Split"):
    random = np.random.default_rng(seed)
    return {
        "audio_feat": random.normal(size=(8, 3)).astype(np.float32),
        "visual_feat": random.normal(size=(8, 5)).astype(np.float32),
        "Label_ID": np.array([0, 1, 2, 0, 1, 2, 0, 0]),
        split_key: marks,
    }


def write(path, content):
    with h5py.File(path, "w") as file:
        for key, value in content.items():
            if value is h5py.Group:
                file.create_group(key)
            else:
                file[key] = value
    return path


def one_hot(labels, num_classes=3):
    return np.eye(num_classes)[labels]


def error_line(path, **arguments):
    with pytest.raises(UserError) as raised:
        load_feature_file(path, **arguments)
    message = str(raised.value)
    assert "\n" not in message
    assert str(path) in message
    return message
