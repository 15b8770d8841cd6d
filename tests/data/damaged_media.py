"""Damaged TFRecord, WAV and IDX files: how each is made and what the error line says."""

import gzip
import io
import os
import struct
import zipfile
import zlib

import numpy as np
from damaged_features import Damaged
from written_by_hand import (
    TRAIN_IDS,
    bytes_feature,
    float_feature,
    idx,
    int64_feature,
    masked_crc,
    pictures,
    record,
    recordings,
    video,
    wav,
)

SOUND_RECORDS = b"".join(record(video(number)) for number in range(len(TRAIN_IDS)))
FIRST = len(record(video(0)))
NAN = float("nan")


def records(train, *flags, test=None):
    """Files of training and test records; the former is the one that the line names."""

    def build(folder):
        path = folder / "train.tfrecord"
        train(path) if callable(train) else path.write_bytes(train)
        last = record(video(4)) + record(video(5)) if test is None else test
        (folder / "test.tfrecord").write_bytes(last)
        arguments = (f"--train_records={path}", f"--test_records={folder / 'test.tfrecord'}")
        return Damaged(("--dataset=video_records", *arguments, *flags), path)

    return build


def second(**changes):
    """Another second record."""
    return records(record(video(0)) + record(video(1, **changes)))


def flipped(content, place):
    content = bytearray(content)
    content[place] ^= 0xFF
    return bytes(content)


def length_field(length):
    """A record's header."""
    content = struct.pack("<Q", length)
    return content + struct.pack("<I", masked_crc(content))


def loop(path):
    path.symlink_to(path.name)


RECORDS = {
    **{
        f"record cut in its {name}": (
            records(SOUND_RECORDS[: FIRST + place]),
            [f"byte {FIRST}", "cut"],
        )
        for name, place in {"length": 4, "sum of length": 10, "content": 60}.items()
    },
    "record cut in its sum": (records(SOUND_RECORDS[: FIRST - 2]), ["byte 0", "cut off"]),
    "record length damaged": (records(flipped(SOUND_RECORDS, FIRST)), [f"byte {FIRST}", "length"]),
    "record sum of length damaged": (records(flipped(SOUND_RECORDS, 8)), ["byte 0", "its length"]),
    "record content damaged": (records(flipped(SOUND_RECORDS, 40)), ["byte 0", "its content"]),
    "record sum damaged": (records(flipped(SOUND_RECORDS, FIRST - 1)), ["byte 0", "its content"]),
    "record of a huge length": (records(length_field(2**62) + bytes(99)), ["has 46116"]),
    "record longer than the file": (records(length_field(2**20) + bytes(99)), ["cut off"]),
    "record file of zeros": (records(bytes(4096)), ["byte 0", "its length"]),
    "record file compressed": (records(gzip.compress(SOUND_RECORDS)), ["is compressed"]),
    "record file of text": (
        records(b"<html>quota exceeded</html>"),
        ["byte 0", "its length", "a web page, not a TFRecord file"],
    ),
    "record file compressed by zlib": (
        records(zlib.compress(SOUND_RECORDS)),
        ["is compressed", "zlib.decompress"],
    ),
    "record file of HDF5": (
        records(b"\x89HDF\r\n\x1a\n" + bytes(99)),
        ["an HDF5 file, not a TFRecord file"],
    ),
    "record of no Example": (records(record(b"\xff" * 40)), ["record 0 is no Example"]),
    "record of nothing": (records(record(b"")), ["record 0 lacks id", "there: none"]),
    "record Example cut": (records(record(video(0)[:-3])), ["record 0"]),
    "record nested": (records(record(b"\x0b" * 10**5)), ["record 0 is no Example"]),
    "record without id": (second(id=None), ["record 1 lacks id"]),
    "record without labels": (second(labels=None), ["record 1 lacks labels"]),
    "record without sound": (second(mean_audio=None), ["record 1 lacks mean_audio"]),
    "record of another feature": (
        second(mean_audio=None, **{"a\nb": int64_feature(1)}),
        ["there: a\\nb, id"],
    ),
    "record of no labels": (second(labels=int64_feature()), ["record 1: labels holds no int64"]),
    "record of labels as text": (second(labels=bytes_feature(b"1")), ["labels holds no int64"]),
    "record of labels as numbers": (second(labels=float_feature(1)), ["labels holds no int64"]),
    "record of sound as numbers": (second(mean_audio=int64_feature(1)), ["holds no float"]),
    "record of no sound": (second(mean_audio=float_feature()), ["mean_audio holds no float"]),
    "record ragged": (second(mean_rgb=float_feature(1, 2)), ["record 1: mean_rgb has 2 values"]),
    "record nan": (
        second(mean_rgb=float_feature(1, 2, NAN, 4, 5)),
        ["record 1: mean_rgb holds NaN"],
    ),
    "record inf": (second(mean_audio=float_feature(1, float("inf"), 3)), ["mean_audio holds NaN"]),
    "record -inf": (second(mean_audio=float_feature(1, -float("inf"), 3)), ["mean_audio holds"]),
    "record negative label": (second(labels=int64_feature(-1)), ["the label -1 is not from 0"]),
    "record label huge": (second(labels=int64_feature(10**12)), ["the label 1000000000000"]),
    "record label off by one": (
        records(SOUND_RECORDS, "--num_classes=2"),
        ["record 0: the label 2 is not from 0 to 1"],
    ),
    "record id twice": (records(SOUND_RECORDS + record(video(2))), ["record 4 has the id 'c'"]),
    "record id in both splits": (
        records(SOUND_RECORDS, test=record(video(0))),
        ["record 0 has the id 'a'", "record 0 of"],
    ),
    "record one class": (
        records(
            b"".join(record(video(n, labels=int64_feature(0))) for n in range(4)),
            test=record(video(5, labels=int64_feature(0))),
        ),
        ["only one class"],
    ),
    "record file empty": (records(b""), ["train.tfrecord", "no records"]),
    "record file absent": (records(lambda path: None), ["does not exist"]),
    "record file is a directory": (records(lambda path: path.mkdir()), ["is a directory"]),
    "record file is a pipe": (records(os.mkfifo), ["not a regular file"]),
    "record file is a loop of links": (records(loop), ["symbolic links"]),
}

