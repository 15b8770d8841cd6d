"""Builders for TensorFlow Datasets (TFDS) that write array_record shards, without TensorFlow.

Importing this module registers `vegas`, `ave` and `av_digits` with TFDS:

```python
import tensorflow_datasets as tfds
import aadml_jax.data.tfds_builders

(train,) = tfds.data_source("av_digits", split=["train"])
```

`python -m experiments.prepare` writes the same folders, and says how to train on them.
"""

import contextlib
import io
import os
import pathlib
import shutil
import sys
from typing import Any

import numpy as np
import pooch
import tensorflow_datasets as tfds
from tensorflow_datasets.core.dataset_builder import FileReaderBuilder
from tensorflow_datasets.core.download import checksums

from aadml_jax._files import held_lock, local_path, require_readable_file
from aadml_jax.data.readers import av_digits
from aadml_jax.data.readers.catalog import (
    DATASETS,
    DatasetSpec,
    open_dataset,
    require_prepared_name,
)
from aadml_jax.data.readers.tfds_folders import FILE_FORMAT, VERSION, metadata_of
from aadml_jax.data.retrieval_dataset import PreparedFacts, RetrievalDataset
from aadml_jax.data.standardization import LARGEST_DEVIATION, measure_standardization
from aadml_jax.data.writers.staging import stage
from aadml_jax.data.writers.summary import DatasetSummary
from aadml_jax.errors import UserError, one_line

# What av_digits downloads: size, SHA-256 and file name by address.
_CHECKSUMS = checksums.load_url_infos(pathlib.Path(__file__).with_name("checksums.tsv"))


class FeatureBuilder(FileReaderBuilder, skip_registration=True):
    """Writes the shards of a data set, and what would take a pass over them to know.

    A writing that was interrupted goes on where it was: its shards wait in a folder beside that of
    the version, which appears once it is complete.

    Attributes:
      source: The data, where they are known beforehand.
      spec: What is known of them from the catalogue.
      summary: Of the data, once they are written.
    """

    VERSION = tfds.core.Version(VERSION)

    def __init__(
        self,
        *,
        source: RetrievalDataset | None = None,
        spec: DatasetSpec | None = None,
        **options: Any,
    ):
        self.source = source
        self.spec = spec or DATASETS["features" if source else self.name]
        self.summary: DatasetSummary | None = None
        file_format = options.pop("file_format", None) or FILE_FORMAT
        if getattr(file_format, "value", file_format) != FILE_FORMAT:
            raise UserError(f"file_format={file_format} is not written; leave it out")
        super().__init__(file_format=FILE_FORMAT, **options)

    def open_source(self, dl_manager: tfds.download.DownloadManager) -> RetrievalDataset:
        """Opens the data to write, where they were not given."""
        raise NotImplementedError

    def _info(self) -> tfds.core.DatasetInfo:
        spec, source = self.spec, self.source
        dims = spec.dims if source is None else (source.audio_dim, source.visual_dim)
        names = spec.class_names if source is None else source.class_names
        num_classes = spec.num_classes if source is None else source.num_classes
        audio, visual = (
            tfds.features.Tensor(shape=(dim,), dtype=np.float32, encoding="bytes") for dim in dims
        )
        label = (
            tfds.features.ClassLabel(names=list(names))
            if names
            else tfds.features.ClassLabel(num_classes=num_classes)
        )
        labels = {"label": label}
        if source is not None and source.is_multi_label:
            labels = {"labels": tfds.features.Sequence(label)}
        return tfds.core.DatasetInfo(
            builder=self,
            description=spec.description if source is None else f"From {source.source}.",
            features=tfds.features.FeaturesDict({"audio": audio, "visual": visual, **labels}),
            homepage=spec.homepage or None,
            citation=spec.citation or None,
            license=spec.license or None,
            metadata=tfds.core.MetadataDict(),
            disable_shuffling=True,
        )

    def download_and_prepare(self, **options: Any) -> None:
        """Writes the data set, unless it is there; see TFDS for the options.

        Raises:
          UserError: Another process is writing it, or the data can't be read.
        """
        parent = self.data_path.parent
        parent.mkdir(parents=True, exist_ok=True)
        with held_lock(pathlib.Path(parent, ".lock"), f"{parent} is"):
            # Whoever left such a folder is gone.
            for leftover in parent.glob(f"incomplete.*_{self.version}"):
                leftover.rmtree()
            super().download_and_prepare(**options)
            shutil.rmtree(self._staging(parent), ignore_errors=True)

    def _staging(self, parent: os.PathLike[str]) -> pathlib.Path:
        return pathlib.Path(parent, f"partial-{self.version}")

    def _download_and_prepare(
        self,
        dl_manager: tfds.download.DownloadManager,
        download_config: tfds.download.DownloadConfig | None = None,
    ) -> None:
        dataset = self.open_source(dl_manager) if self.source is None else self.source
        features: Any = self.info.features  # whose members TFDS types too widely
        for name in ("audio", "visual"):
            declared, dim = features[name].shape[0], getattr(dataset, f"{name}_dim")
            if declared != dim:
                raise UserError(
                    f"{dataset.source}: {name} features have {dim} columns, but {self.name} has "
                    f"{declared}; write them with python -m experiments.prepare, which takes any"
                )
        folder = pathlib.Path(self.data_dir)  # TFDS renames it at the end
        written, staged, self.summary = stage(dataset, self._staging(folder.parent), self.name)
        measured = measure_standardization(staged.train)
        facts = PreparedFacts(
            self.summary.fingerprint,
            measured.statistics,
            self.summary.shared_rows,
            measured.nearly_constant,
            LARGEST_DEVIATION,
        )
        assert self.info.metadata is not None  # _info gives one
        self.info.metadata.update(metadata_of(dataset, facts))
        for split in written.values():
            for path in split.paths:
                _hard_link(path, folder / path.name)
        split_infos = [
            tfds.core.SplitInfo(
                name=name,
                shard_lengths=list(split.lengths),
                num_bytes=split.num_bytes,
                filename_template=self._get_filename_template(split_name=name),
            )
            for name, split in written.items()
        ]
        self.info.set_splits(tfds.core.SplitDict(split_infos))


