"""Shards: a writing that stops goes on where it was, and only with the same data."""

import dataclasses
import errno
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import h5py
import numpy as np
import pytest
import tensorflow_datasets as tfds

from aadml_jax.data import PairedFeatures, RetrievalDataset, StoredFeatures, open_feature_file
from aadml_jax.data.readers.tfds_folders import open_tfds_folder
from aadml_jax.data.tfds_builders import write_tfds_folder
from aadml_jax.data.writers.feature_file import write_feature_file
from aadml_jax.data.writers.staging import stage
from aadml_jax.data.writers.summary import summarize
from aadml_jax.errors import UserError

HERE = pathlib.Path(__file__).parent
RNG = np.random.default_rng(5)
AUDIO_DIM, VISUAL_DIM = 3, 7
ROW_BYTES = 4 * (AUDIO_DIM + VISUAL_DIM)


class Source:
    """Rows of a storage that counts what is read and can break off."""

    def __init__(self, num_rows, seed=5):
        random = np.random.default_rng(seed)
        self.audio = random.normal(size=(num_rows, AUDIO_DIM)).astype(np.float32)
        self.visual = random.normal(size=(num_rows, VISUAL_DIM)).astype(np.float32)
        self.rows_read = []
        self.breaks_at = None

    def read(self, rows):
        if self.breaks_at is not None and self.breaks_at in rows:
            raise UserError("the source is gone")
        self.rows_read += rows.tolist()
        return self.audio[rows], self.visual[rows]

    def features(self, labels, name):
        return StoredFeatures(
            labels, AUDIO_DIM, VISUAL_DIM, self.read, np.arange(len(labels)), name
        )


@pytest.fixture
def small_shards(monkeypatch):
    """Several shards of few rows, which are not held in memory either."""
    monkeypatch.setattr("aadml_jax.data.writers.staging._HELD_BYTES", 0)
    monkeypatch.setattr("aadml_jax.data.writers.shards._SHARD_BYTES", 10 * ROW_BYTES)


def sources(num_train=50, num_test=20):
    labels = np.arange(num_train + num_test, dtype=np.int32) % 3
    train, test = Source(num_train), Source(num_test, seed=6)
    dataset = RetrievalDataset(
        "made",
        train.features(labels[:num_train], "train"),
        test.features(labels[num_train:], "test"),
        3,
        "a storage",
    )
    return train, test, dataset


def test_rows_come_back_from_the_shards(tmp_path, small_shards):
    train, test, dataset = sources()
    staged = stage(dataset, tmp_path / "x", "made")
    assert [len(staged.shards[split].paths) for split in ("train", "test")] == [5, 2]
    assert sum(staged.shards["train"].lengths) == 50
    again = staged.dataset
    np.testing.assert_array_equal(again.train.take(slice(None)).audio, train.audio)
    np.testing.assert_array_equal(again.test.take(slice(None)).visual, test.visual)


def test_an_interrupted_writing_goes_on(tmp_path, small_shards):
    train, _, dataset = sources()
    train.breaks_at = 33
    with pytest.raises(UserError, match="the source is gone"):
        stage(dataset, tmp_path / "x", "made")
    complete = sorted(
        path.name for path in (tmp_path / "x").glob("*-of-*") if "part" not in path.name
    )
    assert complete == [f"made-train.array_record-{n:05d}-of-00005" for n in range(3)]
    train.breaks_at, train.rows_read = None, []
    staged = stage(dataset, tmp_path / "x", "made")
    assert train.rows_read == list(range(30, 50))
    again = staged.dataset
    assert again.fingerprint() == dataset.fingerprint()
    assert not list((tmp_path / "x").glob("*.partial"))


