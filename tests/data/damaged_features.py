"""Damaged feature files and folders of TFDS: how each is made and what the error line says."""

import base64
import json
import os
import zlib
from typing import NamedTuple

import h5py
import numpy as np
from feature_content import MARKS, TEST_LABELS, TRAIN_LABELS, one_hot, one_table, six_keys, write
from written_by_hand import npy, npy_of

from aadml_jax.data import PairedFeatures, RetrievalDataset
from aadml_jax.data.tfds_builders import write_tfds_folder

HUGE = 10**12


class Damaged(NamedTuple):
    """What to read: arguments of the program, and the path that the line must contain."""

    arguments: tuple
    path: object
    program: str = "prepare"


def feature_file(path, *flags):
    return Damaged(("--dataset=features", f"--features_file={path}", *flags), path)


def six(changes, *flags):
    """A six-key file with changes; None leaves a key out."""

    def build(folder):
        content = {key: value for key, value in (six_keys() | changes).items() if value is not None}
        return feature_file(write(folder / "clips.h5", content), *flags)

    return build


def table(changes):
    def build(folder):
        content = {k: v for k, v in (one_table(MARKS) | changes).items() if v is not None}
        return feature_file(write(folder / "clips.h5", content))

    return build


def changed(key, index, value):
    """A six-key file with other values in one array."""
    array = six_keys()[key].astype(np.float64)
    array[index] = value
    return six({key: array})


def labels(change, *flags):
    return six({"lab_train": change(TRAIN_LABELS), "lab_test": change(TEST_LABELS)}, *flags)


def opened(damage, *flags, base=six_keys):
    """A file to which a function does what h5py can do."""

    def build(folder):
        path = write(folder / "clips.h5", base())
        with h5py.File(path, "a") as file:
            damage(file)
        return feature_file(path, *flags)

    return build


def stored(key, shape, dtype="f4", **options):
    """A key whose array is declared but not written."""

    def damage(file):
        del file[key]
        file.create_dataset(key, shape, dtype, **options)

    return opened(damage)


def compressed_rows(file):
    zeros = zlib.compress(bytes(4 * 2**24))
    for key in ("audio_train", "audio_test"):
        rows = len(file[key])
        del file[key]
        shape, chunk = (rows, 2**27), (1, 2**24)
        array = file.create_dataset(key, shape, "f4", chunks=chunk, compression="gzip")
        for row in range(rows):
            for column in range(0, *shape[1:], *chunk[1:]):
                array.id.write_direct_chunk((row, column), zeros)


def huge_chunk(file):
    del file["audio_train"]
    options = {"maxshape": (None, None), "chunks": (16, 2**25), "compression": "gzip"}
    file.create_dataset("audio_train", (9, 3), "f4", **options)


def in_bytes(damage, name="clips.h5"):
    """A file whose bytes a function changes."""

    def build(folder):
        path = write(folder / name, six_keys())
        path.write_bytes(damage(path.read_bytes()))
        return feature_file(path)

    return build


