"""The correlation graph of AADML: each anchor's most correlated samples.

Vertices are the samples of one modality in a batch, edges their cosine similarity in label space
(Zeng et al., "Anchor-aware Deep Metric Learning for Audio-visual Retrieval", ICMR 2024,
arXiv:2404.13789, step 1). The paper's equations are not public; that only samples of the anchor's
own class may be neighbours is this library's reading of its "semantically similar", with
`same_class=False` for the other one.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from aadml_jax._arrays import Array, ArrayLike, LabelsLike, as_float, as_labels, check_count
from aadml_jax._sharding import split_as, split_by_rows, take_rows
from aadml_jax.similarity import cosine_similarity, cosine_to_itself, same_label

# Neighbours that accelerators take one by one. For `top_k` a GPU orders whole rows, and whether one
# takes the first of equals cannot be seen in a program.
_TAKEN_IN_ROUNDS = 8


class CorrelationGraph(NamedTuple):
    """Neighbour lists of R anchors, k places each; place 0 is the anchor itself.

    Attributes:
      indices: int32 [R, k], the neighbour's row in `embeddings`; the anchor's own where masked.
      weights: [R, k], cosine similarity to the anchor, falling from place 1 on; 0 where masked.
      mask: bool [R, k], False at places that no sample could fill.
    """

    indices: Array
    weights: Array
    mask: Array


def anchor_rows(rows: ArrayLike | None, num_samples: int) -> Array:
    """The anchors' row numbers as int32 [R], negative ones counted from the end; None is all."""
    if rows is None:
        return jnp.arange(num_samples, dtype=jnp.int32)
    rows = jnp.asarray(rows)
    if rows.ndim != 1 or not jnp.issubdtype(rows.dtype, jnp.integer):
        raise ValueError(f"rows must be integers [R]; got {rows.dtype} of shape {rows.shape}")
    rows = rows.astype(jnp.int32)
    return jnp.where(rows < 0, rows + num_samples, rows)


def of_anchors(array: Array, rows: ArrayLike | None) -> Array:
    """The rows [R, ...] of the anchors numbered `rows`; None is all."""
    if rows is None:
        return split_by_rows(array)
    return take_rows(array, anchor_rows(rows, array.shape[0]))


# Compiled also where the caller is not: plain calls would trace its two ways every time.
@functools.partial(jax.jit, static_argnums=1)
def _highest(values: Array, count: int) -> tuple[Array, Array]:
    """The highest `values` [N, M] of each row and their columns, [N, count], as `jax.lax.top_k`.

    Columns of −∞ may be any.
    """
    if not 0 < count <= _TAKEN_IN_ROUNDS:
        return _highest_by_order(values, count=count)
    by_rounds = functools.partial(_highest_by_rounds, count=count)
    return jax.lax.platform_dependent(
        values,
        cuda=by_rounds,
        rocm=by_rounds,
        tpu=by_rounds,
        default=functools.partial(_highest_by_order, count=count),
    )


def _highest_by_order(values: Array, *, count: int) -> tuple[Array, Array]:
    highest, places = jax.lax.top_k(values, count)
    return highest, places


def _highest_by_rounds(values: Array, *, count: int) -> tuple[Array, Array]:
    """One maximum after the other, each left out of the next round; equal ones by column."""
    columns = jnp.arange(values.shape[1], dtype=jnp.int32)[None, :]
    found = []
    for _ in range(count):
        places = jax.lax.argmax(values, 1, jnp.int32)  # the first of equals; a NaN is the highest
        found.append((jnp.max(values, axis=1), places))
        values = jnp.where(columns == places[:, None], -jnp.inf, values)
    highest, places = zip(*found, strict=True)
    return jnp.stack(highest, axis=1), jnp.stack(places, axis=1)


def correlation_graph(
    embeddings: ArrayLike,
    labels: LabelsLike,
    *,
    num_neighbors: int,
    same_class: bool = True,
    rows: ArrayLike | None = None,
    references: ArrayLike | None = None,
) -> CorrelationGraph:
    """Each anchor's `num_neighbors` most correlated samples, itself included and always first.

    The order is by falling cosine similarity, equal ones by index. The *choice* of neighbours
    carries no gradient; the weights do.

    Args:
      embeddings: one modality of the whole batch [N, D].
      labels: class numbers [N] or multi-hot [N, C]; unused with `same_class=False`.
      num_neighbors: k ≥ 1, static. Figure 4 of the paper runs 1 to 7.
      same_class: whether only samples that share a class with the anchor can be neighbours.
      rows: int [R] in −N … N − 1, the anchors to build lists for (a device's shard of the batch,
        say); default all N. Numbers outside are not checked, and give no meaningful row.
      references: the other modality of the same samples [N, D], if neighbours are sought there:
        places from 1 on then number its rows, of which the anchor's own is one like any other.
        Place 0 stays the anchor in `embeddings`.

    Returns:
      A `CorrelationGraph` of [R, k] arrays. Where the class has fewer than k members, or k > N,
      the remaining places are masked: index of the anchor, weight 0.

    Raises:
      ValueError: for k < 1, labels as `same_label` refuses them, or shapes that do not fit.
    """
    embeddings = as_float(embeddings)
    k = check_count(num_neighbors, "num_neighbors", embeddings.shape)
    labels = as_labels(labels)
    if embeddings.ndim != 2 or labels.shape[:1] != embeddings.shape[:1]:
        raise ValueError(
            "embeddings [N, D] and labels [N] or [N, C] are needed; "
            f"got {embeddings.shape} and {labels.shape}"
        )
    if references is not None and jnp.shape(references) != embeddings.shape:
        raise ValueError(
            f"references must be {embeddings.shape}, as embeddings; got {jnp.shape(references)}"
        )
    num_samples = embeddings.shape[0]
    anchors = of_anchors(embeddings, rows)
    own_labels = split_as(of_anchors(labels, rows), anchors)
    own_rows = split_as(anchor_rows(rows, num_samples), anchors)
    similarity = cosine_similarity(anchors, embeddings if references is None else references)

    # Adding 0 would not do: compilers drop it, and top_k orders -0.0 below 0.0.
    candidates = jnp.where(similarity == 0, 0, jax.lax.stop_gradient(similarity))
    # A broken neighbour must show. top_k ranks a NaN of negative sign, as a CPU makes it, lowest.
    candidates = jnp.where(jnp.isnan(candidates), jnp.inf, candidates)
    if same_class:
        candidates = jnp.where(same_label(own_labels, labels), candidates, -jnp.inf)
    if references is None:
        is_anchor = own_rows[:, None] == jnp.arange(num_samples, dtype=jnp.int32)[None, :]
        candidates = jnp.where(is_anchor, -jnp.inf, candidates)

    num_others = min(k - 1, num_samples)
    order, others = _highest(candidates, num_others)
    found = order != -jnp.inf
    padding = ((0, 0), (0, k - 1 - num_others))
    mask = jnp.pad(found, padding)
    others = jnp.where(mask, jnp.pad(others.astype(jnp.int32), padding), own_rows[:, None])
    indices = jnp.concatenate([own_rows[:, None], others], axis=1)
    mask = jnp.concatenate([jnp.ones_like(own_rows, dtype=bool)[:, None], mask], axis=1)
    weights = jnp.where(mask, jnp.take_along_axis(similarity, indices, axis=1), 0)
    if references is not None:
        weights = weights.at[:, 0].set(cosine_to_itself(anchors))
    return CorrelationGraph(indices, weights, mask)
