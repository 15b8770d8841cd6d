"""Training and evaluation as a user runs them: what is printed, files, mistakes, exit statuses."""

import importlib.util
import json
import platform

import pytest
from run_copies import copy_run
from running import evaluate, flags_of, run, train, write_feature_file

from aadml_jax.errors import UserError

SMALL = {"epochs": 6, "eval_every": 2, "hidden_sizes": (16, 16), "learning_rate": 0.01}


@pytest.fixture(scope="module")
def small_run(tmp_path_factory, features):
    """A finished run, its settings, and what its command printed."""
    folder = tmp_path_factory.mktemp("run")
    settings = {"dataset": "features", "features_file": str(features), **SMALL}
    status, output, errors = run("train", *flags_of({"workdir": folder, **settings}))
    assert (status, errors) == (0, "")
    return folder, settings, output


def result_of(folder):
    return json.loads((folder / "result.json").read_text())


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


def test_evaluate_writes_a_page_about_the_test_rows(small_run, tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="the extra 'plots' is not installed")
    folder, _, _ = small_run
    evaluate(checkpoint=str(folder), report=str(tmp_path / "page"))
    output, errors = capsys.readouterr()
    assert errors == ""
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


def test_evaluate_takes_another_file_of_the_same_dimensions(small_run, tmp_path, capsys):
    folder, _, _ = small_run
    other = write_feature_file(tmp_path / "other.h5", seed=1)
    numbers = evaluate(checkpoint=str(folder), features_file=str(other))
    assert numbers["map"] != result_of(folder)["map"]
    assert f"20 test pairs of {other}" in capsys.readouterr().out
    wide = write_feature_file(tmp_path / "wide.h5", audio_dim=9)
    with pytest.raises(UserError, match="has 9 columns"):
        evaluate(checkpoint=str(folder), features_file=str(wide))


def test_evaluate_notices_that_the_data_changed(small_run, tmp_path):
    folder, _, _ = small_run
    changed = str(write_feature_file(tmp_path / "changed.h5", seed=1))
    copy = copy_run(folder, tmp_path / "run", data={"source": changed})
    with pytest.raises(UserError, match=f"{changed} does not hold the data of this run; to eval"):
        evaluate(checkpoint=str(copy))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"dataset": "vegas"}, "vegas_feature.h5"),
        ({"batch_size": 2001}, "--batch_size=2001 exceeds the 2000 training rows"),
        ({"dropout": 1.0}, "--dropout=1.0 must be"),
        ({"smoke": True, "workdir": "/proc/nowhere"}, "--workdir=/proc/nowhere cannot be written"),
        ({"dataset": "tfds:mine"}, "needs the folder that holds it; set --data_dir"),
        ({"input": "stream"}, "--input=stream reads data sets that were prepared for it"),
    ],
)
def test_a_users_mistake_is_one_line_and_makes_no_folder(tmp_path, monkeypatch, settings, said):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        train(**settings)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_another_configuration_in_the_folder_is_refused_in_one_line(small_run):
    folder, settings, _ = small_run
    before = (folder / "metrics.jsonl").read_bytes()
    with pytest.raises(UserError) as caught:
        train(workdir=str(folder), **settings, margin=0.5)
    assert "checkpoint of another configuration: --margin was 0.3, now 0.5" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert (folder / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "--checkpoint is needed"),
        ({"checkpoint": "absent"}, r"absent/config\.json cannot be read"),
    ],
)
def test_evaluate_names_mistakes(options, said):
    with pytest.raises(UserError, match=said) as caught:
        evaluate(**options)
    assert "\n" not in str(caught.value)


def test_a_smoke_run_on_the_default_data_learns(tmp_path, capsys):
    result = train(smoke=True, workdir=str(tmp_path))
    assert result["map"]["mean"] > result["chance"] + 0.2
    assert 0.85 < result["bayes_reference"] < 0.96
    assert "Bayes reference" in capsys.readouterr().out
