"""Margin, lifted structure, multi-similarity, proxy anchor and circle: values by hand, ties."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

import aadml_jax as aa

ROW = jnp.array([[0.75, 0.25, 0.5, -0.25]])
RELEVANCE = jnp.array([[True, False, True, False]])


def value(loss, row=ROW, relevance=RELEVANCE, **params):
    return float(oracles.compiled(loss)(row, relevance, **params))


def test_margin_loss():
    positives = (max(0, 0.75 - 0.6 + 0.1) + max(0, 0.5 - 0.6 + 0.1)) / 2
    negatives = (max(0, 0.6 - 0.25 + 0.1) + max(0, 0.6 + 0.25 + 0.1)) / 2
    actual = value(aa.margin_loss, margin=0.1, beta=0.6)
    assert actual == pytest.approx(positives + negatives)


def test_margin_loss_defaults():
    assert value(aa.margin_loss, jnp.array([[1.25, 1.25]]), jnp.array([[True, False]])) == (
        pytest.approx((1.25 - 1.2 + 0.2) + (1.2 - 1.25 + 0.2))
    )


@pytest.mark.parametrize(
    ("loss", "params", "positive", "negative"),
    [
        (aa.margin_loss, {"margin": 0.25, "beta": 1.0}, 0.75, 1.25),
        (aa.lifted_structure_loss, {"margin": 0.5}, 0.25, 0.75),
    ],
)
def test_derivative_is_exactly_zero_at_the_tie_of_a_hinge(loss, params, positive, negative):
    row, relevance = jnp.array([[positive, negative]]), jnp.array([[True, False]])

    def at(row, margin):
        return loss(row, relevance, **(params | {"margin": margin}))

    gradient, slope = jax.jit(jax.grad(at, argnums=(0, 1)))(row, params["margin"])
    np.testing.assert_array_equal(gradient, np.zeros((1, 2)))
    assert float(slope) == 0.0


def test_lifted_structure_loss():
    positives = np.log(np.exp(0.75) + np.exp(0.5))
    negatives = np.log(np.exp(1 - 0.25) + np.exp(1 + 0.25))
    assert value(aa.lifted_structure_loss) == pytest.approx(positives + negatives)
    assert value(aa.lifted_structure_loss, margin=-9.0) == 0.0


def test_multi_similarity_loss():
    pull = np.log(1 + np.exp(-2 * (0.75 - 0.4)) + np.exp(-2 * (0.5 - 0.4))) / 2
    push = np.log(1 + np.exp(9 * (0.25 - 0.4)) + np.exp(9 * (-0.25 - 0.4))) / 9
    actual = value(aa.multi_similarity_loss, alpha=2.0, beta=9.0, base=0.4)
    assert actual == pytest.approx(pull + push, rel=1e-5)


def test_proxy_anchor_loss():
    pull = np.log(1 + np.exp(-3 * (0.75 - 0.2)) + np.exp(-3 * (0.5 - 0.2)))
    push = np.log(1 + np.exp(3 * (0.25 + 0.2)) + np.exp(3 * (-0.25 + 0.2)))
    actual = value(aa.proxy_anchor_loss, margin=0.2, alpha=3.0)
    assert actual == pytest.approx(pull + push, rel=1e-5)


def test_proxy_anchor_averages_over_all_proxies_those_without_samples_too():
    similarities, labels = np.array([[0.5, 0.25], [0.0, 0.75], [-0.5, 0.25]]), np.array([0, 1])
    relevance = aa.same_label(np.arange(3), labels)
    softplus = oracles.softplus
    rows = [
        softplus(-4 * (0.5 - 0.1)) + softplus(4 * (0.25 + 0.1)),
        softplus(-4 * (0.75 - 0.1)) + softplus(4 * (0.0 + 0.1)),
        np.log(1 + np.exp(4 * (-0.5 + 0.1)) + np.exp(4 * (0.25 + 0.1))),
    ]
    actual = value(aa.proxy_anchor_loss, jnp.asarray(similarities), relevance, alpha=4.0)
    assert actual == pytest.approx(sum(rows) / 3, rel=1e-5)


def test_circle_loss_and_its_derivative_with_constant_weights():
    margin, gamma = 0.25, 4.0
    row, relevance = jnp.array([[0.5, 0.125]]), jnp.array([[True, False]])
    positive_weight, negative_weight = 1 + margin - 0.5, 0.125 + margin
    exponent = gamma * negative_weight * (0.125 - margin)
    exponent += -gamma * positive_weight * (0.5 - 1 + margin)
    run = jax.value_and_grad(lambda x: aa.circle_loss(x, relevance, margin=margin, gamma=gamma))
    actual, gradient = jax.jit(run)(row)
    assert float(actual) == pytest.approx(np.log1p(np.exp(exponent)), rel=1e-6)
    share = gamma / (1 + np.exp(-exponent))
    np.testing.assert_allclose(
        gradient, [[-share * positive_weight, share * negative_weight]], rtol=1e-6
    )


def test_circle_gives_no_gradient_to_pairs_beyond_their_optimum():
    row, relevance = jnp.array([[1.5, -0.5, 0.0]]), jnp.array([[True, False, False]])
    gradient = jax.jit(jax.grad(lambda x: aa.circle_loss(x, relevance, margin=0.25)))(row)
    assert not np.any(gradient[0, :2])
    assert np.any(gradient[0, 2:])


@pytest.mark.parametrize(
    ("loss", "row"),
    [
        (aa.multi_similarity_loss, [1e3, -1e3, 5e2, 2e3]),
        (aa.proxy_anchor_loss, [-1e3, 1e3, 5e2, 2e3]),
        (aa.lifted_structure_loss, [1e3, -1e3, 5e2, 2e3]),
        (aa.circle_loss, [-10.0, 10.0, 5.0, 3.0]),
    ],
)
def test_large_exponents_do_not_overflow(loss, row):
    run = jax.jit(jax.value_and_grad(lambda x: loss(x, RELEVANCE)))
    total, gradient = run(jnp.array([row]))
    assert np.isfinite(total) and total > 0
    assert np.all(np.isfinite(gradient)) and np.any(gradient)
