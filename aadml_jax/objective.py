"""The training objective of AADML: both towers' outputs to a scalar and its named parts.

objective = label_weight · (label loss of audio + label loss of visual)
          + metric_weight · (sum of the directions' metric losses)

In each direction the anchors of one modality, as anchor-aware proxies, are compared with the plain
embeddings of the other (Zeng et al., ICMR 2024, arXiv:2404.13789, step 3). Losses, comparison and
proxies are values that the caller passes; any function of their signature serves:

    def squared_hinge(distances, relevance, *, where=None):
        gaps = jnp.where(relevance, distances, jnp.maximum(0.5 - distances, 0))
        return jnp.mean(jnp.square(gaps), where=where)

    total, parts = aadml_objective(audio, visual, labels, metric_loss=squared_hinge)

The paper does not publish its label loss, weights or margins; the defaults are this library's, by
what its study found (docs/study.md).
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from aadml_jax._arrays import (
    Array,
    ArrayLike,
    LabelsLike,
    as_labels,
    as_same_float,
    check_count,
    check_scalar,
    global_row_numbers,
)
from aadml_jax._sharding import gathered, split_alike
from aadml_jax.anchor_aware import ATTENTIONS, anchor_aware_proxies, check_neighbors
from aadml_jax.label_losses import cross_entropy_label_loss
from aadml_jax.losses import proxy_anchor_loss, triplet_loss
from aadml_jax.row_blocks import in_row_blocks, mean_in_row_blocks, rows_of_block
from aadml_jax.similarity import cosine_distance, cosine_similarity, same_label

PROXY_ROLES = ("in_place", "beside", "both_sides")
NEIGHBORS_FROM = ("own", "other")


@dataclasses.dataclass(frozen=True)
class AnchorAware:
    """How the anchors of an objective become anchor-aware proxies.

    The first three fields are the paper's; the others are this library's, and their defaults leave
    the method as the paper is read here.

    Attributes:
      num_neighbors: k of the correlation graph, the anchor counted; 1 is the method without AA.
        May be traced if `max_neighbors` is given.
      attention: `"neighbor"` or `"channel"`, see `anchor_aware_proxies`.
      same_class: whether only samples of the anchor's class can be neighbours.
      temperature: τ of the attention, above 0; may be traced.
      neighbors_from: `"own"`, the anchor's own modality, or `"other"`.
      neighbor_gradient: whether gradients reach the neighbours.
      role: `"in_place"`, proxies in the anchors' place, as the paper has it; `"beside"`, the mean
        of that loss and the one of the plain anchors; `"both_sides"`, proxies in the place of
        anchors and references, which is not for `class_proxy_objective`.
      max_neighbors: the largest k, where `num_neighbors` is traced; else None.

    Raises:
      ValueError: for an unknown name, or, unless traced, a temperature that is not finite and above
        0, or a k below 1 or beyond `max_neighbors`.
    """

    num_neighbors: ArrayLike = 3
    attention: str = "neighbor"
    same_class: bool = True
    temperature: ArrayLike = 1.0
    neighbors_from: str = "own"
    neighbor_gradient: bool = True
    role: str = "in_place"
    max_neighbors: int | None = None

    def __post_init__(self) -> None:
        """Checks each field."""
        for field, known in (
            ("attention", ATTENTIONS),
            ("neighbors_from", NEIGHBORS_FROM),
            ("role", PROXY_ROLES),
        ):
            if getattr(self, field) not in known:
                raise ValueError(
                    f"{field} must be one of {sorted(known)}; got {getattr(self, field)!r}"
                )
        check_scalar(self.temperature, jnp.result_type(float), "temperature", above=0)
        check_neighbors(self.num_neighbors, self.max_neighbors)


Compare = Callable[[Array, Array], Array]
"""Anchors [N, C] and references [M, C] to distances or similarities [N, M]."""

MetricLoss = Callable[..., Array]
"""(distances or similarities [N, M], relevance bool [N, M], where=bool [N, M] or None) to a scalar,
a mean over the rows: `aadml_jax.losses` with `functools.partial`, or a function of your own."""

LabelLoss = Callable[[Array, Array], Array]
"""(outputs [B, C], targets [B, C] of 0 and 1) to a scalar, a mean over the rows."""

Objective = Callable[..., tuple[Array, dict[str, Array]]]
"""`aadml_objective` or `class_proxy_objective` with what they are made of: a function of the
towers' outputs, the labels and `axis_name=`, and of the `class_proxies=` where they are learned."""

