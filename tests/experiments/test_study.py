"""The study of when proxies help: fair comparisons, groups held out, one command."""

import json

import h5py
import numpy as np
import pytest
from running import run, write_feature_file

from aadml_jax.errors import UserError
from aadml_jax.training.config import TrainConfig, check, resolve
from experiments.studied_settings import CONFIRMED, SCREENED
from experiments.study import generated_data, grouped_data


@pytest.mark.parametrize("comparison", [*SCREENED.values(), *CONFIRMED.values()])
def test_comparisons_are_of_valid_settings_with_a_baseline(comparison):
    for name, changes in comparison.variants.items():
        config = TrainConfig(**changes)
        check(config)
        resolve(config, 1000)
        baseline = comparison.baseline_of(name)
        assert baseline is None or baseline in comparison.variants
        assert baseline != name
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


def test_generated_screening_sees_no_test_row():
    screened, confirmed = generated_data(for_test=False), generated_data(for_test=True)
    assert rows_of(screened.train) | rows_of(screened.test) == rows_of(confirmed.train)
    assert not rows_of(screened.train) & rows_of(screened.test)
    assert confirmed.test_posteriors is not None


@pytest.mark.parametrize(
    ("key", "line"),
    [
        ("none", "has no keys none_train and none_test; name others with --group"),
        ("sex", r"has the sexs \[0, 1\]; three are needed"),
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
        "--fractions=0.5",
        "--steps=2",
        "--seeds=2",
        "--hidden_sizes=8",
    )
    status, output, errors = run(*command)
    assert (status, errors) == (0, "")
    assert "fractions, 50 % of the training rows" in output
    numbers = json.loads((tmp_path / "study/screen-fractions/numbers.json").read_text())
    (table,) = numbers["sections"][0]["tables"]
    assert [record["variant"] for record in table["records"]] == list(
        SCREENED["fractions"].variants
    )
    for record in table["records"]:
        assert 0 < record["cosine"]["mean"] <= 1 and record["cosine"]["n"] == 2
        if record["gain over"]:
            (baseline,) = (r for r in table["records"] if r["variant"] == record["gain over"])
            difference = record["posterior"]["mean"] - baseline["posterior"]["mean"]
            assert record["posterior, gain"]["mean"] == pytest.approx(difference, abs=1e-12)
    kept = sorted((tmp_path / "study" / "sweep").iterdir())
    assert kept and run(*command)[:2] == (0, output)
    assert kept == sorted((tmp_path / "study" / "sweep").iterdir())


@pytest.mark.parametrize(
    ("flag", "line"),
    [
        ("--fractions=0", "must be numbers above 0, at most 1"),
        ("--fractions=x", "must be numbers above 0, at most 1"),
        ("--hidden_sizes=a", "must be whole numbers separated by commas"),
        ("--comparisons=all", "--comparisons=all is none of readings"),
    ],
)
def test_flags_that_cannot_be_get_one_line(tmp_path, flag, line):
    status, _, errors = run("study", flag, cwd=tmp_path)
    assert status == 2
    assert errors.count("\n") == 1 and line in errors
