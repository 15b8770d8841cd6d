"""Feature files stored in unusual but valid ways load with the right values."""

import h5py
import numpy as np
import pytest
from feature_content import MARKS, TEST_LABELS, TRAIN_LABELS, one_hot, one_table, six_keys

from aadml_jax.data import load_feature_file, open_feature_file
from aadml_jax.errors import UserError

STORAGE = {
    "gzip and shuffle": {"chunks": True, "compression": "gzip", "shuffle": True},
    "lzf and checksum": {"chunks": True, "compression": "lzf", "fletcher32": True},
    "growing": {"maxshape": True, "chunks": True},
    "chunks larger than the array": {"maxshape": True, "chunks": 64},
}


def store(file, key, value, storage):
    options = STORAGE[storage].copy()
    if "maxshape" in options:
        options["maxshape"] = (None,) * value.ndim
    if options["chunks"] == 64:
        options["chunks"] = (64,) * value.ndim
    file.create_dataset(key, data=value, **options)


def write(path, content, storage):
    with h5py.File(path, "w") as file:
        for key, value in content.items():
            store(file, key, value, storage)
    return path


@pytest.mark.parametrize("dtype", ["<f2", ">f4", ">f8"])
@pytest.mark.parametrize("storage", STORAGE)
def test_ways_of_storage(tmp_path, storage, dtype):
    content = {
        key: value if "lab" in key else value.astype(dtype) for key, value in six_keys().items()
    }
    dataset = load_feature_file(write(tmp_path / "Füße 猫.h5", content, storage))
    for split, name in ((dataset.train, "train"), (dataset.test, "test")):
        np.testing.assert_array_equal(split.audio, content[f"audio_{name}"].astype(np.float32))
        np.testing.assert_array_equal(split.visual, content[f"visual_{name}"].astype(np.float32))
    np.testing.assert_array_equal(dataset.train.labels, TRAIN_LABELS)
    assert dataset.name == "Füße 猫"


def test_a_table_with_marks_of_any_length_of_text(tmp_path):
    marks = np.array([mark.decode() for mark in MARKS], object)
    content = one_table(marks)
    with h5py.File(tmp_path / "table.h5", "w") as file:
        for key, value in content.items():
            if key == "Split":
                file.create_dataset(key, data=value, dtype=h5py.string_dtype())
            else:
                store(file, key, value, "gzip and shuffle")
    dataset = load_feature_file(tmp_path / "table.h5")
    np.testing.assert_array_equal(dataset.test.audio, content["audio_feat"][MARKS == b"0"])


def test_constant_arrays_compressed_at_best_are_not_taken_for_lies(tmp_path, monkeypatch):
    monkeypatch.setattr("aadml_jax.data.readers.hdf5._ALWAYS_ALLOWED_BYTES", 0)
    rows, path = 10**6, tmp_path / "constant.h5"
    labels = np.zeros(rows, np.int64)
    labels[rows // 2 :] = 1
    options = {"chunks": (10**6,), "compression": "gzip", "compression_opts": 9}
    with h5py.File(path, "w") as file:
        for key in ("audio_train", "visual_train"):
            options_of_rows = options | {"chunks": (10**6, 1)}
            file.create_dataset(key, data=np.zeros((rows, 1), np.int8), **options_of_rows)
        file.create_dataset("lab_train", data=labels, **options)
        file["audio_test"] = file["visual_test"] = np.zeros((2, 1), np.int8)
        file["lab_test"] = np.arange(2)
        assert file["lab_train"].id.get_storage_size() * 800 < labels.nbytes
    assert len(load_feature_file(path).train) == rows


def test_known_numbers_of_features_decide_between_axes(tmp_path):
    random = np.random.default_rng(4)
    content = six_keys()
    behind = random.normal(size=(9, 3, 1)).astype(np.float32)
    series = random.normal(size=(9, 6, 5)).astype(np.float32)
    content |= {
        "audio_train": behind,
        "audio_test": content["audio_test"][:, :, None],
        "visual_train": series,
    }
    path = write(tmp_path / "known.h5", content, "gzip and shuffle")
    dataset = open_feature_file(path, dims=(3, 5))
    assert dataset.features_in_words() == (
        "3 audio and 5 visual features (visual averaged over 1 or 6 time steps)"
    )
    np.testing.assert_array_equal(dataset.loaded().train.audio, behind[:, :, 0])
    np.testing.assert_array_equal(dataset.loaded().test.audio, six_keys()["audio_test"])
    expected = [[sum(float(step) for step in column) / 6 for column in row.T] for row in series]
    np.testing.assert_allclose(dataset.loaded().train.visual, expected, rtol=1e-5, atol=1e-7)
    # Of the six steps' length, the features seem to stand in the middle.
    with pytest.raises(
        UserError, match=r"visual_train has shape \(9, 6, 5\), but 6 features.*trans"
    ):
        open_feature_file(path, dims=(3, 6))
    # Files may have other numbers than the published ones, where no axis has those.
    plain = write(tmp_path / "plain.h5", six_keys(), "growing")
    assert open_feature_file(plain, dims=(128, 1024)).features_in_words() == (
        "3 audio and 5 visual features"
    )


def test_one_time_step_is_no_average(tmp_path):
    content = six_keys()
    content["audio_train"] = content["audio_train"][:, None]
    dataset = open_feature_file(write(tmp_path / "one.h5", content, "growing"))
    assert dataset.features_in_words() == "3 audio and 5 visual features"
    np.testing.assert_array_equal(dataset.loaded().train.audio, six_keys()["audio_train"])


def test_multi_hot_rows_compressed(tmp_path):
    rows = one_hot(TRAIN_LABELS, 5) + one_hot(TRAIN_LABELS + 1, 5)
    labels = {"lab_train": rows.astype(np.uint8), "lab_test": one_hot(TEST_LABELS, 5) > 0}
    path = write(tmp_path / "several.h5", six_keys() | labels, "gzip and shuffle")
    dataset = load_feature_file(path, multi_label=True)
    np.testing.assert_array_equal(dataset.train.labels, rows > 0)
    np.testing.assert_array_equal(dataset.test.labels, one_hot(TEST_LABELS, 5) > 0)


def test_links_within_the_file(tmp_path):
    content = six_keys()
    with h5py.File(tmp_path / "links.h5", "w") as file:
        for key, value in content.items():
            file[f"stored/{key}"] = value
            file[key] = h5py.SoftLink(f"/stored/{key}") if "audio" in key else file[f"stored/{key}"]
    dataset = load_feature_file(tmp_path / "links.h5")
    np.testing.assert_array_equal(dataset.train.audio, content["audio_train"])


def test_integer_features(tmp_path):
    content = six_keys() | {"audio_train": np.arange(27).reshape(9, 3).astype(">i2")}
    dataset = load_feature_file(write(tmp_path / "integers.h5", content, "growing"))
    np.testing.assert_array_equal(dataset.train.audio, np.arange(27).reshape(9, 3))
