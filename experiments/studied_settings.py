"""The settings that `experiments.study` compares: one group of factors at a time."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from aadml_jax.training.named_losses import NAMED_LOSSES

Changes = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Variants of a setting.

    Attributes:
      question: what is asked, a sentence or two.
      variants: by name, what differs from the defaults of `TrainConfig`.
      baselines: by a variant's name, that of the variant whose MAP its gain is counted from.
      fractions: parts of the training rows.
      data_by_seed: whether it is meant for data of its own for each seed.
    """

    question: str
    variants: Mapping[str, Changes]
    baselines: Mapping[str, str]
    fractions: tuple[float, ...] = (0.1, 1.0)
    data_by_seed: bool = False

    def baseline_of(self, name: str) -> str | None:
        """The variant to compare with; None for one that stands for itself."""
        return self.baselines.get(name)


# One neighbour is the anchor itself: the method without anchor awareness.
_PLAIN = {"num_neighbors": 1}
_LABEL_LOSSES = {
    "none": {"label_weight": 0.0},
    "squared": {"label_loss": "squared"},
    "cross-entropy": {"label_loss": "cross_entropy"},
}
_CLASSIFIER = {"label_loss": "cross_entropy", "metric_weight": 0.0, **_PLAIN}


def _readings() -> Comparison:
    variants, baselines = {}, {}
    for label_loss, of_label in _LABEL_LOSSES.items():
        for margin in (0.3, 1.0):
            stem = f"{label_loss}, margin {margin:g}"
            common = {**of_label, "margin": margin}
            variants[f"{stem}, plain"] = {**common, **_PLAIN}
            for k in (3, 7):
                variants[f"{stem}, neighbor k={k}"] = {**common, "num_neighbors": k}
            variants[f"{stem}, channel k=3"] = {**common, "attention": "channel"}
            for name in list(variants):
                if name.startswith(stem) and not name.endswith("plain"):
                    baselines[name] = f"{stem}, plain"
    variants["cross-entropy alone"] = _CLASSIFIER
    return Comparison(
        "Label loss, margin and reading of the attention, triplet loss.", variants, baselines
    )


# Where proxies had the best chance: a triplet that never saturates, without and with labels.
_BASES = {
    "no label loss, margin 1": {"label_weight": 0.0, "margin": 1.0},
    "cross-entropy, margin 0.3": {"label_loss": "cross_entropy", "margin": 0.3},
}


def _proxies() -> Comparison:
    kinds = {
        "plain": _PLAIN,
        "k=3": {},
        "k=3, any class": {"same_class": False},
        "k=3, neighbours of the other modality": {"neighbors_from": "other"},
        "k=3, temperature 0.1": {"attention_temperature": 0.1},
        "k=3, gradient stopped at neighbours": {"neighbor_gradient": False},
        "k=3, beside the anchors": {"proxy_role": "beside"},
        "k=3, on both sides": {"proxy_role": "both_sides"},
    }
    return _on_bases(
        kinds,
        "plain",
        "Which neighbours, which weights, and where the proxies stand.",
        fractions=(0.1,),
    )


def _terms() -> Comparison:
    kinds: dict[str, Changes] = {}
    for name, changes in {
        "as it is": {},
        "intra-modal terms": {"intra_modal": True},
        "Euclidean distance": {"distance": "euclidean"},
        "weight decay 0.1": {"weight_decay": 0.1},
        "metric weight 0.1": {"metric_weight": 0.1},
        "batches of 100": {"batch_size": 100},
    }.items():
        kinds[f"{name}, plain"] = {**changes, **_PLAIN}
        kinds[f"{name}, k=3"] = changes
    comparison = _on_bases(
        kinds, None, "Distance, terms, weights and batch size.", fractions=(0.1,)
    )
    baselines = {
        name: name.replace("k=3", "plain") for name in comparison.variants if "k=3" in name
    }
    return dataclasses.replace(comparison, baselines=baselines)


