"""`load_run`: embeddings of one modality from a run's folder, of any number of rows."""

import json
import shutil

import jax
import numpy as np
import pytest
from run_copies import change_json
from small_world import DATASET, SPEC, restored, stored_config, train

import aadml_jax as aa
from aadml_jax.data import standardize
from aadml_jax.errors import UserError
from aadml_jax.training import loaded_runs
from aadml_jax.training.evaluation import embed
from aadml_jax.training.local_data import recorded_limit
from aadml_jax.training.state import build_model

RNG = np.random.default_rng(0)
# As the layers are computed in float32, a product of other shape may differ in its last bits.
ROUNDING = {"rtol": 1e-5, "atol": 1e-6}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A finished run whose features are not standardised beforehand."""
    path = tmp_path_factory.mktemp("run")
    train(path, DATASET, class_proxies="learned", loss="proxy_anchor")
    return path


@pytest.fixture(scope="module")
def run(folder):
    return aa.load_run(folder)


def embedded_by_evaluation(folder, rows, which="latest"):
    """Both embeddings by the whole checkpoint, and the standardisation that training uses."""
    state, _ = restored(folder, which)
    limit = recorded_limit(stored_config(folder)["data"])
    features = standardize(DATASET.test.take(rows), state.standardization, limit=limit)
    model = build_model(aa.load_run(folder).config.recipe, SPEC.num_classes)
    return embed(model, state.params, features)


@pytest.mark.parametrize("which", ["latest", "best"])
def test_embeddings_are_those_that_evaluation_ranks(folder, which):
    run = aa.load_run(folder, which=which)
    audio, visual = embedded_by_evaluation(folder, slice(None), which)
    np.testing.assert_allclose(run.embed_audio(DATASET.test.audio), audio, **ROUNDING)
    np.testing.assert_allclose(run.embed_visual(DATASET.test.visual), visual, **ROUNDING)


def test_a_run_says_what_it_is(folder, run):
    assert (run.similarity, run.num_classes) == ("posterior", 3)
    assert (run.audio_dim, run.visual_dim, run.epoch) == (8, 12, 4)
    assert run.config.recipe.hidden_sizes == (16,)
    assert run.result == json.loads((folder / "result.json").read_text())
    assert run.folder == folder
    assert run.class_names == ()


def test_features_that_do_not_vary_and_those_far_out_are_taken_as_in_training(tmp_path):
    train_rows = DATASET.train.take(np.arange(SPEC.train_size))  # a copy
    train_rows.audio[:, 2] = 7.0
    path = tmp_path / "run"
    train(path, _with_train(train_rows))
    features = DATASET.test.take(np.arange(4))
    features.audio[:, 2] = [0, 7, 1e30, -3]  # left out, whatever it is
    features.audio[0, 0] = 3e38  # limited to 5 deviations
    state, _ = restored(path)
    wanted = standardize(features, state.standardization)
    assert np.abs(wanted.audio[0, 0]) == 5
    audio, _ = embed(aa.load_run(path).model, state.params, wanted)
    np.testing.assert_allclose(aa.load_run(path).embed_audio(features.audio), audio, **ROUNDING)


def _with_train(rows):
    return type(DATASET)("small", rows, DATASET.test, SPEC.num_classes, "here")


def test_a_run_without_standardisation_takes_features_as_they_are(tmp_path):
    train(tmp_path, standardize=False)
    run = aa.load_run(tmp_path)
    state, _ = restored(tmp_path)
    audio, _ = embed(run.model, state.params, DATASET.test)
    np.testing.assert_allclose(run.embed_audio(DATASET.test.audio), audio, **ROUNDING)


@pytest.mark.parametrize("num_rows", [0, 1, 2, 3, 7, 8, 9, 20, 21])
def test_any_number_of_rows_is_embedded_row_by_row(run, monkeypatch, num_rows):
    monkeypatch.setattr(loaded_runs, "BLOCK_ROWS", 8)
    features = RNG.normal(size=(num_rows, SPEC.visual_dim))
    embeddings = run.embed_visual(features)
    assert (embeddings.dtype, embeddings.shape) == (np.float32, (num_rows, 3))
    assert isinstance(embeddings, np.ndarray)
    for row, embedding in zip(features, embeddings, strict=True):
        np.testing.assert_allclose(run.embed_visual(row[None])[0], embedding, **ROUNDING)


def test_programs_are_compiled_for_powers_of_two(run, monkeypatch):
    monkeypatch.setattr(loaded_runs, "BLOCK_ROWS", 16)
    compiled = []
    outputs = loaded_runs._outputs

    def noted(*args):
        compiled.append(args[-1].shape[0])
        return outputs(*args)

    monkeypatch.setattr(loaded_runs, "_jitted_outputs", jax.jit(noted, static_argnums=(0, 1, 2)))
    for num_rows in (5, 6, 7, 8, 3, 16, 37, 100, 5):
        run.embed_audio(np.zeros((num_rows, SPEC.audio_dim)))
    # 37 rows are two blocks of 16 and one of 8 for the last 5; 100 leave 4.
    assert compiled == [8, 4, 16]


def test_the_folder_is_only_read(folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    paths = [copy, *copy.rglob("*")]
    for path in paths:
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = {path: path.stat().st_mtime_ns for path in paths}
    try:
        aa.load_run(copy).embed_audio(DATASET.test.audio)
        aa.load_run(copy, which="best")
        assert {path: path.stat().st_mtime_ns for path in [copy, *copy.rglob("*")]} == before
    finally:
        for path in paths:
            path.chmod(0o755)


def test_the_fingerprint_is_of_the_parameters_and_of_the_standardisation(folder, run, tmp_path):
    assert aa.load_run(folder).fingerprint == run.fingerprint
    assert len(run.fingerprint) == 32
    train(tmp_path / "seed", seed=1, class_proxies="learned", loss="proxy_anchor")
    assert aa.load_run(tmp_path / "seed").fingerprint != run.fingerprint
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    change_json(
        copy / "config.json", lambda stored: stored["data"]["standardization"].update(limit=3)
    )
    assert aa.load_run(copy).fingerprint != run.fingerprint


def test_an_unfinished_run_has_no_result(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    (tmp_path / "copy" / "result.json").unlink()
    assert aa.load_run(tmp_path / "copy").result is None


def test_names_of_classes_are_recorded_and_those_of_published_data_known_without(folder, tmp_path):
    dataset = type(DATASET)(
        "named", DATASET.train, DATASET.test, 3, "here", class_names=("Dog", "cat", "Ärger")
    )
    train(tmp_path / "named", dataset)
    assert aa.load_run(tmp_path / "named").class_names == ("Dog", "cat", "Ärger")

    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    change_json(copy / "config.json", lambda stored: stored["data"].pop("class_names"))
    assert aa.load_run(copy).class_names == ()
    stored = stored_config(copy)
    stored["config"]["data"]["dataset"] = "ave"
    stored["data"].update(num_classes=15)
    assert loaded_runs.recorded_class_names(stored)[:2] == ("Clock", "Motorcycle")
    stored["data"]["class_names"] = ["one", "name"]
    with pytest.raises(UserError, match=r"config\.json does not describe its data"):
        loaded_runs.recorded_class_names(stored)


@pytest.mark.parametrize(
    ("features", "said"),
    [
        (np.zeros((2, 9)), r"audio features have 9 columns, but the run in .* was trained on 8"),
        (np.zeros(8), r"audio features must be a matrix, one row per clip, got shape \(8,\)"),
        (np.array([[0.0] * 8, [np.nan] * 8]), r"holds 8 NaN .* in 1 of 2 rows, first in row 1"),
        (np.full((1, 8), 1e39), "exceeds the range of float32 in 1 of 1 rows"),
        (np.array([["a"] * 8]), "must hold real numbers"),
    ],
)
def test_features_that_cannot_be_embedded_are_one_line(run, features, said):
    with pytest.raises(UserError, match=said) as caught:
        run.embed_audio(features)
    assert "\n" not in str(caught.value)


def test_what_is_no_run_is_one_line(tmp_path, folder):
    with pytest.raises(UserError, match=r"config\.json cannot be read"):
        aa.load_run(tmp_path)
    shutil.copy(folder / "config.json", tmp_path)
    with pytest.raises(UserError, match="holds no best checkpoint yet"):
        aa.load_run(tmp_path, which="best")
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    with pytest.raises(ValueError, match="which must be one of latest, best; got 'last'"):
        aa.load_run(folder, which="last")


def test_the_name_is_in_the_package_and_others_are_not():
    assert "load_run" in dir(aa)
    assert aa.load_run is loaded_runs.load_run
    with pytest.raises(AttributeError, match="has no attribute 'save_run'"):
        aa.save_run  # noqa: B018
