"""The study of when proxies help: fair comparisons, groups held out, one command."""

import dataclasses
import pathlib

import h5py
import numpy as np
import pytest
from running import flags_of, write_feature_file
from running import run as run_binary

from aadml_jax.data import SYNTHETIC, make_synthetic
from aadml_jax.errors import UserError
from aadml_jax.reports.page import Report
from aadml_jax.training.config import TrainConfig
from aadml_jax.training.sweep import RunHistory
from experiments.study import Options, run, runs
from experiments.study.data import generated_data, grouped_data, with_label_noise
from experiments.study.options import drawn_data
from experiments.study.runs import with_seeds
from experiments.study.sections import add_learning_curves, is_aware, table_of
from experiments.study.settings import CONFIRMED, SCREENED
from experiments.variants import TrainedVariants, Variant, configs_by_seed

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
    variants = comparison.variants
    configs_by_seed(variants, TrainConfig.of(), [0], 1000)
    for name, variant in variants.items():
        if variant.baseline is None:
            assert not is_aware(variant)
            continue
        assert variant.baseline in variants and variant.baseline != name
        changes, others = variant.changes, variants[variant.baseline].changes
        if is_aware(variant):
            # The same but for the proxies.
            own = {key: changes.get(key) for key in changes.keys() - OF_PROXIES}
            assert own == {key: others.get(key) for key in others.keys() - OF_PROXIES}
        elif "weight_decay" in others:
            assert changes["weight_decay"] == others["weight_decay"]
    # No two names for one setting.
    settings = [sorted(map(str, variant.changes.items())) for variant in variants.values()]
    assert len({tuple(changes) for changes in settings}) == len(settings)


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


MADE_UP = TrainedVariants(
    {
        "alone": Variant({"num_neighbors": 1, "metric_weight": 0.0}),
        "plain": Variant({"num_neighbors": 1}, "alone"),
        "aware": Variant({}, "plain"),
    },
    {
        "alone": [history(0.1, 0.5), history(0.2, 0.7)],
        "plain": [history(0.3, 0.5, 0.25), history(0.5, 0.9, 0.75)],
        "aware": [history(0.4, 0.4), history(0.6, 0.8)],
    },
)


def test_the_table_shows_gains_over_the_baseline_it_names():
    table = table_of(MADE_UP, "t", "two seeds")
    alone, plain, aware = (dict(zip(table.columns, row, strict=True)) for row in table.rows)
    assert (alone["cosine, gain"], alone["metric loss"], alone["gain over"]) == (None, None, "")
    # 0.3 − 0.1 and 0.5 − 0.2; 0 and 0.2
    assert plain["cosine, gain"].mean == pytest.approx(0.25)
    assert plain["posterior, gain"].mean == pytest.approx(0.1)
    assert (plain["gain over"], aware["gain over"]) == ("alone", "plain")
    assert plain["metric loss"].mean == pytest.approx(0.5)
    assert plain["cosine"].mean == pytest.approx(0.4)
    assert aware["cosine, gain"].mean == pytest.approx(0.1)
    assert aware["cosine, gain"].high == pytest.approx(0.1)  # twice the same
    assert "over two seeds" in table.note


def test_curves_pair_proxies_with_their_baseline_by_colour():
    pytest.importorskip("matplotlib", reason="the extra 'plots' is not installed")
    section = Report("t").section("s")
    add_learning_curves(section, "curves", {1.0: MADE_UP, 0.1: MADE_UP}, 0.9)
    (drawing,) = section._content
    right = drawing.figure.axes[1]
    alone, plain, aware, bayes = right.get_lines()
    assert plain.get_color() == aware.get_color() != alone.get_color()
    assert (plain.get_linestyle(), aware.get_linestyle()) == ("--", "-")
    assert set(bayes.get_ydata()) == {0.9}
    assert alone.get_xydata().tolist() == [[10, 0.6], [100, 0.6]]
    assert plain.get_xydata()[:, 1] == pytest.approx(0.7)
    variants = {str(i): Variant({"margin": i}) for i in range(9)}
    many = TrainedVariants(variants, {name: MADE_UP.histories["plain"] for name in variants})
    add_learning_curves(section, "many", {1.0: many, 0.1: many}, None)
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


