"""Clips of several classes: what is accepted, what is refused, what data sets allow."""

import numpy as np
import pytest

from aadml_jax.data import (
    PairedFeatures,
    RetrievalDataset,
    StoredFeatures,
    fit_standardization,
    standardize,
    with_class_balanced_rows,
)
from aadml_jax.errors import UserError

RNG = np.random.default_rng(0)


def multi_hot(num_rows, num_classes=4, seed=0):
    labels = np.random.default_rng(seed).random((num_rows, num_classes)) < 0.4
    labels[np.arange(num_rows), np.arange(num_rows) % num_classes] = True
    return labels


def clips(labels, name="clips"):
    num_rows = len(labels)
    audio, visual = RNG.normal(size=(num_rows, 3)), RNG.normal(size=(num_rows, 5))
    return PairedFeatures(audio, visual, labels, name=name)


def made(train_labels, test_labels, num_classes=4):
    splits = clips(train_labels, "train rows"), clips(test_labels, "test rows")
    return RetrievalDataset("made", *splits, num_classes, "here")


@pytest.mark.parametrize("dtype", [bool, np.uint8, ">i8", np.float16, np.float64])
def test_zeros_and_ones_of_any_kind_become_bool(dtype):
    labels = multi_hot(6)
    rows = clips(labels.astype(dtype))
    assert rows.labels.dtype == bool
    np.testing.assert_array_equal(rows.labels, labels)
    assert len(rows) == 6


def changed(index, value, dtype=np.float64):
    labels = multi_hot(6).astype(dtype)
    labels[index] = value
    return labels


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (changed((4, 2), 0.5), ["row 4 holds 0.5 for class 2"]),
        (changed((1, 3), np.nan), ["row 1 holds nan for class 3"]),
        (changed(([5, 2], [0, 1]), -1, np.int8), ["row 2 holds -1 for class 1"]),
        (changed([2, 4], 0), ["2 of 6 rows have no class, first row 2", "at least one class"]),
        (np.ones((6, 4), complex), ["complex128"]),
        (np.full((6, 4), "1"), ["<U1"]),
        (np.ones((6, 0)), ["is empty, shape (6, 0)"]),
        (np.ones((0, 4)), ["is empty, shape (0, 4)"]),
        (multi_hot(5), ["audio has 6", "labels has 5"]),
    ],
)
def test_damaged_labels_are_named_in_one_line(labels, words):
    with pytest.raises(UserError) as raised:
        PairedFeatures(np.ones((6, 3)), np.ones((6, 2)), labels, name="the clips")
    message = str(raised.value)
    assert "\n" not in message
    for word in ["the clips", *words]:
        assert word in message


def test_rows_keep_their_classes():
    labels = multi_hot(9)
    rows = clips(labels)
    chosen = np.array([7, 2, 2])
    np.testing.assert_array_equal(rows.take(chosen).labels, labels[chosen])
    np.testing.assert_array_equal([label for _, _, label in rows.rows()], labels)
    statistics = fit_standardization(rows)
    np.testing.assert_array_equal(standardize(rows, statistics).labels, labels)
    stored = StoredFeatures(
        labels, 3, 5, lambda at: (rows.audio[at], rows.visual[at]), np.arange(9), "stored"
    )
    for taken in (stored.take(chosen), stored.select(chosen)):
        np.testing.assert_array_equal(taken.labels, labels[chosen])


def test_a_data_set_knows_its_kind():
    assert made(multi_hot(11), multi_hot(7)).is_multi_label
    numbers = np.arange(11) % 4
    assert not made(numbers, numbers[:7]).is_multi_label


def test_classes_without_training_rows_are_allowed():
    labels = multi_hot(11)
    labels[:, 2] = False
    labels[:, 0] |= ~labels.any(axis=1)
    assert made(labels, multi_hot(7)).num_classes == 4


@pytest.mark.parametrize(
    ("train", "test", "words"),
    [
        (
            np.arange(11) % 4,
            multi_hot(7),
            ["train rows are class numbers", "test rows are multi-hot rows"],
        ),
        (
            multi_hot(11),
            np.arange(7) % 4,
            ["train rows are multi-hot rows", "test rows are class numbers"],
        ),
        (multi_hot(11), multi_hot(7, 5), ["test rows has 5 columns", "4 classes"]),
        (multi_hot(11, 3), multi_hot(7), ["train rows has 3 columns", "4 classes"]),
    ],
)
def test_splits_that_do_not_fit_are_named_in_one_line(train, test, words):
    with pytest.raises(UserError) as raised:
        made(train, test)
    message = str(raised.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_a_subset_keeps_rows_and_classes_together():
    dataset = made(multi_hot(30), multi_hot(20, seed=1))
    subset = with_class_balanced_rows(dataset, 9, 6)
    assert (len(subset.train), len(subset.test)) == (9, 6)
    for part, whole in ((subset.train, dataset.train), (subset.test, dataset.test)):
        places = [np.flatnonzero((whole.audio == row).all(axis=1))[0] for row in part.audio]
        np.testing.assert_array_equal(part.labels, whole.labels[places])
    assert subset.is_multi_label