SOUND_WAV = wav(1000 * np.sin(np.arange(1600)))
IMAGES, DIGITS = pictures()
BEYOND = np.where(np.arange(len(DIGITS)) == 7, 10, DIGITS)
NAME = "3_ann_0.wav"


def zipped(files, compression=zipfile.ZIP_DEFLATED):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", compression) as archive:
        for name, data in files.items():
            archive.writestr(f"set/recordings/{name}", data)
    return content.getvalue()


def digits(named, *, archive=None, files=None, images=None, labels=None):
    """The sources of av_digits, of which `named` is the one that the line names."""

    def build(folder):
        paths = {name: folder / name for name in ("recordings", "images.gz", "labels.gz")}
        contents = {
            "recordings": ARCHIVE if archive is None else archive,
            "images.gz": gzip.compress(idx(IMAGES)) if images is None else images,
            "labels.gz": gzip.compress(idx(DIGITS)) if labels is None else labels,
        }
        if files is not None:
            paths["recordings"].mkdir()
            del contents["recordings"]
            contents |= {f"recordings/{name}": content for name, content in files.items()}
        for name, content in contents.items():
            content(folder / name) if callable(content) else (folder / name).write_bytes(content)
        return Damaged(tuple(paths.values()), paths[named], "av_digits")

    return build


def one_wav(content):
    """Another content of one recording."""
    return digits("recordings", files=recordings() | {NAME: content})


def in_zip(content):
    return digits("recordings", archive=content)


def images(content):
    return digits("images.gz", images=content)


def idx_of(*header, data=b""):
    return struct.pack(f">4B{len(header) - 4}I", *header) + data


ARCHIVE = zipped(recordings())
CENTRAL = ARCHIVE.find(b"PK\1\2")
GZIPPED = gzip.compress(idx(IMAGES))
PLAIN = idx(IMAGES)

