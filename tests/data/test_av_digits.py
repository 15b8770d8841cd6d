"""Spoken and written digits, from small files written by hand and from the published ones."""

import gzip
import math
import os
import pathlib
import zipfile

import h5py
import numpy as np
import pytest
from written_by_hand import idx, pictures, recordings, wav

from aadml_jax.data.readers.av_digits import FILE_NAMES, NUM_RECORDINGS, open_av_digits
from aadml_jax.data.readers.idx import read_idx
from aadml_jax.data.readers.spoken_digits import log_mel_summary, read_recording

REFERENCE = pathlib.Path(__file__).parents[3] / "shared" / "data" / "fsdd_mnist.h5"
IMAGES, DIGITS = pictures()
SPEAKERS, NUMBERS = ("ann", "bob"), (0, 5)


def sources(folder, *, archive=False, plain=False):
    """Paths of recordings, images and labels."""
    paths = [folder / name for name in ("recordings", "images", "labels")]
    if archive:
        with zipfile.ZipFile(paths[0], "w") as file:
            for name, content in reversed(recordings().items()):
                file.writestr(f"set/{name}", content)
            file.writestr("set/README.md", "text")
    else:
        (paths[0] / "within").mkdir(parents=True)
        for number, (name, content) in enumerate(recordings().items()):
            (paths[0] / ("within" if number % 2 else "") / name).write_bytes(content)
    for path, array in zip(paths[1:], (IMAGES, DIGITS), strict=True):
        path.write_bytes(idx(array) if plain else gzip.compress(idx(array)))
    return paths


def image_numbers(visual):
    """Which image each row is; no two are alike."""
    flat = (IMAGES.reshape(len(IMAGES), -1) / 255).astype(np.float32)
    equal = (visual[:, None] == flat[None]).all(axis=2)
    assert (equal.sum(axis=1) == 1).all()
    return equal.argmax(axis=1)


@pytest.mark.parametrize("archive", [False, True])
@pytest.mark.parametrize("plain", [False, True])
def test_recordings_are_paired_with_images_of_their_digit(tmp_path, archive, plain):
    dataset = open_av_digits(*sources(tmp_path, archive=archive, plain=plain), num_recordings=40)
    assert (dataset.num_classes, dataset.audio_dim, dataset.visual_dim) == (10, 128, 12)
    assert dataset.class_names == tuple("0123456789")
    files = recordings()
    used = []
    for split, number in ((dataset.test, 0), (dataset.train, 5)):
        np.testing.assert_array_equal(split.labels, np.repeat(np.arange(10), 2))
        for row, (digit, speaker) in enumerate((d, s) for d in range(10) for s in SPEAKERS):
            content = files[f"{digit}_{speaker}_{number}.wav"]
            expected = log_mel_summary(read_recording(content, what="x"))
            np.testing.assert_array_equal(split.audio[row], expected)
        chosen = image_numbers(split.visual)
        np.testing.assert_array_equal(DIGITS[chosen], split.labels)
        used += chosen.tolist()
    assert len(set(used)) == len(used) == 40


def test_the_pairing_is_always_the_same(tmp_path):
    first, second = tmp_path / "1", tmp_path / "2"
    first.mkdir()
    second.mkdir()
    datasets = [
        open_av_digits(*sources(first)),
        open_av_digits(*sources(second, archive=True, plain=True)),
    ]
    assert datasets[0].fingerprint() == datasets[1].fingerprint()
    chosen = image_numbers(datasets[0].train.visual)
    # Drawn, not the first ones of each digit.
    assert any(
        np.flatnonzero(digit == DIGITS)[:2].tolist() != sorted(chosen[2 * digit : 2 * digit + 2])
        for digit in range(10)
    )


def test_read_idx_by_hand(tmp_path):
    content = bytes([0, 0, 8, 2, 0, 0, 0, 2, 0, 0, 0, 3, 1, 2, 3, 4, 5, 255])
    for stored in (
        content,
        gzip.compress(content),
        gzip.compress(content[:7]) + gzip.compress(content[7:]),
    ):
        (tmp_path / "x").write_bytes(stored)
        array = read_idx(tmp_path / "x", num_dimensions=2)
        np.testing.assert_array_equal(array, [[1, 2, 3], [4, 5, 255]])
        assert array.dtype == np.uint8


def test_read_recording_by_hand():
    content = wav([0, 1, -1, 32767, -32768])
    expected = [0, 1 / 32768, -1 / 32768, 32767 / 32768, -1]
    np.testing.assert_array_equal(read_recording(content, what="x"), expected)
    # Other parts of a file may stand before the samples and after them.
    extra = b"LIST" + (4).to_bytes(4, "little") + b"note"
    body = content[8:36] + extra + content[36:] + extra
    content = b"RIFF" + len(body).to_bytes(4, "little") + body
    np.testing.assert_array_equal(read_recording(content, what="x"), expected)


