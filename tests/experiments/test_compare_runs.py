"""The comparison of runs as a user sees it: table, warnings, page."""

import csv
import importlib
import importlib.util
import json

import pytest
from run_copies import change_json, copy_run, train_a_little
from running import run

from aadml_jax.errors import UserError
from experiments import compare_runs

MAPS = {"audio_to_visual": 0.25, "visual_to_audio": 0.75, "mean": 0.5}
NUMBERS = {
    "map": MAPS,
    "prefix_map": {**MAPS, "mean": 0.625},
    "chance": 0.375,
    "best": {"epoch": 2, "mean_map": 0.5625, "selected_on": "test"},
    "seconds": 11.6,
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    train_a_little(folder)
    return folder


def compare(*folders, output=None):
    return compare_runs.run(folders, compare_runs.Options(output=output))


def test_the_table_shows_results_and_the_settings_that_differ(trained, tmp_path, capsys):
    one = copy_run(trained, tmp_path / "one", result=NUMBERS)
    changes = {"margin": None, "hidden_sizes": [8, 4], "anchor_aware": False}
    two = copy_run(trained, tmp_path / "second", config=changes, result={"best": None})
    result = json.loads((two / "result.json").read_text())
    compare(one, two)
    output, errors = capsys.readouterr()
    lines = output.splitlines()
    header = "run MAP a→v MAP v→a MAP mean prefix MAP chance best on test in epoch epochs seconds"
    assert lines[0].split() == [*header.split(), "--margin", "--anchor_aware", "--hidden_sizes"]
    figures = ["0.250", "0.750", "0.500", "0.625", "0.375", "0.562", "2", "3", "12"]
    assert lines[1].split() == ["one", *figures, "0.3", "true", "4"]
    shown = [*result["map"].values(), result["prefix_map"]["mean"], result["chance"]]
    seconds = str(round(result["seconds"]))
    assert lines[2].split() == [
        *("second", *(f"{value:.3f}" for value in shown), "–", "–", "3", seconds),
        *("–", "false", "8,4"),
    ]
    assert len(lines) == 3
    # Columns stand under each other, numbers to the right and texts to the left.
    assert lines[0].index("chance") + len("chance") == lines[1].index("0.375") + len("0.375")
    assert lines[1].index("true") == lines[2].index("false") == lines[0].index("--anchor_aware")
    assert errors == ""


def test_runs_of_several_seeds_are_taken_together(trained, tmp_path, capsys):
    def copy(name, mean, **config):
        maps = {**MAPS, "mean": mean}
        return copy_run(trained, tmp_path / name, config=config, result={**NUMBERS, "map": maps})

    runs = [
        copy("a", 0.5, seed=1),
        copy("other", 0.9, seed=1, margin=2.0),
        copy("b", 0.7, seed=2),
        copy("again", 0.1, seed=1),
        copy_run(trained, tmp_path / "moved", data={"fingerprint": "0" * 16}),
    ]
    compare(*runs, output=str(tmp_path / "page"))
    lines = capsys.readouterr().out.splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("runs "))
    assert lines[first + 1].startswith("a, b  ")
    # (0.5 + 0.7) / 2 and sqrt(2 · 0.1²)
    assert "0.600 ± 0.141" in lines[first + 1] and "0.250 ± 0.000" in lines[first + 1]
    assert not lines[first + 2].strip() or lines[first + 2].startswith("written")
    numbers = json.loads((tmp_path / "page/numbers.json").read_text())
    (record,) = numbers["sections"][0]["tables"][1]["records"]
    assert record["runs"] == "a, b" and record["MAP mean"]["mean"] == pytest.approx(0.6)


def test_a_single_run_differs_in_nothing(trained, capsys):
    compare(trained)
    output, _ = capsys.readouterr()
    assert len(output.splitlines()) == 2
    assert "--" not in output


def test_runs_on_other_test_rows_are_warned_of_in_one_line(trained, tmp_path, capsys):
    other = {"fingerprint": "0123456789abcdef", "test_rows": 77, "name": "digits"}
    runs = [
        copy_run(trained, tmp_path / "a"),
        copy_run(trained, tmp_path / "b", config={"fold": 2}, data=other),
        copy_run(trained, tmp_path / "c"),
    ]
    compare(*runs)
    _, errors = capsys.readouterr()
    assert errors.startswith("warning: the runs were tested on different rows")
    assert "a, c on 10 rows of synthetic (fingerprint " in errors
    assert "; b on 77 rows of digits, fold 2 (fingerprint 01234567)" in errors
    assert errors.count("\n") == 1


