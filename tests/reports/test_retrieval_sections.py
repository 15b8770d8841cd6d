"""The sections of a retrieval: their numbers against loops, and what they say of odd data."""

import importlib.util
import json
import re
from itertools import pairwise

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from aadml_jax.errors import UserError
from aadml_jax.reports.page import Report
from aadml_jax.reports.retrieval import add_retrieval_sections, require_plots

NAMES = ("bell", "dog", "rain", "no clip", "train")
ARROWS = ("audio→visual", "visual→audio")


def clips(seed, num_clips=37, dim=6, labels=None):
    """Noisy pairs, and a label of one of four of the five classes."""
    rng = np.random.default_rng(seed)
    if labels is None:
        labels = rng.choice([0, 1, 2, 4], num_clips, p=[0.4, 0.3, 0.2, 0.1])
    signal = np.eye(dim)[labels if labels.ndim == 1 else labels.argmax(axis=1)]
    audio, visual = (signal + 0.6 * rng.standard_normal(signal.shape) for _ in range(2))
    return audio, visual, labels


def written(folder, *arguments, **options):
    """The page's tables by title and the texts of its sections."""
    report = Report("Retrieval")
    add_retrieval_sections(report, *arguments, **options)
    report.write(folder)
    numbers = json.loads((folder / "numbers.json").read_text())
    tables = {
        table["title"]: table["records"]
        for section in numbers["sections"]
        for table in section["tables"]
    }
    return tables, (folder / "report.md").read_text()


def figures(folder):
    return {path.stem for path in (folder / "figures").glob("*.svg")}


def cosines(a, b):
    return np.array([[x @ y / np.linalg.norm(x) / np.linalg.norm(y) for y in b] for x in a])


def test_tables_hold_what_loops_find(tmp_path, monkeypatch):
    monkeypatch.setattr("aadml_jax.reports.retrieval.sections._BLOCK_ROWS", 10)
    audio, visual, labels = clips(0)
    tables, text = written(tmp_path, audio, visual, labels, NAMES, count=4, top=5)
    counts = [int(np.sum(labels == number)) for number in range(5)]
    rows = tables["MAP of each class"]
    assert [(row["class"], row["clips"]) for row in rows] == list(zip(NAMES, counts, strict=True))
    confusions, lengths = {}, set()
    for arrow, queries, gallery in ((ARROWS[0], audio, visual), (ARROWS[1], visual, audio)):
        scores = cosines(queries, gallery)
        relevance = labels[:, None] == labels
        values = [average_precision_score(*pair) for pair in zip(relevance, scores, strict=True)]
        for number, row in enumerate(rows):
            if counts[number]:
                expected = np.mean([v for v, c in zip(values, labels, strict=True) if c == number])
                assert row[f"MAP {arrow}"] == pytest.approx(expected, abs=1e-6)
            else:
                assert row[f"MAP {arrow}"] is None
        shares = np.zeros((5, 5))
        for query, label in enumerate(labels):
            for item in np.argsort(-scores[query])[: counts[label]]:
                shares[label, labels[item]] += 1 / counts[label] ** 2
        confusions[arrow] = shares
        side = arrow.split("→")[0]
        for title, order in (("Best", np.argsort(values)[::-1]), ("Worst", np.argsort(values))):
            entries = tables[f"{title} {side} queries"]
            expected = [values[row] for row in order[:4]]
            assert [entry["AP"] for entry in entries] == pytest.approx(expected, abs=1e-6)
            for entry in entries:
                first = np.argsort(-scores[entry["row"]])[:5]
                label = labels[entry["row"]]
                assert entry["class"] == NAMES[label]
                words = entry["first results"].replace("\N{NO-BREAK SPACE}", " ").split(", ")
                told = []
                for word in words:
                    result, _, length = word.partition(" ×")
                    told += [result] * int(length or 1)
                assert told == [
                    f"{'✓' if labels[item] == label else '✗'} {NAMES[labels[item]]}"
                    for item in first
                ]
                assert all(a.split(" ×")[0] != b.split(" ×")[0] for a, b in pairwise(words))
                lengths |= {len(words)}
        perfect = sum(value == 1 for value in values)
        assert f"{perfect} {side} queries" in text
    assert len(lengths) > 1
    mean = (confusions[ARROWS[0]] + confusions[ARROWS[1]]) / 2
    rows = tables["Most frequent confusions"]
    pairs = [
        tuple(NAMES.index(row[f"class of the {of}"]) for of in ("query", "results")) for row in rows
    ]
    for row, pair in zip(rows, pairs, strict=True):
        for arrow in ARROWS:
            assert row[f"share {arrow}"] == pytest.approx(confusions[arrow][pair], abs=1e-9)
    off_diagonal = sorted(mean[~np.eye(5, dtype=bool)])[::-1]
    assert [mean[pair] for pair in pairs] == pytest.approx(off_diagonal[:10], abs=1e-9)
    assert all(query != result for query, result in pairs)


