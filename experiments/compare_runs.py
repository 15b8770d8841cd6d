"""Lines up finished runs: `python -m experiments.compare_runs runs/one runs/two`.

Prints a row for each run: its MAP, prefix MAP, best epoch, and those of its settings in which the
runs differ. Below them, runs that differ in their seed alone are taken together: mean ± standard
deviation; of several runs of one seed, the first. With --output=FOLDER the same goes into a page
there, with curves over the epochs. Nothing in the runs' folders is changed.
"""

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from aadml_jax.errors import UserError
from aadml_jax.reports.figures import Curve, Panel, Reference, draw_curves
from aadml_jax.reports.page import Report
from aadml_jax.reports.retrieval import require_plots
from aadml_jax.reports.statistics import MeanAndSpread, mean_and_spread
from aadml_jax.reports.tables import Table
from aadml_jax.training.evaluation import DIRECTIONS
from aadml_jax.training.settings import setting
from aadml_jax.training.stored_runs import (
    FinishedRun,
    differing_settings,
    read_finished_runs,
    repeated_by_seed,
    with_the_same_test_rows,
)
from experiments import command_line

_LOSSES = {"loss": "loss", "label_loss": "label loss", "metric_loss": "metric loss"}
_MAPS = {
    "map_mean": "mean",
    "map_audio_to_visual": "audio→visual",
    "map_visual_to_audio": "visual→audio",
}


@dataclasses.dataclass(frozen=True)
class Options:
    """Where to write the comparison."""

    output: str | None = setting(
        None, "folder to write a page with curves into; needs the extra 'plots'"
    )


def run(folders: Sequence[str], options: Options = Options()) -> dict[str, list[Any]]:
    """Reads finished runs and shows them side by side.

    Args:
      folders: of the runs, their --workdir.
      options: where to write.

    Returns:
      The columns of the table, by their heads, with a cell for each run.

    Raises:
      UserError: if a folder is not that of a finished run, or the output cannot be written.
    """
    if not folders:
        raise UserError(
            "no run is named; give the folders of finished runs (their --workdir), one or more"
        )
    if options.output is not None:
        require_plots()
    runs = read_finished_runs(folders)
    columns = {**results(runs), **settings(runs)}
    print(as_text(columns))
    if over_seeds := results_over_seeds(runs):
        print(f"\n{as_text(over_seeds)}")
    for warning in warnings(runs):
        print(f"warning: {warning}", file=sys.stderr)
    if options.output is not None:
        page = as_report(runs).write(options.output)
        print(f"\nwritten to {page}")
    return columns


def main(folders: Sequence[str]) -> None:
    """Compares the runs that are named behind the flags."""
    run(folders, command_line.options_from_flags(Options)[0])


def results(runs: Sequence[FinishedRun]) -> dict[str, list[Any]]:
    """Columns of names and figures: a cell for each run."""
    best = [run.result["best"] or {"mean_map": None, "epoch": None} for run in runs]
    return {
        "run": [run.name for run in runs],
        **{
            f"MAP {short}": [run.result["map"][direction] for run in runs]
            for direction, short in zip(DIRECTIONS, ("a→v", "v→a", "mean"), strict=True)
        },
        "prefix MAP": [run.result["prefix_map"]["mean"] for run in runs],
        "chance": [run.result["chance"] for run in runs],
        "best on test": [one["mean_map"] for one in best],
        "in epoch": [one["epoch"] for one in best],
    }


def results_over_seeds(runs: Sequence[FinishedRun]) -> dict[str, list[Any]]:
    """Columns of means and spreads of runs that differ in their seed alone; empty without such."""
    groups = repeated_by_seed(runs)
    if not groups:
        return {}
    return {
        "runs": [", ".join(run.name for run in group) for group in groups],
        **{
            name: [
                mean_and_spread([run.result[key][direction] for run in group]) for group in groups
            ]
            for name, key, direction in (
                *(
                    (f"MAP {short}", "map", direction)
                    for direction, short in zip(DIRECTIONS, ("a→v", "v→a", "mean"), strict=True)
                ),
                ("prefix MAP", "prefix_map", "mean"),
            )
        },
    }