_PAPERS_PROXIES = AnchorAware()
# With the parameters of training, see `aadml_jax.training.named_losses`.
_TRIPLET = functools.partial(triplet_loss, margin=0.3)
_PROXY_ANCHOR = functools.partial(proxy_anchor_loss, margin=0.1, alpha=4.0)


def aadml_objective(
    audio: ArrayLike,
    visual: ArrayLike,
    labels: LabelsLike,
    *,
    metric_loss: MetricLoss = _TRIPLET,
    compare: Compare = cosine_distance,
    label_loss: LabelLoss = cross_entropy_label_loss,
    proxies: AnchorAware | None = _PAPERS_PROXIES,
    intra_modal: bool = False,
    label_weight: ArrayLike = 1.0,
    metric_weight: ArrayLike = 1.0,
    axis_name: str | None = None,
    stacked: bool = False,
    block_size: int | None = None,
) -> tuple[Array, dict[str, Array]]:
    """The AADML objective of a batch of label-space outputs.

    Split over devices, each gives its equal shard of the batch, in order, and the axis: outputs and
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
      metric_loss: a mean over anchors of a loss on what `compare` gives, such as `triplet_loss`
        after distances and `supcon_loss` after similarities. Neither it nor this function can tell
        which of the two it gets. Default the triplet loss with margin 0.3.
      compare: anchors and references to the matrix that `metric_loss` takes.
      label_loss: outputs and their one-hot or multi-hot targets to a mean over rows.
      proxies: how anchors become proxies; None leaves them as they are.
      intra_modal: whether audio→audio and visual→visual are added to the two cross-modal
        directions; there the anchor's own column is left out by `where`.
      label_weight: factor of the label losses, at least 0.
      metric_weight: factor of the metric losses, at least 0.
      axis_name: of `jax.shard_map` or `jax.pmap`, where each device holds its shard of the batch.
      stacked: whether what is done for one modality and then for the other is one operation on
        both, mapped by `jax.vmap`: half as many operations, which is what a GPU's time goes by at
        the usual batch; a CPU gains nothing. It changes no number beyond rounding.
      block_size: anchors that meet the whole batch at a time, at least 1, so that memory is
        O(block_size × B) instead of O(S × B) for the S anchors of a device. For the gradient, the
        proxies of a block are computed again instead of being stored. It changes no number beyond
        rounding. Default all at once.

    Returns:
      The scalar, and its parts as scalars: `loss` (the scalar again), `label_loss` and
      `metric_loss` (unweighted sums), and their terms `label_loss_audio`, `label_loss_visual`,
      `metric_loss_audio_to_visual`, `metric_loss_visual_to_audio` and, with `intra_modal`,
      `metric_loss_audio_to_audio`, `metric_loss_visual_to_visual`.

    Outputs of any finite size give a finite gradient with the defaults. The squared label loss of
    outputs beyond 1e19 is infinite in float32, and so are losses on the squared Euclidean distance.

    Raises:
      ValueError: for shapes that do not fit; for labels as `same_label` refuses them; for class
        numbers outside 0 … C − 1, or a weight that is not finite and at least 0, unless traced; for
        a block_size below 1.
    """
    batch = _gathered(audio, visual, labels, axis_name)
    if block_size is not None:
        block_size = check_count(block_size, "block_size", batch.own["audio"].shape)
    of_each = _on_both if stacked else _one_by_one
    label_terms = of_each(lambda outputs: label_loss(outputs, batch.own_targets), batch.own)
    columns = jnp.arange(len(batch.labels), dtype=jnp.int32)
    outputs = _ModalityOutputs.of(batch)
    anchors = of_each(functools.partial(_anchors, batch, proxies, block_size), outputs)
    references = of_each(functools.partial(_references, batch, proxies, block_size), outputs)

    def loss_of(direction: tuple[list[Array], Array], *, is_within: bool) -> Array:
        of_sources, of_target = direction

        def loss_of_block(block: tuple[Array, Array, Array]) -> Array:
            of_source, labels, rows = block
            return metric_loss(
                compare(of_source, of_target),
                same_label(labels, batch.labels),
                where=rows[:, None] != columns[None, :] if is_within else None,
            )

        return _mean(
            _mean_of_blocks(loss_of_block, (of_source, batch.own_labels, batch.rows), block_size)
            for of_source in of_sources
        )

    directions = {
        f"{source}_to_{target}": (anchors[source], references[target])
        for source, target in itertools.product(batch.own, batch.own)
    }
    within = {f"{name}_to_{name}" for name in batch.own}
    metric_terms = of_each(
        functools.partial(loss_of, is_within=False),
        {name: pair for name, pair in directions.items() if name not in within},
    )
    if intra_modal:
        metric_terms |= of_each(
            functools.partial(loss_of, is_within=True), {name: directions[name] for name in within}
        )
        metric_terms = {name: metric_terms[name] for name in directions}
    return _total(label_terms, metric_terms, label_weight, metric_weight, axis_name)


