"""The same losses and training step in PyTorch, plain and with pytorch-metric-learning (PML).

The plain code is written for speed, as a PyTorch user would who does not want to build triplets.
Every loss here takes the embeddings of R anchors and of M references and a `Pairs`, and returns the
mean over the anchors (PML's triplet losses: over the triplets, see `PeerLoss.reduction`).

Needs `pip install -e ".[bench]"`. Traps of PML that this file goes around:

- Passing one tensor as `labels` and as `ref_labels` makes PML drop the diagonal, as if both sides
  were one set; a copy keeps it. `Pairs` makes the copy.
- The default reducer of its triplet, contrastive, SupCon and circle losses averages over non-zero
  terms only. `MeanReducer` averages over all, `PerAnchorReducer` first over each anchor's pairs.
- `LpDistance`, its default, normalises the embeddings; without squaring it is the root of twice the
  cosine distance. `CosineSimilarity` turns the sign of margins around: a margin m of the cosine
  distance is `pos_margin=1, neg_margin=1 − m` there, and `beta=1 − β`.
- `ContrastiveLoss` does not square; a subclass does.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from pytorch_metric_learning import distances as pml_distances
from pytorch_metric_learning import losses as pml_losses
from pytorch_metric_learning import reducers as pml_reducers
from torch import Tensor, nn

from benchmarks import side_by_side

torch.set_num_threads(side_by_side.cores())


def describe_threads() -> str:
    """The setting that decides PyTorch's speed on a CPU."""
    return f"PyTorch {torch.get_num_threads()} thread(s), on the CPU"


class Pairs:
    """Who is of whose class, computed once per batch and only as far as a loss asks.

    Attributes:
      anchor_labels: int64 [R].
      reference_labels: int64 [M], never the same object as `anchor_labels`.
    """

    def __init__(self, anchor_labels: Tensor, reference_labels: Tensor) -> None:
        """Keeps the labels."""
        is_one = anchor_labels is reference_labels
        self.anchor_labels = anchor_labels
        self.reference_labels = reference_labels.clone() if is_one else reference_labels

    @functools.cached_property
    def same(self) -> Tensor:
        """Bool [R, M]."""
        return self.anchor_labels[:, None] == self.reference_labels[None, :]

    @functools.cached_property
    def num_positives(self) -> Tensor:
        """Int64 [R, 1]."""
        return self.same.sum(1, keepdim=True)

    @functools.cached_property
    def positive_columns(self) -> Tensor:
        """Int64 [R, most positives]: each anchor's positives, filled up with M."""
        rows, columns = self.same.nonzero(as_tuple=True)
        counts = self.num_positives[:, 0]
        places = torch.arange(len(rows), device=rows.device) - (counts.cumsum(0) - counts)[rows]
        shape = (len(counts), int(counts.max()))
        filling = torch.full(shape, self.same.shape[1], device=rows.device)
        return filling.index_put_((rows, places), columns)


def cosine_distance(anchors: Tensor, references: Tensor) -> Tensor:
    """1 − cosine similarity [R, M]."""
    return 1 - F.normalize(anchors) @ F.normalize(references).T


def anchor_aware_proxies(embeddings: Tensor, same: Tensor, num_neighbors: int = 3) -> Tensor:
    """Attention of each anchor over itself and its most correlated samples of its class."""
    with torch.no_grad():
        unit = F.normalize(embeddings)
        candidates = (unit @ unit.T).masked_fill_(~same, -math.inf).fill_diagonal_(-math.inf)
        correlation, others = candidates.topk(num_neighbors - 1, dim=1)
        is_missing = F.pad(correlation == -math.inf, (1, 0))
        own = torch.arange(len(embeddings), device=embeddings.device)
        neighbors = torch.cat([own[:, None], others], 1)
    values = F.embedding(neighbors, embeddings)
    logits = (values @ embeddings[:, :, None])[:, :, 0] / math.sqrt(embeddings.shape[1])
    weights = logits.masked_fill(is_missing, -math.inf).softmax(1)
    return (weights[:, None, :] @ values)[:, 0]