def plain_log_mel(samples):
    """The definition, with sums of cosines and sines and loops over windows and bands."""
    mel = lambda hertz: 1127 * math.log(1 + hertz / 700)  # noqa: E731
    low, high = mel(125), mel(3800)
    corners = [low + (high - low) * place / 17 for place in range(18)]
    samples = list(samples) + [0.0] * max(0, 760 - len(samples))
    n = np.arange(200)
    hann = 0.5 * (1 - np.cos(2 * np.pi * n / 200))
    rows = []
    for start in range(0, len(samples) - 199, 80):
        window = np.array(samples[start : start + 200]) * hann
        bands = [0.0] * 16
        for k in range(129):
            cosine = math.fsum(window * np.cos(2 * np.pi * k * n / 256))
            sine = math.fsum(window * np.sin(2 * np.pi * k * n / 256))
            height = mel(k * 8000 / 256)
            for band in range(16):
                lower, centre, upper = corners[band : band + 3]
                if lower < height <= centre:
                    bands[band] += math.hypot(cosine, sine) * (height - lower) / (centre - lower)
                elif centre < height < upper:
                    bands[band] += math.hypot(cosine, sine) * (upper - height) / (upper - centre)
        rows.append([math.log(band + 0.01) for band in bands])
    sizes = [len(rows) // 8 + (part < len(rows) % 8) for part in range(8)]
    starts = [sum(sizes[:part]) for part in range(8)]
    return [
        math.fsum(row[band] for row in rows[start : start + size]) / size
        for start, size in zip(starts, sizes, strict=True)
        for band in range(16)
    ]


@pytest.mark.parametrize("length", [1, 500, 760, 839, 840, 1511])
def test_log_mel_is_its_definition(length):
    samples = np.random.default_rng(length).normal(size=length) / 4
    actual = log_mel_summary(samples)
    assert (actual.shape, actual.dtype) == ((128,), np.float32)
    np.testing.assert_allclose(actual, plain_log_mel(samples), rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("band", [2, 7, 13])
def test_a_tone_is_loudest_in_its_band(band):
    low, high = (1127 * math.log(1 + hertz / 700) for hertz in (125, 3800))
    centre = low + (high - low) * (band + 1) / 17
    hertz = 700 * (math.exp(centre / 1127) - 1)
    summary = log_mel_summary(np.sin(2 * np.pi * hertz * np.arange(8000) / 8000)).reshape(8, 16)
    assert (summary.argmax(axis=1) == band).all()


def test_silence_and_parts_of_a_recording():
    np.testing.assert_allclose(log_mel_summary(np.zeros(4000)), math.log(0.01), rtol=1e-6)
    loud_at_the_end = np.zeros(8000)
    loud_at_the_end[4100:] = np.random.default_rng(0).normal(size=3900)
    summary = log_mel_summary(loud_at_the_end).reshape(8, 16)
    assert (summary[:4] < -3).all() and (summary[5:] > -3).all()


def test_published_files_give_the_reference():
    folder = os.environ.get("AADML_TEST_FSDD")
    if not folder or not REFERENCE.exists():
        pytest.skip(f"AADML_TEST_FSDD names no folder of the sources, or {REFERENCE} is absent")
    paths = [pathlib.Path(folder) / name for name in FILE_NAMES]
    dataset = open_av_digits(*paths, num_recordings=NUM_RECORDINGS)
    pixels = read_idx(paths[1], num_dimensions=3)
    pixels = pixels.reshape(len(pixels), -1)
    images = {image.tobytes() for image in pixels}
    with h5py.File(REFERENCE) as file:
        theirs = {key: file[key][:] for key in file}
    for name, split in (("train", dataset.train), ("test", dataset.test)):
        audio, visual, labels, speakers, chosen = (
            theirs[f"{key}_{name}"] for key in ("audio", "visual", "lab", "speaker", "image_index")
        )
        labels = labels.reshape(-1)
        for digit in range(10):
            # Our rows are in the order of their speakers' names, 6 in all.
            for ours in np.split(split.audio[split.labels == digit], 6):
                assert (
                    sum(
                        same_set(audio[(labels == digit) & (speakers == speaker)], ours)
                        for speaker in range(6)
                    )
                    == 1
                )
        np.testing.assert_allclose(visual, pixels[chosen.reshape(-1)] / 255, atol=1e-6)
        assert all(np.rint(row * 255).astype(np.uint8).tobytes() in images for row in split.visual)


def same_set(expected, actual):
    distances = np.abs(expected[:, None] - actual[None]).max(axis=2)
    return expected.shape == actual.shape and all(
        (distances.min(axis=axis) < 1e-4).all() for axis in (0, 1)
    )
