"""What holds for every loss: one line in LOSSES puts a new loss under all of it."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import hypothesis
import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from hypothesis import strategies as st

import aadml_jax as aa

RANGES = {"distances": (0.0, 2.0), "similarities": (-1.0, 1.0)}


class Loss(NamedTuple):
    """A loss, the oracle of its rows, what its matrix holds, and parameters to test it at.

    `positive` names the parameters that must be above 0. `constants` gives the matrix, if any, that
    the derivative takes for constant.
    """

    name: str
    oracle: Callable
    needs: str
    params: dict
    positive: tuple = ()
    constants: Callable | None = None

    def __call__(self, *args, **kwargs):
        return getattr(aa, self.name)(*args, **(self.params | kwargs))

    def rows(self, matrix, relevance, where=None, **params):
        """The values per row, compiled once per shape for the whole file."""
        return compiled_rows(self.name)(matrix, relevance, where, self.params | params)

    def value_and_gradients(self, matrix, relevance, where=None, **params):
        """The mean and its gradients in the matrix and in the parameters, compiled likewise."""
        value, (in_matrix, in_params) = compiled_gradients(self.name)(
            matrix, relevance, where, self.params | params
        )
        return value, in_matrix, in_params

    def gradient(self, *args):
        return self.value_and_gradients(*args)[1]

    def expected(self, matrix, relevance, where=None, **params):
        return oracles.by_row(self.oracle, matrix, relevance, where, **(self.params | params))

    def around(self, matrix, relevance, where=None, **params):
        """The mean as a function of matrix and parameters that is to have the loss's derivative."""
        constants = None
        if self.constants:
            constants = self.constants(matrix, relevance, **(self.params | params))

        def expected(moved=matrix, **moved_params):
            both = self.params | params | moved_params
            rows = oracles.by_row(self.oracle, moved, relevance, where, constants, **both)
            return rows.mean()

        return expected

    def case(self, seed, n=6, m=7):
        matrix, relevance, where = oracles.pair_case(seed, n, m, *RANGES[self.needs])
        return jnp.asarray(matrix, jnp.float32), jnp.asarray(relevance), jnp.asarray(where)

    def degenerate(self):
        matrix, relevance, where = oracles.degenerate_case(11, *RANGES[self.needs])
        return jnp.asarray(matrix, jnp.float32), jnp.asarray(relevance), jnp.asarray(where)


LOSSES = (
    Loss("contrastive_loss", oracles.contrastive_row, "distances", {"margin": 0.8}),
    Loss("triplet_loss", oracles.triplet_row, "distances", {"margin": 0.4}),
    Loss("semihard_triplet_loss", oracles.semihard_triplet_row, "distances", {"margin": 0.4}),
    Loss("hard_triplet_loss", oracles.hard_triplet_row, "distances", {"margin": 0.4}),
    Loss("margin_loss", oracles.margin_row, "distances", {"margin": 0.3, "beta": 0.9}),
    Loss("lifted_structure_loss", oracles.lifted_structure_row, "distances", {"margin": 0.4}),
    Loss("ntxent_loss", oracles.ntxent_row, "similarities", {"temperature": 0.3}, ("temperature",)),
    Loss("supcon_loss", oracles.supcon_row, "similarities", {"temperature": 0.3}, ("temperature",)),
    Loss(
        "multi_similarity_loss",
        oracles.multi_similarity_row,
        "similarities",
        {"alpha": 2.0, "beta": 10.0, "base": 0.3},
        ("alpha", "beta"),
    ),
    Loss(
        "proxy_anchor_loss",
        oracles.proxy_anchor_row,
        "similarities",
        {"margin": 0.2, "alpha": 8.0},
        ("alpha",),
    ),
    Loss(
        "circle_loss",
        oracles.circle_row,
        "similarities",
        {"margin": 0.3, "gamma": 8.0},
        ("gamma",),
        lambda s, relevance, *, margin, gamma: oracles.circle_weights(s, relevance, margin=margin),
    ),
    Loss(
        "sigmoid_loss",
        oracles.sigmoid_row,
        "similarities",
        {"temperature": 0.3, "bias": -0.5},
        ("temperature",),
    ),
    Loss(
        "cosface_loss",
        oracles.cosface_row,
        "similarities",
        {"margin": 0.2, "scale": 4.0},
        ("scale",),
    ),
    Loss(
        "arcface_loss",
        oracles.arcface_row,
        "similarities",
        {"margin": 0.4, "scale": 4.0},
        ("scale",),
    ),
    Loss(
        "smooth_ap_loss",
        oracles.smooth_ap_row,
        "similarities",
        {"temperature": 0.2},
        ("temperature",),
    ),
)

