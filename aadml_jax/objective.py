"""The training objective of AADML: both towers' outputs to a scalar and its named parts.

objective = label_weight · (label loss of audio + label loss of visual)
          + metric_weight · (sum of the directions' metric losses)

In each direction the anchors of one modality, as anchor-aware proxies, are compared with the plain
embeddings of the other (Zeng et al., ICMR 2024, arXiv:2404.13789, step 3). Where the anchors are
class proxies instead, each modality's samples, as anchor-aware proxies, are compared with them. The
paper does not publish its label loss, weights or margins; those are this library's choices, by what
its study found (docs/study.md). As the paper is read here, the label loss is squared and the margin
of the triplet loss 1.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from aadml_jax import losses, similarity
from aadml_jax._arrays import Array, as_labels, as_same_float, check_scalar, rows_of_share
from aadml_jax.anchor_aware import anchor_aware_proxies, check_neighbors


class MetricLoss(NamedTuple):
    """How the objective uses a loss.

    Attributes:
      function: from `aadml_jax.losses`.
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
METRIC_LOSSES: dict[str, MetricLoss] = {
    # Beside cross-entropy 0.3 retrieved better than 1 where data were scarce, as well elsewhere.
    "triplet": MetricLoss(losses.triplet_loss, {"margin": 0.3}),
    # At margin 1 a hinge in cosine distance is quiet only once all classes are orthogonal.
    "semihard_triplet": MetricLoss(losses.semihard_triplet_loss, {"margin": 1.0}),
    "hard_triplet": MetricLoss(losses.hard_triplet_loss, {"margin": 1.0}),
    "contrastive": MetricLoss(losses.contrastive_loss, {"margin": 1.0}),
    # The function's defaults are for Euclidean distances of unit vectors; in cosine distance these
    # ask for positives within 0.5 and negatives beyond 1, at a right angle.
    "margin": MetricLoss(losses.margin_loss, {"margin": 0.25, "beta": 0.75}),
    "lifted_structure": MetricLoss(losses.lifted_structure_loss, {"margin": 1.0}),
    "ntxent": MetricLoss(losses.ntxent_loss, {"temperature": 0.5}, on_similarities=True),
    "supcon": MetricLoss(losses.supcon_loss, {"temperature": 0.5}, on_similarities=True),
    "multi_similarity": MetricLoss(
        losses.multi_similarity_loss,
        {"alpha": 2.0, "beta": 10.0, "base": 0.5},
        on_similarities=True,
    ),
    "circle": MetricLoss(losses.circle_loss, {"margin": 0.4, "gamma": 1.0}, on_similarities=True),
    "proxy_anchor": MetricLoss(
        losses.proxy_anchor_loss,
        {"margin": 0.1, "alpha": 4.0},
        on_similarities=True,
        on_class_proxies=True,
    ),
    "smooth_ap": MetricLoss(losses.smooth_ap_loss, {"temperature": 0.05}, on_similarities=True),
}

LOSS_PARAMETERS = ("margin", "temperature", "alpha", "beta", "base", "gamma")

DISTANCES: dict[str, Callable[[Array, Array], Array]] = {
    "cosine": similarity.cosine_distance,
    "euclidean": similarity.euclidean_distance,
    "squared_euclidean": similarity.squared_euclidean_distance,
}


def _squared_label_loss(outputs: Array, targets: Array) -> Array:
    return jnp.mean(jnp.sum(jnp.square(outputs - targets), axis=1))


def _cross_entropy_label_loss(outputs: Array, targets: Array) -> Array:
    shares = targets / jnp.maximum(jnp.sum(targets, axis=1, keepdims=True), 1)
    log_posteriors = jax.nn.log_softmax(outputs, axis=1)
    # One of −∞, of outputs that are 3e38 apart, is nothing to the other classes' share.
    surprises = jnp.where(targets > 0, shares * log_posteriors, 0)
    return -jnp.mean(jnp.sum(surprises, axis=1))


LABEL_LOSSES: dict[str, Callable[[Array, Array], Array]] = {
    "squared": _squared_label_loss,
    "cross_entropy": _cross_entropy_label_loss,
}


PROXY_ROLES = ("in_place", "beside", "both_sides")
NEIGHBORS_FROM = ("own", "other")


