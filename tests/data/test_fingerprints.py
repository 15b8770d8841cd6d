"""Digests: of rows, of a whole data set, and of what its splits share."""

import dataclasses

import numpy as np
import pytest

from aadml_jax.data import PairedFeatures, RetrievalDataset, shared_rows

RNG = np.random.default_rng(0)


def clips(num_rows, labels):
    return PairedFeatures(RNG.normal(size=(num_rows, 3)), RNG.normal(size=(num_rows, 5)), labels)


def multi_hot(num_rows):
    labels = RNG.random((num_rows, 10)) < 0.3
    labels[np.arange(num_rows), np.arange(num_rows) % 10] = True
    return labels


DATASETS = {
    "class numbers": RetrievalDataset(
        "made", clips(11, np.arange(11) % 4), clips(7, np.arange(7) % 4), 4, "here"
    ),
    "multi-hot": RetrievalDataset(
        "made", clips(11, multi_hot(11)), clips(7, multi_hot(7)), 10, "here"
    ),
}


def test_names_and_sources_do_not_enter():
    for dataset in DATASETS.values():
        same = dataclasses.replace(dataset, name="other", source="elsewhere")
        assert dataset.fingerprint() == same.fingerprint()
        assert len(dataset.fingerprint()) == 32


@pytest.mark.parametrize("kind", DATASETS)
def test_any_feature_any_label_and_the_order_enter(kind):
    dataset = DATASETS[kind]
    seen = [dataset.fingerprint()]

    def add(split, rows):
        seen.append(dataclasses.replace(dataset, **{split: rows}).fingerprint())

    for split in ("train", "test"):
        rows = getattr(dataset, split)
        for field in ("audio", "visual"):
            array = getattr(rows, field).copy()
            array[2, 1] = np.nextafter(array[2, 1], np.float32(np.inf))
            add(split, dataclasses.replace(rows, **{field: array}))
        labels = rows.labels.copy()
        if kind == "multi-hot":
            # The last column lies in a byte of its own.
            for column in (0, 9):
                flipped = labels.copy()
                flipped[4, column] = ~flipped[4, column]
                add(split, dataclasses.replace(rows, labels=flipped))
        else:
            labels[4] = 3
            add(split, dataclasses.replace(rows, labels=labels))
        order = np.arange(len(rows))
        order[[1, 6]] = order[[6, 1]]
        add(split, rows.take(order))
        # Two labels change places, the features stay.
        add(split, dataclasses.replace(rows, labels=rows.labels[order]))
    assert len(seen) == len(set(seen)) == (13 if kind == "multi-hot" else 11)


def test_the_kind_of_labels_enters():
    numbers = DATASETS["class numbers"]
    one_hot = {
        split: dataclasses.replace(rows, labels=np.eye(4, dtype=bool)[rows.labels])
        for split, rows in (("train", numbers.train), ("test", numbers.test))
    }
    assert dataclasses.replace(numbers, **one_hot).fingerprint() != numbers.fingerprint()


def test_a_row_that_moves_to_the_other_split_changes_it():
    rows = clips(8, np.arange(8) % 2)
    seen = {
        RetrievalDataset(
            "made", rows.take(slice(0, cut)), rows.take(slice(cut, 8)), 2, "here"
        ).fingerprint()
        for cut in (3, 4, 5)
    }
    assert len(seen) == 3


def test_shapes_with_equal_bytes_are_told_apart():
    values = np.arange(24, dtype=np.float32)
    labels = np.array([0, 1, 0, 1])

    def fingerprint(audio_dim):
        audio, visual = np.split(values, [4 * audio_dim])
        rows = PairedFeatures(audio.reshape(4, -1), visual.reshape(4, -1), labels)
        return RetrievalDataset("x", rows, rows, 2, "here").fingerprint()

    assert fingerprint(2) != fingerprint(4)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([0, 1], "e3a24e0743705e69044513fdc410d2b4"),
        ([[True, False], [True, True]], "5bb5df0c893938718eb3eab16e979670"),
    ],
)
def test_it_is_stable_across_releases(labels, expected):
    # Stored in checkpoints: a new value here makes every older checkpoint refuse its own data.
    rows = PairedFeatures([[1.0, 2.0], [3.0, 4.0]], [[5.0], [6.0]], labels)
    assert RetrievalDataset("x", rows, rows, 2, "here").fingerprint() == expected


def test_row_digests_are_of_the_features_alone():
    rows = clips(6, [0, 1, 2, 0, 1, 2])
    digests = rows.row_digests()
    assert (digests.shape, digests.dtype) == ((6, 16), np.uint8)
    assert len(np.unique(digests, axis=0)) == 6
    relabelled = dataclasses.replace(rows, labels=rows.labels[::-1])
    np.testing.assert_array_equal(relabelled.row_digests(), digests)
    for field in ("audio", "visual"):
        array = getattr(rows, field).copy()
        array[3, 1] += 1
        differs = dataclasses.replace(rows, **{field: array}).row_digests() != digests
        assert differs.any(axis=1).tolist() == [False, False, False, True, False, False]


def test_shared_rows_are_those_of_equal_features():
    train = clips(9, np.arange(9) % 3)
    test = clips(7, np.arange(7) % 3)
    audio, visual = test.audio.copy(), test.visual.copy()
    for row, twin in ((1, 4), (2, 4), (6, 0)):
        audio[row], visual[row] = train.audio[twin], train.visual[twin]
    audio[3] = train.audio[5]  # only one side of a pair
    test = dataclasses.replace(test, audio=audio, visual=visual, labels=(test.labels + 1) % 3)
    assert shared_rows(train.row_digests(), test.row_digests()) == 3
    assert shared_rows(train.row_digests(), clips(7, np.zeros(7)).row_digests()) == 0
    assert shared_rows(train.row_digests(), train.row_digests()) == 9


def test_digests_with_trailing_zeros_are_no_shorter_ones():
    digests = np.zeros((3, 16), np.uint8)
    digests[1, 0] = digests[2, 1] = 7
    assert shared_rows(digests[:1], digests) == 1
    assert shared_rows(digests[1:], digests) == 2
