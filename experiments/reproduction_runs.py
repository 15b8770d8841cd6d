"""Which runs the paper's figures take: `reproductions` shows what comes of them."""

import dataclasses
from collections.abc import Mapping, Set
from typing import Any

from aadml_jax.training import config as configuration
from aadml_jax.training.config import TrainConfig
from aadml_jax.training.named_losses import NAMED_LOSSES

Key = tuple[str, ...]
"""What a run is called: the loss or the variant, or both."""

TRIPLETS = ("triplet", "semihard_triplet", "hard_triplet")
PLAIN, AWARE = "plain", "anchor-aware"


def plain(config: TrainConfig) -> TrainConfig:
    """The method without anchor awareness: k = 1, where the proxy is the anchor itself.

    Unlike `anchor_aware=False`, it shares a compiled program with other k.
    """
    return dataclasses.replace(
        config, anchor_aware=True, attention="neighbor", num_neighbors=1, proxy_role="in_place"
    )


def with_loss(config: TrainConfig, loss: str) -> TrainConfig:
    """The configuration with another metric loss, which keeps the parameters that it has."""
    chosen = NAMED_LOSSES[loss]
    changes: dict[str, Any] = {
        name: None for name in ("margin", "temperature") if name not in chosen.parameters
    }
    if config.loss_parameters is not None:
        kept = config.loss_parameters.items()
        changes["loss_parameters"] = {
            name: value for name, value in kept if name in chosen.parameters
        } or None
    if chosen.on_similarities:
        changes["distance"] = "cosine"
    if chosen.on_class_proxies:
        changes["intra_modal"] = False
        if config.proxy_role == "both_sides":
            changes["proxy_role"] = "in_place"
    else:
        changes["class_proxies"] = "one_hot"
    return dataclasses.replace(config, loss=loss, **changes)


def with_and_without(base: TrainConfig) -> dict[Key, TrainConfig]:
    """The configuration with proxies and without."""
    return {
        (PLAIN,): plain(base),
        (AWARE,): dataclasses.replace(base, anchor_aware=True),
    }


NEIGHBOR_LOSSES = ("contrastive", *TRIPLETS)
MOST_NEIGHBORS = 7


def neighbor_runs(base: TrainConfig) -> dict[Key, TrainConfig]:
    """Each of `NEIGHBOR_LOSSES` with each k."""
    base = dataclasses.replace(base, anchor_aware=True, attention="neighbor")
    return {
        (loss, str(k)): dataclasses.replace(with_loss(base, loss), num_neighbors=k)
        for loss in NEIGHBOR_LOSSES
        for k in range(1, MOST_NEIGHBORS + 1)
    }


def training_runs(base: TrainConfig) -> dict[Key, TrainConfig]:
    """Each of `TRIPLETS` with proxies and without."""
    return {
        (loss, *name): config
        for loss in TRIPLETS
        for name, config in with_and_without(with_loss(base, loss)).items()
    }


VARIANTS = (PLAIN, "neighbor", "channel")


def loss_runs(base: TrainConfig) -> dict[Key, TrainConfig]:
    """Every loss in each of `VARIANTS`."""
    runs = {}
    for loss in NAMED_LOSSES:
        config = dataclasses.replace(with_loss(base, loss), anchor_aware=True)
        runs[loss, PLAIN] = plain(config)
        for attention in VARIANTS[1:]:
            runs[loss, attention] = dataclasses.replace(config, attention=attention)
    return runs


def resolved_by_seed(
    runs: Mapping[Key, TrainConfig], explicit: Set[str], *, count: int, num_train: int
) -> dict[tuple[Key, int], TrainConfig]:
    """Runs as they are trained, by key and number of the seed.

    Args:
      runs: by key, their first seed among what they say.
      explicit: names of the fields that the user has set, which presets leave alone.
      count: of seeds.
      num_train: training rows at hand.
    """
    return {
        (key, number): configuration.resolve(
            # Presets depend on the loss, so they are filled in for each run.
            configuration.apply_presets(
                dataclasses.replace(config, seed=config.seed + number), explicit
            ),
            num_train,
        )
        for key, config in runs.items()
        for number in range(count)
    }