@dataclasses.dataclass(frozen=True)
class ObjectiveOptions:
    """What the objective is made of.

    Attributes:
      loss: a key of `METRIC_LOSSES`.
      margin, temperature, alpha, beta, base, gamma: parameters of the metric loss, see its
        function; None is the value in `METRIC_LOSSES`. Those that the loss does not have must be
        None.
      anchor_aware: whether AA proxies take the anchors' place.
      num_neighbors: k of the correlation graph, the anchor counted.
      attention: `"neighbor"` or `"channel"`, see `anchor_aware_proxies`.
      same_class: whether only samples of the anchor's class can be neighbours.
      attention_temperature: τ of the attention, above 0, see `anchor_aware_proxies`.
      neighbors_from: `"own"`, the anchor's own modality, or `"other"`.
      neighbor_gradient: whether gradients reach the neighbours.
      proxy_role: `"in_place"`, proxies in the anchors' place, as the paper has it; `"beside"`, the
        mean of that loss and the one of the plain anchors; `"both_sides"`, proxies in the place of
        anchors and references. For a loss on class proxies, whose references are the samples,
        `"in_place"` or `"beside"`.
      max_neighbors: the largest k, where `num_neighbors` is traced; else None.
      distance: a key of `DISTANCES`; `"cosine"` for a loss on similarities, which sees cosine
        similarities.
      intra_modal: whether audio→audio and visual→visual are added to the two cross-modal
        directions; there the anchor's own column is left out. False for a loss on class proxies.
      label_loss: `"squared"`, the squared Euclidean distance to the one-hot or multi-hot label,
        summed over classes and averaged over the batch; or `"cross_entropy"` of the softmax, whose
        target is shared equally among the classes of a clip.
      label_weight: factor of the label losses, at least 0.
      metric_weight: factor of the metric losses, at least 0.

    Raises:
      ValueError: for an unknown name, options that do not go together, or, unless traced, a number
        that cannot be: one that is not finite, a weight below 0, k below 1 or beyond
        `max_neighbors`, or 0 or below for a temperature, alpha, gamma or a beta that multiplies an
        exponent, which it does in all losses but `"margin"`.
    """

    loss: str = "triplet"
    margin: float | Array | None = None
    temperature: float | Array | None = None
    alpha: float | Array | None = None
    beta: float | Array | None = None
    base: float | Array | None = None
    gamma: float | Array | None = None
    anchor_aware: bool = True
    num_neighbors: int | Array = 3
    attention: str = "neighbor"
    same_class: bool = True
    attention_temperature: float | Array = 1.0
    neighbors_from: str = "own"
    neighbor_gradient: bool = True
    proxy_role: str = "in_place"
    max_neighbors: int | None = None
    distance: str = "cosine"
    intra_modal: bool = False
    label_loss: str = "cross_entropy"
    label_weight: float | Array = 1.0
    metric_weight: float | Array = 1.0

    def __post_init__(self) -> None:
        """Checks each option, and that all go together."""
        for field, known in (
            ("loss", METRIC_LOSSES),
            ("distance", DISTANCES),
            ("label_loss", LABEL_LOSSES),
            ("neighbors_from", NEIGHBORS_FROM),
            ("proxy_role", PROXY_ROLES),
        ):
            if getattr(self, field) not in known:
                raise ValueError(
                    f"{field} must be one of {sorted(known)}; got {getattr(self, field)!r}"
                )
        if contradiction := conflict(self):
            raise ValueError(contradiction)
        dtype = jnp.result_type(float)
        for name in LOSS_PARAMETERS:
            if getattr(self, name) is not None:
                above = 0 if name in positive_parameters(self.loss) else None
                check_scalar(getattr(self, name), dtype, name, above=above)
        check_scalar(self.attention_temperature, dtype, "attention_temperature", above=0)
        check_neighbors(self.num_neighbors, self.max_neighbors)
        for name in ("label_weight", "metric_weight"):
            check_scalar(getattr(self, name), dtype, name, least=0)

    def loss_parameters(self) -> dict[str, Any]:
        """The metric loss's parameters by name, its own values where none are set."""
        return {
            name: default if getattr(self, name) is None else getattr(self, name)
            for name, default in METRIC_LOSSES[self.loss].parameters.items()
        }


