"""Searches an index: `python -m experiments.search --index=INDEX.npz --query=ID|FILE.npz --k=10`.

An index is a file of embeddings, as `experiments.index` and `experiments.embed` write it. A clip of
it, named by its id, is searched for without the run that made it. Features of new clips, in a .npz
file (see `aadml_jax.data.readers.clip_arrays`), are embedded by that run, wherever it is now
(`--checkpoint=RUN`).

With --page=FOLDER it also writes a page there that shows queries and results side by side, with
their media files where the index knows some. These are not copied: the page refers to them.
"""

import dataclasses
import json
import math
import os
import pathlib
import sys
from typing import Any

import numpy as np

from aadml_jax._files import local_path
from aadml_jax.data import (
    ClipArrays,
    ModalityRows,
    fits_class_names,
    read_clip_features,
    read_embeddings,
    read_provenance,
)
from aadml_jax.errors import UserError
from aadml_jax.reports.page import Card, Report, SideBySide
from aadml_jax.reports.tables import MISSING, Table, cell_text
from aadml_jax.search import top_k
from aadml_jax.similarity import SIMILARITIES
from aadml_jax.training.loaded_runs import CHECKPOINTS, LoadedRun, load_run
from aadml_jax.training.run_folder import versions
from aadml_jax.training.settings import COUNT, check_settings, setting
from experiments import command_line
from experiments.embed import embedded_arrays

DEFAULT_K = 10
# Queries that a page shows; of more, nobody would read it.
_MOST_ON_PAGE = 100


@dataclasses.dataclass(frozen=True)
class Options:
    """What to search for, where, and how to show it."""

    index: str | None = setting(None, "file of embeddings, by experiments.index")
    query: str | None = setting(
        None, "id of a clip in the index, or a .npz file of features of one clip or several"
    )
    direction: str = setting(
        "audio_to_visual",
        "modality of the queries and of what is searched",
        choices=("audio_to_visual", "visual_to_audio"),
    )
    k: int | None = setting(
        None,
        f"results of each query; default {DEFAULT_K}, or all where there are fewer",
        bounds=COUNT,
    )
    json: bool = setting(False, "print JSON in place of a table")
    page: str | None = setting(None, "folder to write a page into")
    checkpoint: str | None = setting(
        None, "the run that made the index, if its folder was moved; for a file of features"
    )
    compilation_cache: str = setting("auto", "folder of compiled programs; 'auto' or 'off'")


def run(options: Options) -> dict[str, Any]:
    """Searches for what the options name, prints what is found and writes the page if asked for.

    Returns:
      What --json prints: `queries`, each with its `results`, best first, and how they were found.
      A score that is not finite is None.

    Raises:
      UserError: if the index or the queries cannot be read or do not fit each other, there is no
        such clip, or the page cannot be written.
    """
    check_settings(options)
    if options.index is None:
        raise UserError("--index is needed: a file that experiments.index wrote")
    if not options.query:
        raise UserError("--query is needed: the id of a clip in the index, or FILE.npz of features")
    path = local_path(options.index)
    clips, similarity = read_embeddings(path)
    similarity = similarity or "cosine"
    if similarity not in SIMILARITIES:
        raise UserError(
            f"{path}: its similarity {similarity!r} is not known; known are "
            f"{', '.join(SIMILARITIES)}"
        )
    query_side, _, gallery_side = options.direction.partition("_to_")
    gallery = clips.rows().get(gallery_side)
    if gallery is None:
        raise UserError(
            f"{path} holds no {gallery_side} embeddings, in which --direction={options.direction} "
            "searches; add such clips, or choose another direction"
        )
    k = min(DEFAULT_K, len(gallery)) if options.k is None else options.k
    if k > len(gallery):
        raise UserError(
            f"--k={k} exceeds the {len(gallery)} {gallery_side} clips of {path}; ask for "
            f"{len(gallery)} at most"
        )
    queries, class_names = _queries(options, query_side, clips, path)
    best = top_k(queries.values, gallery.values, k, similarity=similarity)
    scores, rows = np.asarray(best.scores).tolist(), np.asarray(best.indices).tolist()
    result = {
        "index": str(path),
        "direction": options.direction,
        "similarity": similarity,
        "queries": [
            {
                **_described(queries, number, class_names),
                "results": [
                    {"rank": rank, "score": _finite(score)}
                    | _described(gallery, row, clips.class_names)
                    for rank, (score, row) in enumerate(zip(*found, strict=True), start=1)
                ],
            }
            for number, found in enumerate(zip(scores, rows, strict=True))
        ],
    }
    if options.json:
        print(json.dumps(result, indent=2, allow_nan=False))
    else:
        print(
            f"{query_side} searches {len(gallery)} {gallery_side} clips of {path} by {similarity}"
        )
        for query in result["queries"]:
            print(f"\n{_query_text(query)}\n{_results_text(query['results'])}")
    if options.page is not None:
        page = _page(result).write(options.page)
        # What --json prints is nothing but JSON.
        print(f"\nwritten to {page}", file=sys.stderr if options.json else sys.stdout)
    return result


