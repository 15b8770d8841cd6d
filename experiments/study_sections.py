"""What `experiments.study` shows of its runs: a table and a figure of gains for each comparison."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from aadml_jax.reports.figures import Curve, Panel, Reference, draw_curves, draw_intervals
from aadml_jax.reports.page import Section
from aadml_jax.reports.statistics import (
    PairedDifference,
    band_over_seeds,
    mean_and_spread,
    paired_difference,
)
from aadml_jax.reports.tables import Table
from aadml_jax.training.sweep import RunHistory
from experiments.studied_settings import Comparison

SIMILARITIES = ("cosine", "posterior")
"""What outputs are ranked by, all of them for each run; a probe has the name of its similarity."""

_MOST_COLORS = 8

Histories = Mapping[str, Sequence[RunHistory]]


def mean_maps(histories: Sequence[RunHistory], similarity: str) -> list[float]:
    """Mean MAP of both directions after the last epoch, seed by seed."""
    return [history.last(similarity)["mean"]["map"] for history in histories]


def gains(
    comparison: Comparison, histories: Histories, similarity: str
) -> dict[str, PairedDifference | None]:
    """What each variant gains over its baseline; None for one without."""
    return {
        name: None
        if (baseline := comparison.baseline_of(name)) is None
        else paired_difference(
            mean_maps(of_seeds, similarity), mean_maps(histories[baseline], similarity)
        )
        for name, of_seeds in histories.items()
    }


def table_of(comparison: Comparison, title: str, histories: Histories, over: str) -> Table:
    """A comparison's mean MAP by both similarities, what each variant gains, and its metric loss.

    Args:
      comparison: whose runs they are.
      title: of the table.
      histories: by variant, seed by seed.
      over: what the intervals are over, in words.
    """
    of_similarity = {name: gains(comparison, histories, name) for name in SIMILARITIES}
    return Table(
        title,
        [
            "variant",
            "cosine",
            "cosine, gain",
            "posterior",
            "posterior, gain",
            "metric loss",
            "gain over",
        ],
        [
            [
                name,
                *(
                    cell
                    for similarity in SIMILARITIES
                    for cell in (
                        mean_and_spread(mean_maps(of_seeds, similarity)),
                        of_similarity[similarity][name],
                    )
                ),
                None
                if comparison.variants[name].get("metric_weight") == 0
                else mean_and_spread([history.losses["metric_loss"][-1] for history in of_seeds]),
                comparison.baseline_of(name) or "",
            ]
            for name, of_seeds in histories.items()
        ],
        note="Mean MAP of both directions. Gains are paired by seed, with the 95 % interval of "
        f"Student's t: over {over}, and not widened for the number of comparisons. The metric loss "
        "is that of the training rows over the last epoch, of proxies where there are some; it "
        "compares within one loss and margin.",
    )


def is_aware(changes: Mapping[str, Any]) -> bool:
    """Whether a variant has proxies."""
    return changes.get("num_neighbors") != 1


def add_gains(
    section: Section,
    name: str,
    comparison: Comparison,
    histories: Histories,
    part: str,
    over: str,
) -> None:
    """Adds the figure of what variants gain over their baselines.

    Args:
      section: to add to.
      name: of the figure.
      comparison: whose runs they are.
      histories: by variant, seed by seed.
      part: of the training rows, in words.
      over: what the intervals are over, in words.
    """
    compared = [variant for variant in histories if comparison.baseline_of(variant) is not None]
    of_similarity = {
        f"ranked by {similarity}": [
            gains(comparison, histories, similarity)[variant] for variant in compared
        ]
        for similarity in SIMILARITIES
    }
    section.figure(
        name,
        draw_intervals(compared, of_similarity, value_label="gain in MAP"),
        f"What each variant gains over its baseline (the table names it), {part}: mean and 95 % "
        f"interval of the paired differences, over {over}. Filled points: the interval leaves 0 "
        "out, as one in twenty does by chance alone.",
    )


def add_learning_curves(
    section: Section,
    name: str,
    comparison: Comparison,
    of_fraction: Mapping[float, Histories],
    bayes: float | None,
) -> None:
    """Adds the figure of MAP against the share of the training rows.

    A variant with proxies has the colour of its baseline. Of more variants than can be told apart
    the section says that there is no figure.

    Args:
      section: to add to.
      name: of the figure.
      comparison: whose runs they are.
      of_fraction: by share of the training rows, the histories of each variant.
      bayes: the best MAP that can be expected; None where it is unknown.
    """
    fractions = sorted(of_fraction)
    colors: dict[str, int] = {}
    for variant, changes in comparison.variants.items():
        baseline = comparison.baseline_of(variant)
        is_pair = is_aware(changes) and baseline is not None
        colors[variant] = colors[baseline] if is_pair else len(set(colors.values()))
    looks = [(is_aware(comparison.variants[name]), color) for name, color in colors.items()]
    if len(set(looks)) < len(looks) or len(set(colors.values())) > _MOST_COLORS:
        section.text(f"{len(looks)} variants are too many for one figure of curves.")
        return
    references = () if bayes is None else (Reference("Bayes", bayes),)
    panels = []
    for similarity in SIMILARITIES:
        curves = []
        for variant, color in colors.items():
            maps = [mean_maps(of_fraction[fraction][variant], similarity) for fraction in fractions]
            curves.append(
                Curve(
                    variant,
                    [100 * fraction for fraction in fractions],
                    **band_over_seeds(np.transpose(maps)),
                    style="aware" if is_aware(comparison.variants[variant]) else "plain",
                    color=color,
                )
            )
        panels.append(
            Panel(
                f"ranked by {similarity}",
                "% of the training rows",
                "MAP",
                curves,
                log_x=True,
                references=references,
            )
        )
    section.figure(
        name,
        draw_curves(panels, share_y=True),
        "Mean MAP of both directions against the share of the training rows; bands: ± one standard "
        "deviation over seeds.",
    )
