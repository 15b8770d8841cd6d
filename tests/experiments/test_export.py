"""`experiments.export`: artifacts that a program without this library loads and runs."""

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from compilers import topology_or_skip
from running import run, train, write_feature_file

import aadml_jax as aa
from aadml_jax.data import open_feature_file
from aadml_jax.errors import UserError
from aadml_jax.models import PRECISIONS
from aadml_jax.training import exported_towers
from aadml_jax.training.ahead_of_time import compile_function
from experiments import export as binary

HAS_FLATBUFFERS = importlib.util.find_spec("flatbuffers") is not None
needs_flatbuffers = pytest.mark.skipif(
    not HAS_FLATBUFFERS, reason="the extra 'export' is not installed"
)
PROGRAM = """
import sys
sys.modules["aadml_jax"] = sys.modules["flax"] = None  # an import of them would fail
import jax.export
import numpy as np

for name in ("audio", "visual"):
    with open(f"exported/{name}.jax_export", "rb") as file:
        embed = jax.export.deserialize(bytearray(file.read())).call
    features = np.load(f"{name}.npy")
    np.save(f"{name}_embeddings.npy", np.asarray(embed(features)))
"""


@pytest.fixture(scope="module")
def features(tmp_path_factory):
    path = write_feature_file(tmp_path_factory.mktemp("data") / "features.h5")
    return path, open_feature_file(path).test.take(slice(None))


@pytest.fixture(scope="module")
def folder(tmp_path_factory, features):
    path = tmp_path_factory.mktemp("run")
    train(
        dataset="features",
        features_file=str(features[0]),
        workdir=str(path),
        epochs=2,
        hidden_sizes=(16,),
        loss="contrastive",
    )
    return path


def exported(folder, output, **options):
    return binary.run(binary.Options(checkpoint=str(folder), output=str(output), **options))


@needs_flatbuffers
def test_a_program_without_this_library_gives_the_same_embeddings(
    folder, features, tmp_path, capsys
):
    path = exported(folder, tmp_path / "exported")
    assert f"written to {path}" in capsys.readouterr().out
    _, rows = features
    np.save(tmp_path / "audio.npy", rows.audio)
    np.save(tmp_path / "visual.npy", rows.visual[:7])
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    trained = aa.load_run(folder)
    for name, embed, given in (
        ("audio", trained.embed_audio, rows.audio),
        ("visual", trained.embed_visual, rows.visual[:7]),
    ):
        embeddings = np.load(tmp_path / f"{name}_embeddings.npy")
        assert embeddings.dtype == np.float32
        np.testing.assert_allclose(embeddings, embed(given), rtol=1e-5, atol=1e-6)


@needs_flatbuffers
def test_the_folder_says_what_the_towers_are(folder, tmp_path):
    path = exported(folder, tmp_path / "new" / "exported", which="best")
    assert sorted(file.name for file in path.iterdir()) == [
        *("audio.jax_export", "model.json", "visual.jax_export"),
    ]
    trained = aa.load_run(folder, which="best")
    facts = json.loads((path / "model.json").read_text())
    assert facts["fingerprint"] == trained.fingerprint
    assert (facts["similarity"], facts["which"], facts["epoch"]) == ("posterior", "best", 2)
    assert facts["audio"] == {"file": "audio.jax_export", "features": 8}
    assert facts["visual"] == {"file": "visual.jax_export", "features": 12}
    assert (facts["num_classes"], facts["class_names"]) == (3, [])
    assert [file.name for file in path.parent.iterdir()] == ["exported"]


def test_a_tower_is_lowered_for_all_platforms_and_any_number_of_rows(folder):
    tower = exported_towers.export_tower(aa.load_run(folder), "audio")
    assert tower.platforms == ("cpu", "cuda", "tpu")
    assert str(tower.in_avals[0]) == "float32[rows,8]"
    assert str(tower.out_avals[0]) == "float32[rows,3]"
    assert tower.disabled_safety_checks == ()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_towers_of_every_precision_are_exported(folder, features, precision):
    trained = aa.load_run(folder)
    model = trained.model.clone(**PRECISIONS[precision])
    trained = dataclasses.replace(trained, model=model)
    tower = exported_towers.export_tower(trained, "audio")
    rows = features[1].audio
    # In bfloat16, whose last bit is 2⁻⁸, a product may be rounded otherwise.
    tolerance = 2e-2 if precision == "bfloat16" else 1e-5
    np.testing.assert_allclose(
        tower.call(rows), trained.embed_audio(rows), rtol=tolerance, atol=tolerance
    )


@pytest.mark.aot
@pytest.mark.parametrize("name", ["v5e:2x2", "h100:1"])
def test_a_tower_is_compiled_for_accelerators(folder, name):
    topology = topology_or_skip(name)
    tower = exported_towers.export_tower(aa.load_run(folder), "visual")
    program = compile_function(tower.call, (jax.ShapeDtypeStruct((5, 12), np.float32),), topology)
    assert program.cost.matrix_flop > 0


@needs_flatbuffers
def test_after_an_error_nothing_is_left(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(exported_towers, "_facts", lambda run: {"a": object()})
    with pytest.raises(TypeError):
        exported(folder, tmp_path / "exported")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"checkpoint": None}, "--checkpoint is needed"),
        ({"output": None}, "--output is needed"),
        ({"output": "there"}, "there exists already; remove it or choose another folder"),
        ({"checkpoint": "none"}, "config.json cannot be read"),
        ({"which": "x"}, "--which=x must be one of latest, best"),
    ],
)
def test_a_users_mistake_is_one_line_and_changes_nothing(
    folder, tmp_path, monkeypatch, options, said
):
    monkeypatch.setattr(binary, "require_flatbuffers", lambda: None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    with pytest.raises(UserError) as caught:
        binary.run(binary.Options(**{"checkpoint": str(folder), "output": "exported", **options}))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_without_flatbuffers_a_line_says_what_to_install(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs the package flatbuffers; run pip .*'\.\[export\]'"):
        exported(folder, tmp_path / "exported")
    assert not list(tmp_path.iterdir())


@needs_flatbuffers
def test_the_command_writes_a_folder_once(folder, tmp_path):
    flags = [f"--checkpoint={folder}", "--output=exported"]
    status, output, errors = run("export", *flags, cwd=tmp_path)
    assert (status, errors) == (0, "")
    assert "audio.jax_export" in output
    status, output, errors = run("export", *flags, cwd=tmp_path)
    assert (status, output) == (2, "")
    assert errors.startswith(f"error: {tmp_path / 'exported'} exists already")
    assert errors.count("\n") == 1
