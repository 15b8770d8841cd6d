"""`experiments.search`: clips and features as queries, what is printed, the page, mistakes."""

import html
import json
import math
import pathlib
import re
import shutil
import urllib.parse

import numpy as np
import pytest
from running import run, train

import aadml_jax as aa
from aadml_jax.data import open_feature_file
from aadml_jax.errors import UserError
from experiments import index as index_binary
from experiments import search as binary

SMALL = {"epochs": 2, "eval_every": 2, "hidden_sizes": (16,), "loss": "contrastive"}
# Cosines to the visual clips: of audio a 1, .8, 0 and 0, of audio b 0, .6, 1 and 0.
CLIPS = {
    "audio_embeddings": [[1.0, 0.0], [0.0, 2.0]],
    "visual_embeddings": [[2.0, 0.0], [4.0, 3.0], [0.0, 1.0], [0.0, 0.0]],
    "audio_ids": ["a", "b"],
    "visual_ids": ["p", "q", "r", "s"],
    "audio_labels": [0, 1],
    "visual_labels": [0, 1, 1, 0],
    "class_names": ["dog", "bus"],
}


def saved(folder, name="i.npz", **arrays):
    np.savez(folder / name, **arrays)
    return str(folder / name)


def search(index, query, **options):
    return binary.run(binary.Options(index=str(index), query=str(query), **options))


def ranked(query):
    return [found["id"] for found in query["results"]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, features):
    path = tmp_path_factory.mktemp("run")
    train(dataset="features", features_file=str(features), workdir=str(path), **SMALL)
    return path


@pytest.fixture(scope="module")
def index(tmp_path_factory, folder):
    path = tmp_path_factory.mktemp("index") / "i.npz"
    return index_binary.run(index_binary.Options(checkpoint=str(folder), output=str(path)))


def test_a_clip_is_searched_for_by_its_id_without_a_run(tmp_path, capsys):
    path = saved(tmp_path, **CLIPS)
    search(path, "a", k=3)
    assert capsys.readouterr() == (
        f"audio searches 4 visual clips of {path} by cosine\n"
        "\n"
        "query a, class dog\n"
        "rank  score  id  class\n"
        "   1      1  p   dog\n"
        "   2    0.8  q   bus\n"
        "   3      0  r   bus\n",
        "",
    )


def test_equal_scores_are_in_the_order_of_the_index(tmp_path):
    (query,) = search(saved(tmp_path, **CLIPS), "b")["queries"]
    assert ranked(query) == ["r", "q", "p", "s"]
    # The cosines to the audio clips are 0 and .6, and 0 and 0.
    to_audio = "visual_to_audio"
    (query,) = search(tmp_path / "i.npz", "q", direction=to_audio, k=1)["queries"]
    assert ranked(query) == ["a"]
    (query,) = search(tmp_path / "i.npz", "s", direction=to_audio)["queries"]
    assert ranked(query) == ["a", "b"]


def test_json_is_all_that_is_printed(tmp_path, capsys):
    media = {"visual_media": ["", "/media/q.png", "", ""]}
    several = {"audio_labels": np.eye(2), "visual_labels": [[1, 1], [0, 1], [0, 1], [1, 0]]}
    path = saved(tmp_path, **CLIPS | media | several)
    result = search(path, "a", k=2, json=True, page=str(tmp_path / "page"))
    output, errors = capsys.readouterr()
    assert json.loads(output) == result
    (query,) = result.pop("queries")
    assert result == {"index": path, "direction": "audio_to_visual", "similarity": "cosine"}
    assert query == {
        "id": "a",
        "classes": ["dog"],
        "media": None,
        "results": [
            {"rank": 1, "score": 1.0, "id": "p", "classes": ["dog", "bus"], "media": None},
            {"rank": 2, "score": pytest.approx(0.8), "id": "q", "classes": ["bus"]}
            | {"media": "/media/q.png"},
        ],
    }
    assert f"written to {tmp_path / 'page' / 'report.html'}\n" in errors


