"""Reports the MAP of a trained run: `python -m experiments.evaluate --checkpoint=WORKDIR`.

Without further flags it repeats the run's reported MAP from the checkpoint and the data recorded in
the folder. Nothing in the folder is changed. With --report=FOLDER it also writes a page there that
shows the retrieval: embeddings, classes, and the best and worst queries.

`--embeddings=FILE.npz` ranks embeddings that come from elsewhere: `audio_embeddings` [N, D] and
`visual_embeddings` [N, D] with `labels` [N], or of N and of M clips that are no pairs, with
`audio_labels` and `visual_labels` (see `aadml_jax.data.readers.clip_arrays`).
"""

import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from aadml_jax._files import local_path
from aadml_jax.data import read_embeddings, standardize
from aadml_jax.errors import UserError
from aadml_jax.reports.page import Report
from aadml_jax.reports.retrieval import add_retrieval_sections, require_plots
from aadml_jax.reports.tables import Table
from aadml_jax.similarity import SIMILARITIES
from aadml_jax.training.evaluation import (
    DIRECTIONS,
    embed,
    embeddings_result,
    evaluate,
    relevant_counts,
    retrieval_result,
    tie_warning,
)
from aadml_jax.training.local_data import recorded_limit
from aadml_jax.training.parallel import all_devices
from aadml_jax.training.reporting import result_rows, result_table
from aadml_jax.training.run_folder import CONFIG_FILE, read_run_json, versions
from aadml_jax.training.settings import check_settings, setting
from aadml_jax.training.state import build_model
from aadml_jax.training.stored_runs import recorded_data, restore_for_evaluation
from experiments import command_line
from experiments.evaluated_data import dataset_of_file, recorded_dataset, was_deterministic


@dataclasses.dataclass(frozen=True)
class Options:
    """What to evaluate, and where to write it."""

    checkpoint: str | None = setting(None, "run folder: the --workdir of the training")
    which: str = setting(
        "latest",
        "checkpoint to evaluate; 'best' was selected on test",
        choices=("latest", "best"),
    )
    data_dir: str | None = setting(
        None, "folder of the run's data, if they were moved: of vegas, ave and tfds:NAME"
    )
    features_file: str | None = setting(
        None,
        "HDF5 feature file: the run's own, if it was moved, or another one, whose test rows are "
        "ranked",
    )
    embeddings: str | None = setting(
        None,
        "instead of a run, a .npz file of labelled embeddings from anywhere, with the keys that "
        "experiments.embed writes; audio and visual need not be pairs",
    )
    similarity: str = setting(
        "auto",
        "similarity by which to rank: auto is that of the run or of the file, else cosine",
        choices=("auto", *SIMILARITIES),
    )
    output: str | None = setting(None, "file to write the numbers to, as JSON")
    report: str | None = setting(
        None,
        "folder to write a page with pictures of the retrieval into; needs the extra 'plots'",
    )
    compilation_cache: str = setting("auto", "folder of compiled programs; 'auto' or 'off'")


class _Ranked(NamedTuple):
    """What was ranked, and with which result.

    Attributes:
      title: of the page.
      what: a phrase that says what was ranked.
      result: the numbers, as --output holds them.
      warnings: what a reader of the figures must know.
      embeddings: gives those of audio and of visual, of the same clips; None if they are no pairs.
      labels: of the clips.
      class_names: in label order; their numbers where they are not known.
      similarity: by which retrieval ranked.
      configuration: of the run; None if there is none.
    """

    title: str
    what: str
    result: dict[str, Any]
    warnings: Sequence[str]
    embeddings: Callable[[], tuple[np.ndarray, np.ndarray]] | None
    labels: np.ndarray
    class_names: Sequence[str]
    similarity: str
    configuration: dict[str, Any] | None


def run(options: Options) -> dict[str, Any]:
    """Ranks the test rows of a run by a checkpoint, prints the result and writes what is asked for.

    Returns:
      The numbers, as --output holds them.

    Raises:
      UserError: if the run or the data cannot be read, or an output cannot be written.
    """
    check_settings(options)
    if options.checkpoint is None and options.embeddings is None:
        raise UserError(
            "--checkpoint is needed: the --workdir of a training run; or --embeddings=FILE.npz"
        )
    if options.report is not None:
        require_plots()
    ranked = _of_run(options) if options.embeddings is None else _of_embeddings(options)
    result = ranked.result
    for warning in ranked.warnings:
        print(f"warning: {warning}", file=sys.stderr, flush=True)
    print(f"{ranked.what}\n\n{result_table(result)}")
    if (warning := tie_warning(result)) is not None:
        print(warning, file=sys.stderr)
    if options.output is not None:
        command_line.write_output(options.output, json.dumps(result, indent=2) + "\n")
    if options.report is not None:
        print(f"\nwritten to {_page(ranked).write(options.report)}")
    return result


