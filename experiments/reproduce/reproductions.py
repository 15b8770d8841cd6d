"""What the paper evaluates: figures and tables, each with its variants and its section."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from aadml_jax.reports.figures import Curve, Panel, draw_curves
from aadml_jax.reports.literature import literature_table
from aadml_jax.reports.page import Section
from aadml_jax.reports.statistics import MeanAndSpread, band_over_seeds
from aadml_jax.reports.tables import Table
from aadml_jax.training.config import RecipeConfig, TrainConfig
from aadml_jax.training.evaluation import DIRECTIONS
from aadml_jax.training.named_losses import NAMED_LOSSES
from experiments.reproduce.settings import (
    AWARE,
    KINDS,
    MOST_NEIGHBORS,
    NEIGHBOR_LOSSES,
    PLAIN,
    TRIPLETS,
    Variants,
    loss_variants,
    neighbor_variants,
    training_variants,
    with_and_without,
)
from experiments.variants import Name, TrainedVariants

TEST, TRAIN = "test", "train"
# Cut-offs of the paper's precision-scope curves, as far as the gallery goes.
SCOPES = (10, 20, 30, 50, 70, 100, 150, 200, 300, 500, 700, 1000)
_LABELS = {"audio_to_visual": "audio→visual", "visual_to_audio": "visual→audio", "mean": "mean"}
# Data sets that the literature has figures for.
_QUOTED = ("vegas", "ave")

_DIFFERENCE_NOTE = (
    "Differences are paired by seed, with the 95 % interval of Student's t. An interval that holds "
    "0 shows no difference. Intervals are not widened for the number of comparisons."
)


class References(NamedTuple):
    """What MAP is read against.

    Attributes:
      chance: MAP of a random order.
      bayes: MAP of the best order, by direction; None where it is unknown.
    """

    chance: float
    bayes: Mapping[str, float] | None


class Reproduction(NamedTuple):
    """A figure or table of the paper.

    Attributes:
      title: heading of its section.
      variants: from a recipe, the variants that it takes.
      add_to: fills the section from these variants once they are trained.
    """

    title: str
    variants: Callable[[RecipeConfig], Variants]
    add_to: Callable[[Section, TrainedVariants, References, TrainConfig], None]


def _maps(trained: TrainedVariants, name: Name, metric: str = "map") -> list[MeanAndSpread]:
    return [trained.spread(name, TEST, direction, metric) for direction in DIRECTIONS]


def _style(name: str) -> str:
    return "plain" if name == PLAIN else "aware"


def _add_precision_scope(
    section: Section, trained: TrainedVariants, references: References, config: TrainConfig
) -> None:
    section.text(
        "Precision@K, the share of relevant clips among the first K: mean over the test queries, "
        "and over seeds (bands: ± one standard deviation). Loss "
        f"`{config.recipe.loss}`; k = {config.recipe.num_neighbors} for the anchor-aware runs. The "
        "paper shows K from 10 to 1000."
    )
    scopes = list(trained.histories[PLAIN,][0].last(TEST)["mean"]["precision_at_k"])
    panels = []
    for direction in DIRECTIONS[:2]:
        curves = []
        for name in (PLAIN, AWARE):
            values = [trained.last((name,), TEST, direction, "precision_at_k", k) for k in scopes]
            band = band_over_seeds(np.transpose(values))
            curves.append(Curve(name, list(map(int, scopes)), style=_style(name), **band))
        panels.append(Panel(_LABELS[direction], "K", "precision@K", curves, log_x=True))
    section.figure(
        "figure3",
        draw_curves(panels, share_y=True),
        "Precision@K with and without anchor-aware proxies, in both directions.",
    )
    columns = [(direction, name) for direction in DIRECTIONS[:2] for name in (PLAIN, AWARE)]
    section.table(
        Table(
            "Precision at K",
            ["K", *(f"{_LABELS[direction]}, {name}" for direction, name in columns)],
            [
                [
                    int(k),
                    *(
                        trained.spread((name,), TEST, direction, "precision_at_k", k)
                        for direction, name in columns
                    ),
                ]
                for k in scopes
            ],
        )
    )


def _add_neighbors(
    section: Section, trained: TrainedVariants, references: References, config: TrainConfig
) -> None:
    section.text(
        "Mean average precision against k, the neighbours of the correlation graph, the anchor "
        "counted: k = 1 is the method without anchor awareness. Attention is of the reading "
        "`neighbor`, the only one that chooses neighbours. Bands: ± one standard deviation over "
        "seeds."
    )
    ks = list(range(1, MOST_NEIGHBORS + 1))
    panels = []
    for direction in DIRECTIONS:
        curves = []
        for loss in NEIGHBOR_LOSSES:
            maps = [trained.last((loss, str(k)), TEST, direction, "map") for k in ks]
            curves.append(Curve(loss, ks, **band_over_seeds(np.transpose(maps))))
        panels.append(Panel(_LABELS[direction], "k", "MAP", curves))
    section.figure(
        "figure4", draw_curves(panels, share_y=True), "MAP against the number of neighbours k."
    )
    section.table(
        Table(
            "MAP by number of neighbours",
            ["loss", "k", *_LABELS.values(), "mean, against k = 1"],
            [
                [loss, int(k), *_maps(trained, (loss, k)), trained.gain((loss, k), TEST)]
                for loss, k in trained.variants
            ],
            note=_DIFFERENCE_NOTE,
        )
    )


def _add_training_curves(
    section: Section, trained: TrainedVariants, references: References, config: TrainConfig
) -> None:
    section.text(
        "The objective and the mean MAP of both directions as training goes on, without dropout. "
        "The training set is shown by rows in the class shares of the test set, as many of each "
        "class as the test set has, or all where it has fewer. Plain and anchor-aware objectives "
        "are different functions, whose values do not compare."
    )
    panels = []
    for label, path in (("objective", ("loss",)), ("MAP", ("mean", "map"))):
        for loss in TRIPLETS:
            curves = []
            for probe, color in ((TRAIN, 0), (TEST, 1)):
                for name in (PLAIN, AWARE):
                    values = trained.by_epoch((loss, name), probe, *path)
                    epochs = trained.histories[loss, name][0].reports[probe]["epochs"]
                    curves.append(
                        Curve(
                            f"{probe}, {name}",
                            epochs,
                            style=_style(name),
                            color=color,
                            **band_over_seeds(values),
                        )
                    )
            panels.append(Panel(f"{loss}: {label}", "epoch", label, curves))
    section.figure(
        "figure5",
        draw_curves(panels),
        "Objective (upper row) and MAP (lower row) of training and test set by epoch.",
    )
    section.table(
        Table(
            "At the last epoch",
            ["loss", "variant", "objective, train", "objective, test", "MAP, train", "MAP, test"],
            [
                [
                    *key,
                    *(trained.spread(key, probe, "loss") for probe in (TRAIN, TEST)),
                    *(trained.spread(key, probe, "mean", "map") for probe in (TRAIN, TEST)),
                ]
                for key in trained.variants
            ],
        )
    )


def _add_losses(
    section: Section, trained: TrainedVariants, references: References, config: TrainConfig
) -> None:
    section.text(
        "Every loss of the library, plain and with proxies of both readings "
        f"(k = {config.recipe.num_neighbors}). Parameters that flags set are those of every loss "
        "that has them; the others are each loss's own defaults."
    )
    section.table(
        Table(
            "Mean MAP of both directions",
            ["loss", *KINDS, "neighbor − plain", "channel − plain"],
            [
                [
                    loss,
                    *(trained.spread((loss, kind), TEST, "mean", "map") for kind in KINDS),
                    *(trained.gain((loss, kind), TEST) for kind in KINDS[1:]),
                ]
                for loss in NAMED_LOSSES
            ],
            note=_DIFFERENCE_NOTE,
        )
    )
    section.table(
        Table(
            "MAP by direction",
            ["loss", "variant", *_LABELS.values()],
            [[*key, *_maps(trained, key)] for key in trained.variants],
        )
    )


def _add_comparison(
    section: Section, trained: TrainedVariants, references: References, config: TrainConfig
) -> None:
    section.text(
        "Our runs, measured here, in both metrics; below them what the literature is said to "
        "report. Standard MAP and prefix MAP are different quantities: published figures may be "
        "either, and do not compare with a column of the other."
    )
    rows = [
        [*key, *_maps(trained, key), *_maps(trained, key, "prefix_map")] for key in trained.variants
    ]
    if references.bayes is not None:
        levels = [references.bayes[direction] for direction in DIRECTIONS]
        rows.append(["Bayes reference", *levels, None, None, None])
    rows.append(["chance", *[references.chance] * 3, None, None, None])
    section.table(
        Table(
            "Measured here",
            [
                "run",
                *(f"MAP {label}" for label in _LABELS.values()),
                *(f"prefix MAP {label}" for label in _LABELS.values()),
            ],
            rows,
        )
    )
    name = config.data.dataset.removeprefix("tfds:")
    if name not in _QUOTED:
        section.text(
            f"The literature has no figures for `{name}`; those below are of other data and do not "
            "compare with the table above."
        )
    for quoted in (name,) if name in _QUOTED else _QUOTED:
        section.table(literature_table(quoted))


REPRODUCTIONS: dict[str, Reproduction] = {
    "figure3": Reproduction(
        "Figure 3: precision-scope curves", with_and_without, _add_precision_scope
    ),
    "figure4": Reproduction("Figure 4: number of neighbours", neighbor_variants, _add_neighbors),
    "figure5": Reproduction("Figure 5: training", training_variants, _add_training_curves),
    "losses": Reproduction("Base losses with and without proxies", loss_variants, _add_losses),
    "comparison": Reproduction("Beside the literature", with_and_without, _add_comparison),
}
"""All reproductions, by their names for --what."""
