"""Shards in a folder of their own until all of them are there: what makes conversion resumable."""

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
import sys
from typing import NamedTuple

import numpy as np

from aadml_jax._files import require_readable_file, written_as_a_whole
from aadml_jax.data.paired_features import PairedFeatures
from aadml_jax.data.readers.shards import SPLITS, open_shards
from aadml_jax.data.retrieval_dataset import RetrievalDataset
from aadml_jax.data.writers.shards import WrittenSplit, write_split
from aadml_jax.data.writers.summary import DatasetSummary, summarize
from aadml_jax.errors import UserError

_IDENTITY_FILE = "source.json"
_HELD_BYTES = 2**30


class Staged(NamedTuple):
    """A data set as it lies in its shards.

    Attributes:
      shards: Of each split, by its name.
      dataset: Whose rows were or are read from the shards; in memory where that is not much.
      summary: Of these rows.
    """

    shards: dict[str, WrittenSplit]
    dataset: RetrievalDataset
    summary: DatasetSummary


def stage(dataset: RetrievalDataset, folder: pathlib.Path, name: str) -> Staged:
    """Writes both splits into a folder, or what is missing of them there, and reads them again.

    Args:
      dataset: What to write; rows are read block by block.
      folder: Made if need be. Complete shards in it that were written from the same data stay; if
        they are of other data, or it can't be told of which, it is emptied first.
      name: First part of the file names.

    Raises:
      UserError: Rows can't be read, or not as they were written.
      OSError: A file can't be written.
    """
    identity = json.dumps({"name": name, "data": _identity(dataset)}).encode()
    if folder.exists() and _content_of(folder / _IDENTITY_FILE) != identity:
        print(f"{folder} was begun with other data: starting anew", file=sys.stderr)
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with written_as_a_whole(folder / _IDENTITY_FILE, "wb") as file:
        file.write(identity)
    shards = {
        split: write_split(getattr(dataset, split), folder, f"{name}-{split}") for split in SPLITS
    }
    try:
        staged = opened_again(dataset, shards)
        if sum(of_split.num_bytes for of_split in shards.values()) <= _HELD_BYTES:
            staged = staged.loaded()  # read once for all that is measured
        summary = summarize(staged)
        if dataset.prepared is not None and summary.fingerprint != dataset.prepared.fingerprint:
            raise UserError(f"{dataset.source} does not hold the rows that its metadata tell of")
    except UserError as error:
        shutil.rmtree(folder)
        raise UserError(f"{error}; what was written is discarded") from error
    return Staged(shards, staged, summary)


def opened_again(dataset: RetrievalDataset, shards: dict[str, WrittenSplit]) -> RetrievalDataset:
    """A data set, its rows read from the shards to which they were written.

    Raises:
      UserError: See `open_shards`.
    """
    train, test = (
        open_shards(
            shards[split].paths,
            labels=getattr(dataset, split).labels,
            audio_dim=dataset.audio_dim,
            visual_dim=dataset.visual_dim,
            what=f"{split} split of {shards[split].paths[0].parent}",
        )
        for split in SPLITS
    )
    return dataclasses.replace(dataset, train=train, test=test, prepared=None)


def _identity(dataset: RetrievalDataset) -> str:
    """Tells the data apart from others without reading their features."""
    digest = hashlib.blake2b(digest_size=16)
    facts = [
        dataset.source,
        dataset.num_classes,
        dataset.audio_dim,
        dataset.visual_dim,
        dataset.prepared and dataset.prepared.fingerprint,
        [(path, *_file_signature(path)) for path in dataset.source_files],
    ]
    digest.update(json.dumps(facts).encode())
    for split in (dataset.train, dataset.test):
        digest.update(f"{split.labels.shape}{split.labels.dtype.str}".encode())
        digest.update(np.ascontiguousarray(split.labels).data)
        if isinstance(split, PairedFeatures):
            digest.update(split.row_digests().data)
    return digest.hexdigest()


def _file_signature(path: str) -> tuple[int, ...]:
    """What changes when a file is replaced; the time of its last change of status can't be set."""
    try:
        status = os.stat(path)
    except OSError:  # says it in one line
        status = require_readable_file(pathlib.Path(path), "a file of the data set")
    return status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns


def _content_of(path: pathlib.Path) -> bytes | None:
    with contextlib.suppress(FileNotFoundError):
        return path.read_bytes()
    return None