MADE_IN_LOOPS = ("triplet_loss", "smooth_ap_loss")


@functools.cache
def compiled_rows(name):
    function = getattr(aa, name)
    return jax.jit(lambda x, r, w, params: function(x, r, where=w, reduce_fn=None, **params))


@functools.cache
def compiled_gradients(name):
    function = getattr(aa, name)
    return jax.jit(
        jax.value_and_grad(lambda x, r, w, params: function(x, r, where=w, **params), (0, 3))
    )


@pytest.fixture(params=LOSSES, ids=lambda loss: loss.name)
def loss(request):
    return request.param


def close(actual, expected, rtol=1e-5, atol=1e-6):
    np.testing.assert_allclose(np.asarray(actual, np.float64), expected, rtol=rtol, atol=atol)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("masked", [False, True])
def test_each_row_equals_the_float64_loop(loss, seed, masked):
    matrix, relevance, where = loss.case(seed)
    where = where if masked else None
    expected = loss.expected(matrix, relevance, where)
    assert np.count_nonzero(expected) >= 3  # the case has something to get wrong
    close(loss.rows(matrix, relevance, where), expected)


@pytest.mark.parametrize("factor", [-0.5, 0.0, 0.5, 2.0, 4.0])
def test_parameters_reach_the_formula(loss, factor):
    matrix, relevance, where = loss.case(3)
    for name, value in loss.params.items():
        changed = {name: value * (0.25 + abs(factor) if name in loss.positive else factor)}
        expected = loss.expected(matrix, relevance, where, **changed)
        close(loss.rows(matrix, relevance, where, **changed), expected)


@hypothesis.settings(max_examples=60, deadline=None, database=None, derandomize=True)
@hypothesis.given(data=st.data())
@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.name)
def test_any_mask_and_any_ties_equal_the_float64_loop(loss, data):
    low, high = RANGES[loss.needs]
    eighths = st.integers(int(low * 8), int(high * 8))
    matrix = data.draw(hnp.arrays(np.int32, (3, 6), elements=eighths)) / np.float32(8)
    relevance, where = (data.draw(hnp.arrays(np.bool_, (3, 6))) for _ in range(2))
    actual = loss.rows(matrix, relevance, where)
    close(actual, loss.expected(matrix, relevance, where))


def test_default_reduction_is_the_mean_over_all_rows_with_empty_ones_in_it(loss):
    matrix, relevance, where = loss.degenerate()
    expected = loss.expected(matrix, relevance, where)
    assert 0 < np.count_nonzero(expected) < len(expected)
    mean = loss(matrix, relevance, where=where)
    assert mean.shape == ()
    close(mean, expected.sum() / 6)
    close(loss(matrix, relevance, where=where, reduce_fn=jnp.max), expected.max())
    close(loss.rows(matrix, relevance, where), expected)


def test_rows_with_nothing_to_compare_have_finite_gradients(loss):
    _, in_matrix, in_params = loss.value_and_gradients(*loss.degenerate())
    assert np.all(np.isfinite(in_matrix)) and np.all(np.isfinite(list(in_params.values())))
    assert np.any(in_matrix[0])
    assert not np.any(in_matrix[5])  # everything is excluded


