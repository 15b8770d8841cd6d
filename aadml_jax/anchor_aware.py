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
from typing import Any

import jax
import jax.numpy as jnp

from aadml_jax._arrays import (
    Array,
    ArrayLike,
    LabelsLike,
    as_float,
    as_given,
    as_same_float,
    as_scalar,
    check_count,
    known_values,
)
from aadml_jax._sharding import take_rows
from aadml_jax.graphs import correlation_graph, of_anchors

_HIGHEST = jax.lax.Precision.HIGHEST


# Where logits are that far apart, weights are 0 and 1.
_LARGE_LOGIT = 2.0**60


def _unit_anchors(anchors: Array) -> tuple[Array, Array, float]:
    """Anchors [R, D] divided by powers of two, [R, 1] and a number, which makes no rounding error.

    Their entries are below 1 / (2 D), so that products with anything finite are finite too.
    """
    limits = jnp.finfo(anchors.dtype)
    largest = jnp.max(jnp.abs(jax.lax.stop_gradient(anchors)), axis=1, keepdims=True, initial=0)
    # Its reciprocal must be a normal number too, as that of 2¹²⁶ is in float32.
    exponent = jnp.clip(jnp.frexp(largest)[1], limits.minexp // 2, -limits.minexp)
    unit = jnp.ldexp(jnp.ones_like(largest), exponent)
    room = 2.0 ** math.ceil(math.log2(8 * max(anchors.shape[1], 1)))
    return anchors / unit / room, unit, room


def _logits(products: Array, unit: Array, room: float, scale: Array) -> Array:
    """Products · unit · room / scale, cut off where the weights are 0 and 1 in any case."""
    most = 2 * _LARGE_LOGIT * jax.lax.stop_gradient(scale)
    return jnp.clip(products * unit * room, -most, most) / scale


# In both attentions a softmax whose logits might overflow is moved along, which it does not feel,
# so that the largest is 0. Of the anchor 1e20:
#
#     products with [3e20, 1e20, 2e20]  →  [0, −2e40, −1e40], cut off by `_logits`.
#
# Where nothing is moved, no bit is another: all divisors are powers of two.


def _attend_neighbors(anchors: Array, neighbors: Array, mask: Array, scale: Array) -> Array:
    divided, unit, room = _unit_anchors(anchors)
    products = jnp.einsum("rd,rkd->rk", divided, neighbors, precision=_HIGHEST)
    constant = jax.lax.stop_gradient(products)
    largest = jnp.max(jnp.abs(constant), axis=1, keepdims=True, initial=0, where=mask)
    is_large = largest * unit * room / scale > _LARGE_LOGIT
    place = jnp.argmax(jnp.where(mask, constant, -jnp.inf), axis=1, keepdims=True)
    is_top = jnp.arange(mask.shape[1], dtype=place.dtype)[None, :] == place
    top = jnp.sum(jnp.where(is_top, constant, 0), axis=1, keepdims=True)
    # The largest less itself is 0, even if a compiler computes `top` again with other rounding.
    top = jnp.where(is_large, jnp.where(is_top, constant, top), 0)
    logits = _logits(products - top, unit, room, scale)
    weights = jax.nn.softmax(logits, axis=1, where=mask)
    return jnp.einsum("rk,rkd->rd", weights, neighbors, precision=_HIGHEST)


def _attend_channels(anchors: Array, neighbors: Array, mask: Array, scale: Array) -> Array:
    # Factors of the largest, 0, must be finite; its rivals' logits may be −∞. The difference is
    # taken of the neighbours, halved lest it overflow: one of products may be rounded before and
    # after, and then the largest is not 0.
    limits = jnp.finfo(anchors.dtype)
    factors = jnp.clip(2 * (anchors / scale), limits.min, limits.max)[:, None, :, None]
    halves = neighbors / 2
    keys = jax.lax.stop_gradient(halves)
    highest, lowest = (f(keys, axis=2)[:, :, None, None] for f in (jnp.max, jnp.min))
    largest = jnp.abs(factors) * jnp.maximum(jnp.abs(highest), jnp.abs(lowest))
    is_large = jax.lax.stop_gradient(largest) > _LARGE_LOGIT
    top = jnp.where(is_large, jnp.where(factors > 0, highest, lowest), 0)
    weights = jax.nn.softmax(factors * (halves[:, :, None, :] - top), axis=-1)
    # Divided, since the sum over the pairs might overflow.
    divided, unit, room = _unit_anchors(anchors)
    per_pair = jnp.einsum("rkce,re->rkc", weights, divided * room, precision=_HIGHEST)
    total = jnp.sum(jnp.where(mask[:, :, None], per_pair, 0), axis=1)
    return total / jnp.sum(mask, axis=1, keepdims=True).astype(total.dtype) * unit


ATTENTIONS = {"neighbor": _attend_neighbors, "channel": _attend_channels}


def check_neighbors(
    num_neighbors: Any, max_neighbors: Any, shape: tuple[int, ...] | None = None
) -> int:
    """Checks k, alone or traced with a maximum, and returns how many places a graph needs for it.

    Args:
      num_neighbors: k.
      max_neighbors: the largest k, or None, where k must be static.
      shape: of the embeddings, for messages.

    Raises:
      ValueError: for a k that is no integer or, unless traced, not in 1 … `max_neighbors`; or for a
        maximum that is no integer of at least 1.
    """
    if max_neighbors is None:
        return check_count(num_neighbors, "num_neighbors", shape)
    places = check_count(max_neighbors, "max_neighbors", shape)
    given = as_given(num_neighbors, "num_neighbors")
    if isinstance(given, jax.Array) and not jnp.issubdtype(given.dtype, jnp.integer):
        raise ValueError(f"num_neighbors must be an integer; got {given.dtype}")
    if given.ndim:
        raise ValueError(f"num_neighbors must be a scalar; got shape {given.shape}")
    if known_values(given) is not None:
        k = check_count(num_neighbors, "num_neighbors", shape)
        if k > places:
            raise ValueError(f"num_neighbors={k} exceeds max_neighbors={places}")
    return places


@jax.custom_jvp
def _rows_of(array: Array, rows: Array) -> Array:
    """`take_rows`, whose gradient a GPU sums in a fixed order."""
    return take_rows(array, rows)


@_rows_of.defjvp
def _rows_of_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    array, rows = primals
    return take_rows(array, rows), _rows_of_tangent(tangents[0], rows)


def _rows_of_tangent(tangent: Array, rows: Array) -> Array:
    if any(axis is not None for axis in jax.typeof(rows).sharding.spec):
        return take_rows(tangent, rows)
    # The transpose of taking rows adds floats to places, which the threads of a GPU do in any
    # order; that of a product with ones and zeros is a product.
    return jax.lax.platform_dependent(
        tangent, rows, cuda=_rows_by_product, rocm=_rows_by_product, default=take_rows
    )


def _rows_by_product(array: Array, rows: Array) -> Array:
    chosen = jax.nn.one_hot(rows, len(array), dtype=array.dtype)
    return jnp.einsum("rkn,nd->rkd", chosen, array, precision=_HIGHEST)


def anchor_aware_proxies(
    embeddings: ArrayLike,
    labels: LabelsLike,
    *,
    num_neighbors: ArrayLike = 3,
    attention: str = "neighbor",
    same_class: bool = True,
    rows: ArrayLike | None = None,
    references: ArrayLike | None = None,
    temperature: ArrayLike = 1.0,
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
        `max_neighbors` is given; a traced k below 1 then acts as 1, one above as the maximum.
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
      [R, D], in the embeddings' dtype raised to at least float32; finite for any finite embeddings,
      those too whose products overflow. So is the gradient as long as sums over D of an embedding
      times the proxy's gradient do not.

    Raises:
      ValueError: for k < 1 or beyond `max_neighbors`, a temperature that is not finite and above 0
        (where they are not traced), an unknown attention, labels as `same_label` refuses them, or
        shapes that do not fit.
    """
    embeddings = as_float(embeddings)
    if attention not in ATTENTIONS:
        raise ValueError(
            f"attention must be one of {sorted(ATTENTIONS)}; got {attention!r} for embeddings of "
            f"shape {embeddings.shape}"
        )
    temperature = as_scalar(temperature, embeddings.dtype, "temperature", above=0)
    places = check_neighbors(num_neighbors, max_neighbors, embeddings.shape)
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
    anchors = of_anchors(embeddings, rows)
    if attention == "neighbor" and places == 1:
        return anchors
    sources = embeddings if references is None else references
    others = _rows_of(sources, graph.indices[:, 1:])
    if not neighbor_gradient:
        others = jax.lax.stop_gradient(others)
    neighbors = jnp.concatenate([anchors[:, None], others], axis=1)
    mask = graph.mask
    if max_neighbors is not None:
        k = jnp.asarray(num_neighbors)
        # Place 0 stays in any case. Cut before the cast: an unsigned k may exceed an int32.
        k = jnp.clip(k, 1, min(places, jnp.iinfo(k.dtype).max)).astype(jnp.int32)
        mask = mask & (jnp.arange(places, dtype=jnp.int32) < k)[None, :]
    scale = temperature.astype(anchors.dtype) * math.sqrt(anchors.shape[1])
    return ATTENTIONS[attention](anchors, neighbors, mask, scale)
