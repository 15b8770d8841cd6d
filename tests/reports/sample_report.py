"""A report with everything in it, as an experiment would write one; its numbers are made up."""

import numpy as np

from aadml_jax.reports.figures import (
    Curve,
    Embedding,
    Panel,
    Reference,
    draw_bars,
    draw_curves,
    draw_heat_map,
    draw_scatter,
)
from aadml_jax.reports.literature import literature_table
from aadml_jax.reports.page import Report
from aadml_jax.reports.statistics import mean_and_spread, paired_difference
from aadml_jax.reports.tables import Table

CLASSES = ("baby cry", "chainsaw", "dog", "drum", "fireworks", "helicopter", "printer")
CLASSES += ("rail transport", "snoring", "water flowing")
MARGINS = (0.1, 0.2, 0.5, 1.0)


def results_table():
    """Means rise, fall and are missing, so that no order is the one that the rows have."""
    generator = np.random.default_rng(0)
    rows = []
    for name, level in (("triplet", 0.72), ("contrastive", 0.65), ("n-pair | all", 0.69)):
        plain = level + 0.004 * generator.normal(size=5)
        aware = plain + 0.006 + 0.003 * generator.normal(size=5)
        rows.append([name, mean_and_spread(plain), mean_and_spread(aware)])
        rows[-1] += [paired_difference(aware, plain), 60]
    rows.append(["chance", 0.110, None, None, None])
    columns = ["loss", "plain MAP", "anchor-aware MAP", "difference", "epochs"]
    return Table("MAP by loss", columns, rows, "Mean ± standard deviation of five seeds.")


def curve_figure():
    epochs = np.arange(10, 401, 10)
    curves = []
    for color, (loss, level) in enumerate((("triplet", 0.70), ("contrastive", 0.62))):
        for style, gain in (("plain", 0.0), ("aware", 0.05)):
            y = (level + gain) * (1 - np.exp(-epochs / (60 + 200 * gain)))
            curves.append(Curve(f"{loss}, {style}", epochs, y, y - 0.02, y + 0.02, style, color))
    levels = (Reference("chance", 0.11), Reference("Bayes reference", 0.925))
    cut_offs = [10, 20, 50, 100, 200, 500, 1000]
    at_k = [
        Curve(f"triplet, {style}", cut_offs, np.linspace(start, 0.6, 7), style=style, color=0)
        for style, start in (("plain", 0.75), ("aware", 0.79))
    ]
    return draw_curves(
        [
            Panel("Training", "epoch", "MAP", curves, references=levels),
            Panel("Cut-off", "K", "precision@K", at_k, log_x=True, references=levels[:1]),
        ]
    )


def scatter_figure():
    generator = np.random.default_rng(1)
    labels = generator.integers(0, 10, 200)
    centers = 4 * generator.normal(size=(10, 2))
    return draw_scatter(
        [
            Embedding(
                title, *(centers[labels] + spread * generator.normal(size=(2, 200, 2))), labels
            )
            for title, spread in (("plain", 1.0), ("anchor-aware", 0.5))
        ],
        class_names=CLASSES,
    )


def sample_report():
    generator = np.random.default_rng(2)
    report = Report(
        "Anchor-aware proxies under two losses",
        "Does an anchor-aware proxy help? Each loss was trained with and without it, "
        "`--num_neighbors=3`.\n\nThe numbers on this page are made up.",
    )
    results = report.section("Results", "Both directions are averaged.")
    results.table(results_table())
    results.figure("training", curve_figure(), "MAP on the test rows, and precision at K.")
    by_class = report.section("Classes")
    by_class.figure(
        "classes",
        draw_bars(
            CLASSES,
            {"audio→visual": generator.random(10), "visual→audio": generator.random(10)},
            title="MAP by class",
            value_label="MAP",
            references=[Reference("chance", 0.11)],
        ),
        "MAP of each class in both directions.",
    )
    shares = generator.random((10, 10)) ** 3
    shares[2, 3] = np.nan
    by_class.figure(
        "confusion",
        draw_heat_map(
            shares,
            CLASSES,
            CLASSES,
            title="What is found",
            x_label="class of the item",
            y_label="class of the query",
            value_label="share",
        ),
        "Share of each class among the first 100 items of a query.",
    )
    by_class.figure("embedding", scatter_figure(), "Two principal axes of the outputs.")
    report.section("Quoted figures", "For orientation only.").table(literature_table("AVE"))
    report.configuration({"loss": "triplet", "margin": 1.0, "hidden_sizes": [1024, 1024, 1024]})
    report.versions({"jax": "0.0.0", "numpy": "0.0.0"})
    return report
