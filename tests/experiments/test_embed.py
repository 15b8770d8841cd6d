"""`experiments.embed`: embeddings of a run's own rows, of other data and of one modality."""

import numpy as np
import pytest
from running import run, train, write_feature_file

import aadml_jax as aa
from aadml_jax.data import open_feature_file
from aadml_jax.errors import UserError
from experiments import embed as binary

SMALL = {"epochs": 2, "eval_every": 2, "hidden_sizes": (16,), "loss": "contrastive"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, features):
    path = tmp_path_factory.mktemp("run")
    train(dataset="features", features_file=str(features), workdir=str(path), fold=1, **SMALL)
    return path


def embed(folder, output, **options):
    binary.run(binary.Options(checkpoint=str(folder), output=str(output), **options))
    with np.load(output) as file:
        return dict(file)


def test_the_runs_own_test_rows_are_embedded_with_their_labels(folder, tmp_path, capsys):
    arrays = embed(folder, tmp_path / "file.npz")
    trained = aa.load_run(folder)
    # A fifth of the 70 rows, class by class.
    assert arrays["audio_embeddings"].shape == arrays["visual_embeddings"].shape == (14, 3)
    assert arrays["ids"].tolist() == [f"test/{row}" for row in range(14)]
    # The same MAP as that of the run says that rows and labels belong together.
    report = aa.cross_modal_report(
        arrays["audio_embeddings"],
        arrays["visual_embeddings"],
        arrays["labels"],
        similarity=trained.similarity,
    )
    assert float(report["mean"]["map"]) == pytest.approx(trained.result["map"]["mean"], abs=1e-6)
    assert str(arrays["similarity"]) == trained.similarity
    assert str(arrays["run"]) == str(folder)
    assert str(arrays["which"]) == "latest"
    assert int(arrays["epoch"]) == 2
    assert str(arrays["fingerprint"]) == trained.fingerprint
    assert str(arrays["source"]).endswith("features.h5, fold 1, test rows")
    assert "class_names" not in arrays
    output, errors = capsys.readouterr()
    assert "14 audio and 14 visual embeddings of" in output
    assert output.endswith(f"written to {tmp_path / 'file.npz'}\n")
    assert errors == ""


def test_training_rows_and_all_rows_can_be_embedded(folder, tmp_path):
    test, training, both = (
        embed(folder, tmp_path / f"{split}.npz", split=split) for split in ("test", "train", "all")
    )
    assert both["ids"].tolist() == training["ids"].tolist() + test["ids"].tolist()
    for key in ("audio_embeddings", "labels"):
        np.testing.assert_array_equal(both[key], np.concatenate([training[key], test[key]]))
    assert len(both["ids"]) == 70


def test_another_data_set_or_file_is_embedded_by_its_own_split(folder, tmp_path, capsys):
    other = write_feature_file(tmp_path / "other.h5", seed=1)
    arrays = embed(folder, tmp_path / "file.npz", features_file=str(other))
    rows = open_feature_file(other).test.take(slice(None))
    np.testing.assert_array_equal(arrays["labels"], rows.labels)
    np.testing.assert_allclose(
        arrays["visual_embeddings"], aa.load_run(folder).embed_visual(rows.visual), rtol=1e-6
    )
    assert "not those of --fold=1" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"audio features have 128 columns, but the run in .* on 8"):
        embed(folder, tmp_path / "x.npz", dataset="synthetic")
    assert not (tmp_path / "x.npz").exists()


def test_a_modality_without_labels_is_embedded_alone(folder, tmp_path):
    visual = np.random.default_rng(0).normal(size=(5, 12))
    np.savez(tmp_path / "in.npz", visual=visual, ids=list("abcde"))
    arrays = embed(folder, tmp_path / "out.npz", features_file=str(tmp_path / "in.npz"))
    assert sorted(arrays) == [
        *("epoch", "fingerprint", "ids", "run", "similarity", "source", "visual_embeddings"),
        "which",
    ]
    np.testing.assert_array_equal(
        arrays["visual_embeddings"], aa.load_run(folder).embed_visual(visual)
    )
    assert arrays["ids"].tolist() == list("abcde")


def test_modalities_that_are_no_pairs_keep_labels_of_their_own(folder, tmp_path, features):
    rows = open_feature_file(features).test.take(slice(None))
    np.savez(tmp_path / "in.npz", audio=rows.audio, visual=rows.visual[:7],
             audio_labels=rows.labels, visual_labels=rows.labels[:7])  # fmt: skip
    arrays = embed(folder, tmp_path / "out.npz", features_file=str(tmp_path / "in.npz"))
    assert (len(arrays["audio_embeddings"]), len(arrays["visual_embeddings"])) == (20, 7)
    np.testing.assert_array_equal(arrays["audio_labels"], rows.labels)
    np.testing.assert_array_equal(arrays["visual_labels"], rows.labels[:7])
    assert "labels" not in arrays


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"checkpoint": None}, "--checkpoint is needed"),
        ({"output": None}, "--output is needed"),
        ({"which": "first"}, "--which=first must be one of latest, best"),
        ({"split": "dev"}, "--split=dev must be one of test, train, all"),
        ({"dataset": "features"}, "--dataset=features needs a file"),
        ({"dataset": "vegas"}, "vegas_feature.h5"),
        ({"dataset": "vegas", "features_file": "x.npz"}, "--dataset=vegas and --features_file na"),
        ({"data_dir": "x", "features_file": "x.h5"}, "--data_dir and --features_file name two"),
        ({"data_dir": "x"}, "--data_dir=x is not for --dataset=features"),
        ({"features_file": "none.npz"}, r"none\.npz does not exist"),
        ({"features_file": "x.npz", "split": "train"}, "--split=train is for data sets and HDF5"),
    ],
)
def test_a_users_mistake_is_one_line_and_writes_nothing(
    folder, tmp_path, monkeypatch, options, said
):
    monkeypatch.chdir(tmp_path)
    options = {"checkpoint": str(folder), "output": "file.npz", **options}
    with pytest.raises(UserError, match=said) as caught:
        binary.run(binary.Options(**options))
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_the_command_writes_a_file_once(folder, tmp_path):
    flags = [f"--checkpoint={folder}", "--output=file.npz"]
    status, output, errors = run("embed", *flags, cwd=tmp_path)
    assert (status, errors) == (0, "")
    assert "14 audio and 14 visual embeddings" in output
    content = (tmp_path / "file.npz").read_bytes()
    status, output, errors = run("embed", *flags, cwd=tmp_path)
    assert (status, output) == (2, "")
    assert errors == (
        f"error: {tmp_path / 'file.npz'} exists already; remove it or choose another file\n"
    )
    assert (tmp_path / "file.npz").read_bytes() == content