def positive_parameters(loss: str) -> frozenset[str]:
    """Which of a loss's parameters must be above 0: those that multiply or divide exponents.

    The margin loss's beta is a distance.
    """
    names = {"temperature", "alpha", "gamma"} | ({"beta"} if loss != "margin" else set())
    return frozenset(names & set(METRIC_LOSSES[loss].parameters))


def conflict(options: Any) -> str | None:
    """An option that contradicts another one, and why; None where all go together.

    Args:
      options: `ObjectiveOptions`, or a configuration with its attributes and a known loss.
    """
    chosen = METRIC_LOSSES[options.loss]
    culprit = None
    for name in LOSS_PARAMETERS:
        if getattr(options, name) is not None and name not in chosen.parameters:
            culprit, reason = name, f"its parameters are {', '.join(chosen.parameters)}"
    if chosen.on_similarities and options.distance != "cosine":
        culprit, reason = "distance", "it compares cosine similarities"
    if chosen.on_class_proxies and options.intra_modal:
        culprit, reason = "intra_modal", "it compares samples with class proxies"
    if chosen.on_class_proxies and options.proxy_role == "both_sides":
        culprit, reason = "proxy_role", "one of its sides are class proxies"
    if culprit is None and not options.anchor_aware:
        for name, default in (("proxy_role", "in_place"), ("neighbors_from", "own")):
            if getattr(options, name) != default:
                return f"{name}={getattr(options, name)} does nothing without anchor_aware"
    if culprit is None:
        return None
    return f"{culprit}={getattr(options, culprit)} does not go with loss={options.loss}: {reason}"


def _mean(values: Iterable[Array]) -> Array:
    values = list(values)
    return sum(values) / len(values)


