"""Evaluation of towers, the chance level and the Bayes reference."""

import itertools
import pathlib

import jax
import numpy as np
import oracles
import pytest
from small_world import DATASET

from aadml_jax.data import (
    ClipArrays,
    ModalityRows,
    PairedFeatures,
    SyntheticSpec,
    load_feature_file,
    make_synthetic,
)
from aadml_jax.training import evaluation, parallel
from aadml_jax.training.config import RecipeConfig
from aadml_jax.training.evaluation import (
    bayes_reference,
    chance_map,
    embed,
    embeddings_result,
    evaluate,
    make_evaluate,
    relevant_counts,
    tie_warning,
)
from aadml_jax.training.parallel import Placement
from aadml_jax.training.state import build_model

DIGITS = pathlib.Path(__file__).parents[3] / "shared" / "data" / "fsdd_mnist.h5"
RNG = np.random.default_rng(0)


def shares_a_class(labels):
    """Which clips share a class, bool [N, N], one pair after the other."""
    return np.array(
        [[np.any((a == b) & (a > 0 if a.ndim else True)) for b in labels] for a in labels]
    )


def several_classes(num_clips, num_classes):
    labels = RNG.random((num_clips, num_classes)) < 0.2
    labels[np.arange(num_clips), np.arange(num_clips) % num_classes] = True
    return labels


def mean_ap(scores, labels):
    relevance = shares_a_class(labels)
    return np.mean(oracles.by_row(oracles.average_precision_row, scores, relevance))


@pytest.mark.parametrize(
    "labels",
    [
        [0, 0, 1, 2, 1, 0],
        [0, 1, 2, 3],
        [5, 5, 5],
        [1, 2],
        # The first clip shares a class with all, the others with fewer; two are alike.
        [[True, True, True], [True, False, False], [False, True, False], [True, False, False]],
        [[True, False], [False, True]],
    ],
)
def test_chance_is_the_mean_over_all_orders(labels):
    labels = np.array(labels)
    values = []
    for relevant in shares_a_class(labels):
        for order in itertools.permutations(range(len(labels))):
            hits = np.cumsum(relevant[list(order)])
            precisions = hits / np.arange(1, len(labels) + 1)
            values.append(precisions[relevant[list(order)]].mean())
    assert chance_map(labels) == pytest.approx(np.mean(values), rel=1e-12)


@pytest.mark.parametrize(
    ("queries", "gallery"),
    [
        ([0, 1, 5], [0, 0, 1, 2]),
        ([3, 3], [3]),
        ([4], [3]),
        # The second query shares a class with all, the third with none.
        ([[1, 0, 0], [1, 1, 0], [0, 0, 1]], [[1, 0, 0], [0, 1, 0], [1, 1, 0]]),
    ],
)
def test_chance_in_another_gallery_is_the_mean_over_all_orders(queries, gallery):
    queries, gallery = np.array(queries), np.array(gallery)
    if queries.ndim == 2:
        queries, gallery = queries > 0, gallery > 0
        relevance = (queries.astype(int) @ gallery.T.astype(int)) > 0
    else:
        relevance = queries[:, None] == gallery[None, :]
    np.testing.assert_array_equal(relevant_counts(queries, gallery), relevance.sum(axis=1))
    values = []
    for relevant in relevance:
        for order in itertools.permutations(range(len(gallery))):
            hits = np.cumsum(relevant[list(order)])
            precisions = hits / np.arange(1, len(gallery) + 1)
            found = precisions[relevant[list(order)]]
            values.append(found.mean() if len(found) else 0.0)
    assert chance_map(queries, gallery) == pytest.approx(np.mean(values), rel=1e-12)