@pytest.mark.parametrize("change", ["labels", "source", "file", "rows in memory"])
def test_shards_of_other_data_are_not_gone_on_with(tmp_path, small_shards, change):
    _, _, dataset = sources()
    file = tmp_path / "data"
    file.write_text("one")
    dataset = dataclasses.replace(dataset, source_files=(str(file),))
    if change == "rows in memory":
        dataset = dataset.loaded()
    folder = tmp_path / "x"
    first = stage(dataset, folder, "made").shards["train"].paths[0].read_bytes()
    train, _, other = sources()
    train.audio += 1
    other = dataclasses.replace(other, source_files=(str(file),))
    if change == "labels":
        labels = np.roll(dataset.train.labels, 1)
        other = dataclasses.replace(other, train=train.features(labels, "train"))
    elif change == "source":
        other = dataclasses.replace(other, source="another storage")
    elif change == "file":
        file.write_text("another")
    else:
        other = other.loaded()
    assert stage(other, folder, "made").shards["train"].paths[0].read_bytes() != first


def test_shards_of_which_it_cannot_be_told_whose_they_are_are_not_gone_on_with(
    tmp_path, small_shards
):
    train, _, dataset = sources()
    shards = stage(dataset, tmp_path / "x", "made").shards
    (tmp_path / "x" / "source.json").unlink()  # as a kill while the folder is removed may do
    train.audio += 1
    again = stage(dataset, tmp_path / "x", "made")
    np.testing.assert_array_equal(again.dataset.train.take(slice(None)).audio, train.audio)
    assert again.shards == shards


def test_a_torn_shard_is_written_again(tmp_path, small_shards):
    train, _, dataset = sources()
    path = stage(dataset, tmp_path / "x", "made").shards["train"].paths[2]
    path.write_bytes(path.read_bytes()[:-100])
    train.rows_read = []
    again = stage(dataset, tmp_path / "x", "made").dataset
    assert train.rows_read == list(range(20, 30))
    assert again.fingerprint() == dataset.fingerprint()


