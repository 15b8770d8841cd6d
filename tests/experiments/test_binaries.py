"""The binaries as a user runs them: processes, kills, exit statuses, files."""

import importlib.util
import json
import platform

import pytest
from running import ROOT, run, write_feature_file

DIGITS = ROOT.parent / "shared" / "data" / "fsdd_mnist.h5"
SMALL = ("--epochs=6", "--eval_every=2", "--hidden_sizes=16,16", "--learning_rate=0.01")


@pytest.fixture(scope="module")
def features(tmp_path_factory):
    return write_feature_file(tmp_path_factory.mktemp("data") / "features.h5")


@pytest.fixture(scope="module")
def small_run(tmp_path_factory, features):
    """A finished run and the command that made it."""
    folder = tmp_path_factory.mktemp("run")
    flags = ("--dataset=features", f"--features_file={features}", *SMALL)
    status, output, errors = run("train", f"--workdir={folder}", *flags)
    assert status == 0, errors
    return folder, flags, output


def result_of(folder):
    return json.loads((folder / "result.json").read_text())


def without_seconds(folder):
    return {**result_of(folder), "seconds": None}


def test_training_prints_progress_and_a_table_and_writes_the_promised_files(small_run):
    folder, _, output = small_run
    names = {path.name for path in folder.iterdir()}
    assert {"config.json", "metrics.jsonl", "checkpoints", "result.json"} <= names
    assert ("tensorboard" in names) == (importlib.util.find_spec("tensorboardX") is not None)
    assert (
        "8 audio and 12 visual features of 50 training and 20 test pairs, 3 classes; 6 " in output
    )
    assert " 6 epochs, batch size 50" in output
    assert output.count("\nepoch ") == 6
    result = result_of(folder)
    table = [line.split() for line in output.splitlines()]
    shown = next(row[1:] for row in table if row[:1] == ["MAP"])
    assert shown == [f"{result['map'][name]:.3f}" for name in result["map"]]
    assert result["bayes_reference"] is None
    assert "Bayes" not in output
    assert json.loads((folder / "config.json").read_text())["config"]["recipe"]["batch_size"] == 50


def test_evaluate_repeats_the_reported_map_from_any_directory(small_run, tmp_path):
    folder, _, _ = small_run
    files = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    status, output, errors = run(
        "evaluate", f"--checkpoint={folder}", "--output=numbers.json", cwd=tmp_path
    )
    assert (status, errors) == (0, "")
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    result = result_of(folder)
    for name in ("map", "prefix_map", "chance", "precision_at_k"):
        assert numbers[name] == result[name]
    assert f"{result['map']['mean']:.3f}" in output
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == files


def test_evaluate_writes_a_page_about_the_test_rows(small_run, tmp_path):
    folder, _, _ = small_run
    status, output, errors = run(
        "evaluate", f"--checkpoint={folder}", "--report=page", cwd=tmp_path
    )
    assert (status, errors) == (0, "")
    result = result_of(folder)
    assert f"{result['map']['mean']:.3f}" in output
    assert f"written to {tmp_path / 'page' / 'report.html'}" in output
    numbers = json.loads((tmp_path / "page" / "numbers.json").read_text())
    tables = {
        table["title"]: table["records"]
        for section in numbers["sections"]
        for table in section["tables"]
    }
    row = tables["Retrieval of the test rows"][0]
    for name, arrow in (("audio_to_visual", "audio→visual"), ("visual_to_audio", "visual→audio")):
        assert row[arrow] == result["map"][name]
        # The classes' MAP, each in its share, come to the same: they are of the same embeddings.
        classes = tables["MAP of each class"]
        weighted = sum(entry["clips"] * entry[f"MAP {arrow}"] for entry in classes) / 20
        assert weighted == pytest.approx(result["map"][name], abs=1e-6)
    assert numbers["configuration"]["batch_size"] == 50
    assert numbers["versions"]["python"] == platform.python_version()
    assert (tmp_path / "page" / "figures" / "embeddings.png").exists()