@pytest.mark.parametrize("similarity", ["cosine", "posterior"])
def test_clips_that_are_no_pairs_rank_each_other(similarity):
    rng = np.random.default_rng(1)
    audio, visual = (rng.normal(size=(count, 4)).astype(np.float32) for count in (7, 12))
    labels = rng.integers(0, 3, 7), rng.integers(0, 4, 12)
    sides = [
        ModalityRows(values, tuple(map(str, range(len(values)))), of_side, "x")
        for values, of_side in zip((audio, visual), labels, strict=True)
    ]
    result = embeddings_result(ClipArrays(*sides, is_paired=False), similarity=similarity)
    if similarity == "posterior":
        audio, visual = (np.exp(x) / np.exp(x).sum(1, keepdims=True) for x in (audio, visual))
        scores = audio @ visual.T
    else:
        scores = oracles.pairwise(oracles.cosine, audio, visual)
    relevance = labels[0][:, None] == labels[1][None, :]
    for direction, of_scores, relevant in (
        ("audio_to_visual", scores, relevance),
        ("visual_to_audio", scores.T, relevance.T),
    ):
        aps = oracles.by_row(oracles.average_precision_row, of_scores, relevant)
        assert result["map"][direction] == pytest.approx(np.mean(aps), abs=1e-6)
    hits = [
        np.mean(oracles.by_row(oracles.recall_at_row, *matrices, k=5))
        for matrices in ((scores, relevance), (scores.T, relevance.T))
    ]
    # Both galleries have 5 clips, only one has 10.
    assert list(result["recall_at_k"]) == [1, 5]
    assert result["recall_at_k"][5] == pytest.approx(np.mean(hits), abs=1e-6)
    chances = chance_map(*labels), chance_map(*labels[::-1])
    assert result["chance_map"]["audio_to_visual"] == chances[0]
    assert result["chance"] == pytest.approx(np.mean(chances))


@pytest.mark.skipif(not DIGITS.exists(), reason="the digits features are not beside the project")
def test_chance_of_the_digits_is_the_published_one():
    labels = load_feature_file(DIGITS).test.labels
    assert chance_map(labels) == pytest.approx(0.116, abs=5e-4)


def test_chance_of_a_single_clip_is_certainty():
    assert chance_map(np.array([3])) == 1.0
    assert chance_map(np.array([[True, False]])) == 1.0


def test_chance_does_not_depend_on_how_classes_are_written_or_blocks_are_cut(monkeypatch):
    numbers = RNG.integers(0, 4, 23)
    one_hot = np.eye(4, dtype=bool)[numbers]
    assert chance_map(one_hot) == pytest.approx(chance_map(numbers), rel=1e-12)
    labels = several_classes(23, 5)
    expected = chance_map(labels)
    monkeypatch.setattr("aadml_jax.training.evaluation._BLOCK_ROWS", 4)
    assert chance_map(labels) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("labels", [RNG.integers(0, 3, 17), several_classes(17, 3)])
def test_evaluate_reports_the_map_of_the_towers_outputs(labels):
    model = build_model(RecipeConfig(hidden_sizes=(8,), dropout=0.5), 3)
    features = PairedFeatures(RNG.normal(size=(17, 4)), RNG.normal(size=(17, 5)), labels)
    params = model.init(jax.random.key(0), features.audio, features.visual)["params"]
    audio, visual = model.apply({"params": params}, features.audio, features.visual)
    report = evaluate(model, params, features)
    to_visual = mean_ap(oracles.pairwise(oracles.cosine, audio, visual), features.labels)
    to_audio = mean_ap(oracles.pairwise(oracles.cosine, visual, audio), features.labels)
    assert report["audio_to_visual"]["map"] == pytest.approx(to_visual, abs=1e-5)
    assert report["visual_to_audio"]["map"] == pytest.approx(to_audio, abs=1e-5)
    assert report["mean"]["map"] == pytest.approx((to_visual + to_audio) / 2, abs=1e-5)
    assert list(report["mean"]["precision_at_k"]) == [1, 5, 10]

    posteriors = [np.exp(x) / np.exp(x).sum(1, keepdims=True) for x in (audio, visual)]
    by_posterior = evaluate(model, params, features, similarity="posterior")
    to_visual = mean_ap(posteriors[0] @ posteriors[1].T, features.labels)
    assert by_posterior["audio_to_visual"]["map"] == pytest.approx(to_visual, abs=1e-5)
    assert by_posterior["mean"]["map"] != report["mean"]["map"]


