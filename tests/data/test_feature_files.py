import pathlib

import h5py
import numpy as np
import pytest
from feature_content import (
    MARKS,
    TEST_LABELS,
    TRAIN_LABELS,
    error_line,
    one_hot,
    one_table,
    six_keys,
    write,
)

from aadml_jax.data import load_feature_file
from aadml_jax.errors import UserError

REAL_FILE = pathlib.Path(__file__).parents[3] / "shared" / "data" / "fsdd_mnist.h5"


def same_rows(rows, audio, visual, labels):
    assert (rows.audio.dtype, rows.visual.dtype) == (np.dtype("=f4"), np.dtype("=f4"))
    assert rows.labels.dtype == np.dtype("=i4")
    np.testing.assert_array_equal(rows.audio, audio)
    np.testing.assert_array_equal(rows.visual, visual)
    np.testing.assert_array_equal(rows.labels, labels)


def test_six_keys_are_read(tmp_path):
    content = six_keys()
    path = write(tmp_path / "clips.h5", content)
    dataset = load_feature_file(path)
    same_rows(dataset.train, content["audio_train"], content["visual_train"], TRAIN_LABELS)
    same_rows(dataset.test, content["audio_test"], content["visual_test"], TEST_LABELS)
    assert (dataset.name, dataset.num_classes, dataset.source) == ("clips", 3, str(path))
    assert dataset.test_posteriors is None
    assert load_feature_file(str(path), num_classes=3, name="mine").name == "mine"


def test_home_folder_and_relative_paths_are_resolved(tmp_path, monkeypatch):
    path = write(tmp_path / "clips.h5", six_keys())
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_feature_file("~/clips.h5").source == str(path)
    monkeypatch.chdir(tmp_path)
    assert load_feature_file("clips.h5").source == str(path)


@pytest.mark.parametrize(
    "marks",
    [
        np.array([b"1", b"0", b"1", b"1", b"1", b"1", b"0", b"1"]),
        np.array(["1", "test", "1", "1", "1", "1 ", "test", "1"], object),
        np.array([1, 0, 1, 1, 1, 1, 0, 1])[:, None],
        np.array([1, 2, 1, 1, 1, 1, 2, 1], float),
        np.array([1, 0, 1, 1, 1, 1, 0, 1], bool),
    ],
    ids=["bytes", "str", "column", "float", "bool"],
)
@pytest.mark.parametrize("split_key", ["Split", "Train_test"])
def test_table_is_split_by_its_marks(tmp_path, marks, split_key):
    content = one_table(marks, split_key=split_key)
    dataset = load_feature_file(write(tmp_path / "table.h5", content))
    train, test = [0, 2, 3, 4, 5, 7], [1, 6]
    for rows, chosen in ((dataset.train, train), (dataset.test, test)):
        same_rows(
            rows,
            content["audio_feat"][chosen],
            content["visual_feat"][chosen],
            content["Label_ID"][chosen],
        )


@pytest.mark.parametrize("dtype", ["<f2", "<f4", ">f4", ">f8", "i1", ">i4", "<u2"])
@pytest.mark.parametrize("block_bytes", [1, 200, 2**20])
def test_time_is_averaged_in_float64(tmp_path, monkeypatch, dtype, block_bytes):
    monkeypatch.setattr("aadml_jax.data.readers.feature_files._BLOCK_BYTES", block_bytes)
    content = six_keys()
    random = np.random.default_rng(2)
    # Float16 sums of these would lose the small values, and then overflow.
    series = random.integers(0, 120, (9, 7, 3)) * (500 if dtype == "<f2" else 1)
    content["audio_train"] = series.astype(dtype)
    dataset = load_feature_file(write(tmp_path / "series.h5", content))
    for row in range(9):
        for column in range(3):
            steps = [float(step) for step in content["audio_train"][row, :, column]]
            expected = np.float32(sum(steps) / 7)
            np.testing.assert_allclose(dataset.train.audio[row, column], expected, rtol=2e-7)
    np.testing.assert_array_equal(dataset.train.visual, content["visual_train"])


@pytest.mark.parametrize(
    "stored",
    [
        lambda labels: labels,
        lambda labels: labels[:, None].astype(">i2"),
        lambda labels: labels.astype(np.float64),
        lambda labels: labels + 1,
        lambda labels: (labels + 1)[:, None].astype(np.uint8),
        one_hot,
        lambda labels: one_hot(labels).astype(bool),
        lambda labels: one_hot(labels).astype(np.int8),
    ],
    ids=["ids", "column", "float", "from_1", "column_from_1", "one_hot", "bool", "int8"],
)
@pytest.mark.parametrize("num_classes", [None, 3])
def test_labels_are_renumbered_from_zero(tmp_path, stored, num_classes):
    content = six_keys() | {"lab_train": stored(TRAIN_LABELS), "lab_test": stored(TEST_LABELS)}
    dataset = load_feature_file(write(tmp_path / "labels.h5", content), num_classes=num_classes)
    np.testing.assert_array_equal(dataset.train.labels, TRAIN_LABELS)
    np.testing.assert_array_equal(dataset.test.labels, TEST_LABELS)
    assert dataset.num_classes == 3


