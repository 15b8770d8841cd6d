"""Clips listed in a CSV file, each with feature files of its own.

The list has a header with the columns `clip_id`, `label` and `split`, in any order and beside any
others. `split` is train or test. Labels are numbers from 0 or from 1, or names, which are numbered
in alphabetical order; in a multi-label set a clip's labels are separated by semicolons. The
features of clip ID are the keys `audio` and `visual` of ID.npz, or audio/ID.npy and visual/ID.npy:
vectors [D], or series [T, D], which are averaged over time.
"""

import functools
import os
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from aadml_jax._files import local_path
from aadml_jax.data.paired_features import StoredFeatures
from aadml_jax.data.readers.csv_rows import csv_rows
from aadml_jax.data.readers.npy_files import read_npy, read_npz
from aadml_jax.data.retrieval_dataset import RetrievalDataset
from aadml_jax.data.validation import NonFiniteRows, as_float32
from aadml_jax.errors import UserError

COLUMNS = ("clip_id", "label", "split")
_SPLITS = ("train", "test")
_MODALITIES = ("audio", "visual")
_LARGEST_CLASS = 2**16
# Several class numbers in one cell, with something else between than semicolons.
_NUMBERS = re.compile(r"[0-9]+(\s*[,/+&]\s*[0-9]+|\s+[0-9]+)+")
# Missing clips that a message names.
_LISTED = 3


class ClipFiles(NamedTuple):
    """What a list of clips leads to.

    Attributes:
      dataset: The clips that have features.
      missing: Ids of those that have none, by their split.
    """

    dataset: RetrievalDataset
    missing: dict[str, tuple[str, ...]]


class _Clip(NamedTuple):
    clip_id: str
    labels: tuple[str, ...]
    split: str
    line: int


def open_clip_files(
    clip_list: str | os.PathLike[str],
    folder: str | os.PathLike[str] | None = None,
    *,
    multi_label: bool = False,
    allow_missing: bool = False,
) -> ClipFiles:
    """Reads a list of clips; features are read when rows are taken.

    Args:
      clip_list: CSV file in UTF-8 (see the module's docstring); `~` is expanded.
      folder: With the feature files; None takes that of the list.
      multi_label: Whether a clip may have several labels.
      allow_missing: Leave out clips without feature files, instead of refusing the list.

    Returns:
      The data set, its rows in the order of the list, and what is missing.

    Raises:
      UserError: The list can't be read, is damaged, lacks a column or names a clip twice; a label
        or a split does not fit; feature files are missing. Taking rows raises it for features that
        are damaged, not finite, or of another number than the first clip's.
    """
    clip_list = local_path(clip_list)
    folder = clip_list.parent if folder is None else local_path(folder)
    if not folder.is_dir():
        reason = "is not a folder" if os.path.lexists(folder) else "does not exist"
        raise UserError(f"--data_dir {folder} {reason}; give the folder of the feature files")
    listed = list(_read_list(clip_list))
    files_of = {clip.clip_id: _files_of(folder, clip.clip_id) for clip in listed}
    missing = {
        split: tuple(c.clip_id for c in listed if c.split == split and not files_of[c.clip_id])
        for split in _SPLITS
    }
    found = [(clip, paths) for clip in listed if (paths := files_of[clip.clip_id])]
    clips, files = [clip for clip, _ in found], [paths for _, paths in found]
    if len(clips) < len(listed) and not allow_missing:
        ids = [clip_id for of_split in missing.values() for clip_id in of_split]
        raise UserError(
            f"{folder} holds no features of {len(ids)} of the {len(listed)} clips in {clip_list} "
            f"({', '.join(ids[:_LISTED])}{', …' * (len(ids) > _LISTED)}); add ID.npz, or "
            "audio/ID.npy and visual/ID.npy, or leave those clips out by --allow_missing"
        )
    if not clips:
        raise UserError(
            f"{folder} holds no features of the clips in {clip_list}; give their folder"
        )
    labels, num_classes, class_names = _as_class_labels(clips, clip_list, multi_label)
    first = _read_clip(files[0])
    splits: dict[str, StoredFeatures] = {}
    for split in _SPLITS:
        rows = np.array([row for row, clip in enumerate(clips) if clip.split == split], np.int64)
        if not len(rows):
            raise UserError(f"{clip_list} leaves no {split} rows; mark some clips as {split}")
        splits[split] = StoredFeatures(
            labels=labels[rows],
            audio_dim=len(first[0].vector),
            visual_dim=len(first[1].vector),
            read=functools.partial(_read_rows, files, first),
            rows=rows,
            name=f"{split} split of {clip_list}",
        )
    for number, name in enumerate(class_names):
        if not multi_label and number not in splits["train"].labels:
            raise UserError(
                f"{clip_list}: no training clip has the label {name!r}; add such clips, or leave "
                "out those of the test split"
            )
    return ClipFiles(
        RetrievalDataset(
            name=re.sub(r"[^a-z0-9_]", "_", clip_list.stem.lower()),
            num_classes=num_classes,
            class_names=class_names,
            source=f"{clip_list}, {folder}",
            source_files=(
                str(clip_list),
                *(str(path) for paths in files for path in paths),
            ),
            averaged_over=(first[0].time_in_words(), first[1].time_in_words()),
            train=splits["train"],
            test=splits["test"],
        ),
        missing,
    )