def test_a_spoilt_shard_is_told_and_not_kept(tmp_path, small_shards):
    _, _, dataset = sources()
    path = stage(dataset, tmp_path / "x", "made").shards["train"].paths[2]
    content = np.frombuffer(path.read_bytes(), np.uint8).copy()
    used = np.flatnonzero(content)
    content[used[len(used) // 2 :][:64]] ^= 255
    path.write_bytes(content.tobytes())
    with pytest.raises(UserError, match="what was written is discarded"):
        stage(dataset, tmp_path / "x", "made")
    assert stage(dataset, tmp_path / "x", "made").summary.fingerprint == dataset.fingerprint()


def test_prepared_rows_must_be_those_that_their_metadata_tell_of(tmp_path):
    _, _, dataset = sources()
    folder, _ = write_tfds_folder(dataset, tmp_path / "one")
    opened = open_tfds_folder(folder)
    path, _ = write_feature_file(opened, tmp_path / "again.h5")
    assert open_feature_file(path).fingerprint() == dataset.fingerprint()
    other = dataclasses.replace(opened, prepared=opened.prepared._replace(fingerprint=32 * "0"))
    with pytest.raises(UserError, match="does not hold the rows that its metadata tell of"):
        write_feature_file(other, tmp_path / "other.h5")


def test_a_conversion_of_shards_that_were_written_anew_starts_anew(tmp_path, small_shards):
    train, _, dataset = sources()
    folder, _ = write_tfds_folder(dataset, tmp_path)
    stage(open_tfds_folder(folder), tmp_path / "x", "made")
    shutil.rmtree(folder)
    train.audio += 1
    write_tfds_folder(dataset, tmp_path)
    again = stage(open_tfds_folder(folder), tmp_path / "x", "made")
    assert again.summary.fingerprint == dataset.fingerprint()


@pytest.mark.parametrize("step", [1, 5, 8, "info"])
def test_what_breaks_off_in_the_last_moments_costs_no_shard(
    tmp_path, small_shards, monkeypatch, step
):
    train, _, dataset = sources()
    calls = []
    link = os.link

    def breaks(*arguments, **keywords):
        calls.append(arguments)
        if step == "info" or len(calls) == step:
            raise KeyboardInterrupt
        return link(*arguments, **keywords)

    if step == "info":
        monkeypatch.setattr(tfds.core.DatasetInfo, "write_to_directory", breaks)
    else:
        monkeypatch.setattr(os, "link", breaks)
    if step == 8:  # there are only seven shards
        write_tfds_folder(dataset, tmp_path)
        assert len(calls) == 7
        return
    with pytest.raises(KeyboardInterrupt):
        write_tfds_folder(dataset, tmp_path)
    monkeypatch.undo()
    monkeypatch.setattr("aadml_jax.data.writers.shards._SHARD_BYTES", 10 * ROW_BYTES)
    train.rows_read = []
    folder, _ = write_tfds_folder(dataset, tmp_path)
    assert train.rows_read == []
    assert open_tfds_folder(folder).fingerprint() == dataset.fingerprint()
    assert sorted(path.name for path in folder.parent.iterdir()) == [".lock", "1.0.0"]


def test_file_systems_without_a_second_name_are_served(tmp_path, small_shards, monkeypatch):
    def refuses(*_):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuses)
    _, _, dataset = sources()
    folder, _ = write_tfds_folder(dataset, tmp_path)
    assert open_tfds_folder(folder).loaded().fingerprint() == dataset.fingerprint()


def test_the_same_data_are_written_to_the_same_bytes(tmp_path, small_shards):
    _, _, dataset = sources()
    one, two = (stage(dataset, tmp_path / name, "made").shards for name in "ab")
    for first, second in zip(one["train"].paths, two["train"].paths, strict=True):
        assert first.read_bytes() == second.read_bytes()


def multi_label_dataset():
    labels = RNG.random((30, 6)) < 0.3
    labels[np.arange(30), RNG.integers(0, 6, 30)] = True
    audio, visual = RNG.normal(size=(30, 3)), RNG.normal(size=(30, 5))
    train, test = (
        PairedFeatures(audio[rows], visual[rows], labels[rows])
        for rows in (slice(22), slice(22, None))
    )
    return RetrievalDataset("several", train, test, 6, "nowhere")


def test_clips_of_several_classes_are_kept(tmp_path):
    dataset = multi_label_dataset()
    folder, _ = write_tfds_folder(dataset, tmp_path)
    opened = open_tfds_folder(folder)
    assert opened.is_multi_label and opened.fingerprint() == dataset.fingerprint()
    np.testing.assert_array_equal(opened.test.labels, dataset.test.labels)
    for row, record in enumerate(tfds.builder_from_directory(folder).as_data_source(split="train")):
        assert list(record["labels"]) == np.flatnonzero(dataset.train.labels[row]).tolist()


def test_a_feature_file_is_written_and_read_again(tmp_path):
    for dataset in (sources()[2], multi_label_dataset()):
        several = dataset.is_multi_label
        path, summary = write_feature_file(dataset, tmp_path / f"{dataset.name}.h5")
        again = open_feature_file(path, multi_label=several)
        assert again.fingerprint() == dataset.fingerprint() == summary.fingerprint
        with pytest.raises(UserError, match="exists already; remove it"):
            write_feature_file(dataset, path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made.h5", "several.h5"]


def test_the_writing_of_a_feature_file_goes_on(tmp_path, small_shards):
    train, test, dataset = sources()
    test.breaks_at = 15
    with pytest.raises(UserError, match="the source is gone"):
        write_feature_file(dataset, tmp_path / "made.h5")
    assert not (tmp_path / "made.h5").exists()
    train.rows_read, test.breaks_at = [], None
    path, _ = write_feature_file(dataset, tmp_path / "made.h5")
    assert train.rows_read == []
    assert open_feature_file(path).fingerprint() == dataset.fingerprint()
    assert [path.name for path in tmp_path.iterdir()] == ["made.h5"]


def test_the_names_of_classes_are_kept(tmp_path):
    names = ("rain", "Zug", "à")
    dataset = dataclasses.replace(sources()[2], class_names=names)
    path, _ = write_feature_file(dataset, tmp_path / "made.h5")
    with h5py.File(path) as file:
        assert tuple(file["class_names"].asstr()) == names
    assert open_feature_file(path).class_names == names
    folder, summary = write_tfds_folder(dataset, tmp_path)
    assert tuple(tfds.builder_from_directory(folder).info.features["label"].names) == names
    assert open_tfds_folder(folder).class_names == names
    assert "Zug " in summary.table(names)
    with pytest.raises(ValueError, match="3 classes, got 2 names"):
        dataclasses.replace(dataset, class_names=names[:2])


@pytest.mark.full
def test_a_writing_that_is_killed_again_and_again_ends_as_an_undisturbed_one(tmp_path):
    # There are 70 shards, each of one read; none of the processes makes more than 20.
    code = (
        "import itertools, os, sys, time, aadml_jax.data.writers.shards as shards\n"
        "from test_shards import Source, sources\n"
        "from aadml_jax.data.tfds_builders import write_tfds_folder\n"
        "shards._SHARD_BYTES = 400\n"
        "read, count = Source.read, itertools.count(1)\n"
        "def told(*rows):\n"
        "    os.write(1, b'reads\\n')  # as prints are held back\n"
        "    time.sleep(0.01 if next(count) <= 20 else 1e6)\n"
        "    return read(*rows)\n"
        "Source.read = told\n"
        "write_tfds_folder(sources(500, 200)[2], sys.argv[1])\n"
    )
    command = [sys.executable, "-c", code]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path, str(HERE)])}
    random, counts = np.random.default_rng(0), []
    folder = tmp_path / "made" / "1.0.0"
    while not folder.exists():
        with subprocess.Popen(
            [*command, str(tmp_path)], env=environment, stdout=subprocess.PIPE
        ) as process:
            for _ in range(random.integers(1, 20)):
                process.stdout.readline()
            time.sleep(random.uniform(0, 0.02))  # to somewhere within the writing of a shard
            process.kill()
        assert process.returncode in (0, -signal.SIGKILL)
        staged = (tmp_path / "made" / "partial-1.0.0").glob("*-of-?????")
        counts.append(len(list(staged)))
    # No attempt could write all: later ones went on from what earlier ones had left.
    assert len(counts) > 3 and counts[0] < max(counts)
    opened = open_tfds_folder(folder)
    assert opened.fingerprint() == sources(500, 200)[2].fingerprint()
    assert dataclasses.replace(opened, prepared=None).fingerprint() == opened.fingerprint()