def test_figures_and_texts_leave_nothing_unsaid(tmp_path):
    audio, visual, labels = clips(1)
    _, text = written(tmp_path, audio, visual, labels, NAMES, max_rows=20)
    assert figures(tmp_path) == {
        "embeddings",
        "map-by-class",
        "retrieved-classes-audio-to-visual",
        "retrieved-classes-visual-to-audio",
    }
    assert "20 of 37 clips are drawn" in text
    assert "rarest" not in text
    drawing = (tmp_path / "figures" / "retrieved-classes-audio-to-visual.svg").read_text()
    assert "train" in drawing
    assert "no clip" not in drawing


def test_clips_of_several_classes_are_shown_without_confusions(tmp_path):
    rng = np.random.default_rng(3)
    labels = rng.random((29, 5)) < 0.3
    labels[np.arange(29), rng.choice([0, 1, 2, 4], 29)] = True
    labels[:, 3] = False
    audio, visual, _ = clips(3, labels=labels)
    tables, text = written(tmp_path, audio, visual, labels, NAMES, count=3)
    assert figures(tmp_path) == {"embeddings", "map-by-class"}
    assert "Left out: clips of several classes have no single class" in text
    assert "the colour of the rarest" in text
    assert "counts in each of them" in text
    assert "Most frequent confusions" not in tables
    relevance = np.array([[bool(np.any(a & b)) for b in labels] for a in labels])
    values = [
        average_precision_score(*pair)
        for pair in zip(relevance, cosines(audio, visual), strict=True)
    ]
    for number, row in enumerate(tables["MAP of each class"]):
        assert row["clips"] == labels[:, number].sum()
        expected = np.mean(np.array(values)[labels[:, number]]) if number != 3 else None
        assert row["MAP audio→visual"] == pytest.approx(expected, abs=1e-6)
    worst = tables["Worst audio queries"][0]
    assert worst["row"] == np.argmin(values)
    own = [name for name, has in zip(NAMES, labels[worst["row"]], strict=True) if has]
    assert worst["class"] == " + ".join(own)


def test_many_classes_are_told_in_tables_and_the_pictures_say_what_they_leave_out(tmp_path):
    rng = np.random.default_rng(4)
    labels = np.concatenate([np.arange(45), rng.integers(0, 20, 60)])
    audio, visual = rng.standard_normal((2, 105, 8))
    names = [f"class {number}" for number in range(45)]
    tables, text = written(tmp_path, audio, visual, labels, names)
    assert figures(tmp_path) == {"embeddings", "map-by-class"}
    assert "Only the 16 classes with the most clips are drawn." in text
    assert "The figure has the 40 classes of the lowest MAP" in text
    assert "45 classes are too many for a picture." in text
    assert len(tables["MAP of each class"]) == 45
    assert len(tables["Most frequent confusions"]) == 10
    drawing = (tmp_path / "figures" / "map-by-class.svg").read_text()
    maps = {
        row["class"]: np.mean([row[f"MAP {arrow}"] for arrow in ARROWS])
        for row in tables["MAP of each class"]
    }
    drawn = {name for name in names if re.search(rf"\b{name}\b", drawing)}
    assert drawn == set(sorted(names, key=maps.get)[:40])


def test_a_perfect_retrieval_has_no_confusions(tmp_path):
    labels = np.arange(12) % 3
    audio = np.eye(3)[labels]
    tables, text = written(tmp_path, audio, 2 * audio, labels, NAMES[:3])
    assert tables["Most frequent confusions"] == []
    perfect = "Of 12 clips, 12 audio queries and 12 visual queries have the highest AP, 1."
    assert perfect in text


@pytest.mark.parametrize("package", ["matplotlib", "sklearn"])
def test_a_missing_package_is_one_line(package, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == package else find_spec(name)
    )
    name = {"sklearn": "scikit-learn"}.get(package, package)
    with pytest.raises(UserError, match=rf"{name}, which is .* pip install -e '\.\[plots\]'"):
        require_plots()


def test_posteriors_rank_where_they_are_asked_for(tmp_path):
    audio, visual, labels = clips(5)
    ranked = {}
    for similarity in ("cosine", "posterior"):
        tables, _ = written(
            tmp_path / similarity, 3 * audio, visual, labels, NAMES, similarity=similarity
        )
        ranked[similarity] = tables["MAP of each class"][0]["MAP audio→visual"]
    posteriors = [np.exp(x) / np.exp(x).sum(1, keepdims=True) for x in (3 * audio, visual)]
    scores, own = posteriors[0] @ posteriors[1].T, np.flatnonzero(labels == 0)
    expected = np.mean([average_precision_score(labels == 0, scores[row]) for row in own])
    assert ranked["posterior"] == pytest.approx(expected, abs=1e-6)
    assert ranked["cosine"] != pytest.approx(expected, abs=1e-3)
    for similarity, words in (("cosine", "scaled to length 1"), ("posterior", "as posteriors")):
        assert words in (tmp_path / similarity / "report.md").read_text()
    drawings = [
        (tmp_path / similarity / "figures/embeddings.svg").read_bytes() for similarity in ranked
    ]
    assert drawings[0] != drawings[1]
