"""The paper's evaluation as commands: which runs, and what is shown of them."""

import dataclasses
import json
import statistics

import numpy as np
import pytest
from running import run

from aadml_jax.reports.page import Report
from aadml_jax.training.config import TrainConfig, check, resolve
from aadml_jax.training.named_losses import NAMED_LOSSES
from aadml_jax.training.sweep import RunHistory, programs
from experiments.reproduction_runs import loss_runs, plain, resolved_by_seed, with_loss
from experiments.reproductions import REPRODUCTIONS, References

SEEDS = 3
REFERENCES = References(0.11, {"audio_to_visual": 0.9, "visual_to_audio": 0.8, "mean": 0.85})


def made_up(seed):
    """A history of random numbers in the right places."""
    rng = np.random.default_rng(seed)

    def report():
        directions = ("audio_to_visual", "visual_to_audio", "mean")
        return {
            "loss": rng.random(),
            **{
                name: {
                    "map": rng.random(),
                    "prefix_map": rng.random(),
                    "precision_at_k": {"10": rng.random(), "20": rng.random()},
                    "recall_at_k": {"10": 1.0, "20": 1.0},
                }
                for name in directions
            },
        }

    reports = {
        name: {"epochs": [5, 10], "reports": [report(), report()]} for name in ("test", "train")
    }
    return RunHistory({"loss": [1.0] * 10}, reports)


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """For each reproduction, its histories and the numbers of its report."""
    pytest.importorskip("matplotlib", reason="the extra 'plots' is not installed")
    found = {}
    for name, reproduction in REPRODUCTIONS.items():
        base = TrainConfig()
        histories = {
            key: [made_up(100 * number + seed) for seed in range(SEEDS)]
            for number, key in enumerate(reproduction.runs(base))
        }
        report = Report("made up")
        reproduction.add_to(report, reproduction.title, histories, REFERENCES, base)
        folder = tmp_path_factory.mktemp(name)
        report.write(folder)
        numbers = json.loads((folder / "numbers.json").read_text())
        (section,) = numbers["sections"]
        found[name] = histories, {table["title"]: table for table in section["tables"]}, folder
    return found


def last_maps(histories, direction="mean", metric="map"):
    return [run.reports["test"]["reports"][-1][direction][metric] for run in histories]


def same(record, values):
    assert record["mean"] == pytest.approx(statistics.mean(values), rel=1e-12)
    assert record["std"] == pytest.approx(statistics.stdev(values), rel=1e-12)
    assert record["n"] == SEEDS


def test_precision_is_of_the_last_epoch(pages):
    histories, tables, folder = pages["figure3"]
    record = tables["Precision at K"]["records"][1]
    assert record["K"] == 20
    for name in ("plain", "anchor-aware"):
        values = [
            of_seed.reports["test"]["reports"][-1]["visual_to_audio"]["precision_at_k"]["20"]
            for of_seed in histories[name,]
        ]
        same(record[f"visual→audio, {name}"], values)
    assert (folder / "figures" / "figure3.svg").exists()


def test_neighbors_are_compared_with_one(pages):
    histories, tables, _ = pages["figure4"]
    records = tables["MAP by number of neighbours"]["records"]
    assert [record["k"] for record in records] == [1, 2, 3, 4, 5, 6, 7] * 4
    (record,) = (r for r in records if (r["loss"], r["k"]) == ("hard_triplet", 6))
    own, one = (last_maps(histories["hard_triplet", k]) for k in ("6", "1"))
    same(record["mean"], own)
    difference = record["mean, against k = 1"]
    assert difference["mean"] == pytest.approx(np.mean(np.subtract(own, one)))
    assert difference["low"] < difference["mean"] < difference["high"]


def test_training_curves_are_of_both_sets(pages):
    histories, tables, _ = pages["figure5"]
    (table,) = tables.values()
    assert len(table["records"]) == 6
    record = table["records"][3]
    assert (record["loss"], record["variant"]) == ("semihard_triplet", "anchor-aware")
    of_seeds = histories["semihard_triplet", "anchor-aware"]
    values = [of_seed.reports["train"]["reports"][-1]["loss"] for of_seed in of_seeds]
    same(record["objective, train"], values)
    same(record["MAP, test"], last_maps(of_seeds))


def test_every_loss_is_compared_with_itself(pages):
    histories, tables, _ = pages["losses"]
    records = tables["Mean MAP of both directions"]["records"]
    assert [record["loss"] for record in records] == list(NAMED_LOSSES)
    record = records[3]
    loss = record["loss"]
    expected = np.subtract(
        last_maps(histories[loss, "channel"]), last_maps(histories[loss, "plain"])
    )
    assert record["channel − plain"]["mean"] == pytest.approx(np.mean(expected))


def test_both_metrics_stand_apart_from_what_is_quoted(pages):
    histories, tables, _ = pages["comparison"]
    record = tables["Measured here"]["records"][1]
    same(record["MAP visual→audio"], last_maps(histories["anchor-aware",], "visual_to_audio"))
    same(record["prefix MAP mean"], last_maps(histories["anchor-aware",], metric="prefix_map"))
    # Synthetic data: what is quoted is of others.
    assert sum("quoted from the literature (unverified)" in title for title in tables) == 2


