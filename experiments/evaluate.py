"""Reports the MAP of a trained run: `python -m experiments.evaluate --checkpoint=WORKDIR`.

Without further flags it repeats the run's reported MAP from the checkpoint and the data recorded in
the folder. Nothing in the folder is changed. With --report=FOLDER it also writes a page there that
shows the retrieval: embeddings, classes, and the best and worst queries.
"""

import dataclasses
import json
import sys
from typing import Any

from absl import flags

from aadml_jax._files import local_path
from aadml_jax.data import standardize
from aadml_jax.errors import UserError
from aadml_jax.reports.page import Report
from aadml_jax.reports.retrieval import add_retrieval_sections, require_plots
from aadml_jax.reports.tables import Table
from aadml_jax.training import config as configuration
from aadml_jax.training.evaluation import DIRECTIONS, embed, evaluate, tie_warning
from aadml_jax.training.held_data import recorded_limit
from aadml_jax.training.loop import recorded_data, restore_for_evaluation, retrieval_result
from aadml_jax.training.parallel import all_devices
from aadml_jax.training.reporting import result_rows, result_table
from aadml_jax.training.run_folder import CONFIG_FILE, read_run_json, versions
from aadml_jax.training.state import build_model
from experiments import command_line
from experiments.evaluated_data import dataset_of_file, recorded_dataset

_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "run folder: the --workdir of the training")
_WHICH = flags.DEFINE_enum(
    "which", "latest", ["latest", "best"], "checkpoint to evaluate; 'best' was selected on test"
)
_DATA_DIR = flags.DEFINE_string(
    "data_dir",
    None,
    "folder of the run's data, if they were moved: of vegas, ave and tfds:NAME",
)
_FEATURES_FILE = flags.DEFINE_string(
    "features_file",
    None,
    "HDF5 feature file: the run's own, if it was moved, or another one, whose test rows are ranked",
)
_OUTPUT = flags.DEFINE_string("output", None, "file to write the numbers to, as JSON")
_REPORT = flags.DEFINE_string(
    "report",
    None,
    "folder to write a page with pictures of the retrieval into; needs the extra 'plots'",
)
_COMPILATION_CACHE = flags.DEFINE_string(
    "compilation_cache", "auto", "folder of compiled programs; 'auto' or 'off'"
)


def main() -> None:
    """Wires checkpoint, data and evaluation together."""
    if _CHECKPOINT.value is None:
        raise UserError("--checkpoint is needed: the --workdir of a training run")
    if _REPORT.value is not None:
        require_plots()
    command_line.set_up_compilation_cache(_COMPILATION_CACHE.value)
    workdir = local_path(_CHECKPOINT.value)
    stored = read_run_json(workdir, CONFIG_FILE)
    if configuration.config_from_json(stored.get("config"), stored.get("versions")).deterministic:
        command_line.set_up_determinism()
    if _FEATURES_FILE.value is None:
        dataset, split, warnings = recorded_dataset(stored, _DATA_DIR.value)
    elif _DATA_DIR.value is not None:
        raise UserError("--data_dir and --features_file name two sources; leave one of them out")
    else:
        dataset, split, warnings = dataset_of_file(stored, _FEATURES_FILE.value)
    config, state, progress = restore_for_evaluation(workdir, stored, _WHICH.value)
    model = build_model(config, recorded_data(stored)["num_classes"])
    test = standardize(
        dataset.test.take(slice(None)),
        state.standardization,
        limit=recorded_limit(recorded_data(stored)),
    )
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr, flush=True)
    report = evaluate(model, state.params, test, all_devices("auto"), similarity=config.similarity)
    result = retrieval_result(report, dataset.test.labels, dataset.test_posteriors)
    what = (
        f"{_WHICH.value} checkpoint of {workdir}, epoch {progress.epoch}; {len(dataset.test)} test "
        f"pairs of {dataset.source}{split}"
    )
    print(f"{what}\n\n{result_table(result)}")
    if (warning := tie_warning(result)) is not None:
        print(warning, file=sys.stderr)
    if _OUTPUT.value is not None:
        command_line.write_output(_OUTPUT.value, json.dumps(result, indent=2) + "\n")
    if _REPORT.value is not None:
        introduction = [f"{what}.", *(f"Warning: {warning}." for warning in warnings)]
        page = Report(f"Retrieval by {workdir.resolve().name}", "\n\n".join(introduction))
        page.section("Result").table(_as_table(result))
        add_retrieval_sections(
            page,
            *embed(model, state.params, test),
            dataset.test.labels,
            dataset.class_names or [str(number) for number in range(dataset.num_classes)],
            similarity=config.similarity,
        )
        page.configuration(dataclasses.asdict(config))
        page.versions(versions())
        print(f"\nwritten to {page.write(_REPORT.value)}")


def _as_table(result: dict[str, Any]) -> Table:
    rows = [
        [name, *(values[direction] for direction in DIRECTIONS)]
        for name, values in result_rows(result)
    ]
    return Table("Retrieval of the test rows", ["", "audio→visual", "visual→audio", "mean"], rows)


if __name__ == "__main__":
    command_line.run(main)
