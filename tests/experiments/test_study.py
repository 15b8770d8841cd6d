"""The study of when proxies help: fair comparisons, groups held out, one command."""

import json

import h5py
import numpy as np
import pytest
from running import run, write_feature_file

from aadml_jax.data import load_dataset, with_train_fraction
from aadml_jax.errors import UserError
from aadml_jax.reports.page import Report
from aadml_jax.training.config import TrainConfig, check, resolve
from aadml_jax.training.held_data import hold
from aadml_jax.training.stacked_runs import Probe
from aadml_jax.training.sweep import RunHistory, run_program
from experiments.studied_data import generated_data, grouped_data, with_label_noise
from experiments.studied_settings import CONFIRMED, SCREENED, Comparison
from experiments.study import run_comparison
from experiments.study_sections import add_learning_curves, is_aware, mean_maps, table_of

OF_PROXIES = {
    "num_neighbors",
    "attention",
    "attention_temperature",
    "same_class",
    "neighbors_from",
    "neighbor_gradient",
    "proxy_role",
}


@pytest.mark.parametrize("comparison", [*SCREENED.values(), *CONFIRMED.values()])
def test_comparisons_are_of_valid_settings_with_a_baseline(comparison):
    for name, changes in comparison.variants.items():
        config = TrainConfig(**changes)
        check(config)
        resolve(config, 1000)
        baseline = comparison.baseline_of(name)
        assert baseline is None or baseline in comparison.variants
        assert baseline != name
        if baseline is not None and is_aware(changes):
            # The same but for the proxies.
            own = {key: changes.get(key) for key in changes.keys() - OF_PROXIES}
            others = comparison.variants[baseline]
            assert own == {key: others.get(key) for key in others.keys() - OF_PROXIES}
        elif baseline is not None and "weight_decay" in comparison.variants[baseline]:
            assert changes["weight_decay"] == comparison.variants[baseline]["weight_decay"]
    # No two names for one setting.
    settings = [sorted(map(str, changes.items())) for changes in comparison.variants.values()]
    assert len({tuple(changes) for changes in settings}) == len(settings)
    assert set(comparison.baselines) < set(comparison.variants)


@pytest.fixture
def grouped_file(tmp_path):
    """50 training and 20 test rows of four speakers."""
    path = write_feature_file(tmp_path / "grouped.h5")
    with h5py.File(path, "a") as file:
        file["speaker_train"] = np.arange(50) % 4
        file["speaker_test"] = np.arange(20) % 4
        file["column_train"] = np.zeros((50, 1), int)
        file["column_test"] = np.zeros((20, 1), int)
        file["sex_train"], file["sex_test"] = np.arange(50) % 2, np.arange(20) % 2
    return path


def history(cosine, posterior, metric_loss=0.5):
    reports = {
        name: {"epochs": [1, 2], "reports": [{"mean": {"map": 9}}, {"mean": {"map": value}}]}
        for name, value in (("cosine", cosine), ("posterior", posterior))
    }
    return RunHistory({"metric_loss": [9, metric_loss]}, reports)


MADE_UP = Comparison(
    "?",
    {
        "alone": {"num_neighbors": 1, "metric_weight": 0.0},
        "plain": {"num_neighbors": 1},
        "aware": {},
    },
    {"plain": "alone", "aware": "plain"},
)
HISTORIES = {
    "alone": [history(0.1, 0.5), history(0.2, 0.7)],
    "plain": [history(0.3, 0.5, 0.25), history(0.5, 0.9, 0.75)],
    "aware": [history(0.4, 0.4), history(0.6, 0.8)],
}


def test_gains_are_over_the_baseline_of_the_same_seed():
    table = table_of(MADE_UP, "t", HISTORIES, "two seeds")
    alone, plain, aware = (dict(zip(table.columns, row, strict=True)) for row in table.rows)
    assert (alone["cosine, gain"], alone["metric loss"], alone["gain over"]) == (None, None, "")
    # 0.3 − 0.1 and 0.5 − 0.2; 0 and 0.2
    assert plain["cosine, gain"].mean == pytest.approx(0.25)
    assert plain["posterior, gain"].mean == pytest.approx(0.1)
    assert plain["metric loss"].mean == pytest.approx(0.5)
    assert plain["cosine"].mean == pytest.approx(0.4)
    assert aware["cosine, gain"].mean == pytest.approx(0.1)
    assert aware["cosine, gain"].high == pytest.approx(0.1)  # twice the same
    assert "over two seeds" in table.note


