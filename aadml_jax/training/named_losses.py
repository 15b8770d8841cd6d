"""The losses that a configuration names, and the parameters with which they train.

This is the one place that lists them: adding a loss is one entry of `NAMED_LOSSES`. Flags, checks,
sweeps and reproductions follow from it. Code that calls `aadml_objective` itself needs no name and
passes the function.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from aadml_jax import label_losses, losses, similarity
from aadml_jax._arrays import Array


class NamedLoss(NamedTuple):
    """How a configuration uses a loss.

    Attributes:
      function: (distances or similarities [N, M], relevance, where=…, parameters) to a scalar.
      parameters: its parameters, with the values that suit training in label space.
      on_similarities: whether it takes cosine similarities instead of distances.
      on_class_proxies: whether its anchors are class proxies instead of samples.
    """

    function: Callable[..., Array]
    parameters: dict[str, float]
    on_similarities: bool = False
    on_class_proxies: bool = False


# The losses on similarities default to their papers' parameters, sharp ones for hundreds of
# dimensions. On the few and noisy dimensions of label space, the softer ones here retrieved better
# in short runs on two data sets.
NAMED_LOSSES: dict[str, NamedLoss] = {
    # Beside cross-entropy 0.3 retrieved better than 1 where data were scarce, as well elsewhere.
    "triplet": NamedLoss(losses.triplet_loss, {"margin": 0.3}),
    # At margin 1 a hinge in cosine distance is quiet only once all classes are orthogonal.
    "semihard_triplet": NamedLoss(losses.semihard_triplet_loss, {"margin": 1.0}),
    "hard_triplet": NamedLoss(losses.hard_triplet_loss, {"margin": 1.0}),
    "contrastive": NamedLoss(losses.contrastive_loss, {"margin": 1.0}),
    # The function's defaults are for Euclidean distances of unit vectors; in cosine distance these
    # ask for positives within 0.5 and negatives beyond 1, at a right angle.
    "margin": NamedLoss(losses.margin_loss, {"margin": 0.25, "beta": 0.75}),
    "lifted_structure": NamedLoss(losses.lifted_structure_loss, {"margin": 1.0}),
    "ntxent": NamedLoss(losses.ntxent_loss, {"temperature": 0.5}, on_similarities=True),
    "supcon": NamedLoss(losses.supcon_loss, {"temperature": 0.5}, on_similarities=True),
    "multi_similarity": NamedLoss(
        losses.multi_similarity_loss,
        {"alpha": 2.0, "beta": 10.0, "base": 0.5},
        on_similarities=True,
    ),
    "circle": NamedLoss(losses.circle_loss, {"margin": 0.4, "gamma": 1.0}, on_similarities=True),
    "proxy_anchor": NamedLoss(
        losses.proxy_anchor_loss,
        {"margin": 0.1, "alpha": 4.0},
        on_similarities=True,
        on_class_proxies=True,
    ),
    "smooth_ap": NamedLoss(losses.smooth_ap_loss, {"temperature": 0.05}, on_similarities=True),
}

LABEL_LOSSES: dict[str, Callable[[Array, Array], Array]] = {
    "squared": label_losses.squared_label_loss,
    "cross_entropy": label_losses.cross_entropy_label_loss,
}


def compared_by(loss: str, distance: str) -> Callable[[Array, Array], Array]:
    """What makes the matrix that a loss takes: the cosine similarity, or the named distance."""
    if NAMED_LOSSES[loss].on_similarities:
        return similarity.cosine_similarity
    return similarity.DISTANCES[distance]


def named_loss(name: str, parameters: Mapping[str, Any]) -> Callable[..., Array]:
    """A loss with its parameters, its own values in `NAMED_LOSSES` where none are given.

    Args:
      name: a key of `NAMED_LOSSES`.
      parameters: by name; numbers, or traced scalars.

    Raises:
      ValueError: for a parameter that the loss does not have, or a value that it refuses.
    """
    known = NAMED_LOSSES[name].parameters
    for parameter in parameters:
        if parameter not in known:
            raise ValueError(
                f"{parameter} is no parameter of loss={name}; it has {', '.join(known)}"
            )
    loss = functools.partial(NAMED_LOSSES[name].function, **{**known, **parameters})
    pair = jax.ShapeDtypeStruct((1, 1), jnp.float32), jax.ShapeDtypeStruct((1, 1), bool)
    jax.eval_shape(loss, *pair)  # which values are refused, the loss itself knows
    return loss


def flag_defaults(parameter: str) -> str:
    """The training default of a parameter in each loss that has it, for a help text."""
    return ", ".join(
        f"{name} {loss.parameters[parameter]:g}"
        for name, loss in NAMED_LOSSES.items()
        if parameter in loss.parameters
    )
