"""Sections of a report that show a retrieval: pictures and tables of both directions."""

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from aadml_jax.errors import require_extra
from aadml_jax.metrics import average_precision
from aadml_jax.reports.figures import Reference, draw_bars, draw_heat_map
from aadml_jax.reports.page import Report, Section
from aadml_jax.reports.retrieval.plane import add_plane_section
from aadml_jax.reports.retrieval.views import (
    QueryResults,
    best_and_worst_rows,
    first_results,
    mean_by_class,
    per_class_map,
    retrieved_class_shares,
)
from aadml_jax.reports.tables import Table
from aadml_jax.similarity import SIMILARITIES, same_label

# More could not be read.
_MOST_BARS = 40
_MOST_CELLS_A_SIDE = 30
_CONFUSIONS = 10
_BLOCK_ROWS = 512


class _Direction(NamedTuple):
    """What is known of one side's queries.

    Attributes:
      name: such as "audio→visual".
      key: the same for names of files.
      queries: "audio" or "visual".
      average_precisions: [N].
      retrieved: [C, C], the shares of the retrieved classes (columns), averaged over the queries of
        each class (rows); None for multi-hot labels.
      best: of the queries, best first.
      worst: worst first.
    """

    name: str
    key: str
    queries: str
    average_precisions: np.ndarray
    retrieved: np.ndarray | None
    best: list[QueryResults]
    worst: list[QueryResults]


def require_plots() -> None:
    """Checks that the extra `plots` is installed.

    Raises:
      UserError: naming the package that is missing.
    """
    for package, module in (("matplotlib", "matplotlib"), ("scikit-learn", "sklearn")):
        require_extra(
            module,
            f"pictures need the package {package}, which is not installed; "
            "run pip install -e '.[plots]'",
        )


def add_retrieval_sections(
    report: Report,
    audio: np.ndarray,
    visual: np.ndarray,
    labels: np.ndarray,
    class_names: Sequence[str],
    *,
    similarity: str = "cosine",
    count: int = 10,
    top: int = 10,
    max_rows: int = 1000,
    seed: int = 0,
) -> None:
    """Adds four sections: embeddings in one plane, MAP by class, retrieved classes, single queries.

    Each clip's audio ranks the visual side of all clips, its own included, and the other way round,
    as in `aadml_jax.cross_modal_report`, and as there, AP and the retrieved classes are
    expectations over the orders of equal scores; only the results of single queries are listed in
    the order of the clips where their scores are equal. Of clips of several classes the section of
    retrieved classes says only that it does not apply. Queries are scored in blocks.

    Args:
      report: what to add to.
      audio: audio embeddings [N, D], D ≥ 2.
      visual: visual embeddings [N, D] of the same clips.
      labels: class numbers [N] or multi-hot, bool [N, C].
      class_names: C names.
      similarity: by which retrieval ranks, `"cosine"` or `"posterior"`.
      count: queries in each table of the best and the worst.
      top: results shown of each.
      max_rows: most clips to draw as points.
      seed: see `joint_projection`.

    Raises:
      UserError: if a package of the extra `plots` is missing.
      ValueError: for shapes that do not fit, labels out of range, or counts below 1.
    """
    require_plots()
    audio, visual, labels = np.asarray(audio), np.asarray(visual), np.asarray(labels)
    sides = {"audio": audio, "visual": visual}
    directions = [
        _direction(
            sides,
            labels,
            names,
            len(class_names),
            similarity=SIMILARITIES[similarity],
            count=count,
            top=top,
        )
        for names in (("audio", "visual"), ("visual", "audio"))
    ]
    add_plane_section(
        report,
        audio,
        visual,
        labels,
        class_names,
        similarity=similarity,
        max_rows=max_rows,
        seed=seed,
    )
    _add_classes(report, directions, labels, class_names)
    _add_confusions(report, directions, class_names)
    _add_queries(report, directions, labels, class_names)