def test_first_class_is_decided_over_both_splits(tmp_path):
    test_labels = np.array([1, 2, 1, 2])
    dataset = load_feature_file(
        write(tmp_path / "labels.h5", six_keys() | {"lab_test": test_labels})
    )
    np.testing.assert_array_equal(dataset.test.labels, test_labels)
    content = six_keys() | {"lab_train": TRAIN_LABELS + 1, "lab_test": test_labels + 1}
    dataset = load_feature_file(write(tmp_path / "from_1.h5", content))
    np.testing.assert_array_equal(dataset.test.labels, test_labels)


def damaged(key, index, value):
    array = six_keys()[key].astype(np.float64)
    array[index] = value
    return {key: array}


def bad_one_hot(row):
    labels = one_hot(TRAIN_LABELS)
    labels[4] = row
    labels[7] = 0
    return {"lab_train": labels, "lab_test": one_hot(TEST_LABELS)}


# Changes to a sound six-key file (None drops the key), further arguments, words of the message.
DAMAGED_SIX_KEYS = {
    "missing_key": ({"visual_test": None}, {}, ["visual_test is missing", "audio_test, audio_tr"]),
    "group": ({"audio_test": h5py.Group}, {}, ["audio_test is a group"]),
    "scalar": ({"lab_test": 3}, {}, ["lab_test is empty", "shape ()"]),
    "null": ({"lab_test": h5py.Empty("f4")}, {}, ["lab_test is empty", "shape None"]),
    "no_test_rows": ({"audio_test": np.ones((0, 3))}, {}, ["audio_test is empty", "(0, 3)"]),
    "no_time_steps": ({"audio_test": np.ones((4, 0, 3))}, {}, ["audio_test", "(4, 0, 3)"]),
    "lengths": (
        {"visual_train": np.ones((8, 5))},
        {},
        ["audio_train has 9", "visual_train has 8", "lab_train has 9"],
    ),
    "label_length": ({"lab_test": np.arange(3)}, {}, ["audio_test has 4", "lab_test has 3"]),
    "feature_rank_1": ({"audio_train": np.ones(9)}, {}, ["audio_train", "(9,)"]),
    "feature_rank_4": ({"audio_train": np.ones((9, 2, 2, 3))}, {}, ["audio_train", "(9, 2, 2, 3)"]),
    "label_rank": ({"lab_train": np.ones((9, 2, 3))}, {}, ["lab_train", "(9, 2, 3)"]),
    "text": ({"audio_train": np.full((9, 3), b"x")}, {}, ["audio_train", "|S1"]),
    "complex": ({"visual_train": np.ones((9, 5), complex)}, {}, ["visual_train", "complex128"]),
    "text_labels": ({"lab_train": np.full(9, b"cat")}, {}, ["lab_train", "|S3"]),
    "text_one_hot": ({"lab_train": np.full((9, 3), b"1")}, {}, ["lab_train", "|S1"]),
    "bool_labels": ({"lab_train": TRAIN_LABELS > 0}, {}, ["lab_train", "bool"]),
    "nan": (
        damaged("audio_train", ([3, 3, 6], [0, 2, 1]), np.nan),
        {},
        ["audio_train holds 3 NaN or infinite values in 2 of 9 rows, first in row 3"],
    ),
    "infinity": (
        damaged("visual_test", (2, 4), -np.inf),
        {},
        ["visual_test holds 1 NaN or infinite values in 1 of 4 rows, first in row 2"],
    ),
    "overflow": (
        damaged("visual_train", ([5, 7], [1, 3]), -2e39),
        {},
        ["visual_train exceeds the range of float32 in 2 of 9 rows, first in row 5", "2e+39"],
    ),
    "overflow_of_mean": (
        {"audio_test": np.full((4, 2, 3), 1.5e308)},
        {},
        ["audio_test exceeds the range of float32", "row 0", "1.5e+308"],
    ),
    "nan_in_series": (
        {"audio_test": np.where(np.arange(24).reshape(4, 2, 3) == 19, np.nan, 1.0)},
        {},
        ["audio_test holds 1 NaN", "row 3"],
    ),
    "negative_label": (damaged("lab_train", 4, -1), {}, ["lab_train: row 4 holds -1"]),
    "fractional_label": (damaged("lab_train", 4, 1.25), {}, ["lab_train: row 4 holds 1.25"]),
    "nan_label": (damaged("lab_test", 1, np.nan), {}, ["lab_test: row 1 holds nan"]),
    "label_too_large": (
        damaged("lab_test", 3, 3),
        {"num_classes": 3},
        ["lab_test: row 3 holds class 3", "3 classes run from 0 to 2"],
    ),
    "label_too_large_from_1": (
        {"lab_train": TRAIN_LABELS + 1, "lab_test": np.array([1, 4, 2, 3])},
        {"num_classes": 3},
        ["lab_test: row 1 holds class 4", "3 classes run from 1 to 3"],
    ),
    "labels_from_2": (
        {"lab_train": TRAIN_LABELS + 2, "lab_test": TEST_LABELS + 2},
        {},
        ["lab_train: the smallest class number of the file is 2"],
    ),
    "absent_class": (
        damaged("lab_train", TRAIN_LABELS == 1, 0),
        {},
        ["lab_train: no training row has class 1, out of 3 classes from 0 to 2"],
    ),
    "absent_class_from_1": (
        {
            "lab_train": np.where(TRAIN_LABELS == 1, 3, TRAIN_LABELS + 1),
            "lab_test": TEST_LABELS + 1,
        },
        {},
        ["lab_train: no training row has class 2, out of 3 classes from 1 to 3"],
    ),
    "stray_label": (
        damaged("lab_test", 0, 2e9),
        {},
        ["lab_train: no training row has class 3, 4,"],
    ),
    "absent_first_class": (
        damaged("lab_train", TRAIN_LABELS == 0, 2),
        {},
        ["lab_train: no training row has class 0, out of 3 classes from 0 to 2"],
    ),
    "class_expected": ({}, {"num_classes": 5}, ["lab_train: no training row has class 3, 4"]),
    "two_ones": (bad_one_hot([1, 0, 1]), {}, ["lab_train: row 4 is not one-hot (1, 0, 1); 2 of 9"]),
    "half": (bad_one_hot([0.5, 0, 0.5]), {}, ["lab_train: row 4 is not one-hot (0.5, 0, 0.5)"]),
    "one_and_half": (bad_one_hot([1, 0, 0.5]), {}, ["lab_train: row 4 is not one-hot"]),
    "nan_one_hot": (bad_one_hot([1, 0, np.nan]), {}, ["lab_train: row 4", "nan"]),
    "one_hot_width": (
        {"lab_train": one_hot(TRAIN_LABELS), "lab_test": one_hot(TEST_LABELS)},
        {"num_classes": 4},
        ["lab_train holds one-hot rows of 3", "4 classes"],
    ),
    "one_hot_widths": (
        {"lab_train": one_hot(TRAIN_LABELS), "lab_test": one_hot(TEST_LABELS, 4)},
        {},
        ["lab_train holds one-hot rows of 3", "lab_test one-hot rows of 4"],
    ),
    "one_hot_train_only": (
        {"lab_train": one_hot(TRAIN_LABELS)},
        {},
        ["lab_train holds one-hot rows of 3", "lab_test class numbers"],
    ),
    "one_hot_absent": (
        {"lab_train": one_hot(TRAIN_LABELS, 4), "lab_test": one_hot(TEST_LABELS, 4)},
        {},
        ["lab_train: no training row has class 3"],
    ),
    "dimensions": (
        {"visual_test": np.ones((4, 6))},
        {},
        ["visual features", "5 columns in train split", "6 in test split"],
    ),
}


