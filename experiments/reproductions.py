"""What the paper evaluates: each figure or table, and what it shows of its runs.

`reproduction_runs` names the runs; `experiments.reproduce` trains all of them, several seeds each,
and hands back their histories.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from aadml_jax.reports.figures import Curve, Panel, draw_curves
from aadml_jax.reports.literature import literature_table
from aadml_jax.reports.page import Report
from aadml_jax.reports.statistics import (
    MeanAndSpread,
    band_over_seeds,
    mean_and_spread,
    paired_difference,
)
from aadml_jax.reports.tables import Table
from aadml_jax.training.config import TrainConfig
from aadml_jax.training.evaluation import DIRECTIONS
from aadml_jax.training.named_losses import NAMED_LOSSES
from aadml_jax.training.sweep import RunHistory
from experiments.reproduction_runs import (
    AWARE,
    MOST_NEIGHBORS,
    NEIGHBOR_LOSSES,
    PLAIN,
    TRIPLETS,
    VARIANTS,
    Key,
    loss_runs,
    neighbor_runs,
    training_runs,
    with_and_without,
)

TEST, TRAIN = "test", "train"
# Cut-offs of the paper's precision-scope curves, as far as the gallery goes.
SCOPES = (10, 20, 30, 50, 70, 100, 150, 200, 300, 500, 700, 1000)
_LABELS = {"audio_to_visual": "audio→visual", "visual_to_audio": "visual→audio", "mean": "mean"}
# Data sets that the literature has figures for.
_QUOTED = ("vegas", "ave")

Histories = Mapping[Key, Sequence[RunHistory]]


@dataclasses.dataclass(frozen=True)
class References:
    """What MAP is read against: that of a random order, and that of the best one if known."""

    chance: float
    bayes: Mapping[str, float] | None


@dataclasses.dataclass(frozen=True)
class Reproduction:
    """A figure or table of the paper.

    Attributes:
      title: what it is called in the report.
      runs: from the base configuration, the runs by name, without their seeds.
      add_to: adds a section to the report, from the histories of these runs, seed by seed.
    """

    title: str
    runs: Callable[[TrainConfig], dict[Key, TrainConfig]]
    add_to: Callable[[Report, str, Histories, References, TrainConfig], None]


def _maps(histories: Sequence[RunHistory], direction: str, metric: str = "map") -> list[float]:
    return [history.last(TEST)[direction][metric] for history in histories]


def _map_cells(histories: Sequence[RunHistory], metric: str = "map") -> list[MeanAndSpread]:
    return [mean_and_spread(_maps(histories, direction, metric)) for direction in DIRECTIONS]


def _style(name: str) -> str:
    return "plain" if name == PLAIN else "aware"


def _add_precision_scope(
    report: Report, title: str, histories: Histories, references: References, base: TrainConfig
) -> None:
    section = report.section(
        title,
        "Precision@K, the share of relevant clips among the first K: mean over the test queries, "
        f"and over seeds (bands: ± one standard deviation). Loss `{base.loss}`; k = "
        f"{base.num_neighbors} for the anchor-aware runs. The paper shows K from 10 to 1000.",
    )
    scopes = [int(k) for k in histories[PLAIN,][0].last(TEST)["mean"]["precision_at_k"]]

    def values(name: str, direction: str) -> np.ndarray:
        return np.array(
            [
                [history.last(TEST)[direction]["precision_at_k"][str(k)] for k in scopes]
                for history in histories[name,]
            ]
        )

    panels = [
        Panel(
            _LABELS[direction],
            "K",
            "precision@K",
            [
                Curve(name, scopes, style=_style(name), **band_over_seeds(values(name, direction)))
                for name in (PLAIN, AWARE)
            ],
            log_x=True,
        )
        for direction in DIRECTIONS[:2]
    ]
    section.figure(
        "figure3",
        draw_curves(panels, share_y=True),
        "Precision@K with and without anchor-aware proxies, in both directions.",
    )
    section.table(
        Table(
            "Precision at K",
            ["K", *(f"{_LABELS[d]}, {name}" for d in DIRECTIONS[:2] for name in (PLAIN, AWARE))],
            [
                [
                    k,
                    *(
                        mean_and_spread(values(name, direction)[:, place].tolist())
                        for direction in DIRECTIONS[:2]
                        for name in (PLAIN, AWARE)
                    ),
                ]
                for place, k in enumerate(scopes)
            ],
        )
    )


def _add_neighbors(
    report: Report, title: str, histories: Histories, references: References, base: TrainConfig
) -> None:
    section = report.section(
        title,
        "Mean average precision against k, the neighbours of the correlation graph, the anchor "
        "counted: k = 1 is the method without anchor awareness. Attention is of the reading "
        "`neighbor`, the only one that chooses neighbours. Bands: ± one standard deviation over "
        "seeds.",
    )
    ks = list(range(1, MOST_NEIGHBORS + 1))
    panels = [
        Panel(
            _LABELS[direction],
            "k",
            "MAP",
            [
                Curve(
                    loss,
                    ks,
                    **band_over_seeds(
                        np.array([_maps(histories[loss, str(k)], direction) for k in ks]).T
                    ),
                )
                for loss in NEIGHBOR_LOSSES
            ],
        )
        for direction in DIRECTIONS
    ]
    section.figure(
        "figure4", draw_curves(panels, share_y=True), "MAP against the number of neighbours k."
    )
    section.table(
        Table(
            "MAP by number of neighbours",
            ["loss", "k", *_LABELS.values(), "mean, against k = 1"],
            [
                [
                    loss,
                    k,
                    *_map_cells(histories[loss, str(k)]),
                    None if k == 1 else _difference(histories[loss, str(k)], histories[loss, "1"]),
                ]
                for loss in NEIGHBOR_LOSSES
                for k in ks
            ],
            note=_DIFFERENCE_NOTE,
        )
    )


_DIFFERENCE_NOTE = (
    "Differences are paired by seed, with the 95 % interval of Student's t. An interval that holds "
    "0 shows no difference. Intervals are not widened for the number of comparisons."
)


def _difference(histories: Sequence[RunHistory], baseline: Sequence[RunHistory]) -> Any:
    return paired_difference(_maps(histories, "mean"), _maps(baseline, "mean"))


def _add_training_curves(
    report: Report, title: str, histories: Histories, references: References, base: TrainConfig
) -> None:
    section = report.section(
        title,
        "The objective and the mean MAP of both directions as training goes on, without dropout. "
        "The training set is shown by rows in the class shares of the test set, as many of each "
        "class as the test set has, or all where it has fewer. Plain and anchor-aware objectives "
        "are different functions, whose values do not compare.",
    )
    panels = []
    for what in ("loss", "map"):
        for loss in TRIPLETS:
            curves = []
            for probe, color in ((TRAIN, 0), (TEST, 1)):
                for name in (PLAIN, AWARE):
                    kept = [history.reports[probe] for history in histories[loss, name]]
                    values = [
                        [
                            report["loss"] if what == "loss" else report["mean"]["map"]
                            for report in of_seed["reports"]
                        ]
                        for of_seed in kept
                    ]
                    curves.append(
                        Curve(
                            f"{probe}, {name}",
                            kept[0]["epochs"],
                            style=_style(name),
                            color=color,
                            **band_over_seeds(values),
                        )
                    )
            label = "objective" if what == "loss" else "MAP"
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
                    loss,
                    name,
                    *(
                        mean_and_spread([history.last(p)["loss"] for history in of_seeds])
                        for p in (TRAIN, TEST)
                    ),
                    *(
                        mean_and_spread([history.last(p)["mean"]["map"] for history in of_seeds])
                        for p in (TRAIN, TEST)
                    ),
                ]
                for (loss, name), of_seeds in histories.items()
            ],
        )
    )


def _add_losses(
    report: Report, title: str, histories: Histories, references: References, base: TrainConfig
) -> None:
    section = report.section(
        title,
        "Every loss of the library, plain and with proxies of both readings "
        f"(k = {base.num_neighbors}). Parameters that flags set are those of every loss that has "
        "them; the others are each loss's own defaults.",
    )
    section.table(
        Table(
            "Mean MAP of both directions",
            ["loss", *VARIANTS, "neighbor − plain", "channel − plain"],
            [
                [
                    loss,
                    *(
                        mean_and_spread(_maps(histories[loss, variant], "mean"))
                        for variant in VARIANTS
                    ),
                    *(
                        _difference(histories[loss, variant], histories[loss, PLAIN])
                        for variant in VARIANTS[1:]
                    ),
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
            [[*key, *_map_cells(of_seeds)] for key, of_seeds in histories.items()],
        )
    )


def _add_comparison(
    report: Report, title: str, histories: Histories, references: References, base: TrainConfig
) -> None:
    section = report.section(
        title,
        "Our runs, measured here, in both metrics; below them what the literature is said to "
        "report. Standard MAP and prefix MAP are different quantities: published figures may be "
        "either, and do not compare with a column of the other.",
    )
    rows = []
    for (name,), of_seeds in histories.items():
        rows.append([name, *_map_cells(of_seeds), *_map_cells(of_seeds, "prefix_map")])
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
    name = base.dataset.removeprefix("tfds:")
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
    "figure4": Reproduction("Figure 4: number of neighbours", neighbor_runs, _add_neighbors),
    "figure5": Reproduction("Figure 5: training", training_runs, _add_training_curves),
    "losses": Reproduction("Base losses with and without proxies", loss_runs, _add_losses),
    "comparison": Reproduction("Beside the literature", with_and_without, _add_comparison),
}
"""All reproductions, by what --what calls them."""