@pytest.mark.parametrize("garbage", [np.nan, np.inf, -np.inf, 3e38])
def test_excluded_entries_reach_neither_value_nor_gradient(loss, garbage):
    matrix, relevance, where = loss.case(5)
    spoiled = jnp.where(where, matrix, garbage)
    value, gradient, slopes = loss.value_and_gradients(spoiled, relevance, where)
    clean_value, clean_gradient, clean_slopes = loss.value_and_gradients(matrix, relevance, where)
    close(value, float(clean_value))
    close(gradient, np.asarray(clean_gradient))
    close(list(slopes.values()), list(clean_slopes.values()))
    assert np.any(gradient) and not np.any(np.asarray(gradient)[~np.asarray(where)])


def test_excluded_entries_reach_no_derivative_in_forward_mode(loss):
    matrix, relevance, where = loss.case(5)
    tangent = jnp.asarray(np.random.default_rng(5).normal(size=matrix.shape), jnp.float32)
    forward = jax.jit(
        lambda x, t: jax.jvp(lambda x: loss(x, relevance, where=where), (x,), (t,))[1]
    )
    clean = forward(matrix, tangent)
    spoiled = forward(*(jnp.where(where, x, jnp.nan) for x in (matrix, tangent)))
    close(spoiled, float(clean))
    assert float(clean) != 0


def test_nan_in_a_compared_entry_shows_in_its_row_alone(loss):
    matrix, relevance, where = loss.case(6)
    for i, relevant in ((1, True), (3, False)):
        j = np.flatnonzero(np.asarray(where[i]) & (np.asarray(relevance[i]) == relevant))[0]
        rows = loss.rows(matrix.at[i, j].set(jnp.nan), relevance, where)
        np.testing.assert_array_equal(np.isnan(rows), np.arange(6) == i)


def test_order_of_rows_and_columns_does_not_matter(loss):
    matrix, relevance, where = loss.case(7)
    rows, columns = np.array([3, 0, 5, 4, 1, 2]), np.array([5, 2, 0, 6, 1, 4, 3])
    take = np.ix_(rows, columns)
    shuffled = (matrix[take], relevance[take], where[take])
    close(loss.rows(*shuffled), np.asarray(loss.rows(matrix, relevance, where))[rows])
    close(loss.gradient(*shuffled), np.asarray(loss.gradient(matrix, relevance, where))[take])


def test_rows_never_look_at_each_other(loss):
    matrix, relevance, where = loss.case(8)
    jacobian = jax.jit(jax.jacrev(lambda x: loss(x, relevance, where=where, reduce_fn=None)))(
        matrix
    )
    for i in range(6):
        assert not np.any(np.delete(np.asarray(jacobian[i]), i, axis=0))
    assert np.any(jacobian)


def test_gradients_in_matrix_and_parameters_equal_finite_differences(loss):
    with oracles.x64():
        matrix, relevance, where = oracles.pair_case(9, 6, 7, *RANGES[loss.needs])
        around = loss.around(matrix, relevance, where)
        _, gradient, slopes = loss.value_and_gradients(matrix, relevance, where)
        for name, number in loss.params.items():
            numeric = oracles.finite_difference(lambda x, name=name: around(**{name: x}), number)
            close(slopes[name], numeric, rtol=1e-6)
            assert numeric != 0
        tangent = np.random.default_rng(10).normal(size=matrix.shape)
        numeric = oracles.finite_difference(lambda t: around(matrix + t * tangent), 0.0)
        close(jnp.sum(gradient * tangent), numeric, rtol=1e-6)
        primals = matrix, {name: jnp.float64(number) for name, number in loss.params.items()}
        tangents = tangent, {name: jnp.float64(0.5) for name in loss.params}
        forward = jax.jit(
            lambda *args: jax.jvp(lambda x, p: loss(x, relevance, where=where, **p), *args)[1]
        )(primals, tangents)
        close(forward, numeric + 0.5 * sum(map(float, slopes.values())), rtol=1e-6)


def test_jit_and_checkpoint_change_nothing(loss):
    matrix, relevance, where = loss.case(12)
    value, gradient, _ = loss.value_and_gradients(matrix, relevance, where)
    close(loss(matrix, relevance, where=where), float(value))
    again = jax.jit(jax.grad(jax.checkpoint(lambda x: loss(x, relevance, where=where))))(matrix)
    close(again, np.asarray(gradient))
    assert np.any(gradient)