@pytest.mark.parametrize("damage", DAMAGED_SIX_KEYS)
def test_damaged_file_is_named_in_one_line(tmp_path, damage):
    changes, arguments, words = DAMAGED_SIX_KEYS[damage]
    content = {k: v for k, v in (six_keys() | changes).items() if v is not None}
    message = error_line(write(tmp_path / "damaged.h5", content), **arguments)
    for word in words:
        assert word in message


DAMAGED_TABLES = {
    "no_marks": ({"Split": None}, ["Split is missing", "Label_ID, audio_feat, visual_feat"]),
    "two_marks": ({"Train_test": MARKS}, ["both Split and Train_test"]),
    "no_labels": ({"Label_ID": None}, ["Label_ID is missing"]),
    "all_training": ({"Split": np.ones(8, int)}, ["Split leaves no test rows"]),
    "no_training": ({"Split": np.zeros(8)}, ["Split leaves no training rows"]),
    "third_mark": ({"Split": np.array([1, 0, 1, 1, 1, 1, 2, 1])}, ["Split", "0, 2", "row 6 has 2"]),
    "mark_rank": ({"Split": np.ones((8, 2))}, ["Split", "(8, 2)"]),
    "mark_length": ({"Split": MARKS[:7]}, ["Split has 7", "audio_feat has 8"]),
    "mark_dtype": ({"Split": np.ones(8, complex)}, ["Split", "complex128"]),
    # Rows are those of the file, not of the split that they fall into.
    "nan": (
        {"visual_feat": np.diag(np.full(8, np.nan))[:, 6:]},
        ["visual_feat", "2 of 8 rows, first in row 6"],
    ),
    "label": ({"Label_ID": np.array([0, 1, 2, 0, 1, 2, 3, 0])}, ["Label_ID: row 6 holds class 3"]),
    "absent": ({"Label_ID": np.array([0, 1, 2, 0, 2, 2, 1, 0])}, ["Label_ID: no", "class 1"]),
}


