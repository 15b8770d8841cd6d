"""Data sets in folders of TensorFlow Datasets (TFDS), read without TensorFlow.

The folder's metadata hold what would otherwise take a pass over all records: the labels, the
statistics of the training rows and the data's fingerprint. `aadml_jax.data.tfds_builders` writes
such folders; `tfds.builder_from_directory` reads them as well.
"""

import base64
import io
import os
import pathlib
import re
import zlib
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from aadml_jax._files import local_path, require_readable_file, system_refusal
from aadml_jax.data.readers.shards import SPLITS, open_shards
from aadml_jax.data.retrieval_dataset import PreparedFacts, RetrievalDataset
from aadml_jax.data.standardization import FeatureStandardization
from aadml_jax.errors import UserError, one_line

VERSION = "1.0.0"
FILE_FORMAT = "array_record"

_LABELS = tuple(f"{split}_labels" for split in SPLITS)
# Data sets that a message names.
_LISTED = 20
_STATISTICS = FeatureStandardization._fields
# Where the density is known.
_POSTERIORS = ("audio_test_posteriors", "visual_test_posteriors")


def metadata_of(dataset: RetrievalDataset, facts: PreparedFacts) -> dict[str, Any]:
    """What a folder says of its data beside their records, as JSON can hold it."""
    labels = [split.labels for split in (dataset.train, dataset.test)]
    if dataset.is_multi_label:
        labels = [np.packbits(rows, axis=1) for rows in labels]
    arrays = {
        **dict(zip(_LABELS, labels, strict=True)),
        **facts.standardization._asdict(),
        **dict(zip(_POSTERIORS, dataset.test_posteriors or (), strict=False)),
    }
    return {
        "num_classes": dataset.num_classes,
        "fingerprint": facts.fingerprint,
        "shared_rows": facts.shared_rows,
        "nearly_constant": facts.nearly_constant,
        "standardized_limit": facts.limit,
        **{key: _encoded(array) for key, array in arrays.items()},
    }


def open_tfds_folder(
    folder: str | os.PathLike[str], *, name: str | None = None
) -> RetrievalDataset:
    """Opens a folder that one of our builders wrote; features are read when rows are taken.

    Args:
      folder: Of a version of the data set; `~` is expanded.
      name: Name of the data set; None takes that of the folder.

    Raises:
      UserError: The folder is missing, damaged, or holds other data.
    """
    folder = local_path(folder)
    if not (folder / "dataset_info.json").is_file():
        raise UserError(f"{folder} holds no data set; write one with python -m experiments.prepare")
    for path in folder.iterdir():
        if not path.is_dir():
            require_readable_file(path, "a file of the data set")
    try:
        builder = tfds.builder_from_directory(folder)
        _require_own_format(builder.info, folder)
        metadata = dict(builder.info.metadata or {})
        num_classes = int(metadata["num_classes"])
        arrays = {key: _decoded(metadata[key]) for key in (*_LABELS, *_STATISTICS)}
        has_posteriors = any(key in metadata for key in _POSTERIORS)
        posteriors = tuple(_decoded(metadata[key]) for key in _POSTERIORS if has_posteriors)
        of_audio, of_visual = metadata.get("nearly_constant", ((), ()))
        facts = PreparedFacts(
            metadata["fingerprint"],
            FeatureStandardization(*(arrays[key] for key in _STATISTICS)),
            int(metadata["shared_rows"]),
            (tuple(map(int, of_audio)), tuple(map(int, of_visual))),
            # Folders of earlier versions say nothing of a limit, and had none.
            metadata.get("standardized_limit"),
        )
        if not re.fullmatch("[0-9a-f]{32}", facts.fingerprint):
            raise ValueError(f"the fingerprint {facts.fingerprint!r}")
        if not all(np.isfinite(values).all() for values in facts.standardization):
            raise ValueError("statistics that are not finite")
        if facts.limit is not None and not float(facts.limit) > 0:
            raise ValueError(f"the limit {facts.limit!r}")
        paths = {split: builder.info.splits[split].filepaths for split in SPLITS}
        for key in _LABELS:
            if arrays[key].ndim == 2:
                arrays[key] = np.unpackbits(arrays[key], axis=1, count=num_classes).astype(bool)
        features: Any = builder.info.features  # whose members TFDS types too widely
        label = features["labels"].feature if "labels" in features else features["label"]
        if label.num_classes != num_classes:
            raise ValueError(f"{num_classes} classes in one place, {label.num_classes} in another")
        # TFDS numbers classes that have no names.
        class_names = () if label.names == [str(n) for n in range(num_classes)] else label.names
    except UserError:
        raise
    except KeyError as error:
        raise UserError(
            f"{folder} does not say {error}, as a folder does that another builder or version "
            "wrote; write it anew with python -m experiments.prepare"
        ) from error
    except Exception as error:  # whatever damaged JSON makes its readers raise
        if isinstance(error, OSError) and error.errno is not None:
            raise system_refusal(folder, error.errno) from error
        raise UserError(f"{folder} is damaged ({one_line(error)}); write it anew") from error
    train, test = (
        open_shards(
            paths[split],
            labels=arrays[f"{split}_labels"],
            audio_dim=len(facts.standardization.audio_mean),
            visual_dim=len(facts.standardization.visual_mean),
            what=f"{split} split of {folder}",
        )
        for split in SPLITS
    )
    return RetrievalDataset(
        name=builder.name if name is None else name,
        train=train,
        test=test,
        num_classes=num_classes,
        source=str(folder),
        test_posteriors=posteriors if len(posteriors) == 2 else None,
        prepared=facts,
        class_names=tuple(class_names),
        source_files=tuple(str(path) for of_split in paths.values() for path in of_split),
    )


