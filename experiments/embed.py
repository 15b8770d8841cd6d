"""Embeds clips by a trained run: `python -m experiments.embed --checkpoint=RUN --output=FILE.npz`.

Without further flags the run's own test rows; with --features_file or --dataset others. A .npz file
of features needs no labels, and may hold one modality alone: `audio` [N, Da] or `visual` [M, Dv],
with `ids` and `labels` or without (see `aadml_jax.data.readers.clip_arrays`). Nothing in the run's
folder is changed.
"""

import dataclasses
import pathlib
import sys
from collections.abc import Sequence

import numpy as np

from aadml_jax._files import require_absent
from aadml_jax.data import (
    ClipArrays,
    ModalityRows,
    PairedFeatures,
    RetrievalDataset,
    StoredFeatures,
    fits_class_names,
    open_dataset,
    read_clip_features,
    write_embeddings,
)
from aadml_jax.errors import UserError
from aadml_jax.training.loaded_runs import LoadedRun, load_run
from aadml_jax.training.run_folder import CONFIG_FILE, read_run_json
from aadml_jax.training.settings import check_settings, setting
from experiments import command_line
from experiments.evaluated_data import dataset_of_file, recorded_dataset, was_deterministic

_SPLITS = ("test", "train", "all")


@dataclasses.dataclass(frozen=True)
class Options:
    """What to embed by which run, and where to write it."""

    checkpoint: str | None = setting(None, "run folder: the --workdir of the training")
    which: str = setting("latest", "checkpoint to embed by", choices=("latest", "best"))
    dataset: str | None = setting(
        None, "data set to embed, such as vegas or tfds:NAME; default that of the run"
    )
    data_dir: str | None = setting(
        None, "folder of the data: of vegas, ave and tfds:NAME; default where the run found them"
    )
    features_file: str | None = setting(
        None,
        "HDF5 feature file, or a .npz file with the keys audio or visual or both, and ids and "
        "labels where they are known",
    )
    split: str = setting("test", "rows of the data set or HDF5 file to embed", choices=_SPLITS)
    output: str | None = setting(None, "file to write, FILE.npz")
    compilation_cache: str = setting("auto", "folder of compiled programs; 'auto' or 'off'")


def run(options: Options) -> pathlib.Path:
    """Embeds what the options name, and writes it with all that is known of it.

    Returns:
      The file that was written.

    Raises:
      UserError: if the run or the data cannot be read or do not fit each other, or the output is
        there or cannot be written.
    """
    check_settings(options)
    if options.checkpoint is None:
        raise UserError("--checkpoint is needed: the --workdir of a training run")
    if options.output is None:
        raise UserError("--output is needed: the file to write, FILE.npz")
    require_absent(options.output)
    trained = load_run(options.checkpoint, which=options.which)
    clips, source = embedded_clips(options, trained)
    path = write_embeddings(
        clips,
        options.output,
        {**trained.provenance(), "source": source},
    )
    counts = " and ".join(f"{len(side)} {name}" for name, side in clips.rows().items())
    print(
        f"{counts} embeddings of {source} by the {trained.which} checkpoint of {trained.folder}, "
        f"epoch {trained.epoch}; retrieval by {trained.similarity}\n\nwritten to {path}"
    )
    return path


def embedded_clips(options: Options, trained: LoadedRun) -> tuple[ClipArrays, str]:
    """Embeddings of the clips that the options name, and where their features come from.

    Raises:
      UserError: if the data cannot be read, or do not fit the run.
    """
    if options.features_file is not None and options.features_file.endswith(".npz"):
        return _of_arrays(options, trained)
    return _of_dataset(options, trained)