def _hard_link(path: pathlib.Path, other: pathlib.Path) -> None:
    """Gives a file a second name, so that it stays if the folder of that one is given up."""
    try:
        os.link(path, other)
    except OSError:  # a file system without such names
        os.rename(path, other)


class _PublishedFile(FeatureBuilder, skip_registration=True):
    """A data set whose feature file is fetched by hand."""

    def open_source(self, dl_manager: tfds.download.DownloadManager) -> RetrievalDataset:
        """Opens the file in the folder of what was fetched by hand."""
        return open_dataset(self.name, data_dir=dl_manager.manual_dir)


class Vegas(_PublishedFile):
    """VEGAS, features as published."""

    MANUAL_DOWNLOAD_INSTRUCTIONS = DATASETS["vegas"].fetch_by_hand()


class Ave(_PublishedFile):
    """AVE, the subset of 15 classes, features as published."""

    MANUAL_DOWNLOAD_INSTRUCTIONS = DATASETS["ave"].fetch_by_hand()


class AvDigits(FeatureBuilder):
    """Spoken digits paired with written ones; checksums.tsv pins what is downloaded."""

    MANUAL_DOWNLOAD_INSTRUCTIONS = DATASETS["av_digits"].fetch_by_hand()

    def open_source(self, dl_manager: tfds.download.DownloadManager) -> RetrievalDataset:
        """Downloads what was not fetched by hand."""
        try:
            manual_dir = dl_manager.manual_dir
        except AssertionError:  # there is none
            manual_dir = None
        # Without a network the manager itself would try for minutes.
        return fetch_av_digits(dl_manager.download_dir, manual_dir)


class _Prepared(FeatureBuilder, skip_registration=True):
    """A data set that was opened elsewhere, under its own name."""

    def __init__(self, source: RetrievalDataset, spec: DatasetSpec | None, data_dir: pathlib.Path):
        self.name = source.name  # pyright: ignore[reportAttributeAccessIssue]  # else the class's
        super().__init__(source=source, spec=spec, data_dir=data_dir)