def _direction(
    sides: dict[str, np.ndarray],
    labels: np.ndarray,
    names: tuple[str, str],
    num_classes: int,
    *,
    similarity: Callable[[np.ndarray, np.ndarray], jax.Array],
    count: int,
    top: int,
) -> _Direction:
    queries, gallery = (sides[name] for name in names)

    def scores_and_relevance(rows: slice | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return (
            np.asarray(similarity(queries[rows], gallery)),
            np.asarray(same_label(labels[rows], labels)),
        )

    values, shares = [], []
    for first in range(0, len(queries), _BLOCK_ROWS):
        rows = slice(first, first + _BLOCK_ROWS)
        scores, relevance = scores_and_relevance(rows)
        values.append(np.asarray(average_precision(scores, relevance, ties="expected")))
        if labels.ndim == 1:
            shares.append(retrieved_class_shares(scores, labels[rows], labels, num_classes))
    average_precisions = np.concatenate(values)

    def results(rows: np.ndarray) -> list[QueryResults]:
        return [
            first_results(int(row), float(average_precisions[row]), scores, relevance, top=top)
            for row, scores, relevance in zip(rows, *scores_and_relevance(rows), strict=True)
        ]

    best, worst = map(results, best_and_worst_rows(average_precisions, count=count))
    return _Direction(
        "→".join(names),
        "-to-".join(names),
        names[0],
        average_precisions,
        mean_by_class(np.concatenate(shares), labels, num_classes) if shares else None,
        best,
        worst,
    )


def _add_classes(
    report: Report,
    directions: Sequence[_Direction],
    labels: np.ndarray,
    class_names: Sequence[str],
) -> None:
    counts = labels.sum(axis=0) if labels.ndim == 2 else np.bincount(labels)
    counts = np.pad(counts, (0, len(class_names) - len(counts)))
    maps = [
        per_class_map(direction.average_precisions, labels, len(class_names))
        for direction in directions
    ]
    mean_map = float(np.mean([direction.average_precisions.mean() for direction in directions]))
    shown = np.flatnonzero(counts)
    section = report.section(
        "MAP of each class",
        "The mean average precision of the queries of each class."
        + " A query of several classes counts in each of them." * (labels.ndim == 2),
    )
    if len(shown) > _MOST_BARS:
        worst_first = np.argsort(np.mean(maps, axis=0)[shown], kind="stable")
        shown = shown[worst_first[:_MOST_BARS]]
        section.text(f"The figure has the {_MOST_BARS} classes of the lowest MAP, lowest first.")
    section.figure(
        "map-by-class",
        draw_bars(
            [class_names[int(number)] for number in shown],
            {
                direction.name: values[shown].tolist()
                for direction, values in zip(directions, maps, strict=True)
            },
            title="",
            value_label="MAP",
            references=[Reference("all queries of both directions", mean_map)],
        ),
        "MAP of each class in both directions.",
    )
    section.table(
        Table(
            "MAP of each class",
            ["class", "clips", *(f"MAP {direction.name}" for direction in directions)],
            [
                [
                    name,
                    int(counts[number]),
                    *(values[number] if counts[number] else None for values in maps),
                ]
                for number, name in enumerate(class_names)
            ],
        )
    )


def _add_confusions(
    report: Report, directions: Sequence[_Direction], class_names: Sequence[str]
) -> None:
    section = report.section("What is taken for what")
    matrices = [direction.retrieved for direction in directions if direction.retrieved is not None]
    if not matrices:
        section.text(
            "Left out: clips of several classes have no single class that could be taken for "
            "another."
        )
        return
    section.text(
        "Of as many results as a query's class has clips, the share of each class. A perfect "
        "ranking has 1 on the diagonal, which is the R-precision of each class."
    )
    filled = np.flatnonzero(~np.isnan(matrices[0][:, 0]))
    if len(filled) <= _MOST_CELLS_A_SIDE:
        names = [class_names[int(number)] for number in filled]
        for direction, matrix in zip(directions, matrices, strict=True):
            section.figure(
                f"retrieved-classes-{direction.key}",
                draw_heat_map(
                    matrix[np.ix_(filled, filled)],
                    names,
                    names,
                    title=direction.name,
                    x_label="class of the results",
                    y_label="class of the query",
                    value_label="share",
                    low=0,
                    high=1,
                ),
                f"Shares of the retrieved classes, {direction.name}: a row for each class of "
                "queries, a column for each class of results.",
            )
    else:
        section.text(f"{len(filled)} classes are too many for a picture.")
    mean = np.mean(matrices, axis=0)
    np.fill_diagonal(mean, 0)
    flat = np.nan_to_num(mean).ravel()
    order = np.argsort(-flat, kind="stable")[:_CONFUSIONS]
    section.table(
        Table(
            "Most frequent confusions",
            [
                "class of the query",
                "class of the results",
                *(f"share {direction.name}" for direction in directions),
            ],
            [
                [
                    class_names[query],
                    class_names[result],
                    *(matrix[query, result] for matrix in matrices),
                ]
                for query, result in (divmod(int(cell), len(class_names)) for cell in order)
                if mean[query, result] > 0
            ],
            note="In the order of the mean of both directions.",
        )
    )


def _add_queries(
    report: Report,
    directions: Sequence[_Direction],
    labels: np.ndarray,
    class_names: Sequence[str],
) -> None:
    section = report.section(
        "Best and worst queries",
        "The queries of the highest and the lowest average precision (AP) and the classes of what "
        "they find first: ✓ is relevant, ✗ is not, and ×3 are three in a row. Queries of equal AP "
        "and results of equal score are in the order of their rows, which are counted from 0.",
    )
    perfect = " and ".join(
        f"{np.count_nonzero(direction.average_precisions == 1)} {direction.queries} queries"
        for direction in directions
    )
    section.text(f"Of {len(labels)} clips, {perfect} have the highest AP, 1.")
    for direction in directions:
        for kind, queries in (("Best", direction.best), ("Worst", direction.worst)):
            _add_query_table(
                section,
                f"{kind} {direction.queries} queries",
                queries,
                [_class_text(label, class_names) for label in labels],
            )


def _add_query_table(
    section: Section, title: str, queries: Sequence[QueryResults], classes: Sequence[str]
) -> None:
    section.table(
        Table(
            title,
            ["row", "class", "AP", "first results"],
            [
                [
                    query.query,
                    classes[query.query],
                    query.average_precision,
                    _results_text(query, classes),
                ]
                for query in queries
            ],
        )
    )


def _results_text(query: QueryResults, classes: Sequence[str]) -> str:
    marks = ("✓" if is_relevant else "✗" for is_relevant in query.relevant)
    results = [
        f"{mark}\N{NO-BREAK SPACE}{classes[item]}"
        for mark, item in zip(marks, query.gallery, strict=True)
    ]
    runs = ((text, len(list(alike))) for text, alike in itertools.groupby(results))
    return ", ".join(text + f"\N{NO-BREAK SPACE}×{length}" * (length > 1) for text, length in runs)


def _class_text(label: np.ndarray, class_names: Sequence[str]) -> str:
    numbers = np.flatnonzero(label) if label.ndim else [label]
    return " + ".join(class_names[int(number)] for number in numbers)
