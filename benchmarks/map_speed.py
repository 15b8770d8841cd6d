"""Speed of MAP over whole rankings, from embeddings, in both directions, beside other ways.

    python -m benchmarks.map_speed
    python -m benchmarks.map_speed --sizes=5621 --rounds=3
    python -m benchmarks.map_speed --sizes=100000 --report_only

The embeddings look like outputs in label space: one-hot vectors of ten classes, frequent as in a
real data set, plus noise that keeps MAP away from 0 and 1. Every clip's audio ranks the visual side
of all clips by cosine similarity, and the other way round.

First each way computes the MAP of a few random queries, which is compared with a double loop in
float64. Ways that take minutes for a large gallery then rank a random part of the queries there;
their time is scaled up, and the row says so.

Traps of the other libraries that this file goes around:

- torchmetrics' `RetrievalMAP` counts no item whose score is 0 or less as relevant; scores are
  shifted by 2, at the price of two bits of their precision.
- pytorch-metric-learning's `AccuracyCalculator` needs faiss unless it is given another search, and
  ranks all items only with `k=None`: `"max_bin_count"` cuts each ranking at the largest class.
  Given one set only, it leaves each query's own item out.
- scikit-learn's `average_precision_score` takes one query at a time.
"""

import dataclasses
import functools
import resource
import sys
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

import aadml_jax
from aadml_jax.errors import UserError
from benchmarks import side_by_side
from benchmarks.clips import NUM_CLASSES, make_clips
from experiments import command_line

side_by_side.define_flags(rounds=5)
flags.adopt_module_key_flags(side_by_side)  # so that --help lists them
_SIZES = flags.DEFINE_list("sizes", ["5621", "20000"], "clips, each a query and a gallery item")
_WHOLE_UP_TO = flags.DEFINE_integer(
    "whole_up_to", 10_000, "largest size at which the slow ways rank all queries"
)
_PART = flags.DEFINE_integer(
    "part", 500, "queries that the slow ways rank above --whole_up_to", lower_bound=1
)
_CHECKED = flags.DEFINE_integer(
    "checked_queries", 200, "queries compared with a double loop in float64", lower_bound=1
)
_REPORT_ONLY = flags.DEFINE_bool(
    "report_only", False, "run the report once and print its peak of memory, for sizes of 100,000"
)
_BLOCK = 1024
_NUMPY_BLOCK = 256
_TOLERANCE = 1e-6
_RSS_UNIT = 1 if sys.platform == "darwin" else 1024

# (queries [Q, D], gallery [M, D], query labels [Q], gallery labels [M]) -> MAP.
MeanAveragePrecision = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], float]


def _unit_rows(embeddings: np.ndarray) -> np.ndarray:
    return embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)


def by_double_loop(
    queries: np.ndarray, gallery: np.ndarray, query_labels: np.ndarray, gallery_labels: np.ndarray
) -> float:
    """The usual script of the field: a loop over queries, and in it one over ranks."""
    scores = np.dot(_unit_rows(queries), _unit_rows(gallery).T)
    average_precisions = []
    for query in range(len(queries)):
        order = np.argsort(-scores[query], kind="stable")
        hits, total = 0, 0.0
        for rank, item in enumerate(order):
            if gallery_labels[item] == query_labels[query]:
                hits += 1
                total += hits / (rank + 1)
        average_precisions.append(total / hits if hits else 0.0)
    return float(np.mean(average_precisions))


def by_numpy(
    queries: np.ndarray, gallery: np.ndarray, query_labels: np.ndarray, gallery_labels: np.ndarray
) -> float:
    """Vectorised NumPy: a stable argsort of all rows of a block at once."""
    gallery, ranks, total = _unit_rows(gallery), np.arange(1, len(gallery) + 1), 0.0
    for first in range(0, len(queries), _NUMPY_BLOCK):
        block = slice(first, first + _NUMPY_BLOCK)
        order = np.argsort(-(_unit_rows(queries[block]) @ gallery.T), axis=1, kind="stable")
        is_hit = gallery_labels[order] == query_labels[block, None]
        precisions = np.where(is_hit, np.cumsum(is_hit, axis=1) / ranks, 0)
        total += np.sum(precisions.sum(axis=1) / np.maximum(is_hit.sum(axis=1), 1))
    return float(total / len(queries))


def by_aadml_jax(
    queries: np.ndarray, gallery: np.ndarray, query_labels: np.ndarray, gallery_labels: np.ndarray
) -> float:
    """Ours, MAP alone, called block by block as a user would."""
    gallery, gallery_labels = jnp.asarray(gallery), jnp.asarray(gallery_labels)
    total = 0.0
    for first in range(0, len(queries), _BLOCK):
        block = slice(first, first + _BLOCK)
        scores = aadml_jax.cosine_similarity(queries[block], gallery)
        relevance = aadml_jax.same_label(query_labels[block], gallery_labels)
        total += float(aadml_jax.average_precision(scores, relevance, reduce_fn=jnp.sum))
    return total / len(queries)


