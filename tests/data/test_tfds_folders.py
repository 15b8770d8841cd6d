"""Folders of TFDS: what is written is read again, in any order, and damage is named."""

import dataclasses
import fcntl
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds

from aadml_jax.data import (
    PairedFeatures,
    RetrievalDataset,
    fit_standardization,
    open_dataset,
    reopen_dataset,
    with_class_balanced_rows,
)
from aadml_jax.data.readers.tfds_folders import newest_version, open_tfds_folder
from aadml_jax.data.tfds_builders import write_tfds_folder
from aadml_jax.errors import UserError

RNG = np.random.default_rng(0)


def paired(num_rows, name):
    return PairedFeatures(
        RNG.normal(size=(num_rows, 3)),
        RNG.normal(size=(num_rows, 200)),
        RNG.permutation(np.arange(num_rows) % 5),
        name=name,
    )


MADE = RetrievalDataset("made_here", paired(41, "train"), paired(11, "test"), 5, "nowhere")


@pytest.fixture
def folder(tmp_path):
    return write_tfds_folder(MADE, tmp_path / "sets")[0]


def test_what_is_written_is_read_again(folder, tmp_path):
    assert folder == tmp_path / "sets" / "made_here" / "1.0.0"
    dataset = open_tfds_folder(folder)
    assert (dataset.name, dataset.num_classes, dataset.source) == ("made_here", 5, str(folder))
    for actual, expected in ((dataset.train, MADE.train), (dataset.test, MADE.test)):
        np.testing.assert_array_equal(actual.labels, expected.labels)
        read = actual.take(slice(None))
        for field in ("audio", "visual", "labels"):
            np.testing.assert_array_equal(getattr(read, field), getattr(expected, field))
            assert getattr(read, field).dtype == getattr(expected, field).dtype


def test_known_posteriors_are_kept(folder, tmp_path):
    assert open_tfds_folder(folder).test_posteriors is None
    posteriors = tuple(RNG.dirichlet(np.ones(5), size=11) for _ in range(2))
    known, _ = write_tfds_folder(dataclasses.replace(MADE, test_posteriors=posteriors), tmp_path)
    for actual, expected in zip(open_tfds_folder(known).test_posteriors, posteriors, strict=True):
        np.testing.assert_array_equal(actual, expected)
    assert [path.name for path in tmp_path.iterdir() if path.name == "downloads"] == []


def test_rows_are_read_in_any_order(folder):
    rows = np.array([17, 3, 40, 0, 5])
    train = open_tfds_folder(folder).train
    for read in (train.take(rows), train.select(rows).take(slice(None))):
        np.testing.assert_array_equal(read.visual, MADE.train.visual[rows])
        np.testing.assert_array_equal(read.labels, MADE.train.labels[rows])
    assert train.random_access


def test_facts_are_those_of_the_source(folder):
    dataset = open_tfds_folder(folder)
    assert dataset.fingerprint() == dataset.prepared.fingerprint == MADE.fingerprint()
    assert dataset.prepared.shared_rows == 0
    # Measured anew, they are the same.
    anew = dataclasses.replace(dataset, prepared=None)
    assert anew.fingerprint() == MADE.fingerprint()
    for stored, measured in zip(
        dataset.prepared.standardization, fit_standardization(MADE.train), strict=True
    ):
        np.testing.assert_array_equal(stored, measured)
    assert with_class_balanced_rows(dataset, 10, 5).prepared is None


def test_a_folder_knows_which_features_are_nearly_constant(tmp_path):
    audio = MADE.train.audio.copy()
    audio[:, 1] = 4
    audio[7, 1] += 1e-5
    train = dataclasses.replace(MADE.train, audio=audio)
    folder, _ = write_tfds_folder(dataclasses.replace(MADE, train=train), tmp_path)
    prepared = open_tfds_folder(folder).prepared
    assert prepared.nearly_constant == ((1,), ())
    assert prepared.standardization.audio_scale[1] == 0
    assert prepared.limit == 5