def _read_list(path: pathlib.Path) -> Iterator[_Clip]:
    """The clips of a list, checked one by one."""
    lines_of_ids: dict[str, int] = {}
    rows = csv_rows(path, "a CSV list of clips")
    header = [name.strip().lower().replace(" ", "_") for name in next(rows, (0, []))[1]]
    for column in COLUMNS:
        if header.count(column) != 1:
            sign = _separator(header)
            if sign is not None:
                raise UserError(
                    f"{path} is separated by {sign}; save it with commas between the cells"
                )
            found = "names it twice" if column in header else "does not name it"
            raise UserError(
                f"{path}: the header needs the column {column} once and {found}; it reads "
                f"{','.join(header)[:200] or 'nothing'}, write clip_id,label,split with "
                "commas between"
            )
    places = [header.index(column) for column in COLUMNS]
    for line, cells in rows:
        where = f"{path}, line {line}"
        if not cells:
            continue
        if len(cells) != len(header):
            raise UserError(
                f"{where} has {len(cells)} cells, but the header {len(header)}; put cells "
                "that hold commas into quotes"
            )
        clip_id, label, split = (cells[place].strip() for place in places)
        parts = pathlib.PurePosixPath(clip_id).parts
        if not parts or ".." in parts or clip_id.startswith("/"):
            raise UserError(
                f"{where}: the clip id {clip_id!r} can be no file name; write one that can"
            )
        if clip_id in lines_of_ids:
            raise UserError(
                f"{where}: the clip id {clip_id!r} stands in line {lines_of_ids[clip_id]} "
                "as well; leave one of them out"
            )
        lines_of_ids[clip_id] = line
        if split not in _SPLITS:
            raise UserError(f"{where}: the split {split!r} must be {' or '.join(_SPLITS)}")
        labels = tuple(part.strip() for part in label.split(";"))
        if "|" in label or _NUMBERS.fullmatch(label):
            raise UserError(
                f"{where}: the label {label!r} holds several labels by its looks; they are "
                "separated by semicolons, and set --multi_label for them; a class of that "
                "name needs another one"
            )
        if "" in labels or not label.isprintable():
            raise UserError(
                f"{where}: the label {label!r} names no class; write names on one line, "
                "semicolons between them"
            )
        yield _Clip(clip_id, labels, split, line)
    if not lines_of_ids:
        raise UserError(f"{path} lists no clips; write one line for each")


def _separator(header: list[str]) -> str | None:
    """What separates the cells of a header instead of commas, in words."""
    for sign, name in ((";", "semicolons"), ("\t", "tabs"), ("|", "vertical bars")):
        parts = [part.strip('_"') for cell in header for part in cell.split(sign)]
        if all(column in parts for column in COLUMNS):
            return name
    return None


def _as_class_labels(
    clips: Sequence[_Clip], path: pathlib.Path, multi_label: bool
) -> tuple[np.ndarray, int, tuple[str, ...]]:
    """Labels of all clips, the number of classes, and their names if they have some."""
    for clip in clips:
        if len(clip.labels) > 1 and not multi_label:
            raise UserError(
                f"{path}, line {clip.line}: {clip.clip_id!r} has several labels "
                f"({'; '.join(clip.labels)}); add --multi_label, or keep one"
            )
    names = sorted({label for clip in clips for label in clip.labels})
    are_numbers = [re.fullmatch(r"-?[0-9]{1,18}", name, re.ASCII) is not None for name in names]
    if any(are_numbers) and not all(are_numbers):
        number, name = (names[are_numbers.index(kind)] for kind in (True, False))
        raise UserError(
            f"{path}: some labels are numbers ({number}) and some are names ({name}); write all of "
            "them alike"
        )
    if not all(are_numbers):
        for clip in clips:
            if "nan" in map(str.lower, clip.labels):
                raise UserError(
                    f"{path}, line {clip.line}: the label nan of {clip.clip_id!r} is what tables "
                    "hold where a value is missing; name its class, or leave the line out"
                )
        number_of = {name: number for number, name in enumerate(names)}
        num_classes = len(names)
    else:
        numbers = sorted({int(name) for name in names})
        if numbers[0] not in (0, 1) or numbers[-1] > _LARGEST_CLASS:
            wrong = numbers[0] if numbers[0] not in (0, 1) else numbers[-1]
            raise UserError(
                f"{path}: the class numbers run from {numbers[0]} to {numbers[-1]} ({wrong} does "
                f"not fit); number classes from 0 or from 1, to {_LARGEST_CLASS} at most"
            )
        number_of = {name: int(name) - numbers[0] for name in names}
        names, num_classes = [], numbers[-1] - numbers[0] + 1
    if not multi_label:
        labels = np.array([number_of[clip.labels[0]] for clip in clips], np.int32)
    else:
        labels = np.zeros((len(clips), num_classes), bool)
        for row, clip in enumerate(clips):
            labels[row, [number_of[label] for label in clip.labels]] = True
    return labels, num_classes, tuple(names)


