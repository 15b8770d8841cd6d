"""Exact search: the items of a gallery that score highest for each query, in bounded memory.

The gallery is scored part by part, and so are the queries; of each part its k best items go on.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from aadml_jax._arrays import (
    Array,
    ArrayLike,
    as_float,
    as_mask,
    check_count,
    known_values,
    nan_message,
)
from aadml_jax._measures import check_cut_off, is_traced
from aadml_jax._sharding import gathered
from aadml_jax._top_k import best_of_rows, search_keys
from aadml_jax.row_blocks import in_row_blocks
from aadml_jax.similarity import as_similarity

Similarity = str | Callable[[Array, Array], Array]

# Items scored at a time. On a CPU, the scores of a block of queries then stay in its caches.
_ITEMS_AT_ONCE = 2**14
_ITEMS_AT_ONCE_ON_ACCELERATORS = 2**16


class TopK(NamedTuple):
    """The k items that score highest for each query, best first.

    Attributes:
      scores: [N, k], falling.
      indices: rows of the gallery, int32 [N, k]. Places beyond the query's gallery have index −1
        and score −∞.
    """

    scores: Array
    indices: Array


class _Part(NamedTuple):
    """The best of some items, as `TopK`, and whether a score was NaN, bool [N]."""

    keys: Array
    indices: Array
    is_nan: Array


def top_k(
    queries: ArrayLike,
    gallery: ArrayLike,
    k: int,
    *,
    similarity: Similarity = "cosine",
    where: ArrayLike | None = None,
    block_size: int = 128,
) -> TopK:
    """The k items of the gallery that score highest for each query: exact, best first.

    Equal scores, −0.0 and 0.0 among them, keep the order of the gallery, as in the metrics with
    `ties="stable"`. Memory is O(block_size + N k + D M), whatever the size of the gallery: the N×M
    scores are never held.

    Rows that are split over the devices of a mesh are searched where they are. Of a split gallery,
    each device searches its own rows for all queries, and only the k best of each are exchanged; of
    split queries alone, each device searches the whole gallery for its own. So outside of jit;
    within jit on a mesh of explicit axes queries stay split and a gallery is gathered. Within
    `shard_map`, see `aadml_jax.search.sharded_top_k`.

    Args:
      queries: [N, D].
      gallery: [M, D].
      k: items per query, static, 1 ≤ k ≤ M.
      similarity: `"cosine"`, `"posterior"` (of logits), or a function
        (queries [B, D], some of the gallery [G, D]) -> scores [B, G], higher is better, that
        treats all pairs apart.
      where: which items belong to the gallery, bool [M] for all queries or [N, M]; default all.
      block_size: queries scored at a time.

    Returns:
      `TopK`, scores [N, k] in the type of the similarity's raised to at least float32, and indices
      int32 [N, k]. Where fewer than k items belong to a query's gallery, the rest has index −1 and
      score −∞. An item that scores −∞ is found like any other, after those that score higher.

    Raises:
      ValueError: for k outside 1 … M, an unknown similarity, shapes that do not fit or a
        block_size < 1; and outside of jit, where a score is NaN, with the row that it comes from.
        Within jit a query with a NaN among its scores gets NaN and −1 everywhere.

    >>> import jax.numpy as jnp
    >>> gallery = jnp.array([[0.0, 1.0], [1.0, 1.0], [2.0, 0.0], [3.0, 3.0]])
    >>> print(top_k(jnp.array([[1.0, 1.0]]), gallery, 3).indices)
    [[1 3 0]]
    """
    search, queries, gallery = _prepared(queries, gallery, k, similarity, block_size)
    if where is not None:
        shape = queries.shape[0], gallery.shape[0]
        where = as_mask(where, shape[1:] if jnp.ndim(where) == 1 else shape, "where")
    if is_traced(queries, gallery, where):
        return _search(queries, gallery, where, search)
    split = _Split.of(queries, gallery)
    if split is None:
        found = _search(queries, gallery, where, search)
    else:
        found = _search_on_mesh(*split.placed(queries, gallery, where), search, split)
    _refuse_nan(found, queries, gallery, where)
    return found


def sharded_top_k(
    queries: Array,
    gallery: Array,
    k: int,
    *,
    axis_name: str,
    similarity: Similarity = "cosine",
    where: Array | None = None,
    block_size: int = 128,
) -> TopK:
    """`top_k` of queries and a gallery that are split over devices, within `jax.shard_map`.

    The queries are gathered, each device searches its own part of the gallery for all of them, and
    sends each query's best items to the device that the query came from.

    Args:
      queries: the device's shard [S, D].
      gallery: its shard [G, D].
      k: items per query, static, 1 ≤ k ≤ the size of the whole gallery.
      axis_name: of `jax.shard_map` or `jax.pmap`.
      similarity: see `top_k`.
      where: bool [G], False for what only pads the shard; default all.
      block_size: queries scored at a time.

    Returns:
      `TopK` of the shard's queries [S, k]; indices are rows of the whole gallery, in the order of
      the devices.

    Raises:
      ValueError: as `top_k`.
    """
    num_parts = jax.lax.psum(1, axis_name)
    search, queries, gallery = _prepared(queries, gallery, k, similarity, block_size, num_parts)
    if where is not None:
        where = as_mask(where, gallery.shape[:1], "where")
    everyones = jax.lax.all_gather(queries, axis_name, tiled=True)
    best = search.best(everyones, gallery, where)
    first = gallery.shape[0] * jax.lax.axis_index(axis_name).astype(jnp.int32)
    best = best._replace(indices=best.indices + first)
    exchange = functools.partial(
        jax.lax.all_to_all, axis_name=axis_name, split_axis=0, concat_axis=1, tiled=True
    )
    is_nan = jnp.any(exchange(best.is_nan[:, None]), axis=1)
    return search.found(_Part(exchange(best.keys), exchange(best.indices), is_nan))


class _Search(NamedTuple):
    """What is static in a search."""

    k: int
    similarity: Callable[[Array, Array], Array]
    block_size: int
    items_at_once: int

    def best(self, queries: Array, gallery: Array, where: Array | None) -> _Part:
        """The best min(k, M) items of each query."""
        gallery = gathered(gallery)
        of_all = None if where is None or where.ndim == 2 else gathered(where)[None, :]
        of_each = where if where is not None and where.ndim == 2 else None

        def of_block(block: tuple[Array, Array | None], _: Array) -> _Part:
            return self._best_of_block(block[0], gallery, of_all if of_each is None else block[1])

        return in_row_blocks(of_block, (queries, of_each), block_size=self.block_size)

    def _best_of_block(self, queries: Array, gallery: Array, where: Array | None) -> _Part:
        num_items = gallery.shape[0]
        # Of a part, k items go on, since all of them may be among the best.
        at_once = min(max(self.items_at_once, 2 * self.k), num_items)

        def of_items(first: Array | int, size: int) -> _Part:
            items = jax.lax.dynamic_slice_in_dim(gallery, first, size)
            among = None
            if where is not None:
                among = jax.lax.dynamic_slice_in_dim(where, first, size, axis=1)
            best = self._best_of_part(queries, items, among)
            return best._replace(indices=best.indices + first)

        num_whole, rest = divmod(num_items, at_once)
        starts = jnp.arange(num_whole, dtype=jnp.int32) * at_once
        parts = jax.lax.map(lambda first: of_items(first, at_once), starts)

        def in_rows(leaf: Array) -> Array:
            return jnp.moveaxis(leaf, 0, 1).reshape(leaf.shape[1], -1)

        best = _Part(in_rows(parts.keys), in_rows(parts.indices), jnp.any(parts.is_nan, axis=0))
        if rest:
            last = of_items(num_whole * at_once, rest)
            best = _Part(
                jnp.concatenate([best.keys, last.keys], axis=1),
                jnp.concatenate([best.indices, last.indices], axis=1),
                best.is_nan | last.is_nan,
            )
        return self._best_among(best)

    def _best_of_part(self, queries: Array, items: Array, where: Array | None) -> _Part:
        scores = as_float(self.similarity(queries, items))
        num_rows, num_items = queries.shape[0], items.shape[0]
        if scores.shape != (num_rows, num_items):
            raise ValueError(
                f"similarity must make [B, G] of [B, D] and [G, D]; got {scores.shape} of "
                f"{queries.shape} and {items.shape}"
            )
        keys = search_keys(scores, where)
        return _Part(*best_of_rows(keys, min(self.k, num_items)), jnp.any(jnp.isnan(keys), axis=1))

    def _best_among(self, part: _Part) -> _Part:
        """The best of items in gallery order."""
        keys, places = best_of_rows(part.keys, min(self.k, part.keys.shape[1]))
        indices = jnp.take_along_axis(part.indices, places, axis=1, mode="promise_in_bounds")
        return _Part(keys, indices, part.is_nan)

    def found(self, part: _Part) -> TopK:
        """The final result of the best items of all parts of the gallery, in their order."""
        keys, indices, is_nan = self._best_among(part)
        is_nan = is_nan[:, None]
        indices = jnp.where((keys == -jnp.inf) | is_nan, -1, indices)
        scores = jnp.where(keys == jnp.finfo(keys.dtype).min, -jnp.inf, keys)
        return TopK(jnp.where(is_nan, jnp.nan, scores), indices)


@functools.partial(jax.jit, static_argnums=3)
def _search(queries: Array, gallery: Array, where: Array | None, search: _Search) -> TopK:
    return search.found(search.best(queries, gallery, where))


def _prepared(
    queries: Any, gallery: Any, k: int, similarity: Similarity, block_size: int, num_parts: int = 1
) -> tuple[_Search, Array, Array]:
    queries, gallery = jnp.asarray(queries), jnp.asarray(gallery)
    if queries.ndim != 2 or gallery.ndim != 2 or queries.shape[1] != gallery.shape[1]:
        raise ValueError(
            "queries [N, D] and a gallery [M, D] of one D are needed; got "
            f"{queries.shape} and {gallery.shape}"
        )
    search = _Search(
        check_cut_off(k, (queries.shape[0], num_parts * gallery.shape[0])),
        as_similarity(similarity, "queries", queries.shape),
        check_count(block_size, "block_size", queries.shape),
        _ITEMS_AT_ONCE if jax.default_backend() == "cpu" else _ITEMS_AT_ONCE_ON_ACCELERATORS,
    )
    return search, queries, gallery


class _Split(NamedTuple):
    """How concrete arrays are split by rows over the devices of a mesh.

    Attributes:
      mesh: of the devices.
      axis: the axis of the mesh along which rows are split.
      is_gallery: whether the gallery is split; else the queries are.
    """

    mesh: jax.sharding.Mesh
    axis: str
    is_gallery: bool

    @classmethod
    def of(cls, queries: Array, gallery: Array) -> "_Split | None":
        """None where every device holds all rows."""
        for array in (gallery, queries):
            sharding = array.sharding
            if not isinstance(sharding, NamedSharding) or not sharding.spec:
                continue
            axis = sharding.spec[0]
            if isinstance(axis, str) and sharding.mesh.shape[axis] > 1:
                return cls(cast(jax.sharding.Mesh, sharding.mesh), axis, array is gallery)
        return None

    def specs(self, where: Array | None) -> tuple[P, P, P]:
        """Of queries, gallery and `where`."""
        queries, gallery = (P(), P(self.axis)) if self.is_gallery else (P(self.axis), P())
        if where is None or where.ndim == 1:
            return queries, gallery, gallery
        return queries, gallery, P(None, self.axis) if self.is_gallery else queries

    def placed(
        self, queries: Array, gallery: Array, where: Array | None
    ) -> tuple[Array, Array, Array | None]:
        """The arrays, each as its spec says."""
        of_queries, of_gallery, of_where = (
            NamedSharding(self.mesh, spec) for spec in self.specs(where)
        )
        if where is not None:
            where = jax.device_put(where, of_where)
        return jax.device_put(queries, of_queries), jax.device_put(gallery, of_gallery), where


@functools.partial(jax.jit, static_argnums=(3, 4))
def _search_on_mesh(
    queries: Array, gallery: Array, where: Array | None, search: _Search, split: _Split
) -> TopK:
    def of_device(queries: Array, gallery: Array, where: Array | None) -> TopK:
        best = search.best(queries, gallery, where)
        if not split.is_gallery:
            return search.found(best)
        first = gallery.shape[0] * jax.lax.axis_index(split.axis).astype(jnp.int32)
        gather = functools.partial(jax.lax.all_gather, axis_name=split.axis, axis=1, tiled=True)
        is_nan = jnp.any(gather(best.is_nan[:, None]), axis=1)
        return search.found(_Part(gather(best.keys), gather(best.indices + first), is_nan))

    return jax.shard_map(
        of_device,
        mesh=split.mesh,
        in_specs=split.specs(where),
        out_specs=split.specs(where)[0],
        check_vma=False,  # all devices merge the same candidates
    )(queries, gallery, where)


def _refuse_nan(found: TopK, queries: Array, gallery: Array, where: Array | None) -> None:
    scores = known_values(found.scores)
    if scores is None or not scores.size or not np.isnan(scores[:, 0]).any():
        return
    query = int(np.argmax(np.isnan(scores[:, 0])))
    raise ValueError(nan_message(query, queries, gallery, where))
