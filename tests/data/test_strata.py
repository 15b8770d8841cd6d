"""The class that a clip counts for, and subsets that keep each class."""

import numpy as np
import pytest

from aadml_jax.data import class_balanced_rows, representative_classes, stratified_folds
from aadml_jax.errors import UserError


def test_a_class_number_stands_for_itself():
    labels = np.random.default_rng(0).integers(0, 5, 17)
    chosen = representative_classes(labels)
    assert chosen.dtype == np.int32
    np.testing.assert_array_equal(chosen, labels)


def test_a_clip_of_several_classes_stands_for_the_rarest():
    labels = np.array(
        [
            [1, 0, 1, 0],
            [1, 1, 0, 0],
            [1, 0, 0, 1],
            [0, 0, 1, 1],
            [1, 1, 1, 0],
        ],
        bool,
    )
    # The classes have 4, 2, 3 and 2 rows; 1 and 3 are equally rare.
    assert representative_classes(labels).tolist() == [2, 1, 3, 3, 1]
    labels[4, 3] = True
    # Now class 3 has 3 rows, as many as class 2.
    assert representative_classes(labels).tolist() == [2, 1, 3, 2, 1]


def test_representatives_equal_a_loop_over_clips():
    random = np.random.default_rng(1)
    labels = random.random((40, 7)) < random.random(7)
    labels[:, 6] |= ~labels.any(axis=1)
    labels[:, 2] = False  # a class without rows stands for nobody
    labels[:, 6] |= ~labels.any(axis=1)
    counts = labels.sum(axis=0)
    expected = [min(np.flatnonzero(row), key=lambda c: (counts[c], c)) for row in labels]
    chosen = representative_classes(labels)
    assert chosen.dtype == np.int32
    assert chosen.tolist() == expected
    assert len(set(expected)) > 2


def subset_rows(labels, max_rows):
    return class_balanced_rows(np.array(labels), max_rows, what="these rows").tolist()


def test_subset_takes_the_first_rows_of_each_class_in_file_order():
    labels = [2, 2, 0, 2, 2, 1, 0, 1, 2, 0]
    assert subset_rows(labels, 3) == [0, 2, 5]
    assert subset_rows(labels, 6) == [0, 1, 2, 5, 6, 7]
    assert subset_rows(labels, 7) == [0, 1, 2, 5, 6, 7, 9]
    # Class 1 has no third row, so class 2 takes what is left.
    assert subset_rows(labels, 9) == [0, 1, 2, 3, 4, 5, 6, 7, 9]
    assert subset_rows(labels, 99) == list(range(10))


def test_subset_that_loses_a_class_is_refused():
    with pytest.raises(UserError, match="2 rows cannot represent the 3 classes"):
        subset_rows([0, 1, 2, 0], 2)


def test_subset_of_several_classes_deals_to_the_rarest():
    labels = np.array(
        [[1, 0, 0], [1, 1, 0], [1, 0, 0], [1, 0, 0], [1, 0, 1], [0, 1, 0], [1, 0, 0]], bool
    )
    # They stand for 0, 1, 0, 0, 2, 1, 0.
    rows = class_balanced_rows(labels, 5, what="these rows")
    assert rows.tolist() == [0, 1, 2, 4, 5]
    assert class_balanced_rows(labels, 3, what="these rows").tolist() == [0, 1, 4]
    with pytest.raises(UserError, match="2 rows cannot represent the 3 classes of these rows"):
        class_balanced_rows(labels, 2, what="these rows")


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (np.array([[1], [0], [2]]), r"shape \(3, 1\).*labels\[:, 0\]"),
        (np.array([0.5, 1, 2]), "row 0 holds 0.5"),
        (np.array([0, 2**32 + 1, 2]), "row 1 holds 4294967297"),
        (np.array([0, -1, 2]), "row 1 holds -1"),
        (255 * np.eye(3), "row 0 holds 255"),
        (np.array([[True, False], [False, False]]), "1 of 2 rows have no class, first row 1"),
    ],
)
def test_labels_of_another_coding_are_refused(labels, words):
    for choose in (
        lambda: representative_classes(labels),
        lambda: class_balanced_rows(labels, 3, what="rows"),
        lambda: stratified_folds(labels, 2),
    ):
        with pytest.raises(UserError, match=words):
            choose()
