"""What a process reads of a data set, and what it says of the whole."""

import dataclasses
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from aadml_jax.data import (
    PairedFeatures,
    PreparedFacts,
    RetrievalDataset,
    StoredFeatures,
    fit_standardization,
    standardize,
)
from aadml_jax.errors import UserError
from aadml_jax.training import local_data
from aadml_jax.training.local_data import (
    is_standardized_alike,
    load_local_data,
    nearly_constant_in_words,
    recorded_limit,
)
from aadml_jax.training.parallel import Placement

RNG = np.random.default_rng(0)


def paired(num_rows):
    labels = np.arange(num_rows) % 2
    return PairedFeatures(RNG.normal(size=(num_rows, 3)), RNG.normal(size=(num_rows, 2)), labels)


DATASET = RetrievalDataset("made", paired(9), paired(5), 2, "made here")


def stored(features, seen):
    """The same rows at every second place of a storage that writes down what is read."""

    def read(rows):
        seen.extend(rows.tolist())
        return features.audio[rows // 2], features.visual[rows // 2]

    return StoredFeatures(
        features.labels, 3, 2, read, rows=2 * np.arange(len(features)), name="stored"
    )


def processes(*devices_of_each):
    """A placement over devices of several processes, of which this is the first."""
    devices = [
        SimpleNamespace(process_index=number, platform="cpu")
        for number, count in enumerate(devices_of_each)
        for _ in range(count)
    ]
    return Placement(tuple(devices))


def test_one_process_holds_everything():
    data = load_local_data(DATASET)
    statistics = fit_standardization(DATASET.train)
    for batch, split in ((data.train, DATASET.train), (data.test, DATASET.test)):
        expected = standardize(split, statistics)
        np.testing.assert_array_equal(batch.audio, expected.audio)
        np.testing.assert_array_equal(batch.visual, expected.visual)
        np.testing.assert_array_equal(batch.labels, expected.labels)
    assert (data.num_train, len(data.test_labels), data.num_classes) == (9, 5, 2)
    assert data.description["fingerprint"] == DATASET.fingerprint()
    jax.tree.map(np.testing.assert_array_equal, data.standardization, statistics)


def test_stored_features_are_the_same_data():
    in_memory, on_disk = (
        load_local_data(dataset)
        for dataset in (
            DATASET,
            dataclasses.replace(
                DATASET, train=stored(DATASET.train, []), test=stored(DATASET.test, [])
            ),
        )
    )
    assert on_disk.description == in_memory.description
    jax.tree.map(np.testing.assert_array_equal, on_disk.train, in_memory.train)
    jax.tree.map(np.testing.assert_array_equal, on_disk.test, in_memory.test)


# 9 training rows on four devices are shares of 3, 3, 3 and 0; 5 test rows 2, 2, 1 and 0.
@pytest.mark.parametrize(("devices", "train", "test"), [((1, 3), 3, 2), ((2, 2), 6, 4)])
def test_a_process_reads_the_rows_of_its_own_devices(devices, train, test):
    seen_train, seen_test = [], []
    dataset = dataclasses.replace(
        DATASET, train=stored(DATASET.train, seen_train), test=stored(DATASET.test, seen_test)
    )
    data = load_local_data(dataset, processes(*devices), standardized=False)
    assert seen_train == list(range(0, 2 * train, 2))
    assert seen_test == list(range(0, 2 * test, 2))
    np.testing.assert_array_equal(data.train.audio, DATASET.train.audio[:train])
    np.testing.assert_array_equal(data.test.visual, DATASET.test.visual[:test])
    assert (data.num_train, len(data.test_labels)) == (9, 5)


def test_rows_are_shared_without_gap_or_overlap(monkeypatch):
    placement = processes(2, 1, 3)
    for num_rows in (1, 4, 6, 23, 24):
        owned = []
        for number in range(3):
            monkeypatch.setattr(jax, "process_index", lambda number=number: number)
            owned += range(num_rows)[placement.local_rows(num_rows)]
        assert owned == list(range(num_rows))


def test_a_process_without_rows_holds_none(monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    data = load_local_data(DATASET, processes(3, 1), standardized=False)
    assert [leaf.shape for leaf in data.train] == [(0, 3), (0, 2), (0,)]
    assert [leaf.shape for leaf in data.test] == [(0, 3), (0, 2), (0,)]


def test_rows_that_both_splits_hold_are_counted():
    assert load_local_data(DATASET).description["shared_rows"] == 0
    leaking = DATASET.test.take(slice(0, 3))
    audio = np.concatenate([DATASET.train.audio, leaking.audio])
    visual = np.concatenate([DATASET.train.visual, leaking.visual])
    train = PairedFeatures(audio, visual, np.arange(12) % 2)
    dataset = dataclasses.replace(DATASET, train=train)
    assert load_local_data(dataset).description["shared_rows"] == 3


def test_a_process_holds_the_classes_of_its_local_rows(monkeypatch):
    labels = {name: RNG.random((rows, 6)) < 0.3 for name, rows in (("train", 9), ("test", 5))}
    for rows in labels.values():
        rows[:, 0] |= ~rows.any(axis=1)
    splits = {
        name: stored(PairedFeatures(split.audio, split.visual, labels[name]), [])
        for name, split in (("train", DATASET.train), ("test", DATASET.test))
    }
    dataset = dataclasses.replace(DATASET, **splits, num_classes=6)
    data = load_local_data(dataset, processes(1, 3))
    np.testing.assert_array_equal(data.train.labels, labels["train"][:3])
    np.testing.assert_array_equal(data.test.labels, labels["test"][:2])
    np.testing.assert_array_equal(data.test_labels, labels["test"])
    assert data.train.labels.dtype == bool
    assert (data.description["multi_label"], data.description["num_classes"]) == (True, 6)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    data = load_local_data(dataset, processes(3, 1))
    assert [leaf.shape for leaf in data.train] == [(0, 3), (0, 2), (0, 6)]


def test_processes_compare_their_labels_and_their_kind(monkeypatch):
    told = []
    monkeypatch.setattr(local_data, "require_agreement", lambda values, _: told.append(values))
    one_hot = {
        name: dataclasses.replace(split, labels=np.eye(2, dtype=bool)[split.labels])
        for name, split in (("train", DATASET.train), ("test", DATASET.test))
    }
    load_local_data(DATASET)
    load_local_data(dataclasses.replace(DATASET, **one_hot))
    for name in ("training labels", "test labels", "kind of labels"):
        first, second = (values[f"the data of --dataset ({name})"] for values in told)
        assert first != second


def test_statistics_add_up_over_parts():
    # Two processes, played one after the other: what one adds is what the other has summed.
    train = PairedFeatures(
        RNG.normal(size=(9, 3)) + 5, RNG.normal(size=(9, 2)), DATASET.train.labels
    )
    parts = [train.take(slice(0, 4)), train.take(slice(4, 9))]
    whole = fit_standardization(train)

    def sums(part, totals):
        seen = []

        def sum_over_all(compute):
            seen.extend(compute())
            return totals[len(seen) - 2 : len(seen)] if totals else seen[-2:]

        return fit_standardization(part, 9, sum_over_all), seen

    added = [sums(part, None)[1] for part in parts]
    totals = [added[0][place] + added[1][place] for place in range(2)]
    for field, total in zip(("audio", "visual"), list(totals), strict=True):
        columns = [getattr(part, field).astype(np.float64) for part in parts]
        totals.append(sum(np.square(column - total / 9).sum(axis=0) for column in columns))
    for part in parts:
        statistics, _ = sums(part, totals)
        for actual, expected in zip(statistics, whole, strict=True):
            np.testing.assert_allclose(actual, expected, rtol=1e-6)


def with_far_rows():
    """Column 1 of the sound is nearly constant, column 2 constant, and a test row is far out."""
    audio = RNG.normal(size=(9, 3))
    audio[:, 1], audio[:, 2] = 255, 3
    audio[4, 1] += 1e-4
    train = PairedFeatures(audio, RNG.normal(size=(9, 2)), DATASET.train.labels)
    far = DATASET.test.audio.copy()
    far[2] = 1e6
    test = PairedFeatures(far, DATASET.test.visual, DATASET.test.labels)
    return dataclasses.replace(DATASET, train=train, test=test)


def test_what_is_left_out_and_limited_is_recorded_and_named():
    data = load_local_data(with_far_rows())
    recorded = {
        "limit": 5.0,
        "is_limited": True,
        "constant": {"audio": 1, "visual": 0},
        "nearly_constant": {"audio": [1], "visual": []},
    }
    assert data.description["standardization"] == recorded
    np.testing.assert_array_equal(data.test.audio[2], [5, 0, 0])
    assert nearly_constant_in_words(data.description) == "1 of the 3 audio features (column 1)"
    plain = load_local_data(DATASET).description
    assert nearly_constant_in_words(plain) is None
    assert not plain["standardization"]["is_limited"]
    untouched = load_local_data(with_far_rows(), standardized=False)
    assert untouched.description["standardization"] is None and untouched.limit is None
    assert nearly_constant_in_words(untouched.description) is None
    np.testing.assert_array_equal(untouched.test.audio[2], 1e6)


def test_facts_of_an_earlier_version_are_used_as_they_were():
    # Such facts divide a constant feature by 1, and limit nothing.
    dataset = with_far_rows()
    statistics = fit_standardization(dataset.train)
    statistics = statistics._replace(audio_scale=np.array([2, 1, 1], np.float32))
    facts = PreparedFacts("0" * 32, statistics, 0)
    data = load_local_data(dataclasses.replace(dataset, prepared=facts))
    np.testing.assert_allclose(data.test.audio[2], [5e5, 1e6, 1e6], rtol=1e-3)
    assert data.description["standardization"]["limit"] is None


def test_a_run_goes_on_only_where_its_rows_are_standardised_as_before():
    plain, far = load_local_data(DATASET).description, load_local_data(with_far_rows()).description
    bare = load_local_data(DATASET, standardized=False).description
    earlier = {key: value for key, value in plain.items() if key != "standardization"}
    assert recorded_limit(earlier) is None and recorded_limit(plain) == 5
    assert recorded_limit(bare) is None
    for recorded in (earlier, plain):
        assert is_standardized_alike(recorded, plain)
        assert not is_standardized_alike(recorded, far)
    assert is_standardized_alike(earlier, bare) and is_standardized_alike(bare, bare)
    assert not is_standardized_alike(plain, bare)
    streamed = plain["standardization"] | {"is_limited": None}
    assert not is_standardized_alike(earlier, plain | {"standardization": streamed})
    assert is_standardized_alike(plain, plain | {"standardization": streamed})


def test_a_failure_elsewhere_stops_this_process_too(monkeypatch):
    monkeypatch.setattr("aadml_jax.training.processes.allreduce_max", lambda number: 1)
    with pytest.raises(UserError, match="another process of this run cannot read its rows"):
        load_local_data(DATASET)


def test_the_own_failure_is_the_one_that_is_told():
    def read(rows):
        raise UserError("the disk is gone")

    dataset = dataclasses.replace(
        DATASET, train=dataclasses.replace(stored(DATASET.train, []), read=read)
    )
    with pytest.raises(UserError, match="the disk is gone"):
        load_local_data(dataset)