def class_proxy_objective(
    audio: ArrayLike,
    visual: ArrayLike,
    labels: LabelsLike,
    *,
    metric_loss: MetricLoss = _PROXY_ANCHOR,
    class_proxies: ArrayLike | None = None,
    compare: Compare = cosine_similarity,
    label_loss: LabelLoss = cross_entropy_label_loss,
    proxies: AnchorAware | None = _PAPERS_PROXIES,
    label_weight: ArrayLike = 1.0,
    metric_weight: ArrayLike = 1.0,
    axis_name: str | None = None,
    stacked: bool = False,
    block_size: int | None = None,
) -> tuple[Array, dict[str, Array]]:
    """The objective with a loss whose rows are class proxies, such as `proxy_anchor_loss`.

    Each modality's samples, as anchor-aware proxies, are the columns.

    Args:
      audio: see `aadml_objective`.
      visual: see `aadml_objective`.
      labels: see `aadml_objective`.
      metric_loss: a mean over classes of a loss on what `compare` gives. Default the proxy anchor
        loss with margin 0.1 and alpha 4.
      class_proxies: [C, C], one row per class; None stands for the one-hot vectors, which are the
        classes' own places in label space.
      compare: class proxies and samples to the matrix that `metric_loss` takes.
      label_loss: see `aadml_objective`.
      proxies: how samples become proxies; None leaves them as they are.
      label_weight: see `aadml_objective`.
      metric_weight: see `aadml_objective`.
      axis_name: see `aadml_objective`.
      stacked: see `aadml_objective`.
      block_size: see `aadml_objective`; it bounds the memory of the graph.

    Returns:
      The scalar and its parts as `aadml_objective` has them, with the terms
      `metric_loss_classes_to_audio` and `metric_loss_classes_to_visual`.

    Raises:
      ValueError: as `aadml_objective`, and for proxies on both sides, of which one are classes.
    """
    if proxies is not None and proxies.role == "both_sides":
        raise ValueError("role='both_sides' needs samples on both sides, but one are class proxies")
    batch = _gathered(audio, visual, labels, axis_name)
    if block_size is not None:
        block_size = check_count(block_size, "block_size", batch.own["audio"].shape)
    of_each = _on_both if stacked else _one_by_one
    label_terms = of_each(lambda outputs: label_loss(outputs, batch.own_targets), batch.own)
    num_classes = batch.targets.shape[1]
    if class_proxies is None:
        class_proxies = jnp.eye(num_classes, dtype=batch.targets.dtype)
    elif jnp.shape(class_proxies) != (num_classes, num_classes):
        raise ValueError(
            f"class_proxies must be {(num_classes, num_classes)}; got {jnp.shape(class_proxies)}"
        )
    class_proxies, targets = gathered(jnp.asarray(class_proxies)), gathered(batch.targets)
    is_of_class = targets.T > 0

    def loss_of(outputs: _ModalityOutputs) -> Array:
        return _mean(
            metric_loss(compare(class_proxies, batch.gather(samples)), is_of_class)
            for samples in _anchors(batch, proxies, block_size, outputs)
        )

    terms = of_each(loss_of, _ModalityOutputs.of(batch))
    metric_terms = {f"classes_to_{target}": term for target, term in terms.items()}
    return _total(label_terms, metric_terms, label_weight, metric_weight, axis_name)


