"""The study as a function: comparisons of settings, on data that nothing was chosen on before."""

import statistics
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import jax

from aadml_jax.data import RetrievalDataset, with_train_fraction
from aadml_jax.reports.page import Report
from aadml_jax.reports.retrieval import require_plots
from aadml_jax.training.config import TrainConfig
from aadml_jax.training.evaluation import bayes_reference, chance_map
from aadml_jax.training.local_data import LocalData, load_local_data
from aadml_jax.training.run_folder import RunFolder, versions
from aadml_jax.training.stacked_runs import Probe
from experiments import command_line
from experiments.study.data import with_label_noise
from experiments.study.options import (
    LEARNING_RATE,
    Options,
    base_of,
    chosen_comparisons,
    drawn_data,
    interval_words,
)
from experiments.study.sections import SIMILARITIES, add_gains, add_learning_curves, table_of
from experiments.variants import WrittenReport, train_variants, write_report


def with_seeds(
    datasets: Sequence[RetrievalDataset], num_seeds: int
) -> Iterator[tuple[Sequence[int], LocalData]]:
    """The seeds that are trained on each data set: all on the only one, or one on each."""
    seeds = [range(num_seeds)] if len(datasets) == 1 else [(seed,) for seed in range(num_seeds)]
    for of_draw, dataset in zip(seeds, datasets, strict=True):
        yield of_draw, load_local_data(dataset)


def probes_of(data: LocalData) -> dict[str, Probe]:
    """The held-out rows, ranked by each similarity."""
    return {name: Probe(data.test, similarity=name) for name in SIMILARITIES}


def _mean_bayes_map(datasets: Sequence[RetrievalDataset]) -> float | None:
    """Of the best ranking, mean of both directions; None where it is unknown."""
    if any(dataset.test_posteriors is None for dataset in datasets):
        return None
    return statistics.fmean(
        bayes_reference(*dataset.test_posteriors, dataset.test.labels)["mean"]["map"]
        for dataset in datasets
    )


def _new_report(
    options: Options, datasets: Sequence[RetrievalDataset], bayes: float | None
) -> Report:
    chance = statistics.fmean(chance_map(dataset.test.labels) for dataset in datasets)
    return Report(
        "When anchor-aware proxies help: "
        f"{'generated' if options.features_file is None else 'grouped'} data",
        f"Stage {options.stage}: {'test' if options.for_test() else 'validation'} rows of "
        f"{datasets[0].source}, {options.num_seeds()} seeds, about {options.steps} steps a run, "
        f"towers of {', '.join(map(str, options.hidden_sizes))} units, Adam {LEARNING_RATE:g}. "
        f"The state after the last epoch is measured. Chance: {chance:.3f}"
        f"{'' if bayes is None else f'; Bayes reference: {bayes:.3f}'}.",
    )


def _part_of(
    datasets: Sequence[RetrievalDataset], fraction: float, label_noise: float
) -> list[RetrievalDataset]:
    """A part of the training rows of each draw, with label noise."""
    return [
        with_label_noise(with_train_fraction(dataset, fraction, seed=draw), label_noise, seed=draw)
        for draw, dataset in enumerate(datasets)
    ]


def _described(dataset: RetrievalDataset) -> dict[str, Any]:
    """What was trained on and measured, for the report."""
    return {
        "training": f"{len(dataset.train)} rows, {dataset.train.name}",
        "measured": f"{len(dataset.test)} rows, {dataset.test.name}",
        "fingerprint": dataset.fingerprint(),
    }


def run(options: Options) -> WrittenReport:
    """Trains the comparisons, prints their tables and writes the page.

    Raises:
      UserError: if an option cannot be, the data have no such groups, or the folder cannot be used.
      Interrupted: after a signal; the same call resumes.
      TrainingDiverged: if a run stopped being finite.
    """
    options.check()
    require_plots()  # before hours of training
    jax.devices()  # a missing device is told before a folder is made
    comparisons, num_seeds = chosen_comparisons(options), options.num_seeds()
    datasets = drawn_data(options)
    base, over = base_of(options), interval_words(options)
    bayes = _mean_bayes_map(datasets)
    report = _new_report(options, datasets, bayes)
    rows: dict[str, list[dict[str, Any]]] = {}
    with RunFolder(options.workdir or f"runs/study-{base['dataset']}") as folder:
        for name, comparison in comparisons.items():
            section = report.section(name, comparison.question)
            of_fraction = {}
            for fraction in map(float, options.fractions or comparison.fractions):
                parts = _part_of(datasets, fraction, options.label_noise)
                print(
                    f"{name}, {fraction:g} of the training rows: "
                    f"{len(comparison.variants) * num_seeds} runs; folder {folder.path}",
                    file=sys.stderr,
                    flush=True,
                )
                with command_line.progress_of_runs(name) as on_progress:
                    trained = train_variants(
                        comparison.variants,
                        TrainConfig.of(**base),
                        with_seeds(parts, num_seeds),
                        probes_of,
                        steps=options.steps,
                        folder=folder.path / "sweep",
                        most_runs=options.runs_at_a_time,
                        on_progress=on_progress,
                    )
                of_fraction[fraction] = trained
                part = f"{100 * fraction:g} % of the training rows"
                if options.label_noise:
                    part += f", {100 * options.label_noise:g} % of them with a wrong class"
                table = table_of(trained, f"{name}, {part}", over)
                section.table(table)
                print(table.markdown(), flush=True)
                figure = f"{name}-{100 * fraction:g}".replace(".", "_")
                add_gains(section, figure, trained, part, over)
                rows[f"{fraction:g}"] = [_described(dataset) for dataset in parts]
            if len(of_fraction) > 2:
                add_learning_curves(section, f"{name}-by-share", of_fraction, bayes)
        report.configuration(
            {
                **base,
                "stage": options.stage,
                "comparisons": list(comparisons),
                "seeds": num_seeds,
                "steps": options.steps,
                "data by seed": options.data_by_seed,
                "label noise": options.label_noise,
                "rows, by fraction and seed": rows,
            }
        )
        report.versions(versions())
        return write_report(report, folder.path / options.page_name())