def _require_own_format(info: tfds.core.DatasetInfo, folder: pathlib.Path) -> None:
    file_format = info.file_format
    if file_format is not None and file_format.value != FILE_FORMAT:
        raise UserError(
            f"{folder} is stored as {file_format.value}, but only {FILE_FORMAT} is read; write it "
            "anew with python -m experiments.prepare"
        )


def newest_version(data_dir: str | os.PathLike[str], name: str, *, origin: str) -> pathlib.Path:
    """The folder of a data set's newest version.

    Args:
      data_dir: folder of data sets; `~` is expanded.
      name: of the data set.
      origin: the data set as --dataset of `experiments.prepare` takes it, with the flags that it
        needs; for the message.

    Raises:
      UserError: There is none.
    """
    parent = local_path(data_dir) / name
    versions = [
        path
        for path in parent.glob("*.*.*")
        if re.fullmatch(r"\d+\.\d+\.\d+", path.name) and (path / "dataset_info.json").is_file()
    ]
    if not versions:
        if not parent.parent.is_dir():
            reason = "is not a folder" if parent.parent.exists() else "does not exist"
            raise UserError(f"--data_dir {parent.parent} {reason}; set it to a folder of data sets")
        if (parent.parent / "dataset_info.json").is_file() or list(
            parent.parent.glob("*.*.*/dataset_info.json")
        ):
            raise UserError(
                f"--data_dir {parent.parent} is a data set itself; set it to the folder in which "
                "that of its name lies"
            )
        there = sorted({path.parts[-3] for path in parent.parent.glob("*/*.*.*/dataset_info.json")})
        raise UserError(
            f"{parent} holds no data set (there are in {parent.parent}: "
            f"{', '.join(there[:_LISTED]) or 'none'}); write it with python -m experiments.prepare "
            f"--dataset={origin} --output={parent.parent}"
        )
    return max(versions, key=lambda path: tuple(map(int, path.name.split("."))))


def _encoded(array: np.ndarray) -> str:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return base64.b64encode(zlib.compress(buffer.getbuffer())).decode()


def _decoded(text: str) -> np.ndarray:
    return np.load(io.BytesIO(zlib.decompress(base64.b64decode(text))), allow_pickle=False)