def write_tfds_folder(
    dataset: RetrievalDataset,
    data_dir: str | os.PathLike[str],
    *,
    spec: DatasetSpec | None = None,
) -> tuple[pathlib.Path, DatasetSummary]:
    """Writes a data set as TFDS shards.

    Args:
      dataset: What to write. Stored features are read block by block.
      data_dir: Folder of data sets, made if need be; `~` is expanded.
      spec: What the catalogue knows of these data, to be told in the folder.

    Returns:
      The new folder, `data_dir`/`dataset.name`/1.0.0, and what was written in numbers. The folder
      appears once it is complete.

    Raises:
      UserError: The name does not suit TFDS, the folder exists, or it cannot be written.
    """
    folder = require_no_folder(dataset.name, data_dir)
    try:
        builder = _Prepared(dataset, spec, folder.parents[1])
        # TFDS tells of downloads, of which there are none.
        with contextlib.redirect_stdout(io.StringIO()):
            builder.download_and_prepare()
        downloads = folder.parents[1] / "downloads"
        for unused in (downloads / "extracted", downloads):
            with contextlib.suppress(OSError):  # not there, or not empty and so not ours
                unused.rmdir()
    except OSError as error:
        raise UserError(
            f"{folder} cannot be written ({error.strerror or error}); make room, or choose another "
            "folder"
        ) from error
    if builder.summary is None:  # another process was faster
        require_no_folder(dataset.name, data_dir)
        raise AssertionError(f"nothing was written to {folder}")
    return folder, builder.summary


def require_no_folder(name: str, data_dir: str | os.PathLike[str]) -> pathlib.Path:
    """The folder of a data set that is not there yet.

    Raises:
      UserError: It is there, or the name does not suit TFDS.
    """
    require_prepared_name(name, "set another one with --name")
    folder = local_path(data_dir) / name / VERSION
    if folder.exists():
        raise UserError(f"{folder} exists already; remove it or choose another folder")
    return folder


def fetch_av_digits(
    download_dir: str | os.PathLike[str], manual_dir: str | os.PathLike[str] | None = None
) -> RetrievalDataset:
    """The data set `av_digits` from its sources' files.

    Args:
      download_dir: Folder for what is downloaded, and found there again.
      manual_dir: Folder with files that were fetched by hand; the rest is downloaded.

    Raises:
      UserError: A file can't be downloaded, or is not the one that checksums.tsv pins.
    """
    files = {
        info.filename: _fetch_file(url, info, download_dir, manual_dir)
        for url, info in _CHECKSUMS.items()
    }
    return av_digits.open_av_digits(
        *(files[name] for name in av_digits.FILE_NAMES), num_recordings=av_digits.NUM_RECORDINGS
    )


def _fetch_file(
    url: str,
    info: Any,
    download_dir: str | os.PathLike[str],
    manual_dir: str | os.PathLike[str] | None,
) -> pathlib.Path:
    """A pinned file, in one of the folders."""
    by_hand = DATASETS["av_digits"].fetch_by_hand()
    if manual_dir is not None:
        path = local_path(manual_dir) / info.filename
        if os.path.lexists(path):
            require_readable_file(path, "a file of av_digits")
            if pooch.file_hash(str(path)) != info.checksum:
                raise UserError(
                    f"{path} is not the file that is expected (its SHA-256 is not "
                    f"{info.checksum}). {by_hand}"
                )
            return path
    folder = local_path(download_dir)
    try:
        path = pooch.retrieve(
            url,
            known_hash=f"sha256:{info.checksum}",
            fname=info.filename,
            path=folder,
            # pooch's own type of a downloader names the parameters otherwise.
            downloader=pooch.HTTPDownloader(  # pyright: ignore[reportArgumentType]
                progressbar=sys.stderr.isatty(), timeout=30
            ),
        )
    except Exception as error:  # of the network, of the disk, or of a checksum
        # Errors of the network are paragraphs about its layers.
        reason = getattr(error, "strerror", None) or type(error).__name__
        if isinstance(error, ValueError):  # of a checksum
            reason = one_line(error)
        raise UserError(
            f"{info.filename} cannot be downloaded from {url} ({reason}). {by_hand}"
        ) from error
    return pathlib.Path(path)