def _files_of(folder: pathlib.Path, clip_id: str) -> tuple[pathlib.Path, ...] | None:
    """The files of a clip: one .npz, or a .npy of each modality; None if there are none."""
    for paths in (
        (folder / f"{clip_id}.npz",),
        tuple(folder / modality / f"{clip_id}.npy" for modality in _MODALITIES),
    ):
        # A dangling link, or one that leads to itself, is reported when it is read.
        if all(os.path.lexists(path) for path in paths):
            return paths
    return None


class _ClipFeatures(NamedTuple):
    """A clip's vector, float32 [D], and the shape that it was stored in, (D,) or (T, D)."""

    vector: np.ndarray
    shape: tuple[int, ...]

    @property
    def is_series(self) -> bool:
        """Whether the vector is a mean over several steps."""
        return len(self.shape) == 2 and self.shape[0] > 1

    def time_in_words(self) -> str:
        """What was averaged over; empty if nothing was."""
        return f"time ({self.shape[0]} steps in the first clip)" if self.is_series else ""


def _read_clip(paths: tuple[pathlib.Path, ...]) -> tuple[_ClipFeatures, _ClipFeatures]:
    """Audio and visual features of a clip."""
    arrays = read_npz(paths[0], _MODALITIES) if len(paths) == 1 else map(read_npy, paths)
    vectors = []
    for modality, array, path in zip(_MODALITIES, arrays, paths * 2, strict=False):
        what = f"{path}: {modality}" if len(paths) == 1 else str(path)
        if array.ndim not in (1, 2) or 0 in array.shape:
            raise UserError(
                f"{what} must have shape (D,) or (T, D), got {array.shape}; store a vector or a "
                "series of vectors"
            )
        if array.ndim == 2 and array.shape[1] == 1 < array.shape[0]:
            raise UserError(
                f"{what} has shape {array.shape}, which may be {len(array)} features or "
                f"{len(array)} steps of one; store (D,), for features as features[:, 0], for steps "
                "as features.mean(axis=0)"
            )
        bad = NonFiniteRows(what)
        with np.errstate(over="ignore", invalid="ignore"):
            vector = array.mean(axis=0, dtype=np.float64) if array.ndim == 2 else array
        converted = as_float32(vector[None])
        bad.add(0, np.atleast_2d(array)[None], converted)
        bad.raise_if_any(1)
        vectors.append(_ClipFeatures(converted[0], array.shape))
    audio, visual = vectors
    return audio, visual


def _read_rows(
    files: Sequence[tuple[pathlib.Path, ...]],
    first: tuple[_ClipFeatures, _ClipFeatures],
    rows: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Features of some clips, float32 [K, Da] and [K, Dv], all like those of the first clip."""
    audio, visual = (np.empty((len(rows), len(of.vector)), np.float32) for of in first)
    for place, row in enumerate(rows.tolist()):
        for name, array, of_first, clip in zip(
            _MODALITIES, (audio, visual), first, _read_clip(files[row]), strict=True
        ):
            if clip.vector.shape != array.shape[1:]:
                series = ", and store series as (T, D), time first" * (len(clip.shape) == 2)
                raise UserError(
                    f"{files[row][0]}: {name} features have {len(clip.vector)} columns, but the "
                    f"first clip's {array.shape[1]}; extract all with the same model{series}"
                )
            if clip.is_series and not of_first.is_series:
                raise UserError(
                    f"{files[row][0]}: {name} features have shape {clip.shape}, a series, but the "
                    "first clip's are one vector; store vectors of all clips, or series of all"
                )
            array[place] = clip.vector
    return audio, visual