@jax.jit
def _compiled(
    queries: jax.Array, gallery: jax.Array, query_labels: jax.Array, gallery_labels: jax.Array
) -> jax.Array:
    per_query = aadml_jax.in_row_blocks(
        lambda block, rows: aadml_jax.average_precision(
            aadml_jax.cosine_similarity(block, gallery),
            aadml_jax.same_label(query_labels[rows], gallery_labels),
        ),
        queries,
        block_size=_BLOCK,
    )
    return jnp.mean(per_query)


def by_compiled_aadml_jax(*arrays: np.ndarray) -> float:
    """Ours, MAP alone, as one compiled program."""
    return float(_compiled(*arrays))


def _by_sklearn() -> MeanAveragePrecision:
    from sklearn.metrics import average_precision_score

    def compute(queries, gallery, query_labels, gallery_labels) -> float:
        scores = _unit_rows(queries) @ _unit_rows(gallery).T
        return float(
            np.mean(
                [
                    average_precision_score(gallery_labels == label, row)
                    for label, row in zip(query_labels, scores, strict=True)
                ]
            )
        )

    return compute


def _by_torchmetrics() -> MeanAveragePrecision:
    import torch
    from torchmetrics.retrieval import RetrievalMAP

    def compute(queries, gallery, query_labels, gallery_labels) -> float:
        queries, gallery, query_labels, gallery_labels = map(
            torch.from_numpy, (queries, gallery, query_labels, gallery_labels)
        )
        gallery = torch.nn.functional.normalize(gallery)
        metric = RetrievalMAP()
        for rows in torch.arange(len(queries)).split(_BLOCK):
            scores = torch.nn.functional.normalize(queries[rows]) @ gallery.T + 2
            relevance = query_labels[rows, None] == gallery_labels[None, :]
            metric.update(scores, relevance, indexes=rows[:, None].expand_as(scores))
        return float(metric.compute())

    return compute


def _by_pml() -> MeanAveragePrecision:
    import torch
    from pytorch_metric_learning.distances import CosineSimilarity
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
    from pytorch_metric_learning.utils.inference import CustomKNN

    calculator = AccuracyCalculator(
        include=("mean_average_precision",),
        k=None,
        device=torch.device("cpu"),
        knn_func=CustomKNN(CosineSimilarity(), batch_size=_BLOCK),
    )

    def compute(queries, gallery, query_labels, gallery_labels) -> float:
        accuracy = calculator.get_accuracy(
            *map(torch.from_numpy, (queries, query_labels, gallery, gallery_labels))
        )
        return accuracy["mean_average_precision"]

    return compute


@dataclasses.dataclass(frozen=True)
class Way:
    """A way to compute MAP.

    Attributes:
      name: of its row.
      make: imports what it needs and returns the function.
      bytes_per_pair: memory for each pair of a query and an item, as far as all are held at once.
      is_slow: whether it ranks a part of the queries of large sizes only.
      is_peer: whether it needs another library.
      compiles: whether its first call of a size compiles.
      note: for the table.
    """

    name: str
    make: Callable[[], MeanAveragePrecision]
    bytes_per_pair: float = 0
    is_slow: bool = False
    is_peer: bool = False
    compiles: bool = False
    note: str = ""


WAYS = (
    Way("aadml_jax: average_precision", lambda: by_aadml_jax, compiles=True),
    Way("aadml_jax: the same, in jit", lambda: by_compiled_aadml_jax, compiles=True),
    Way("NumPy, stable argsort", lambda: by_numpy),
    Way("double loop", lambda: by_double_loop, 4, is_slow=True),
    Way("scikit-learn, per query", _by_sklearn, 4, is_slow=True, is_peer=True),
    Way(
        "torchmetrics RetrievalMAP",
        _by_torchmetrics,
        84,
        is_slow=True,
        is_peer=True,
        note="scores shifted above 0",
    ),
    Way(
        "PML AccuracyCalculator",
        _by_pml,
        66,
        is_slow=True,
        is_peer=True,
        note="search by torch.topk",
    ),
)


