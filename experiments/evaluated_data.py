"""Which rows a trained run is used on: its own, wherever they are now, or those of a file."""

import dataclasses
import os
from typing import Any, NamedTuple

from aadml_jax._files import local_path
from aadml_jax.data import (
    TFDS_PREFIX,
    RetrievalDataset,
    dataset_spec,
    open_feature_file,
    reopen_dataset,
)
from aadml_jax.errors import UserError
from aadml_jax.training.config import DataConfig, config_from_json
from aadml_jax.training.run_folder import CONFIG_FILE, read_run_json
from aadml_jax.training.setup import split, split_in_words
from aadml_jax.training.stored_runs import recorded_data


class EvaluatedData(NamedTuple):
    """What to rank.

    Attributes:
      dataset: whose test rows are ranked.
      words: behind its name, the split that the test rows are of; empty for a file's own.
      warnings: what a reader of the figures must know.
    """

    dataset: RetrievalDataset
    words: str
    warnings: tuple[str, ...] = ()


def was_deterministic(checkpoint: str | None) -> bool:
    """Whether a run was trained with --deterministic; to be asked before JAX starts.

    Args:
      checkpoint: the run's folder, None if none is given.

    Raises:
      UserError: if the folder is not that of a run.
    """
    if checkpoint is None:
        return False
    stored = read_run_json(local_path(checkpoint), CONFIG_FILE)
    return config_from_json(stored.get("config"), stored.get("versions")).recipe.deterministic


def recorded_dataset(stored: dict[str, Any], data_dir: str | None = None) -> EvaluatedData:
    """The data that a run was trained on, from what its config.json says of them.

    Args:
      stored: the content of config.json.
      data_dir: folder where they are now, if they were moved.

    Raises:
      UserError: if they cannot be read, or are not the same any more.
    """
    data = config_from_json(stored.get("config"), stored.get("versions")).data
    recorded = recorded_data(stored)
    spec, source = dataset_spec(data.dataset), recorded["source"]
    is_prepared = data.dataset.startswith(TFDS_PREFIX)
    if data_dir is not None and not (is_prepared or spec.file_names):
        remedy = "leave it out" if spec.synthetic else "name the file itself by --features_file"
        raise UserError(f"--data_dir={data_dir} is not for --dataset={data.dataset}; {remedy}")
    if spec.synthetic is None and data_dir is None and not os.path.exists(source):
        remedy = "set --features_file to where it is now"
        if spec.file_names:
            remedy += ", or --data_dir to the folder in which it is"
        if is_prepared:
            name = data.dataset.removeprefix(TFDS_PREFIX)
            remedy = f"set --data_dir to the folder in which {name} is now"
        raise UserError(
            f"{source}, which holds the data of this run, does not exist any more; {remedy}"
        )
    dataset = reopen_dataset(data.dataset, source, data_dir=data_dir, multi_label=data.multi_label)
    own = _rows_of_run(dataset, data, recorded["fingerprint"])
    if own is None:
        remedy = (
            "set --data_dir to a folder that does"
            if is_prepared
            else "to evaluate on it all the same, pass it as --features_file"
        )
        raise UserError(f"{dataset.source} does not hold the data of this run; {remedy}")
    return EvaluatedData(own, split_in_words(data))


def dataset_of_file(stored: dict[str, Any], path: str) -> EvaluatedData:
    """A feature file's rows: the run's own test rows if it holds the run's data, else the file's.

    Which of them is told by the fingerprint that the run recorded, whatever the file is called.

    Args:
      stored: the content of config.json.
      path: of the file.

    Raises:
      UserError: if it cannot be read, or its labels are of another kind.
    """
    data = config_from_json(stored.get("config"), stored.get("versions")).data
    recorded = recorded_data(stored)
    dims = recorded["audio_dim"], recorded["visual_dim"]
    dataset = open_feature_file(path, multi_label=recorded["multi_label"], dims=dims)
    own = _rows_of_run(dataset, data, recorded["fingerprint"])
    if own is not None:
        names = own.class_names or dataset_spec(data.dataset).class_names
        own = dataclasses.replace(own, class_names=names)
        return EvaluatedData(own, split_in_words(data))
    warnings = []
    if data.fold is not None:
        warnings.append(
            f"{dataset.source} does not hold the data of this run, so the file's own test rows are "
            f"ranked, not those of --fold={data.fold}; a fold is taken from training and test "
            "rows alike, so MAP is too high if clips of theirs are also in "
            f"{recorded['source']}"
        )
    if dataset.num_classes != recorded["num_classes"]:
        warnings.append(
            f"{dataset.source} has {dataset.num_classes} classes, but the run learned "
            f"{recorded['num_classes']}: MAP is of retrieval among classes that are not its own"
        )
    return EvaluatedData(dataset, "", tuple(warnings))


def _rows_of_run(
    dataset: RetrievalDataset, data: DataConfig, fingerprint: str
) -> RetrievalDataset | None:
    """The rows that a run took of a data set; None if it is not the run's data set."""
    try:
        rows = split(data, dataset)
    except UserError:  # other rows, which may be too few to be split so
        return None
    return rows if rows.fingerprint() == fingerprint else None
