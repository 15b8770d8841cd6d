"""The towers: what they compute, and dropout that does not depend on how rows are laid out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aadml_jax import models
from aadml_jax.models import (
    LabelSpaceTower,
    TwoTowers,
    draw_levels,
    drop_units,
    paired_outputs,
)
from aadml_jax.training.config import RecipeConfig
from aadml_jax.training.paired_state import pair_params
from aadml_jax.training.state import build_model

RNG = np.random.default_rng(0)


def drop(inputs, rows, *, rate=0.1, seed=0):
    inputs = jnp.asarray(inputs)
    return np.asarray(drop_units(inputs, draw_levels(key(seed), rows, inputs.shape[1]), rate))


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


@pytest.mark.parametrize("paired", [False, True])
def test_precision_is_that_of_every_product_of_the_towers(paired):
    recipe = RecipeConfig(hidden_sizes=(8, 8), precision="float32_high")
    towers = build_model(recipe, 3)
    audio, visual = RNG.normal(size=(2, 4, 5)).astype(np.float32)
    params = towers.init(key(0), audio, visual)["params"]

    def total(params):
        if paired:
            outputs = paired_outputs(
                towers, params, audio, visual, rows=np.arange(4), dropout_key=key(1)
            )
        else:
            outputs = towers.apply({"params": params}, audio, visual)
        return sum(x.sum() for x in outputs)

    text = str(jax.make_jaxpr(jax.grad(total))(pair_params(params) if paired else params))
    # forward and for the gradient of a kernel, on GPUs and elsewhere
    products = text.count(" dot_general[")
    assert products >= (3 if paired else 6) * 2 * 2
    assert text.count("precision=(Precision.HIGH, Precision.HIGH)") == products / 2
    assert text.count("precision=TF32_TF32_F32_X3") == products / 2


def test_a_precision_by_name_is_refused():
    with pytest.raises(ValueError, match=r"jax\.lax\.Precision or None; got 'high'"):
        TwoTowers(num_classes=3, precision="high")


def test_three_products_of_bfloat16_differ_from_one_of_float32_by_the_stated_error():
    def high_and_rest(x):
        high = np.asarray(jnp.asarray(x).astype(jnp.bfloat16).astype(jnp.float32))
        rest = np.asarray(jnp.asarray(x - high).astype(jnp.bfloat16), np.float64)
        return high.astype(np.float64), rest

    x, y = RNG.normal(size=(2, 10_000)).astype(np.float32)
    (h, r), (g, s) = high_and_rest(x), high_and_rest(y)
    exact = x.astype(np.float64) * y
    error = np.abs((h * g + h * s + r * g) / exact - 1).max()
    assert 2**-18 < error < 3 * 2**-16


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
    towers = TwoTowers(num_classes=3, hidden_sizes=(8,), dropout_rate=0.9)
    params = towers.init(key(0), inputs, inputs)["params"]
    evaluated = towers.apply({"params": params}, inputs, inputs)
    without = towers.clone(dropout_rate=0.0).apply({"params": params}, inputs, inputs, train=True)
    for side, expected in zip(evaluated, without, strict=True):
        np.testing.assert_array_equal(side, expected)


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
        return drop_units(x, draw_levels(key(0), np.arange(8), x.shape[1]), 0.1).sum()

    inputs = jnp.full((8, 50), 0.7, jnp.bfloat16)
    gradient = np.asarray(jax.grad(total)(inputs), np.float64)
    dropped = drop(inputs, np.arange(8)) == 0
    np.testing.assert_array_equal(gradient == 0, dropped)
    np.testing.assert_allclose(gradient[~dropped], 65536 / (65536 - 6554), rtol=2**-8)


@pytest.mark.parametrize("rate", [-0.1, 1, 1.5, np.nan, np.float32(1), "0.1", True])
def test_rates_that_cannot_be_are_refused_at_once(rate):
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


def test_dropout_differs_between_keys_layers_and_modalities(monkeypatch):
    ones = np.ones((2, 64), np.float32)
    assert not np.array_equal(drop(ones, [0, 1], seed=0), drop(ones, [0, 1], seed=1))
    towers = TwoTowers(num_classes=64, hidden_sizes=(64, 64), dropout_rate=0.5)
    params = towers.init(key(0), ones, ones)["params"]
    drawn = []

    def note(inputs, levels, rate):
        drawn.append(np.asarray(levels))
        return drop_units(inputs, levels, rate)

    monkeypatch.setattr(models, "drop_units", note)
    towers.apply({"params": params}, ones, ones, train=True, rngs={"dropout": key(1)})
    assert [levels.shape for levels in drawn] == [(2, 64)] * 4
    # A number of 2¹⁶ is rarely in the same place twice.
    for number, levels in enumerate(drawn):
        for other in drawn[:number]:
            assert np.mean(levels == other) < 0.05


def threefry(key_words, counters):
    """The hash of Salmon et al., SC 2011, with 20 rounds of two words, on Python's integers."""
    rotations = [(13, 15, 26, 6), (17, 29, 16, 24)]
    keys = [*key_words, key_words[0] ^ key_words[1] ^ 0x1BD11BDA]
    x, y = ((counter + word) % 2**32 for counter, word in zip(counters, key_words, strict=True))
    for group in range(5):
        for rotation in rotations[group % 2]:
            x = (x + y) % 2**32
            y = ((y << rotation | y >> 32 - rotation) % 2**32) ^ x
        x = (x + keys[(group + 1) % 3]) % 2**32
        y = (y + keys[(group + 2) % 3] + group + 1) % 2**32
    return x, y


