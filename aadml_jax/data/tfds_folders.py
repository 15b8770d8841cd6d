"""Data sets in folders of TensorFlow Datasets (TFDS), in array_record shards, without TensorFlow.

A record is one clip: `audio` and `visual`, float32 vectors stored as bytes, and `label`. Records
stand in the order of the rows they were written from and can be read in any order, a few at a time.
The folder's metadata hold what would otherwise take a pass over all records: the labels, the
statistics of the training rows and the data's fingerprint. `tfds.builder_from_directory` reads such
a folder as well.
"""

import base64
import contextlib
import fcntl
import functools
import io
import os
import pathlib
import re
import shutil
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2
from tqdm import tqdm

from aadml_jax.data.catalog import DATASETS, require_prepared_name
from aadml_jax.data.paired_features import PairedFeatures, StoredFeatures
from aadml_jax.data.retrieval_dataset import PreparedFacts, RetrievalDataset, shared_rows
from aadml_jax.data.standardization import FeatureStandardization, fit_standardization
from aadml_jax.errors import UserError

VERSION = "1.0.0"
_SPLITS = ("train", "test")
# Metadata of data whose density is known.
_POSTERIORS = ("audio_test_posteriors", "visual_test_posteriors")


def write_tfds_folder(dataset: RetrievalDataset, data_dir: str | os.PathLike[str]) -> pathlib.Path:
    """Writes a data set as TFDS shards.

    Args:
      dataset: What to write. Stored features are read block by block.
      data_dir: Folder of data sets, made if need be; `~` is expanded.

    Returns:
      The new folder, `data_dir`/`dataset.name`/1.0.0. It appears once it is complete.

    Raises:
      UserError: The name does not suit TFDS, the folder exists, or it cannot be written.
    """
    require_prepared_name(dataset.name, "set another one with --name")
    data_dir = pathlib.Path(os.path.expanduser(data_dir)).absolute()
    folder = data_dir / dataset.name / VERSION
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _held(folder.parent):
            if folder.exists():
                raise UserError(f"{folder} exists already; remove it or choose another folder")
            for leftover in folder.parent.glob(f"incomplete.*_{VERSION}"):
                shutil.rmtree(leftover)
            tfds.disable_progress_bar()
            # TFDS tells of downloads, of which there are none.
            with contextlib.redirect_stdout(io.StringIO()):
                _Builder(dataset, data_dir).download_and_prepare()
        for unused in (data_dir / "downloads" / "extracted", data_dir / "downloads"):
            with contextlib.suppress(OSError):  # not there, or not empty and so not ours
                unused.rmdir()
    except OSError as error:
        raise UserError(
            f"{folder} cannot be written ({error.strerror or error}); make room, or choose another "
            "folder"
        ) from error
    return folder


@contextlib.contextmanager
def _held(folder: pathlib.Path) -> Iterator[None]:
    """Keeps others from writing the same data set; a killed holder lets go."""
    with open(folder / ".lock", "a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{folder} is being written by another process; wait for it, or choose another "
                "folder"
            ) from None
        yield


def open_tfds_folder(
    folder: str | os.PathLike[str], *, name: str | None = None
) -> RetrievalDataset:
    """Opens a folder that `write_tfds_folder` wrote; features are read when rows are taken.

    Args:
      folder: Of a version of the data set; `~` is expanded.
      name: Name of the data set; None takes that of the folder.

    Raises:
      UserError: The folder is missing, damaged, or holds other data.
    """
    folder = pathlib.Path(os.path.expanduser(folder)).absolute()
    if not (folder / "dataset_info.json").is_file():
        raise UserError(f"{folder} holds no data set; write one with python -m experiments.prepare")
    try:
        builder = tfds.builder_from_directory(folder)
        metadata = dict(builder.info.metadata or {})
        facts = {key: metadata[key] for key in ("fingerprint", "num_classes", "shared_rows")}
        arrays = {key: _decoded(metadata[key]) for key in (*_label_keys(), *_statistics_keys())}
        posteriors = tuple(_decoded(metadata[key]) for key in _POSTERIORS if key in metadata)
    except KeyError as error:
        raise UserError(
            f"{folder} does not say {error}; write it anew with python -m experiments.prepare"
        ) from error
    except Exception as error:  # whatever damaged JSON makes its readers raise
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{folder} is damaged ({reason}); write it anew") from error
    standardization = FeatureStandardization(*(arrays[key] for key in _statistics_keys()))
    splits = []
    for split in _SPLITS:
        labels = arrays[f"{split}_labels"]
        what = f"{split} split of {folder}"
        source = _records(builder, split, len(labels), what)
        splits.append(
            StoredFeatures(
                labels=labels,
                audio_dim=len(standardization.audio_mean),
                visual_dim=len(standardization.visual_mean),
                read=functools.partial(_read, source, what),
                rows=np.arange(len(labels)),
                name=what,
                random_access=True,
            )
        )
    return RetrievalDataset(
        name=builder.name if name is None else name,
        train=splits[0],
        test=splits[1],
        num_classes=facts["num_classes"],
        source=str(folder),
        test_posteriors=posteriors or None,
        prepared=PreparedFacts(facts["fingerprint"], standardization, int(facts["shared_rows"])),
    )