def contrastive(anchors: Tensor, references: Tensor, pairs: Pairs, margin: float = 1.0) -> Tensor:
    """Mean d² of an anchor's positives plus mean max(0, margin − d)² of its negatives."""
    distances = cosine_distance(anchors, references)
    positives = pairs.num_positives.to(distances.dtype)
    weights = torch.where(
        pairs.same, 1 / positives.clamp(min=1), 1 / (len(references) - positives).clamp(min=1)
    )
    terms = torch.where(pairs.same, distances, F.relu(margin - distances))
    return (weights * terms.square()).sum() / len(anchors)


class _HingesByArgsort(torch.autograd.Function):
    """Mean hinge over each anchor's triplets by one argsort per row.

    Of the variants tried (the counts scattered back and multiplied with the distances; a sort that
    autograd differentiates; running sums differentiated by autograd) this one was the fastest: the
    count of violations of each entry is its weight in the sum and its derivative, so that the
    backward pass is one product.
    """

    @staticmethod
    def forward(ctx, distances: Tensor, pairs: Pairs, margin: float) -> Tensor:
        """Sums the hinges."""
        keys, order = torch.where(pairs.same, distances + margin, distances).sort(1)
        is_positive = pairs.same.gather(1, order)
        positives = is_positive.cumsum(1, dtype=torch.int32)
        places = torch.arange(1, keys.shape[1] + 1, dtype=torch.int32, device=keys.device)
        total = pairs.num_positives.to(torch.int32)
        counts = torch.where(is_positive, places - positives, positives - total)
        weights = counts.to(keys.dtype).div_(_triplets_per_anchor(pairs, keys.dtype))
        ctx.save_for_backward(torch.empty_like(keys).scatter_(1, order, weights))
        return (weights * keys).sum(1)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:
        """The saved weights times the gradient by each anchor's value."""
        return ctx.saved_tensors[0] * gradient[:, None], None, None


class _HingesBySearch(torch.autograd.Function):
    """The same by sorting the few positives alone and searching the negatives among them.

    Faster than one argsort of the whole row where positives are few, as with ten classes.
    """

    @staticmethod
    def forward(ctx, distances: Tensor, pairs: Pairs, margin: float) -> Tensor:
        """Sums the hinges."""
        columns, width = pairs.positive_columns, distances.shape[1]
        is_filling = columns == width
        keys = distances.gather(1, columns.clamp(max=width - 1))
        keys, order = keys.add_(margin).masked_fill_(is_filling, math.inf).sort(1)
        places = torch.searchsorted(keys, distances)  # positives below each negative
        most = keys.shape[1]
        bins = torch.where(pairs.same, most, places)
        ones = torch.ones((), dtype=keys.dtype, device=keys.device).expand_as(distances)
        counts = keys.new_zeros(len(keys), most + 1).scatter_add_(1, bins, ones)
        counts = counts[:, :most].cumsum(1)
        counts = torch.empty_like(counts).scatter_(1, order, counts)
        weights = keys.new_empty(len(keys), width + 1)  # one column more takes the filling
        weights[:, :width] = places - pairs.num_positives
        weights = weights.scatter_(1, columns, counts)[:, :width]
        weights = weights / _triplets_per_anchor(pairs, keys.dtype)
        ctx.save_for_backward(weights)
        return (weights * torch.where(pairs.same, distances + margin, distances)).sum(1)

    backward = _HingesByArgsort.backward


def _triplets_per_anchor(pairs: Pairs, dtype: torch.dtype) -> Tensor:
    positives = pairs.num_positives
    return (positives * (pairs.same.shape[1] - positives)).clamp(min=1).to(dtype)


def triplets_by_argsort(
    anchors: Tensor, references: Tensor, pairs: Pairs, margin: float = 1.0
) -> Tensor:
    """Mean hinge over all triplets of an anchor, averaged over the anchors."""
    return _HingesByArgsort.apply(cosine_distance(anchors, references), pairs, margin).mean()


def triplets_by_search(
    anchors: Tensor, references: Tensor, pairs: Pairs, margin: float = 1.0
) -> Tensor:
    """The value of `triplets_by_argsort`, see `_HingesBySearch`."""
    return _HingesBySearch.apply(cosine_distance(anchors, references), pairs, margin).mean()


