"""Files of other formats are recognised by their first bytes, and the system's words are kept."""

import bz2
import errno
import fcntl
import gzip
import importlib
import io
import lzma
import os
import pickle
import sqlite3
import struct
import tarfile
import types
import zipfile

import h5py
import numpy as np
import pytest
import scipy.io
from feature_content import error_line, six_keys, write
from written_by_hand import clip_list, idx, npy, npz, pictures, record, video, wav

from aadml_jax._files import reading
from aadml_jax.data import load_feature_file
from aadml_jax.data.readers.av_digits import open_av_digits
from aadml_jax.data.readers.clip_files import open_clip_files
from aadml_jax.data.readers.file_kinds import kind_of
from aadml_jax.data.readers.idx import read_idx
from aadml_jax.data.readers.npy_files import read_npy, read_npz
from aadml_jax.data.readers.video_records import open_video_records
from aadml_jax.errors import UserError

ARRAYS = {"audio_train": np.ones((4, 3)), "lab_train": np.arange(4)}


def of_matlab(version):
    content = io.BytesIO()
    scipy.io.savemat(content, ARRAYS, format=version)
    return content.getvalue()


def of_big_endian_matlab_4():
    """The header's first number says 1000 for big-endian; a name follows, then the values."""
    return struct.pack(">5i", 1000, 2, 2, 0, 2) + b"x\0" + struct.pack(">4d", 1, 2, 3, 4)


def of_tar():
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("f.h5"), io.BytesIO())
    return content.getvalue()


def of_zip(*names):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name in names:
            archive.writestr(name, "x")
    return content.getvalue()


def of_sqlite(folder):
    with sqlite3.connect(folder / "x.db") as database:
        database.execute("create table t (a)")
    return (folder / "x.db").read_bytes()


