"""`experiments.evaluate --embeddings`: embeddings of a run, and those that come from elsewhere."""

import json

import numpy as np
import pytest
from running import evaluate, train, write_feature_file

from aadml_jax.errors import UserError
from experiments import embed as embed_binary

# Each audio ranks its own visual first, and then that of the other class.
TWO_PAIRS = {
    "audio_embeddings": [[1.0, 0.0], [0.0, 1.0]],
    "visual_embeddings": [[2.0, 1.0], [1.0, 2.0]],
    "labels": [0, 1],
}
# Cosine similarities: of the first audio 1, 0 and .6, of the second 0, 1 and .8.
NO_PAIRS = {
    "audio_embeddings": [[1.0, 0.0], [0.0, 1.0]],
    "visual_embeddings": [[1.0, 0.0], [0.0, 1.0], [3.0, 4.0]],
    "audio_labels": [0, 1],
    "visual_labels": [0, 0, 1],
}


def saved(folder, **arrays):
    np.savez(folder / "file.npz", **arrays)
    return str(folder / "file.npz")


def test_a_runs_embeddings_give_the_result_of_the_run(tmp_path, capsys):
    features = write_feature_file(tmp_path / "features.h5")
    result = train(
        dataset="features",
        features_file=str(features),
        workdir=str(tmp_path / "run"),
        epochs=2,
        hidden_sizes=(16,),
        loss="contrastive",
    )
    path = tmp_path / "file.npz"
    embed_binary.run(embed_binary.Options(checkpoint=str(tmp_path / "run"), output=str(path)))
    capsys.readouterr()
    numbers = evaluate(embeddings=str(path), output=str(tmp_path / "numbers.json"))
    output, errors = capsys.readouterr()
    assert output.startswith(f"embeddings of {path}, 20 pairs; retrieval by posterior\n")
    assert errors == ""
    for name in ("map", "prefix_map", "precision_at_k", "recall_at_k"):
        assert numbers[name] == pytest.approx(result[name], abs=1e-6)
    assert numbers["chance"] == result["chance"]
    assert numbers.keys() == result.keys() - {"best", "epochs", "seconds", "versions"}
    assert json.loads((tmp_path / "numbers.json").read_text())["map"] == numbers["map"]
    assert evaluate(embeddings=str(path), similarity="cosine")["map"] != numbers["map"]


def test_pairs_from_elsewhere_are_ranked_by_cosine(tmp_path, capsys):
    numbers = evaluate(embeddings=saved(tmp_path, **TWO_PAIRS))
    assert numbers["map"] == {"audio_to_visual": 1.0, "visual_to_audio": 1.0, "mean": 1.0}
    assert "2 pairs; retrieval by cosine" in capsys.readouterr().out


def test_clips_that_are_no_pairs_are_ranked_in_both_directions(tmp_path, capsys):
    numbers = evaluate(embeddings=saved(tmp_path, **NO_PAIRS))
    # The first audio finds its two at ranks 1 and 3, the second its one at rank 2.
    to_visual = ((1 + 2 / 3) / 2 + 1 / 2) / 2
    # The first visual finds its one at once; the second is most like the second audio, and so is
    # the third, of that class.
    to_audio = (1 + 1 / 2 + 1) / 3
    assert numbers["map"]["audio_to_visual"] == pytest.approx(to_visual)
    assert numbers["map"]["visual_to_audio"] == pytest.approx(to_audio)
    # Of the orders of three, two right ones are at (1 2), (1 3) or (2 3), a right one anywhere.
    chance = (np.mean([1, (1 + 2 / 3) / 2, (1 / 2 + 2 / 3) / 2]) + np.mean([1, 1 / 2, 1 / 3])) / 2
    assert numbers["chance_map"]["audio_to_visual"] == pytest.approx(chance)
    assert numbers["chance_map"]["visual_to_audio"] == pytest.approx((1 + 1 / 2) / 2)
    output, errors = capsys.readouterr()
    assert "2 audio, 3 visual; retrieval by cosine" in output
    assert f"chance (MAP){chance:>24.3f}{0.75:>14.3f}{(chance + 0.75) / 2:>8.3f}" in output
    assert errors == ""


def test_queries_without_a_counterpart_are_told(tmp_path, capsys):
    numbers = evaluate(embeddings=saved(tmp_path, **NO_PAIRS | {"visual_labels": [0, 0, 2]}))
    # The second audio finds nothing, and nothing finds the third visual.
    assert numbers["map"]["audio_to_visual"] == pytest.approx((1 + 2 / 3) / 2 / 2)
    errors = capsys.readouterr().err
    assert "warning: 1 of the 2 audio clips have no relevant counterpart and count as 0" in errors
    assert "warning: 1 of the 3 visual clips have no relevant counterpart and count as" in errors


def test_a_page_shows_pairs(tmp_path):
    pytest.importorskip("matplotlib", reason="the extra 'plots' is not installed")
    rng = np.random.default_rng(0)
    path = saved(
        tmp_path,
        audio_embeddings=rng.normal(size=(30, 4)),
        visual_embeddings=rng.normal(size=(30, 4)),
        labels=np.arange(30) % 3,
        class_names=["dog", "cat", "bus"],
    )
    evaluate(embeddings=path, report=str(tmp_path / "page"))
    page = (tmp_path / "page" / "report.html").read_text()
    assert "Retrieval among file.npz" in page
    assert "bus" in page


@pytest.mark.parametrize(
    ("arrays", "options", "said"),
    [
        (TWO_PAIRS, {"checkpoint": "run"}, "--checkpoint=run and --embeddings name two sources"),
        (TWO_PAIRS, {"features_file": "x.h5"}, "--features_file=x.h5 and --embeddings name two"),
        (TWO_PAIRS, {"similarity": "dot"}, "--similarity=dot must be one of auto, cosine, post"),
        (TWO_PAIRS | {"similarity": "dot"}, {}, "its similarity 'dot' is not known; set --simil"),
        ({"audio_embeddings": np.eye(2), "labels": [0, 1]}, {}, "holds embeddings of audio alone"),
        (
            {name: TWO_PAIRS[name] for name in ("audio_embeddings", "visual_embeddings")},
            {},
            "does not hold the labels of all its clips",
        ),
        (NO_PAIRS, {"report": "page"}, "--report shows pairs, but"),
        ({"audio": np.eye(2)}, {}, "has none of the keys audio_embeddings and visual_embeddings"),
        (TWO_PAIRS, {"output": "none/x.json"}, "--output=none/x.json cannot be written"),
    ],
)
def test_what_cannot_be_evaluated_is_one_line(tmp_path, monkeypatch, arrays, options, said):
    monkeypatch.chdir(tmp_path)
    path = saved(tmp_path, **arrays)
    with pytest.raises(UserError) as caught:
        evaluate(embeddings=path, **options)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert [entry.name for entry in tmp_path.iterdir()] == ["file.npz"]


def test_one_of_run_and_embeddings_is_needed():
    with pytest.raises(UserError, match=r"--checkpoint is needed.*or --embeddings=FILE\.npz"):
        evaluate()