def smooth_ap(
    anchors: Tensor, references: Tensor, pairs: Pairs, temperature: float = 0.01
) -> Tensor:
    """1 − Smooth-AP, comparing each positive of an anchor with all references."""
    similarities = F.normalize(anchors) @ F.normalize(references).T
    columns, width = pairs.positive_columns, len(references)
    is_filling = columns == width
    columns = columns.clamp(max=width - 1)
    scores = similarities.gather(1, columns)
    above = ((similarities[:, None, :] - scores[:, :, None]) / temperature).sigmoid()
    # Each positive meets itself once, as σ(0): half a place too much in both ranks.
    ranks = 0.5 + above.sum(2)
    ranks_among_positives = 0.5 + (above @ pairs.same[:, :, None].to(above.dtype))[:, :, 0]
    precisions = (ranks_among_positives / ranks).masked_fill(is_filling, 0)
    return (1 - precisions.sum(1) / pairs.num_positives[:, 0].clamp(min=1)).mean()


@dataclasses.dataclass(frozen=True)
class PeerLoss:
    """A loss of another library.

    Attributes:
      name: of its row.
      function: (anchors [R, D], references [M, D], pairs) -> scalar; None if it has none.
      bytes_built: memory of value and gradient in one direction, from the counts of each class;
        the factors are numbers of bytes held at once per pair or triplet.
      reduction: `"anchors"` if the value is the mean over anchors, `"triplets"` if it is the mean
        over all triplets of the batch (the same where all classes are equally frequent).
      in_blocks: whether blocks of anchors may be given one by one.
      note: for the table.
    """

    name: str
    function: Callable[[Tensor, Tensor, Pairs], Tensor] | None
    bytes_built: Callable[[np.ndarray], float]
    reduction: str = "anchors"
    in_blocks: bool = False
    note: str = ""


def _per_pair(size: float) -> Callable[[np.ndarray], float]:
    return lambda counts: size * float(counts.sum()) ** 2


def _per_triplet(size: float) -> Callable[[np.ndarray], float]:
    def needed(counts: np.ndarray) -> float:
        counts = np.asarray(counts, float)
        # Up to 2³¹ (anchor, column, column) combinations PML marks each one with a byte.
        cube = counts.sum() ** 3
        triplets = np.sum(counts**2 * (counts.sum() - counts))
        return float(size * triplets + (cube if cube < 2**31 else 0))

    return needed


def _ntxent_bytes(counts: np.ndarray) -> float:
    positives = float(np.sum(np.asarray(counts, float) ** 2))
    return 18 * positives * (float(counts.sum()) ** 2 - positives)


def _pml(loss: nn.Module) -> Callable[[Tensor, Tensor, Pairs], Tensor]:
    def function(anchors: Tensor, references: Tensor, pairs: Pairs) -> Tensor:
        return loss(
            anchors,
            pairs.anchor_labels,
            ref_emb=references,
            ref_labels=pairs.reference_labels,
        )

    return function


class _SquaredContrastiveLoss(pml_losses.ContrastiveLoss):
    def get_per_pair_loss(self, pair_dists: Tensor, pos_or_neg: str) -> Tensor:
        return super().get_per_pair_loss(pair_dists, pos_or_neg).square()


def _proxy_anchor(anchors: Tensor, references: Tensor, pairs: Pairs) -> Tensor:
    loss = pml_losses.ProxyAnchorLoss(references.shape[1], references.shape[1])
    loss.proxies = nn.Parameter(torch.eye(references.shape[1]), requires_grad=False)
    return loss(references, pairs.reference_labels)