def test_a_folder_of_an_earlier_version_keeps_its_statistics(folder):
    path = folder / "metadata.json"
    metadata = json.loads(path.read_text())
    for key in ("nearly_constant", "standardized_limit"):
        del metadata[key]
    path.write_text(json.dumps(metadata))
    prepared = open_tfds_folder(folder).prepared
    assert (prepared.nearly_constant, prepared.limit) == (((), ()), None)
    for stored, measured in zip(
        prepared.standardization, fit_standardization(MADE.train), strict=True
    ):
        np.testing.assert_array_equal(stored, measured)


def test_tfds_reads_the_folder_as_well(folder):
    builder = tfds.builder_from_directory(folder)
    source = builder.as_data_source(split="train")
    np.testing.assert_array_equal([row["audio"] for row in source], MADE.train.audio)
    np.testing.assert_array_equal([row["label"] for row in source], MADE.train.labels)
    assert builder.info.features["label"].num_classes == 5


def test_the_catalogue_finds_it_by_name(folder, tmp_path):
    dataset = open_dataset("tfds:made_here", data_dir=tmp_path / "sets")
    assert (dataset.name, dataset.source) == ("tfds:made_here", str(folder))
    assert reopen_dataset("tfds:made_here", dataset.source).fingerprint() == MADE.fingerprint()
    with pytest.raises(UserError, match="needs the folder that holds it; set --data_dir"):
        open_dataset("tfds:made_here")
    with pytest.raises(UserError, match=r"no data set \(there are .*sets: made_here\); .*=other"):
        open_dataset("tfds:other", data_dir=tmp_path / "sets")
    with pytest.raises(UserError, match=r"no data set .*--dataset=ave --data_dir=FOLDER --output"):
        open_dataset("tfds:ave", data_dir=tmp_path / "sets")
    with pytest.raises(UserError, match="nowhere does not exist; set it to a folder of data sets"):
        open_dataset("tfds:made_here", data_dir=tmp_path / "nowhere")
    for inside in (folder, folder.parent):
        with pytest.raises(UserError, match="is a data set itself; set it to the folder in which"):
            open_dataset("tfds:made_here", data_dir=inside)
    moved = tmp_path / "moved"
    shutil.copytree(tmp_path / "sets", moved)
    again = reopen_dataset("tfds:made_here", dataset.source, data_dir=moved)
    assert again.source == str(moved / "made_here" / "1.0.0")
    assert again.fingerprint() == MADE.fingerprint()
    for name in ("tfds:", "tfds:../made_here", "tfds:Made"):
        with pytest.raises(UserError, match="does not suit"):
            open_dataset(name, data_dir=tmp_path / "sets")


def test_the_newest_version_is_the_largest_number(tmp_path):
    for version in ("1.2.0", "1.10.0", "1.9.9", "backup"):
        (tmp_path / "x" / version).mkdir(parents=True)
        (tmp_path / "x" / version / "dataset_info.json").touch()
    (tmp_path / "x" / "2.0.0").mkdir()
    assert newest_version(tmp_path, "x", origin="x").name == "1.10.0"


