"""The settings that the study compares: one group of factors at a time."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from aadml_jax.training.named_losses import NAMED_LOSSES
from experiments.variants import Variant

Changes = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Variants that answer a question.

    Attributes:
      question: what is asked, a sentence or two.
      variants: by name, changes to the defaults of `TrainConfig`.
      fractions: parts of the training rows.
      data_by_seed: whether it is meant for data of its own for each seed.
    """

    question: str
    variants: Mapping[str, Variant]
    fractions: tuple[float, ...] = (0.1, 1.0)
    data_by_seed: bool = False


# One neighbour is the anchor itself: the method without anchor awareness.
_PLAIN = {"num_neighbors": 1}
_CROSS_ENTROPY = {"label_loss": "cross_entropy"}
_ALONE, _ALONE_DECAYED = "cross-entropy alone", "cross-entropy alone, weight decay 1"
_CLASSIFIER = {**_CROSS_ENTROPY, "metric_weight": 0.0, **_PLAIN}
_CLASSIFIERS = {
    _ALONE: Variant(_CLASSIFIER),
    _ALONE_DECAYED: Variant({**_CLASSIFIER, "weight_decay": 1.0}, _ALONE),
}
# Where proxies had the best chance: a triplet that never saturates, without and with labels.
_BASES = {
    "no label loss, margin 1": {"label_weight": 0.0, "margin": 1.0},
    "cross-entropy, margin 0.3": {**_CROSS_ENTROPY, "margin": 0.3},
}


def _group(
    stem: str, common: Changes, kinds: Mapping[str, Changes], over: str | None = None
) -> dict[str, Variant]:
    """A setting without proxies, and kinds of proxies in it, which gain over it.

    Args:
      stem: what all names begin with.
      common: what all change.
      kinds: what each kind of proxies changes besides, by the end of its name.
      over: what the setting without proxies gains over.
    """
    plain = f"{stem}plain"
    return {plain: Variant({**common, **_PLAIN}, over)} | {
        stem + kind: Variant({**common, **changes}, plain) for kind, changes in kinds.items()
    }


def _pair(
    name: str, changes: Changes, *, over: str | None = None, ks: tuple[int, ...] = (3,)
) -> dict[str, Variant]:
    """A setting without proxies and with those of each k."""
    return _group(f"{name}, ", changes, {f"k={k}": {"num_neighbors": k} for k in ks}, over)


def _readings() -> Comparison:
    label_losses = {
        "none": {"label_weight": 0.0},
        "squared": {"label_loss": "squared"},
        "cross-entropy": _CROSS_ENTROPY,
    }
    readings = {
        "neighbor k=3": {},
        "neighbor k=7": {"num_neighbors": 7},
        "channel k=3": {"attention": "channel"},
    }
    variants: dict[str, Variant] = {}
    for name, of_label in label_losses.items():
        for margin in (0.3, 1.0):
            common = {**of_label, "margin": margin}
            variants |= _group(f"{name}, margin {margin:g}, ", common, readings)
    variants[_ALONE] = Variant(_CLASSIFIER)
    return Comparison("Label loss, margin and reading of the attention, triplet loss.", variants)


def _proxies() -> Comparison:
    kinds: dict[str, Changes] = {
        "k=3": {},
        "k=3, any class": {"same_class": False},
        "k=3, neighbours of the other modality": {"neighbors_from": "other"},
        "k=3, temperature 0.1": {"attention_temperature": 0.1},
        "k=3, gradient stopped at neighbours": {"neighbor_gradient": False},
        "k=3, beside the anchors": {"proxy_role": "beside"},
        "k=3, on both sides": {"proxy_role": "both_sides"},
    }
    variants: dict[str, Variant] = {}
    for base, common in _BASES.items():
        variants |= _group(f"{base}: ", common, kinds)
    question = "Which neighbours, which weights, and where the proxies stand."
    return Comparison(question, variants, (0.1,))


def _terms() -> Comparison:
    kinds: dict[str, Changes] = {
        "as it is": {},
        "intra-modal terms": {"intra_modal": True},
        "Euclidean distance": {"distance": "euclidean"},
        "weight decay 0.1": {"weight_decay": 0.1},
        "metric weight 0.1": {"metric_weight": 0.1},
        "batches of 100": {"batch_size": 100},
    }
    variants: dict[str, Variant] = {}
    for base, common in _BASES.items():
        for kind, changes in kinds.items():
            variants |= _pair(f"{base}: {kind}", {**common, **changes})
    return Comparison("Distance, terms, weights and batch size.", variants, (0.1,))


