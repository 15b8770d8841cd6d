"""Which runs the paper's figures take; `reproductions` shows what comes of them."""

from typing import Any

from aadml_jax.training.config import RecipeConfig
from aadml_jax.training.named_losses import NAMED_LOSSES
from experiments.variants import Variant

Variants = dict[tuple[str, ...], Variant]
"""Variants by the loss or the kind of proxies, or both."""

TRIPLETS = ("triplet", "semihard_triplet", "hard_triplet")
NEIGHBOR_LOSSES = ("contrastive", *TRIPLETS)
MOST_NEIGHBORS = 7
PLAIN, AWARE = "plain", "anchor-aware"
KINDS = (PLAIN, "neighbor", "channel")
# The method without anchor awareness: k = 1, where the proxy is the anchor itself. Unlike
# `anchor_aware=False`, it shares a compiled program with other k.
_PLAIN = {
    "anchor_aware": True,
    "attention": "neighbor",
    "num_neighbors": 1,
    "proxy_role": "in_place",
}


def with_loss(recipe: RecipeConfig, loss: str) -> dict[str, Any]:
    """Changes for another metric loss, which keeps the parameters that it has.

    Args:
      recipe: to change.
      loss: name of the loss.
    """
    chosen = NAMED_LOSSES[loss]
    changes: dict[str, Any] = {"loss": loss}
    changes |= {name: None for name in ("margin", "temperature") if name not in chosen.parameters}
    if recipe.loss_parameters is not None:
        kept = recipe.loss_parameters.items()
        changes["loss_parameters"] = {
            name: value for name, value in kept if name in chosen.parameters
        } or None
    if chosen.on_similarities:
        changes["distance"] = "cosine"
    if chosen.on_class_proxies:
        changes["intra_modal"] = False
        if recipe.proxy_role == "both_sides":
            changes["proxy_role"] = "in_place"
    else:
        changes["class_proxies"] = "one_hot"
    return changes


def with_and_without(recipe: RecipeConfig) -> Variants:
    """The recipe with proxies and without."""
    return {(PLAIN,): Variant(_PLAIN), (AWARE,): Variant({"anchor_aware": True}, (PLAIN,))}


def neighbor_variants(recipe: RecipeConfig) -> Variants:
    """Each of `NEIGHBOR_LOSSES` with each k, compared with k = 1."""
    variants = {}
    for loss in NEIGHBOR_LOSSES:
        common = {**with_loss(recipe, loss), "anchor_aware": True, "attention": "neighbor"}
        for k in range(1, MOST_NEIGHBORS + 1):
            changes = {**common, "num_neighbors": k}
            variants[loss, str(k)] = Variant(changes, None if k == 1 else (loss, "1"))
    return variants


def training_variants(recipe: RecipeConfig) -> Variants:
    """Each of `TRIPLETS` with proxies and without."""
    return {
        (loss, *name): Variant({**with_loss(recipe, loss), **variant.changes}, (loss, PLAIN))
        for loss in TRIPLETS
        for name, variant in with_and_without(recipe).items()
    }


def loss_variants(recipe: RecipeConfig) -> Variants:
    """Every loss in each of `KINDS`, compared with the plain one."""
    variants = {}
    for loss in NAMED_LOSSES:
        common = with_loss(recipe, loss)
        variants[loss, PLAIN] = Variant({**common, **_PLAIN})
        for attention in KINDS[1:]:
            changes = {**common, "anchor_aware": True, "attention": attention}
            variants[loss, attention] = Variant(changes, (loss, PLAIN))
    return variants