def test_evaluate_leaves_out_cut_offs_beyond_a_small_gallery():
    model = build_model(RecipeConfig(hidden_sizes=(4,)), 2)
    features = PairedFeatures(np.ones((6, 2)), np.ones((6, 3)), [0, 1, 0, 1, 1, 0])
    params = model.init(jax.random.key(0), features.audio, features.visual)["params"]
    assert list(evaluate(model, params, features)["mean"]["recall_at_k"]) == [1, 5]


@pytest.mark.parametrize("labels", [RNG.integers(0, 4, 23), several_classes(23, 4)])
def test_bayes_reference_ranks_by_the_probability_of_a_shared_class(labels):
    audio, visual = RNG.dirichlet(np.ones(4), size=(2, 23))
    report = bayes_reference(audio, visual, labels)
    expected = mean_ap(audio @ visual.T, labels)
    assert report["audio_to_visual"]["map"] == pytest.approx(expected, abs=1e-6)
    expected = mean_ap(visual @ audio.T, labels)
    assert report["visual_to_audio"]["map"] == pytest.approx(expected, abs=1e-6)


def test_bayes_reference_of_a_synthetic_set_is_far_above_chance():
    dataset = make_synthetic(SyntheticSpec(train_size=20, test_size=200))
    report = bayes_reference(*dataset.test_posteriors, dataset.test.labels)
    assert report["mean"]["map"] > 5 * chance_map(dataset.test.labels)


def test_embeddings_in_batches_are_those_of_all_rows():
    rows = DATASET.test
    model = build_model(RecipeConfig(hidden_sizes=(16,)), num_classes=3)
    params = model.init(jax.random.key(0), rows.audio, rows.visual)["params"]
    expected = model.apply({"params": params}, rows.audio, rows.visual)
    for batch_size in (7, 10, 4096):
        outputs = embed(model, params, rows, batch_size=batch_size)
        assert all(isinstance(side, np.ndarray) for side in outputs)
        for side, other in zip(outputs, expected, strict=True):
            np.testing.assert_allclose(side, other, rtol=1e-6, atol=1e-7)


def test_bayes_reference_of_sure_posteriors_does_not_depend_on_the_order_of_the_rows():
    # Wrong for some clips and sure to different degrees: 1 − 1e-9 and 1 − 1e-12 are 1 in float32.
    labels = np.repeat(np.arange(3), 20)
    sides = []
    for _ in range(2):
        found = np.where(RNG.random(60) < 0.3, RNG.integers(0, 3, 60), labels)
        doubt = 10.0 ** RNG.uniform(-14, -9, 60)
        sides.append(np.where(np.eye(3, dtype=bool)[found], 1 - doubt[:, None], doubt[:, None] / 2))
    others = sides[1].sum(axis=1, keepdims=True) - sides[1]
    others = np.where(sides[1] > 0.5, np.sort(sides[1])[:, :2].sum(axis=1, keepdims=True), others)
    same, different = sides[0] @ sides[1].T, sides[0] @ others.T
    expected = mean_ap(np.where(different < 0.5, -different, np.log(same)), labels)
    reports = [
        bayes_reference(*(side[order] for side in sides), labels[order])
        for order in (np.arange(60), np.arange(60)[::-1], RNG.permutation(60))
    ]
    for report in reports:
        assert report["audio_to_visual"]["map"] == pytest.approx(expected, abs=1e-3)
        assert report["mean"]["map"] == pytest.approx(reports[0]["mean"]["map"], rel=1e-5)