def _on_bases(
    kinds: Mapping[str, Changes],
    baseline: str | None,
    question: str,
    fractions: tuple[float, ...],
) -> Comparison:
    variants, baselines = {}, {}
    for base, common in _BASES.items():
        for kind, changes in kinds.items():
            variants[f"{base}: {kind}"] = {**common, **changes}
            if baseline is not None and kind != baseline:
                baselines[f"{base}: {kind}"] = f"{base}: {baseline}"
    return Comparison(question, variants, baselines, fractions)


def _losses() -> Comparison:
    variants, baselines = {"cross-entropy alone": _CLASSIFIER}, {}
    for loss in NAMED_LOSSES:
        common = {"loss": loss, "label_loss": "cross_entropy"}
        if loss == "triplet":
            common["margin"] = 1.0  # that of its fellows
        variants[f"{loss}, plain"] = {**common, **_PLAIN}
        variants[f"{loss}, k=3"] = common
        baselines[f"{loss}, plain"] = "cross-entropy alone"
        baselines[f"{loss}, k=3"] = f"{loss}, plain"
    return Comparison(
        "Every metric loss beside cross-entropy, plain and with proxies.", variants, baselines
    )


def _weights() -> Comparison:
    variants: dict[str, Changes] = {"cross-entropy alone": _CLASSIFIER}
    for decay in (0.1, 1.0):
        name = f"cross-entropy alone, weight decay {decay:g}"
        variants[name] = {**_CLASSIFIER, "weight_decay": decay}
    baselines = {name: "cross-entropy alone" for name in list(variants)[1:]}
    for loss, of_loss in {
        "triplet": {"margin": 0.3},
        "margin": {},
        "supcon": {},
        "smooth_ap": {},
    }.items():
        for weight in (0.1, 0.3):
            common = {
                "loss": loss,
                "label_loss": "cross_entropy",
                "metric_weight": weight,
                **of_loss,
            }
            plain = f"{loss} × {weight:g}, plain"
            variants[plain] = {**common, **_PLAIN}
            baselines[plain] = "cross-entropy alone"
            for k in (3, 7):
                variants[f"{loss} × {weight:g}, k={k}"] = {**common, "num_neighbors": k}
                baselines[f"{loss} × {weight:g}, k={k}"] = plain
    return Comparison(
        "A little of a metric loss beside cross-entropy, and weight decay.", variants, baselines
    )


def _defaults() -> Comparison:
    variants: dict[str, Changes] = {"cross-entropy alone": _CLASSIFIER}
    baselines = {}
    for margin in (0.3, 1.0):
        for weight in (0.1, 0.3, 1.0):
            common = {
                "label_loss": "cross_entropy",
                "margin": margin,
                "metric_weight": weight,
            }
            plain = f"triplet × {weight:g}, margin {margin:g}, plain"
            variants[plain] = {**common, **_PLAIN}
            variants[plain.replace("plain", "k=3")] = common
            baselines[plain] = "cross-entropy alone"
            baselines[plain.replace("plain", "k=3")] = plain
    return Comparison(
        "Margin and weight of the triplet loss beside cross-entropy.", variants, baselines
    )


def _fractions() -> Comparison:
    variants = {
        "no label loss, margin 1, plain": {**_BASES["no label loss, margin 1"], **_PLAIN},
        "no label loss, margin 1, k=3": _BASES["no label loss, margin 1"],
        "cross-entropy, margin 0.3, plain": {**_BASES["cross-entropy, margin 0.3"], **_PLAIN},
        "cross-entropy, margin 0.3, k=3": _BASES["cross-entropy, margin 0.3"],
        "cross-entropy alone": _CLASSIFIER,
    }
    baselines = {
        "no label loss, margin 1, k=3": "no label loss, margin 1, plain",
        "cross-entropy, margin 0.3, k=3": "cross-entropy, margin 0.3, plain",
        "cross-entropy, margin 0.3, plain": "cross-entropy alone",
    }
    return Comparison("How much data.", variants, baselines, (0.02, 0.05, 0.1, 0.2, 0.5, 1.0))


