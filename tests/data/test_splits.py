"""Folds and fractions: the same rows everywhere, every class in its due share."""

import collections
import dataclasses
import hashlib

import numpy as np
import pytest

from aadml_jax.data import (
    PairedFeatures,
    RetrievalDataset,
    StoredFeatures,
    keyed_order,
    representative_classes,
    rows_with_class_counts_of,
    stratified_folds,
    with_fold,
    with_test_group,
    with_train_fraction,
)
from aadml_jax.errors import UserError

RNG = np.random.default_rng(3)
# Rows of each class: none is a multiple of the folds.
CLASS_ROWS = (23, 7, 41, 12)


def dataset_of(class_rows=CLASS_ROWS, num_test=19):
    labels = RNG.permutation(np.repeat(np.arange(len(class_rows)), class_rows))
    # The first feature numbers the rows of both splits.
    audio = np.stack([np.arange(len(labels)), RNG.normal(size=len(labels))], axis=1)
    visual = RNG.normal(size=(len(labels), 5))
    cut = len(labels) - num_test
    train, test = (
        PairedFeatures(audio[rows], visual[rows], labels[rows], name=name)
        for name, rows in (("train", slice(cut)), ("test", slice(cut, None)))
    )
    posteriors = (RNG.dirichlet(np.ones(len(class_rows)), size=num_test),) * 2
    return RetrievalDataset("made", train, test, len(class_rows), "nowhere", posteriors)


def numbers(features):
    return features.take(slice(None)).audio[:, 0].astype(int).tolist()


def stored(features):
    """The same rows, read when they are taken."""

    def read(rows):
        assert (np.diff(rows) > 0).all()
        return features.audio[rows], features.visual[rows]

    return StoredFeatures(
        features.labels,
        features.audio_dim,
        features.visual_dim,
        read,
        np.arange(len(features)),
        features.name,
        random_access=True,
    )


def test_folds_part_all_rows_and_keep_their_order():
    dataset = dataset_of()
    tested = []
    for fold in range(5):
        split = with_fold(dataset, fold)
        train, test = numbers(split.train), numbers(split.test)
        assert sorted(train + test) == list(range(sum(CLASS_ROWS)))
        assert train == sorted(train) and test == sorted(test)
        assert split.test_posteriors is None and split.prepared is None
        tested += test
        all_labels = np.concatenate([dataset.train.labels, dataset.test.labels])
        np.testing.assert_array_equal(split.test.labels, all_labels[test])
    assert sorted(tested) == list(range(sum(CLASS_ROWS)))


def test_each_class_and_the_folds_themselves_are_even():
    labels = RNG.permutation(np.repeat(np.arange(4), CLASS_ROWS))
    folds = stratified_folds(labels, 5, seed=1)
    for number in range(4):
        counts = np.bincount(folds[labels == number], minlength=5)
        assert counts.max() - counts.min() <= 1
    assert sorted(np.bincount(folds)) == [16, 16, 17, 17, 17]


def test_the_numbers_of_vegas():
    # 28,103 clips: the folds that are reported differ by one row.
    folds = stratified_folds(RNG.integers(0, 10, 28_103), 5)
    assert sorted(np.bincount(folds)) == [5620, 5620, 5621, 5621, 5621]


def test_the_order_is_that_of_the_digests():
    keys = np.array([11, 0, 7, 300, 5])
    digests = [hashlib.blake2b(f"4 {key}".encode(), digest_size=8).hexdigest() for key in keys]
    expected = sorted(range(5), key=digests.__getitem__)
    assert keyed_order(keys, seed=4).tolist() == expected


def test_folds_never_change():
    # Runs of different machines and versions are compared by these rows.
    labels = np.array([0, 1, 0, 1, 1, 0, 2, 0, 1, 2, 2, 0])
    order = sorted(
        range(12), key=lambda row: hashlib.blake2b(f"0 {row}".encode(), digest_size=8).digest()
    )
    dealt = [row for number in range(3) for row in order if labels[row] == number]
    expected = np.empty(12, int)
    for turn, row in enumerate(dealt):
        expected[row] = turn % 5
    assert expected.tolist() == [3, 1, 2, 2, 0, 1, 0, 0, 3, 1, 4, 4]
    np.testing.assert_array_equal(stratified_folds(labels, 5), expected)
    assert (stratified_folds(labels, 5, seed=1) != expected).any()


def test_stored_rows_are_split_like_rows_in_memory():
    dataset = dataset_of()
    on_disk = dataclasses.replace(dataset, train=stored(dataset.train), test=stored(dataset.test))
    for fold in (0, 3):
        split, expected = with_fold(on_disk, fold), with_fold(dataset, fold)
        assert split.fingerprint() == expected.fingerprint()
        assert split.train.random_access
        rows = np.array([5, 60, 0, 31])
        np.testing.assert_array_equal(split.train.take(rows).visual, expected.train.visual[rows])


def test_a_class_without_a_training_row_is_refused():
    labels = np.array([1, 0, 2, 0, 2, 0, 2, 0, 2, 0, 2, 0, 2])
    train, test = (
        PairedFeatures(np.ones((len(part), 2)), np.ones((len(part), 3)), part)
        for part in (labels[:9], labels[9:])
    )
    alone = int(stratified_folds(labels, 5)[0])
    with pytest.raises(UserError, match="no training row has class 1"):
        with_fold(RetrievalDataset("made", train, test, 3, "nowhere"), alone)


