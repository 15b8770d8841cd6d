"""The towers: what they compute, and dropout that does not depend on how rows are laid out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aadml_jax.models import LabelSpaceTower, RowDropout, TwoTowers

RNG = np.random.default_rng(0)


def drop(inputs, rows, *, rate=0.1, seed=0):
    return np.asarray(
        RowDropout(rate).apply(
            {}, jnp.asarray(inputs), jnp.asarray(rows), train=True, rngs={"dropout": key(seed)}
        )
    )


def key(seed):
    return jax.random.key(seed)


def test_tower_is_tanh_layers_and_a_linear_output():
    tower = LabelSpaceTower(num_classes=3, hidden_sizes=(5, 4))
    features = RNG.normal(size=(7, 6)).astype(np.float32)
    params = tower.init(key(0), features)["params"]
    params = jax.tree.map(lambda leaf: leaf + 0.1, params)  # biases start at 0 and would not show
    hidden = features.astype(np.float64)
    for name in ("hidden_0", "hidden_1"):
        layer = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params[name])
        hidden = np.tanh(hidden @ layer["kernel"] + layer["bias"])
    expected = hidden @ np.asarray(params["label_space"]["kernel"], np.float64)
    expected += np.asarray(params["label_space"]["bias"], np.float64)
    np.testing.assert_allclose(tower.apply({"params": params}, features), expected, rtol=1e-5)


def test_default_tower_has_three_hidden_layers_of_1024():
    shapes = jax.eval_shape(LabelSpaceTower(10).init, key(0), jnp.zeros((1, 128)))["params"]
    kernels = {name: layer["kernel"].shape for name, layer in shapes.items()}
    assert kernels == {
        "hidden_0": (128, 1024),
        "hidden_1": (1024, 1024),
        "hidden_2": (1024, 1024),
        "label_space": (1024, 10),
    }


def test_bfloat16_towers_keep_float32_parameters_and_outputs():
    towers = TwoTowers(num_classes=3, hidden_sizes=(8,), dtype=jnp.bfloat16)
    audio, visual = RNG.normal(size=(4, 5)), RNG.normal(size=(4, 6))
    params = towers.init(key(0), audio, visual)["params"]
    outputs = towers.apply({"params": params}, audio, visual)
    assert {leaf.dtype for leaf in jax.tree.leaves((params, outputs))} == {jnp.dtype("float32")}
    exact = towers.clone(dtype=jnp.float32).apply({"params": params}, audio, visual)
    difference = np.abs(outputs[0] - exact[0]).max()
    assert 0 < difference < 0.05


def test_towers_share_nothing():
    towers = TwoTowers(num_classes=3, hidden_sizes=(8,))
    audio, visual = RNG.normal(size=(4, 5)), RNG.normal(size=(4, 5))
    params = towers.init(key(0), audio, visual)["params"]
    assert set(params) == {"audio", "visual"}
    gradient = jax.grad(lambda p: towers.apply({"params": p}, audio, visual)[0].sum())(params)
    assert all(np.any(leaf) for leaf in jax.tree.leaves(gradient["audio"]))
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradient["visual"]))
    assert not np.allclose(*towers.apply({"params": params}, audio, audio))


def test_dropout_mask_of_a_row_does_not_depend_on_the_other_rows():
    inputs = np.ones((6, 33), np.float32)
    rows = np.arange(6)
    whole = drop(inputs, rows)
    np.testing.assert_array_equal(drop(inputs[3:], rows[3:]), whole[3:])
    np.testing.assert_array_equal(drop(inputs, rows[::-1].copy()), whole[::-1])
    assert len({row.tobytes() for row in whole}) == 6


@pytest.mark.parametrize("width", [400, 401])
def test_dropout_rate_and_scale(width):
    outputs = drop(np.ones((250, width), np.float32), np.arange(250))
    dropped = outputs == 0
    count = dropped.size
    # Five standard deviations of a binomial share.
    assert abs(dropped.mean() - 0.1) < 5 * np.sqrt(0.1 * 0.9 / count)
    # 0.1 is rounded to 6,554 of 65,536 levels, and the survivors scaled by that rate.
    np.testing.assert_allclose(outputs[~dropped], 65536 / (65536 - 6554), rtol=1e-6)


def test_units_that_share_a_random_word_are_dropped_independently():
    dropped = drop(np.ones((2000, 200), np.float32), np.arange(2000), rate=0.3) == 0
    pairs = dropped.reshape(-1, 2)
    both = np.mean(pairs[:, 0] & pairs[:, 1])
    assert abs(both - 0.09) < 5 * np.sqrt(0.09 * 0.91 / len(pairs))
    by_column = dropped.mean(axis=0)
    assert np.abs(by_column - 0.3).max() < 5.5 * np.sqrt(0.3 * 0.7 / 2000)


def test_dropout_is_off_in_evaluation_and_at_rate_0():
    inputs = RNG.normal(size=(3, 4)).astype(np.float32)
    rows = np.arange(3)
    np.testing.assert_array_equal(drop(inputs, rows, rate=0.0), inputs)
    np.testing.assert_array_equal(RowDropout(0.5).apply({}, inputs, rows, train=False), inputs)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
@pytest.mark.parametrize("rate", [0.1, 0.003, 0.7])
def test_the_expected_output_is_the_input_in_any_dtype(dtype, rate):
    values = np.array([1.0, -1.0, 0.7, 0.111, -0.9, 3.3e-3], np.float32)
    values = np.asarray(jnp.asarray(values, dtype), np.float64)
    inputs = jnp.asarray(np.broadcast_to(np.repeat(values, 300), (1000, 1800)), dtype)
    outputs = drop(inputs, np.arange(1000), rate=rate)
    assert outputs.dtype == dtype
    outputs = outputs.astype(np.float64).reshape(1000, 6, 300)
    means = outputs.mean(axis=(0, 2)) / values
    # Five standard deviations of the mean of 300,000 survivals, times 1 / (1 − rate).
    np.testing.assert_allclose(means, 1, atol=5 * np.sqrt(rate / (1 - rate) / 300_000))
    # Among the survivors alone, the rounding shows: to the nearest, it is up to 0.2 % in bfloat16.
    kept = np.array([outputs[:, i][outputs[:, i] != 0].mean() for i in range(6)]) / values
    dropped = round(rate * 65536)
    np.testing.assert_allclose(kept, 65536 / (65536 - dropped), rtol=1e-4)


def test_survivors_are_the_neighbours_of_the_exact_product():
    value = float(jnp.bfloat16(0.7))  # 0.69921875
    outputs = drop(jnp.full((100, 64), 0.7, jnp.bfloat16), np.arange(100))
    exact = value * 65536 / (65536 - 6554)  # 0.7769, between 199/256 and 198/256 · …
    survivors = set(outputs[outputs != 0].astype(float).tolist())
    assert survivors == {np.floor(exact * 256) / 256, np.ceil(exact * 256) / 256}


def test_dropout_has_its_scale_as_derivative_in_bfloat16():
    def total(x):
        rngs = {"dropout": key(0)}
        return RowDropout(0.1).apply({}, x, jnp.arange(8), train=True, rngs=rngs).sum()

    inputs = jnp.full((8, 50), 0.7, jnp.bfloat16)
    gradient = np.asarray(jax.grad(total)(inputs), np.float64)
    dropped = drop(inputs, np.arange(8)) == 0
    np.testing.assert_array_equal(gradient == 0, dropped)
    np.testing.assert_allclose(gradient[~dropped], 65536 / (65536 - 6554), rtol=2**-8)


@pytest.mark.parametrize("rate", [-0.1, 1, 1.5, np.nan, np.float32(1), "0.1", True])
def test_rates_that_cannot_be_are_refused_at_once(rate):
    with pytest.raises(ValueError, match="rate must be"):
        RowDropout(rate)
    for module in (LabelSpaceTower, TwoTowers):
        with pytest.raises(ValueError, match="dropout_rate must be"):
            module(num_classes=3, dropout_rate=rate)


@pytest.mark.parametrize("module", [LabelSpaceTower, TwoTowers])
@pytest.mark.parametrize("size", [0, -1, 2.5, True])
def test_sizes_that_cannot_be_are_refused_at_once(module, size):
    with pytest.raises(ValueError, match="num_classes must be an integer of at least 1; got"):
        module(num_classes=size)
    with pytest.raises(ValueError, match=r"each of hidden_sizes=\(8, .*\) must be an integer"):
        module(num_classes=3, hidden_sizes=(8, size))


def test_the_highest_rate_keeps_a_finite_scale():
    outputs = drop(np.ones((50, 64), np.float32), np.arange(50), rate=0.999999)
    assert np.isfinite(outputs).all()


def test_dropout_differs_between_keys_layers_and_modalities():
    ones = np.ones((2, 64), np.float32)
    assert not np.array_equal(drop(ones, [0, 1], seed=0), drop(ones, [0, 1], seed=1))
    towers = TwoTowers(num_classes=64, hidden_sizes=(64, 64), dropout_rate=0.5)
    params = towers.init(key(0), ones, ones)["params"]
    _, state = towers.apply(
        {"params": params},
        ones,
        ones,
        train=True,
        rngs={"dropout": key(1)},
        capture_intermediates=lambda module, _: isinstance(module, RowDropout),
        mutable=["intermediates"],
    )
    masks = [np.asarray(leaf) == 0 for leaf in jax.tree.leaves(state["intermediates"])]
    assert len(masks) == 4
    assert len({mask.tobytes() for mask in masks}) == 4


def test_a_batch_in_two_parts_equals_the_whole_batch():
    towers = TwoTowers(num_classes=3, hidden_sizes=(16, 16), dropout_rate=0.3)
    audio, visual = RNG.normal(size=(6, 5)), RNG.normal(size=(6, 4))
    params = towers.init(key(0), audio, visual)["params"]

    def project(part):
        rows = jnp.arange(6, dtype=jnp.int32)[part]
        return towers.apply(
            {"params": params},
            audio[part],
            visual[part],
            train=True,
            rows=rows,
            rngs={"dropout": key(2)},
        )

    whole = project(slice(None))
    parts = [project(slice(0, 2)), project(slice(2, 6))]
    for modality in range(2):
        joined = np.concatenate([part[modality] for part in parts])
        np.testing.assert_allclose(joined, whole[modality], rtol=1e-5, atol=1e-6)