@pytest.mark.parametrize("damage", DAMAGED_TABLES)
def test_damaged_table_is_named_in_one_line(tmp_path, damage):
    changes, words = DAMAGED_TABLES[damage]
    content = {k: v for k, v in (one_table(MARKS) | changes).items() if v is not None}
    message = error_line(write(tmp_path / "damaged.h5", content), num_classes=3)
    for word in words:
        assert word in message


def test_other_hdf5_file_is_told_what_is_expected(tmp_path):
    message = error_line(write(tmp_path / "other.h5", {"x": np.ones(2), "y": np.ones(2)}))
    for word in ("keys there: x, y", "audio_train", "audio_feat", "Train_test"):
        assert word in message
    assert "keys there: none" in error_line(write(tmp_path / "empty.h5", {}))


def test_broken_link_counts_as_missing(tmp_path):
    content = six_keys() | {"lab_test": h5py.SoftLink("/nowhere")}
    assert "lab_test is missing" in error_line(write(tmp_path / "link.h5", content))


def test_unreadable_paths_are_named(tmp_path, monkeypatch):
    assert "does not exist" in error_line(tmp_path / "absent.h5")
    assert "is a directory" in error_line(tmp_path)
    with pytest.raises(UserError, match="no such home folder"):
        load_feature_file("~no_such_user/clips.h5")
    page = tmp_path / "page.h5"
    page.write_text("<html>quota exceeded</html>")
    assert "is not an HDF5 file (27 bytes)" in error_line(page)
    page.write_bytes(b"")
    assert "is not an HDF5 file (0 bytes)" in error_line(page)

    def refuse(path, mode):
        raise PermissionError(13, "Permission denied", str(path))

    # Patched instead of chmod: the super-user reads every file.
    monkeypatch.setattr("builtins.open", refuse)
    assert "cannot be read (Permission denied)" in error_line(page)


def test_truncated_file_is_named(tmp_path):
    path = write(tmp_path / "cut.h5", six_keys())
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert "truncated" in error_line(path)


@pytest.mark.parametrize(("chunk_index", "rows"), [(1, "rows 4 to 7"), (2, "rows 8 to 8")])
def test_damage_inside_an_array_is_named_with_its_rows(tmp_path, monkeypatch, chunk_index, rows):
    monkeypatch.setattr("aadml_jax.data.readers.feature_files._BLOCK_BYTES", 4 * 3 * 4)
    path = tmp_path / "damaged.h5"
    with h5py.File(path, "w") as file:
        for key, value in six_keys().items():
            if key == "audio_train":
                stored = file.create_dataset(key, data=value, chunks=(4, 3), compression="gzip")
                chunk = stored.id.get_chunk_info(chunk_index)
            else:
                file[key] = value
    content = bytearray(path.read_bytes())
    for offset in range(chunk.byte_offset, chunk.byte_offset + chunk.size):
        content[offset] ^= 0xFF
    path.write_bytes(content)
    assert f"audio_train: {rows} cannot be read" in error_line(path)


def test_real_recordings_are_read():
    if not REAL_FILE.exists():
        pytest.skip(f"real data not at hand ({REAL_FILE})")
    dataset = load_feature_file(REAL_FILE, num_classes=10)
    assert (len(dataset.train), len(dataset.test)) == (2700, 300)
    assert (dataset.audio_dim, dataset.visual_dim, dataset.num_classes) == (128, 784, 10)
    with h5py.File(REAL_FILE) as file:
        np.testing.assert_array_equal(dataset.test.visual, file["visual_test"][:])
        np.testing.assert_array_equal(dataset.train.labels, file["lab_train"][:].reshape(-1))