def test_a_fold_without_rows_is_refused():
    dataset = dataset_of((2, 2), num_test=1)
    with pytest.raises(UserError, match="fold 4 of 4 rows is empty"):
        with_fold(dataset, 4)


def test_fold_numbers_are_checked():
    for fold in (-1, 5):
        with pytest.raises(ValueError, match="from 0 to 4"):
            with_fold(dataset_of(), fold)


@pytest.mark.parametrize("fraction", [0.05, 0.1, 0.5, 0.9])
def test_each_class_keeps_its_fraction(fraction):
    dataset = dataset_of()
    part = with_train_fraction(dataset, fraction)
    kept, all_rows = (collections.Counter(d.train.labels.tolist()) for d in (part, dataset))
    for number, count in all_rows.items():
        assert kept[number] == max(1, int(fraction * count + 0.5))
    assert numbers(part.train) == sorted(numbers(part.train))
    assert part.test is dataset.test and part.test_posteriors is dataset.test_posteriors
    assert part.prepared is None


def test_smaller_fractions_are_parts_of_larger_ones():
    dataset = dataset_of()
    parts = [set(numbers(with_train_fraction(dataset, f).train)) for f in (0.1, 0.3, 0.7)]
    assert parts[0] < parts[1] < parts[2]
    other = set(numbers(with_train_fraction(dataset, 0.3, seed=9).train))
    assert other != parts[1] and len(other) == len(parts[1])
    assert with_train_fraction(dataset, 1.0) is dataset


def test_fractions_are_checked():
    for fraction in (0.0, -0.5, 1.1):
        with pytest.raises(ValueError, match="above 0 and at most 1"):
            with_train_fraction(dataset_of(), fraction)


def test_clips_of_several_classes_are_dealt_by_their_rarest():
    labels = np.zeros((50, 4), bool)
    labels[:, 0] = True
    labels[:12, 1] = True
    labels[8:15, 2] = True
    labels[30:33, 3] = True
    labels = labels[RNG.permutation(50)]
    folds = stratified_folds(labels, 5)
    for number in range(4):
        counts = np.bincount(folds[representative_classes(labels) == number], minlength=5)
        assert counts.max() - counts.min() <= 1


def test_groups_are_on_one_side_each():
    dataset = dataset_of()
    groups = np.arange(83) % 4
    split = with_test_group(dataset, groups, test_group=2, left_out=(0,))
    everything = np.array(numbers(dataset.train) + numbers(dataset.test))
    assert numbers(split.test) == everything[groups == 2].tolist()
    assert numbers(split.train) == everything[(groups == 1) | (groups == 3)].tolist()
    assert split.test_posteriors is None
    own = dict(zip(numbers(dataset.test), dataset.test.labels.tolist(), strict=True))
    own |= dict(zip(numbers(dataset.train), dataset.train.labels.tolist(), strict=True))
    assert split.test.labels.tolist() == [own[number] for number in numbers(split.test)]


def test_groups_that_are_not_there_are_named():
    with pytest.raises(UserError, match=r"no row of nowhere is of group 7; the groups are 0, 1$"):
        with_test_group(dataset_of(), np.arange(83) % 2, test_group=1, left_out=(7,))
    with pytest.raises(ValueError, match=r"groups must be \[83\].*got \(5,\)"):
        with_test_group(dataset_of(), np.arange(5), test_group=1)


@pytest.mark.parametrize("groups", [np.arange(83) % 2 + 0.5, np.full(83, np.nan)])
def test_groups_are_whole_numbers(groups):
    with pytest.raises(ValueError, match="groups must be whole numbers"):
        with_test_group(dataset_of(), groups, test_group=1)


def test_one_fold_is_no_split():
    with pytest.raises(ValueError, match="num_folds must be at least 2, got 1"):
        stratified_folds(np.arange(6) % 2, 1)


def test_rows_are_chosen_with_the_class_counts_of_another_set():
    labels = RNG.permutation(np.repeat([0, 1, 2], [10, 4, 6]))
    rows = rows_with_class_counts_of(labels, np.array([2, 0, 0, 2, 0, 1, 1, 1, 1, 1, 1]))
    assert (np.diff(rows) > 0).all()
    assert np.bincount(labels[rows]).tolist() == [3, 4, 2]  # of class 1 there are but four
    assert rows.tolist() != rows_with_class_counts_of(labels, labels[rows], seed=1).tolist()
    multi_hot = np.zeros((20, 3), bool)
    multi_hot[np.arange(20), labels] = True
    assert rows_with_class_counts_of(multi_hot, multi_hot[rows]).tolist() == rows.tolist()


def test_no_group_is_tested_and_left_out():
    with pytest.raises(ValueError, match="test_group=1 is left out"):
        with_test_group(dataset_of(), np.arange(83) % 2, test_group=1, left_out=(1,))
    with pytest.raises(UserError, match="nowhere has no group left to train on"):
        with_test_group(dataset_of(), np.arange(83) % 2, test_group=1, left_out=(0,))