def test_evaluate_takes_another_file_of_the_same_dimensions(small_run, tmp_path):
    folder, _, _ = small_run
    other = write_feature_file(tmp_path / "other.h5", seed=1)
    status, output, _ = run("evaluate", f"--checkpoint={folder}", f"--features_file={other}")
    assert status == 0
    assert f"20 test pairs of {other}" in output
    wide = write_feature_file(tmp_path / "wide.h5", audio_dim=9)
    status, _, errors = run("evaluate", f"--checkpoint={folder}", f"--features_file={wide}")
    assert status == 2
    assert "has 9 columns" in errors
    assert errors.count("\n") == 1


def test_evaluate_notices_that_the_data_changed(small_run, tmp_path):
    _, flags, _ = small_run
    moved = tmp_path / "data.h5"
    write_feature_file(moved)
    flags = ["--smoke" if flag.startswith("--features_file") else flag for flag in flags]
    train = run("train", f"--workdir={tmp_path / 'run'}", f"--features_file={moved}", *flags)
    assert train[0] == 0, train[2]
    write_feature_file(moved, seed=1)
    status, _, errors = run("evaluate", f"--checkpoint={tmp_path / 'run'}")
    assert status == 2
    assert f"{moved} does not hold the data of this run; to evaluate" in errors


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--no_such_flag"], "Unknown command line flag 'no_such_flag'"),
        (["--loss=arcface"], "--loss=arcface"),
        (["--dataset=vegas"], "vegas_feature.h5"),
        (["--batch_size=2001"], "--batch_size=2001 exceeds the 2000 training rows"),
        (["--dropout=1"], "--dropout=1.0 must be"),
        (["--workdir=/proc/nowhere"], "--workdir=/proc/nowhere cannot be written to"),
    ],
)
def test_a_users_mistake_is_one_line_and_status_2(tmp_path, flags, said):
    if not any(flag.startswith("--workdir") for flag in flags):
        flags = [f"--workdir={tmp_path / 'run'}", *flags]
    status, _, errors = run("train", *flags)
    assert status == 2
    assert said in errors
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1


def test_help_lists_the_flags():
    status, output, _ = run("train", "--help")
    assert status == 0
    assert "--num_neighbors: k of the correlation graph" in output


def test_another_configuration_in_the_folder_is_one_line_and_status_2(small_run):
    folder, flags, _ = small_run
    before = (folder / "metrics.jsonl").read_bytes()
    status, _, errors = run("train", f"--workdir={folder}", *flags, "--margin=0.5")
    assert status == 2
    assert "checkpoint of another configuration: --margin was 0.3, now 0.5" in errors
    assert errors.count("\n") == 1
    assert (folder / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "--checkpoint is needed"),
        (["--checkpoint=absent"], "absent/config.json cannot be read"),
    ],
)
def test_evaluate_names_mistakes(flags, said):
    status, _, errors = run("evaluate", *flags)
    assert status == 2
    assert said in errors
    assert errors.count("\n") == 1


def test_a_second_run_in_the_same_folder_is_refused(small_run):
    from aadml_jax.training.run_folder import RunFolder

    folder, flags, _ = small_run
    with RunFolder(folder):
        status, _, errors = run("train", f"--workdir={folder}", *flags)
    assert status == 2
    assert "in use by another process" in errors


def test_smoke_run_on_the_default_data_takes_seconds_and_learns(tmp_path):
    status, output, errors = run("train", "--smoke", f"--workdir={tmp_path}")
    assert status == 0, errors
    result = result_of(tmp_path)
    assert result["map"]["mean"] > result["chance"] + 0.2
    assert 0.85 < result["bayes_reference"] < 0.96
    assert "Bayes reference" in output


@pytest.mark.skipif(not DIGITS.exists(), reason="the digits features are not beside the project")
def test_smoke_run_on_spoken_and_written_digits(tmp_path):
    status, _, errors = run(
        "train", "--smoke", "--dataset=features", f"--features_file={DIGITS}",
        f"--workdir={tmp_path}",
    )  # fmt: skip
    assert status == 0, errors
    assert result_of(tmp_path)["map"]["mean"] > 0.5
