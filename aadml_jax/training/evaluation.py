"""Retrieval quality of towers on a split, and the references to read it against."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P
from scipy import sparse

from aadml_jax._arrays import Array
from aadml_jax.cross_modal import cross_modal_report, sharded_cross_modal_report
from aadml_jax.data import ClipArrays, ModalityRows, PairedFeatures
from aadml_jax.models import TwoTowers
from aadml_jax.retrieval import retrieval_report
from aadml_jax.row_blocks import rows_at_once
from aadml_jax.training.parallel import AXIS, Placement

DIRECTIONS = ("audio_to_visual", "visual_to_audio", "mean")
_CUT_OFFS = (1, 5, 10)
# Of a query's pairs (relevant, irrelevant), on average. Float32 scores tie by chance far less.
_MOST_TIED = 1e-3
# Rows of one device whose hidden activations are in memory at a time.
_EMBEDDED_AT_ONCE = 8192
# Queries of one device that are ranked at a time, fewer where galleries are long.
_RANKED_AT_ONCE = 1024
# Clips whose relevance to all others is in memory at a time.
_BLOCK_ROWS = 512


def outputs_in_blocks(
    model: TwoTowers, params: Any, audio: Array, visual: Array
) -> tuple[Array, Array]:
    """The towers' outputs for rows on a device, with the activations of some thousand at a time.

    The last block overlaps the one before it, so that no row is copied to fill it up.
    """
    num_rows, block_size = len(audio), _EMBEDDED_AT_ONCE

    def outputs(*rows: Array) -> Any:
        return model.apply({"params": params}, *rows)

    if num_rows <= block_size:
        return outputs(audio, visual)

    def of_block(first: Array) -> tuple[Array, Array]:
        rows = (jax.lax.dynamic_slice_in_dim(side, first, block_size) for side in (audio, visual))
        return outputs(*rows)

    # 20 rows in blocks of 8 begin at 0, 8 and 12: the last one's first 4 rows are there already.
    num_before = (num_rows - 1) // block_size
    starts = jnp.minimum(
        jnp.arange(num_before + 1, dtype=jnp.int32) * block_size, num_rows - block_size
    )
    overlap = (num_before + 1) * block_size - num_rows

    def in_rows(blocks: Array) -> Array:
        before = blocks[:-1].reshape(num_before * block_size, blocks.shape[2])
        return jnp.concatenate([before, blocks[-1, overlap:]])

    return jax.tree.map(in_rows, jax.lax.map(of_block, starts))


_embed = jax.jit(outputs_in_blocks, static_argnums=0)


def _as_floats(report: Mapping[str, Any]) -> dict[str, Any]:
    return jax.tree.map(float, jax.device_get(dict(report)))


def embed(
    model: TwoTowers, params: Any, features: PairedFeatures, *, batch_size: int = 4096
) -> tuple[np.ndarray, np.ndarray]:
    """The towers' outputs for all rows of a split.

    Args:
      model: the towers.
      params: their parameters.
      features: the split [N], standardised as the training rows were.
      batch_size: rows that are on the device at a time, at least 1.

    Returns:
      The audio and the visual embeddings, float32 [N, C] each, on the host.
    """
    outputs = [
        jax.device_get(_embed(model, params, features.audio[rows], features.visual[rows]))
        for first in range(0, len(features), batch_size)
        for rows in [slice(first, first + batch_size)]
    ]
    audio, visual = (np.concatenate(side) for side in zip(*outputs, strict=True))
    return audio, visual


def evaluate(
    model: TwoTowers,
    params: Any,
    features: PairedFeatures,
    placement: Placement | None = None,
    *,
    similarity: str = "cosine",
) -> dict[str, Any]:
    """Cross-modal retrieval report of all rows of a split, as Python floats.

    Args:
      model: the towers.
      params: their parameters, on the host or on any devices.
      features: the split, standardised as the training rows were.
      placement: see `make_evaluate`; of one process.
      similarity: by which retrieval ranks, `"cosine"` or `"posterior"`.

    Returns:
      What `cross_modal_report` returns, with precision and recall at 1, 5 and 10 (at most the
      number of rows).
    """
    batch = (features.audio, features.visual, features.labels)
    return make_evaluate(model, batch, len(features), placement, similarity=similarity)(params)


def make_evaluate(
    model: TwoTowers,
    rows: tuple[Array | np.ndarray, Array | np.ndarray, Array | np.ndarray],
    num_rows: int,
    placement: Placement | None = None,
    *,
    similarity: str = "cosine",
) -> Callable[[Any], dict[str, Any]]:
    """A function of the parameters that gives the report of `evaluate`, its rows placed once.

    Args:
      model: the towers.
      rows: audio, visual and labels of this process's rows of the split, on the host; the labels
        int [n] or bool [n, C].
      num_rows: rows of the split in all processes.
      placement: devices over which the queries are sharded, each ranking the whole gallery; default
        one.
      similarity: by which retrieval ranks, `"cosine"` or `"posterior"`.
    """
    options = _ReportOptions.of(similarity, num_rows)
    if placement is not None and len(placement.devices) > 1:
        placement = placement.under_jit()
        shards = placement.shard((*rows, np.ones(len(rows[2]), bool)), num_rows)
        hashable: Any = model  # Flax makes it so
        sharded_report = _sharded_report(placement, hashable, options)
        return lambda params: _as_floats(sharded_report(placement.replicate(params), *shards))

    audio, visual = jax.device_put(rows[:2])

    def report(params: Any) -> dict[str, Any]:
        of_audio, of_visual = _embed(model, params, audio, visual)
        return _as_floats(cross_modal_report(of_audio, of_visual, rows[2], **options._asdict()))

    return report


def lower_evaluate(
    model: TwoTowers,
    params: Any,
    rows: tuple[Any, Any, Any],
    placement: Placement,
    *,
    similarity: str = "cosine",
) -> jax.stages.Lowered:
    """What `make_evaluate` computes on accelerators, lowered for shapes of arrays.

    On one device a run computes the same in three calls, the towers and each direction.

    Args:
      model: the towers.
      params: shapes of their parameters.
      rows: shapes of audio, visual and labels of the whole split.
      placement: over devices, which need not be there.
      similarity: by which retrieval ranks.
    """
    num_rows = rows[2].shape[0]
    options = _ReportOptions.of(similarity, num_rows)
    first, *others = placement.devices
    if others:
        placement = placement.under_jit()
        everything = jax.ShapeDtypeStruct((num_rows,), bool)
        shards = placement.shard_shapes((*rows, everything), num_rows)
        hashable: Any = model  # Flax makes it so
        return _sharded_report(placement, hashable, options).lower(
            placement.replicate_shapes(params), *shards
        )

    def report(params: Any, audio: Array, visual: Array, labels: Array) -> dict[str, Any]:
        outputs = outputs_in_blocks(model, params, audio, visual)
        return cross_modal_report(*outputs, labels, **options._asdict())

    here = jax.sharding.SingleDeviceSharding(first)
    return jax.jit(report, in_shardings=here, out_shardings=here).lower(params, *rows)


class _ReportOptions(NamedTuple):
    """What `cross_modal_report` takes besides the clips."""

    similarity: str
    ks: tuple[int, ...]
    block_size: int

    @classmethod
    def of(cls, similarity: str, *num_rows: int) -> "_ReportOptions":
        """Those of so many clips, or of so many on either side."""
        ks = tuple(k for k in _CUT_OFFS if k <= min(num_rows))
        return cls(similarity, ks, queries_at_once(max(num_rows)))


def queries_at_once(num_items: int) -> int:
    """Queries of a gallery of so many items that a report ranks at a time on one device."""
    return min(_RANKED_AT_ONCE, rows_at_once(num_items))


@functools.cache
def _sharded_report(placement: Placement, model: TwoTowers, options: _ReportOptions) -> Any:
    """The jitted report of parameters and shards."""

    def report(
        params: Any, audio: Array, visual: Array, labels: Array, is_real: Array
    ) -> dict[str, Any]:
        outputs = outputs_in_blocks(model, params, audio, visual)
        return sharded_cross_modal_report(
            *outputs, labels, is_real, axis_name=AXIS, **options._asdict()
        )

    rows = P(AXIS)
    return jax.jit(
        jax.shard_map(
            report, mesh=placement.mesh, in_specs=(P(), rows, rows, rows, rows), out_specs=P()
        )
    )


def bayes_reference(
    audio_posteriors: np.ndarray, visual_posteriors: np.ndarray, labels: np.ndarray
) -> dict[str, Any]:
    """Report of ranking by Σ_c p(c | query) p(c | item), the probability of relevance.

    Its logarithm is what ranks, as in `posterior_similarity`, so that sure posteriors do not tie.
    With the true posteriors of modalities that are independent given the class, this ranking has
    the highest expected precision at every cut-off; it is close to, but not exactly, the best
    expected AP.

    Args:
      audio_posteriors: p(c | audio) [N, C], each row in any unit, since it is scaled to sum 1.
      visual_posteriors: p(c | visual) [N, C] of the same clips.
      labels: int [N], or multi-hot, bool [N, C].
    """
    with np.errstate(divide="ignore"):  # a probability of 0 has the logarithm −∞
        audio, visual = (
            np.log(x).astype(np.float32) for x in (audio_posteriors, visual_posteriors)
        )
    block_size = queries_at_once(len(audio))
    return _as_floats(
        cross_modal_report(
            audio, visual, labels, similarity="posterior", ks=(), block_size=block_size
        )
    )


def tie_warning(result: Mapping[str, Any]) -> str | None:
    """A line about equal scores, where they are too many to be a matter of rounding.

    Args:
      result: the content of result.json; those of earlier versions do not count ties.
    """
    tied = result.get("tied_pairs", {}).get("mean", 0.0)
    if not tied > _MOST_TIED:
        return None
    return (
        f"warning: {100 * tied:.2g} % of the pairs of a relevant and an irrelevant clip have equal "
        "scores; MAP, precision and recall are their expectations over the order of tied clips"
    )


def chance_map(labels: np.ndarray, gallery_labels: np.ndarray | None = None) -> float:
    """Expected MAP of a random ranking in which each clip is query and gallery item.

    With R of M items relevant, the expected AP of a uniformly random order is
    H_M / M + (R − 1) / (M − 1) · (1 − H_M / M), where H_M = Σ_{m≤M} 1/m: the item at rank m is
    relevant with probability R / M, and each of the m − 1 before it then with (R − 1) / (M − 1).

    Args:
      labels: int [M]; or multi-hot, bool [M, C], at least one class a clip.
      gallery_labels: of the gallery, where it holds other clips than the queries; then `labels` are
        [N] or [N, C], and a query without relevant items counts as 0.
    """
    gallery_labels = labels if gallery_labels is None else gallery_labels
    num_items = len(gallery_labels)
    relevant = relevant_counts(labels, gallery_labels).astype(np.float64)
    if num_items == 1:
        return float(np.mean(relevant))
    first_share = np.sum(1 / np.arange(1, num_items + 1)) / num_items
    expected = first_share + (relevant - 1) / (num_items - 1) * (1 - first_share)
    return float(np.mean(np.where(relevant == 0, 0, expected)))


def relevant_counts(labels: np.ndarray, gallery_labels: np.ndarray) -> np.ndarray:
    """How many clips of a gallery share a class with each query.

    Args:
      labels: of the queries, int [N], or multi-hot, bool [N, C].
      gallery_labels: of the same kind, [M] or [M, C].

    Returns:
      int [N], from 0 to M.
    """
    # Clips with equal labels have equal counts, and usually there are many of them.
    if labels.ndim == 1:
        classes, counts = np.unique(gallery_labels, return_counts=True)
        places = np.minimum(np.searchsorted(classes, labels), len(classes) - 1)
        return np.where(classes[places] == labels, counts[places], 0)
    rows, inverse, _ = _distinct_rows(labels)
    gallery_rows, _, counts = _distinct_rows(gallery_labels)
    blocks = []
    for start in range(0, rows.shape[0], _BLOCK_ROWS):
        shared_classes = rows[start : start + _BLOCK_ROWS] @ gallery_rows.T
        shared_classes.data[:] = 1
        blocks.append(shared_classes @ counts)
    return np.concatenate(blocks)[inverse]


def _distinct_rows(labels: np.ndarray) -> tuple[Any, np.ndarray, np.ndarray]:
    """The distinct rows of multi-hot labels, sparse, each row's place among them, and their counts.

    Clips of the same classes are one row.
    """
    bits = np.packbits(labels, axis=1)
    _, first, inverse, counts = np.unique(
        bits.view(f"V{bits.shape[1]}")[:, 0],
        return_index=True,
        return_inverse=True,
        return_counts=True,
    )
    return sparse.csr_array(labels[first].astype(np.int32)), inverse, counts


def retrieval_result(
    report: dict[str, Any],
    test_labels: np.ndarray,
    test_posteriors: tuple[np.ndarray, np.ndarray] | None,
) -> dict[str, Any]:
    """The part of a result that says how good the retrieval is, and what to compare it with."""
    reference = None
    if test_posteriors is not None:
        reference = bayes_reference(*test_posteriors, test_labels)
    return _result(report, chance_map(test_labels), reference)


def embeddings_result(clips: ClipArrays, *, similarity: str) -> dict[str, Any]:
    """The content of a result for embeddings that come from anywhere.

    Args:
      clips: both modalities with labels, paired or not.
      similarity: by which retrieval ranks, `"cosine"` or `"posterior"`.

    Returns:
      What `retrieval_result` gives; where the clips are no pairs, chance differs between the
      directions: "chance" is its mean, and "chance_map" has all three.
    """
    audio, visual = clips.audio, clips.visual
    if audio is None or visual is None or audio.labels is None or visual.labels is None:
        raise ValueError(f"both modalities and their labels are needed; got {clips.name}")
    options = _ReportOptions.of(similarity, len(audio), len(visual))
    if clips.is_paired:
        report = cross_modal_report(audio.values, visual.values, audio.labels, **options._asdict())
        return _result(_as_floats(report), chance_map(audio.labels), None)
    report = _two_set_report(audio, visual, options)
    to_visual = chance_map(audio.labels, visual.labels)
    to_audio = chance_map(visual.labels, audio.labels)
    chance = (to_visual, to_audio, (to_visual + to_audio) / 2)
    result = _result(report, chance[2], None)
    return {**result, "chance_map": dict(zip(DIRECTIONS, chance, strict=True))}


def _two_set_report(
    audio: ModalityRows, visual: ModalityRows, options: _ReportOptions
) -> dict[str, Any]:
    """What `cross_modal_report` returns, of audio and visual that are not of the same clips."""

    def one_direction(queries: ModalityRows, gallery: ModalityRows) -> dict[str, Any]:
        report = retrieval_report(
            queries.values,
            gallery.values,
            query_labels=queries.labels,
            gallery_labels=gallery.labels,
            **options._asdict(),
        )
        names = ("map", "prefix_map", "tied_pairs", "precision_at_k")
        return {**{name: report[name] for name in names}, "recall_at_k": report["hit_rate_at_k"]}

    sides = one_direction(audio, visual), one_direction(visual, audio)
    mean = jax.tree.map(lambda a, b: (a + b) / 2, *sides)
    return dict(zip(DIRECTIONS, (*sides, mean), strict=True))


def _result(
    report: dict[str, Any], chance: float, reference: dict[str, Any] | None
) -> dict[str, Any]:
    return {
        "map": {direction: report[direction]["map"] for direction in DIRECTIONS},
        "prefix_map": {direction: report[direction]["prefix_map"] for direction in DIRECTIONS},
        "precision_at_k": report["mean"]["precision_at_k"],
        "recall_at_k": report["mean"]["recall_at_k"],
        "tied_pairs": {direction: report[direction]["tied_pairs"] for direction in DIRECTIONS},
        "chance": chance,
        "bayes_reference": None if reference is None else reference["mean"]["map"],
        "bayes_reference_map": None
        if reference is None
        else {direction: reference[direction]["map"] for direction in DIRECTIONS},
    }
