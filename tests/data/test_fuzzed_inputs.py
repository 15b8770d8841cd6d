"""Parsers on bytes of any kind: a result that is sound, or one line, after few calls."""

import gzip
import pathlib
import sys
import tempfile
import zipfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from written_by_hand import (
    clip_list,
    clip_npz,
    idx,
    npy,
    npy_of,
    npz,
    pictures,
    record,
    video,
    wav,
)

from aadml_jax.data.readers.clip_files import open_clip_files
from aadml_jax.data.readers.idx import read_idx
from aadml_jax.data.readers.npy_files import read_npy, read_npz
from aadml_jax.data.readers.spoken_digits import log_mel_summary, read_recording
from aadml_jax.data.readers.video_records import open_video_records
from aadml_jax.errors import UserError

# Of functions, in C or not; a sound file takes up to two thousand.
MOST_CALLS = 20_000

HEADERS = st.builds(
    "{{'descr': {!r}, 'fortran_order': {!r}, 'shape': {!r}, }}".format,
    st.sampled_from(["<f4", ">f8", "|i1", "<i0", "<f3", "|O", "|V9", [("a", "<f4")], 3]),
    st.sampled_from([True, False, None, 2]),
    st.one_of(st.lists(st.integers(-2, 4), max_size=4), st.lists(st.integers(), max_size=3)).map(
        tuple
    ),
)
SOUND = {
    "npy": [npy(np.ones(3, np.float32)), npy(np.ones((2, 3), ">f8", order="F"))],
    "npz": [clip_npz(0), npz({"audio": np.ones(9), "visual": np.ones(3)}, zipfile.ZIP_DEFLATED)],
    "csv": [clip_list().encode(), clip_list([("a", '"x, y"', "train")]).encode()],
    "tfrecord": [b"".join(record(video(number)) for number in range(3))],
    "wav": [wav(range(-400, 400))],
    "idx": [idx(pictures(1)[0]), gzip.compress(idx(pictures(1)[0]), mtime=0)],
}


@st.composite
def mutated(draw, kind):
    """A sound file of which some bytes are other ones, left out or put in; or any bytes."""
    if draw(st.integers(0, 4)) == 0:
        return draw(st.binary(max_size=300))
    content = bytearray(draw(st.sampled_from(SOUND[kind])))
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(content)))
        taken, put = draw(st.integers(0, 4)), draw(st.binary(max_size=8))
        content[place : place + taken] = put
    end = draw(st.one_of(st.just(len(content)), st.integers(0, len(content))))
    return bytes(content[:end])


def sound_or_one_line(read):
    """The result, or None after a line."""
    calls = 0

    def count(frame, event, argument):
        nonlocal calls
        calls += event in ("call", "c_call")
        assert calls <= MOST_CALLS

    former = sys.getprofile()
    sys.setprofile(count)
    try:
        result = read()
    except UserError as error:
        assert str(error).isprintable() and str(error)
        result = None
    finally:
        sys.setprofile(former)
    assert calls <= MOST_CALLS
    return result


def is_sound(array):
    assert array.dtype.kind in "iuf" and array.size > 0
    array.copy()


def check_npy(path):
    array = sound_or_one_line(lambda: read_npy(path))
    if array is not None:
        is_sound(array)


def check_npz(path):
    arrays = sound_or_one_line(lambda: read_npz(path, ("audio", "visual")))
    for array in arrays or ():
        is_sound(array)


def check_clip_list(path):
    (path.parent / "a.npz").write_bytes(clip_npz(0))
    (path.parent / "b.npz").write_bytes(clip_npz(1))
    opened = sound_or_one_line(lambda: open_clip_files(path, allow_missing=True))
    if opened is not None:
        assert opened.dataset.num_classes >= 2
        opened.dataset.loaded()


def check_records(path):
    test = path.with_name("test.tfrecord")
    test.write_bytes(record(video(4)))
    dataset = sound_or_one_line(lambda: open_video_records([path], [test], name="fuzzed"))
    if dataset is not None:
        assert np.isfinite(dataset.loaded().train.audio).all()


def check_recording(path):
    samples = sound_or_one_line(lambda: read_recording(path.read_bytes(), what="x"))
    if samples is not None:
        assert np.isfinite(log_mel_summary(samples)).all()


def check_idx(path):
    array = sound_or_one_line(lambda: read_idx(path, num_dimensions=3))
    if array is not None:
        assert array.ndim == 3 and array.dtype == np.uint8 and array.size > 0


CHECKS = {
    "npy": check_npy,
    "npz": check_npz,
    "csv": check_clip_list,
    "tfrecord": check_records,
    "wav": check_recording,
    "idx": check_idx,
}


def fuzz(kind, contents, max_examples):
    @settings(
        max_examples=max_examples,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.too_slow],
    )
    @given(contents)
    def check(content):
        path = pathlib.Path(folder) / f"fuzzed.{kind}"
        path.write_bytes(content)
        CHECKS[kind](path)

    with tempfile.TemporaryDirectory() as folder:
        check()


@pytest.mark.parametrize("kind", CHECKS)
def test_mutated_files(kind):
    fuzz(kind, mutated(kind), 150)


@pytest.mark.full
@pytest.mark.parametrize("kind", CHECKS)
def test_many_mutated_files(kind):
    fuzz(kind, mutated(kind), 5000)


def test_headers_of_arrays():
    contents = st.builds(npy_of, HEADERS | st.text(max_size=60), st.binary(max_size=40))
    fuzz("npy", contents, 200)


def test_lists_of_any_text():
    cells = st.text('ab01,;"\n\r\0é -' + "\ufeff\u2028", max_size=6)
    lines = st.lists(st.tuples(cells, cells, st.sampled_from(["train", "test"]) | cells))
    contents = lines.map(lambda rows: "clip_id,label,split\n" + "\n".join(map(",".join, rows)))
    fuzz("csv", contents.map(str.encode), 200)


def test_records_of_any_content():
    fuzz("tfrecord", st.lists(st.binary(max_size=60) | st.just(video(0))).map(whole_records), 100)


def whole_records(contents):
    return b"".join(map(record, contents))


def test_records_whose_sums_are_right():
    """Damage in the content, which the sums would tell."""

    def cut_out(place, length, put):
        content = video(1)
        return record(video(0)) + record(content[:place] + put + content[place + length :])

    places = st.integers(0, len(video(1)))
    contents = st.builds(cut_out, places, st.integers(0, 3), st.binary(max_size=4))
    fuzz("tfrecord", contents, 200)