def test_only_the_data_sets_own_figures_are_quoted(tmp_path):
    report = Report("made up")
    reproduction = REPRODUCTIONS["comparison"]
    histories = {key: [made_up(0)] for key in reproduction.runs(TrainConfig())}
    base = TrainConfig(dataset="tfds:vegas")
    reproduction.add_to(report, "t", histories, References(0.1, None), base)
    report.write(tmp_path)
    (section,) = json.loads((tmp_path / "numbers.json").read_text())["sections"]
    titles = [table["title"] for table in section["tables"]]
    assert [("VEGAS" in title, "AVE" in title) for title in titles] == [
        (False, False),
        (True, False),
    ]


@pytest.mark.parametrize("name", REPRODUCTIONS)
def test_runs_are_valid_and_share_programs(name):
    base = TrainConfig(margin=0.4, class_proxies="one_hot")
    runs = REPRODUCTIONS[name].runs(base)
    for config in runs.values():
        check(config)
    resolved = [
        resolve(dataclasses.replace(config, seed=seed), 500)
        for config in runs.values()
        for seed in range(2)
    ]
    expected = {"figure3": 1, "figure4": 4, "figure5": 3, "losses": 24, "comparison": 1}
    assert len(programs(resolved, 100)) == expected[name]


def test_a_loss_keeps_what_it_has_and_takes_its_own_defaults():
    base = TrainConfig(margin=0.4, distance="euclidean", intra_modal=True)
    assert with_loss(base, "contrastive").margin == 0.4
    assert with_loss(base, "contrastive").distance == "euclidean"
    proxy_anchor = resolve(with_loss(base, "proxy_anchor"), 500)
    assert (proxy_anchor.margin, proxy_anchor.loss_parameters) == (0.4, {"alpha": 4.0})
    assert (proxy_anchor.distance, proxy_anchor.intra_modal) == ("cosine", False)
    assert resolve(with_loss(TrainConfig(), "margin"), 500).margin == 0.25
    assert plain(TrainConfig(attention="channel")).num_neighbors == 1


def test_the_papers_margin_is_that_of_the_triplet_loss_alone():
    def resolved(base, explicit):
        runs = resolved_by_seed(loss_runs(base), explicit, count=1, num_train=500)
        return {key[0]: config for (key, _), config in runs.items()}

    runs = resolved(TrainConfig(paper=True), {"paper"})
    assert [runs[loss].margin for loss in ("triplet", "margin", "circle")] == [1.0, 0.25, 0.4]
    assert {config.label_loss for config in runs.values()} == {"squared"}
    runs = resolved(TrainConfig(paper=True, margin=0.7), {"paper", "margin"})
    assert [runs[loss].margin for loss in ("triplet", "margin", "circle")] == [0.7, 0.7, 0.7]


FLAGS = ("--smoke", "--epochs=2", "--hidden_sizes=8", "--eval_every=1")


def test_one_command_writes_a_page_and_goes_on_where_it_was(tmp_path):
    pytest.importorskip("matplotlib", reason="the extra 'plots' is not installed")
    command = ("reproduce", "--what=comparison", f"--workdir={tmp_path / 'page'}", *FLAGS)
    status, output, errors = run(*command)
    assert (status, errors) == (0, "")
    page = tmp_path / "page" / "report.html"
    assert f"written to {page}" in output
    assert "4 runs, 2 seeds" in output
    numbers = json.loads((tmp_path / "page" / "numbers.json").read_text())
    records = numbers["sections"][0]["tables"][0]["records"]

    # The same runs, each by itself.
    maps = []
    for seed in (0, 1):
        folder = tmp_path / f"run{seed}"
        trained = run("train", f"--workdir={folder}", f"--seed={seed}", "--noanchor_aware", *FLAGS)
        assert trained[0] == 0, trained[2]
        maps.append(json.loads((folder / "result.json").read_text())["map"]["mean"])
    assert records[0]["run"] == "plain"
    assert records[0]["MAP mean"]["mean"] == pytest.approx(statistics.mean(maps), abs=1e-5)
    assert records[0]["MAP mean"]["std"] == pytest.approx(statistics.stdev(maps), abs=1e-5)

    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "page" / "sweep").iterdir()}
    assert run(*command)[0] == 0
    assert kept == {
        path: path.stat().st_mtime_ns for path in (tmp_path / "page" / "sweep").iterdir()
    }


def test_flags_that_reproductions_set_are_refused(tmp_path):
    status, _, errors = run("reproduce", "--noanchor_aware", f"--workdir={tmp_path / 'x'}")
    assert status == 2
    assert errors.count("\n") == 1 and "--anchor_aware is not for reproductions" in errors
    assert not (tmp_path / "x").exists()
    status, _, errors = run("reproduce", "--num_neighbors=1", f"--workdir={tmp_path / 'x'}")
    assert status == 2 and errors.count("\n") == 1
    assert "--num_neighbors=1 is the method without proxies" in errors