def test_the_page_holds_the_same_and_curves(trained, tmp_path, capsys):
    one = copy_run(trained, tmp_path / "one", result=NUMBERS)
    two = copy_run(trained, tmp_path / "two", config={"seed": 5, "epochs": 2}, result={"epochs": 2})
    log = (two / "metrics.jsonl").read_text().splitlines(keepends=True)
    # As a version without this part of the loss would have written it.
    log = [line.replace('"metric_loss"', '"other"') for line in log[:2]]
    (two / "metrics.jsonl").write_text("".join(log))
    pages = [tmp_path / "page", tmp_path / "again"]
    for page in pages:
        compare(one, two, output=str(page))
    assert f"written to {pages[0] / 'report.html'}" in capsys.readouterr().out
    numbers = json.loads((pages[0] / "numbers.json").read_text())
    results, settings = numbers["sections"][0]["tables"]
    assert results["records"][0] == {
        "run": "one",
        "MAP a→v": 0.25,
        "MAP v→a": 0.75,
        "MAP mean": 0.5,
        "prefix MAP": 0.625,
        "chance": 0.375,
        "best on test": 0.5625,
        "in epoch": 2,
    }
    assert settings["records"] == [
        {"run": "one", "epochs": 3, "seconds": 12, "--seed": "0"},
        {"run": "two", "epochs": 2, "seconds": settings["records"][1]["seconds"], "--seed": "5"},
    ]
    assert numbers["configuration"]["two"]["seed"] == 5
    assert numbers["versions"]["one"].startswith("aadml_jax ")
    with open(pages[0] / results["file"], newline="") as file:
        assert [row["run"] for row in csv.DictReader(file)] == ["one", "two"]
    drawing = (pages[0] / "figures" / "loss.svg").read_text()
    assert (pages[0] / "figures" / "map.svg").exists()
    assert "one" in drawing
    first, again = (
        {path.name: path.read_bytes() for path in page.rglob("*") if path.is_file()}
        for page in pages
    )
    assert first == again
    page = (pages[0] / "report.html").read_text()
    assert "Warning: the runs were tested on different rows" not in page


def test_the_page_warns_too(trained, tmp_path):
    other = copy_run(trained, tmp_path / "other", data={"fingerprint": "0123456789"})
    compare(trained, other, output=str(tmp_path / "page"))
    warning = "Warning: the runs were tested on different rows"
    assert warning in (tmp_path / "page" / "report.html").read_text()


def test_without_the_extra_a_page_is_refused_and_the_table_is_not(
    trained, tmp_path, capsys, monkeypatch
):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "matplotlib" else find_spec(name)
    )
    with pytest.raises(UserError, match=r"matplotlib.*pip install -e '\.\[plots\]'"):
        compare(trained, output=str(tmp_path / "page"))
    assert capsys.readouterr().out == ""
    assert not (tmp_path / "page").exists()
    compare(trained)
    assert "MAP mean" in capsys.readouterr().out


def test_no_run_at_all_is_a_mistake():
    with pytest.raises(UserError, match=r"no run is named; give .* --workdir"):
        compare()


def test_a_run_that_is_not_finished_is_named_and_no_page_is_written(trained, tmp_path):
    running = copy_run(trained, tmp_path / "running")
    change_json(running / "config.json", lambda stored: stored["config"]["launch"].update(epochs=9))
    line = f"{running} holds a run that is not finished, at epoch 3 of 9"
    with pytest.raises(UserError, match=line) as caught:
        compare(trained, running, output=str(tmp_path / "page"))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "page").exists()


def test_as_a_command_it_takes_folders_before_and_behind_its_flags(trained, tmp_path):
    other = copy_run(trained, tmp_path / "other")
    status, output, errors = run("compare_runs", trained, "--output=page", other, cwd=tmp_path)
    assert (status, errors) == (0, "")
    names = [line.split()[0] for line in output.splitlines()[1:3]]
    assert names == [trained.name, f"{tmp_path.name}/other"]
    assert (tmp_path / "page" / "report.html").exists()