def sharded_by_shard_map(loss, num_devices):
    mesh = jax.make_mesh((num_devices,), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.sharding.PartitionSpec("rows")

    def mean(matrix, relevance, where):
        return jax.lax.pmean(loss(matrix, relevance, where=where), "rows")

    return jax.shard_map(
        jax.value_and_grad(mean),
        mesh=mesh,
        in_specs=(rows, rows, rows),
        out_specs=(jax.sharding.PartitionSpec(), rows),
    )


def test_rows_may_be_sharded_by_shard_map(loss):
    # What shard_map refuses it refuses while tracing.
    arrays = loss.case(24)
    value, gradient = jax.eval_shape(sharded_by_shard_map(loss, 2), *arrays)
    assert (value.shape, gradient.shape) == ((), arrays[0].shape)


@pytest.mark.parametrize(
    "loss",
    [
        pytest.param(x, id=x.name, marks=() if x.name in MADE_IN_LOOPS else pytest.mark.full)
        for x in LOSSES
    ],
)
def test_values_and_gradients_by_shard_map_are_those_of_all_rows(loss):
    arrays = loss.case(24)
    value, gradient = jax.jit(sharded_by_shard_map(loss, 2))(*arrays)
    close(value, loss.expected(*arrays).mean())
    close(gradient, np.asarray(loss.gradient(*arrays)))


COMPILED = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, seconds, **_: COMPILED.append(event) if "backend_compile" in event else None
)


def test_plain_calls_compile_once(loss):
    matrix, relevance, where = loss.case(23)
    loss(matrix, relevance, where=where)
    jax.grad(loss)(matrix, relevance)
    after = len(COMPILED)
    loss(matrix, relevance, where=where)
    jax.grad(loss)(matrix, relevance)
    assert len(COMPILED) == after > 0


def test_vmap_over_batches_equals_a_loop(loss):
    cases = [loss.case(seed) for seed in (13, 14, 15)]
    batch = [jnp.stack(part) for part in zip(*cases, strict=True)]
    run = jax.value_and_grad(lambda x, r, w: loss(x, r, where=w))
    values, gradients = jax.jit(jax.vmap(run))(*batch)
    for case, value, gradient in zip(cases, values, gradients, strict=True):
        close(value, loss.expected(*case).mean())
        close(gradient, np.asarray(loss.gradient(*case)))


def test_parameters_can_be_a_vmap_axis(loss):
    matrix, relevance, where = loss.case(16)
    numbers = {name: np.float32(number) for name, number in loss.params.items()}
    sweep = [
        (name, numbers | {name: np.float32(factor * number)})
        for name, number in loss.params.items()
        for factor in (0.5, 1.0, 1.5, 2.0)
    ]
    batch = jax.tree.map(lambda *values: jnp.stack(values), *(params for _, params in sweep))
    run = jax.value_and_grad(lambda params: loss(matrix, relevance, where=where, **params))
    values, slopes = jax.jit(jax.vmap(run))(batch)
    for i, (name, params) in enumerate(sweep):
        params = {key: float(value) for key, value in params.items()}
        around = loss.around(matrix, relevance, where, **params)
        close(values[i], around())
        numeric = oracles.finite_difference(
            lambda y, name=name, around=around: around(**{name: y}), params[name]
        )
        close(slopes[name][i], numeric, rtol=1e-4)


def test_bfloat16_is_computed_in_float32(loss):
    matrix, relevance, where = loss.case(17)
    matrix = matrix.astype(jnp.bfloat16)
    rows = loss.rows(matrix, relevance, where)
    assert rows.dtype == jnp.float32
    close(rows, loss.expected(matrix, relevance, where))
    assert jax.eval_shape(jax.grad(loss), matrix, relevance).dtype == jnp.bfloat16


