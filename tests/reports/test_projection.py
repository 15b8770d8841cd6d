"""The plane that both modalities share."""

import importlib.util

import numpy as np
import pytest
from scipy.spatial.distance import pdist
from scipy.special import softmax
from sklearn.decomposition import PCA
from sklearn.manifold import trustworthiness

from aadml_jax.errors import UserError
from aadml_jax.reports.retrieval import joint_projection


def clusters(seed, num_clips=60, dim=5, noise=0.05):
    """Pairs about one direction a class, of very different lengths."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(num_clips) % 3)
    centres = np.eye(dim)[labels]
    sides = [
        (centres + noise * rng.standard_normal(centres.shape)) * rng.uniform(0.1, 9, (num_clips, 1))
        for _ in range(2)
    ]
    return *sides, labels


def test_classes_are_apart_and_the_modalities_together():
    audio, visual, labels = clusters(0)
    points = joint_projection(audio, visual)
    plane = np.concatenate([points.audio, points.visual])
    distances = np.linalg.norm(plane[:, None] - plane, axis=2) + 1e9 * np.eye(len(plane))
    both = np.concatenate([labels, labels])
    np.testing.assert_array_equal(both[distances.argmin(axis=1)], both)
    # A class's audio and visual points share their place: their centres are nearer than classes.
    centres = [
        np.array([side[labels == c].mean(axis=0) for c in range(3)])
        for side in (points.audio, points.visual)
    ]
    assert np.linalg.norm(centres[0] - centres[1], axis=1).max() < pdist(centres[0]).min() / 3
    unit = np.concatenate([x / np.linalg.norm(x, axis=1)[:, None] for x in (audio, visual)])
    assert trustworthiness(unit, plane, n_neighbors=5) > 0.85


@pytest.mark.parametrize("method", ["tsne", "pca"])
def test_lengths_do_not_count_and_the_same_input_gives_the_same_points(method):
    audio, visual, _ = clusters(1, num_clips=12)
    first = joint_projection(audio, visual, method=method)
    again = joint_projection(audio, visual, method=method)
    np.testing.assert_array_equal(first.audio, again.audio)
    np.testing.assert_array_equal(first.visual, again.visual)
    longer = joint_projection(audio * 2.0 ** np.arange(12)[:, None], visual, method=method)
    np.testing.assert_array_equal(longer.visual, first.visual)  # powers of two round nothing
    assert not np.array_equal(first.audio, first.visual)


def test_where_retrieval_is_by_posterior_the_points_are_posteriors():
    audio, visual, _ = clusters(4, num_clips=17)
    points = joint_projection(audio + 500, visual - 500, similarity="posterior", method="pca")
    posteriors = softmax(np.concatenate([audio, visual]), axis=1)
    expected = PCA(2, svd_solver="full").fit_transform(posteriors)
    found = np.concatenate([points.audio, points.visual])
    np.testing.assert_allclose(np.abs(found), np.abs(expected), atol=1e-10)
    with pytest.raises(ValueError, match=r"similarity must be one of .*'cosine', 'posterior'.*dot"):
        joint_projection(audio, visual, similarity="dot")


def test_pca_is_scikit_learns():
    audio, visual, _ = clusters(3, num_clips=17)
    points = joint_projection(audio, visual, method="pca")
    unit = np.concatenate([x / np.linalg.norm(x, axis=1)[:, None] for x in (audio, visual)])
    expected = PCA(2, svd_solver="full").fit_transform(unit)
    plane = np.concatenate([points.audio, points.visual])
    signs = np.sign((plane * expected).sum(axis=0))
    np.testing.assert_allclose(plane * signs, expected, atol=1e-12)


@pytest.mark.parametrize("num_clips", [1, 2, 3])
@pytest.mark.parametrize("method", ["tsne", "pca"])
def test_few_clips_have_places_too(num_clips, method):
    audio, visual, _ = clusters(4, num_clips=num_clips)
    points = joint_projection(audio, visual, method=method)
    assert points.audio.shape == points.visual.shape == (num_clips, 2)
    assert np.isfinite(points.audio).all()
    assert np.abs(points.audio - points.visual).max() > 0


@pytest.mark.parametrize("method", ["tsne", "pca"])
def test_embeddings_that_have_collapsed_are_one_point(method):
    points = joint_projection(np.ones((4, 3)), np.full((4, 3), 2.0), method=method)
    np.testing.assert_array_equal(points.audio, np.zeros((4, 2)))
    np.testing.assert_array_equal(points.visual, np.zeros((4, 2)))


def test_of_many_clips_classes_keep_their_shares():
    rng = np.random.default_rng(5)
    labels = rng.permutation(np.repeat([0, 1, 2], [60, 30, 10]))
    audio, visual = rng.standard_normal((2, 100, 4))
    points = joint_projection(audio, visual, labels=labels, method="pca", max_rows=20)
    assert np.bincount(labels[points.rows]).tolist() == [12, 6, 2]
    assert (np.diff(points.rows) > 0).all()
    assert len(points.audio) == 20
    chosen = joint_projection(audio[points.rows], visual[points.rows], method="pca")
    np.testing.assert_array_equal(points.audio, chosen.audio)
    several = np.eye(3, dtype=bool)[labels]
    same = joint_projection(audio, visual, labels=several, method="pca", max_rows=20)
    np.testing.assert_array_equal(same.rows, points.rows)


def test_without_classes_rows_are_chosen_evenly():
    audio, visual = np.random.default_rng(6).standard_normal((2, 10, 3))
    points = joint_projection(audio, visual, method="pca", max_rows=4)
    assert points.rows.tolist() == [0, 2, 5, 7]
    assert joint_projection(audio, visual, method="pca").rows.tolist() == list(range(10))


@pytest.mark.parametrize(
    ("audio", "visual", "options", "said"),
    [
        (np.zeros((3, 2)), np.zeros((4, 2)), {}, r"got \(3, 2\) and \(4, 2\)"),
        (np.zeros((3, 1)), np.zeros((3, 1)), {}, "D ≥ 2"),
        (np.zeros((0, 2)), np.zeros((0, 2)), {}, "N ≥ 1"),
        (np.full((3, 2), np.inf), np.zeros((3, 2)), {}, "infinity"),
        (np.zeros((3, 2)), np.zeros((3, 2)), {"method": "umap"}, "'umap'"),
        (np.zeros((3, 2)), np.zeros((3, 2)), {"max_rows": 0}, "max_rows"),
        (
            np.zeros((3, 2)),
            np.zeros((3, 2)),
            {"max_rows": 1, "labels": np.zeros(2, int)},
            "2 clips",
        ),
    ],
)
def test_what_does_not_fit_is_refused(audio, visual, options, said):
    with pytest.raises(ValueError, match=said):
        joint_projection(audio, visual, **options)


def test_without_scikit_learn_one_line_says_what_to_install(monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "sklearn" else find_spec(name)
    )
    audio, visual, _ = clusters(7, num_clips=4)
    with pytest.raises(UserError, match=r"scikit-learn.*pip install -e '\.\[plots\]'"):
        joint_projection(audio, visual)
    assert np.isfinite(joint_projection(audio, visual, method="pca").audio).all()
