"""The log probability of one class: by hand, and in decimal arithmetic of 200 digits."""

import decimal
import math

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

import aadml_jax as aa

DIGITS = decimal.Context(prec=200, Emin=-(10**6), Emax=10**6)
# Log-odds of ordinary outputs, of sure classifiers, and of those whose products underflow.
SCALES = pytest.mark.parametrize("scale", [1, 20, 60, 300])


def logits(seed, scale, n=4, m=6, c=5):
    rng = np.random.default_rng(seed)
    return oracles.as_float32(rng.normal(size=(n, c)) * scale, rng.normal(size=(m, c)) * scale)


def softmax(row):
    with decimal.localcontext(DIGITS):
        exponentials = [decimal.Decimal(float(value)).exp() for value in row]
        return [value / sum(exponentials) for value in exponentials]


def log_same_class(x, y):
    """The value, and its derivative by the first logits: the share of each class minus p(c)."""
    with decimal.localcontext(DIGITS):
        products = [p * q for p, q in zip(softmax(x), softmax(y), strict=True)]
        same = sum(products)
        gradient = [product / same - p for product, p in zip(products, softmax(x), strict=True)]
        return float(same.ln()), [float(value) for value in gradient]


def expected(a, b):
    pairs = [[log_same_class(x, y) for y in np.asarray(b)] for x in np.asarray(a)]
    return np.array([[value for value, _ in row] for row in pairs]), np.array(
        [[gradient for _, gradient in row] for row in pairs]
    )


@SCALES
def test_values_are_those_of_decimal_arithmetic_relative_to_their_size(scale):
    for seed in range(3):
        a, b = logits(seed, scale)
        actual = np.asarray(oracles.compiled(aa.posterior_similarity)(a, b), np.float64)
        values, _ = expected(a, b)
        np.testing.assert_allclose(actual, values, rtol=2e-6, atol=1e-37)
    assert scale != 300 or values.min() < -200


@pytest.mark.parametrize("sure", [3.0, 17.0, 40.0, 80.0])
def test_sure_classifiers_that_agree_come_near_log_one_without_reaching_it(sure):
    # With logits (x, 0) and (y, 0): s = (1 + e^(x+y)) / ((1 + e^x) (1 + e^y)).
    x, y = sure, sure + 2
    actual = float(aa.posterior_similarity(jnp.array([[x, 0.0]]), jnp.array([[y, 0.0]]))[0, 0])
    e = math.exp
    by_hand = math.log1p(-(e(-x) + e(-y)) / (1 + e(-x)) / (1 + e(-y)))
    assert actual == pytest.approx(by_hand, rel=1e-6)
    assert actual < 0


@pytest.mark.parametrize("sure", [3.0, 40.0, 87.0, 120.0, 1000.0])
def test_sure_classifiers_that_disagree_do_not_underflow(sure):
    # With logits (x, 0) and (0, x): s = 2 e^x / (1 + e^x)².
    a, b = jnp.array([[sure, 0.0]]), jnp.array([[0.0, sure]])
    actual = float(aa.posterior_similarity(a, b)[0, 0])
    by_hand = math.log(2) - sure - 2 * math.log1p(math.exp(-sure))
    assert actual == pytest.approx(by_hand, rel=1e-6)


def test_items_that_are_sure_to_different_degrees_keep_their_order():
    sure = jnp.linspace(10, 85, 300)[:, None] * jnp.array([[1.0, 0.0, 0.0]])
    agree = aa.posterior_similarity(jnp.array([[50.0, 0.0, 0.0]]), sure)[0]
    assert len(jnp.unique(agree[sure[:, 0] < 60])) == jnp.sum(sure[:, 0] < 60)
    disagree = aa.posterior_similarity(jnp.array([[0.0, 50.0, 0.0]]), sure[sure[:, 0] < 40])[0]
    assert jnp.all(jnp.diff(disagree) < 0)


@SCALES
def test_gradients_are_those_of_decimal_arithmetic(scale):
    a, b = logits(5, scale)
    weights = np.random.default_rng(6).normal(size=(4, 6))

    def total(a, b):
        return jnp.sum(aa.posterior_similarity(a, b) * jnp.asarray(weights, jnp.float32))

    by_a, by_b = jax.jit(jax.grad(total, argnums=(0, 1)))(a, b)
    _, from_queries = expected(a, b)
    _, from_gallery = expected(b, a)
    close = {"rtol": 1e-4, "atol": 1e-6}
    np.testing.assert_allclose(by_a, np.einsum("ij,ijc->ic", weights, from_queries), **close)
    np.testing.assert_allclose(by_b, np.einsum("ij,jic->jc", weights, from_gallery), **close)