def test_scores_that_are_not_finite_are_none(tmp_path, capsys):
    # The difference of the logits overflows: no class is possible for both.
    sure = [[3e38, -3e38], [-3e38, 3e38]]
    path = saved(tmp_path, audio_embeddings=sure, visual_embeddings=sure, similarity="posterior")
    (query,) = search(path, "1", json=True, page=str(tmp_path / "page"))["queries"]
    assert [(found["id"], found["score"]) for found in query["results"]] == [("1", 0), ("0", None)]
    assert json.loads(capsys.readouterr().out)["queries"] == [query]


def posteriors(logits):
    values = [math.exp(value - max(logits)) for value in logits]
    return [value / sum(values) for value in values]


def by_posterior(query, gallery):
    """Rows of the gallery and their scores, best first, by loops in float64."""
    p = posteriors([float(value) for value in query])
    scores = [
        math.log(sum(a * b for a, b in zip(p, posteriors(list(map(float, item))), strict=True)))
        for item in gallery
    ]
    return sorted(enumerate(scores), key=lambda one: (-one[1], one[0]))


@pytest.mark.parametrize("modality", ["audio", "visual"])
def test_features_are_embedded_by_the_run_that_made_the_index(
    folder, features, index, tmp_path, capsys, modality
):
    rows = open_feature_file(features)
    test, new = rows.test.take(slice(None)), rows.train.take(slice(0, 3))
    other = {"audio": "visual", "visual": "audio"}[modality]
    arrays = {modality: getattr(new, modality), "ids": ["x", "y", "z"], "labels": new.labels}
    query = saved(tmp_path, "queries.npz", **arrays)
    result = search(index, query, direction=f"{modality}_to_{other}", k=5)
    trained = aa.load_run(folder)
    embedded = {
        name: getattr(trained, f"embed_{name}")(getattr(part, name))
        for name, part in ((modality, new), (other, test))
    }
    assert [found["id"] for found in result["queries"]] == ["x", "y", "z"]
    for found, logits, label in zip(result["queries"], embedded[modality], new.labels, strict=True):
        wanted = by_posterior(logits, embedded[other])[:5]
        assert ranked(found) == [f"test/{row}" for row, _ in wanted]
        scores = [item["score"] for item in found["results"]]
        np.testing.assert_allclose(scores, [score for _, score in wanted], rtol=1e-4, atol=1e-6)
        assert found["classes"] == [str(label)]
        assert [item["classes"] for item in found["results"]] == [
            [str(test.labels[row])] for row, _ in wanted
        ]
    assert capsys.readouterr().out.count("rank") == 3


def test_features_of_pairs_are_searched_for_in_either_direction(features, index, tmp_path):
    rows = open_feature_file(features).test.take(slice(4, 6))
    query = saved(tmp_path, "pairs.npz", audio=rows.audio, visual=rows.visual)
    for direction in ("audio_to_visual", "visual_to_audio"):
        of_features = search(index, query, direction=direction)["queries"]
        for number, found in zip((4, 5), of_features, strict=True):
            (of_clip,) = search(index, f"test/{number}", direction=direction)["queries"]
            # One row and two are embedded by different programs.
            assert ranked(found) == ranked(of_clip)