def embedded_arrays(features: ClipArrays, trained: LoadedRun) -> ClipArrays:
    """Embeddings of clips of which features are given, with all else that is known of them.

    Raises:
      UserError: if the features are not as long as those of the run.
    """
    names = features.class_names
    labels = [side.labels for side in features.rows().values()]
    if not names and all(fits_class_names(of_side, trained.class_names) for of_side in labels):
        names = trained.class_names
    embedders = {"audio": trained.embed_audio, "visual": trained.embed_visual}
    sides = {
        name: dataclasses.replace(side, values=embedders[name](side.values))
        for name, side in features.rows().items()
    }
    return ClipArrays(
        sides.get("audio"), sides.get("visual"), features.is_paired, names, features.name
    )


def _of_arrays(options: Options, trained: LoadedRun) -> tuple[ClipArrays, str]:
    """Embeddings of a .npz file's clips, and its path."""
    for flag in ("dataset", "data_dir"):
        if (value := getattr(options, flag)) is not None:
            raise UserError(f"--{flag}={value} and --features_file name two sources; keep one")
    if options.split != "test":
        raise UserError(
            f"--split={options.split} is for data sets and HDF5 files; a .npz file has no splits, "
            "leave the flag out"
        )
    assert options.features_file is not None
    features = read_clip_features(options.features_file)
    return embedded_arrays(features, trained), features.name


def _of_dataset(options: Options, trained: LoadedRun) -> tuple[ClipArrays, str]:
    """Embeddings of the chosen rows of a data set, and where they come from."""
    dataset, words = _opened(options, trained)
    names = ("train", "test") if options.split == "all" else (options.split,)
    splits = [getattr(dataset, name) for name in names]
    audio, visual = _embedded(trained, splits)
    ids = tuple(
        f"{name}/{row}"
        for name, split in zip(names, splits, strict=True)
        for row in range(len(split))
    )
    labels = np.concatenate([split.labels for split in splits])
    source = f"{dataset.source}{words}, {' and '.join(names)} rows"
    class_names = dataset.class_names
    if not class_names and fits_class_names(labels, trained.class_names):
        class_names = trained.class_names
    clips = ClipArrays(
        ModalityRows(audio, ids, labels, "audio embeddings"),
        ModalityRows(visual, ids, labels, "visual embeddings"),
        is_paired=True,
        class_names=class_names,
        name=source,
    )
    return clips, source


def _embedded(
    trained: LoadedRun, splits: Sequence[PairedFeatures | StoredFeatures]
) -> tuple[np.ndarray, np.ndarray]:
    """Both embeddings of all rows, which are read block by block."""
    blocks = [
        (trained.embed_audio(block.audio), trained.embed_visual(block.visual))
        for split in splits
        for block in split.blocks()
    ]
    audio, visual = (np.concatenate(side) for side in zip(*blocks, strict=True))
    return audio, visual


def _opened(options: Options, trained: LoadedRun) -> tuple[RetrievalDataset, str]:
    """The data set to embed, and its split in words."""
    stored = read_run_json(trained.folder, CONFIG_FILE)
    name = None if options.dataset == "features" else options.dataset
    if options.dataset == "features" and options.features_file is None:
        raise UserError("--dataset=features needs a file; set --features_file=FILE")
    if name is not None:
        dataset = open_dataset(name, data_dir=options.data_dir, features_file=options.features_file)
        return dataset, ""
    if options.features_file is None:
        dataset, words, warnings = recorded_dataset(stored, options.data_dir)
    elif options.data_dir is not None:
        raise UserError("--data_dir and --features_file name two sources; leave one of them out")
    else:
        dataset, words, warnings = dataset_of_file(stored, options.features_file)
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr, flush=True)
    return dataset, words


def main() -> None:
    """Sets the process up for what the flags and the run say, and embeds."""
    options, _ = command_line.options_from_flags(Options)
    command_line.set_up_compilation_cache(options.compilation_cache)
    if was_deterministic(options.checkpoint):
        command_line.set_up_determinism()
    run(options)


if __name__ == "__main__":
    command_line.run(main, flags_of=[Options])
