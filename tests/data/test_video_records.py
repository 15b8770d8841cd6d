"""TFRecord files written by hand: framing, checksums and protobuf are independent of ours."""

import struct

import numpy as np
import pytest
from damaged_media import SOUND_RECORDS
from tensorflow_datasets.proto import tf_example_pb2
from written_by_hand import (
    CLIP_LABELS,
    bytes_feature,
    crc32c,
    example,
    features,
    float_feature,
    message,
    record,
    varint,
    video,
)

from aadml_jax.data.readers.video_records import open_video_records
from aadml_jax.errors import UserError


def opened(folder, train, test, **options):
    (folder / "train").write_bytes(train)
    (folder / "test").write_bytes(test)
    return open_video_records([folder / "train"], [folder / "test"], name="videos", **options)


def same_values(dataset):
    loaded = dataset.loaded()
    for split, numbers in ((loaded.train, range(4)), (loaded.test, (4, 5))):
        np.testing.assert_array_equal(split.audio, [features(n)[0] for n in numbers])
        np.testing.assert_array_equal(split.visual, [features(n)[1] for n in numbers])
        expected = [[CLIP_LABELS[n] == 0, CLIP_LABELS[n] == 1, True] for n in numbers]
        np.testing.assert_array_equal(split.labels[:, :3], expected)


TEST_RECORDS = record(video(4)) + record(video(5))


def test_the_writer_is_right():
    # Published: RFC 3720, B.4, and the catalogue of CRC algorithms.
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA
    # The header of an empty record, as TensorFlow writes it.
    assert record(b"")[8:12] == b"\x29\x03\x98\x07"
    # The protobuf documentation's example of a varint.
    assert varint(150) == b"\x96\x01"
    parsed = tf_example_pb2.Example.FromString(video(0)).features.feature
    assert list(parsed["labels"].int64_list.value) == [0, 2]
    assert parsed["id"].bytes_list.value[0] == b"a"
    np.testing.assert_array_equal(parsed["mean_audio"].float_list.value, features(0)[0])


def test_records_are_read_with_their_values(tmp_path):
    dataset = opened(tmp_path, SOUND_RECORDS, TEST_RECORDS)
    same_values(dataset)
    assert (dataset.name, dataset.num_classes, dataset.is_multi_label) == ("videos", 3, True)
    assert dataset.source_files == (str(tmp_path / "train"), str(tmp_path / "test"))
    assert opened(tmp_path, SOUND_RECORDS, TEST_RECORDS, num_classes=7).train.labels.shape == (4, 7)


def test_rows_are_read_in_any_order_over_several_files(tmp_path):
    paths = []
    for number in range(4):
        paths.append(tmp_path / f"train{number}")
        paths[-1].write_bytes(record(video(number)))
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "test").write_bytes(TEST_RECORDS)
    dataset = open_video_records([*paths, tmp_path / "empty"], [tmp_path / "test"], name="videos")
    same_values(dataset)
    rows = np.array([2, 0, 3])
    taken = dataset.train.take(rows)
    np.testing.assert_array_equal(taken.visual, [features(row)[1] for row in rows])


def test_features_in_any_order_and_form(tmp_path):
    audio, visual = features(0)
    unpacked = message((2, b"".join(b"\x0d" + struct.pack("<f", value) for value in audio)))
    named = {
        "mean_rgb": float_feature(*visual),
        "other": bytes_feature(b"\xff\x00"),
        "mean_audio": unpacked,
        "labels": message((3, b"\x08\x00\x08\x02")),
        "video_id": bytes_feature(b"\xff not text"),
    }
    first = record(example(named))
    dataset = opened(tmp_path, first + SOUND_RECORDS[len(record(video(0))) :], TEST_RECORDS)
    same_values(dataset)
    with pytest.raises(UserError, match="record 4 has the id '� not text', as record 0 of"):
        opened(tmp_path, first + SOUND_RECORDS[len(record(video(0))) :] + first, TEST_RECORDS)


def test_a_record_that_changed_since_is_refused(tmp_path):
    dataset = opened(tmp_path, SOUND_RECORDS, TEST_RECORDS)
    content = bytearray(SOUND_RECORDS)
    content[40] ^= 1
    (tmp_path / "train").write_bytes(content)
    with pytest.raises(UserError, match=r"train: the record at byte 0 is damaged \(its content\)"):
        dataset.train.take(slice(None))
    dataset.train.take(np.array([1, 2]))
    (tmp_path / "train").write_bytes(SOUND_RECORDS[:-9])
    with pytest.raises(UserError, match="is damaged"):
        dataset.train.take(np.array([3]))
    (tmp_path / "train").unlink()
    with pytest.raises(UserError, match="does not exist"):
        dataset.train.take(np.array([1]))


def test_no_files_are_refused(tmp_path):
    with pytest.raises(UserError, match="no TFRecord files for the test rows"):
        (tmp_path / "train").write_bytes(SOUND_RECORDS)
        open_video_records([tmp_path / "train"], [], name="videos")
