"""Row-wise functions over blocks of anchors, so that memory grows with the block and not with N."""

import functools
import math
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import eval_jaxpr
from jax.custom_derivatives import SymbolicZero

from aadml_jax._arrays import Array, check_count
from aadml_jax._sharding import as_blocks, gathered, num_parts, split_alike, split_as

# Of a matrix of float32 they are 128 MiB; a loss or a ranking holds about ten of its size.
_ENTRIES_AT_ONCE = 2**25


def rows_at_once(num_columns: int) -> int:
    """Rows of so many columns that a block may have on any device, at least 1."""
    return max(1, _ENTRIES_AT_ONCE // max(1, num_columns))


def rows_of_block(block_size: int, anchors: Array) -> int:
    """The size of a block of anchors [N, ...] that all devices of an explicit mesh share alike."""
    parts = num_parts(anchors)
    return max(1, block_size // parts) * parts


def in_row_blocks(fn: Callable[[Any, Array], Any], anchors: Any, *, block_size: int) -> Any:
    """Computes `fn` block by block along the anchors, with the exact value and gradient.

    Every loss and metric here treats its rows apart, so a block of rows can be computed alone:

        per_anchor = in_row_blocks(
            lambda block, rows: triplet_loss(
                cosine_distance(block, references),
                same_label(labels[rows], labels),
                reduce_fn=None),
            anchors, block_size=1024)
        loss = per_anchor.mean()

    One block is in memory at a time, O(block × M) instead of O(N × M); in reverse mode each block
    is computed again instead of being stored. Of the mean alone `mean_in_row_blocks` computes the
    gradient in less time.

    Args:
      fn: `fn(anchor_block, row_indices)`, with the rows `anchors[row_indices]` and their numbers
        int32 [block]; returns [block], or any pytree of arrays that begin with that axis. It may
        close over other arrays, which are differentiated as well.
      anchors: [N, ...], or a pytree of such arrays.
      block_size: rows per block ≥ 1, static. The last block is filled up by repeating the last
        row, and what `fn` returns for the filling is dropped. Where rows are split over the devices
        of an explicit mesh, so is each block; its size is then a multiple of their number.

    Returns:
      What `fn` returns, with N in place of block.

    Raises:
      ValueError: for block_size < 1, or anchors without a common leading axis.
    """
    blocks, rows, in_rows = _cut(anchors, block_size)
    values = jax.lax.map(lambda block: jax.checkpoint(fn)(*block), (blocks, rows))
    return jax.tree.map(in_rows, values)


def mean_in_row_blocks(
    fn: Callable[[Any, Array], Array], anchors: Any, *, block_size: int
) -> Array:
    """The mean of what `in_row_blocks` returns, its gradient computed with its value.

        loss = mean_in_row_blocks(
            lambda block, rows: triplet_loss(
                cosine_distance(block, references),
                same_label(labels[rows], labels),
                reduce_fn=None),
            anchors, block_size=1024)

    By the mean every anchor's value has the same derivative, 1 / N, so that the gradient of a block
    need not wait for the values of the others: one pass computes both, and no block twice. The
    gradients by the anchors and by what `fn` closes over are kept instead, O((N + M) D). Under
    shard_map this needs references that were gathered; where `fn` closes over floats that all
    devices share, it is the mean of `in_row_blocks`.

    Args:
      fn: `fn(anchor_block, row_indices)`, which returns floats [block]; see `in_row_blocks`.
      anchors: [N, ...], N ≥ 1, or a pytree of such arrays.
      block_size: rows per block; see `in_row_blocks`.

    Returns:
      A scalar.

    Raises:
      ValueError: for block_size < 1, anchors without a common leading axis or without rows, or an
        `fn` that returns anything but floats [block].
    """
    blocks, rows, _ = _cut(anchors, block_size)
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(anchors)]
    num_rows = shapes[0][0]
    if not num_rows:
        raise ValueError(f"the mean needs at least one anchor; got shapes {shapes}")
    # What `fn` closes over becomes an argument, by which the mean can be differentiated.
    traced = jax.make_jaxpr(fn)(*jax.tree.map(lambda leaf: leaf[0], (blocks, rows)))
    results = traced.out_avals
    is_per_row = len(results) == 1 and results[0].shape == rows.shape[1:]
    if not is_per_row or not jnp.issubdtype(results[0].dtype, jnp.floating):
        raise ValueError(
            f"fn must return floats [{rows.shape[1]}], one of each anchor of the block; "
            f"got {', '.join(str(one) for one in results)}"
        )
    if not _differ_by_device_alike((traced.consts, blocks, rows)):
        return jnp.mean(in_row_blocks(fn, anchors, block_size=block_size))

    def values_of(captured: list[Array], block: list[Array]) -> Array:
        return eval_jaxpr(traced.jaxpr, captured, *block)[0]

    @jax.custom_jvp
    def mean(captured: list[Array], blocks: list[Array]) -> Array:
        values = jax.lax.map(lambda block: values_of(captured, block), blocks)
        return jnp.mean(_without_filling(values, num_rows))

    @functools.partial(mean.defjvp, symbolic_zeros=True)
    def mean_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
        captured, blocks = primals
        moves = jax.tree.map(_moves, primals, tangents)
        values, gradients = _values_and_gradients(values_of, captured, blocks, moves, num_rows)
        value = jnp.mean(_without_filling(values, num_rows))

        def product(gradient: Array, tangent: Array) -> Array:
            return jnp.sum(gradient.astype(value.dtype) * tangent.astype(value.dtype))

        products = jax.tree.map(product, gradients, _where_true(moves, tangents))
        return value, sum(jax.tree.leaves(products), jnp.zeros_like(value))

    return mean(traced.consts, jax.tree.leaves((blocks, rows)))


def _values_and_gradients(
    values_of: Callable[[list[Array], list[Array]], Array],
    captured: list[Array],
    blocks: list[Array],
    moves: tuple[list[bool], list[bool]],
    num_rows: int,
) -> tuple[Array, tuple]:
    """Values and gradients of all blocks in one pass.

    Returns:
      The values [K, block], and the gradients of the mean of the first `num_rows` of them by the
      captured arrays and by the blocks; None where `moves` is False.
    """

    def add_block(sums: list, part: tuple[list[Array], Array]) -> tuple[list, tuple]:
        block, numbers = part
        arrays = captured, block
        values, pull_back = jax.vjp(
            lambda moving: values_of(*_filled_up(moving, arrays)), _where_true(moves, arrays)
        )
        weights = jnp.where(numbers < num_rows, 1 / jnp.full_like(values, num_rows), 0)
        ((of_captured, of_block),) = pull_back(weights)
        return jax.tree.map(jnp.add, sums, of_captured), (values, of_block)

    zeros = jax.tree.map(jnp.zeros_like, _where_true(moves[0], captured))
    numbers = jnp.arange(math.prod(blocks[-1].shape), dtype=jnp.int32).reshape(blocks[-1].shape)
    # From the last block to the first, as reverse mode adds up.
    sums, (values, of_blocks) = jax.lax.scan(add_block, zeros, (blocks, numbers), reverse=True)
    return values, (sums, of_blocks)


def _moves(primal: Array, tangent: Array | SymbolicZero) -> bool:
    is_float = jnp.issubdtype(primal.dtype, jnp.floating)
    return is_float and not isinstance(tangent, SymbolicZero)


def _where_true(chosen: Any, tree: Any) -> Any:
    """The leaves of `tree` where `chosen` is True, None elsewhere."""
    return jax.tree.map(lambda is_chosen, leaf: leaf if is_chosen else None, chosen, tree)


def _filled_up(part: Any, tree: Any) -> Any:
    """`part` with the leaves of `tree` where it has None."""
    return jax.tree.map(
        lambda leaf, other: other if leaf is None else leaf, part, tree, is_leaf=lambda x: x is None
    )


def _differ_by_device_alike(arrays: Any) -> bool:
    """False within a shard_map that tells by its types that some floats are shared and others not.

    By floats that all devices share, reverse mode adds up the gradients of all of them.
    """
    leaves = jax.tree.leaves(arrays)
    depends = functools.reduce(operator.or_, [jnp.any(leaf == leaf) for leaf in leaves])
    return all(
        jax.typeof(jnp.where(depends, leaf, leaf)) == jax.typeof(leaf)
        for leaf in leaves
        if jnp.issubdtype(leaf.dtype, jnp.floating)
    )


def _cut(anchors: Any, block_size: int) -> tuple[Any, Array, Callable[[Array], Array]]:
    """The anchors as [K, block, ...], their row numbers [K, block], and what undoes the cut."""
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(anchors)]
    if not shapes or any(not shape or shape[0] != shapes[0][0] for shape in shapes):
        raise ValueError(f"anchors must share a leading axis; got shapes {shapes}")
    block_size = check_count(block_size, "block_size", shapes[0])
    num_rows = shapes[0][0]
    leaves, structure = jax.tree.flatten(jax.tree.map(jnp.asarray, anchors))
    leaves = split_alike(*leaves)
    block_size = rows_of_block(min(block_size, num_rows), leaves[0])
    num_blocks = -(-num_rows // block_size)

    filling = num_blocks * block_size - num_rows

    def in_blocks(leaf: Array) -> Array:
        # Repeating the last row keeps the filling free of the NaNs that zeros may cause.
        if filling:
            padding = [(0, filling)] + [(0, 0)] * (leaf.ndim - 1)
            leaf = jnp.pad(gathered(leaf), padding, mode="edge")
        return as_blocks(leaf, block_size, like=leaves[0])

    def in_rows(leaf: Array) -> Array:
        return split_as(_without_filling(leaf, num_rows), leaves[0])

    # Row numbers stay whole, so that `fn` may index whole arrays by them.
    rows = jnp.pad(jnp.arange(num_rows, dtype=jnp.int32), (0, filling), mode="edge")
    blocks = jax.tree.unflatten(structure, [in_blocks(leaf) for leaf in leaves])
    return blocks, rows.reshape(num_blocks, block_size), in_rows


def _without_filling(leaf: Array, num_rows: int) -> Array:
    """What the blocks return [K, block, ...] as rows [N, ...], on every device."""
    num_blocks, block_size, *rest = leaf.shape
    return gathered(leaf).reshape(num_blocks * block_size, *rest)[:num_rows]