def test_a_summary_counts_what_is_there():
    audio = np.array([[0, 1], [2, 3], [0, 1], [4, 5], [0, 1], [2, 3], [9, -7]], float)
    visual = np.array([[1], [2], [1], [3], [1], [8], [4]], float)
    labels = np.array([0, 1, 1, 2, 0, 1, 2])
    train, test = (
        PairedFeatures(audio[rows], visual[rows], labels[rows])
        for rows in (slice(4), slice(4, None))
    )
    summary = summarize(RetrievalDataset("made", train, test, 3, "nowhere"))
    # Row 2 repeats row 0 with another label; test row 4 is row 0 as well, row 5 only half of row 1.
    assert (summary.train.duplicates, summary.test.duplicates, summary.shared_rows) == (1, 0, 1)
    assert summary.train.audio == (0, 16 / 8, 5) and summary.test.audio == (-7, 8 / 6, 9)
    assert summary.train.visual == (1, 7 / 4, 3) and summary.test.visual == (1, 13 / 3, 8)
    assert summary.train.class_rows.tolist() == [1, 2, 1]
    assert summary.test.class_rows.tolist() == [1, 1, 1]
    lines = [line.split() for line in summary.table(("a", "b", "c")).splitlines()]
    assert lines[1:6] == [
        ["rows", "4", "3"],
        ["classes", "3", "3"],
        ["missing", "0", "0"],
        ["duplicate", "rows", "1", "0"],
        ["shared", "rows", "1"],
    ]
    assert ["audio", "min/mean/max", "0", "/", "2", "/", "5", "-7", "/", "1.33", "/", "9"] in lines
    assert ["audio", "features", "2", "2"] in lines and ["visual", "features", "1", "1"] in lines
    assert lines[-2] == ["b", "2", "1"]
