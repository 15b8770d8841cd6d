"""Reports the MAP of a trained run: `python -m experiments.evaluate --checkpoint=WORKDIR`.

Without further flags it repeats the run's reported MAP from the checkpoint and the data recorded in
the folder. Nothing in the folder is changed. With --report=FOLDER it also writes a page there that
shows the retrieval: embeddings, classes, and the best and worst queries.
"""

import dataclasses
import json
import sys
from typing import Any

from aadml_jax._files import local_path
from aadml_jax.data import standardize
from aadml_jax.errors import UserError
from aadml_jax.reports.page import Report
from aadml_jax.reports.retrieval import add_retrieval_sections, require_plots
from aadml_jax.reports.tables import Table
from aadml_jax.training.evaluation import (
    DIRECTIONS,
    embed,
    evaluate,
    retrieval_result,
    tie_warning,
)
from aadml_jax.training.local_data import recorded_limit
from aadml_jax.training.parallel import all_devices
from aadml_jax.training.reporting import result_rows, result_table
from aadml_jax.training.run_folder import CONFIG_FILE, read_run_json, versions
from aadml_jax.training.settings import check_settings, setting
from aadml_jax.training.state import build_model
from aadml_jax.training.stored_runs import recorded_data, restore_for_evaluation
from experiments import command_line
from experiments.evaluated_data import dataset_of_file, recorded_dataset, was_deterministic


@dataclasses.dataclass(frozen=True)
class Options:
    """What to evaluate, and where to write it."""

    checkpoint: str | None = setting(None, "run folder: the --workdir of the training")
    which: str = setting(
        "latest",
        "checkpoint to evaluate; 'best' was selected on test",
        choices=("latest", "best"),
    )
    data_dir: str | None = setting(
        None, "folder of the run's data, if they were moved: of vegas, ave and tfds:NAME"
    )
    features_file: str | None = setting(
        None,
        "HDF5 feature file: the run's own, if it was moved, or another one, whose test rows are "
        "ranked",
    )
    output: str | None = setting(None, "file to write the numbers to, as JSON")
    report: str | None = setting(
        None,
        "folder to write a page with pictures of the retrieval into; needs the extra 'plots'",
    )
    compilation_cache: str = setting("auto", "folder of compiled programs; 'auto' or 'off'")


def run(options: Options) -> dict[str, Any]:
    """Ranks the test rows of a run by a checkpoint, prints the result and writes what is asked for.

    Returns:
      The numbers, as --output holds them.

    Raises:
      UserError: if the run or the data cannot be read, or an output cannot be written.
    """
    check_settings(options)
    if options.checkpoint is None:
        raise UserError("--checkpoint is needed: the --workdir of a training run")
    if options.report is not None:
        require_plots()
    workdir = local_path(options.checkpoint)
    stored = read_run_json(workdir, CONFIG_FILE)
    if options.features_file is None:
        dataset, split, warnings = recorded_dataset(stored, options.data_dir)
    elif options.data_dir is not None:
        raise UserError("--data_dir and --features_file name two sources; leave one of them out")
    else:
        dataset, split, warnings = dataset_of_file(stored, options.features_file)
    config, towers, progress = restore_for_evaluation(workdir, stored, options.which)
    model = build_model(config.recipe, recorded_data(stored)["num_classes"])
    test = standardize(
        dataset.test.take(slice(None)),
        towers.standardization,
        limit=recorded_limit(recorded_data(stored)),
    )
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr, flush=True)
    similarity = config.recipe.similarity
    report = evaluate(model, towers.params, test, all_devices("auto"), similarity=similarity)
    result = retrieval_result(report, dataset.test.labels, dataset.test_posteriors)
    what = (
        f"{options.which} checkpoint of {workdir}, epoch {progress.epoch}; {len(dataset.test)} "
        f"test pairs of {dataset.source}{split}"
    )
    print(f"{what}\n\n{result_table(result)}")
    if (warning := tie_warning(result)) is not None:
        print(warning, file=sys.stderr)
    if options.output is not None:
        command_line.write_output(options.output, json.dumps(result, indent=2) + "\n")
    if options.report is not None:
        introduction = [f"{what}.", *(f"Warning: {warning}." for warning in warnings)]
        page = Report(f"Retrieval by {workdir.resolve().name}", "\n\n".join(introduction))
        page.section("Result").table(_as_table(result))
        add_retrieval_sections(
            page,
            *embed(model, towers.params, test),
            dataset.test.labels,
            dataset.class_names or [str(number) for number in range(dataset.num_classes)],
            similarity=similarity,
        )
        page.configuration(config.flat())
        page.versions(versions())
        print(f"\nwritten to {page.write(options.report)}")
    return result


def main() -> None:
    """Sets the process up for what the flags and the run say, and evaluates."""
    options, _ = command_line.options_from_flags(Options)
    command_line.set_up_compilation_cache(options.compilation_cache)
    if was_deterministic(options.checkpoint):
        command_line.set_up_determinism()
    run(options)


def _as_table(result: dict[str, Any]) -> Table:
    rows = [
        [name, *(values[direction] for direction in DIRECTIONS)]
        for name, values in result_rows(result)
    ]
    return Table("Retrieval of the test rows", ["", "audio→visual", "visual→audio", "mean"], rows)


if __name__ == "__main__":
    command_line.run(main, flags_of=[Options])