def _make_losses() -> Mapping[str, Sequence[PeerLoss]]:
    cosine = pml_distances.CosineSimilarity()
    mean, per_anchor = pml_reducers.MeanReducer(), pml_reducers.PerAnchorReducer()
    pair_based = {"distance": cosine, "reducer": per_anchor}
    rows = {"distance": cosine, "reducer": mean}

    def pml(
        name: str, loss: nn.Module, size: Callable, note: str = "", reduction: str = "anchors"
    ) -> PeerLoss:
        return PeerLoss(f"PML {name}", _pml(loss), size, reduction, note=note)

    over_triplets = "mean over triplets, checked as such"
    return {
        "triplet": (
            PeerLoss(
                "PyTorch, sorted positives", triplets_by_search, _per_pair(56), in_blocks=True
            ),
            PeerLoss("PyTorch, one argsort", triplets_by_argsort, _per_pair(40), in_blocks=True),
            pml(
                "TripletMarginLoss",
                pml_losses.TripletMarginLoss(margin=1.0, triplets_per_anchor="all", **rows),
                _per_triplet(44),
                over_triplets,
                "triplets",
            ),
        ),
        "contrastive": (
            PeerLoss("PyTorch", contrastive, _per_pair(32), in_blocks=True),
            pml(
                "ContrastiveLoss",
                _SquaredContrastiveLoss(pos_margin=1, neg_margin=0, **pair_based),
                _per_pair(44),
                "squared by a subclass",
            ),
        ),
        "multi_similarity": (
            pml(
                "MultiSimilarityLoss",
                pml_losses.MultiSimilarityLoss(alpha=2, beta=50, base=0.5, **rows),
                _per_pair(64),
            ),
        ),
        "ntxent": (
            pml(
                "NTXentLoss",
                pml_losses.NTXentLoss(temperature=0.07, **pair_based),
                _ntxent_bytes,
                "builds (positive pairs) × (negative pairs)",
            ),
        ),
        "supcon": (
            pml("SupConLoss", pml_losses.SupConLoss(temperature=0.1, **rows), _per_pair(56)),
        ),
        "circle": (
            pml("CircleLoss", pml_losses.CircleLoss(m=0.4, gamma=80, **rows), _per_pair(76)),
        ),
        "lifted_structure": (
            pml(
                "GeneralizedLifted…",
                pml_losses.GeneralizedLiftedStructureLoss(pos_margin=1, neg_margin=0, **rows),
                _per_pair(56),
            ),
        ),
        "margin": (
            pml(
                "MarginLoss",
                pml_losses.MarginLoss(margin=0.2, beta=1 - 1.2, triplets_per_anchor="all", **rows),
                _per_triplet(56),
                over_triplets,
                "triplets",
            ),
        ),
        "smooth_ap": (
            PeerLoss(
                "PyTorch",
                smooth_ap,
                lambda counts: 12.0 * counts.sum() ** 2 * counts.max(),
                in_blocks=True,
                note="builds anchors × positives × references",
            ),
            PeerLoss(
                "PML SmoothAPLoss",
                None,
                _per_pair(0),
                note="takes no second modality (ref_emb), and only equally frequent classes",
            ),
        ),
        "proxy_anchor": (
            PeerLoss(
                "PML ProxyAnchorLoss",
                _proxy_anchor,
                lambda counts: 64.0 * counts.sum() * len(counts),
            ),
        ),
    }


LOSSES = _make_losses()


def value_and_gradient(
    loss: PeerLoss,
    audio: Tensor,
    visual: Tensor,
    labels: Tensor,
    *,
    block_size: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The sum of both directions and its derivative by both sets of embeddings.

    Each direction, or block of anchors, is differentiated before the next one begins, so that the
    memory of one of them is held at a time.

    Args:
      loss: to evaluate; in blocks only if `loss.in_blocks`.
      audio: [B, D].
      visual: [B, D].
      labels: int64 [B].
      block_size: anchors per block, default all.
    """
    audio, visual = (side.detach().clone().requires_grad_() for side in (audio, visual))
    num_anchors = len(labels)
    block_size = block_size or num_anchors
    reference_labels = labels.clone()
    total = torch.zeros(())
    for first in range(0, num_anchors, block_size):
        rows = slice(first, first + block_size)
        pairs = Pairs(labels[rows], reference_labels)
        for anchors, references in ((audio, visual), (visual, audio)):
            value = loss.function(anchors[rows], references, pairs)
            value = value * (len(pairs.anchor_labels) / num_anchors)
            value.backward()
            total = total + value.detach()
    return total, audio.grad, visual.grad
