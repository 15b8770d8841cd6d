"""Row blocks: the same values and gradients as in one piece, in bounded memory."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

import aadml_jax as aa
from aadml_jax.row_blocks import rows_at_once

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


def mean_of_blocks(references, block_size):
    return lambda anchors: aa.mean_in_row_blocks(
        row_loss(references), anchors, block_size=block_size
    )


def mean_of_whole(anchors, references):
    return row_loss(references)(anchors, jnp.arange(11)).mean()


@BLOCKS
def test_the_mean_and_its_gradients_equal_those_of_the_unblocked_function(block_size):
    def blocked(anchors, references):
        return mean_of_blocks(references, block_size)(anchors)

    actual, expected = (
        jax.jit(jax.value_and_grad(function, argnums=(0, 1)))(ANCHORS, REFERENCES)
        for function in (blocked, mean_of_whole)
    )
    for one, other in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert np.all(np.any(other))
        close(one, other, rtol=1e-5)
    close(jax.jit(blocked)(ANCHORS, REFERENCES), actual[0])
    close(jax.grad(blocked)(ANCHORS, REFERENCES), expected[1][0], rtol=1e-5)


@pytest.mark.parametrize("block_size", [4, 40])
def test_the_mean_of_a_tree_of_rows_has_exact_gradients_where_it_rounds_once(block_size):
    first, second = np.arange(11, dtype=np.float32), np.arange(11, 22, dtype=np.float32)
    anchors = {"first": first, "number": np.arange(11), "second": second}

    def mean(anchors, table):
        return aa.mean_in_row_blocks(
            lambda block, rows: block["first"] * block["second"] * table[rows] + block["number"],
            anchors,
            block_size=block_size,
        )

    table = jnp.asarray(2.0 ** -np.arange(11), jnp.float32)  # to multiply by it rounds nothing
    value, of_anchors = jax.value_and_grad(mean, allow_int=True)(anchors, table)
    of_table = jax.grad(mean, argnums=1)(anchors, table)
    assert value == np.mean(first * second * table + np.arange(11), dtype=np.float32)
    part = np.float32(1) / np.float32(11)
    np.testing.assert_array_equal(of_anchors["first"], second * (table * part))
    np.testing.assert_array_equal(of_anchors["second"], first * (table * part))
    np.testing.assert_array_equal(of_table, first * second * part)


def test_the_mean_computes_every_block_once_with_its_gradient():
    calls = []

    def run(block, rows):
        jax.debug.callback(lambda first: calls.append(int(first)), rows[0])
        return row_loss(REFERENCES)(block, rows)

    def total(anchors):
        return aa.mean_in_row_blocks(run, anchors, block_size=3)

    jax.block_until_ready(jax.jit(jax.grad(total))(ANCHORS))
    jax.effects_barrier()
    assert sorted(calls) == [0, 3, 6, 9]


TANGENTS = tuple(
    jnp.cos(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape) for x in (ANCHORS, REFERENCES)
)
TRANSFORMATIONS = {
    "jvp": lambda f: jax.jvp(f, (ANCHORS, REFERENCES), TANGENTS)[1],
    "jvp of grad": lambda f: jax.jvp(jax.grad(f, argnums=(0, 1)), (ANCHORS, REFERENCES), TANGENTS)[
        1
    ],
    "grad of grad": lambda f: jax.grad(
        lambda a, r: jnp.sum(jax.grad(f)(a, r) ** 2), argnums=(0, 1)
    )(ANCHORS, REFERENCES),
    "vmap": lambda f: jax.vmap(f, in_axes=(0, None))(jnp.stack([ANCHORS, -ANCHORS]), REFERENCES),
    "vmap of grad": lambda f: jax.vmap(jax.grad(f, argnums=(0, 1)), in_axes=(None, 0))(
        ANCHORS, jnp.stack([REFERENCES, REFERENCES[::-1] / 2])
    ),
    "checkpoint": lambda f: jax.grad(jax.checkpoint(f), argnums=(0, 1))(ANCHORS, REFERENCES),
}


@pytest.mark.parametrize("name", TRANSFORMATIONS)
@pytest.mark.parametrize("block_size", [3, 40])
def test_transformations_of_the_mean_equal_those_of_the_unblocked_function(name, block_size):
    def blocked(anchors, references):
        return aa.mean_in_row_blocks(
            lambda block, rows: jnp.tanh(block @ references.T).sum(axis=1) * (rows + 1),
            anchors,
            block_size=block_size,
        )

    def whole(anchors, references):
        rows = jnp.tanh(anchors @ references.T).sum(axis=1)
        return jnp.mean(rows * (jnp.arange(11) + 1))

    transform = TRANSFORMATIONS[name]
    actual, expected = (jax.jit(lambda f=f: transform(f))() for f in (blocked, whole))
    for one, other in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert np.any(other)
        close(one, other, rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize("is_checked", [True, False])
@pytest.mark.parametrize("is_gathered", [True, False])
def test_the_mean_of_each_device_has_the_gradients_of_its_own_rows(is_gathered, is_checked):
    anchors, calls = jnp.concatenate([ANCHORS, -ANCHORS]), []

    def of_device(anchors, references):
        if is_gathered:
            references = jax.lax.all_gather(references, "x", tiled=True)

        def run(block, rows):
            jax.debug.callback(lambda first: calls.append(int(first)), rows[0])
            return row_loss(references)(block, rows)

        return aa.mean_in_row_blocks(run, anchors, block_size=4)[None]

    def over_devices(anchors, references):
        of_devices = jax.shard_map(
            of_device,
            mesh=Mesh(np.array(jax.devices()[:2]), ("x",)),
            in_specs=(P("x"), P("x") if is_gathered else P()),
            out_specs=P("x"),
            check_vma=is_checked,
        )
        return of_devices(anchors, references) @ jnp.array([1.0, 3.0])

    def whole(anchors, references):
        return mean_of_whole(anchors[:11], references) + 3 * mean_of_whole(anchors[11:], references)

    actual, expected = (
        jax.block_until_ready(jax.jit(jax.value_and_grad(f, argnums=(0, 1)))(anchors, REFERENCES))
        for f in (over_devices, whole)
    )
    for one, other in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        close(one, other, rtol=1e-5)
    jax.effects_barrier()
    in_one_pass = is_gathered or not is_checked
    assert sorted(calls) == sorted([0, 4, 8] * (2 if in_one_pass else 4))


def test_the_mean_of_a_nan_is_nan_and_anchors_held_fixed_have_no_gradient():
    anchors = jnp.asarray(ANCHORS).at[2, 0].set(jnp.nan)
    assert np.isnan(aa.mean_in_row_blocks(lambda b, _: b[:, 0], anchors, block_size=4))

    def by_references(references):
        return mean_of_blocks(references, 4)(jax.lax.stop_gradient(references @ ANCHORS.T).T[:, :3])

    def by_both(references):
        return mean_of_whole(jax.lax.stop_gradient(references @ ANCHORS.T).T[:, :3], references)

    actual, expected = jax.jit(jax.grad(by_references))(REFERENCES), jax.grad(by_both)(REFERENCES)
    close(actual, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("fn", "found"),
    [
        (lambda block, _: block, "float32[4,3]"),
        (lambda _, rows: rows, "int32[4]"),
        (lambda block, _: (block[:, 0], block[:, 1]), "float32[4], float32[4]"),
        (lambda block, _: block.sum(), "float32[]"),
    ],
)
def test_a_mean_of_anything_but_one_number_of_each_anchor_raises(fn, found):
    with pytest.raises(ValueError, match=re.escape(found)):
        aa.mean_in_row_blocks(fn, ANCHORS, block_size=4)


def test_the_mean_of_no_anchors_raises():
    with pytest.raises(ValueError, match=r"at least one anchor.*\(0, 3\)"):
        aa.mean_in_row_blocks(lambda block, _: block[:, 0], ANCHORS[:0], block_size=4)


@pytest.mark.parametrize("block_size", [0, -2])
def test_blocks_of_no_rows_raise(block_size):
    with pytest.raises(ValueError, match=f"block_size.*{block_size}"):
        aa.in_row_blocks(lambda b, _: b[:, 0], ANCHORS, block_size=block_size)
    with pytest.raises(ValueError, match=f"block_size.*{block_size}"):
        aa.mean_in_row_blocks(lambda b, _: b[:, 0], ANCHORS, block_size=block_size)


@pytest.mark.parametrize(
    "mean",
    [lambda *args, **options: aa.in_row_blocks(*args, **options).mean(), aa.mean_in_row_blocks],
)
@pytest.mark.parametrize(
    ("size", "dim", "block_size", "limit_mib"), [(16_384, 16, 256, 512), (1_024, 256, 256, 64)]
)
def test_triplet_loss_from_embeddings_stays_within_block_memory(
    size, dim, block_size, limit_mib, mean
):
    def loss(audio, visual, labels):
        def rows_of(block, rows):
            relevance = aa.same_label(labels[rows], labels)
            return aa.triplet_loss(aa.cosine_distance(block, visual), relevance, reduce_fn=None)

        return mean(rows_of, audio, block_size=block_size)

    embeddings, labels = jnp.zeros((size, dim)), jnp.zeros(size, jnp.int32)
    run = jax.value_and_grad(loss, argnums=(0, 1))
    assert oracles.temporary_bytes(run, embeddings, embeddings, labels) < limit_mib * 2**20


def test_blocks_have_fewer_rows_the_longer_these_are():
    assert rows_at_once(2**25) == rows_at_once(2**30) == 1
    assert rows_at_once(65_536) == 2**25 // 65_536
    assert rows_at_once(0) > 0
