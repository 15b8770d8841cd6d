"""The paper's evaluation as commands: which runs, and what is shown of them."""

import json
import statistics
from types import SimpleNamespace

import numpy as np
import pytest
from running import flags_of, train
from running import run as run_binary

from aadml_jax.errors import UserError
from aadml_jax.reports.page import Report
from aadml_jax.training.config import TrainConfig
from aadml_jax.training.named_losses import NAMED_LOSSES
from aadml_jax.training.sweep import RunHistory, programs
from experiments.reproduce import Options, run, runs
from experiments.reproduce.reproductions import REPRODUCTIONS, References
from experiments.reproduce.settings import loss_variants
from experiments.variants import TrainedVariants, configs_by_seed

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
        config = TrainConfig.of()
        variants = reproduction.variants(config.recipe)
        histories = {
            key: [made_up(100 * number + seed) for seed in range(SEEDS)]
            for number, key in enumerate(variants)
        }
        report = Report("made up")
        trained = TrainedVariants(variants, histories)
        reproduction.add_to(report.section(reproduction.title), trained, REFERENCES, config)
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
    config = TrainConfig.of(dataset="tfds:vegas")
    variants = reproduction.variants(config.recipe)
    trained = TrainedVariants(variants, {key: [made_up(0)] for key in variants})
    reproduction.add_to(report.section("t"), trained, References(0.1, None), config)
    report.write(tmp_path)
    (section,) = json.loads((tmp_path / "numbers.json").read_text())["sections"]
    titles = [table["title"] for table in section["tables"]]
    assert [("VEGAS" in title, "AVE" in title) for title in titles] == [
        (False, False),
        (True, False),
    ]


@pytest.mark.parametrize("name", REPRODUCTIONS)
def test_runs_are_valid_and_share_programs(name):
    base = TrainConfig.of(margin=0.4, class_proxies="one_hot")
    variants = REPRODUCTIONS[name].variants(base.recipe)
    configs = configs_by_seed(variants, base, range(2), 500)
    assert len(configs) == 2 * len(variants)
    expected = {"figure3": 1, "figure4": 4, "figure5": 3, "losses": 24, "comparison": 1}
    assert len(programs(list(configs.values()), 100)) == expected[name]


def configs_of_losses(base, explicit=frozenset()):
    """The plain run of every loss, ready to be trained."""
    configs = configs_by_seed(loss_variants(base.recipe), base, [0], 500, explicit=explicit)
    return {loss: config.recipe for ((loss, kind), _), config in configs.items() if kind == "plain"}


def test_a_loss_keeps_what_it_has_and_takes_its_own_defaults():
    base = TrainConfig.of(margin=0.4, distance="euclidean", intra_modal=True)
    configs = configs_of_losses(base)
    assert configs["contrastive"].margin == 0.4
    assert configs["contrastive"].distance == "euclidean"
    proxy_anchor = configs["proxy_anchor"]
    assert (proxy_anchor.margin, proxy_anchor.loss_parameters) == (0.4, {"alpha": 4.0})
    assert (proxy_anchor.distance, proxy_anchor.intra_modal) == ("cosine", False)
    configs = configs_of_losses(TrainConfig.of(attention="channel"))
    assert configs["margin"].margin == 0.25
    assert {(config.num_neighbors, config.attention) for config in configs.values()} == {
        (1, "neighbor")
    }


def test_the_papers_margin_is_that_of_the_triplet_loss_alone():
    losses = ("triplet", "margin", "circle")
    configs = configs_of_losses(TrainConfig.of(paper=True), {"paper"})
    assert [configs[loss].margin for loss in losses] == [1.0, 0.25, 0.4]
    assert {config.label_loss for config in configs.values()} == {"squared"}
    configs = configs_of_losses(TrainConfig.of(paper=True, margin=0.7), {"paper", "margin"})
    assert [configs[loss].margin for loss in losses] == [0.7, 0.7, 0.7]


SMALL = {"smoke": True, "epochs": 2, "hidden_sizes": (8,), "eval_every": 1}