def test_draws_validate_on_one_group_after_the_other_and_test_on_one(grouped_file):
    with h5py.File(grouped_file) as file:
        speakers = np.concatenate([file["speaker_train"][:], file["speaker_test"][:]])
        audio = np.concatenate([file["audio_train"][:], file["audio_test"][:]])
    of_speaker = [{row.tobytes() for row in audio[speakers == number]} for number in range(4)]
    path = str(grouped_file)
    for draw, validation in enumerate([2, 1, 0]):
        confirmed = grouped_data(path, "speaker", for_test=True, draw=draw)
        assert rows_of(confirmed.test) == of_speaker[3]
        assert rows_of(confirmed.train) == set().union(*of_speaker[:3])
        screened = grouped_data(path, "speaker", for_test=False, draw=draw)
        assert rows_of(screened.test) == of_speaker[validation]
        assert rows_of(screened.train) == set().union(*of_speaker[:3]) - of_speaker[validation]
    with pytest.raises(UserError, match=r"3 values of speaker to validate on .* at most --seeds=3"):
        grouped_data(path, "speaker", for_test=False, draw=3)


def test_generated_problems_differ_by_draw():
    first, second = (generated_data(for_test=True, draw=draw) for draw in (0, 1))
    assert first.fingerprint() == make_synthetic(SYNTHETIC).fingerprint()
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


def sweep_files(folder):
    return {path.name: path.stat().st_mtime_ns for path in (folder / "sweep").glob("*.json")}


def test_one_call_screens_and_the_command_resumes_it(grouped_file, tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="the extra 'plots' is not installed")
    folder = tmp_path / "study"
    options = {
        "features_file": str(grouped_file),
        "workdir": str(folder),
        "comparisons": ("fractions",),
        "fractions": ("1",),
        "steps": 2,
        "seeds": 2,
        "hidden_sizes": (8,),
    }
    page, numbers = run(Options(**options))
    output, errors = capsys.readouterr()
    assert errors == f"fractions, 1 of the training rows: 10 runs; folder {folder}\n"
    assert "fractions, 100 % of the training rows" in output
    assert page == folder / "screen-fractions-1-seeds-2-steps-2-8" / "report.html"
    assert page.exists()
    (table,) = numbers["sections"][0]["tables"]
    records = {record["variant"]: record for record in table["records"]}
    assert list(records) == list(SCREENED["fractions"].variants)
    for record in records.values():
        assert 0 < record["cosine"]["mean"] <= 1 and record["cosine"]["n"] == 2
        if record["gain over"]:
            baseline = records[record["gain over"]]
            difference = record["posterior"]["mean"] - baseline["posterior"]["mean"]
            assert record["posterior, gain"]["mean"] == pytest.approx(difference, abs=1e-12)

    # The same as a command: it trains nothing again.
    before = sweep_files(folder)
    assert before
    status, again, _ = run_binary("study", *flags_of(options))
    assert (status, again) == (0, f"{output}written to {page}\n")
    assert sweep_files(folder) == before


FRACTIONS_AND_DRAWS = {
    "comparisons": ("fractions",),
    "fractions": ("0.5", "0.8", "1"),
    "data_by_seed": True,
    "seeds": 2,
}


