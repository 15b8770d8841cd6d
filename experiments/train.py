"""Trains AADML and reports MAP: `python -m experiments.train --dataset=synthetic`.

The run goes into --workdir: config.json, metrics.jsonl, checkpoints/, result.json. The same command
resumes a run that was interrupted. `--help` lists the flags.
"""

import dataclasses
import sys

from absl import flags

from aadml_jax.data import open_dataset
from aadml_jax.training import config as configuration
from aadml_jax.training.evaluation import tie_warning
from aadml_jax.training.held_data import hold, nearly_constant_in_words
from aadml_jax.training.loop import Interrupted, TrainingDiverged, run_training
from aadml_jax.training.parallel import all_devices
from aadml_jax.training.processes import is_primary, require_agreement
from aadml_jax.training.reporting import result_table
from aadml_jax.training.run_folder import RESULT_FILE, RunFolder
from aadml_jax.training.streaming import require_grain
from experiments import command_line

command_line.define_flags(configuration.TrainConfig)
flags.adopt_module_key_flags(command_line)  # so that --help lists them


def main() -> int:
    """Wires configuration, data and training together."""
    config, explicit = command_line.config_from_flags(configuration.TrainConfig)
    configuration.check(config)
    if config.deterministic:
        command_line.set_up_determinism()
    if config.input == "stream":
        require_grain()
    command_line.join_processes(config)
    command_line.set_up_compilation_cache(config.compilation_cache)
    config = configuration.apply_presets(config, explicit)
    config = dataclasses.replace(
        config, workdir=config.workdir or configuration.default_workdir(config)
    )

    dataset = open_dataset(
        config.dataset,
        data_dir=config.data_dir,
        features_file=config.features_file,
        multi_label=config.multi_label,
    )
    dataset = configuration.apply_splits(config, dataset)
    config = configuration.resolve(config, len(dataset.train))
    require_agreement(
        configuration.common_fields(config),
        "give all of them the same flags but for --process_id",
    )
    placement = all_devices(config.parallel)
    placement.check_batch_size(config.batch_size)
    is_streamed = config.input == "stream"
    data = hold(dataset, placement, standardized=config.standardize, streamed=is_streamed)
    with RunFolder(config.workdir, is_writer=is_primary()) as folder:
        if folder.is_writer:
            print(
                f"{dataset.name}{configuration.split_in_words(config)}: "
                f"{dataset.features_in_words()} of {len(dataset.train)} training and "
                f"{len(dataset.test)} test pairs, {dataset.num_classes} classes; "
                f"{config.epochs} epoch{'s' * (config.epochs != 1)}, batch size "
                f"{config.batch_size}, on {placement}; run folder {folder.path}",
                flush=True,
            )
            command_line.warn_of_shared_rows(data.description["shared_rows"], len(dataset.test))
            command_line.warn_of_features(nearly_constant_in_words(data.description))
        try:
            result = run_training(config, data, folder, placement)
        except (Interrupted, TrainingDiverged) as stop:
            print(stop, file=sys.stderr)
            return 1
        if folder.is_writer:
            print(f"\n{result_table(result)}\n\nwritten to {folder.path / RESULT_FILE}")
            if (warning := tie_warning(result)) is not None:
                print(warning, file=sys.stderr)
    return 0


if __name__ == "__main__":
    command_line.run(main)
