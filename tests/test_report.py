"""The report over both directions of retrieval, called plainly and in jit."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

import aadml_jax as aa

DIRECTIONS = ("audio_to_visual", "visual_to_audio")
EVERY_WAY = pytest.mark.parametrize("way", ["plain", "compiled"])


def report_of(way, *clips, **options):
    report = functools.partial(aa.cross_modal_report, **options)
    return (report if way == "plain" else jax.jit(report))(*clips)


def clips(seed=0, n=13, d=4):
    rng = np.random.default_rng(seed)
    audio, visual = rng.normal(size=(n, d)), rng.normal(size=(n, d)) * 2 + 0.3
    return *oracles.as_float32(audio, visual), jnp.asarray(rng.integers(4, size=n), jnp.int32)


def direction(queries, gallery, related, ks, score=oracles.cosine):
    scores = oracles.pairwise(score, queries, gallery)

    def over_rows(row_oracle, **params):
        return oracles.by_row(row_oracle, scores, related, **params).mean()

    return {
        "map": over_rows(oracles.average_precision_row),
        "prefix_map": over_rows(oracles.prefix_average_precision_row),
        "precision_at_k": {k: over_rows(oracles.precision_at_row, k=k) for k in ks},
        "recall_at_k": {k: over_rows(oracles.recall_at_row, k=k) for k in ks},
    }


def expected_report(audio, visual, labels, ks, score=oracles.cosine):
    labels = np.asarray(labels)
    related = [[oracles.share_a_class(x, y) for y in labels] for x in labels]
    return {
        "audio_to_visual": direction(audio, visual, related, ks, score),
        "visual_to_audio": direction(visual, audio, related, ks, score),
    }


def flat(report, side):
    """The numbers of one side of a report, as {name: float}."""
    numbers = {name: float(report[side][name]) for name in ("map", "prefix_map")}
    for name in ("precision_at_k", "recall_at_k"):
        numbers |= {f"{name} {k}": float(value) for k, value in report[side][name].items()}
    return numbers


def assert_close_reports(report, expected):
    for side in DIRECTIONS:
        assert set(report[side]) == set(expected[side]) | {"tied_pairs"}
        assert flat(report, side) == pytest.approx(flat(expected, side), rel=1e-5)


@pytest.mark.parametrize("block_size", [1, 5, 1024])
@EVERY_WAY
def test_both_directions_equal_the_float64_loop_for_any_block(block_size, way):
    audio, visual, labels = clips()
    report = report_of(way, audio, visual, labels, ks=(1, 3), block_size=block_size)
    expected = expected_report(audio, visual, labels, (1, 3))
    assert set(report) == {*DIRECTIONS, "mean"}
    assert_close_reports(report, expected)
    assert expected[DIRECTIONS[0]]["map"] != pytest.approx(expected[DIRECTIONS[1]]["map"], rel=1e-2)


@EVERY_WAY
def test_default_cut_offs_and_the_mean_of_the_two_directions(way):
    report = report_of(way, *clips(2))
    sides = [flat(report, side) for side in DIRECTIONS]
    halves = {name: (sides[0][name] + sides[1][name]) / 2 for name in sides[0]}
    assert flat(report, "mean") == pytest.approx(halves, rel=1e-6)
    assert list(report["mean"]["precision_at_k"]) == [1, 5, 10]
    assert sides[0] != sides[1]


@EVERY_WAY
def test_a_clip_is_in_its_own_gallery(way):
    audio, _, _ = clips(3)
    report = report_of(way, audio, audio, jnp.arange(13), ks=(1,))
    assert flat(report, "mean") == pytest.approx(
        {"map": 1, "prefix_map": 1, "precision_at_k 1": 1, "recall_at_k 1": 1}
    )


@EVERY_WAY
def test_labels_may_be_multi_hot(way):
    audio, visual, _ = clips(4)
    labels = jnp.asarray(np.random.default_rng(4).random((13, 5)) < 0.3)
    report = report_of(way, audio, visual, labels, ks=(3,), block_size=4)
    expected = expected_report(audio, visual, labels, (3,))
    assert_close_reports(report, expected)


@EVERY_WAY
def test_similarity_may_be_a_function_of_two_blocks(way):
    audio, visual, labels = clips(5)
    seen = []

    def nearness(a, b):
        seen.append((a.shape, b.shape))
        return -aa.squared_euclidean_distance(a, b)

    report = report_of(way, audio, visual, labels, similarity=nearness, ks=(2,), block_size=4)
    expected = expected_report(
        audio, visual, labels, (2,), lambda x, y: -oracles.squared_euclidean(x, y)
    )
    assert_close_reports(report, expected)
    assert seen and all(a[0] <= 4 and b == (13, 4) for a, b in seen)


@pytest.mark.parametrize(
    ("audio", "visual", "labels"),
    [((13, 4), (12, 4), (13,)), ((13, 4), (13, 4), (12,)), ((13, 4), (13, 3), (13,))],
)
def test_clips_that_do_not_fit_raise_an_error_that_prints_the_shapes(audio, visual, labels):
    with pytest.raises(ValueError) as error:
        aa.cross_modal_report(
            jnp.ones(audio), jnp.ones(visual), jnp.zeros(labels, jnp.int32), ks=(1,)
        )
    odd = {visual, labels} - {(13, 4), (13,)}
    assert all(str(shape) in str(error.value) for shape in odd)


def test_an_unknown_similarity_and_a_cut_off_beyond_the_gallery_raise():
    with pytest.raises(ValueError, match="dot"):
        aa.cross_modal_report(*clips(6), similarity="dot")
    with pytest.raises(ValueError, match="14"):
        aa.cross_modal_report(*clips(6), ks=(1, 14))
    with pytest.raises(ValueError, match="block_size"):
        aa.cross_modal_report(*clips(6), block_size=0)


def test_both_ways_find_the_same_ranks_among_many_ties():
    rng = np.random.default_rng(7)
    audio, visual = (jnp.asarray(rng.integers(-1, 2, (50, 3)), jnp.float32) for _ in range(2))
    labels = jnp.asarray(rng.integers(4, size=50))
    plain, compiled = (
        report_of(way, audio, visual, labels, ks=(1, 7), block_size=16)
        for way in ("plain", "compiled")
    )
    for side in DIRECTIONS:
        for name in ("precision_at_k", "recall_at_k"):
            for k in (1, 7):
                assert float(plain[side][name][k]) == pytest.approx(
                    float(compiled[side][name][k]), rel=1e-6
                )
        assert float(plain[side]["map"]) == pytest.approx(float(compiled[side]["map"]), rel=1e-6)