def settings(runs: Sequence[FinishedRun]) -> dict[str, list[Any]]:
    """Columns of what the runs took, and of the settings in which they differ, by their flags."""
    return {
        "epochs": [run.result["epochs"] for run in runs],
        "seconds": [round(run.result["seconds"]) for run in runs],
        **{
            f"--{name}": [_as_on_a_command_line(value) for value in values]
            for name, values in differing_settings(runs).items()
        },
    }


def _as_on_a_command_line(value: Any) -> str | None:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return ",".join(map(str, value))
    return None if value is None else str(value)


def as_text(columns: Mapping[str, Sequence[Any]]) -> str:
    """A table for the terminal: texts on the left of their columns, numbers on the right."""

    def text(cell: Any) -> str:
        if cell is None:
            return "–"
        if isinstance(cell, MeanAndSpread):
            return f"{cell.mean:.3f} ± {cell.std:.3f}"
        return f"{cell:.3f}" if isinstance(cell, float) else str(cell)

    blocks = []
    for name, cells in columns.items():
        texts = [name, *map(text, cells)]
        width = max(map(len, texts))
        is_text = any(isinstance(cell, str) for cell in cells)
        blocks.append([one.ljust(width) if is_text else one.rjust(width) for one in texts])
    return "\n".join("  ".join(line).rstrip() for line in zip(*blocks, strict=True))


def warnings(runs: Sequence[FinishedRun]) -> list[str]:
    """What a reader of the figures must know: which of them cannot be compared."""
    groups = with_the_same_test_rows(runs)
    if len(groups) == 1:
        return []
    parts = (f"{', '.join(run.name for run in group)} on {_data(group[0])}" for group in groups)
    return [
        "the runs were tested on different rows, so their figures cannot be compared: "
        + "; ".join(parts)
    ]


def as_report(runs: Sequence[FinishedRun]) -> Report:
    """The comparison as a page, with curves over the epochs."""
    report = Report(
        "Comparison of runs", "\n\n".join(f"Warning: {warning}." for warning in warnings(runs))
    )
    section = report.section("Results")
    section.table(
        _table(
            "Retrieval of the test rows",
            results(runs),
            "Of the last epoch, but for the best one, which was selected on the test rows. Prefix "
            "MAP is the mean of both directions.",
        )
    )
    if over_seeds := results_over_seeds(runs):
        section.table(
            _table(
                "Over seeds",
                over_seeds,
                "Mean ± standard deviation of the runs that differ in their seed alone; of several "
                "of one seed, the first.",
            )
        )
    section.table(
        _table(
            "Settings",
            {"run": [run.name for run in runs], **settings(runs)},
            "Length, and those settings in which the runs differ.",
        )
    )
    section = report.section("Training")
    section.figure(
        "loss", draw_curves(_panels(runs, _LOSSES, "loss", [])), "Mean of the loss over each epoch."
    )
    chances = {run.result["chance"] for run in runs}
    references = [Reference("chance", *chances)] if len(chances) == 1 else []
    section.figure(
        "map",
        draw_curves(_panels(runs, _MAPS, "MAP", references), share_y=True),
        "MAP of the test rows in the epochs that were evaluated.",
    )
    report.configuration({run.name: dict(run.settings) for run in runs})
    report.versions(
        {
            run.name: ", ".join(f"{name} {version}" for name, version in run.versions.items())
            for run in runs
        }
    )
    return report


def _table(title: str, columns: Mapping[str, Sequence[Any]], note: str) -> Table:
    return Table(title, list(columns), list(zip(*columns.values(), strict=True)), note)


def _panels(
    runs: Sequence[FinishedRun],
    metrics: Mapping[str, str],
    y_label: str,
    references: Sequence[Reference],
) -> list[Panel]:
    panels = []
    for key, title in metrics.items():
        points = {run.name: run.curve(key) for run in runs}
        # A run of another version may not have logged what this one does.
        curves = [Curve(name, *values) for name, values in points.items() if values[0]]
        if curves:
            panels.append(Panel(title, "epoch", y_label, curves, references=references))
    return panels


def _data(run: FinishedRun) -> str:
    fold = run.settings.get("fold")
    return (
        f"{run.data['test_rows']} rows of {run.data['name']}"
        + ("" if fold is None else f", fold {fold}")
        + f" (fingerprint {run.data['fingerprint'][:8]})"
    )


if __name__ == "__main__":
    command_line.run(main, flags_of=[Options], takes_arguments=True)
