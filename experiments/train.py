"""Trains AADML and reports MAP: `python -m experiments.train --dataset=synthetic`.

The run goes into --workdir: config.json, metrics.jsonl, checkpoints/, result.json. The same command
resumes a run that was interrupted. `--help` lists the flags.
"""

import sys
from collections.abc import Set
from typing import Any

from aadml_jax.training.config import TrainConfig, check
from aadml_jax.training.evaluation import tie_warning
from aadml_jax.training.local_data import load_local_data, nearly_constant_in_words
from aadml_jax.training.loop import run_training
from aadml_jax.training.parallel import all_devices
from aadml_jax.training.processes import is_primary, require_agreement
from aadml_jax.training.reporting import result_table
from aadml_jax.training.run_folder import RESULT_FILE, RunFolder
from aadml_jax.training.setup import set_up, split_in_words
from aadml_jax.training.streaming import require_grain
from experiments import command_line


def run(config: TrainConfig, explicit: Set[str] = frozenset()) -> dict[str, Any]:
    """Trains, or resumes, a run, and prints what it does.

    Args:
      config: what is asked for.
      explicit: names of the settings that --smoke and --paper leave as they are.

    Returns:
      The content of result.json.

    Raises:
      UserError: if the configuration, the data or the folder cannot be used.
      Interrupted: after a signal, with the state saved.
      TrainingDiverged: if the run stops being finite; what was saved before stays.
    """
    if config.launch.input == "stream":
        require_grain()
    config, dataset = set_up(config, explicit)
    require_agreement(config.common_flags(), "give all of them the same flags but for --process_id")
    placement = all_devices(config.launch.parallel)
    placement.check_batch_size(config.recipe.batch_size)
    data = load_local_data(
        dataset,
        placement,
        standardized=config.recipe.standardize,
        streamed=config.launch.input == "stream",
    )
    with RunFolder(config.launch.workdir, is_writer=is_primary()) as folder:
        if folder.is_writer:
            epochs = config.launch.epochs
            print(
                f"{dataset.name}{split_in_words(config.data)}: {dataset.features_in_words()} of "
                f"{len(dataset.train)} training and {len(dataset.test)} test pairs, "
                f"{dataset.num_classes} classes; {epochs} epoch{'s' * (epochs != 1)}, batch size "
                f"{config.recipe.batch_size}, on {placement}; run folder {folder.path}",
                flush=True,
            )
            command_line.warn_of_shared_rows(data.description["shared_rows"], len(dataset.test))
            command_line.warn_of_features(nearly_constant_in_words(data.description))
        result = run_training(config, data, folder, placement)
        if folder.is_writer:
            print(f"\n{result_table(result)}\n\nwritten to {folder.path / RESULT_FILE}")
            if (warning := tie_warning(result)) is not None:
                print(warning, file=sys.stderr)
    return result


def main() -> None:
    """Sets the process up for what the flags say, and runs it."""
    config, explicit = command_line.options_from_flags(TrainConfig)
    check(config)
    if config.recipe.deterministic:
        command_line.set_up_determinism()
    command_line.join_processes(config.launch)
    command_line.set_up_compilation_cache(config.launch.compilation_cache)
    run(config, explicit)


if __name__ == "__main__":
    command_line.run(main, flags_of=[TrainConfig])