def _queries(
    options: Options, modality: str, clips: ClipArrays, path: pathlib.Path
) -> tuple[ModalityRows, tuple[str, ...]]:
    """Embeddings to search for, and the names of the classes that their labels count."""
    assert options.query is not None
    own = clips.rows().get(modality)
    if own is not None and options.query in own.ids:
        if options.checkpoint is not None:
            raise UserError(
                f"--checkpoint={options.checkpoint} is for a file of features, but --query="
                f"{options.query} is a clip of the index; leave it out"
            )
        return _one_row(own, own.ids.index(options.query)), clips.class_names
    if not options.query.endswith(".npz"):
        raise _unknown_id(options.query, modality, clips, path)
    features = read_clip_features(options.query)
    there = features.rows()
    if modality not in there:
        (other,) = there
        raise UserError(
            f"{features.name} holds {other} features alone, but --direction={options.direction} "
            f"searches for {modality}; set --direction={other}_to_{modality}"
        )
    others = dict.fromkeys(name for name in there if name != modality)
    trained = _run_that_made(path, options.checkpoint)
    embedded = embedded_arrays(dataclasses.replace(features, **others), trained)
    (width,) = {side.values.shape[1] for side in clips.rows().values()}
    if width != trained.num_classes:
        raise UserError(
            f"{path} holds embeddings of {width} columns, but the run in {trained.folder} makes "
            f"{trained.num_classes}; make the index anew"
        )
    names = embedded.class_names
    labels = embedded.rows()[modality].labels
    if not names and fits_class_names(labels, clips.class_names):
        names = clips.class_names
    return embedded.rows()[modality], names


def _one_row(side: ModalityRows, row: int) -> ModalityRows:
    rows = slice(row, row + 1)
    return dataclasses.replace(
        side,
        values=side.values[rows],
        ids=side.ids[rows],
        labels=None if side.labels is None else side.labels[rows],
        media=side.media[rows],
    )


def _unknown_id(query: str, modality: str, clips: ClipArrays, path: pathlib.Path) -> UserError:
    sides = clips.rows()
    if modality not in sides:
        return UserError(
            f"{path} holds no {modality} clips, of which --query={query} could be one; give a .npz "
            f"file of {modality} features"
        )
    for name, side in sides.items():
        if query in side.ids:
            return UserError(
                f"{path}: {query!r} is none of its {modality} clips, but of its {name} clips; set "
                f"--direction={name}_to_{modality}, or name another clip"
            )
    ids = sides[modality].ids
    there = ", ".join(ids[:3]) + ", …" * (len(ids) > 3)
    return UserError(
        f"--query={query} is none of the {modality} clips of {path} (ids there: {there}) and no "
        ".npz file of features; name one of them"
    )


def _run_that_made(path: pathlib.Path, checkpoint: str | None) -> LoadedRun:
    """The run by which the embeddings of an index were made."""
    made_by = read_provenance(path)
    if made_by.fingerprint is None or made_by.which not in CHECKPOINTS or made_by.run is None:
        raise UserError(
            f"{path} does not say by which run its embeddings were made, so that features cannot "
            "be compared with them; search for a clip of it by its id"
        )
    if checkpoint is None and not os.path.isdir(made_by.run):
        raise UserError(
            f"{made_by.run}, the run that made {path}, does not exist any more; set --checkpoint "
            "to where it is now"
        )
    trained = load_run(checkpoint or made_by.run, which=made_by.which)
    if trained.fingerprint != made_by.fingerprint:
        raise UserError(
            f"the {trained.which} checkpoint of {trained.folder} ({trained.fingerprint[:8]}) is "
            f"not the one that made {path} ({made_by.fingerprint[:8]}); set --checkpoint to the "
            "run that did, or make the index anew"
        )
    return trained