def _losses() -> Comparison:
    variants = {_ALONE: Variant(_CLASSIFIER)}
    for loss in NAMED_LOSSES:
        changes = {"loss": loss, **_CROSS_ENTROPY}
        if loss == "triplet":
            changes["margin"] = 1.0  # that of its fellows
        variants |= _pair(loss, changes, over=_ALONE)
    return Comparison("Every metric loss beside cross-entropy, plain and with proxies.", variants)


def _weights() -> Comparison:
    variants = {_ALONE: Variant(_CLASSIFIER)}
    for decay in (0.1, 1.0):
        changes = {**_CLASSIFIER, "weight_decay": decay}
        variants[f"{_ALONE}, weight decay {decay:g}"] = Variant(changes, _ALONE)
    for loss in ("triplet", "margin", "supcon", "smooth_ap"):
        for weight in (0.1, 0.3):
            changes = {"loss": loss, **_CROSS_ENTROPY, "metric_weight": weight}
            if loss == "triplet":
                changes["margin"] = 0.3
            variants |= _pair(f"{loss} × {weight:g}", changes, over=_ALONE, ks=(3, 7))
    return Comparison("A little of a metric loss beside cross-entropy, and weight decay.", variants)


def _defaults() -> Comparison:
    variants = {_ALONE: Variant(_CLASSIFIER)}
    for margin in (0.3, 1.0):
        for weight in (0.1, 0.3, 1.0):
            changes = {**_CROSS_ENTROPY, "margin": margin, "metric_weight": weight}
            name = f"triplet × {weight:g}, margin {margin:g}"
            variants |= _pair(name, changes, over=_ALONE)
    return Comparison("Margin and weight of the triplet loss beside cross-entropy.", variants)


def _fractions() -> Comparison:
    unlabelled, labelled = _BASES
    variants = {
        **_pair(unlabelled, _BASES[unlabelled]),
        **_pair(labelled, _BASES[labelled], over=_ALONE),
        _ALONE: Variant(_CLASSIFIER),
    }
    return Comparison("How much data.", variants, (0.02, 0.05, 0.1, 0.2, 0.5, 1.0))


def _candidates() -> Comparison:
    semihard = {"loss": "semihard_triplet", "margin": 1.0}
    kinds: dict[str, Changes] = {
        "margin 0.3": {"margin": 0.3},
        "margin 1": {"margin": 1.0},
        "margin 1, weight 3": {"margin": 1.0, "metric_weight": 3.0},
        "margin 1, weight decay 1": {"margin": 1.0, "weight_decay": 1.0},
        "semi-hard, margin 1": semihard,
        "semi-hard, margin 1, weight 0.3": {**semihard, "metric_weight": 0.3},
    }
    variants = dict(_CLASSIFIERS)
    for kind, changes in kinds.items():
        over = _ALONE_DECAYED if "weight_decay" in changes else _ALONE
        variants |= _pair(kind, {**_CROSS_ENTROPY, **changes}, over=over, ks=(3, 7))
    question = "Triplet losses beside cross-entropy, on several validation groups."
    return Comparison(question, variants, data_by_seed=True)


SCREENED: dict[str, Comparison] = {
    "readings": _readings(),
    "proxies": _proxies(),
    "losses": _losses(),
    "weights": _weights(),
    "defaults": _defaults(),
    "terms": _terms(),
    "fractions": _fractions(),
    "candidates": _candidates(),
}
"""Comparisons on validation rows, by name."""


def _finalists() -> Comparison:
    unlabelled, labelled = _BASES.values()
    margin_1 = {**_CROSS_ENTROPY, "margin": 1.0}
    little = {**_CROSS_ENTROPY, "loss": "margin", "metric_weight": 0.1, "weight_decay": 1.0}
    semihard = {**margin_1, "loss": "semihard_triplet"}
    variants = {
        **_CLASSIFIERS,
        **_pair("the paper's reading", {"label_loss": "squared", "margin": 1.0}),
        **_pair("no label loss, margin 1", unlabelled),
        **_pair("the defaults", labelled, over=_ALONE),
        **_pair("margin 1, weight 3", {**margin_1, "metric_weight": 3.0}, over=_ALONE),
        **_pair("semi-hard, margin 1", semihard, over=_ALONE),
        **_pair("margin loss × 0.1, weight decay 1", little, over=_ALONE_DECAYED, ks=(7,)),
    }
    question = (
        "What screening left: the paper's reading, the defaults, the bar, the best with proxies."
    )
    return Comparison(question, variants)


CONFIRMED: dict[str, Comparison] = {"finalists": _finalists()}
"""Comparisons on the test rows, by name: chosen by hand from what was screened."""