def test_curves_pair_proxies_with_their_baseline_by_colour():
    pytest.importorskip("matplotlib", reason="the extra 'plots' is not installed")
    report = Report("t")
    section = report.section("s")
    add_learning_curves(section, "curves", MADE_UP, {1.0: HISTORIES, 0.1: HISTORIES}, 0.9)
    (drawing,) = section._content
    right = drawing.figure.axes[1]
    alone, plain, aware, bayes = right.get_lines()
    assert plain.get_color() == aware.get_color() != alone.get_color()
    assert (plain.get_linestyle(), aware.get_linestyle()) == ("--", "-")
    assert set(bayes.get_ydata()) == {0.9}
    assert alone.get_xydata().tolist() == [[10, 0.6], [100, 0.6]]
    assert plain.get_xydata()[:, 1] == pytest.approx(0.7)
    many = Comparison("?", {str(i): {"margin": i} for i in range(9)}, {})
    histories = {name: HISTORIES["plain"] for name in many.variants}
    add_learning_curves(section, "many", many, {1.0: histories, 0.1: histories}, None)
    assert section._content[1:] == ["9 variants are too many for one figure of curves."]


def rows_of(features):
    return {row.tobytes() for row in features.audio}


def test_screening_sees_no_test_row(grouped_file):
    screened = grouped_data(str(grouped_file), "speaker", for_test=False)
    confirmed = grouped_data(str(grouped_file), "speaker", for_test=True)
    test = rows_of(confirmed.test)
    assert len(test) == 12 + 5  # every fourth row, from the last of four on
    assert not test & rows_of(screened.train) and not test & rows_of(screened.test)
    assert rows_of(confirmed.train) == rows_of(screened.train) | rows_of(screened.test)
    assert not rows_of(screened.train) & rows_of(screened.test)


def test_turns_validate_on_one_group_after_the_other_and_test_on_one(grouped_file):
    with h5py.File(grouped_file) as file:
        speakers = np.concatenate([file["speaker_train"][:], file["speaker_test"][:]])
        audio = np.concatenate([file["audio_train"][:], file["audio_test"][:]])
    of_speaker = [{row.tobytes() for row in audio[speakers == number]} for number in range(4)]
    path = str(grouped_file)
    for turn, validation in enumerate([2, 1, 0]):
        confirmed = grouped_data(path, "speaker", for_test=True, turn=turn)
        assert rows_of(confirmed.test) == of_speaker[3]
        assert rows_of(confirmed.train) == set().union(*of_speaker[:3])
        screened = grouped_data(path, "speaker", for_test=False, turn=turn)
        assert rows_of(screened.test) == of_speaker[validation]
        assert rows_of(screened.train) == set().union(*of_speaker[:3]) - of_speaker[validation]
    with pytest.raises(UserError, match=r"3 values of speaker to validate on .* at most --seeds=3"):
        grouped_data(path, "speaker", for_test=False, turn=3)


def test_generated_problems_differ_by_turn():
    first, second = (generated_data(for_test=True, turn=turn) for turn in (0, 1))
    assert first.fingerprint() == load_dataset("synthetic").fingerprint()
    assert not rows_of(first.train) & rows_of(second.train)


def test_label_noise_is_wrong_and_in_the_training_rows_alone():
    dataset = generated_data(for_test=True)
    noisy = with_label_noise(dataset, 0.3, seed=1)
    wrong = noisy.train.labels != dataset.train.labels
    assert wrong.sum() == 0.3 * len(dataset.train)
    assert noisy.train.labels.min() == 0 and noisy.train.labels.max() == 9
    shifts = (noisy.train.labels - dataset.train.labels)[wrong] % 10
    assert np.ptp(np.bincount(shifts, minlength=10)[1:]) <= 1  # all other classes alike
    assert noisy.test is dataset.test and noisy.fingerprint() != dataset.fingerprint()
    other = with_label_noise(dataset, 0.3, seed=2).train.labels != dataset.train.labels
    assert (other != wrong).any()
    clean = with_label_noise(dataset, 0.0)
    assert clean.fingerprint() == dataset.fingerprint()
    with pytest.raises(UserError, match=r"--label_noise=0\.0001 of 2000 training rows is none"):
        with_label_noise(dataset, 0.0001)
    with pytest.raises(ValueError, match="from 0 to below 1"):
        with_label_noise(dataset, 1.5)


def test_generated_screening_sees_no_test_row():
    screened, confirmed = generated_data(for_test=False), generated_data(for_test=True)
    assert rows_of(screened.train) | rows_of(screened.test) == rows_of(confirmed.train)
    assert not rows_of(screened.train) & rows_of(screened.test)
    assert confirmed.test_posteriors is not None


@pytest.mark.parametrize(
    ("key", "line"),
    [
        ("none", "key none_train is missing .*; name other groups with --group"),
        ("sex", r"has the values \[0, 1\] of sex; three are needed.* another key with --group"),
        ("column", r"must hold a group a row, together shape \(70,\), not \(70, 1\)"),
    ],
)
def test_files_without_groups_are_named(grouped_file, key, line):
    with pytest.raises(UserError, match=line):
        grouped_data(str(grouped_file), key, for_test=True)