def test_gradient_of_agreeing_pairs_keeps_its_relative_precision():
    a, b = jnp.array([[60.0, 0.0, 1.0]]), jnp.array([[50.0, 2.0, 0.0]])
    gradient = jax.grad(lambda a: aa.posterior_similarity(a, b)[0, 0])(a)[0]
    np.testing.assert_allclose(gradient, log_same_class(a[0], b[0])[1], rtol=1e-4)


def test_logits_of_minus_infinity_are_classes_of_probability_zero():
    never = -jnp.inf
    a = jnp.array([[0.0, never, never], [0.0, 0.0, never]])
    b = jnp.array([[never, 0.0, 0.0], [0.0, never, never]])
    # 0 · 1/2; 1 · 1; 1/2 · 1/2; 1/2 · 1
    by_hand = np.log([[1.0, 1.0], [1 / 4, 1 / 2]])
    by_hand[0, 0] = -np.inf
    np.testing.assert_allclose(aa.posterior_similarity(a, b), by_hand, rtol=1e-6)

    def total(a):
        values = aa.posterior_similarity(a, b)
        return jnp.sum(jnp.where(values == -jnp.inf, 0, values))

    # Of log p(2) and log p(1) of the second row: −1/2, +1/2 and +1/2, −1/2.
    np.testing.assert_allclose(jax.grad(total)(a), np.zeros((2, 3)), atol=1e-6)
    only = jax.grad(lambda a: aa.posterior_similarity(a, b)[1, 0])(a)
    np.testing.assert_allclose(only, [[0, 0, 0], [-1 / 2, 1 / 2, 0]], atol=1e-6)


def test_nan_shows_in_its_row_and_column_alone():
    a, b = logits(7, 100)
    values = aa.posterior_similarity(a.at[1, 2].set(jnp.nan), b.at[3, 0].set(jnp.nan))
    is_broken = (np.arange(4) == 1)[:, None] | (np.arange(6) == 3)[None, :]
    np.testing.assert_array_equal(np.isnan(values), is_broken)


@SCALES
def test_jit_vmap_and_checkpoint_change_nothing(scale):
    a, b = (jnp.stack([x, -x[::-1]]) for x in logits(8, scale))
    plain = np.stack([aa.posterior_similarity(*pair) for pair in zip(a, b, strict=True)])
    mapped = jax.jit(jax.vmap(jax.checkpoint(aa.posterior_similarity)))(a, b)
    np.testing.assert_allclose(mapped, plain, rtol=2e-6, atol=1e-37)


def test_lower_precision_is_raised_and_float64_stays():
    a, b = (x.astype(jnp.bfloat16) for x in logits(9, 20))
    actual = aa.posterior_similarity(a, b)
    assert actual.dtype == jnp.float32
    values, _ = expected(a.astype(jnp.float32), b.astype(jnp.float32))
    np.testing.assert_allclose(actual, values, rtol=2e-6)
    with oracles.x64():
        a, b = (np.asarray(x, np.float64) for x in logits(10, 300))
        actual = aa.posterior_similarity(a, b)
        assert actual.dtype == jnp.float64
        np.testing.assert_allclose(actual, expected(a, b)[0], rtol=1e-13, atol=1e-300)


def test_one_class_and_none():
    one = aa.posterior_similarity(jnp.array([[3.0], [-400.0]]), jnp.array([[7.0]]))
    np.testing.assert_array_equal(one, np.zeros((2, 1)))  # log 1
    assert np.all(aa.posterior_similarity(jnp.ones((2, 0)), jnp.ones((3, 0))) == -jnp.inf)


def test_memory_does_not_grow_with_the_classes():
    pairs = 4 * 300 * 400

    def gradient(a, b):
        return jax.grad(lambda a: jnp.sum(aa.posterior_similarity(a, b)))(a)

    for function in (aa.posterior_similarity, gradient):
        of_few, of_many = (
            oracles.temporary_bytes(function, jnp.ones((300, c)), jnp.ones((400, c)))
            for c in (10, 200)
        )
        assert of_many - of_few < 10 * pairs  # 190 matrices of pairs, were they stored


def test_matrix_products_ask_for_full_precision():
    a, b = logits(11, 1)
    assert oracles.rounded_products(aa.posterior_similarity, a, b) == []
    gradient = jax.grad(lambda a, b: aa.posterior_similarity(a, b).sum(), argnums=(0, 1))
    assert oracles.rounded_products(gradient, a, b) == []