def aadml_objective(
    audio: Array,
    visual: Array,
    labels: Array,
    *,
    class_proxies: Array | None = None,
    options: ObjectiveOptions | None = None,
    axis_name: str | None = None,
) -> tuple[Array, dict[str, Array]]:
    """The AADML objective of a batch of label-space outputs.

    Split over devices, each gives its equal share of the batch, in order, and the axis: outputs and
    labels are gathered, so that graph, proxies and losses see the whole batch, and each device
    computes the rows of its own anchors. The result is that of the whole batch on every device. So
    is the gradient, once it is averaged over the axis by `jax.lax.pmean`.

    Args:
      audio: the audio tower's outputs P [B, C].
      visual: the visual tower's outputs P [B, C] of the same clips.
      labels: class numbers in 0 … C − 1, integer [B], or multi-hot [B, C], bool or exactly 0 and 1.
        A row of zeros is a clip of no class: it has no positives, its cross-entropy is 0, and the
        squared label loss pulls its outputs to 0. The values of traced labels cannot be checked; a
        class number outside is then a clip of no class.
      class_proxies: [C, C], one row per class, for losses on class proxies; None stands for the
        one-hot vectors, which are the classes' own places in label space.
      options: what the objective is made of; None is `ObjectiveOptions()`.
      axis_name: of `jax.shard_map` or `jax.pmap`, where each device holds its share of the batch.

    Returns:
      The scalar, and its parts as scalars: `loss` (the scalar again), `label_loss` and
      `metric_loss` (unweighted sums), and their terms `label_loss_audio`, `label_loss_visual`,
      `metric_loss_audio_to_visual`, `metric_loss_visual_to_audio` and, with `intra_modal`,
      `metric_loss_audio_to_audio`, `metric_loss_visual_to_visual`. Losses on class proxies have
      `metric_loss_classes_to_audio` and `metric_loss_classes_to_visual` instead of these.

    Outputs of any finite size give a finite gradient with the defaults. The squared label loss of
    outputs beyond 1e19 is infinite in float32, and so are losses on the squared Euclidean distance.

    Raises:
      ValueError: for shapes that do not fit; for labels as `same_label` refuses them; for class
        numbers outside 0 … C − 1, unless traced.
    """
    options = options or ObjectiveOptions()
    audio, visual = as_same_float(audio, visual)
    is_matrix = audio.ndim == 2
    labels = as_labels(labels, num_classes=audio.shape[1] if is_matrix else None)
    has_labels = labels.ndim in (1, 2) and labels.shape[:1] == audio.shape[:1]
    if not is_matrix or audio.shape != visual.shape or not has_labels:
        raise ValueError(
            "audio [B, C], visual [B, C] and labels [B] or [B, C] are needed; "
            f"got {audio.shape}, {visual.shape} and {labels.shape}"
        )
    if labels.ndim == 2 and labels.shape != audio.shape:
        raise ValueError(f"multi-hot labels must be {audio.shape}; got {labels.shape}")
    num_classes = audio.shape[1]
    if class_proxies is not None and not METRIC_LOSSES[options.loss].on_class_proxies:
        raise ValueError(f"class_proxies are given, but loss={options.loss!r} has none")
    if class_proxies is not None and jnp.shape(class_proxies) != (num_classes, num_classes):
        raise ValueError(
            f"class_proxies must be {(num_classes, num_classes)}; got {jnp.shape(class_proxies)}"
        )

    if labels.ndim == 1:
        targets = jax.nn.one_hot(labels, num_classes, dtype=audio.dtype)
    else:
        targets = labels.astype(bool).astype(audio.dtype)
    label_loss = LABEL_LOSSES[options.label_loss]
    label_terms = {"audio": label_loss(audio, targets), "visual": label_loss(visual, targets)}

    own = {"audio": audio, "visual": visual}
    rows = rows_of_share(audio.shape[0], axis_name)
    if axis_name is None:
        whole, all_labels, all_targets = own, labels, targets
    else:
        gather = functools.partial(jax.lax.all_gather, axis_name=axis_name, tiled=True)
        whole, all_labels, all_targets = jax.tree.map(gather, (own, labels, targets))

    def aware(modality: str, all_rows: bool = False) -> Array:
        other = "visual" if modality == "audio" else "audio"
        return anchor_aware_proxies(
            whole[modality],
            all_labels,
            num_neighbors=options.num_neighbors,
            attention=options.attention,
            same_class=options.same_class,
            rows=None if all_rows or axis_name is None else rows,
            references=whole[other] if options.neighbors_from == "other" else None,
            temperature=options.attention_temperature,
            neighbor_gradient=options.neighbor_gradient,
            max_neighbors=options.max_neighbors,
        )

    def anchors_of(modality: str) -> list[Array]:
        """What stands in the anchors' place; the loss is the mean over these."""
        if not options.anchor_aware:
            return [own[modality]]
        if options.proxy_role == "beside":
            return [own[modality], aware(modality)]
        return [aware(modality)]

    def references_of(modality: str) -> Array:
        if not options.anchor_aware or options.proxy_role != "both_sides":
            return whole[modality]
        return aware(modality, all_rows=True)

    chosen = METRIC_LOSSES[options.loss]
    compare = (
        similarity.cosine_similarity if chosen.on_similarities else DISTANCES[options.distance]
    )
    metric_loss = functools.partial(chosen.function, **options.loss_parameters())
    metric_terms = {}
    if chosen.on_class_proxies:
        one_hot = jnp.eye(num_classes, dtype=audio.dtype)
        proxies = one_hot if class_proxies is None else class_proxies
        for target in own:
            metric_terms[f"classes_to_{target}"] = _mean(
                metric_loss(
                    compare(proxies, samples if axis_name is None else gather(samples)),
                    all_targets.T > 0,
                )
                for samples in anchors_of(target)
            )
    else:
        relevance = similarity.same_label(labels, all_labels)
        others = rows[:, None] != jnp.arange(len(all_labels), dtype=jnp.int32)[None, :]
        anchors = {source: anchors_of(source) for source in own}
        references = {target: references_of(target) for target in own}
        for source, target in itertools.product(own, own):
            if source == target and not options.intra_modal:
                continue
            metric_terms[f"{source}_to_{target}"] = _mean(
                metric_loss(
                    compare(of_source, references[target]),
                    relevance,
                    where=others if source == target else None,
                )
                for of_source in anchors[source]
            )

    if axis_name is not None:
        # All shares are of one size, so the mean of their means is the mean over the batch.
        label_terms, metric_terms = jax.lax.pmean((label_terms, metric_terms), axis_name)
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