def test_fractions_and_draws_are_trained_each_on_its_own_rows(grouped_file, tmp_path, monkeypatch):
    """With made-up histories in place of training."""
    pytest.importorskip("matplotlib", reason="the extra 'plots' is not installed")
    trained_on = []

    def made_up(variants, base, draws, probes_of, **options):
        draws = list(draws)
        trained_on.append([(list(seeds), data.description["fingerprint"]) for seeds, data in draws])
        of_seeds = [history(0.5, 0.25), history(0.75, 0.5)]
        return TrainedVariants(variants, dict.fromkeys(variants, of_seeds))

    monkeypatch.setattr(runs, "train_variants", made_up)
    options = Options(
        features_file=str(grouped_file),
        workdir=str(tmp_path),
        **FRACTIONS_AND_DRAWS,
    )
    page, numbers = run(options)
    assert page.parent.name == "screen-fractions-0.5-0.8-1-seeds-2-data_by_seed-True"
    assert {path.stem for path in (page.parent / "figures").glob("*.svg")} == {
        "fractions-50",
        "fractions-80",
        "fractions-100",
        "fractions-by-share",
    }
    tables = numbers["sections"][0]["tables"]
    assert [table["title"].split(", ")[1] for table in tables] == [
        f"{part} % of the training rows" for part in (50, 80, 100)
    ]
    rows = numbers["configuration"]["rows, by fraction and seed"]
    assert list(rows) == ["0.5", "0.8", "1"]
    described = [[part["fingerprint"] for part in parts] for parts in rows.values()]
    assert len({fingerprint for parts in described for fingerprint in parts}) == 6
    assert trained_on == [[([0], first), ([1], second)] for first, second in described]


@pytest.mark.full
def test_a_study_of_several_fractions_and_draws_trains(grouped_file, tmp_path):
    pytest.importorskip("matplotlib", reason="the extra 'plots' is not installed")
    options = Options(
        features_file=str(grouped_file),
        workdir=str(tmp_path),
        **FRACTIONS_AND_DRAWS,
        steps=2,
        hidden_sizes=(8,),
    )
    _, numbers = run(options)
    before = sweep_files(tmp_path)
    tables = numbers["sections"][0]["tables"]
    for record in (record for table in tables for record in table["records"]):
        assert 0 < record["cosine"]["mean"] <= 1 and record["cosine"]["n"] == 2
    assert run(options).numbers["sections"] == numbers["sections"]
    assert sweep_files(tmp_path) == before


def test_each_seed_is_trained_on_its_own_data_or_all_on_one(grouped_file):
    options = Options(features_file=str(grouped_file), seeds=2)
    one = drawn_data(options)
    assert [list(seeds) for seeds, _ in with_seeds(one, 2)] == [[0, 1]]
    two = drawn_data(dataclasses.replace(options, data_by_seed=True))
    drawn = [(list(seeds), data.description["fingerprint"]) for seeds, data in with_seeds(two, 2)]
    assert drawn == [([draw], two[draw].fingerprint()) for draw in (0, 1)]
    with pytest.raises(ValueError, match="zip"):
        list(with_seeds(two, 3))


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"stage": "test"}, "--stage=test must be one of screen, confirm"),
        ({"fractions": ("0",)}, "--fractions=0 must be numbers above 0, at most 1"),
        ({"fractions": ("x",)}, "--fractions=x must be numbers above 0, at most 1"),
        ({"fractions": ("0.5", "0.50")}, "--fractions=0.5,0.50 must be different numbers"),
        ({"comparisons": ("terms", "terms")}, "--comparisons=terms,terms must be different names"),
        ({"comparisons": ("all",)}, "--comparisons=all is none of --stage=screen: readings"),
        ({"comparisons": ("candidates",)}, "--comparisons=candidates needs data for each seed"),
        ({"label_noise": float("nan")}, "--label_noise=nan must be from 0 to 0.9"),
        ({"seeds": 1}, "--seeds=1 must be at least 2"),
        ({"hidden_sizes": (8, 0)}, "must be at least 1"),
    ],
)
def test_options_that_cannot_be_get_one_line(tmp_path, monkeypatch, options, line):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=line) as caught:
        run(Options(**options))
    assert "\n" not in str(caught.value)
    assert not list(pathlib.Path().iterdir())
