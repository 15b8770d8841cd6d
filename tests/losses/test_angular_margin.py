"""ArcFace and CosFace: values by hand, other losses that they are, and the ends of the cosine."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import aadml_jax as aa

RNG = np.random.default_rng(0)
LOSSES = [aa.arcface_loss, aa.cosface_loss]


def test_cosface_lowers_the_cosine_of_the_own_class():
    row, relevance = jnp.array([[0.75, 0.5, 0.25]]), jnp.array([[False, True, False]])
    value = aa.cosface_loss(row, relevance, margin=0.25, scale=2.0)
    own, others = np.exp(2 * 0.25), np.exp(2 * 0.75) + np.exp(2 * 0.25)
    assert float(value) == pytest.approx(-np.log(own / (own + others)), rel=1e-6)


def test_arcface_widens_the_angle_to_the_own_class():
    # From 60° to 90°; the angle of −1/2 is 120°, and with 90° more it is beyond 180°.
    for cosine, own in ((0.5, np.cos(np.pi / 2)), (-0.5, -0.5 - np.pi / 2)):
        margin = np.pi / 6 if cosine > 0 else np.pi / 2
        row, relevance = jnp.array([[cosine, 0.25]]), jnp.array([[True, False]])
        value = aa.arcface_loss(row, relevance, margin=margin, scale=3.0)
        assert float(value) == pytest.approx(np.log1p(np.exp(3 * (0.25 - own))), rel=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
def test_without_margin_it_is_the_softmax_over_cosines(loss):
    samples, classes = RNG.normal(size=(7, 4)), RNG.normal(size=(3, 4))
    labels = RNG.integers(0, 3, 7)
    similarities = aa.cosine_similarity(samples, classes)
    relevance = aa.same_label(labels, np.arange(3))
    actual = loss(similarities, relevance, margin=0.0, scale=16.0)
    targets = jax.nn.one_hot(labels, 3)
    expected = aa.cross_entropy_label_loss(16 * similarities, targets)
    assert float(actual) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_margin_makes_every_sample_cost_more(loss):
    cosines = RNG.uniform(-1, 1, (50, 4)).astype(np.float32)
    relevance = np.arange(4)[None, :] == RNG.integers(0, 4, 50)[:, None]
    # A gentle scale, lest the cost of a sample be below rounding.
    rows = [loss(cosines, relevance, margin=m, scale=2.0, reduce_fn=None) for m in (0, 0.25, 0.5)]
    assert np.all(np.diff(rows, axis=0) > 0)


def test_arcface_falls_with_the_own_cosine_all_the_way():
    cosines = np.linspace(-1, 1, 2001, dtype=np.float32)
    matrix = np.stack([cosines, np.zeros_like(cosines)], axis=1)
    relevance = np.broadcast_to([True, False], matrix.shape)
    rows = aa.arcface_loss(matrix, relevance, margin=0.5, scale=1.0, reduce_fn=None)
    assert np.all(np.diff(rows) < 0)


@pytest.mark.parametrize("angle", [0.0, 1e-5, 1e-3, 0.1, np.pi - 1e-3, np.pi])
def test_arcface_has_a_bounded_gradient_by_the_vectors(angle):
    """By the angle its logits' slopes are at most the scale, whatever the cosine's own are."""
    scale = 4.0
    loss = functools.partial(aa.arcface_loss, margin=0.5, scale=scale)

    def of_vector(vector):
        similarities = aa.cosine_similarity(vector[None, :], jnp.eye(2))
        return loss(similarities, jnp.array([[True, False]]))

    vector = jnp.array([np.cos(angle), np.sin(angle)], jnp.float32)
    gradient = jax.grad(of_vector)(vector)
    assert np.all(np.isfinite(gradient))
    assert np.linalg.norm(gradient) <= 2.1 * scale


def test_a_cosine_beyond_one_by_rounding_counts_as_one():
    relevance = jnp.array([[True, False]])
    for end in (1.0, -1.0):
        at, beyond = (
            jax.value_and_grad(aa.arcface_loss)(jnp.array([[end * x, 0.0]]), relevance)
            for x in (1.0, 1.0000002)
        )
        assert np.all(np.isfinite(beyond[1]))
        np.testing.assert_allclose(at[0], beyond[0], rtol=1e-5, atol=1e-4)
