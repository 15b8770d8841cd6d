"""The sigmoid loss: values by hand, the paper's program, and learning of temperature and bias."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import aadml_jax as aa

RNG = np.random.default_rng(0)


def test_each_pair_is_a_decision_of_its_own():
    odds = jnp.log(jnp.array([[3.0, 1.0, 4.0]]))
    relevance = jnp.array([[True, False, False]])
    value = aa.sigmoid_loss(odds, relevance, temperature=1.0, bias=jnp.log(2.0))
    # Odds of 6, 2 and 8 to 1 that a pair belongs together.
    assert float(value) == pytest.approx(-np.log(6 / 7 * 1 / 3 * 1 / 9), rel=1e-6)


def test_the_defaults_are_where_the_paper_begins():
    """The program of the paper's algorithm 1, at t = 10 and b = −10."""
    image, text = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in RNG.normal(size=(2, 6, 4)))
    logits = image @ text.T * np.exp(np.log(10)) - 10
    labels = 2 * np.eye(6) - 1
    expected = -np.sum(np.log(1 / (1 + np.exp(-labels * logits)))) / 6
    actual = aa.sigmoid_loss(aa.cosine_similarity(image, text), np.eye(6, dtype=bool))
    assert float(actual) == pytest.approx(expected, rel=1e-5)


def test_temperature_and_bias_are_learned():
    similarities = jnp.where(jnp.eye(8, dtype=bool), 0.75, 0.25)
    relevance = jnp.eye(8, dtype=bool)

    def loss(params):
        temperature = jnp.exp(params["log_temperature"])
        return aa.sigmoid_loss(
            similarities, relevance, temperature=temperature, bias=params["bias"]
        )

    params = {"log_temperature": jnp.log(0.1), "bias": jnp.float32(-10.0)}
    first = loss(params)
    step = jax.jit(
        lambda params: jax.tree.map(lambda x, g: x - 0.05 * g, params, jax.grad(loss)(params))
    )
    for _ in range(200):
        params = step(params)
    assert float(loss(params)) < 0.2 * float(first)


def test_logits_of_any_size_stay_finite():
    similarities = jnp.array([[1e4, -1e4]])
    for relevance in ([[True, False]], [[False, True]]):
        value, gradient = jax.value_and_grad(aa.sigmoid_loss)(similarities, jnp.array(relevance))
        assert np.isfinite(value) and np.all(np.isfinite(gradient))
    # The wrong way round, the value is the sum of the logits' sizes.
    assert float(value) == pytest.approx(2e5, rel=1e-3)
