"""NT-Xent and SupCon: values by hand, the losses they are under other names, and extremes."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

import aadml_jax as aa

RNG = np.random.default_rng(0)
ROW = jnp.log(jnp.array([[3.0, 1.0, 2.0, 4.0]]))
RELEVANCE = jnp.array([[True, False, False, True]])


def test_ntxent_sets_each_positive_alone_against_the_negatives():
    expected = -(np.log(3 / (3 + 1 + 2)) + np.log(4 / (4 + 1 + 2))) / 2
    actual = oracles.compiled(aa.ntxent_loss)(ROW, RELEVANCE, temperature=1.0)
    assert float(actual) == pytest.approx(expected)


def test_supcon_sets_each_positive_against_all_columns():
    expected = -(np.log(3 / 10) + np.log(4 / 10)) / 2
    actual = oracles.compiled(aa.supcon_loss)(ROW, RELEVANCE, temperature=1.0)
    assert float(actual) == pytest.approx(expected)


def test_temperature_divides_the_similarities():
    for loss in (aa.ntxent_loss, aa.supcon_loss):
        halved = oracles.compiled(loss)(ROW, RELEVANCE, temperature=2.0)
        expected = oracles.compiled(loss)(ROW / 2, RELEVANCE, temperature=1.0)
        assert float(halved) == pytest.approx(float(expected), rel=1e-6)


def test_supcon_without_negatives_is_the_logarithm_of_the_number_of_equal_positives():
    actual = oracles.compiled(aa.supcon_loss)(jnp.full((1, 4), 0.3), jnp.ones((1, 4), bool))
    assert float(actual) == pytest.approx(np.log(4), rel=1e-6)


def test_infonce_is_ntxent_with_the_pairs_on_the_diagonal():
    audio, visual = RNG.normal(size=(2, 6, 4)).astype(np.float32)
    logits = oracles.pairwise(oracles.cosine, audio, visual) / 0.07
    expected = np.mean(np.log(np.exp(logits).sum(axis=1)) - np.diag(logits))
    actual = aa.ntxent_loss(aa.cosine_similarity(audio, visual), np.eye(6, dtype=bool))
    assert float(actual) == pytest.approx(expected, rel=1e-5)


def test_n_pairs_is_ntxent_of_inner_products_at_temperature_one():
    anchors, positives = RNG.normal(size=(2, 5, 4)).astype(np.float32)
    products = anchors.astype(np.float64) @ positives.astype(np.float64).T
    expected = np.mean(
        [
            np.log1p(sum(np.exp(products[i, j] - products[i, i]) for j in range(5) if j != i))
            for i in range(5)
        ]
    )
    actual = aa.ntxent_loss(products.astype(np.float32), np.eye(5, dtype=bool), temperature=1.0)
    assert float(actual) == pytest.approx(expected, rel=1e-5)


def test_proxy_nca_is_supcon_on_class_proxies():
    samples, labels = RNG.normal(size=(7, 3)), RNG.integers(0, 3, 7)
    samples /= np.linalg.norm(samples, axis=1, keepdims=True)
    proxies, expected = np.eye(3), 0.0
    for x, label in zip(samples, labels, strict=True):
        weights = [np.exp(-oracles.squared_euclidean(x, proxy)) for proxy in proxies]
        expected -= np.log(weights[label] / sum(weights)) / 7
    similarities = -aa.squared_euclidean_distance(*oracles.as_float32(samples, proxies))
    relevance = aa.same_label(labels, np.arange(3))
    actual = aa.supcon_loss(similarities, relevance, temperature=1.0)
    assert float(actual) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("loss", [aa.ntxent_loss, aa.supcon_loss])
@pytest.mark.parametrize("shift", [-1e4, 1e4])
def test_large_logits_neither_overflow_nor_lose_the_gradient(loss, shift):
    row = jnp.array([[3.0, 1.0, 2.0, 4.0]])
    run = jax.jit(jax.value_and_grad(lambda row: loss(row, RELEVANCE, temperature=1.0)))
    value, gradient = run(row + shift)
    expected, expected_gradient = run(row)
    assert float(value) == pytest.approx(float(expected), rel=1e-5)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-5)


def test_a_tiny_temperature_gives_the_hinge_between_best_negative_and_positive():
    similarities = jnp.array([[0.25, 0.75, 0.5]])
    relevance = jnp.array([[True, False, False]])
    value = oracles.compiled(aa.ntxent_loss)(similarities, relevance, temperature=1e-4)
    assert float(value) == pytest.approx((0.75 - 0.25) / 1e-4, rel=1e-5)