def test_a_run_that_was_moved_is_named(folder, features, index, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(folder, moved)
    arrays = dict(np.load(index)) | {"run": str(tmp_path / "gone")}
    path = saved(tmp_path, **arrays)
    query = saved(tmp_path, "q.npz", audio=open_feature_file(features).test.take(slice(2)).audio)
    with pytest.raises(UserError, match=r"gone, the run that made .*i\.npz, does not exist any"):
        search(path, query)
    found = search(path, query, checkpoint=str(moved))["queries"]
    assert list(map(ranked, found)) == list(map(ranked, search(index, query)["queries"]))


def test_another_run_is_refused(folder, features, index, tmp_path):
    other = tmp_path / "other"
    train(dataset="features", features_file=str(features), workdir=str(other), seed=1, **SMALL)
    query = saved(tmp_path, "q.npz", audio=np.ones((1, 8)))
    own, its = (aa.load_run(run).fingerprint[:8] for run in (folder, other))
    said = f"latest checkpoint of {other} .{its}. is not the one that made {index} .{own}.; set"
    with pytest.raises(UserError, match=said):
        search(index, query, checkpoint=str(other))
    wide = saved(tmp_path, "wide.npz", audio=np.ones((1, 9)))
    with pytest.raises(UserError, match=r"audio features have 9 columns, but the run in .* on 8"):
        search(index, wide)
    arrays = dict(np.load(index))
    changed = {name: arrays[name][:, :2] for name in ("audio_embeddings", "visual_embeddings")}
    path = saved(tmp_path, **arrays | changed)
    with pytest.raises(UserError, match=r"embeddings of 2 columns, but the run in .* makes 3; mak"):
        search(path, query)


def addresses(text, tag):
    return [
        html.unescape(address) for address in re.findall(rf'<{tag} (?:src|href)="([^"]*)"', text)
    ]


def test_the_page_refers_to_media_files_where_they_are(tmp_path, capsys):
    media = tmp_path / "my media"
    media.mkdir()
    names = {"audio": ["a.WAV", ""], "visual": ["50%#1?.png", "q.mp4", "r.dat", "gone.jpg"]}
    for name in (*names["audio"], *names["visual"]):
        if name not in ("", "gone.jpg"):
            (media / name).write_bytes(b"")
    arrays = {
        f"{modality}_media": [str(media / name) if name else "" for name in of_side]
        for modality, of_side in names.items()
    }
    path = saved(tmp_path, **CLIPS | arrays)
    search(path, "a", page=str(tmp_path / "pages" / "one"))
    output, errors = capsys.readouterr()
    page = tmp_path / "pages" / "one" / "report.html"
    assert output.endswith(f"\nwritten to {page}\n")
    assert errors == (
        "warning: 1 of the 5 media files of the page are not there any more, such as "
        f"{media / 'gone.jpg'}\n"
    )
    text = page.read_text()
    found = {tag: addresses(text, tag) for tag in ("audio", "img", "video")}
    assert found["audio"] == ["../../my%20media/a.WAV"]
    assert found["img"] == ["../../my%20media/50%25%231%3F.png", "../../my%20media/gone.jpg"]
    assert found["video"] == ["../../my%20media/q.mp4"]
    assert '<a href="../../my%20media/r.dat">r.dat</a>' in text
    for address in [*found["audio"], *found["video"], found["img"][0]]:
        assert (page.parent / urllib.parse.unquote(address)).is_file()
    assert "media-src 'self' file:" in text
    assert {entry.name for entry in page.parent.iterdir()} == {
        *("report.html", "report.md", "numbers.json", "all-results.csv"),
    }
    cards = re.findall(r'<p class="card-title">(.*?)</p>', text)
    assert cards == ["a", "p", "q", "r", "s"]
    assert '<p class="fact">rank 2, score .800</p><p class="fact">class bus</p>' in text
    assert "2. q, rank 2, score .800, class bus, [q.mp4](../../my%20media/q.mp4)" in (
        page.with_suffix(".md").read_text()
    )


def test_a_page_without_media_files_loads_nothing(tmp_path):
    attack = "<script>alert(1)</script>\"'"
    path = saved(tmp_path, **CLIPS | {"visual_ids": [attack, "q", "r", "s"]})
    search(path, "a", page=str(tmp_path / "page"))
    text = (tmp_path / "page" / "report.html").read_text()
    assert "media-src" not in text
    assert "<script>alert" not in text
    assert html.escape(attack) in text


def test_a_page_shows_the_first_of_many_queries(index, tmp_path):
    rng = np.random.default_rng(0)
    query = saved(tmp_path, "many.npz", audio=rng.normal(size=(101, 8)))
    result = search(index, query, k=1, page=str(tmp_path / "page"))
    assert len(result["queries"]) == 101
    text = (tmp_path / "page" / "report.html").read_text()
    assert text.count('<div class="query">') == 100
    assert "Of 101 queries the first 100 are shown." in text


def test_control_characters_of_names_do_not_reach_the_terminal(tmp_path, capsys):
    search(saved(tmp_path, **CLIPS | {"visual_ids": ["\x1b[2J", "q", "r\n", "s"]}), "a")
    output = capsys.readouterr().out
    assert "\\x1b[2J  dog" in output
    assert "r\\n" in output


@pytest.mark.parametrize(
    ("arrays", "options", "said"),
    [
        ({}, {"index": None}, "--index is needed"),
        ({}, {"query": None}, "--query is needed: the id of a clip in the index, or FILE.npz"),
        ({}, {"query": ""}, "--query is needed"),
        ({}, {"k": 0}, "--k=0 must be at least 1"),
        ({}, {"k": -3}, "--k=-3 must be at least 1"),
        ({}, {"k": 5}, r"--k=5 exceeds the 4 visual clips of .*i\.npz; ask for 4 at most"),
        ({}, {"direction": "audio"}, "--direction=audio must be one of audio_to_visual, visual_to"),
        ({}, {"query": "z"}, r"--query=z is none of the audio clips .*ids there: a, b\) and"),
        (
            {},
            {"query": "p"},
            "'p' is none of its audio clips, but of its visual clips; set --direction=visual_to_a",
        ),
        ({}, {"query": "z.npz"}, r"z\.npz does not exist"),
        ({}, {"checkpoint": "run"}, "--checkpoint=run is for a file of features, but --query=a is"),
        ({}, {"query": "i.npz"}, "has none of the keys audio and visual"),
        ({}, {"query": "visual.npz"}, "holds visual features alone.*set --direction=visual_to_aud"),
        ({}, {"query": "audio.npz"}, "does not say by which run .* clip of it by its id"),
        (
            {"run": "none", "which": "latest", "fingerprint": "f"},
            {"query": "audio.npz"},
            r"none, the run that made .*i\.npz, does not exist any more; set --checkpoint",
        ),
        (
            {"run": ".", "which": "../x", "fingerprint": "f"},
            {"query": "audio.npz"},
            "does not say by which run",
        ),
        (
            {"run": ".", "which": "latest", "fingerprint": "f"},
            {"query": "audio.npz"},
            r"config\.json cannot be read",
        ),
        ({"similarity": "dot"}, {}, "its similarity 'dot' is not known; known are cosine, poster"),
        ({"audio_media": ["x"]}, {}, "vectors has 2, ids has 2, labels has 2, media files has 1"),
        ({}, {"page": "i.npz"}, r"i\.npz cannot be written to"),
        ({}, {"index": "none.npz"}, r"none\.npz does not exist"),
        ({}, {"index": "audio.npz"}, "has none of the keys audio_embeddings and visual_embeddings"),
    ],
)
def test_a_users_mistake_is_one_line(tmp_path, monkeypatch, arrays, options, said):
    monkeypatch.chdir(tmp_path)
    saved(tmp_path, **CLIPS | arrays)
    for modality in ("audio", "visual"):
        saved(tmp_path, f"{modality}.npz", **{modality: np.ones((1, 2))})
    before = sorted(path.name for path in tmp_path.iterdir())
    options = {"index": "i.npz", "query": "a", **options}
    with pytest.raises(UserError, match=said) as caught:
        binary.run(binary.Options(**options))
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_a_modality_that_the_index_lacks_is_named(tmp_path):
    path = saved(tmp_path, audio_embeddings=np.eye(2), ids=["a", "b"])
    with pytest.raises(UserError, match="holds no visual embeddings, in which --direction=audio_"):
        search(path, "a")
    with pytest.raises(UserError, match="holds no visual clips, of which --query=a could be one"):
        search(path, "a", direction="visual_to_audio")


def test_the_command_takes_flags_and_prints_json(tmp_path):
    saved(tmp_path, **CLIPS)
    status, output, errors = run(
        "search", "--index=i.npz", "--query=a", "--k=2", "--json", cwd=tmp_path
    )
    assert (status, errors) == (0, "")
    (query,) = json.loads(output)["queries"]
    assert ranked(query) == ["p", "q"]
    assert pathlib.Path(json.loads(output)["index"]) == tmp_path / "i.npz"
