"""A data set prepared as shards, and trained on from there."""

import json

import pytest
from running import run, write_feature_file

FLAGS = (
    "--epochs=4",
    "--eval_every=2",
    "--batch_size=16",
    "--hidden_sizes=16",
    "--learning_rate=0.01",
    "--notensorboard",
)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A feature file and the folder of data sets that was made from it."""
    folder = tmp_path_factory.mktemp("data")
    path = write_feature_file(folder / "features.h5")
    status, output, errors = run(
        "prepare",
        "--dataset=features",
        f"--features_file={path}",
        "--name=mine",
        f"--output={folder}",
    )
    assert status == 0, errors
    assert errors == ""
    rows = [line.split() for line in output.splitlines()]
    assert ["rows", "50", "20"] in rows
    assert ["class", "0", "17", "7"] in rows
    assert f"--dataset=tfds:mine --data_dir={folder}" in output
    return path, folder


def train(folder, *flags):
    status, output, errors = run("train", f"--workdir={folder}", *FLAGS, *flags)
    assert status == 0, errors
    return output


def log_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_run_goes_on_from_file_to_shards_to_stream(prepared, tmp_path):
    pytest.importorskip("grain", reason="the extra 'stream' is not installed")
    path, data = prepared
    file, moved = tmp_path / "file", tmp_path / "moved"
    from_file = ("--dataset=features", f"--features_file={path}")
    from_shards = ("--dataset=tfds:mine", f"--data_dir={data}")
    train(file, *from_file)
    train(moved, *from_file, "--epochs=1")
    train(moved, *from_shards, "--epochs=2")
    # Up to here the rows are held, and every byte is the same.
    assert log_of(moved)[1] == log_of(file)[1]
    assert "resuming after 2 of 4 epochs" in train(moved, *from_shards, "--input=stream")
    for line, wanted in zip(log_of(moved)[1:], log_of(file)[1:], strict=True):
        assert line == pytest.approx(wanted, rel=1e-4, abs=1e-4)

    status, _, errors = run("evaluate", f"--checkpoint={moved}", f"--output={tmp_path / 'n'}")
    assert (status, errors) == (0, "")
    result = json.loads((moved / "result.json").read_text())
    assert json.loads((tmp_path / "n").read_text())["map"] == result["map"]


def test_a_smoke_run_streams_its_few_rows(prepared, tmp_path):
    pytest.importorskip("grain", reason="the extra 'stream' is not installed")
    output = train(
        tmp_path / "run",
        "--dataset=tfds:mine",
        f"--data_dir={prepared[1]}",
        "--input=stream",
        "--smoke",
    )
    assert "MAP" in output


@pytest.mark.parametrize(
    ("binary", "flags", "message"),
    [
        ("train", ("--input=stream",), "--input=stream reads data sets that were prepared for it"),
        ("train", ("--dataset=tfds:none", "--data_dir={0}"), "none holds no data set; write it"),
        ("train", ("--dataset=tfds:mine",), "needs the folder that holds it; set --data_dir"),
        ("prepare", (), "--output is needed"),
        ("prepare", ("--output={0}", "--dataset=vegass"), "did you mean vegas?"),
        ("prepare", ("--output={0}", "--name=Not/Good"), "does not suit a data set of TFDS"),
        ("prepare", ("--output={0}", "--name=mine"), "exists already; remove it or choose"),
        ("prepare", ("--output={0}/features.h5/x",), "cannot be written (Not a directory)"),
    ],
)
def test_mistakes_get_one_line(prepared, tmp_path, binary, flags, message):
    flags = [flag.format(prepared[1]) for flag in flags]
    status, _, errors = run(binary, *flags, cwd=tmp_path)
    assert status == 2
    assert errors.count("\n") == 1 and message in errors
    assert not (tmp_path / "runs").exists()