class _Batch(NamedTuple):
    """A device's rows of a batch, and the whole batch.

    Attributes:
      own: of each modality, this device's outputs [S, C].
      own_labels: [S] or [S, C].
      own_targets: 0 and 1 [S, C].
      whole: of each modality, all outputs [B, C].
      labels: of all rows.
      targets: of all rows [B, C].
      rows: int32 [S], the numbers of this device's rows in the batch.
      axis_name: None where one program holds all rows.
    """

    own: dict[str, Array]
    own_labels: Array
    own_targets: Array
    whole: dict[str, Array]
    labels: Array
    targets: Array
    rows: Array
    axis_name: str | None

    def gather(self, rows: Any) -> Any:
        """This device's rows of a pytree to those of all devices."""
        if self.axis_name is None:
            return rows
        gather = functools.partial(jax.lax.all_gather, axis_name=self.axis_name, tiled=True)
        return jax.tree.map(gather, rows)


def _gathered(
    audio: ArrayLike, visual: ArrayLike, labels: LabelsLike, axis_name: str | None
) -> _Batch:
    audio, visual = as_same_float(audio, visual)
    is_matrix = audio.ndim == 2
    labels = as_labels(labels, num_classes=audio.shape[1] if is_matrix else None)
    has_labels = labels.ndim in (1, 2) and labels.shape[:1] == audio.shape[:1]
    if not is_matrix or audio.shape != visual.shape or not has_labels or not len(audio):
        raise ValueError(
            "audio [B, C], visual [B, C] and labels [B] or [B, C] of B ≥ 1 clips are needed; "
            f"got {audio.shape}, {visual.shape} and {labels.shape}"
        )
    if labels.ndim == 2 and labels.shape != audio.shape:
        raise ValueError(f"multi-hot labels must be {audio.shape}; got {labels.shape}")
    audio, visual, labels = split_alike(audio, visual, labels)
    if labels.ndim == 1:
        targets = jax.nn.one_hot(labels, audio.shape[1], dtype=audio.dtype)
    else:
        targets = labels.astype(bool).astype(audio.dtype)
    own = {"audio": audio, "visual": visual}
    rows = global_row_numbers(audio.shape[0], axis_name)
    local = _Batch(own, labels, targets, own, labels, targets, rows, axis_name)
    whole, all_labels, all_targets = local.gather((own, labels, targets))
    return local._replace(whole=whole, labels=all_labels, targets=all_targets)


class _ModalityOutputs(NamedTuple):
    """One modality's outputs.

    Attributes:
      own: of this device [S, C].
      whole: of all rows [B, C].
      other: the other modality's, of all rows [B, C].
    """

    own: Array
    whole: Array
    other: Array

    @classmethod
    def of(cls, batch: _Batch) -> "dict[str, _ModalityOutputs]":
        """Those of each modality."""
        others = {"audio": "visual", "visual": "audio"}
        return {
            name: cls(batch.own[name], batch.whole[name], batch.whole[other])
            for name, other in others.items()
        }


