import dataclasses

import numpy as np
import pytest
from scipy.stats import multivariate_normal

from aadml_jax.data import SYNTHETIC, SYNTHETIC_VEGAS, class_posteriors, make_synthetic
from aadml_jax.data.synthetic import _draw_density

SMALL = dataclasses.replace(
    SYNTHETIC, num_classes=3, audio_dim=9, visual_dim=14, train_size=25, test_size=13
)


def mean_average_precision(scores, relevance):
    """All ranks, ties in gallery order."""
    precisions = []
    for row, relevant in zip(scores, relevance, strict=True):
        ranked = relevant[np.argsort(-row, kind="stable")]
        precisions.append(np.mean((np.cumsum(ranked) / np.arange(1, len(ranked) + 1))[ranked]))
    return np.mean(precisions)


@pytest.fixture(scope="module")
def synthetic():
    return make_synthetic()


def test_posteriors_match_full_covariance_densities():
    random = np.random.default_rng(3)
    classes, modes, dim, rank, noise = 3, 2, 7, 4, 0.6
    means = random.normal(size=(classes, modes, dim))
    factor = random.normal(size=(dim, rank))
    points = 2 * random.normal(size=(600, dim))
    covariance = factor @ factor.T + noise**2 * np.eye(dim)
    densities = np.zeros((600, classes))
    for label in range(classes):
        for mode in range(modes):
            density = multivariate_normal(means[label, mode], covariance).pdf(points)
            densities[:, label] += density / modes
    expected = densities / densities.sum(axis=1, keepdims=True)
    result = class_posteriors(points, mode_means=means, covariance_factor=factor, noise_scale=noise)
    assert result.dtype == np.float64
    np.testing.assert_allclose(result, expected, rtol=1e-9, atol=1e-12)


def test_posteriors_without_shared_directions_are_a_softmax_of_distances():
    random = np.random.default_rng(4)
    means, points = random.normal(size=(4, 1, 5)), random.normal(size=(6, 5))
    result = class_posteriors(
        points, mode_means=means, covariance_factor=np.zeros((5, 0)), noise_scale=0.5
    )
    for i in range(6):
        weights = [np.exp(-np.sum((points[i] - means[c, 0]) ** 2) / (2 * 0.25)) for c in range(4)]
        np.testing.assert_allclose(result[i], np.array(weights) / sum(weights), rtol=1e-12)


def test_posteriors_of_far_points_stay_finite():
    means = np.array([[[1.0, 0.0]], [[-1.0, 0.0]]])
    result = class_posteriors(
        np.array([[1e6, 0.0], [-1e6, 3.0]]),
        mode_means=means,
        covariance_factor=np.ones((2, 1)),
        noise_scale=1e-3,
    )
    np.testing.assert_array_equal(result, [[1, 0], [0, 1]])


@pytest.mark.parametrize(
    "shapes",
    [((5, 4), (3, 2, 3), (4, 1)), ((5, 4), (3, 2, 4), (3, 1)), ((4,), (3, 2, 4), (4, 1))],
)
def test_posteriors_refuse_shapes_that_do_not_fit(shapes):
    points, means, factor = (np.ones(shape) for shape in shapes)
    with pytest.raises(ValueError, match="features \\[N, D\\]") as raised:
        class_posteriors(points, mode_means=means, covariance_factor=factor, noise_scale=1.0)
    assert all(str(shape) in str(raised.value) for shape in shapes)


def test_posteriors_refuse_a_singular_covariance():
    with pytest.raises(ValueError, match="noise_scale must be above 0, got 0"):
        class_posteriors(
            np.ones((5, 4)),
            mode_means=np.ones((3, 2, 4)),
            covariance_factor=np.ones((4, 1)),
            noise_scale=0,
        )


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_classes", 1),
        ("modes_per_class", 1),
        ("signal_rank", 0),
        ("nuisance_rank", -1),
        ("mode_separation", np.nan),
        ("nuisance_scale", np.inf),
        ("background_noise", 0.0),
        ("train_size", 9),
        ("test_size", 9),
        ("seed", -1),
        ("signal_rank", 129),
    ],
)
def test_impossible_specs_are_refused(field, value):
    with pytest.raises(ValueError, match=field):
        dataclasses.replace(SYNTHETIC, **{field: value})


def test_dataset_has_the_shapes_of_its_spec():
    dataset = make_synthetic(SMALL, name="tiny")
    assert (dataset.name, dataset.num_classes) == ("tiny", 3)
    assert (dataset.audio_dim, dataset.visual_dim) == (9, 14)
    assert (len(dataset.train), len(dataset.test)) == (25, 13)
    assert "seed 0" in dataset.source
    for posteriors in dataset.test_posteriors:
        assert (posteriors.shape, posteriors.dtype) == ((13, 3), np.float64)
        np.testing.assert_allclose(posteriors.sum(axis=1), 1, rtol=1e-12)
    for split, counts in ((dataset.train, [9, 8, 8]), (dataset.test, [5, 4, 4])):
        np.testing.assert_array_equal(np.bincount(split.labels), counts)
        assert np.any(np.diff(split.labels) < 0)


def test_same_seed_same_rows_and_other_seed_other_rows():
    fingerprint = make_synthetic(SMALL).fingerprint()
    assert make_synthetic(SMALL).fingerprint() == fingerprint
    assert make_synthetic(dataclasses.replace(SMALL, seed=1)).fingerprint() != fingerprint