def test_a_data_set_is_written_by_one_process_at_a_time(tmp_path):
    (tmp_path / "made_here").mkdir()
    with open(tmp_path / "made_here" / ".lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="is in use by another process"):
            write_tfds_folder(MADE, tmp_path)
    write_tfds_folder(MADE, tmp_path)


def test_a_second_writer_waits_until_the_folder_has_its_name(tmp_path, monkeypatch):
    write_info = tfds.core.DatasetInfo.write_to_directory

    def write_meanwhile(info, folder, **options):
        monkeypatch.undo()
        with pytest.raises(UserError, match="is in use by another process"):
            write_tfds_folder(MADE, tmp_path)
        write_info(info, folder, **options)

    monkeypatch.setattr(tfds.core.DatasetInfo, "write_to_directory", write_meanwhile)
    folder, _ = write_tfds_folder(MADE, tmp_path)
    assert open_tfds_folder(folder).loaded().fingerprint() == MADE.fingerprint()


def test_a_file_in_the_way_is_named(tmp_path):
    (tmp_path / "made_here").touch()
    with pytest.raises(UserError, match=r"made_here/1.0.0 cannot be written \(File exists\)"):
        write_tfds_folder(MADE, tmp_path)


def test_several_shards_keep_the_order(tmp_path, monkeypatch):
    monkeypatch.setattr("aadml_jax.data.writers.shards._SHARD_BYTES", 4 * 203 * 6)
    folder, _ = write_tfds_folder(MADE, tmp_path)
    assert len(list(folder.glob("*train*"))) == 7
    train = open_tfds_folder(folder).train
    rows = np.array([40, 0, 23, 22, 1])
    np.testing.assert_array_equal(train.take(rows).audio, MADE.train.audio[rows])
    np.testing.assert_array_equal(train.take(slice(None)).visual, MADE.train.visual)


def test_nothing_is_overwritten(folder, tmp_path):
    with pytest.raises(UserError, match="exists already; remove it"):
        write_tfds_folder(MADE, tmp_path / "sets")


@pytest.mark.parametrize("name", ["Made", "made-here", "../made", "", "2made"])
def test_names_that_do_not_suit_are_refused(tmp_path, name):
    with pytest.raises(UserError, match="does not suit"):
        write_tfds_folder(dataclasses.replace(MADE, name=name), tmp_path)


def test_an_interrupted_writing_leaves_nothing_that_counts(tmp_path, capsys):
    class Broken(PairedFeatures):
        def blocks(self):
            raise UserError("the source is gone")

    test = MADE.test
    broken = dataclasses.replace(MADE, test=Broken(test.audio, test.visual, test.labels))
    with pytest.raises(UserError, match="the source is gone"):
        write_tfds_folder(broken, tmp_path)
    with pytest.raises(UserError, match="holds no data set"):
        newest_version(tmp_path, "made_here", origin="made_here")
    leftover = tmp_path / "made_here" / "incomplete.ABCDEF_1.0.0"
    leftover.mkdir(parents=True, exist_ok=True)
    capsys.readouterr()
    assert write_tfds_folder(MADE, tmp_path)[0].is_dir()
    assert not leftover.exists()
    rows = len(MADE.train)
    assert f"going on behind an interruption, {rows} of {rows} rows" in capsys.readouterr().err


def record_file(folder):
    (path,) = folder.glob("*train.array_record*")
    return path


def cut_records(folder):
    content = record_file(folder).read_bytes()
    record_file(folder).write_bytes(content[: len(content) // 2])


def spoil_records(folder):
    content = np.frombuffer(record_file(folder).read_bytes(), np.uint8).copy()
    used = np.flatnonzero(content)  # the rest is filling
    content[used[len(used) // 2 :][:64]] ^= 255
    record_file(folder).write_bytes(content.tobytes())


def remove_records(folder):
    record_file(folder).unlink()


def edit_json(name, change):
    def edit(folder):
        content = json.loads((folder / name).read_text())
        change(content)
        (folder / name).write_text(json.dumps(content))

    return edit


DAMAGE = {
    "records cut": (cut_records, "train split of .* (opened|read)"),
    "records overwritten": (spoil_records, "train split of .* (opened|read)"),
    "records missing": (remove_records, "train split of .* (opened|read)"),
    "no fingerprint": (
        edit_json("metadata.json", lambda content: content.pop("fingerprint")),
        "does not say 'fingerprint'",
    ),
    "labels garbled": (
        edit_json("metadata.json", lambda content: content.update(train_labels="AAAA")),
        "is damaged",
    ),
    "constant columns of one modality": (
        edit_json("metadata.json", lambda content: content.update(nearly_constant=[[1]])),
        "is damaged",
    ),
    "posteriors of one modality": (
        edit_json(
            "metadata.json",
            lambda content: content.update(audio_test_posteriors=content["train_labels"]),
        ),
        "does not say 'visual_test_posteriors'",
    ),
    "no metadata": (lambda folder: (folder / "metadata.json").unlink(), "does not say"),
    "info garbled": (lambda folder: (folder / "dataset_info.json").write_text("{"), "is damaged"),
    "no info": (lambda folder: (folder / "dataset_info.json").unlink(), "holds no data set"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_named_in_one_line(folder, damage):
    spoil, message = DAMAGE[damage]
    spoil(folder)
    with pytest.raises(UserError, match=message) as caught:
        open_tfds_folder(folder).train.take(slice(None))
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_tensorflow_is_not_imported(folder):
    code = (
        "import sys; from aadml_jax.data.readers.tfds_folders import open_tfds_folder; "
        f"open_tfds_folder({str(folder)!r}).train.take([0]); assert 'tensorflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