def newest_version(data_dir: str | os.PathLike[str], name: str) -> pathlib.Path:
    """The folder of a data set's newest version.

    Raises:
      UserError: There is none.
    """
    parent = pathlib.Path(os.path.expanduser(data_dir)).absolute() / name
    versions = [
        path
        for path in parent.glob("*.*.*")
        if re.fullmatch(r"\d+\.\d+\.\d+", path.name) and (path / "dataset_info.json").is_file()
    ]
    if not versions:
        if name not in DATASETS:
            origin = f"features --features_file=FILE.h5 --name={name}"
        else:
            origin = f"{name} --data_dir=FOLDER" if DATASETS[name].file_names else name
        raise UserError(
            f"{parent} holds no data set; write it with python -m experiments.prepare "
            f"--dataset={origin} --output={parent.parent}"
        )
    return max(versions, key=lambda path: tuple(map(int, path.name.split("."))))


class _Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Writes the rows of a data set in their order."""

    VERSION = tfds.core.Version(VERSION)

    def __init__(self, dataset: RetrievalDataset, data_dir: pathlib.Path):
        self.name = dataset.name
        self._dataset = dataset
        super().__init__(data_dir=data_dir, file_format="array_record")

    def _info(self) -> tfds.core.DatasetInfo:
        def vector(dim: int) -> tfds.features.Tensor:
            return tfds.features.Tensor(shape=(dim,), dtype=np.float32, encoding="bytes")

        return tfds.core.DatasetInfo(
            builder=self,
            description=f"Audio and visual features of clips, from {self._dataset.source}.",
            features=tfds.features.FeaturesDict(
                {
                    "audio": vector(self._dataset.audio_dim),
                    "visual": vector(self._dataset.visual_dim),
                    "label": tfds.features.ClassLabel(num_classes=self._dataset.num_classes),
                }
            ),
            metadata=tfds.core.MetadataDict(),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        dataset = self._dataset
        statistics = fit_standardization(dataset.train)
        digests = [getattr(dataset, split).row_digests() for split in _SPLITS]
        self.info.metadata.update(
            num_classes=dataset.num_classes,
            fingerprint=dataset.fingerprint_of(*digests),
            shared_rows=shared_rows(*digests),
            train_labels=_encoded(dataset.train.labels),
            test_labels=_encoded(dataset.test.labels),
            **{key: _encoded(array) for key, array in statistics._asdict().items()},
            **{
                key: _encoded(posteriors)
                for key, posteriors in zip(_POSTERIORS, dataset.test_posteriors or (), strict=False)
            },
        )
        return {split: self._generate_examples(getattr(dataset, split)) for split in _SPLITS}

    def _generate_examples(
        self, features: PairedFeatures | StoredFeatures
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        rows = (row for block in features.blocks() for row in block.rows())
        progress = tqdm(rows, features.name, len(features), unit="row", disable=None)
        for number, (audio, visual, label) in enumerate(progress):
            yield number, {"audio": audio, "visual": visual, "label": label}


def _records(builder: tfds.core.DatasetBuilder, split: str, num_rows: int, what: str) -> Any:
    """Random access to the raw records of a split."""
    try:
        source = builder.as_data_source(
            split=split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
        )
        count = len(source)
    except Exception as error:  # array_record raises errors of its own
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{what} cannot be opened ({reason}); write it anew") from error
    if count != num_rows:
        raise UserError(f"{what} holds {count} records instead of {num_rows}; write it anew")
    return source


def _read(source: Any, what: str, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Features of some records; the format's own decoder takes ten times as long."""
    try:
        examples = (
            tf_example_pb2.Example.FromString(record).features.feature
            for record in source.__getitems__(rows.tolist())
        )
        vectors = [
            tuple(example[key].bytes_list.value[0] for key in ("audio", "visual"))
            for example in examples
        ]
        audio, visual = (
            np.frombuffer(b"".join(column), "<f4").reshape(len(rows), -1)
            for column in zip(*vectors, strict=True)
        )
    except Exception as error:  # array_record and protobuf raise errors of their own
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{what} cannot be read ({reason}); write it anew") from error
    return audio, visual


def _label_keys() -> tuple[str, ...]:
    return tuple(f"{split}_labels" for split in _SPLITS)


def _statistics_keys() -> tuple[str, ...]:
    return FeatureStandardization._fields


def _encoded(array: np.ndarray) -> str:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return base64.b64encode(zlib.compress(buffer.getvalue())).decode()


def _decoded(text: str) -> np.ndarray:
    return np.load(io.BytesIO(zlib.decompress(base64.b64decode(text))), allow_pickle=False)
