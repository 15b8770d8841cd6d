"""Values and derivatives of the contrastive loss that a reader can check by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import aadml_jax as aa

DISTANCES = jnp.array([[0.5, 0.7, 0.2, 1.3]])
RELEVANCE = jnp.array([[True, False, True, False]])


def test_value_is_the_mean_square_of_each_side():
    near = (0.5**2 + 0.2**2) / 2
    far = ((1.0 - 0.7) ** 2 + 0.0) / 2
    assert float(aa.contrastive_loss(DISTANCES, RELEVANCE)) == pytest.approx(near + far)


def test_margin_reaches_the_other_side_only():
    near = (0.5**2 + 0.2**2) / 2
    far = ((1.5 - 0.7) ** 2 + (1.5 - 1.3) ** 2) / 2
    actual = aa.contrastive_loss(DISTANCES, RELEVANCE, margin=1.5)
    assert float(actual) == pytest.approx(near + far)


@pytest.mark.parametrize(
    ("relevance", "expected"),
    [
        ([[1, 1, 1, 1]], (0.5**2 + 0.7**2 + 0.2**2 + 1.3**2) / 4),
        ([[0, 0, 0, 0]], ((1 - 0.5) ** 2 + (1 - 0.7) ** 2 + (1 - 0.2) ** 2 + 0) / 4),
    ],
)
def test_an_empty_side_contributes_nothing(relevance, expected):
    assert float(jax.jit(aa.contrastive_loss)(DISTANCES, jnp.array(relevance))) == pytest.approx(
        expected
    )


def test_derivatives_by_hand():
    gradient, slope = jax.jit(
        jax.grad(lambda d, m: aa.contrastive_loss(d, RELEVANCE, margin=m), argnums=(0, 1))
    )(DISTANCES, 1.0)
    expected = [[2 * 0.5 / 2, -2 * (1.0 - 0.7) / 2, 2 * 0.2 / 2, 0.0]]
    np.testing.assert_allclose(gradient, expected, rtol=1e-6)
    np.testing.assert_allclose(slope, 2 * (1.0 - 0.7) / 2, rtol=1e-6)


def test_derivative_is_zero_where_a_distance_equals_the_margin():
    gradient = jax.jit(jax.grad(aa.contrastive_loss))(
        jnp.array([[0.0, 1.0]]), jnp.array([[True, False]])
    )
    np.testing.assert_array_equal(gradient, [[0.0, 0.0]])