class Check:
    """The MAP of a few queries by a double loop in float64, and how far each way is from it."""

    def __init__(self, clips: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
        """Computes the reference."""
        audio, visual, labels = clips
        rng = np.random.default_rng(1)
        size = len(labels)
        self._rows = np.sort(rng.choice(size, min(_CHECKED.value, size), replace=False))
        self._clips = clips
        self._reference = both_directions(
            by_double_loop,
            (audio.astype(np.float64), visual.astype(np.float64), labels),
            self._rows,
        )

    def off_by(self, compute: MeanAveragePrecision) -> float:
        """Absolute difference on the checked queries."""
        return abs(both_directions(compute, self._clips, self._rows) - self._reference)


def both_directions(
    compute: MeanAveragePrecision,
    clips: tuple[np.ndarray, np.ndarray, np.ndarray],
    rows: np.ndarray | slice = slice(None),
) -> float:
    """The mean of audio→visual and visual→audio; `rows` are the queries."""
    audio, visual, labels = clips
    return (
        compute(audio[rows], visual, labels[rows], labels)
        + compute(visual[rows], audio, labels[rows], labels)
    ) / 2


def way_subject(
    way: Way, clips: tuple[np.ndarray, np.ndarray, np.ndarray], check: Check, off: dict[str, float]
) -> side_by_side.Subject:
    """What is measured of one way; `off` gets its difference from the reference."""
    size = len(clips[2])
    is_part = way.is_slow and size > _WHOLE_UP_TO.value and size > _PART.value
    queries = _PART.value if is_part else size
    rows = slice(None)
    if is_part:
        rows = np.sort(np.random.default_rng(2).choice(size, queries, replace=False))

    def prepare() -> Callable[[], float]:
        compute = way.make()
        off[way.name] = check.off_by(compute)
        return functools.partial(both_directions, compute, clips, rows)

    notes = [way.note] if way.note else []
    if is_part:
        notes.append(f"scaled from {queries:,} queries")
    return side_by_side.Subject(
        way.name,
        prepare,
        units=queries / size,
        needs_bytes=way.bytes_per_pair * queries * size,
        compiles=way.compiles,
        note="; ".join(notes),
    )


def report_subject(clips: tuple[np.ndarray, np.ndarray, np.ndarray]) -> side_by_side.Subject:
    """Our whole report, of which MAP is one of several metrics."""

    def prepare() -> Callable[[], float]:
        audio, visual, labels = map(jnp.asarray, clips)
        return lambda: float(aadml_jax.cross_modal_report(audio, visual, labels)["mean"]["map"])

    return side_by_side.Subject(
        "aadml_jax: cross_modal_report",
        prepare,
        compiles=True,
        note="prefix MAP, precision and recall as well",
    )


def print_report_memory(size: int) -> None:
    """One report, its time, and the most memory that the process has held."""
    audio, visual, labels = map(jnp.asarray, make_clips(size))
    wall, processor, report = side_by_side.timed(
        lambda: aadml_jax.cross_modal_report(audio, visual, labels, block_size=_BLOCK)
    )
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _RSS_UNIT
    print(
        f"\n{size:,} clips, both directions, blocks of {_BLOCK:,}: {wall:,.1f} s, "
        f"{processor:,.1f} CPU s, MAP {float(report['mean']['map']):.6f}.\n"
        f"Most memory that the process held: {side_by_side.format_bytes(most)}; "
        f"all scores of one direction: {side_by_side.format_bytes(4.0 * size**2)}."
    )


def measure_size(size: int, *, has_peers: bool) -> None:
    """Prints the table of one size."""
    clips = make_clips(size)
    check = Check(clips)
    off: dict[str, float] = {}
    ways = [way for way in WAYS if has_peers or not way.is_peer]
    subjects = [way_subject(way, clips, check, off) for way in ways]
    subjects.insert(0, report_subject(clips))
    results = side_by_side.measure(subjects)
    report, ours = results[:2]
    if not report.reason and not ours.reason:  # its queries cannot be chosen: compared as a whole
        off[report.subject.name] = abs(report.first_output - ours.first_output)

    chance = float(np.sum(np.square(np.bincount(clips[2]) / size)))
    checked = min(_CHECKED.value, size)
    print(
        f"\n{size:,} clips, {2 * size:,} queries, {NUM_CLASSES} classes, chance {chance:.3f}. "
        f'"off by": absolute, from a double loop in\nfloat64 on {2 * checked} queries; the report: '
        "from average_precision on all."
    )
    table = side_by_side.Table(
        ("MAP, both directions", -29),
        ("s: median (min–max)", 24),
        ("CPU s", 8),
        ("rounds", 6),
        ("× ours", 7),
        ("MAP", 8),
        ("off by", 6),
        ("note", -1),
    )
    for result in results:
        factor = value = difference = "–"
        if not result.reason:
            factor = "–" if ours.reason else f"{result.wall / ours.wall:.1f}"
            value = f"{result.first_output:.6f}"
            difference = f"{off[result.subject.name]:.0e}"
            if off[result.subject.name] > _TOLERANCE:
                difference += " DISAGREES"
        cells = result.cells(scale=1, digits=3)
        table.row(result.subject.name, *cells, factor, value, difference, result.remark)


def main() -> None:
    """Measures and prints."""
    if not all(size.isdecimal() and int(size) > 1 for size in _SIZES.value):
        raise UserError(f"--sizes={','.join(_SIZES.value)} must be whole numbers above 1")
    peers = side_by_side.load_peers("torch_peers")
    with side_by_side.session(peers):
        for size in _SIZES.value:
            if _REPORT_ONLY.value:
                print_report_memory(int(size))
                continue
            measure_size(int(size), has_peers=peers is not None)


if __name__ == "__main__":
    command_line.run(main)