def test_float64_stays_float64_and_float32_stays_float32(loss):
    with oracles.x64():
        matrix, relevance, where = oracles.pair_case(9, 6, 7, *RANGES[loss.needs])
        value, gradient, _ = loss.value_and_gradients(matrix, relevance, where)
        assert (value.dtype, gradient.dtype) == (jnp.float64, jnp.float64)
        close(value, loss.expected(matrix, relevance, where).mean(), rtol=1e-13, atol=0)
        single = matrix.astype(np.float32)
        assert jax.eval_shape(loss, single, relevance).dtype == jnp.float32
        assert jax.eval_shape(jax.grad(loss), single, relevance).dtype == jnp.float32


def test_relevance_and_where_may_be_integers_and_numpy(loss):
    matrix, relevance, where = (np.asarray(part) for part in loss.case(19))
    expected = loss.expected(matrix, relevance, where)
    relevance, where = relevance.astype(np.int32), where.astype(np.uint8)
    close(loss(matrix, relevance, where=where, reduce_fn=None), expected)


def test_few_rows_or_columns_or_none(loss):
    matrix, relevance, _ = oracles.pair_case(20, 4, 4, *RANGES[loss.needs])
    cases = [
        (matrix[:n, :m].astype(np.float32), relevance[:n, :m])
        for n, m in [(4, 0), (0, 4), (0, 0), (1, 4), (4, 1)]
    ]
    results = jax.jit(lambda cases: [loss(x, r, reduce_fn=None) for x, r in cases])(cases)
    for case, rows in zip(cases, results, strict=True):
        assert rows.shape == case[0].shape[:1]
        close(rows, loss.expected(*case))


@pytest.mark.parametrize(
    ("matrix", "relevance", "where"),
    [
        ((5, 7), (5, 6), None),
        ((5, 7), (7, 5), None),
        ((5, 7), (5, 1), None),
        ((5, 7), (7,), None),
        ((5, 7), (5, 7), (5, 6)),
        ((5, 7), (5, 7), (1, 7)),
        ((7,), (7,), None),
        ((2, 5, 7), (2, 5, 7), None),
    ],
)
def test_shapes_that_do_not_fit_raise_an_error_that_prints_them(loss, matrix, relevance, where):
    shapes = [shape for shape in (matrix, relevance, where) if shape is not None]
    arrays = [jnp.zeros(matrix), jnp.ones(relevance, bool)]
    mask = None if where is None else jnp.ones(where, bool)
    with pytest.raises(ValueError) as error:
        loss(*arrays, where=mask)
    wrong = shapes if len(set(shapes)) == 1 else [matrix, next(s for s in shapes if s != matrix)]
    assert all(str(shape) in str(error.value) for shape in wrong)


def test_masks_that_are_not_boolean_or_integer_raise(loss):
    matrix, relevance, where = loss.case(21)
    with pytest.raises(ValueError):
        loss(matrix, relevance.astype(jnp.float32))
    with pytest.raises(ValueError):
        loss(matrix, relevance, where=where.astype(jnp.float32))


FORMS = (float, np.float32, np.float64, np.asarray, lambda x: jnp.asarray(x, jnp.float32))


@pytest.mark.parametrize("form", FORMS, ids=["float", "float32", "float64", "array", "jax"])
def test_parameters_that_cannot_be_are_refused_by_name(loss, form):
    matrix, relevance, _ = loss.case(25)
    for name in loss.params:
        for value in (np.nan, np.inf, -np.inf):
            with pytest.raises(ValueError, match=rf"{name} must be .*; got -?(nan|inf)"):
                loss(matrix, relevance, **{name: form(value)})
        if name in loss.positive:
            for value in (0.0, -0.0, -0.25):
                with pytest.raises(ValueError, match=rf"{name} must be above 0; got {value}"):
                    loss(matrix, relevance, **{name: form(value)})
        else:
            assert np.isfinite(loss(matrix, relevance, **{name: form(-0.25)}))


@pytest.mark.parametrize("value", [True, np.bool_(True), "0.3", None, 0.3j, [0.3], np.ones(1)])
def test_parameters_that_are_no_real_scalar_are_refused_by_name(loss, value):
    matrix, relevance, _ = loss.case(25)
    for name in loss.params:
        with pytest.raises(ValueError, match=rf"{name} must be a (real number|scalar)"):
            loss(matrix, relevance, **{name: value})


