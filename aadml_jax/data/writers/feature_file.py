"""Writing of feature files (HDF5) in the layout with a key for each split."""

import os
import pathlib
import shutil

import h5py
import numpy as np

from aadml_jax._files import held_lock, local_path, publish, require_absent
from aadml_jax.data.readers.feature_labels import CLASS_NAMES_KEY
from aadml_jax.data.readers.shards import SPLITS
from aadml_jax.data.retrieval_dataset import RetrievalDataset
from aadml_jax.data.writers.staging import stage
from aadml_jax.data.writers.summary import DatasetSummary
from aadml_jax.errors import UserError


def write_feature_file(
    dataset: RetrievalDataset, path: str | os.PathLike[str]
) -> tuple[pathlib.Path, DatasetSummary]:
    """Writes a data set as a feature file, which `open_feature_file` reads.

    A writing that was interrupted goes on where it was: its rows wait in shards, in a folder beside
    the file, which appears once it is complete.

    Args:
      dataset: What to write. Labels of a multi-label set become rows of 0 and 1, others class
        numbers from 0. Names of classes, where they are known, stand under the key
        `class_names`.
      path: Of the file; `~` is expanded.

    Returns:
      The absolute path, and what was written in numbers.

    Raises:
      UserError: The file exists, it can't be written, or rows can't be read.
    """
    path = local_path(path)
    staging, lock = (path.with_name(f".{path.name}.{suffix}") for suffix in ("partial", "lock"))
    require_absent(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with held_lock(lock, f"{path} is"):
            require_absent(path)  # another process may just have written it
            _, staged, summary = stage(dataset, staging, path.stem)
            temporary = staging / path.name
            _write(staged, temporary)
            publish(temporary, path)
            shutil.rmtree(staging)
            lock.unlink()
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror or error}); make room, or choose another "
            "folder"
        ) from error
    return path, summary


def _write(dataset: RetrievalDataset, path: pathlib.Path) -> None:
    # The staging folder is this process's own, and some file systems know no locks.
    with h5py.File(path, "w", locking=False) as file:
        if dataset.class_names:
            file[CLASS_NAMES_KEY] = list(dataset.class_names)
        for name, split in zip(SPLITS, (dataset.train, dataset.test), strict=True):
            labels = split.labels
            file[f"lab_{name}"] = labels.astype(np.uint8 if labels.ndim == 2 else np.int64)
            arrays = [
                file.create_dataset(f"{field}_{name}", (len(split), dim), np.float32)
                for field, dim in (("audio", split.audio_dim), ("visual", split.visual_dim))
            ]
            start = 0
            for block in split.blocks():
                for array, features in zip(arrays, (block.audio, block.visual), strict=True):
                    array[start : start + len(block)] = features
                start += len(block)
