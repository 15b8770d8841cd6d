"""Row-wise functions over blocks of anchors, so that memory grows with the block and not with N."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from aadml_jax._arrays import Array, check_count
from aadml_jax._sharding import as_blocks, gathered, num_parts, split_alike, split_as

# Of a matrix of float32 they are 128 MiB; a loss or a ranking holds about ten of its size.
_ENTRIES_AT_ONCE = 2**25


def rows_at_once(num_columns: int) -> int:
    """Rows of so many columns that a block may have on any device, at least 1."""
    return max(1, _ENTRIES_AT_ONCE // max(1, num_columns))


def mean_in_row_blocks(fn: Callable[[Any], Array], anchors: Any, *, block_size: int | None) -> Any:
    """`fn(anchors)`, a mean over the rows, from the means of blocks of rows.

    Args:
      fn: anchors to a scalar; it may close over other arrays, as in `in_row_blocks`.
      anchors: pytree of arrays [N, ...], N ≥ 1.
      block_size: rows per block ≥ 1, static; None for all at once. What no whole block is left for
        is computed by itself.
    """
    num_rows = len(jax.tree.leaves(anchors)[0])
    if block_size is None or block_size >= num_rows:
        return fn(anchors)
    in_blocks = num_rows // block_size * block_size
    means = in_row_blocks(
        lambda block, rows: jnp.broadcast_to(fn(block), rows.shape),
        jax.tree.map(lambda leaf: leaf[:in_blocks], anchors),
        block_size=block_size,
    )
    if in_blocks == num_rows:
        return jnp.mean(means)
    rest = jax.checkpoint(fn)(jax.tree.map(lambda leaf: leaf[in_blocks:], anchors))
    return (jnp.sum(means) + rest * (num_rows - in_blocks)) / num_rows


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
    is computed again instead of being stored.

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
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(anchors)]
    if not shapes or any(not shape or shape[0] != shapes[0][0] for shape in shapes):
        raise ValueError(f"anchors must share a leading axis; got shapes {shapes}")
    block_size = check_count(block_size, "block_size", shapes[0])
    num_rows = shapes[0][0]
    leaves, structure = jax.tree.flatten(jax.tree.map(jnp.asarray, anchors))
    leaves = split_alike(*leaves)
    parts = num_parts(leaves[0])
    block_size = max(1, min(block_size, num_rows) // parts) * parts
    num_blocks = -(-num_rows // block_size)

    filling = num_blocks * block_size - num_rows

    def in_blocks(leaf: Array) -> Array:
        # Repeating the last row keeps the filling free of the NaNs that zeros may cause.
        if filling:
            padding = [(0, filling)] + [(0, 0)] * (leaf.ndim - 1)
            leaf = jnp.pad(gathered(leaf), padding, mode="edge")
        return as_blocks(leaf, block_size, like=leaves[0])

    def in_rows(leaf: Array) -> Array:
        flat = gathered(leaf).reshape(num_blocks * block_size, *leaf.shape[2:])
        return split_as(flat[:num_rows], leaves[0])

    # Row numbers stay whole, so that `fn` may index whole arrays by them.
    rows = jnp.pad(jnp.arange(num_rows, dtype=jnp.int32), (0, filling), mode="edge")
    blocks = jax.lax.map(
        lambda block: jax.checkpoint(fn)(*block),
        (
            jax.tree.unflatten(structure, [in_blocks(leaf) for leaf in leaves]),
            rows.reshape(num_blocks, block_size),
        ),
    )
    return jax.tree.map(in_rows, blocks)