def test_parameters_that_float32_cannot_hold_are_refused(loss):
    matrix, relevance, _ = loss.case(25)
    for name in loss.params:
        with pytest.raises(ValueError, match=rf"{name} must be finite; got 1e\+39, which float32"):
            loss(matrix, relevance, **{name: 1e39})
        if name in loss.positive:  # 1e-40 is held, but CPUs divide by 0 instead
            for value in (1e-40, 1e-50):
                with pytest.raises(ValueError, match=r"above 0; got .*, which float32 holds as 0"):
                    loss(matrix, relevance, **{name: value})


def test_parameters_may_be_integers_and_traced_ones_are_not_checked(loss):
    matrix, relevance, where = loss.case(25)
    for name in loss.params:
        expected = loss.expected(matrix, relevance, where, **{name: 2.0}).mean()
        for value in (2, np.int64(2), np.float16(2), jnp.int32(2)):
            close(loss(matrix, relevance, where=where, **{name: value}), expected)
        close(loss.rows(matrix, relevance, where, **{name: 2.0}).mean(), expected)
        loss.rows(matrix, relevance, where, **{name: jnp.nan})


@pytest.mark.parametrize("wrong", [2, -1])
def test_masks_of_other_integers_than_zero_and_one_are_refused_where_known(loss, wrong):
    matrix, relevance, where = loss.case(26)
    mask = np.asarray(relevance, np.int32)
    i, j = np.argwhere(mask)[-1]
    spoiled = mask.copy()
    spoiled[i, j] = wrong
    message = rf"relevance of shape \(6, 7\) must hold 0 and 1 alone; got {wrong} at \[{i}, {j}\]"
    for form in (np.asarray, jnp.asarray, np.ndarray.tolist):
        with pytest.raises(ValueError, match=message):
            loss(matrix, form(spoiled))
        with pytest.raises(ValueError, match=message.replace("relevance", "where")):
            loss(matrix, relevance, where=form(spoiled))
        close(loss(matrix, form(mask), where=where), float(loss(matrix, relevance, where=where)))
    with pytest.raises(ValueError, match="relevance of shape"):  # JAX would cut it to 0
        loss(matrix, np.where(mask, 2**32, 0))
    jax.eval_shape(loss.__call__, matrix, spoiled)


@pytest.mark.parametrize("everything", [False, True])
def test_an_infinitely_far_negative_is_the_limit_of_far_ones(loss, everything):
    matrix, relevance, where = (np.array(part) for part in loss.case(29))
    far, infinite = (100, np.inf) if loss.needs == "distances" else (-1e3, -np.inf)
    negatives = where & ~relevance
    assert np.all(negatives.sum(axis=1) >= 2) and np.all((where & relevance).any(axis=1))
    entries = negatives if everything else negatives & (np.cumsum(negatives, axis=1) == 1)
    results = [
        loss.value_and_gradients(np.where(entries, value, matrix), relevance, where)
        for value in (infinite, far)
    ]
    for actual, expected in zip(*map(jax.tree.leaves, results), strict=True):
        close(actual, np.asarray(expected))
    gradient = np.asarray(results[0][1])
    assert not np.any(gradient[entries])
    rows = loss.rows(np.where(entries, infinite, matrix), relevance, where)
    expected = loss.expected(np.where(entries, far, matrix), relevance, where)
    close(rows, expected)
    assert everything or np.count_nonzero(expected) >= 3


@pytest.mark.parametrize("loss", LOSSES[:-1], ids=lambda loss: loss.name)
def test_an_infinitely_far_positive_makes_its_row_infinite(loss):
    matrix, relevance, where = (np.array(part) for part in loss.case(28))
    j = np.flatnonzero(where[2] & relevance[2])[0]
    expected = np.array(loss.rows(matrix, relevance, where))
    matrix[2, j] = np.inf if loss.needs == "distances" else -np.inf
    expected[2] = np.inf
    close(loss.rows(matrix, relevance, where), expected)
