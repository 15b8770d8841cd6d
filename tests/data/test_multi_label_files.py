"""Feature files whose clips may have several classes."""

import numpy as np
import pytest
from feature_content import (
    MARKS,
    TEST_LABELS,
    TRAIN_LABELS,
    error_line,
    one_hot,
    one_table,
    six_keys,
    write,
)

from aadml_jax.data import load_feature_file, open_feature_file

MULTI_HOT_TRAIN = one_hot(TRAIN_LABELS) + one_hot((TRAIN_LABELS + 1) % 3)
MULTI_HOT_TEST = one_hot(TEST_LABELS)


@pytest.mark.parametrize("dtype", [bool, np.int8, np.float32])
@pytest.mark.parametrize("num_classes", [None, 3])
def test_rows_of_several_classes_are_read_where_asked_for(tmp_path, dtype, num_classes):
    labels = {"lab_train": MULTI_HOT_TRAIN.astype(dtype), "lab_test": MULTI_HOT_TEST.astype(dtype)}
    path = write(tmp_path / "clips.h5", six_keys() | labels)
    assert open_feature_file(path, multi_label=True).train.labels.dtype == bool
    dataset = load_feature_file(path, num_classes=num_classes, multi_label=True)
    assert (dataset.num_classes, dataset.is_multi_label) == (3, True)
    for rows, expected in ((dataset.train, MULTI_HOT_TRAIN), (dataset.test, MULTI_HOT_TEST)):
        assert rows.labels.dtype == bool
        np.testing.assert_array_equal(rows.labels, expected)


def test_a_table_of_several_classes_is_split_by_its_marks(tmp_path):
    content = one_table(MARKS)
    numbers = content["Label_ID"]
    labels = one_hot(numbers, 5) + one_hot(numbers + 1, 5)  # no row has class 4
    path = write(tmp_path / "table.h5", content | {"Label_ID": labels})
    dataset = load_feature_file(path, multi_label=True)
    np.testing.assert_array_equal(dataset.train.labels, labels[MARKS == b"1"])
    np.testing.assert_array_equal(dataset.test.labels, labels[MARKS == b"0"])
    assert dataset.num_classes == 5


DAMAGED_MULTI_HOT = {
    "class_numbers": ({"lab_train": TRAIN_LABELS}, ["lab_train must", "(9,)", "--multi_label out"]),
    "one_column": ({"lab_test": TEST_LABELS[:, None]}, ["lab_test must", "(4, 1)"]),
    "rank": ({"lab_train": np.ones((9, 2, 3))}, ["lab_train must", "(9, 2, 3)"]),
    "no_class": (
        {"lab_test": one_hot(TEST_LABELS) * [0, 1, 1]},
        ["lab_test: 1 of 4 rows have no class, first row 2", "at least one class"],
    ),
    "half": ({"lab_train": MULTI_HOT_TRAIN / 2}, ["lab_train: row 0 holds 0.5 for class 0"]),
    "widths": (
        {"lab_test": one_hot(TEST_LABELS, 4)},
        ["lab_train holds multi-hot rows of 3", "lab_test multi-hot rows of 4"],
    ),
    "length": ({"lab_test": MULTI_HOT_TEST[:3]}, ["audio_test has 4", "lab_test has 3"]),
}


@pytest.mark.parametrize("damage", DAMAGED_MULTI_HOT)
def test_damaged_rows_of_several_classes_are_named_in_one_line(tmp_path, damage):
    changes, words = DAMAGED_MULTI_HOT[damage]
    labels = {"lab_train": MULTI_HOT_TRAIN, "lab_test": MULTI_HOT_TEST}
    path = write(tmp_path / "damaged.h5", six_keys() | labels | changes)
    message = error_line(path, multi_label=True)
    for word in words:
        assert word in message


def test_several_classes_are_hinted_at_where_they_are_not_expected(tmp_path):
    labels = {"lab_train": MULTI_HOT_TRAIN, "lab_test": MULTI_HOT_TEST}
    path = write(tmp_path / "clips.h5", six_keys() | labels)
    message = error_line(path)
    assert "lab_train: row 0 is not one-hot (1, 0, 1); 9 of 9" in message
    assert message.endswith("for clips of several classes set --multi_label")
