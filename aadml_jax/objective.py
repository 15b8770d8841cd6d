"""The training objective of AADML: both towers' outputs to a scalar and its named parts.

objective = label_weight · (label loss of audio + label loss of visual)
          + metric_weight · (sum of the directions' metric losses)

In each direction the anchors of one modality, as anchor-aware proxies, are compared with the plain
embeddings of the other (Zeng et al., ICMR 2024, arXiv:2404.13789, step 3). The paper does not
publish its label loss, weights or margins; those are this library's choices.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from aadml_jax import losses, similarity
from aadml_jax._arrays import Array, as_labels, as_same_float
from aadml_jax.anchor_aware import anchor_aware_proxies

METRIC_LOSSES: dict[str, Callable[..., Array]] = {
    "contrastive": losses.contrastive_loss,
    "triplet": losses.triplet_loss,
    "semihard_triplet": losses.semihard_triplet_loss,
    "hard_triplet": losses.hard_triplet_loss,
}

DISTANCES: dict[str, Callable[[Array, Array], Array]] = {
    "cosine": similarity.cosine_distance,
    "euclidean": similarity.euclidean_distance,
    "squared_euclidean": similarity.squared_euclidean_distance,
}


def _squared_label_loss(outputs: Array, targets: Array) -> Array:
    return jnp.mean(jnp.sum(jnp.square(outputs - targets), axis=1))


def _cross_entropy_label_loss(outputs: Array, targets: Array) -> Array:
    shares = targets / jnp.maximum(jnp.sum(targets, axis=1, keepdims=True), 1)
    return -jnp.mean(jnp.sum(shares * jax.nn.log_softmax(outputs, axis=1), axis=1))


LABEL_LOSSES: dict[str, Callable[[Array, Array], Array]] = {
    "squared": _squared_label_loss,
    "cross_entropy": _cross_entropy_label_loss,
}


@dataclasses.dataclass(frozen=True)
class ObjectiveOptions:
    """What the objective is made of.

    Attributes:
      loss: a key of `METRIC_LOSSES`.
      margin: of the metric loss, in units of the distance.
      anchor_aware: whether AA proxies take the anchors' place.
      num_neighbors: k of the correlation graph, the anchor counted.
      attention: `"neighbor"` or `"channel"`, see `anchor_aware_proxies`.
      same_class: whether only samples of the anchor's class can be neighbours.
      distance: a key of `DISTANCES`.
      intra_modal: whether audio→audio and visual→visual are added to the two cross-modal
        directions; there the anchor's own column is left out.
      label_loss: `"squared"`, the squared Euclidean distance to the one-hot label, summed over
        classes and averaged over the batch; or `"cross_entropy"` of the softmax.
      label_weight: factor of the label losses.
      metric_weight: factor of the metric losses.
    """

    loss: str = "triplet"
    margin: float | Array = 1.0
    anchor_aware: bool = True
    num_neighbors: int = 3
    attention: str = "neighbor"
    same_class: bool = True
    distance: str = "cosine"
    intra_modal: bool = False
    label_loss: str = "squared"
    label_weight: float | Array = 1.0
    metric_weight: float | Array = 1.0

    def __post_init__(self) -> None:
        """Raises ValueError for a name that the objective does not know."""
        for field, known in (
            ("loss", METRIC_LOSSES),
            ("distance", DISTANCES),
            ("label_loss", LABEL_LOSSES),
        ):
            if getattr(self, field) not in known:
                raise ValueError(
                    f"{field} must be one of {sorted(known)}; got {getattr(self, field)!r}"
                )


def aadml_objective(
    audio: Array,
    visual: Array,
    labels: Array,
    *,
    options: ObjectiveOptions | None = None,
) -> tuple[Array, dict[str, Array]]:
    """The AADML objective of a batch of label-space outputs.

    Args:
      audio: the audio tower's outputs P [B, C].
      visual: the visual tower's outputs P [B, C] of the same clips.
      labels: class numbers in 0 … C − 1, integer [B], or multi-hot [B, C].
      options: what the objective is made of; None is `ObjectiveOptions()`.

    Returns:
      The scalar, and its parts as scalars: `loss` (the scalar again), `label_loss` and
      `metric_loss` (unweighted sums), and their terms `label_loss_audio`, `label_loss_visual`,
      `metric_loss_audio_to_visual`, `metric_loss_visual_to_audio` and, with `intra_modal`,
      `metric_loss_audio_to_audio`, `metric_loss_visual_to_visual`.

    Raises:
      ValueError: for an unknown option or shapes that do not fit.
    """
    options = options or ObjectiveOptions()
    audio, visual = as_same_float(audio, visual)
    labels = as_labels(labels)
    if audio.ndim != 2 or audio.shape != visual.shape or labels.shape[:1] != audio.shape[:1]:
        raise ValueError(
            "audio [B, C], visual [B, C] and labels [B] or [B, C] are needed; "
            f"got {audio.shape}, {visual.shape} and {labels.shape}"
        )
    if labels.ndim == 2 and labels.shape != audio.shape:
        raise ValueError(f"multi-hot labels must be {audio.shape}; got {labels.shape}")

    if labels.ndim == 1:
        targets = jax.nn.one_hot(labels, audio.shape[1], dtype=audio.dtype)
    else:
        targets = (labels != 0).astype(audio.dtype)
    label_loss = LABEL_LOSSES[options.label_loss]
    label_terms = {"audio": label_loss(audio, targets), "visual": label_loss(visual, targets)}

    relevance = similarity.same_label(labels, labels)
    others = ~jnp.eye(audio.shape[0], dtype=bool)
    metric_loss, distance = METRIC_LOSSES[options.loss], DISTANCES[options.distance]

    def anchors(embeddings: Array) -> Array:
        if not options.anchor_aware:
            return embeddings
        return anchor_aware_proxies(
            embeddings,
            labels,
            num_neighbors=options.num_neighbors,
            attention=options.attention,
            same_class=options.same_class,
        )

    modalities = {"audio": audio, "visual": visual}
    metric_terms = {}
    for source, embeddings in modalities.items():
        proxies = anchors(embeddings)
        for target, references in modalities.items():
            if source == target and not options.intra_modal:
                continue
            metric_terms[f"{source}_to_{target}"] = metric_loss(
                distance(proxies, references),
                relevance,
                margin=options.margin,
                where=others if source == target else None,
            )

    label_sum = sum(label_terms.values())
    metric_sum = sum(metric_terms.values())
    total = options.label_weight * label_sum + options.metric_weight * metric_sum
    parts = {
        "loss": total,
        "label_loss": label_sum,
        "metric_loss": metric_sum,
        **{f"label_loss_{name}": value for name, value in label_terms.items()},
        **{f"metric_loss_{name}": value for name, value in metric_terms.items()},
    }
    return total, parts