def cut(numerator, denominator):
    return in_bytes(lambda content: content[: len(content) * numerator // denominator])


def damaged_chunk(folder):
    path = folder / "clips.h5"
    with h5py.File(path, "w") as file:
        for key, value in six_keys().items():
            file.create_dataset(key, data=value, chunks=True, compression="gzip")
        chunk = file["visual_test"].id.get_chunk_info(0)
    content = bytearray(path.read_bytes())
    for offset in range(chunk.byte_offset, chunk.byte_offset + chunk.size):
        content[offset] ^= 0xFF
    path.write_bytes(content)
    return feature_file(path)


def elsewhere(make):
    """A file that is none."""

    def build(folder):
        make(folder / "clips.h5")
        return feature_file(folder / "clips.h5")

    return build


def link_out(file):
    del file["audio_train"]
    file["audio_train"] = h5py.ExternalLink("other.h5", "audio_train")


def view(file):
    layout = h5py.VirtualLayout(file["audio_train"].shape, "f4")
    layout[:] = h5py.VirtualSource("absent.h5", "audio_train", layout.shape)
    del file["audio_train"]
    file.create_virtual_dataset("audio_train", layout)


def replace_with(key, make):
    def damage(file):
        del file[key]
        make(file, key)

    return opened(damage)


def filtered(number):
    """An array that says its chunks were compressed by a filter."""

    def damage(file):
        shape = file["audio_train"].shape
        del file["audio_train"]
        properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        properties.set_chunk(shape)
        properties.set_filter(number, h5py.h5z.FLAG_OPTIONAL, ())
        space = h5py.h5s.create_simple(shape)
        created = h5py.h5d.create(file.id, b"audio_train", h5py.h5t.IEEE_F32LE, space, properties)
        created.write_direct_chunk((0, 0), b"compressed elsewhere", 0)

    return damage


def unclosed(folder):
    """A file of the newer format whose writer was killed: its flags say that it is written to."""
    path = folder / "clips.h5"
    with h5py.File(path, "w", libver="latest") as file:
        for key, value in six_keys().items():
            file[key] = value
        file.flush()
        content = path.read_bytes()
    path.write_bytes(content)
    return feature_file(path)


def turned(content):
    """The training arrays as MATLAB stores them in HDF5: axes in reverse, labels a row."""
    return {
        key: np.atleast_2d(value) if value.ndim == 1 else value.T
        for key, value in content.items()
        if "train" in key
    }


def ragged(file, key):
    array = file.create_dataset(key, (9,), h5py.vlen_dtype(np.float32))
    array[3] = np.ones(4)


def made(num_rows):
    random = np.random.default_rng(num_rows)
    features = (random.normal(size=(num_rows, dim)) for dim in (3, 5))
    return PairedFeatures(*features, np.arange(num_rows) % 2)


def prepared(damage):
    """A folder of TFDS that a function damages."""

    def build(folder):
        dataset = RetrievalDataset("made_here", made(8), made(4), 2, "nowhere")
        path, _ = write_tfds_folder(dataset, folder / "sets")
        damage(path)
        return Damaged(("--dataset=tfds:made_here", f"--data_dir={folder / 'sets'}"), path.parent)

    return build


def in_file(pattern, damage):
    def spoil(folder):
        (path,) = folder.glob(pattern)
        path.write_bytes(damage(path.read_bytes()))

    return prepared(spoil)


def in_metadata(**changes):
    def damage(content):
        return json.dumps(json.loads(content) | changes).encode()

    return in_file("metadata.json", damage)


def encoded(content):
    """Arrays as the metadata hold them."""
    return base64.b64encode(zlib.compress(content)).decode()


def swap_splits(folder):
    train, test = (next(folder.glob(f"*{split}.array_record*")) for split in ("train", "test"))
    train.write_bytes(test.read_bytes())


def fifo_in(name):
    def damage(folder):
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return prepared(damage)


def loop(path):
    path.symlink_to(path.name)


HUGE_NPY = npy_of("{'descr': '<i4', 'fortran_order': False, 'shape': (10000000000,), }")
NAN_NPY = npy(np.full(3, np.nan))
TRAIN_SHARD = "*train.array_record*"

CUT_HDF5 = {f"hdf5 cut at {part} of 12": (cut(part, 12), ()) for part in range(12)}

HDF5 = {
    "hdf5 is a directory": (elsewhere(lambda path: path.mkdir()), ["is a directory"]),
    "hdf5 is a pipe": (elsewhere(os.mkfifo), ["is not a regular file"]),
    "hdf5 is a loop of links": (elsewhere(loop), ["cannot be read", "symbolic links"]),
    "hdf5 is absent": (elsewhere(lambda path: None), ["does not exist"]),
    "hdf5 is a page": (
        in_bytes(lambda content: b"<html>"),
        ["not an HDF5 file (6 bytes)", "a web page", "fetch it again"],
    ),
    "hdf5 of zeros": (
        in_bytes(lambda content: bytes(len(content))),
        ["not an HDF5 file", "zeros alone", "fetch it again"],
    ),
    "hdf5 of another superblock": (
        in_bytes(lambda content: content[:8] + b"\x09" + content[9:]),
        ["superblock", "update h5py"],
    ),
    "hdf5 filter missing": (
        opened(filtered(32001)),
        ["audio_train", "32001 (Blosc)", "hdf5plugin"],
    ),
    "hdf5 filter unknown": (opened(filtered(300)), ["filter 300 (unknown)", "write the file anew"]),
    "hdf5 not closed": (unclosed, ["was not closed", "h5clear -s"]),
    "hdf5 transposed": (
        six(turned(six_keys())),
        ["last axis of audio_train (3, 9) and visual_train (5, 9) and lab_train (1, 9)", "array.T"],
    ),
    "hdf5 transposed series": (
        six(turned(six_keys() | {"audio_train": np.ones((9, 7, 3))})),
        ["audio_train (3, 7, 9)", "array.T"],
    ),
    "hdf5 transposed one-hot": (
        six(turned(six_keys() | {"lab_train": one_hot(TRAIN_LABELS)})),
        ["lab_train (3, 9)", "array.T"],
    ),
    "hdf5 labels as a row": (
        six({"lab_test": TEST_LABELS[None]}),
        ["lab_test has 1", "lab_test (1, 4)", "array.T"],
    ),
    "hdf5 one column behind": (
        six({"audio_train": np.ones((9, 3, 1)), "audio_test": np.ones((4, 3, 1))}),
        ["audio_train has shape (9, 3, 1)", "features[..., 0]"],
    ),
    "hdf5 time behind": (
        six({"audio_train": np.ones((9, 3, 6)), "audio_test": np.ones((4, 3, 8))}),
        ["audio_train has shape (9, 3, 6)", "audio_test (4, 3, 8)", "transpose(0, 2, 1)"],
    ),
    "hdf5 names not UTF-8": (
        six({"class_names": np.array([b"a", b"\xff", b"c"])}),
        ["name of class 1 is not UTF-8"],
    ),
    "hdf5 names twice": (
        six({"class_names": np.array([b"a", b"b", b"a"])}),
        ["classes 0 and 2 are both called 'a'"],
    ),
    "hdf5 labels of signs": (
        labels(lambda label: 2 * one_hot(label) - 1, "--multi_label"),
        ["lab_train: row 0 holds -1 for class 0"],
    ),
    "hdf5 labels of bytes": (
        labels(lambda label: 255 * one_hot(label), "--multi_label"),
        ["lab_train: row 0 holds 255 for class 2"],
    ),
    "hdf5 labels of chances": (
        labels(lambda label: 0.9 * one_hot(label), "--multi_label"),
        ["lab_train: row 0 holds 0.9 for class 2"],
    ),
    "hdf5 key missing": (six({"visual_test": None}), ["visual_test is missing"]),
    "hdf5 key with a line break": (six({"lab_test": None, "a\nb": 1}), ["keys there: a\\nb"]),
    "hdf5 no keys": (six(dict.fromkeys(six_keys())), ["keys there: none"]),
    "hdf5 group": (six({"audio_test": h5py.Group}), ["audio_test is a group"]),
    "hdf5 text features": (six({"audio_train": np.full((9, 3), b"x")}), ["audio_train", "|S1"]),
    "hdf5 complex": (six({"visual_train": np.ones((9, 5), complex)}), ["complex128"]),
    "hdf5 ragged": (replace_with("audio_train", ragged), ["audio_train", "(9,)"]),
    "hdf5 compound": (six({"audio_train": np.zeros((9, 3), "f4,i4")}), ["real numbers"]),
    "hdf5 nan": (changed("audio_train", (3, 0), np.nan), ["audio_train holds 1 NaN", "row 3"]),
    "hdf5 inf": (changed("visual_test", (2, 4), np.inf), ["visual_test holds 1 NaN", "row 2"]),
    "hdf5 -inf": (changed("visual_train", (0, 0), -np.inf), ["visual_train", "row 0"]),
    "hdf5 overflow": (changed("audio_test", (1, 1), 1e39), ["exceeds the range of float32"]),
    "hdf5 no rows": (six({"audio_test": np.ones((0, 3))}), ["audio_test is empty"]),
    "hdf5 no columns": (six({"audio_test": np.ones((4, 0))}), ["audio_test is empty"]),
    "hdf5 null": (six({"lab_test": h5py.Empty("f4")}), ["lab_test is empty"]),
    "hdf5 lengths": (six({"visual_train": np.ones((8, 5))}), ["visual_train has 8"]),
    "hdf5 widths": (six({"visual_test": np.ones((4, 6))}), ["visual features have 5 columns"]),
    "hdf5 negative label": (changed("lab_train", 4, -1), ["lab_train: row 4 holds -1"]),
    "hdf5 fractional label": (changed("lab_train", 4, 0.5), ["lab_train: row 4 holds 0.5"]),
    "hdf5 nan label": (changed("lab_test", 0, np.nan), ["lab_test: row 0 holds nan"]),
    "hdf5 labels from 2": (labels(lambda label: label + 2), ["smallest class number", "is 2"]),
    "hdf5 label off by one": (changed("lab_test", 1, 3), ["no training row has class 3"]),
    "hdf5 label 2 billion": (changed("lab_test", 1, 2e9), ["no training row has class 3, 4"]),
    "hdf5 label 2**40": (changed("lab_test", 1, 2**40), ["lab_test: row 1 holds 10995"]),
    "hdf5 one class": (labels(lambda label: label * 0), ["only one class"]),
    "hdf5 one class from 1": (labels(lambda label: label * 0 + 1), ["only one class"]),
    "hdf5 two ones": (
        labels(lambda label: one_hot(label) + one_hot(label * 0)),
        ["lab_train: row 0 is not one-hot (1, 0, 1)"],
    ),
    "hdf5 no one": (
        labels(lambda label: one_hot(label) * [1, 1, 0]),
        ["lab_train: row 0 is not one-hot (0, 0, 0)"],
    ),
    "hdf5 no class of several": (
        labels(lambda label: one_hot(label) * [1, 1, 0], "--multi_label"),
        ["lab_train: 3 of 9 rows have no class, first row 0"],
    ),
    "hdf5 classes as numbers": (labels(lambda label: label, "--multi_label"), ["(9,)"]),
    "hdf5 damaged chunk": (damaged_chunk, ["visual_test: rows 0 to 3 cannot be read"]),
    "hdf5 huge labels": (stored("lab_train", (HUGE,), "i8", chunks=(1024,)), ["lab_train", "hold"]),
    "hdf5 huge features": (
        stored("audio_train", (10**9, 128), chunks=(64, 128), compression="gzip"),
        ["audio_train", "hold"],
    ),
    "hdf5 huge row": (stored("visual_test", (4, 10**11), chunks=(1, 1024)), ["visual_test"]),
    "hdf5 huge contiguous": (stored("audio_test", (4, 10**11)), ["audio_test", "hold"]),
    "hdf5 wide": (opened(compressed_rows), ["audio_train", "536,870,912 bytes in each row"]),
    "hdf5 huge chunk": (opened(huge_chunk), ["audio_train", "chunks of 2,147,483,648 bytes"]),
    "hdf5 external link": (opened(link_out), ["audio_train", "another file"]),
    "hdf5 view": (opened(view), ["audio_train", "other files"]),
    "table no marks": (table({"Split": None}), ["Split is missing"]),
    "table no labels": (table({"Label_ID": None}), ["Label_ID is missing"]),
    "table all for training": (table({"Split": np.ones(8)}), ["Split leaves no test rows"]),
    "table three marks": (table({"Split": np.array([1, 0, 1, 1, 1, 1, 2, 1])}), ["row 6 has 2"]),
    "table marks of nan": (table({"Split": np.where(MARKS == b"1", 1, np.nan)}), ["nan"]),
    "table off by one": (
        table({"Label_ID": np.array([0, 1, 2, 0, 1, 2, 3, 0])}),
        ["no training row has class 3"],
    ),
    "table nan": (
        table({"visual_feat": np.diag(np.full(8, np.nan))[:, 6:]}),
        ["visual_feat holds", "first in row"],
    ),
    "table one class": (table({"Label_ID": np.zeros(8, int)}), ["only one class"]),
}

# Words may hang on the version of a library: what is certain is that the folder is named.
TFDS = {
    "tfds shard cut": (in_file(TRAIN_SHARD, lambda data: data[: len(data) // 2]), ["train split"]),
    "tfds shard empty": (in_file(TRAIN_SHARD, lambda data: b""), ["train split"]),
    "tfds shard longer": (in_file(TRAIN_SHARD, lambda data: data + bytes(99)), ["train split"]),
    "tfds shard missing": (prepared(lambda path: next(path.glob(TRAIN_SHARD)).unlink()), ["train"]),
    "tfds shard of zeros": (in_file(TRAIN_SHARD, lambda data: bytes(len(data))), ["train split"]),
    "tfds shard of the other split": (prepared(swap_splits), ["train split", "4 records"]),
    "tfds info cut": (in_file("dataset_info.json", lambda data: data[:99]), ["is damaged"]),
    "tfds info empty": (in_file("dataset_info.json", lambda data: b""), ["is damaged"]),
    "tfds info is a list": (in_file("dataset_info.json", lambda data: b"[]"), ["is damaged"]),
    "tfds info nested": (in_file("dataset_info.json", lambda data: b"[" * 10**5), ["is damaged"]),
    "tfds features cut": (in_file("features.json", lambda data: data[:99]), ["is damaged"]),
    "tfds metadata cut": (in_file("metadata.json", lambda data: data[:99]), ["is damaged"]),
    "tfds metadata is a list": (in_file("metadata.json", lambda data: b"[1]"), ["is damaged"]),
    "tfds metadata is a pipe": (fifo_in("metadata.json"), ["metadata.json is not a regular file"]),
    "tfds labels garbled": (in_metadata(train_labels="AAAA"), ["is damaged"]),
    "tfds labels huge": (in_metadata(train_labels=encoded(HUGE_NPY)), ["is damaged"]),
    "tfds labels negative": (in_metadata(train_labels=encoded(npy(-made(8).labels))), ["class -1"]),
    "tfds labels of other rows": (
        in_metadata(train_labels=encoded(npy(made(8).labels[::-1]))),
        ["record 0 is of class 0", "say class 1"],
    ),
    "tfds of records": (
        in_file("dataset_info.json", lambda data: data.replace(b"array_record", b"tfrecord")),
        ["stored as tfrecord", "only array_record is read"],
    ),
    "tfds shard of another kind": (
        in_file(TRAIN_SHARD, lambda data: b"version https://git-lfs.github.com/spec/v1\n"),
        ["train split", "a pointer of Git LFS", "git lfs pull"],
    ),
    "tfds limit garbled": (in_metadata(standardized_limit=-1), ["is damaged", "the limit -1"]),
    "tfds labels fewer": (in_metadata(test_labels=encoded(npy(made(3).labels))), ["instead of 3"]),
    "tfds statistics of nan": (
        in_metadata(audio_scale=encoded(npy(np.full(3, np.nan)))),
        ["damaged"],
    ),
    "tfds classes fewer": (in_metadata(num_classes=1), ["in one place"]),
    "tfds classes huge": (in_metadata(num_classes=HUGE), ["in one place"]),
    "tfds classes as text": (in_metadata(num_classes="many"), ["is damaged"]),
    "tfds no fingerprint": (in_metadata(fingerprint=None), ["is damaged"]),
}