def _finite(score: float) -> float | None:
    return score if math.isfinite(score) else None


def _described(side: ModalityRows, row: int, class_names: tuple[str, ...]) -> dict[str, Any]:
    """What is known of a clip, for JSON: `classes` and `media` are None where they are not."""
    classes = None
    if side.labels is not None:
        label = side.labels[row]
        numbers = np.flatnonzero(label).tolist() if label.ndim else [int(label)]
        classes = [class_names[number] if class_names else str(number) for number in numbers]
    media = side.media[row] if side.media else ""
    return {"id": side.ids[row], "classes": classes, "media": media or None}


def _classes_text(item: dict[str, Any]) -> str:
    return MISSING if item["classes"] is None else " + ".join(item["classes"])


def _query_text(query: dict[str, Any]) -> str:
    classes = "" if query["classes"] is None else f", class {_classes_text(query)}"
    return _printable(f"query {query['id']}{classes}")


def _results_text(results: list[dict[str, Any]]) -> str:
    """Results as lines under a header; ranks and scores are aligned to the right."""
    rows = [("rank", "score", "id", "class")]
    rows += [
        (
            str(found["rank"]),
            MISSING if found["score"] is None else f"{found['score']:.4g}",
            _printable(found["id"]),
            _printable(_classes_text(found)),
        )
        for found in results
    ]
    rank, score, name, _ = (max(map(len, column)) for column in zip(*rows, strict=True))
    return "\n".join(
        f"{row[0]:>{rank}}  {row[1]:>{score}}  {row[2]:<{name}}  {row[3]}".rstrip() for row in rows
    )


def _printable(text: str) -> str:
    """A text in which control characters, which a terminal would obey, are escaped."""
    return "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in text)


def _page(result: dict[str, Any]) -> Report:
    """The page that --page asks for; a line on stderr names media files that are gone."""
    shown = result["queries"][:_MOST_ON_PAGE]
    items = [item for query in shown for item in (query, *query["results"])]
    files = dict.fromkeys(item["media"] for item in items if item["media"] is not None)
    if missing := [file for file in files if not os.path.exists(file)]:
        print(
            f"warning: {len(missing)} of the {len(files)} media files of the page are not there "
            f"any more, such as {_printable(missing[0])}",
            file=sys.stderr,
            flush=True,
        )
    path, number = pathlib.Path(result["index"]), len(result["queries"])
    page = Report(
        f"Search in {path.name}",
        f"`{path}`, {result['direction'].replace('_to_', '→')} by the similarity "
        f"{result['similarity']}, best first."
        + f" Of {number} queries the first {len(shown)} are shown."
        * (number > len(shown)),
    )
    for query in shown:
        section = page.section(f"Query {query['id']}")
        section.side_by_side(SideBySide(_card(query), [_card(found) for found in query["results"]]))
    page.section("All results").table(
        Table(
            "All results",
            ["query", "rank", "id", "class", "score"],
            [
                [query["id"], found["rank"], found["id"], _classes_text(found), found["score"]]
                for query in shown
                for found in query["results"]
            ],
        )
    )
    page.versions(versions())
    return page


def _card(item: dict[str, Any]) -> Card:
    facts = [] if item["classes"] is None else [f"class {_classes_text(item)}"]
    if "rank" in item:
        facts.insert(0, f"rank {item['rank']}, score {cell_text(item['score'])}")
    return Card(item["id"], facts, [] if item["media"] is None else [item["media"]])


def main() -> None:
    """Searches for what the flags name."""
    options, _ = command_line.options_from_flags(Options)
    command_line.set_up_compilation_cache(options.compilation_cache)
    run(options)


if __name__ == "__main__":
    command_line.run(main, flags_of=[Options])