def _one_by_one(function: Callable[[Any], Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """`function` of each value by its name."""
    return {name: function(value) for name, value in values.items()}


def _on_both(function: Callable[[Any], Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """The same, mapped over all values stacked."""
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *values.values())
    results = jax.vmap(function)(stacked)
    return {
        name: jax.tree.map(lambda leaf, row=row: leaf[row], results)
        for row, name in enumerate(values)
    }


def _proxies(
    batch: _Batch,
    proxies: AnchorAware,
    block_size: int | None,
    outputs: _ModalityOutputs,
    *,
    all_rows: bool = False,
) -> Array:
    def of_rows(rows: Array | None) -> Array:
        return anchor_aware_proxies(
            outputs.whole,
            batch.labels,
            num_neighbors=proxies.num_neighbors,
            attention=proxies.attention,
            same_class=proxies.same_class,
            rows=rows,
            references=outputs.other if proxies.neighbors_from == "other" else None,
            temperature=proxies.temperature,
            neighbor_gradient=proxies.neighbor_gradient,
            max_neighbors=proxies.max_neighbors,
        )

    rows = None if all_rows or batch.axis_name is None else batch.rows
    num_rows = len(outputs.whole if rows is None else rows)
    if block_size is None or block_size >= num_rows:
        return of_rows(rows)
    rows = jnp.arange(num_rows, dtype=jnp.int32) if rows is None else rows
    return in_row_blocks(lambda block, _: of_rows(block), rows, block_size=block_size)


def _anchors(
    batch: _Batch, proxies: AnchorAware | None, block_size: int | None, outputs: _ModalityOutputs
) -> list[Array]:
    """What stands in the anchors' place; the loss is the mean over these."""
    if proxies is None:
        return [outputs.own]
    if proxies.role == "beside":
        return [outputs.own, _proxies(batch, proxies, block_size, outputs)]
    return [_proxies(batch, proxies, block_size, outputs)]


def _references(
    batch: _Batch, proxies: AnchorAware | None, block_size: int | None, outputs: _ModalityOutputs
) -> Array:
    if proxies is None or proxies.role != "both_sides":
        return outputs.whole
    return _proxies(batch, proxies, block_size, outputs, all_rows=True)


def _mean_of_blocks(
    loss: Callable[[Any], Array], anchors: tuple[Array, ...], block_size: int | None
) -> Array:
    """`loss(anchors)`, a mean over rows, from the means of blocks and of what is left over."""
    if block_size is None:
        return loss(anchors)
    anchors = split_alike(*anchors)
    num_rows = len(anchors[0])
    # A block that is filled up, as the last one of another size would be, has another mean.
    block_size = rows_of_block(block_size, anchors[0])
    if block_size >= num_rows:
        return loss(anchors)
    in_blocks = num_rows // block_size * block_size
    mean = mean_in_row_blocks(
        lambda block, rows: jnp.broadcast_to(loss(block), rows.shape),
        tuple(array[:in_blocks] for array in anchors),
        block_size=block_size,
    )
    if in_blocks == num_rows:
        return mean
    rest = jax.checkpoint(loss)(tuple(array[in_blocks:] for array in anchors))
    return (mean * in_blocks + rest * (num_rows - in_blocks)) / num_rows


def _sum(values: Iterable[Array]) -> Array:
    return jnp.asarray(sum(values))


def _mean(values: Iterable[Array]) -> Array:
    values = list(values)
    return _sum(values) / len(values)


def _total(
    label_terms: Mapping[str, Array],
    metric_terms: Mapping[str, Array],
    label_weight: ArrayLike,
    metric_weight: ArrayLike,
    axis_name: str | None,
) -> tuple[Array, dict[str, Array]]:
    """The weighted sum of all terms, and its parts."""
    dtype = jnp.result_type(float)
    check_scalar(label_weight, dtype, "label_weight", least=0)
    check_scalar(metric_weight, dtype, "metric_weight", least=0)
    if axis_name is not None:
        # All shards are of one size, so the mean of their means is the mean over the batch.
        label_terms, metric_terms = jax.lax.pmean((label_terms, metric_terms), axis_name)
    label_sum = _sum(label_terms.values())
    metric_sum = _sum(metric_terms.values())
    total = label_sum * label_weight + metric_sum * metric_weight
    parts = {
        "loss": total,
        "label_loss": label_sum,
        "metric_loss": metric_sum,
        **{f"label_loss_{name}": value for name, value in label_terms.items()},
        **{f"metric_loss_{name}": value for name, value in metric_terms.items()},
    }
    return total, parts