def _candidates() -> Comparison:
    kinds = {
        "margin 0.3": {"margin": 0.3},
        "margin 1": {"margin": 1.0},
        "margin 1, weight 3": {"margin": 1.0, "metric_weight": 3.0},
        "margin 1, weight decay 1": {"margin": 1.0, "weight_decay": 1.0},
        "semi-hard, margin 1": {"loss": "semihard_triplet", "margin": 1.0},
        "semi-hard, margin 1, weight 0.3": {
            "loss": "semihard_triplet",
            "margin": 1.0,
            "metric_weight": 0.3,
        },
    }
    variants: dict[str, Changes] = {
        "cross-entropy alone": _CLASSIFIER,
        "cross-entropy alone, weight decay 1": {**_CLASSIFIER, "weight_decay": 1.0},
    }
    baselines = {"cross-entropy alone, weight decay 1": "cross-entropy alone"}
    for kind, changes in kinds.items():
        common = {"label_loss": "cross_entropy", **changes}
        variants[f"{kind}, plain"] = {**common, **_PLAIN}
        baselines[f"{kind}, plain"] = (
            "cross-entropy alone, weight decay 1"
            if "weight_decay" in changes
            else "cross-entropy alone"
        )
        for k in (3, 7):
            variants[f"{kind}, k={k}"] = {**common, "num_neighbors": k}
            baselines[f"{kind}, k={k}"] = f"{kind}, plain"
    return Comparison(
        "Triplet losses beside cross-entropy, on several validation groups.",
        variants,
        baselines,
        data_by_seed=True,
    )


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
"""What is screened on validation rows, by name."""


def _finalists() -> Comparison:
    decayed = {"weight_decay": 1.0}
    pairs: dict[str, tuple[Changes, str | None]] = {
        "the paper's reading": ({"label_loss": "squared", "margin": 1.0}, None),
        "no label loss, margin 1": (_BASES["no label loss, margin 1"], None),
        "the defaults": (_BASES["cross-entropy, margin 0.3"], "cross-entropy alone"),
        "margin 1, weight 3": (
            {"label_loss": "cross_entropy", "margin": 1.0, "metric_weight": 3.0},
            "cross-entropy alone",
        ),
        "semi-hard, margin 1": (
            {"label_loss": "cross_entropy", "loss": "semihard_triplet", "margin": 1.0},
            "cross-entropy alone",
        ),
        "margin loss × 0.1, weight decay 1": (
            {"label_loss": "cross_entropy", "loss": "margin", "metric_weight": 0.1, **decayed},
            "cross-entropy alone, weight decay 1",
        ),
    }
    variants: dict[str, Changes] = {
        "cross-entropy alone": _CLASSIFIER,
        "cross-entropy alone, weight decay 1": {**_CLASSIFIER, **decayed},
    }
    baselines = {"cross-entropy alone, weight decay 1": "cross-entropy alone"}
    for name, (changes, baseline) in pairs.items():
        neighbors = 7 if name.startswith("margin loss") else 3
        variants[f"{name}, plain"] = {**changes, **_PLAIN}
        if baseline is not None:
            baselines[f"{name}, plain"] = baseline
        variants[f"{name}, k={neighbors}"] = {**changes, "num_neighbors": neighbors}
        baselines[f"{name}, k={neighbors}"] = f"{name}, plain"
    return Comparison(
        "What screening left: the paper's reading, the defaults, the bar, the best with proxies.",
        variants,
        baselines,
    )


CONFIRMED: dict[str, Comparison] = {"finalists": _finalists()}
"""What is reported on the test rows, by name: chosen by hand from what was screened."""