@pytest.mark.parametrize("width", [1, 4, 10])
def test_levels_are_the_halves_of_the_hash_of_row_and_column(width):
    words = [int(word) for word in jax.random.key_data(key(5))]
    rows, count = [7, 0, 2**31 - 1], -(-width // 4)
    levels = np.asarray(draw_levels(key(5), np.array(rows, np.int32), width))
    for row, of_row in zip(rows, levels.tolist(), strict=True):
        hashes = [threefry(words, (row, column)) for column in range(count)]
        low_and_high = [(word % 2**16, word >> 16) for pair in hashes for word in pair]
        # First all low halves of the first words, then all their high halves, …
        by_half = [low_and_high[k::2] for k in (0, 1)]
        expected = [halves[k] for group in by_half for k in (0, 1) for halves in group]
        assert of_row == expected[:width]


def test_a_key_of_another_generator_seeds_the_levels():
    keys = [jax.random.key(seed, impl="rbg") for seed in (0, 1)]
    levels = [np.asarray(draw_levels(of_seed, np.arange(3), 8)) for of_seed in keys]
    assert np.mean(levels[0] == levels[1]) < 0.2 and levels[0].max() > 2**14
    raw = jax.random.key_data(key(3))
    np.testing.assert_array_equal(
        draw_levels(raw, np.arange(3), 8), draw_levels(key(3), np.arange(3), 8)
    )


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("sizes", [(4, 6), (5, 5)])
@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_towers_with_paired_layers_compute_what_the_towers_do(sizes, rate, dtype):
    towers = TwoTowers(num_classes=3, hidden_sizes=(8, 9), dropout_rate=rate, dtype=dtype)
    audio, visual = (RNG.normal(size=(7, size)).astype(np.float32) for size in sizes)
    params = towers.init(key(0), audio, visual)["params"]
    params = jax.tree.map(lambda leaf: leaf + 0.1, params)  # biases start at 0 and would not show
    rows = jnp.arange(10, 17, dtype=jnp.int32)
    expected = towers.apply(
        {"params": params}, audio, visual, train=True, rows=rows, rngs={"dropout": key(1)}
    )
    paired = paired_outputs(
        towers, pair_params(params), audio, visual, rows=rows, dropout_key=key(1)
    )
    assert paired.dtype == expected[0].dtype
    tolerance = 1e-6 if dtype == jnp.float32 else 2**-8
    np.testing.assert_allclose(paired, np.stack(expected), atol=tolerance)
    assert (sizes == (5, 5)) == ("hidden_0" in pair_params(params)["both"])


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