def test_bayes_reference_takes_probabilities_of_zero():
    certain = np.eye(3)[[0, 1, 2, 0]]
    with np.errstate(all="raise"):
        report = bayes_reference(certain, certain, np.array([0, 1, 2, 0]))
    assert report["mean"]["map"] == 1.0


def towers(num_rows, seed=1):
    features = PairedFeatures(
        np.random.default_rng(seed).normal(size=(num_rows, 4)),
        np.random.default_rng(seed + 1).normal(size=(num_rows, 5)),
        np.arange(num_rows) % 3,
    )
    model = build_model(RecipeConfig(hidden_sizes=(8,), dropout=0.5), 3)
    return model, model.init(jax.random.key(0), features.audio, features.visual)["params"], features


def test_blocks_of_rows_give_the_report_of_all_rows(monkeypatch):
    model, params, features = towers(43)
    placement = Placement(tuple(jax.devices()[:2]), "jit")  # 22 rows on each, one of them filling
    whole = [evaluate(model, params, features, place) for place in (None, placement)]
    outputs = embed(model, params, features)
    seen = []
    apply = type(model).apply

    def noted(self, variables, audio, visual):
        seen.append(len(audio))
        return apply(self, variables, audio, visual)

    for block_size in (1, 7):  # which cover the 43 and the 22 rows exactly, and with an overlap
        monkeypatch.setattr(type(model), "apply", noted)
        monkeypatch.setattr(evaluation, "_EMBEDDED_AT_ONCE", block_size)
        jax.clear_caches()
        evaluation._sharded_report.cache_clear()
        for expected, place in zip(whole, (None, placement), strict=True):
            in_blocks = evaluate(model, params, features, place)
            for side in ("audio_to_visual", "visual_to_audio"):
                assert in_blocks[side]["map"] == pytest.approx(expected[side]["map"], rel=1e-5)
        for side, expected in zip(embed(model, params, features), outputs, strict=True):
            np.testing.assert_allclose(side, expected, rtol=1e-5, atol=1e-6)
        assert set(seen) == {block_size}
        seen.clear()
    evaluation._sharded_report.cache_clear()


@pytest.mark.parametrize("mode", ["jit", "pmap"])
def test_parameters_on_the_devices_stay_there(mode, monkeypatch):
    model, params, features = towers(17)
    placement = Placement(tuple(jax.devices()[:4]), mode)
    report = make_evaluate(model, (features.audio, features.visual, features.labels), 17, placement)
    expected = report(jax.device_get(params))
    if mode == "pmap":  # as a training step returns them
        step = jax.pmap(
            lambda rows, params: params, in_axes=(0, None), out_axes=None, devices=placement.devices
        )
        on_devices = step(np.zeros(4), params)
    else:
        on_devices = placement.replicate(params, donated=True)

    def to_host(*_):
        raise AssertionError("a parameter was placed from the host")

    monkeypatch.setattr(parallel, "_place", to_host)
    with jax.transfer_guard_device_to_host("disallow_explicit"):
        placed = [placement.under_jit().replicate(tree) for tree in (on_devices, params)]
    for leaf, other in zip(*map(jax.tree.leaves, (placed[0], on_devices)), strict=True):
        pointers = [
            [shard.data.unsafe_buffer_pointer() for shard in x.addressable_shards]
            for x in (leaf, other)
        ]
        assert pointers[0] == pointers[1]
    for leaf, other in zip(*map(jax.tree.leaves, (placed[1], params)), strict=True):
        assert len(leaf.addressable_shards) == 4 and leaf.is_fully_replicated
        np.testing.assert_array_equal(leaf, other)
    for tree in (on_devices, params):
        assert report(tree) == expected


def test_a_warning_names_the_share_of_tied_pairs():
    assert "3.2 % of the pairs" in tie_warning({"tied_pairs": {"mean": 0.0321}})
    assert tie_warning({"tied_pairs": {"mean": 1e-5}}) is None
    assert tie_warning({"map": {}}) is None  # of a version that did not count them
