"""This library's losses from embeddings, as the comparisons need them."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import aadml_jax

_ON_DISTANCES = ("triplet", "contrastive", "lifted_structure", "margin")
_ON_SIMILARITIES = ("multi_similarity", "ntxent", "supcon", "circle", "smooth_ap", "proxy_anchor")
NAMES = (*_ON_DISTANCES, *_ON_SIMILARITIES)

Loss = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def _per_anchor(
    name: str,
    anchors: jax.Array,
    references: jax.Array,
    anchor_labels: jax.Array,
    reference_labels: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """The loss per row, and the relevance it was computed with."""
    loss = getattr(aadml_jax, f"{name}_loss")
    if name == "proxy_anchor":  # its rows are the classes' one-hot vectors
        anchors = jnp.eye(references.shape[1], dtype=references.dtype)
        anchor_labels = jnp.arange(references.shape[1], dtype=jnp.int32)
    matrix = aadml_jax.cosine_distance if name in _ON_DISTANCES else aadml_jax.cosine_similarity
    relevance = aadml_jax.same_label(anchor_labels, reference_labels)
    return loss(matrix(anchors, references), relevance, reduce_fn=None), relevance


def one_direction(name: str, *, reduction: str = "anchors", block_size: int | None = None) -> Loss:
    """A function (anchors, references, labels) -> scalar.

    Args:
      name: of the loss.
      reduction: "anchors", or "triplets" for the mean over all triplets, which weighs each anchor
        by its number of them.
      block_size: anchors per block; default all at once.
    """

    def in_blocks(anchors: jax.Array, references: jax.Array, labels: jax.Array) -> jax.Array:
        return aadml_jax.mean_in_row_blocks(
            lambda block, rows: _per_anchor(name, block, references, labels[rows], labels)[0],
            anchors,
            block_size=block_size,
        )

    def whole(anchors: jax.Array, references: jax.Array, labels: jax.Array) -> jax.Array:
        values, relevance = _per_anchor(name, anchors, references, labels, labels)
        if reduction == "anchors":
            return jnp.mean(values)
        positives = jnp.sum(relevance, axis=1).astype(values.dtype)
        triplets = positives * (relevance.shape[1] - positives)
        return jnp.sum(values * triplets) / jnp.sum(triplets)

    return whole if block_size is None else in_blocks


def both_directions(name: str, **options: Any) -> Loss:
    """A function (audio, visual, labels) -> sum of `one_direction` to and fro."""
    direction = one_direction(name, **options)
    return lambda audio, visual, labels: (
        direction(audio, visual, labels) + direction(visual, audio, labels)
    )


def value_and_gradient(loss: Loss) -> Callable:
    """The compiled derivative by audio and visual."""
    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
