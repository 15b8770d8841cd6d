"""Keeps clips for search: `python -m experiments.index --checkpoint=RUN --output=INDEX.npz`.

The clips are named by the flags of `experiments.embed`, and an index is a file such as that writes:
ids, embeddings, labels where they are known, and by which run they were made. A file that is there
already is added to, whichever of the two commands wrote it, if the same run made it.

`--media=FILE.csv` lets the index know media files of the clips, which `experiments.search` shows: a
header id,audio,visual and a line for each clip, with paths relative to the folder of the list.
"""

import dataclasses
import pathlib

from aadml_jax._files import held_lock, local_path
from aadml_jax.data import (
    MODALITIES,
    ClipArrays,
    appended,
    read_embeddings,
    read_media_list,
    read_provenance,
    write_embeddings,
)
from aadml_jax.errors import UserError
from aadml_jax.training.loaded_runs import LoadedRun, load_run
from aadml_jax.training.settings import check_settings, setting
from experiments import command_line, embed
from experiments.evaluated_data import was_deterministic


@dataclasses.dataclass(frozen=True)
class Options(embed.Options):
    """What to embed by which run, and the index to keep it in."""

    output: str | None = setting(None, "index to write or to add to, FILE.npz")
    media: str | None = setting(
        None, "CSV file with the columns id,audio,visual: media files of the clips"
    )
    prefix: str = setting("", "text to put before each id, where an index has such ids already")


def run(options: Options) -> pathlib.Path:
    """Embeds what the options name, and adds it to the index.

    Returns:
      The index.

    Raises:
      UserError: if the run or the data cannot be read or do not fit each other, the index is of
        another run or has one of the ids, or it cannot be written.
    """
    check_settings(options)
    if options.checkpoint is None:
        raise UserError("--checkpoint is needed: the --workdir of a training run")
    if options.output is None:
        raise UserError("--output is needed: the index to write or to add to, FILE.npz")
    path = local_path(options.output).resolve()  # a link to an index stays one
    media = None if options.media is None else read_media_list(options.media)
    trained = load_run(options.checkpoint, which=options.which)
    if path.exists():
        _require_same_run(path, trained)
    clips, source = embed.embedded_clips(options, trained)
    if media is not None:
        clips = _with_media(clips, media, options.media)
    clips = _with_prefix(clips, options.prefix)
    counts = " and ".join(f"{len(side)} {name}" for name, side in clips.rows().items())
    total = _kept(clips, source, path, trained)
    print(
        f"{counts} embeddings of {source} by the {trained.which} checkpoint of {trained.folder}, "
        f"epoch {trained.epoch}; retrieval by {trained.similarity}\n\n"
        f"written to {path}, which holds {total}"
    )
    return path


def _kept(clips: ClipArrays, source: str, path: pathlib.Path, trained: LoadedRun) -> str:
    """Writes clips to an index, behind those that it has; returns how many it holds then."""
    sources = (source,)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.with_name(f".{path.name}.lock")
        with held_lock(lock, f"{path} is", "choose another file"):
            is_there = path.exists()
            if is_there:
                sources = (*_require_same_run(path, trained), source)
                clips = appended(read_embeddings(path).clips, clips)
            facts = {**trained.provenance(), "source": sources}
            write_embeddings(clips, path, facts, replace=is_there)
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror or error}); choose another folder"
        ) from error
    return _counts(clips)


def _require_same_run(path: pathlib.Path, trained: LoadedRun) -> tuple[str, ...]:
    """Checks that a run made an index; returns the sources of the clips in it."""
    made_by = read_provenance(path)
    if made_by.fingerprint is None:
        raise UserError(
            f"{path} does not say by which run its embeddings were made; choose another file"
        )
    if made_by.fingerprint != trained.fingerprint:
        raise UserError(
            f"{path} was made by the {made_by.which} checkpoint of {made_by.run} as it was then "
            f"({made_by.fingerprint[:8]}), not by the {trained.which} one of {trained.folder} "
            f"({trained.fingerprint[:8]}); choose another file"
        )
    return made_by.sources


def _with_media(
    clips: ClipArrays, media: dict[str, dict[str, str]], name: str | None
) -> ClipArrays:
    """Clips with the media files that a list gives them."""
    sides = {
        modality: dataclasses.replace(
            side, media=tuple(media[modality].get(clip_id, "") for clip_id in side.ids)
        )
        for modality, side in clips.rows().items()
    }
    if not any(any(side.media) for side in sides.values()):
        some = ", ".join(next(iter(sides.values())).ids[:3])
        raise UserError(
            f"--media={name} names no file of any of these clips; their ids are {some}, …"
        )
    return dataclasses.replace(clips, **sides)


def _with_prefix(clips: ClipArrays, prefix: str) -> ClipArrays:
    sides = {
        modality: dataclasses.replace(side, ids=tuple(prefix + clip_id for clip_id in side.ids))
        for modality, side in clips.rows().items()
    }
    return dataclasses.replace(clips, **sides)


def _counts(clips: ClipArrays) -> str:
    """How many clips there are of each modality, and how many of them have media files."""
    sides = clips.rows()
    text = " and ".join(f"{len(side)} {name}" for name, side in sides.items())
    with_media = [sum(map(bool, sides[name].media)) for name in MODALITIES if name in sides]
    return text + f" ({' and '.join(map(str, with_media))} with media)" * any(with_media)


def main() -> None:
    """Sets the process up for what the flags and the run say, and adds to the index."""
    options, _ = command_line.options_from_flags(Options)
    command_line.set_up_compilation_cache(options.compilation_cache)
    if was_deterministic(options.checkpoint):
        command_line.set_up_determinism()
    run(options)


if __name__ == "__main__":
    command_line.run(main, flags_of=[Options])
