"""Row blocks: the same values and gradients as in one piece, in bounded memory."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

import aadml_jax as aa
from aadml_jax.row_blocks import mean_in_row_blocks, rows_at_once

ANCHORS, REFERENCES = oracles.as_float32(
    np.random.default_rng(0).normal(size=(11, 3)), np.random.default_rng(1).normal(size=(6, 3))
)
BLOCKS = pytest.mark.parametrize("block_size", [1, 4, 11, 40])


def close(actual, expected, rtol=1e-6, atol=1e-6):
    np.testing.assert_allclose(np.asarray(actual), np.asarray(expected), rtol=rtol, atol=atol)


def row_loss(references):
    """A function of an anchor block that also depends on which rows it holds."""

    def run(block, rows):
        relevance = (rows[:, None] + jnp.arange(6)[None, :]) % 3 == 0
        distances = aa.squared_euclidean_distance(block, references)
        return aa.triplet_loss(distances, relevance, margin=0.7, reduce_fn=None)

    return run


@jax.jit
def whole_loss(anchors):
    return row_loss(REFERENCES)(anchors, jnp.arange(11))


@BLOCKS
def test_values_equal_the_unblocked_function(block_size):
    blocked = jax.jit(
        lambda anchors: aa.in_row_blocks(row_loss(REFERENCES), anchors, block_size=block_size)
    )(ANCHORS)
    assert blocked.shape == (11,)
    close(blocked, whole_loss(ANCHORS))


@BLOCKS
def test_elementwise_values_and_gradients_are_equal_bit_for_bit(block_size):
    def run(block, rows):
        return jnp.where(rows % 2 == 0, block[:, 0], block[:, 1]) * block[:, 2]  # rounds once

    def total(anchors):
        rows = aa.in_row_blocks(run, anchors, block_size=block_size)
        return rows.sum(), rows

    gradient, blocked = jax.jit(jax.grad(total, has_aux=True))(ANCHORS)
    np.testing.assert_array_equal(blocked, run(ANCHORS, jnp.arange(11)))
    even = np.arange(11) % 2 == 0
    first, second, third = np.asarray(ANCHORS).T
    expected = [third * even, third * ~even, np.where(even, first, second)]
    np.testing.assert_array_equal(gradient, np.stack(expected, axis=1))


@pytest.mark.parametrize("block_size", [3, 40])
def test_gradients_in_anchors_and_captured_arrays_equal_the_unblocked_ones(block_size):
    weights = jnp.arange(1.0, 12.0)

    def blocked(anchors, references):
        return weights @ aa.in_row_blocks(row_loss(references), anchors, block_size=block_size)

    def whole(anchors, references):
        return weights @ row_loss(references)(anchors, jnp.arange(11))

    actual, expected = (
        jax.jit(jax.grad(function, argnums=(0, 1)))(ANCHORS, REFERENCES)
        for function in (blocked, whole)
    )
    for one, other in zip(actual, expected, strict=True):
        assert np.any(other)
        close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("block_size", [3, 40])
def test_forward_mode_and_vmap_work(block_size):
    def blocked(anchors):
        return aa.in_row_blocks(row_loss(REFERENCES), anchors, block_size=block_size)

    tangent = jnp.asarray(np.random.default_rng(2).normal(size=(11, 3)), jnp.float32)
    one, other = (
        jax.jit(lambda x, t, f=f: jax.jvp(f, (x,), (t,))[1])(ANCHORS, tangent)
        for f in (blocked, whole_loss)
    )
    close(one, other, rtol=1e-5, atol=1e-5)
    both = jax.jit(jax.vmap(blocked))(jnp.stack([ANCHORS, tangent]))
    for one, anchors in zip(both, (ANCHORS, tangent), strict=True):
        close(one, whole_loss(anchors))


@pytest.mark.parametrize("block_size", [4, 40])
def test_padding_makes_no_nan_in_any_gradient(block_size):
    def run(block, matrix):  # value −inf and gradient NaN at a row of zeros
        return jnp.log(jnp.linalg.norm(block @ matrix, axis=-1))

    def total(anchors, matrix):
        rows = aa.in_row_blocks(lambda b, _: run(b, matrix), anchors, block_size=block_size)
        return rows.sum()

    matrix = jnp.asarray(np.random.default_rng(3).normal(size=(3, 3)), jnp.float32)
    actual = jax.jit(jax.grad(total, argnums=(0, 1)))(ANCHORS, matrix)
    expected = jax.grad(lambda a, m: run(a, m).sum(), argnums=(0, 1))(ANCHORS, matrix)
    for one, other in zip(actual, expected, strict=True):
        close(one, other, rtol=1e-5, atol=1e-5)


@BLOCKS
def test_row_indices_count_the_rows_and_stay_in_range(block_size):
    table = jnp.asarray(np.random.default_rng(4).normal(size=11), jnp.float32)
    seen = []

    def run(block, rows):
        assert jnp.issubdtype(rows.dtype, jnp.integer)
        assert block.shape[0] == rows.shape[0]
        seen.append(rows.shape)
        inside = (rows >= 0) & (rows < 11)
        return rows, table[rows], inside

    rows, values, inside = aa.in_row_blocks(run, ANCHORS, block_size=block_size)
    np.testing.assert_array_equal(rows, np.arange(11))
    np.testing.assert_array_equal(values, table)
    assert bool(inside.all())
    assert seen and all(shape[0] <= block_size for shape in seen)


def test_result_may_be_a_tree_of_arrays_with_more_axes():
    def run(block, rows):
        return {"double": 2 * block, "rows": (rows, aa.cosine_similarity(block, REFERENCES))}

    blocked = aa.in_row_blocks(run, ANCHORS, block_size=4)
    np.testing.assert_array_equal(blocked["double"], 2 * ANCHORS)
    np.testing.assert_array_equal(blocked["rows"][0], np.arange(11))
    close(blocked["rows"][1], aa.cosine_similarity(ANCHORS, REFERENCES))


def test_one_row_and_other_types_pass_through():
    one = aa.in_row_blocks(lambda block, _: block.sum(axis=1), ANCHORS[:1], block_size=8)
    close(one, ANCHORS[:1].sum(axis=1))
    half = aa.in_row_blocks(lambda b, _: b[:, 0], ANCHORS.astype(jnp.bfloat16), block_size=4)
    assert half.dtype == jnp.bfloat16
    with oracles.x64():
        double = jnp.asarray(np.random.default_rng(5).normal(size=(11, 3)))
        actual = aa.in_row_blocks(lambda b, _: b[:, 2], double, block_size=4)
        np.testing.assert_array_equal(actual, double[:, 2])


def test_gradient_memory_grows_with_the_block_and_not_with_the_rows():
    n, m, block = 1024, 1024, 32
    anchors, references = jnp.ones((n, 2)), jnp.ones((m, 2))

    def total(anchors, block_size):
        return aa.in_row_blocks(
            lambda b, _: jnp.tanh(jnp.exp(aa.euclidean_distance(b, references))).sum(axis=1),
            anchors,
            block_size=block_size,
        ).sum()

    used = oracles.temporary_bytes(jax.grad(lambda x: total(x, block)), anchors)
    assert used < 4 * n * m / 4  # a quarter of one N×M matrix; a block takes 1/32 of it


@pytest.mark.parametrize("block_size", [0, -2])
def test_blocks_of_no_rows_raise(block_size):
    with pytest.raises(ValueError, match=f"block_size.*{block_size}"):
        aa.in_row_blocks(lambda b, _: b[:, 0], ANCHORS, block_size=block_size)


@pytest.mark.parametrize(
    ("size", "dim", "block_size", "limit_mib"), [(16_384, 16, 256, 512), (1_024, 256, 256, 64)]
)
def test_triplet_loss_from_embeddings_stays_within_block_memory(size, dim, block_size, limit_mib):
    def loss(audio, visual, labels):
        def rows_of(block, rows):
            relevance = aa.same_label(labels[rows], labels)
            return aa.triplet_loss(aa.cosine_distance(block, visual), relevance, reduce_fn=None)

        return aa.in_row_blocks(rows_of, audio, block_size=block_size).mean()

    embeddings, labels = jnp.zeros((size, dim)), jnp.zeros(size, jnp.int32)
    run = jax.value_and_grad(loss, argnums=(0, 1))
    assert oracles.temporary_bytes(run, embeddings, embeddings, labels) < limit_mib * 2**20


@pytest.mark.parametrize("block_size", [1, 4, 11, 40, None])
def test_a_mean_over_blocks_is_the_mean_of_all_rows(block_size):
    def mean_loss(block):
        anchors, rows = block
        return row_loss(REFERENCES)(anchors, rows).mean()

    def run(anchors):
        return mean_in_row_blocks(mean_loss, (anchors, jnp.arange(11)), block_size=block_size)

    value, gradient = jax.jit(jax.value_and_grad(run))(ANCHORS)
    rows = whole_loss(ANCHORS)
    assert float(value) == pytest.approx(float(np.mean(np.asarray(rows, np.float64))), rel=1e-6)
    close(gradient, jax.jit(jax.grad(lambda anchors: whole_loss(anchors).mean()))(ANCHORS))


def test_blocks_have_fewer_rows_the_longer_these_are():
    assert rows_at_once(2**25) == rows_at_once(2**30) == 1
    assert rows_at_once(65_536) == 2**25 // 65_536
    assert rows_at_once(0) > 0
