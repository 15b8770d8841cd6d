"""HDF5 files cut anywhere or with one wrong bit: an answer or one line, never a crash."""

import random

import h5py
import numpy as np
import pytest
from damaged_features import feature_file
from feature_content import six_keys
from forked_runs import ForkedRuns

pytestmark = pytest.mark.full

NUM_FLIPS = 1000


@pytest.fixture(scope="module")
def runs():
    with ForkedRuns() as started:
        yield started


@pytest.fixture
def content(tmp_path):
    """A file whose arrays are stored in all three ways."""
    path = tmp_path / "sound.h5"
    with h5py.File(path, "w") as file:
        for key, value in six_keys().items():
            options = {"chunks": value.shape, "compression": "gzip"} if "audio" in key else {}
            file.create_dataset(key, data=value, **options)
        kept = file["lab_test"][:].astype(np.int8)
        del file["lab_test"]
        layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        layout.set_layout(h5py.h5d.COMPACT)
        space = h5py.h5s.create_simple(kept.shape)
        h5py.h5d.create(file.id, b"lab_test", h5py.h5t.NATIVE_INT8, space, layout)
        file["lab_test"][:] = kept
    return path.read_bytes()


def ends_well(runs, tmp_path, number, content, statuses):
    path = tmp_path / "clips.h5"
    path.write_bytes(content)
    run = runs.run("prepare", *feature_file(path).arguments, f"--output={tmp_path}/{number}.h5")
    assert run.status in statuses, run
    if run.status:
        assert run.errors.startswith(f"error: {path}") and run.errors[:-1].isprintable(), run
    assert run.grown_bytes < 2**28


def test_a_file_cut_anywhere_is_refused(runs, tmp_path, content):
    for end in range(0, len(content), 64):
        ends_well(runs, tmp_path, end, content[:end], (2,))


def test_a_file_with_a_wrong_bit_never_crashes(runs, tmp_path, content):
    # Values without a checksum may be other ones: that is for the fingerprint to tell.
    chosen = random.Random(0)
    for number in range(NUM_FLIPS):
        damaged = bytearray(content)
        damaged[chosen.randrange(len(damaged))] ^= 1 << chosen.randrange(8)
        ends_well(runs, tmp_path, number, damaged, (0, 2))