def _of_run(options: Options) -> _Ranked:
    """The test rows of a run, or of another file, ranked by a checkpoint of it."""
    assert options.checkpoint is not None
    workdir = local_path(options.checkpoint)
    stored = read_run_json(workdir, CONFIG_FILE)
    if options.features_file is None:
        dataset, split, warnings = recorded_dataset(stored, options.data_dir)
    elif options.data_dir is not None:
        raise UserError("--data_dir and --features_file name two sources; leave one of them out")
    else:
        dataset, split, warnings = dataset_of_file(stored, options.features_file)
    config, towers, progress = restore_for_evaluation(workdir, stored, options.which)
    model = build_model(config.recipe, recorded_data(stored)["num_classes"])
    test = standardize(
        dataset.test.take(slice(None)),
        towers.standardization,
        limit=recorded_limit(recorded_data(stored)),
    )
    similarity = config.recipe.similarity if options.similarity == "auto" else options.similarity
    report = evaluate(model, towers.params, test, all_devices("auto"), similarity=similarity)
    return _Ranked(
        title=f"Retrieval by {workdir.resolve().name}",
        what=f"{options.which} checkpoint of {workdir}, epoch {progress.epoch}; "
        f"{len(dataset.test)} test pairs of {dataset.source}{split}",
        result=retrieval_result(report, dataset.test.labels, dataset.test_posteriors),
        warnings=warnings,
        embeddings=lambda: embed(model, towers.params, test),
        labels=dataset.test.labels,
        class_names=dataset.class_names or list(map(str, range(dataset.num_classes))),
        similarity=similarity,
        configuration=config.flat(),
    )


def _of_embeddings(options: Options) -> _Ranked:
    """The embeddings of a file, ranked by each other."""
    for flag in ("checkpoint", "data_dir", "features_file"):
        if (value := getattr(options, flag)) is not None:
            raise UserError(f"--{flag}={value} and --embeddings name two sources; keep one")
    assert options.embeddings is not None
    clips, similarity = read_embeddings(options.embeddings)
    audio, visual = clips.audio, clips.visual
    if audio is None or visual is None:
        there = ", ".join(clips.rows())
        raise UserError(
            f"{clips.name} holds embeddings of {there} alone; retrieval needs audio_embeddings and "
            "visual_embeddings"
        )
    if audio.labels is None or visual.labels is None:
        raise UserError(
            f"{clips.name} does not hold the labels of all its clips, so nothing says what is "
            "relevant; add labels of pairs, or audio_labels and visual_labels"
        )
    if options.similarity != "auto":
        similarity = options.similarity
    similarity = similarity or "cosine"
    if similarity not in SIMILARITIES:
        raise UserError(
            f"{clips.name}: its similarity {similarity!r} is not known; set --similarity to one of "
            f"{', '.join(SIMILARITIES)}"
        )
    if not clips.is_paired and options.report is not None:
        raise UserError(
            f"--report shows pairs, but {clips.name} has labels of each modality; leave it out"
        )
    counts = (
        f"{len(audio)} pairs" if clips.is_paired else f"{len(audio)} audio, {len(visual)} visual"
    )
    warnings = []
    for name, queries, gallery in (("audio", audio, visual), ("visual", visual, audio)):
        lonely = int((relevant_counts(queries.labels, gallery.labels) == 0).sum())
        if lonely:
            warnings.append(
                f"{lonely} of the {len(queries)} {name} clips have no relevant counterpart and "
                "count as 0 in MAP"
            )
    return _Ranked(
        title=f"Retrieval among {local_path(options.embeddings).name}",
        what=f"embeddings of {clips.name}, {counts}; retrieval by {similarity}",
        result=embeddings_result(clips, similarity=similarity),
        warnings=warnings,
        embeddings=(lambda: (audio.values, visual.values)) if clips.is_paired else None,
        labels=audio.labels,
        class_names=clips.class_names or list(map(str, range(_num_classes(audio.labels)))),
        similarity=similarity,
        configuration=None,
    )


def _num_classes(labels: np.ndarray) -> int:
    """How many classes there are at least."""
    return labels.shape[1] if labels.ndim == 2 else int(labels.max()) + 1


def _page(ranked: _Ranked) -> Report:
    """The page that --report asks for."""
    assert ranked.embeddings is not None
    introduction = [f"{ranked.what}.", *(f"Warning: {warning}." for warning in ranked.warnings)]
    page = Report(ranked.title, "\n\n".join(introduction))
    page.section("Result").table(_as_table(ranked.result))
    add_retrieval_sections(
        page,
        *ranked.embeddings(),
        ranked.labels,
        ranked.class_names,
        similarity=ranked.similarity,
    )
    if ranked.configuration is not None:
        page.configuration(ranked.configuration)
    page.versions(versions())
    return page


def main() -> None:
    """Sets the process up for what the flags and the run say, and evaluates."""
    options, _ = command_line.options_from_flags(Options)
    command_line.set_up_compilation_cache(options.compilation_cache)
    if was_deterministic(options.checkpoint):
        command_line.set_up_determinism()
    run(options)


def _as_table(result: dict[str, Any]) -> Table:
    rows = [
        [name, *(values[direction] for direction in DIRECTIONS)]
        for name, values in result_rows(result)
    ]
    return Table("Retrieval of the test rows", ["", "audio→visual", "visual→audio", "mean"], rows)


if __name__ == "__main__":
    command_line.run(main, flags_of=[Options])