def test_components_have_streams_of_their_own():
    few, many = (make_synthetic(dataclasses.replace(SMALL, train_size=n)) for n in (25, 40))
    np.testing.assert_array_equal(few.test.audio, many.test.audio)
    np.testing.assert_array_equal(few.test.labels, many.test.labels)
    wide = make_synthetic(dataclasses.replace(SMALL, audio_dim=11))
    np.testing.assert_array_equal(few.train.visual, wide.train.visual)


def test_rows_follow_the_stated_mixture():
    spec = dataclasses.replace(
        SMALL,
        train_size=60_000,
        mode_separation=1.5,
        nuisance_scale=1.5,
        background_noise=1.0,
        seed=6,
    )
    dataset = make_synthetic(spec)
    visual_stream = np.random.SeedSequence(6).spawn(2)[1]
    means, factor = _draw_density(spec, 14, np.random.default_rng(visual_stream))
    means, factor = means.astype(np.float64), factor.astype(np.float64)
    within_mode = factor @ factor.T + np.eye(14)
    for label in range(3):
        rows = dataset.train.visual[dataset.train.labels == label].astype(np.float64)
        center = means[label].mean(axis=0)
        spread = (means[label] - center).T @ (means[label] - center) / spec.modes_per_class
        expected = within_mode + spread
        scale = np.sqrt(np.diag(expected))
        # 20,000 rows: standard errors are 0.007 of a standard deviation and 0.01 of a covariance.
        np.testing.assert_allclose((rows.mean(axis=0) - center) / scale, 0, atol=0.035)
        error = (np.cov(rows.T, bias=True) - expected) / np.outer(scale, scale)
        np.testing.assert_allclose(error, 0, atol=0.05)


def test_modes_cancel_when_classes_have_no_mean():
    spec = dataclasses.replace(SYNTHETIC, class_separation=0.0)
    means, _ = _draw_density(spec, 128, np.random.default_rng(0))
    np.testing.assert_allclose(means.mean(axis=1), 0, atol=1e-6)
    lengths = np.sqrt(np.mean(np.sum(means.astype(float) ** 2, axis=2), axis=1))
    np.testing.assert_allclose(lengths, spec.mode_separation, rtol=0.25)


def test_posteriors_are_calibrated(synthetic):
    labels = synthetic.test.labels
    for posteriors in synthetic.test_posteriors:
        confidence = posteriors.max(axis=1)
        accuracy = np.mean(posteriors.argmax(axis=1) == labels)
        # The error of 500 rows: two standard errors are below 0.03.
        assert abs(accuracy - confidence.mean()) < 0.03


def test_modalities_are_independent_given_the_class():
    dataset = make_synthetic(
        dataclasses.replace(SYNTHETIC, visual_dim=60, train_size=20_000, test_size=10)
    )
    for label in range(10):
        rows = dataset.train.labels == label
        audio, visual = (
            (x[rows] - x[rows].mean(axis=0)) / x[rows].std(axis=0)
            for x in (dataset.train.audio, dataset.train.visual)
        )
        # Correlations of 2,000 independent rows stay within five standard errors of 1/√2000.
        assert np.abs(audio.T @ visual / 2000).max() < 5.5 / np.sqrt(2000)


def test_default_problem_is_nearly_but_not_fully_solvable(synthetic):
    labels = synthetic.test.labels
    relevance = labels[:, None] == labels
    audio, visual = synthetic.test_posteriors
    best = [
        mean_average_precision(scores, relevance) for scores in (audio @ visual.T, visual @ audio.T)
    ]
    assert 0.85 < np.mean(best) < 0.95


def canonical_directions(audio, visual, components=10, ridge=0.1):
    """Linear CCA by whitening; features of zero mean."""
    whiten = []
    for x in (audio, visual):
        values, vectors = np.linalg.eigh(x.T @ x / len(x) + ridge * np.eye(x.shape[1]))
        whiten.append(vectors / np.sqrt(values) @ vectors.T)
    left, _, right = np.linalg.svd(whiten[0] @ (audio.T @ visual / len(audio)) @ whiten[1])
    return whiten[0] @ left[:, :components], whiten[1] @ right[:components].T


def test_default_problem_is_beyond_linear_correlation():
    # 128 visual dimensions instead of 1,024, which the decomposition would spend seconds on.
    dataset = make_synthetic(dataclasses.replace(SYNTHETIC, visual_dim=128))
    means, scales = zip(
        *((x.mean(axis=0), x.std(axis=0)) for x in (dataset.train.audio, dataset.train.visual)),
        strict=True,
    )
    train, test = (
        [(x - m) / s for x, m, s in zip((rows.audio, rows.visual), means, scales, strict=True)]
        for rows in (dataset.train, dataset.test)
    )
    projected = [
        x @ directions for x, directions in zip(test, canonical_directions(*train), strict=True)
    ]
    audio, visual = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in projected)
    relevance = dataset.test.labels[:, None] == dataset.test.labels
    assert mean_average_precision(audio @ visual.T, relevance) < 0.45


def test_vegas_sizes_are_those_of_the_data_set():
    assert (SYNTHETIC_VEGAS.train_size, SYNTHETIC_VEGAS.test_size) == (22_482, 5_621)
    expected = dataclasses.replace(SYNTHETIC, train_size=22_482, test_size=5_621)
    assert expected == SYNTHETIC_VEGAS
