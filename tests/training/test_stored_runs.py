"""Reading finished runs, what differs between them, and whose figures can be compared."""

import json
import pathlib
import shutil

import pytest
from run_copies import change_json, copy_run, train_a_little

from aadml_jax.errors import UserError
from aadml_jax.training.stored_runs import (
    differing_settings,
    read_finished_runs,
    with_the_same_test_rows,
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a real run, which the tests copy."""
    folder = tmp_path_factory.mktemp("trained")
    train_a_little(folder)
    return folder


@pytest.fixture
def copy(trained, tmp_path):
    """Makes a copy of the run in the folder of a test, with changes to its JSON files."""
    return lambda name, **changes: copy_run(trained, tmp_path / name, **changes)


def test_a_run_is_what_its_files_say(copy, trained):
    folder = copy("run")
    files = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    (run,) = read_finished_runs([folder])
    assert (run.name, run.path) == ("run", folder)
    assert run.settings["hidden_sizes"] == [4]
    assert run.data["test_rows"] == 10
    assert run.result == json.loads((trained / "result.json").read_text())
    logged = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert run.curve("loss") == ([1, 2, 3], [line["loss"] for line in logged])
    assert run.curve("map_mean") == ([2, 3], [logged[1]["map_mean"], logged[2]["map_mean"]])
    assert run.curve("no_such_metric") == ([], [])
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == files


def test_runs_are_named_by_what_tells_them_apart(copy):
    folders = [copy(name) for name in ("a/first", "a/second", "b/first")]
    assert [run.name for run in read_finished_runs(folders)] == ["a/first", "a/second", "b/first"]
    assert [run.name for run in read_finished_runs(folders[:2])] == ["first", "second"]
    assert [run.name for run in read_finished_runs(folders[1:2])] == ["second"]


def test_a_folder_given_twice_is_refused_however_it_is_written(copy, tmp_path, monkeypatch):
    folder = copy("run")
    (tmp_path / "link").symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    for again, also in ((folder, ""), (tmp_path / "link", f", also as {folder}"), ("run", "")):
        with pytest.raises(UserError, match="is given twice") as caught:
            read_finished_runs([folder, again])
        assert also in str(caught.value)


def test_settings_that_differ_are_told_and_no_others(copy):
    shorter = {"config": {"workdir": "x", "epochs": 2, "features_file": "1.h5"}}
    first = copy("a", **shorter, result={"epochs": 2})
    _lines(lambda lines: lines[:2])(first)
    runs = read_finished_runs(
        [
            first,
            copy("b", config={"margin": 0.5, "hidden_sizes": [8, 4], "features_file": "2.h5"}),
            copy("c", config={"a_new_setting": "x", "seed": 7}),
        ]
    )
    differing = differing_settings(runs)
    assert differing == {
        "seed": [0, 0, 7],
        "margin": [0.3, 0.5, 0.3],
        "hidden_sizes": [[4], [8, 4], [4]],
        "a_new_setting": [None, None, "x"],
    }
    assert list(differing) == ["seed", "margin", "hidden_sizes", "a_new_setting"]
    assert differing_settings(runs[:1]) == {}


@pytest.mark.parametrize(
    ("config", "data", "result", "is_same"),
    [
        ({"seed": 1}, {}, {}, True),
        ({}, {"source": "/moved.h5"}, {}, True),  # the fingerprint says that it is the same
        ({"train_fraction": 0.5}, {"fingerprint": "other"}, {}, True),
        ({"train_fraction": 0.5, "split_seed": 3}, {"fingerprint": "other"}, {}, True),
        ({}, {"fingerprint": "other"}, {}, False),  # the data have changed
        ({"train_fraction": 0.5}, {"fingerprint": "other", "source": "/b.h5"}, {}, False),
        ({"train_fraction": 0.5}, {"fingerprint": "other", "test_rows": 11}, {}, False),
        ({"train_fraction": 0.5}, {"fingerprint": "other"}, {"chance": 0.2}, False),
        ({"train_fraction": 0.5, "smoke": True}, {"fingerprint": "other"}, {}, False),
        ({"train_fraction": 0.5, "fold": 0}, {"fingerprint": "other"}, {}, False),
        ({"fold": 0}, {"fingerprint": "other"}, {}, False),
    ],
)
def test_figures_on_other_test_rows_are_set_apart(copy, config, data, result, is_same):
    runs = read_finished_runs(
        [copy("a"), copy("b", config=config, data=data, result=result), copy("c")]
    )
    groups = [[run.name for run in group] for group in with_the_same_test_rows(runs)]
    assert groups == ([["a", "b", "c"]] if is_same else [["a", "c"], ["b"]])


def test_splits_of_one_fold_are_the_same_only_with_one_seed(copy):
    fold = {"fold": 1, "train_fraction": 0.5}
    runs = read_finished_runs(
        [
            copy("a", config={"fold": 1}),
            copy("b", config=fold, data={"fingerprint": "other"}),
            copy("c", config={**fold, "split_seed": 1}, data={"fingerprint": "third"}),
        ]
    )
    groups = [[run.name for run in group] for group in with_the_same_test_rows(runs)]
    assert groups == [["a", "b"], ["c"]]


def _without_result(folder):
    (folder / "result.json").unlink()


def _being_continued(folder):
    change_json(folder / "config.json", lambda stored: stored["config"]["launch"].update(epochs=8))


def _stopped_at_once(folder):
    _without_result(folder)
    (folder / "metrics.jsonl").unlink()


def _torn(folder):
    _being_continued(folder)
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"step": 4, "epo')


def _lines(change):
    def damage(folder):
        log = folder / "metrics.jsonl"
        log.write_text("".join(change(log.read_text().splitlines(keepends=True))))

    return damage


def _json(name, change):
    return lambda folder: change_json(folder / name, change)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (shutil.rmtree, "config.json cannot be read"),
        (_without_result, "a run that is not finished, at epoch 3 of 3; let"),
        (_being_continued, "a run that is not finished, at epoch 3 of 8; let"),
        (_torn, "a run that is not finished, at epoch 3 of 8; let"),
        (_stopped_at_once, "a run that is not finished, at epoch 0 of 3; let"),
        (lambda folder: (folder / "result.json").write_text("{"), "result.json is damaged"),
        (lambda folder: (folder / "config.json").write_text("[]"), "config.json is damaged"),
        (_lines(lambda lines: lines[:2]), r"metrics.jsonl is damaged \(it has 2 epochs of 3\)"),
        (_lines(lambda lines: [*lines, lines[2]]), "line 4 is not that of epoch 4"),
        (_lines(lambda lines: [lines[0], "x\n", lines[2]]), "line 2 is not that of epoch 2"),
        (_lines(lambda lines: [lines[1], lines[1], lines[2]]), "line 1 is not that of epoch 1"),
        (
            _lines(lambda lines: [lines[0].replace('"loss": ', '"loss": NaN, "x": '), *lines[1:]]),
            "line 1 is not that",
        ),
        (_json("result.json", lambda content: content.pop("map")), "result.json is damaged"),
        (_json("result.json", lambda content: content["map"].pop("mean")), "result.json is dam"),
        (
            _json("result.json", lambda content: content["best"].update(mean_map="high")),
            "no numbers where they belong",
        ),
        (_json("config.json", lambda content: content.pop("config")), "no configuration"),
        (_json("config.json", lambda content: content["data"].pop("source")), "not describe"),
    ],
)
def test_what_is_not_a_finished_run_is_named_with_its_remedy(copy, damage, said):
    good, bad = copy("good"), copy("bad")
    damage(bad)
    with pytest.raises(UserError, match=said) as caught:
        read_finished_runs([good, bad])
    assert str(caught.value).startswith(str(bad))
    assert ";" in str(caught.value)


def test_a_run_without_a_best_checkpoint_is_read(copy):
    (run,) = read_finished_runs([copy("run", result={"best": None})])
    assert run.result["best"] is None


def test_home_is_expanded(copy, tmp_path, monkeypatch):
    copy("run")
    monkeypatch.setenv("HOME", str(tmp_path))
    (run,) = read_finished_runs(["~/run"])
    assert run.path == pathlib.Path(tmp_path / "run")