WAVS = {
    **{
        f"wav cut in its {name}": (one_wav(SOUND_WAV[:place]), [NAME])
        for name, place in {
            "first byte": 0,
            "RIFF header": 6,
            "form": 14,
            "data header": 40,
            "data": 1000,
            "last sample": -1,
        }.items()
    },
    "wav of text": (one_wav(b"<html>quota exceeded</html>"), [NAME, "no sound WAV"]),
    "wav of FLAC": (one_wav(b"fLaC" + bytes(99)), [NAME, "a FLAC recording", "convert it to WAV"]),
    "wav that Git keeps": (
        one_wav(b"version https://git-lfs.github.com/spec/v1\noid sha256:0"),
        [NAME, "git lfs pull"],
    ),
    "wav of zeros": (one_wav(bytes(999)), [NAME, "no sound WAV"]),
    "wav of no samples": (one_wav(wav([])), [NAME, "0 samples"]),
    "wav of two channels": (one_wav(wav([1] * 999, channels=2)), [NAME, "2 channels"]),
    "wav of 8 bits": (one_wav(wav([1] * 999, bits=8)), [NAME, "8 bits"]),
    "wav of another rate": (one_wav(wav([1] * 999, rate=44100)), [NAME, "44100 Hz"]),
    "wav of no rate": (one_wav(wav([1] * 999, rate=0)), [NAME]),
    "wav of no channels": (one_wav(wav([1] * 999, channels=0)), [NAME]),
    "wav of floats": (
        one_wav(SOUND_WAV[:20] + b"\3" + SOUND_WAV[21:]),
        [NAME, "format", "convert it to WAV"],
    ),
    "wav huge by its header": (
        one_wav(SOUND_WAV[:40] + b"\xfe\xff\xff\x7f" + SOUND_WAV[44:]),
        [NAME, "announces"],
    ),
    "wav of over a minute": (one_wav(wav([1] * 480001)), [NAME, "480001 samples"]),
    "wav of a megabyte": (one_wav(wav([1] * 2**20)), [NAME, "too many for a digit"]),
    "wav of another name": (
        digits("recordings", files={**recordings(), "eight.wav": SOUND_WAV}),
        ["eight.wav is not named"],
    ),
    "wav is a pipe": (one_wav(os.mkfifo), [NAME, "not a regular file"]),
    "wav is a loop of links": (one_wav(loop), [NAME, "symbolic links"]),
    "wav is a directory": (one_wav(lambda path: path.mkdir()), [NAME, "is a directory"]),
    "wavs are none": (digits("recordings", files={}), ["none named digit_speaker_number.wav"]),
    "wavs are for training only": (
        digits("recordings", files=recordings(numbers=(5, 6))),
        ["audio of test split", "is empty"],
    ),
    "wavs lack a digit": (
        digits("recordings", files=recordings(range(9))),
        ["no training row has class 9"],
    ),
    "wavs twice": (
        in_zip(zipped({**recordings(), f"again/{NAME}": SOUND_WAV})),
        [NAME, "stands twice"],
    ),
    **{
        f"zip cut in its {name}": (in_zip(ARCHIVE[:place]), ["is damaged"])
        for name, place in {
            "first byte": 0,
            "local header": 20,
            "data": CENTRAL // 2,
            "central directory": CENTRAL + 99,
            "end record": -3,
        }.items()
    },
    "zip data damaged": (in_zip(flipped(ARCHIVE, 200)), ["is damaged"]),
    "zip directory damaged": (in_zip(flipped(ARCHIVE, CENTRAL)), ["is damaged"]),
    "zip of a large file": (
        in_zip(zipped(recordings() | {NAME: bytes(2**28)})),
        [NAME, "has 268435456 bytes"],
    ),
    "zip of nothing": (in_zip(zipped({})), ["none named"]),
    "zip is a tar": (
        in_zip(bytes(257) + b"ustar" + bytes(250)),
        ["a tar archive, not the zip archive of the recordings"],
    ),
    "zip is a pipe": (in_zip(os.mkfifo), ["not a regular file"]),
    "zip is a loop of links": (in_zip(loop), ["symbolic links"]),
}

IDX = {
    **{
        f"idx cut in its {name}": (images(PLAIN[:place]), [words])
        for name, place, words in (
            ("first byte", 0, "begins with nothing"),
            ("magic", 3, "begins with 00 00 08"),
            ("dimensions", 9, "ends within its header"),
            ("data", -1, "holds 599"),
        )
    },
    "idx longer": (images(PLAIN + b"\0"), ["announces 600 values and holds more"]),
    "idx of text": (
        images(b"<html>"),
        ["is no IDX file", "begins with 3c 68 74 6d", "a web page", "fetch it again"],
    ),
    "idx gzip of a tar": (
        images(gzip.compress(bytes(257) + b"ustar" + bytes(250))),
        ["is no IDX file", "a tar archive"],
    ),
    "idx of floats": (images(idx_of(0, 0, 13, 3, 1, 1, 1)), ["begins with 00 00 0d 03"]),
    "idx of another rank": (images(idx(DIGITS)), ["in 3 dimensions"]),
    "idx huge": (images(idx_of(0, 0, 8, 3, *[2**32 - 1] * 3)), ["announces an array of shape"]),
    "idx large": (images(idx_of(0, 0, 8, 3, 2**8, 2**10, 2**10)), ["holds 0"]),
    "idx of no images": (images(idx_of(0, 0, 8, 3, 0, 4, 3)), ["shape (0, 4, 3)"]),
    "idx gzip cut": (images(GZIPPED[: len(GZIPPED) // 2]), ["is damaged"]),
    "idx gzip header cut": (images(GZIPPED[:5]), ["is damaged"]),
    "idx gzip sum cut": (images(GZIPPED[:-6]), ["is damaged"]),
    "idx gzip sum damaged": (images(flipped(GZIPPED, -6)), ["is damaged", "CRC"]),
    "idx gzip data damaged": (images(flipped(GZIPPED, len(GZIPPED) // 2)), ["images.gz"]),
    "idx gzip followed by text": (images(GZIPPED + b"text"), ["is damaged"]),
    "idx gzip bomb": (
        images(lambda path: path.write_bytes(gzip.compress(PLAIN + bytes(2**26), 1))),
        ["announces 600 values and holds more"],
    ),
    "idx fewer images": (images(idx(IMAGES[:-1])), ["49 images", "50 labels"]),
    "idx images of a digit": (
        digits("images.gz", images=idx(IMAGES[DIGITS != 4]), labels=idx(DIGITS[DIGITS != 4])),
        ["0 images of the digit 4"],
    ),
    "idx labels beyond 9": (digits("labels.gz", labels=idx(BEYOND)), ["label 10 for image 7"]),
    "idx is a directory": (images(lambda path: path.mkdir()), ["is a directory"]),
    "idx is a pipe": (images(os.mkfifo), ["not a regular file"]),
    "idx is a loop of links": (images(loop), ["symbolic links"]),
}