def test_the_time_of_an_epoch_is_the_median_of_all_but_the_first(monkeypatch):
    ends = iter([100, 101, 103, 104, 114, 115, 117, 119, 121, 123])

    def made_up(configs, data, probes, *, devices, on_epoch):
        (config,) = configs
        assert (probes, len(devices)) == ({}, 1)
        for epoch in range(1, config.launch.epochs + 1):
            on_epoch(epoch)

    monkeypatch.setattr(runs, "run_program", made_up)
    monkeypatch.setattr(runs, "time", SimpleNamespace(monotonic=lambda: next(ends)))
    # 1, 2, 1, 10, 1, 2, 2, 2 and 2 s
    assert runs.seconds_per_epoch([TrainConfig.of(epochs=3)], data=None) == 2


@pytest.mark.full
def test_the_page_tells_how_fast_the_runs_were_trained(tmp_path):
    pytest.importorskip("matplotlib", reason="the extra 'plots' is not installed")
    config = TrainConfig.of(**SMALL, workdir=str(tmp_path))
    page, numbers = run(config, Options(what="comparison"), frozenset(SMALL))
    assert numbers["sections"][-1]["title"] == "How the runs were trained"
    assert "2 runs in one program took" in page.read_text()


def test_one_call_writes_a_page_and_the_command_resumes_it(tmp_path, capsys, monkeypatch):
    pytest.importorskip("matplotlib", reason="the extra 'plots' is not installed")
    monkeypatch.setattr(runs, "seconds_per_epoch", lambda configs, data: 0.3 + 0.1 * len(configs))
    workdir = str(tmp_path / "page")
    config = TrainConfig.of(**SMALL, workdir=workdir)
    page, numbers = run(config, Options(what="comparison"), frozenset(SMALL))
    output, errors = capsys.readouterr()
    assert errors == ""
    assert page == tmp_path / "page" / "report.html"
    assert "4 runs, 2 seeds" in output
    # 2 · 0.4 / 0.5
    text = "2 runs in one program took 0.5 s an epoch, one run by itself 0.4 s: 1.60 times the"
    assert text in page.read_text()
    records = numbers["sections"][0]["tables"][0]["records"]

    # One of the same runs by itself: of two values, each is std / √2 from their mean.
    single = {**SMALL, "seed": 1, "anchor_aware": False, "tensorboard": False}
    alone = train(**single, workdir=str(tmp_path / "alone"))["map"]["mean"]
    assert records[0]["run"] == "plain"
    of_both = records[0]["MAP mean"]
    assert abs(alone - of_both["mean"]) == pytest.approx(of_both["std"] / 2**0.5, abs=1e-5)
    assert of_both["std"] > 1e-4

    # The same as a command: it trains nothing again.
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "page" / "sweep").iterdir()}
    assert kept
    flags = {"what": "comparison", "runs_at_a_time": 1, "workdir": workdir, **SMALL}
    status, again, errors = run_binary("reproduce", *flags_of(flags))
    assert (status, again, errors) == (0, f"{output}written to {page}\n", "")
    assert kept == {
        path: path.stat().st_mtime_ns for path in (tmp_path / "page" / "sweep").iterdir()
    }


@pytest.mark.parametrize(
    ("settings", "options", "line"),
    [
        ({"anchor_aware": False}, {}, "--anchor_aware is not for reproductions"),
        ({"profile": True}, {}, "--profile is not for reproductions"),
        ({"num_neighbors": 1}, {}, "--num_neighbors=1 is the method without proxies"),
        ({"dropout": 1.0}, {}, "--dropout=1.0 must be"),
        ({}, {"what": "figure6"}, "--what=figure6 must be one of figure3, "),
        ({}, {"seeds": 0}, "--seeds=0 must be at least 1"),
    ],
)
def test_what_reproductions_cannot_do_is_refused_in_one_line(tmp_path, settings, options, line):
    config = TrainConfig.of(**settings, workdir=str(tmp_path / "x"))
    with pytest.raises(UserError, match=line) as caught:
        run(config, Options(**options), frozenset(settings))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "x").exists()