def test_one_command_screens_and_goes_on_where_it_was(grouped_file, tmp_path):
    pytest.importorskip("matplotlib", reason="the extra 'plots' is not installed")
    command = (
        "study",
        f"--features_file={grouped_file}",
        f"--workdir={tmp_path / 'study'}",
        "--comparisons=fractions",
        "--fractions=0.5,0.8,1",
        "--data_by_seed",
        "--steps=2",
        "--seeds=2",
        "--hidden_sizes=8",
    )
    status, output, errors = run(*command)
    assert status == 0
    (first, *_), folder = errors.splitlines(), tmp_path / "study"
    assert first == f"fractions, 0.5 of the training rows: 10 runs; folder {folder}"
    assert "fractions, 50 % of the training rows" in output
    page = "screen-fractions-0.5-0.8-1-seeds-2-steps-2-8-data_by_seed-True"
    folder = folder / page
    numbers = json.loads((folder / "numbers.json").read_text())
    tables = numbers["sections"][0]["tables"]
    assert len(tables) == 3
    for record in (record for table in tables for record in table["records"]):
        assert 0 < record["cosine"]["mean"] <= 1 and record["cosine"]["n"] == 2
        if record["gain over"]:
            (table,) = (table for table in tables if record in table["records"])
            (baseline,) = (r for r in table["records"] if r["variant"] == record["gain over"])
            difference = record["posterior"]["mean"] - baseline["posterior"]["mean"]
            assert record["posterior, gain"]["mean"] == pytest.approx(difference, abs=1e-12)
    assert [record["variant"] for record in tables[0]["records"]] == list(
        SCREENED["fractions"].variants
    )
    assert {path.stem for path in (folder / "figures").glob("*.svg")} == {
        "fractions-50",
        "fractions-80",
        "fractions-100",
        "fractions-by-share",
    }
    rows = numbers["configuration"]["rows, by fraction and seed"]
    assert {fraction: len(parts) for fraction, parts in rows.items()} == {
        "0.5": 2,
        "0.8": 2,
        "1": 2,
    }
    assert len({part["fingerprint"] for parts in rows.values() for part in parts}) == 6

    def kept():
        return {
            path.name: path.stat().st_mtime_ns
            for path in (tmp_path / "study" / "sweep").glob("*.json")
        }

    before = kept()
    assert before and run(*command)[:2] == (0, output)
    assert kept() == before


@pytest.mark.parametrize("turns", [1, 2])
def test_each_seed_is_trained_on_its_own_data_or_all_on_one(grouped_file, tmp_path, turns):
    """Histories are those of the runs by themselves, put in order of the seeds."""
    datasets = [
        with_label_noise(
            with_train_fraction(
                grouped_data(str(grouped_file), "speaker", for_test=False, turn=turn), 0.5
            ),
            0.2,
            seed=turn,
        )
        for turn in range(turns)
    ]
    base = {"hidden_sizes": (8,), "learning_rate": 1e-3, "label_loss": "squared"}
    comparison = Comparison("?", {"a": {}, "b": {"num_neighbors": 1}}, {"b": "a"})
    histories = run_comparison(
        comparison,
        datasets,
        seeds=2,
        steps=2,
        most_runs=3,
        base=base,
        folder=tmp_path,
        on_progress=lambda done, total: None,
    )
    for name, changes in comparison.variants.items():
        for seed, history in enumerate(histories[name]):
            turn = seed if turns > 1 else 0
            data = hold(datasets[turn])
            config = TrainConfig(**base, **changes, seed=seed, batch_size=data.num_train, epochs=2)
            probes = {"cosine": Probe(data.test, similarity="cosine")}
            (alone,) = run_program([resolve(config, data.num_train)], data, probes)
            assert mean_maps([history], "cosine") == pytest.approx(
                mean_maps([alone], "cosine"), abs=1e-6
            )


@pytest.mark.parametrize(
    ("flag", "line"),
    [
        ("--fractions=0", "must be numbers above 0, at most 1"),
        ("--fractions=x", "must be numbers above 0, at most 1"),
        ("--hidden_sizes=a", "must be whole numbers separated by commas"),
        ("--fractions=0.5,0.50", "must be different numbers"),
        ("--comparisons=terms,terms", "must be different names"),
        ("--comparisons=all", "--comparisons=all is none of --stage=screen: readings"),
        ("--comparisons=candidates", "--comparisons=candidates needs data for each seed"),
        ("--label_noise=nan", "must be a number"),
    ],
)
def test_flags_that_cannot_be_get_one_line(tmp_path, flag, line):
    status, _, errors = run("study", flag, cwd=tmp_path)
    assert status == 2
    assert errors.count("\n") == 1 and line in errors
