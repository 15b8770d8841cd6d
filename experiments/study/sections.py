"""Sections of the study's page: a table and a figure of gains for each comparison, curves."""

from collections.abc import Mapping

import numpy as np

from aadml_jax.reports.figures import Curve, Panel, Reference, draw_curves, draw_intervals
from aadml_jax.reports.page import Section
from aadml_jax.reports.statistics import band_over_seeds, mean_and_spread
from aadml_jax.reports.tables import Table
from experiments.variants import TrainedVariants, Variant

SIMILARITIES = ("cosine", "posterior")
"""Similarities that outputs are ranked by, in each run; a probe has the name of its similarity."""

_MOST_COLORS = 8


def table_of(trained: TrainedVariants, title: str, over: str) -> Table:
    """A comparison's mean MAP by both similarities, what each variant gains, and its metric loss.

    Args:
      trained: the comparison's variants.
      title: of the table.
      over: what the intervals are over, in words.
    """
    columns = [f"{similarity}{what}" for similarity in SIMILARITIES for what in ("", ", gain")]
    rows = []
    for name, variant in trained.variants.items():
        cells = []
        for similarity in SIMILARITIES:
            cells += [trained.spread(name, similarity, "mean", "map")]
            cells += [trained.gain(name, similarity)]
        losses = [history.losses["metric_loss"][-1] for history in trained.histories[name]]
        is_trained_on_it = variant.changes.get("metric_weight") != 0
        metric_loss = mean_and_spread(losses) if is_trained_on_it else None
        rows.append([name, *cells, metric_loss, variant.baseline or ""])
    return Table(
        title,
        ["variant", *columns, "metric loss", "gain over"],
        rows,
        note="Mean MAP of both directions. Gains are paired by seed, with the 95 % interval of "
        f"Student's t: over {over}, and not widened for the number of comparisons. The metric loss "
        "is that of the training rows over the last epoch, of proxies where there are some; it "
        "compares within one loss and margin.",
    )


def is_aware(variant: Variant) -> bool:
    """Whether a variant has proxies."""
    return variant.changes.get("num_neighbors") != 1


def add_gains(section: Section, name: str, trained: TrainedVariants, part: str, over: str) -> None:
    """Adds the figure of what variants gain over their baselines.

    Args:
      section: to add to.
      name: of the figure.
      trained: the comparison's variants.
      part: of the training rows, in words.
      over: what the intervals are over, in words.
    """
    compared = [name for name, variant in trained.variants.items() if variant.baseline is not None]
    gains = {
        f"ranked by {similarity}": [trained.gain(variant, similarity) for variant in compared]
        for similarity in SIMILARITIES
    }
    section.figure(
        name,
        draw_intervals(compared, gains, value_label="gain in MAP"),
        f"What each variant gains over its baseline (the table names it), {part}: mean and 95 % "
        f"interval of the paired differences, over {over}. Filled points: the interval leaves 0 "
        "out, as one in twenty does by chance alone.",
    )


def add_learning_curves(
    section: Section, name: str, of_fraction: Mapping[float, TrainedVariants], bayes: float | None
) -> None:
    """Adds the figure of MAP against the fraction of the training rows.

    A variant with proxies has the colour of its baseline. Of more variants than can be told apart
    the section says that there is no figure.

    Args:
      section: to add to.
      name: of the figure.
      of_fraction: by fraction of the training rows, the comparison's variants.
      bayes: the best MAP that can be expected; None where it is unknown.
    """
    fractions = sorted(of_fraction)
    variants = of_fraction[fractions[0]].variants
    colors: dict[str, int] = {}
    for variant, (_, baseline) in variants.items():
        is_pair = is_aware(variants[variant]) and baseline is not None
        colors[variant] = colors[baseline] if is_pair else len(set(colors.values()))
    looks = [(is_aware(variants[variant]), color) for variant, color in colors.items()]
    if len(set(looks)) < len(looks) or len(set(colors.values())) > _MOST_COLORS:
        section.text(f"{len(looks)} variants are too many for one figure of curves.")
        return
    references = () if bayes is None else (Reference("Bayes", bayes),)
    panels = []
    for similarity in SIMILARITIES:
        curves = []
        for variant, color in colors.items():
            maps = [
                of_fraction[part].last(variant, similarity, "mean", "map") for part in fractions
            ]
            curves.append(
                Curve(
                    variant,
                    [100 * fraction for fraction in fractions],
                    **band_over_seeds(np.transpose(maps)),
                    style="aware" if is_aware(variants[variant]) else "plain",
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
