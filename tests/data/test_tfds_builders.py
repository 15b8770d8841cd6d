"""The registered builders, used as users of TFDS use them."""

import gzip
import hashlib
import io
import pathlib
import struct
import wave
import zipfile

import h5py
import numpy as np
import pytest
import tensorflow_datasets as tfds

from aadml_jax.data import DATASETS, open_dataset, open_feature_file
from aadml_jax.data.readers import av_digits
from aadml_jax.data.readers.av_digits import FILE_NAMES
from aadml_jax.data.writers import tfds_builders
from aadml_jax.errors import UserError

RNG = np.random.default_rng(8)


def write_published(path, num_classes, dims=(128, 1024)):
    with h5py.File(path, "w") as file:
        for split, count in (("train", 2 * num_classes + 1), ("test", num_classes + 2)):
            for field, dim in zip(("audio", "visual"), dims, strict=True):
                file[f"{field}_{split}"] = RNG.normal(size=(count, dim)).astype(np.float32)
            file[f"lab_{split}"] = np.arange(count) % num_classes + 1
    return path


def config_of(folder):
    return tfds.download.DownloadConfig(manual_dir=folder)


@pytest.mark.parametrize("name", ["vegas", "ave"])
def test_published_files_become_data_sets_of_tfds(tmp_path, name):
    spec = DATASETS[name]
    manual = tmp_path / "manual"
    manual.mkdir()
    path = write_published(manual / spec.file_names[-1], spec.num_classes)
    source = tfds.data_source(
        name,
        split="train",
        data_dir=tmp_path,
        download=True,
        download_and_prepare_kwargs={"download_config": config_of(manual)},
    )
    expected = open_feature_file(path).loaded()
    np.testing.assert_array_equal([row["visual"] for row in source], expected.train.visual)
    np.testing.assert_array_equal([row["label"] for row in source], expected.train.labels)

    info = tfds.builder(name, data_dir=tmp_path).info
    assert info.splits["test"].num_examples == spec.num_classes + 2
    assert info.features["audio"].shape == (128,)
    assert info.features["label"].num_classes == spec.num_classes
    if spec.class_names:
        assert tuple(info.features["label"].names) == spec.class_names
    assert info.citation.startswith("@inproceedings{") and "CMR" in info.homepage
    # Training takes the very same folder.
    dataset = open_dataset(f"tfds:{name}", data_dir=tmp_path)
    assert dataset.fingerprint() == expected.fingerprint()


def test_other_features_than_published_are_refused(tmp_path):
    write_published(tmp_path / "vegas_feature.h5", 10, dims=(128, 512))
    builder = tfds.builder("vegas", data_dir=tmp_path / "sets")
    with pytest.raises(UserError, match="visual features have 512 columns, but vegas has 1024"):
        builder.download_and_prepare(download_config=config_of(tmp_path))
    with pytest.raises(UserError, match="file_format=tfrecord is not written"):
        tfds.builder("vegas", data_dir=tmp_path, file_format="tfrecord")


def test_what_to_fetch_by_hand_is_said(tmp_path):
    builder = tfds.builder("ave", data_dir=tmp_path)
    with pytest.raises(AssertionError, match="ZenzenDatabase/CMR"):
        builder.download_and_prepare()
    with pytest.raises(UserError, match=r"needs ave_feature_norm.h5 or .*Google Drive"):
        (tmp_path / "else.txt").touch()
        builder.download_and_prepare(download_config=config_of(tmp_path))


def wav(samples):
    content = io.BytesIO()
    with wave.open(content, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(samples.astype("<i2").tobytes())
    return content.getvalue()


def idx(array):
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    return gzip.compress(header + array.tobytes())


@pytest.fixture
def digit_files(tmp_path, monkeypatch):
    """Small files in the form of the pinned ones, pinned in their place."""
    folder = tmp_path / "by hand"
    folder.mkdir()
    with zipfile.ZipFile(folder / FILE_NAMES[0], "w") as archive:
        for digit in range(10):
            for number in (3, 4, 5, 6, 7):
                samples = RNG.normal(size=2000 + 100 * digit) * 2000
                archive.writestr(f"free/recordings/{digit}_jo_{number}.wav", wav(samples))
    labels = np.arange(90, dtype=np.uint8) % 10
    images = RNG.integers(0, 256, (90, 28, 28)).astype(np.uint8)
    (folder / FILE_NAMES[1]).write_bytes(idx(images))
    (folder / FILE_NAMES[2]).write_bytes(idx(labels))
    infos = {}
    for name in FILE_NAMES:
        content = (folder / name).read_bytes()
        infos[f"https://nowhere.invalid/{name}"] = tfds.download.checksums.UrlInfo(
            size=len(content), checksum=hashlib.sha256(content).hexdigest(), filename=name
        )
    monkeypatch.setattr(tfds_builders, "_CHECKSUMS", infos)
    monkeypatch.setattr(av_digits, "NUM_RECORDINGS", 50)
    return folder


def test_digits_are_built_from_files_fetched_by_hand(tmp_path, digit_files):
    builder = tfds.builder("av_digits", data_dir=tmp_path / "sets")
    builder.download_and_prepare(download_config=config_of(digit_files))
    dataset = open_dataset("tfds:av_digits", data_dir=tmp_path / "sets")
    assert (len(dataset.train), len(dataset.test)) == (30, 20)
    assert (dataset.audio_dim, dataset.visual_dim, dataset.num_classes) == (128, 784, 10)
    assert builder.info.features["label"].names == [str(digit) for digit in range(10)]
    assert (
        tfds_builders.fetch_av_digits(tmp_path, digit_files).fingerprint() == dataset.fingerprint()
    )


def test_files_that_are_not_the_pinned_ones_are_refused(tmp_path, digit_files):
    (digit_files / FILE_NAMES[1]).write_bytes(b"something else")
    with pytest.raises(UserError, match=r"t10k-images.* is not the file that is expected"):
        tfds_builders.fetch_av_digits(tmp_path, digit_files)


def test_without_a_network_it_is_said_what_to_place_where(tmp_path, digit_files):
    (digit_files / FILE_NAMES[2]).unlink()
    with pytest.raises(UserError) as caught:
        tfds_builders.fetch_av_digits(tmp_path, digit_files)
    message = str(caught.value)
    assert "t10k-labels-idx1-ubyte.gz cannot be downloaded from https://nowhere.invalid" in message
    assert "--data_dir=FOLDER" in message and "\n" not in message


def test_files_of_an_earlier_download_are_found_again(tmp_path, digit_files):
    assert tfds_builders.fetch_av_digits(digit_files).fingerprint() == (
        tfds_builders.fetch_av_digits(tmp_path, digit_files).fingerprint()
    )


def test_pins_are_complete():
    pinned = {info.filename: info for info in tfds_builders._CHECKSUMS.values()}
    assert set(pinned) == set(FILE_NAMES)
    for info in pinned.values():
        assert len(bytes.fromhex(info.checksum)) == 32 and info.size > 1000
    # Of MNIST's files TFDS itself knows the sums.
    known = pathlib.Path(tfds.__file__).with_name("url_checksums").joinpath("mnist.txt").read_text()
    for name in FILE_NAMES[1:]:
        assert pinned[name].checksum in known
    assert pathlib.Path(tfds_builders.__file__).with_name("checksums.tsv").is_file()
