"""Each damaged input ends in one clear line and exit status 2, in bounded memory and time."""

import re

import pytest
from damaged_clips import ARRAYS, LISTS
from damaged_features import CUT_HDF5, HDF5, TFDS
from damaged_media import IDX, RECORDS, WAVS
from forked_runs import ForkedRuns

CASES = {**HDF5, **CUT_HDF5, **TFDS, **LISTS, **ARRAYS, **RECORDS, **WAVS, **IDX}
FULL = {"npz bomb", "npz bomb of the largest size"}
# The largest array of a clip has half of it.
MOST_GROWTH = 300 * 2**20


@pytest.fixture(scope="module")
def runs():
    with ForkedRuns() as started:
        yield started


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.full) if name in FULL else name for name in CASES]
)
def test_damage_ends_in_one_line(runs, tmp_path, name):
    build, words = CASES[name]
    damaged = build(tmp_path)
    output = tmp_path / "output"
    # Both writers are to leave nothing that looks complete.
    target = output / "written.h5" if name.startswith("npz") else output
    options = (f"--output={target}", "--name=written") if damaged.program == "prepare" else ()
    run = runs.run(damaged.program, *damaged.arguments, *options)
    assert run.status == 2, run
    assert run.errors.startswith("error: ") and run.errors.endswith("\n")
    assert run.errors[:-1].isprintable(), run.errors
    for word in (*words, str(damaged.path)):
        assert word in run.errors
    assert run.grown_bytes < MOST_GROWTH
    for path in output.rglob("*"):
        is_resumed = re.fullmatch(r"partial-1\.0\.0|\.written\.h5\.partial", path.parent.name)
        assert path.is_dir() or is_resumed or path.name in (".lock", ".written.h5.lock")