KINDS = {
    "matlab 5": (of_matlab("5"), "a MATLAB file of version 5", "scipy.io.loadmat"),
    "matlab 4": (of_matlab("4"), "a MATLAB file of version 4", "scipy.io.loadmat"),
    "matlab 4 of other machines": (
        of_big_endian_matlab_4(),
        "a MATLAB file of version 4",
        "loadmat",
    ),
    "npz": (npz(ARRAYS), "a NumPy archive (.npz)", "numpy.load"),
    "npz compressed": (npz(ARRAYS, zipfile.ZIP_DEFLATED), "a NumPy archive (.npz)", "numpy.load"),
    "npy": (npy(np.ones((4, 3))), "a NumPy array (.npy)", "numpy.load"),
    "parquet": (b"PAR1" + bytes(50) + b"PAR1", "a Parquet file", "pandas.read_parquet"),
    "arrow": (b"ARROW1\0\0" + bytes(50), "an Arrow file", "pandas.read_feather"),
    "netcdf 3": (b"CDF\x01" + bytes(50), "a NetCDF 3 file", "nccopy"),
    "gzip": (gzip.compress(b"x"), "compressed by gzip", "gunzip"),
    "bzip2": (bz2.compress(b"x"), "compressed by bzip2", "bunzip2"),
    "xz": (lzma.compress(b"x"), "compressed by xz", "unxz"),
    "zstandard": (b"\x28\xb5\x2f\xfd" + bytes(20), "compressed by Zstandard", "unzstd"),
    "tar": (of_tar(), "a tar archive", "unpack it"),
    "zip": (of_zip("f.h5"), "a zip archive", "unpack it"),
    "empty zip": (of_zip(), "a zip archive", "unpack it"),
    "workbook": (of_zip("[Content_Types].xml", "xl/workbook.xml"), "an Excel workbook", "CSV"),
    "torch": (of_zip("archive/data.pkl", "archive/data/0"), "a PyTorch file", "torch.load"),
    **{
        f"pickle {protocol}": (pickle.dumps(ARRAYS, protocol), "a Python pickle", "h5py")
        for protocol in (2, 3, 4, 5)
    },
    "page": (b"\n <!DOCTYPE html><html>quota exceeded", "a web page", "fetch it again"),
    "xml": (b'<?xml version="1.0"?><Error>AccessDenied</Error>', "an XML", "fetch it again"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d", "of Git LFS", "lfs pull"),
    "csv": (clip_list().encode(), "separated values (CSV)", "--dataset=clips"),
    "text": ("Füße und Hände\n".encode(), "a text file", "numpy.loadtxt"),
    "csv that begins like a recording": (b"ID3,FORM\n1,2\n", "(CSV)", "numpy.loadtxt"),
    "text cut in a character": (b"a" * 1023 + "é".encode()[:1], "a text file", "numpy.loadtxt"),
    "utf-16": ("clip_id,label".encode("utf-16"), "a text file in UTF-16", "UTF-8"),
    "tfrecord": (record(video(0)), "a TFRecord file", "--dataset=video_records"),
    "array_record": (
        bytes.fromhex("83af70d10d884a3f") + bytes(56),
        "an ArrayRecord shard",
        "--dataset=tfds:NAME",
    ),
    "idx": (idx(pictures(1)[0]), "an IDX file", "give a feature file"),
    "wav": (wav([1] * 9), "a WAV recording", "give a feature file"),
    "empty": (b"", "an empty file", "fetch or write it again"),
    "zeros": (bytes(5000), "zeros alone", "fetch it again"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_feature_file_of_another_format_is_named(tmp_path, kind):
    content, name, remedy = KINDS[kind]
    path = tmp_path / "features.h5"
    path.write_bytes(content)
    message = error_line(path)
    assert f"is not an HDF5 file ({len(content)} bytes) but" in message
    assert name in message and remedy in message
    assert ("fetch" in message) == (kind in ("page", "xml", "empty", "zeros"))


def test_a_database_is_named(tmp_path):
    assert kind_of(of_sqlite(tmp_path)).name == "an SQLite database"


def test_bytes_of_no_format_are_not_taken_for_one(tmp_path):
    random = np.random.default_rng(0)
    path = tmp_path / "features.h5"
    for _ in range(20):
        # Signatures of two bytes are hit by chance once in 30,000 times; this seed hits none.
        path.write_bytes(b"\xf1" + random.bytes(600))
        assert "nor of another known format" in error_line(path)
    write(path, six_keys())
    assert kind_of(path.read_bytes()[:1024]).name == "an HDF5 file"


def lock_refused(monkeypatch, number):
    """HDF5 as it is on a file system where locks end in an error."""
    real = h5py.File

    def open_with_lock(path, mode, **options):
        if options.get("locking") is not False:
            raise OSError(
                "Unable to synchronously open file (unable to lock file, errno = "
                f"{number}, error message = '{os.strerror(number)}')"
            )
        return real(path, mode, **options)

    monkeypatch.setattr(h5py, "File", open_with_lock)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_read(tmp_path, monkeypatch, number):
    path = write(tmp_path / "clips.h5", six_keys())
    lock_refused(monkeypatch, number)
    np.testing.assert_array_equal(load_feature_file(path).train.audio, six_keys()["audio_train"])


def test_a_file_that_is_written_to_is_in_use(tmp_path):
    path = write(tmp_path / "clips.h5", six_keys())
    with open(path, "rb+") as writer:
        fcntl.flock(writer, fcntl.LOCK_EX)
        message = error_line(path)
    assert "is in use by another program" in message and "damaged" not in message
    assert load_feature_file(path).num_classes == 3


def refuse_reading(monkeypatch, number):
    """Arrays of which the disk gives nothing, in the words of HDF5."""

    def fail(dataset, rows):
        raise OSError(
            "Can't synchronously read data (file read failed: time = today, filename = 'clips.h5', "
            f"file descriptor = 3, errno = {number}, error message = '{os.strerror(number)}')"
        )

    monkeypatch.setattr(h5py.Dataset, "__getitem__", fail)


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EACCES])
def test_an_error_of_the_disk_keeps_its_words(tmp_path, monkeypatch, number):
    path = write(tmp_path / "clips.h5", six_keys())
    refuse_reading(monkeypatch, number)
    message = error_line(path)
    assert f"cannot be read ({os.strerror(number)})" in message
    assert "damaged" not in message and "fetch" not in message


def test_memory_that_does_not_suffice_is_no_damage(tmp_path, monkeypatch):
    path = write(tmp_path / "clips.h5", six_keys())

    def fail(dataset, rows):
        raise MemoryError

    monkeypatch.setattr(h5py.Dataset, "__getitem__", fail)
    message = error_line(path)
    assert "Cannot allocate memory" in message and "damaged" not in message


class FailingFile(io.FileIO):
    """A file whose content the disk does not give beyond the first bytes."""

    def __init__(self, path):
        super().__init__(path)

    def readinto(self, buffer):
        raise OSError(errno.EIO, os.strerror(errno.EIO))


READERS = {
    "x.npy": (npy(np.ones(3)), read_npy),
    "x.npz": (npz({"audio": np.ones(3)}), lambda path: read_npz(path, ("audio",))),
    "x.idx": (idx(pictures(1)[0]), lambda path: read_idx(path, num_dimensions=3)),
    "x.tfrecord": (
        record(video(0)),
        lambda path: open_video_records([path], [path], name="failing"),
    ),
    "x.csv": (clip_list().encode(), open_clip_files),
    "x.zip": (
        of_zip("1_ann_0.wav"),
        lambda path: open_av_digits(path, path, path),
    ),
}


# The first look at a file is whether it can be read, a second one in some readers at its kind.
@pytest.mark.parametrize(
    ("name", "looks"),
    [*((name, 1) for name in READERS), *((f"x.{end}", 2) for end in ("npz", "idx", "csv", "zip"))],
)
def test_every_reader_keeps_the_words_of_the_disk(tmp_path, monkeypatch, name, looks):
    content, read = READERS[name]
    path = tmp_path / name
    path.write_bytes(content)
    real_open, opened = open, []

    def failing_open(file, mode="r", *arguments, **options):
        if str(file) == str(path) and len(opened) >= looks:
            raw = io.BufferedReader(FailingFile(file))
            return raw if "b" in mode else io.TextIOWrapper(raw)
        opened.append(file)
        return real_open(file, mode, *arguments, **options)

    monkeypatch.setattr("builtins.open", failing_open)
    monkeypatch.setattr(io, "open", failing_open)  # what zipfile uses
    with pytest.raises(UserError, match="Input/output error") as raised:
        read(path)
    assert str(path) in str(raised.value)
    assert "damaged" not in str(raised.value) and "fetch" not in str(raised.value)


def test_errors_of_a_format_are_left_to_its_reader():
    with pytest.raises(gzip.BadGzipFile), reading("x"):
        raise gzip.BadGzipFile("Not a gzipped file")
    with pytest.raises(UserError, match="x needs more memory than there is"), reading("x"):
        raise MemoryError


def test_filters_of_hdf5plugin_are_looked_for(tmp_path, monkeypatch):
    """Where the package is there, importing it makes its filters available."""
    path = tmp_path / "clips.h5"
    with h5py.File(path, "w") as file:
        for key, value in six_keys().items():
            file[key] = value
        stored = file["visual_test"][:]
        del file["visual_test"]
        properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        properties.set_chunk(stored.shape)
        properties.set_filter(32015, h5py.h5z.FLAG_OPTIONAL, ())
        space = h5py.h5s.create_simple(stored.shape)
        array = h5py.h5d.create(file.id, b"visual_test", h5py.h5t.IEEE_F32LE, space, properties)
        # The mask says that the first filter was left out for this chunk.
        array.write_direct_chunk((0, 0), stored.tobytes(), 1)
    imported = []

    def import_module(name):
        imported.append(name)
        return types.ModuleType(name)

    monkeypatch.setattr(importlib, "import_module", import_module)
    np.testing.assert_array_equal(load_feature_file(path).test.visual, stored)
    assert set(imported) == {"hdf5plugin"}
