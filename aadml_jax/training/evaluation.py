"""Retrieval quality of towers on a split, and the references to read it against."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P
from scipy import sparse

from aadml_jax._arrays import Array
from aadml_jax.data import PairedFeatures
from aadml_jax.metrics import cross_modal_report, cross_modal_report_of_shares
from aadml_jax.models import TwoTowers
from aadml_jax.training.parallel import AXIS, Placement

DIRECTIONS = ("audio_to_visual", "visual_to_audio", "mean")
_CUT_OFFS = (1, 5, 10)
# Clips whose relevance to all others is in memory at a time.
_BLOCK_ROWS = 512


@functools.partial(jax.jit, static_argnums=0)
def _embed(model: TwoTowers, params: Any, audio: Array, visual: Array) -> tuple[Array, Array]:
    return model.apply({"params": params}, audio, visual)


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
      params: their parameters.
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
    rows: tuple[np.ndarray, np.ndarray, np.ndarray],
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
      placement: devices to share the queries, each ranking the whole gallery; default one.
      similarity: by which retrieval ranks, `"cosine"` or `"posterior"`.
    """
    ks = tuple(k for k in _CUT_OFFS if k <= num_rows)
    if placement is not None and len(placement.devices) > 1:
        shares = placement.split((*rows, np.ones(len(rows[2]), bool)), num_rows)
        report_of_shares = _report_of_shares(placement, model, ks, similarity)
        return lambda params: _as_floats(report_of_shares(placement.replicate(params), *shares))

    audio, visual = jax.device_put(rows[:2])

    def report(params: Any) -> dict[str, Any]:
        outputs = _embed(model, params, audio, visual)
        return _as_floats(cross_modal_report(*outputs, rows[2], similarity=similarity, ks=ks))

    return report


@functools.cache
def _report_of_shares(
    placement: Placement, model: TwoTowers, ks: tuple[int, ...], similarity: str
) -> Callable[..., dict[str, Any]]:
    def report(
        params: Any, audio: Array, visual: Array, labels: Array, is_real: Array
    ) -> dict[str, Any]:
        outputs = model.apply({"params": params}, audio, visual)
        return cross_modal_report_of_shares(
            *outputs, labels, is_real, similarity=similarity, ks=ks, axis_name=AXIS
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

    With the true posteriors of modalities that are independent given the class, this ranking has
    the highest expected precision at every cut-off; it is close to, but not exactly, the best
    expected AP.

    Args:
      audio_posteriors: p(c | audio) [N, C].
      visual_posteriors: p(c | visual) [N, C] of the same clips.
      labels: int [N], or multi-hot, bool [N, C].
    """
    return _as_floats(
        cross_modal_report(
            jnp.asarray(audio_posteriors, jnp.float32),
            jnp.asarray(visual_posteriors, jnp.float32),
            labels,
            similarity=_inner_product,
            ks=(),
        )
    )


def _inner_product(queries: Array, gallery: Array) -> Array:
    return jnp.matmul(queries, gallery.T, precision=jax.lax.Precision.HIGHEST)


def chance_map(labels: np.ndarray) -> float:
    """Expected MAP of a random ranking in which each clip is query and gallery item.

    With R of M items relevant, the expected AP of a uniformly random order is
    H_M / M + (R − 1) / (M − 1) · (1 − H_M / M), where H_M = Σ_{m≤M} 1/m: the item at rank m is
    relevant with probability R / M, and each of the m − 1 before it then with (R − 1) / (M − 1).

    Args:
      labels: int [M]; or multi-hot, bool [M, C], at least one class a clip.
    """
    num_items = len(labels)
    if num_items == 1:
        return 1.0
    relevant = _relevant_counts(labels).astype(np.float64)
    first_share = np.sum(1 / np.arange(1, num_items + 1)) / num_items
    expected = first_share + (relevant - 1) / (num_items - 1) * (1 - first_share)
    return float(np.mean(expected))


def _relevant_counts(labels: np.ndarray) -> np.ndarray:
    """How many clips share a class with each clip, itself included, int [M]."""
    # Clips with equal labels have equal counts, and usually there are many of them.
    keys = labels
    if labels.ndim == 2:
        bits = np.packbits(labels, axis=1)
        keys = bits.view(f"V{bits.shape[1]}")[:, 0]
    _, first, inverse, counts = np.unique(
        keys, return_index=True, return_inverse=True, return_counts=True
    )
    if labels.ndim == 2:
        distinct = labels[first]
        rows = sparse.csr_array(distinct.astype(np.int32))
        blocks = []
        for start in range(0, len(distinct), _BLOCK_ROWS):
            shared_classes = rows[start : start + _BLOCK_ROWS] @ rows.T
            shared_classes.data[:] = 1
            blocks.append(shared_classes @ counts)
        counts = np.concatenate(blocks)
    return counts[inverse]
