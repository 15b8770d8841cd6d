"""Anchor-aware (AA) proxies: attention of an anchor over its correlation graph.

Step 2 of AADML (Zeng et al., ICMR 2024, arXiv:2404.13789). The paper's text and the caption of its
figure allow two readings, and both are offered:

- `attention="neighbor"`: the anchor is the query, its neighbours are keys *and values*. This
  follows the text ("dynamic weighting of the correlations") and is this library's default.
- `attention="channel"`: to the letter of the caption, the value is the anchor and the proxy is the
  mean over the pairs; attention then runs over the channels of each pair.

A third reading, a softmax over the neighbours with the anchor as the value, is not offered: its
weights sum to 1, so it returns the anchor unchanged.
"""

import math

import jax
import jax.numpy as jnp

from aadml_jax._arrays import Array, as_float, as_same_float, as_scalar, check_count
from aadml_jax.graphs import anchor_rows, correlation_graph

_HIGHEST = jax.lax.Precision.HIGHEST


def _attend_neighbors(anchors: Array, neighbors: Array, mask: Array, scale: Array) -> Array:
    logits = jnp.einsum("rd,rkd->rk", anchors, neighbors, precision=_HIGHEST) / scale
    weights = jax.nn.softmax(logits, axis=1, where=mask)
    return jnp.einsum("rk,rkd->rd", weights, neighbors, precision=_HIGHEST)


def _attend_channels(anchors: Array, neighbors: Array, mask: Array, scale: Array) -> Array:
    logits = anchors[:, None, :, None] * neighbors[:, :, None, :]
    weights = jax.nn.softmax(logits / scale, axis=-1)
    per_pair = jnp.einsum("rkce,re->rkc", weights, anchors, precision=_HIGHEST)
    total = jnp.sum(jnp.where(mask[:, :, None], per_pair, 0), axis=1)
    return total / jnp.sum(mask, axis=1, keepdims=True).astype(total.dtype)


_ATTENTIONS = {"neighbor": _attend_neighbors, "channel": _attend_channels}


def anchor_aware_proxies(
    embeddings: Array,
    labels: Array,
    *,
    num_neighbors: int | Array = 3,
    attention: str = "neighbor",
    same_class: bool = True,
    rows: Array | None = None,
    references: Array | None = None,
    temperature: float | Array = 1.0,
    neighbor_gradient: bool = True,
    max_neighbors: int | None = None,
) -> Array:
    """Proxies that take the anchors' place in any loss of this library.

    With P the embeddings, N(i) the valid places of anchor i in `correlation_graph`, D the
    embedding's size (in label space the number of classes C):

    - `"neighbor"`: AA_i = Σ_{j∈N(i)} w_j P_j, w = softmax over N(i) of P_i · P_j / (τ √D);
    - `"channel"`: AA_i = mean over j∈N(i) of A_ij P_i, where A_ij [D, D] is the softmax over e of
      P_i[c] P_j[e] / (τ √D). It needs O(R k D²) memory.

    Gradients pass through the embeddings, not through the choice of neighbours. The last four
    arguments are this library's; their defaults leave the paper's method as it is read here.

    Args:
      embeddings: one modality of the whole batch [N, D].
      labels: class numbers [N] or multi-hot [N, C]; unused with `same_class=False`.
      num_neighbors: k ≥ 1 with the anchor counted. With k = 1, `"neighbor"` returns the
        embeddings unchanged: the method without AA. May be traced (to sweep it by `vmap`) if
        `max_neighbors` is given.
      attention: `"neighbor"` or `"channel"`, see the module's docstring.
      same_class: whether only samples that share a class with the anchor can be neighbours.
      rows: int [R], the anchors wanted; default all N.
      references: the other modality of the same samples [N, D], if the neighbours, as keys and as
        values, shall come from there; see `correlation_graph`. The anchor stays the first of them.
      temperature: τ > 0, scalar, possibly traced. At 1 the weights of `"neighbor"` are nearly
        uniform for embeddings of about unit length; a smaller one sharpens them.
      neighbor_gradient: whether gradients reach the neighbours; False lets them reach the anchor
        alone.
      max_neighbors: the largest k, static, for a traced `num_neighbors`: places beyond k are
        masked.

    Returns:
      [R, D], in the embeddings' dtype raised to at least float32.

    Raises:
      ValueError: for k < 1 or beyond `max_neighbors`, a temperature of 0 or below (where they are
        not traced), an unknown attention or shapes that do not fit.
    """
    embeddings = as_float(embeddings)
    if attention not in _ATTENTIONS:
        raise ValueError(
            f"attention must be one of {sorted(_ATTENTIONS)}; got {attention!r} for embeddings of "
            f"shape {embeddings.shape}"
        )
    if isinstance(temperature, int | float) and not temperature > 0:
        raise ValueError(f"temperature must be above 0; got {temperature}")
    if max_neighbors is None:
        places = check_count(num_neighbors, "num_neighbors", embeddings.shape)
    else:
        places = check_count(max_neighbors, "max_neighbors", embeddings.shape)
        if not isinstance(num_neighbors, jax.Array):
            k = check_count(num_neighbors, "num_neighbors", embeddings.shape)
            if k > places:
                raise ValueError(f"num_neighbors={k} exceeds max_neighbors={places}")
        elif not jnp.issubdtype(num_neighbors.dtype, jnp.integer):
            raise ValueError(f"num_neighbors must be an integer; got {num_neighbors.dtype}")
    if embeddings.shape[0]:  # places beyond the batch are masked and would only cost memory
        places = min(places, embeddings.shape[0] + (references is not None))
    if references is not None:
        embeddings, references = as_same_float(embeddings, references)
    graph = correlation_graph(
        embeddings,
        labels,
        num_neighbors=places,
        same_class=same_class,
        rows=rows,
        references=references,
    )
    anchors = embeddings[anchor_rows(rows, embeddings.shape[0])]
    if attention == "neighbor" and places == 1:
        return anchors
    sources = embeddings if references is None else references
    others = sources[graph.indices[:, 1:]]
    if not neighbor_gradient:
        others = jax.lax.stop_gradient(others)
    neighbors = jnp.concatenate([anchors[:, None], others], axis=1)
    mask = graph.mask
    if max_neighbors is not None:
        k = as_scalar(num_neighbors, jnp.int32, "num_neighbors")
        mask = mask & (jnp.arange(places, dtype=jnp.int32) < k)[None, :]
    scale = as_scalar(temperature, anchors.dtype, "temperature") * math.sqrt(anchors.shape[1])
    return _ATTENTIONS[attention](anchors, neighbors, mask, scale)
