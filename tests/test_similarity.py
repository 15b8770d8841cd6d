"""Similarity and distance matrices, and the relation of labels."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from jax.test_util import check_grads

import aadml_jax as aa

ORACLES = {
    "cosine_similarity": oracles.cosine,
    "cosine_distance": lambda x, y: 1 - oracles.cosine(x, y),
    "squared_euclidean_distance": oracles.squared_euclidean,
    "euclidean_distance": oracles.euclidean,
}
COSINES = ("cosine_similarity", "cosine_distance")
EUCLIDEANS = ("squared_euclidean_distance", "euclidean_distance")


@pytest.fixture(params=ORACLES)
def name(request):
    return request.param


def points(seed, n=4, m=6, d=3):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)), rng.normal(size=(m, d)) + 0.3


def close(actual, expected, rtol=1e-5, atol=1e-6):
    np.testing.assert_allclose(np.asarray(actual, np.float64), expected, rtol=rtol, atol=atol)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cosine_similarity", [[24 / 25, 0.6, -0.6], [0.8, 1.0, -1.0]]),
        ("cosine_distance", [[1 / 25, 0.4, 1.6], [0.2, 0.0, 2.0]]),
        ("squared_euclidean_distance", [[1 + 1, 0 + 4**2, 9**2 + 4**2], [2**2 + 3**2, 1, 8**2]]),
        ("euclidean_distance", [[2**0.5, 4.0, 97**0.5], [13**0.5, 1.0, 8.0]]),
    ],
)
def test_values_by_hand(name, expected):
    a, b = jnp.array([[3.0, 4.0], [2.0, 0.0]]), jnp.array([[4.0, 3.0], [3.0, 0.0], [-6.0, 0.0]])
    close(getattr(aa, name)(a, b), expected)


@pytest.mark.parametrize("sizes", [(4, 6, 3), (1, 3, 1)])
def test_each_entry_equals_the_float64_loop(name, sizes):
    a, b = oracles.as_float32(*points(0, *sizes))
    actual = oracles.compiled(getattr(aa, name))(a, b)
    assert actual.shape == sizes[:2]
    close(actual, oracles.pairwise(ORACLES[name], a, b))


def test_rows_and_columns_follow_their_points(name):
    function = oracles.compiled(getattr(aa, name))
    a, b = oracles.as_float32(*points(1))
    rows, columns = np.array([2, 0, 3, 1]), np.array([4, 1, 5, 0, 3, 2])
    close(function(a[rows], b[columns]), np.asarray(function(a, b))[np.ix_(rows, columns)])
    close(function(b, a), np.asarray(function(a, b)).T)


def test_jit_and_vmap_change_nothing(name):
    function = getattr(aa, name)
    a, b = (jnp.stack([x, -2 * x[::-1]]) for x in oracles.as_float32(*points(2)))
    plain = np.stack([function(*pair) for pair in zip(a, b, strict=True)])
    close(jax.jit(function)(a[0], b[0]), plain[0])
    close(jax.jit(jax.vmap(function))(a, b), plain)


def test_gradients_equal_finite_differences_in_both_modes(name):
    with oracles.x64():
        a, b = map(jnp.asarray, points(3))
        function = oracles.compiled(getattr(aa, name))
        check_grads(function, (a, b), order=1, atol=1e-6, rtol=1e-6, eps=1e-6)
        scale = jnp.asarray(np.random.default_rng(3).normal(size=(4, 6)))
        plain, again = (
            jax.jit(jax.grad(lambda a, f=f: jnp.sum(f(a, b) * scale)))(a)
            for f in (function, jax.checkpoint(function))
        )
        close(again, plain, rtol=1e-12)


def test_bfloat16_is_computed_in_float32(name):
    a, b = (x.astype(jnp.bfloat16) for x in oracles.as_float32(*points(4)))
    actual = oracles.compiled(getattr(aa, name))(a, b)
    assert actual.dtype == jnp.float32
    close(actual, oracles.pairwise(ORACLES[name], a, b))


def test_float64_stays_float64_and_float32_stays_float32(name):
    with oracles.x64():
        a, b = points(5)
        actual = getattr(aa, name)(jnp.asarray(a), jnp.asarray(b))
        assert actual.dtype == jnp.float64
        close(actual, oracles.pairwise(ORACLES[name], a, b), rtol=1e-12, atol=1e-14)
        single = jax.eval_shape(getattr(aa, name), *oracles.as_float32(a, b))
        assert single.dtype == jnp.float32


def test_matrix_products_ask_for_full_precision(name):
    a, b = oracles.as_float32(*points(6))
    function = oracles.compiled(getattr(aa, name))
    assert oracles.rounded_products(function, a, b) == []
    gradient = jax.grad(lambda a, b: function(a, b).sum(), argnums=(0, 1))
    assert oracles.rounded_products(gradient, a, b) == []


def test_shapes_that_do_not_fit_raise_an_error_that_prints_them(name):
    for a, b in [((4, 3), (6, 2)), ((4, 3), (3,)), ((3,), (4, 3)), ((2, 4, 3), (4, 3))]:
        with pytest.raises(ValueError) as error:
            getattr(aa, name)(jnp.ones(a), jnp.ones(b))
        assert str(a) in str(error.value) and str(b) in str(error.value)


@pytest.mark.parametrize("name", COSINES)
def test_cosine_of_a_zero_vector_is_zero_with_gradient_zero(name):
    a, b = oracles.as_float32(*points(7))
    a, b = a.at[1].set(0.0), b.at[2].set(0.0)
    function = oracles.compiled(getattr(aa, name))
    value = np.asarray(function(a, b))
    constant = 1.0 if name == "cosine_distance" else 0.0
    np.testing.assert_array_equal(value[1], np.full(6, constant))
    np.testing.assert_array_equal(value[:, 2], np.full(4, constant))
    scale = jnp.asarray(np.random.default_rng(7).normal(size=(4, 6)), jnp.float32)
    gradient = jax.jit(jax.grad(lambda a, b: jnp.sum(function(a, b) * scale), argnums=(0, 1)))
    gradients = gradient(a, b)
    assert all(np.all(np.isfinite(gradient)) for gradient in gradients)
    assert np.any(gradients[0][0]) and np.any(gradients[1][0])
    assert not np.any(gradients[0][1]) and not np.any(gradients[1][2])
    _, tangent = jax.jit(lambda a, b: jax.jvp(function, (a, b), (b[:4], a[:1] + b)))(a, b)
    assert bool(jnp.isfinite(tangent).all())


@pytest.mark.parametrize("name", COSINES)
@pytest.mark.parametrize("factor", [1e-6, 1e6])
def test_cosine_does_not_depend_on_length(name, factor):
    a, b = oracles.as_float32(*points(8))
    close(oracles.compiled(getattr(aa, name))(a * factor, b), oracles.pairwise(ORACLES[name], a, b))


@pytest.mark.parametrize("name", COSINES)
@pytest.mark.parametrize("length", [3.4e38, 3e38, 1e37, 1e20, 1e-20, 1e-36])
def test_cosine_of_rows_at_the_ends_of_float32(name, length):
    a, b = points(8)
    a *= length / np.abs(a).max()
    a[np.abs(a) < 1.2e-38] = 0  # what CPUs take for 0
    a = a.astype(np.float32)
    scale = np.random.default_rng(8).normal(size=(4, 6)).astype(np.float32)
    function = oracles.compiled(getattr(aa, name))
    close(function(a, b.astype(np.float32)), oracles.pairwise(ORACLES[name], a, b))
    close(getattr(aa, name)(b.astype(np.float32), a), oracles.pairwise(ORACLES[name], b, a))

    def total(rows):
        return np.sum(oracles.pairwise(ORACLES[name], rows, b) * scale)

    gradient = np.asarray(jax.grad(lambda a: jnp.sum(function(a, b) * scale))(a), np.float64)
    for i, c in np.ndindex(a.shape):
        moved = np.zeros(a.shape)
        moved[i, c] = length
        slope = oracles.finite_difference(lambda t, m=moved: total(a.astype(float) + t * m), 0.0)
        # The longest rows have derivatives that are 0 on CPUs.
        close(gradient[i, c] * length, slope, rtol=1e-4, atol=1e-5 + 1.2e-38 * length)
    assert np.any(gradient) == (length < 1e38)


@pytest.mark.parametrize("name", COSINES)
def test_rows_of_subnormal_numbers_alone_count_as_zero(name):
    a, b = oracles.as_float32(*points(8))
    a = jnp.asarray(np.asarray(a).astype(np.float64) * 1e-39, jnp.float32)
    function = oracles.compiled(getattr(aa, name))
    constant = 1.0 if name == "cosine_distance" else 0.0
    np.testing.assert_array_equal(function(a, b), np.full((4, 6), constant))
    assert not np.any(jax.jit(jax.grad(lambda a: function(a, b).sum()))(a))


def test_cosine_at_the_ends_of_float64():
    with oracles.x64():
        a, b = points(8)
        for factor in (1e307, 1e-300):
            value = aa.cosine_similarity(jnp.asarray(a * factor), jnp.asarray(b))
            close(value, oracles.pairwise(oracles.cosine, a, b), rtol=1e-12)


@pytest.mark.parametrize("length", [1e18, 1e19, 1e20, 1e30, 1e38])
def test_euclidean_distance_of_points_far_apart(length):
    a, b = (x / 4 for x in points(11))
    wanted = oracles.pairwise(oracles.euclidean, a, b)
    near = oracles.as_float32(a, b)
    a, b = oracles.as_float32(a * length, b * length)
    run = jax.jit(jax.value_and_grad(lambda a, b: jnp.sum(aa.euclidean_distance(a, b)), (0, 1)))
    _, gradients = run(a, b)
    assert wanted.max() < 3
    for function in (aa.euclidean_distance, oracles.compiled(aa.euclidean_distance)):
        close(np.asarray(function(a, b), np.float64) / length, wanted)
    both = (jnp.stack([far, close_by]) for far, close_by in zip((a, b), near, strict=True))
    pair = jax.vmap(aa.euclidean_distance)(*both)
    close(np.asarray(pair, np.float64) / np.array([length, 1])[:, None, None], [wanted, wanted])
    units = (np.asarray(a)[:, None] - np.asarray(b)[None]).astype(np.float64) / length
    units /= np.linalg.norm(units, axis=2, keepdims=True)
    close(gradients[0], units.sum(axis=1), rtol=1e-4, atol=1e-5)
    close(gradients[1], -units.sum(axis=0), rtol=1e-4, atol=1e-5)
    tangents = (near[0], -near[1])
    _, forward = jax.jit(lambda *x: jax.jvp(aa.euclidean_distance, x, tangents))(a, b)
    moved = np.asarray(tangents[0])[:, None] - np.asarray(tangents[1])[None]
    close(forward, (units * moved).sum(axis=2), rtol=1e-4, atol=1e-5)


def test_a_far_point_leaves_the_distances_of_close_ones_as_they_are():
    a, b = oracles.as_float32([[1e20, 0.0], [0.25, 0.0]], [[0.25, 3e-10], [0.25, 0.0], [-1e20, 0]])
    distances = oracles.compiled(aa.euclidean_distance)(a, b)
    expected = oracles.pairwise(oracles.euclidean, a, b)
    assert expected[1, 0] == pytest.approx(3e-10) and expected[0, 2] == pytest.approx(2e20)
    close(distances, expected, atol=0)
    gradient = jax.grad(lambda a: jnp.sum(aa.euclidean_distance(a, b)[0]))(a)
    close(gradient, [[3, 0], [0, 0]])


def test_euclidean_distance_of_points_far_apart_in_float64():
    with oracles.x64():
        a, b = map(jnp.asarray, points(11))
        for factor in (1e160, 1e300):
            far = aa.euclidean_distance(a * factor, b * factor)
            close(far / factor, oracles.pairwise(oracles.euclidean, a, b), rtol=1e-12)


def test_squared_distances_beyond_float32_are_infinite_with_a_finite_derivative():
    a, b = jnp.array([[1e20, 0.0]]), jnp.array([[0.0, 0.0], [1e20, 2.0]])
    value = aa.squared_euclidean_distance(a, b)
    np.testing.assert_array_equal(value, [[np.inf, 4]])
    gradient = jax.grad(lambda a: aa.squared_euclidean_distance(a, b)[0, 0])(a)
    close(gradient / 1e20, [[2, 0]])


def test_no_form_of_the_euclidean_distance_stores_the_differences():
    a, b = jnp.ones((64, 256)), jnp.ones((96, 256))
    value = aa.euclidean_distance
    gradient = jax.grad(lambda a, b: value(a, b).sum(), argnums=(0, 1))
    for function in (value, gradient):
        assert oracles.temporary_bytes(function, a, b) < 64 * 96 * 256  # a quarter of them


def close_points(n, m, d=16):
    """Two far clusters of norm 10, the points of each 1e-3 apart: rows of a against rows of b."""
    rng = np.random.default_rng(9)
    centre = rng.normal(size=d)
    centres = np.array([1.0, -1.0])[:, None] * 10 * centre / np.linalg.norm(centre)
    a, b = (
        centres[np.arange(size) % 2] + rng.normal(size=(size, d)) * 1e-3 / (2 * d) ** 0.5
        for size in (n, m)
    )
    return oracles.as_float32(a, b)


@pytest.mark.parametrize("name", EUCLIDEANS)
def test_euclidean_is_accurate_for_close_points_far_from_the_origin(name):
    a, b = close_points(5, 8)
    expected = oracles.pairwise(ORACLES[name], a, b)
    near = oracles.pairwise(oracles.euclidean, a, b).min(axis=1)
    assert np.all((near > 2e-4) & (near < 2e-3))
    for function in (getattr(aa, name), oracles.compiled(getattr(aa, name))):
        close(function(a, b), expected, rtol=1e-5, atol=0)


def test_euclidean_gradient_of_close_points_is_the_unit_vector():
    a, b = close_points(4, 6)
    jacobian = jax.jit(jax.jacrev(aa.euclidean_distance))(a, b)
    for i in range(4):
        for j in range(i % 2, 6, 2):  # the points of the same cluster
            difference = np.asarray(a[i], np.float64) - np.asarray(b[j], np.float64)
            close(jacobian[i, j, i], difference / np.linalg.norm(difference), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", EUCLIDEANS)
def test_coincident_points_are_at_distance_zero_with_gradient_zero(name):
    a, _ = oracles.as_float32(*points(10, 4, 4, 7))
    b = jnp.concatenate([a[2:3], a[:1] + 1.0])
    function = oracles.compiled(getattr(aa, name))
    assert float(function(a, b)[2, 0]) == 0.0
    jacobians = jax.jit(jax.jacrev(function, argnums=(0, 1)))(a, b)
    for jacobian in jacobians:
        assert not np.any(jacobian[2, 0]) and np.all(np.isfinite(jacobian)) and np.any(jacobian)
    tangents = (jnp.ones_like(a), jnp.zeros_like(b))
    _, forward = jax.jit(lambda a, b: jax.jvp(function, (a, b), tangents))(a, b)
    assert float(forward[2, 0]) == 0.0
    close(forward, np.asarray(jacobians[0]).sum(axis=(2, 3)))


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.int64])
def test_same_label_compares_integers_of_any_type(dtype):
    with oracles.x64(dtype == np.int64):
        top = np.iinfo(dtype).max  # as float32, top and top − 1 would be one label from int32 on
        a, b = np.array([0, top, 3, top - 1], dtype), np.array([top, 3, 7], dtype)
        actual = aa.same_label(jnp.asarray(a), jnp.asarray(b))
        assert actual.dtype == jnp.bool_
        np.testing.assert_array_equal(actual, [[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 0]])


def test_same_label_compares_integers_of_different_types_by_value():
    actual = aa.same_label(jnp.array([200, 255], jnp.uint8), jnp.array([255, -1, 200], jnp.int32))
    np.testing.assert_array_equal(actual, [[0, 0, 1], [1, 0, 0]])


@pytest.mark.parametrize("dtype", [np.bool_, np.uint8, np.int32])
def test_same_label_of_multi_hot_labels_is_a_shared_class(dtype):
    a = np.array([[1, 0, 1, 0], [0, 0, 0, 0], [0, 1, 0, 0]], dtype)
    b = np.array([[0, 0, 1, 1], [1, 1, 0, 0]], dtype)
    expected = [[1, 1], [0, 0], [0, 1]]
    actual = aa.same_label(jnp.asarray(a), jnp.asarray(b))
    assert actual.dtype == jnp.bool_
    np.testing.assert_array_equal(actual, expected)
    np.testing.assert_array_equal(jax.jit(aa.same_label)(a, b), expected)
    random = [np.random.default_rng(s).random((n, 5)) < 0.3 for s, n in ((0, 6), (1, 8))]
    expected = [[oracles.share_a_class(x, y) for y in random[1]] for x in random[0]]
    np.testing.assert_array_equal(aa.same_label(*(x.astype(dtype) for x in random)), expected)


@pytest.mark.parametrize(("dtype", "classes"), [(np.uint8, 256), (np.int8, 128), (np.bool_, 256)])
def test_same_label_counts_shared_classes_without_overflow(dtype, classes):
    labels = jnp.ones((2, classes), dtype)  # the count wraps to 0 or below in eight bits
    assert bool(aa.same_label(labels, labels[:1]).all())


@pytest.mark.parametrize(
    ("a", "b"), [((4,), (6, 3)), ((4, 3), (6,)), ((4, 3), (6, 2)), ((), (3,)), ((2, 4, 3), (6, 3))]
)
def test_same_label_of_shapes_that_do_not_fit_raises(a, b):
    with pytest.raises(ValueError) as error:
        aa.same_label(jnp.ones(a, jnp.int32), jnp.ones(b, jnp.int32))
    assert str(a) in str(error.value) and str(b) in str(error.value)


def test_integer_labels_of_different_dtypes_compare_by_value():
    small = np.array([1, 3, 0], np.uint8)
    wide = np.array([3, -1, 1, 0], np.int32)
    expected = [[s == w for w in wide.tolist()] for s in small.tolist()]
    np.testing.assert_array_equal(aa.same_label(small, wide), expected)
    # In 32 bits 2³² − 1 and −1 are the same bits, not the same class.
    largest = np.array([2**32 - 1, 3], np.uint32)
    expected = [[False, False, False, False], [True, False, False, False]]
    np.testing.assert_array_equal(aa.same_label(largest, wide), expected)


def test_strict_dtype_promotion_is_enough_for_arguments_of_two_dtypes():
    labels = np.array([0, 1, 0, 1], np.uint8), np.array([0, 1, 0, 1, 2])

    def value(a, b):
        distances = aa.cosine_distance(a, b), aa.euclidean_distance(b, a).T
        return [aa.triplet_loss(d, aa.same_label(*labels), margin=0.3) for d in distances]

    a, b = (jax.ShapeDtypeStruct((n, 3), x) for n, x in ((4, jnp.float32), (5, jnp.bfloat16)))
    with jax.numpy_dtype_promotion("strict"):
        values = jax.eval_shape(value, a, b)
    assert [x.dtype for x in values] == [jnp.float32, jnp.float32]
