"""Trained runs in use: one modality's features in, embeddings out."""

import dataclasses
import functools
import hashlib
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from aadml_jax._arrays import Array, ArrayLike
from aadml_jax._files import local_path
from aadml_jax.data import as_finite_float32
from aadml_jax.errors import UserError
from aadml_jax.models import TwoTowers
from aadml_jax.training.config import TrainConfig
from aadml_jax.training.local_data import recorded_limit
from aadml_jax.training.run_folder import CONFIG_FILE, RESULT_FILE, read_run_json
from aadml_jax.training.state import TrainedTowers, build_model
from aadml_jax.training.stored_runs import (
    recorded_class_names,
    recorded_data,
    restore_for_evaluation,
)

BLOCK_ROWS = 4096
"""Most rows that are embedded by one call of a compiled program."""

CHECKPOINTS = ("latest", "best")


@dataclasses.dataclass(frozen=True, eq=False)
class LoadedRun:
    """The towers of a run, and what is known of it.

    Attributes:
      folder: of the run, absolute.
      which: "latest" or "best", the checkpoint.
      epoch: whole epochs after which the checkpoint was written.
      config: the configuration of the run.
      class_names: in label order, which is that of the embeddings' columns; empty where unknown.
      result: content of result.json; None if the run is not finished.
      model: both towers.
      towers: their parameters and the standardisation of their inputs, on the host.
      limit: of standardised values; None if there is none.
    """

    folder: pathlib.Path
    which: str
    epoch: int
    config: TrainConfig
    class_names: tuple[str, ...]
    result: dict[str, Any] | None
    model: TwoTowers
    towers: TrainedTowers
    limit: float | None

    @property
    def similarity(self) -> str:
        """Name of the similarity by which the run's retrieval ranks, "cosine" or "posterior"."""
        return self.config.recipe.similarity

    @property
    def num_classes(self) -> int:
        """C, the length of an embedding."""
        return self.model.num_classes

    @property
    def audio_dim(self) -> int:
        """Number of audio features, Da."""
        return len(self.towers.standardization.audio_mean)

    @property
    def visual_dim(self) -> int:
        """Number of visual features, Dv."""
        return len(self.towers.standardization.visual_mean)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Digest of all that the embeddings depend on, 32 hexadecimal digits.

        Runs that share it give the same embeddings of the same features on one machine.
        """
        parts = {tower: self.towers.params[tower] for tower in ("audio", "visual")}
        leaves = jax.tree.leaves_with_path((parts, self.towers.standardization))
        facts = [
            self.config.recipe.precision,
            self.limit,
            [[jax.tree_util.keystr(path), str(leaf.dtype), leaf.shape] for path, leaf in leaves],
        ]
        digest = hashlib.blake2b(json.dumps(facts).encode(), digest_size=16)
        for _, leaf in leaves:
            digest.update(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8).data)
        return digest.hexdigest()

    def provenance(self) -> dict[str, str | int]:
        """Where embeddings of this run come from, as files of embeddings record it."""
        return {
            "similarity": self.similarity,
            "run": str(self.folder),
            "which": self.which,
            "epoch": self.epoch,
            "fingerprint": self.fingerprint,
        }

    def embed_audio(self, features: npt.ArrayLike) -> np.ndarray:
        """Embeddings of clips' audio features.

        The features are those that an extractor gives, standardised here as the run's training rows
        were. Programs are compiled for numbers of rows that are powers of two, up to `BLOCK_ROWS`,
        by which larger inputs are taken.

        Args:
          features: [N, Da], any real dtype, N ≥ 0.

        Returns:
          float32 [N, C], on the host.

        Raises:
          UserError: if it is no matrix of Da columns, or holds what is not finite in float32.
        """
        return self._embed("audio", features)

    def embed_visual(self, features: npt.ArrayLike) -> np.ndarray:
        """Embeddings of clips' visual features; see `embed_audio`.

        Args:
          features: [N, Dv], any real dtype, N ≥ 0.

        Returns:
          float32 [N, C], on the host.

        Raises:
          UserError: if it is no matrix of Dv columns, or holds what is not finite in float32.
        """
        return self._embed("visual", features)

    def outputs(self, modality: str, features: Array) -> Array:
        """What `embed_audio` or `embed_visual` computes, to be traced; nothing is checked.

        Args:
          modality: "audio" or "visual".
          features: float32 [N, D].
        """
        return _outputs(self.model, modality, self.limit, *self._arrays(modality), features)

    def _embed(self, modality: str, features: npt.ArrayLike) -> np.ndarray:
        width = self.audio_dim if modality == "audio" else self.visual_dim
        shape = np.shape(features)
        if len(shape) == 2 and shape[1] != width:
            raise UserError(
                f"{modality} features have {shape[1]} columns, but the run in {self.folder} was "
                f"trained on {width}; use features of the same model"
            )
        if len(shape) == 2 and shape[0] == 0:
            return np.zeros((0, self.num_classes), np.float32)
        rows = as_finite_float32(features, f"{modality} features")
        embeddings = np.empty((len(rows), self.num_classes), np.float32)
        for first, block in _padded_blocks(rows):
            outputs = _jitted_outputs(
                self.model, modality, self.limit, *self._arrays_on_device[modality], block
            )
            wanted = embeddings[first : first + BLOCK_ROWS]
            wanted[:] = jax.device_get(outputs)[: len(wanted)]
        return embeddings

    @functools.cached_property
    def _arrays_on_device(self) -> dict[str, Any]:
        return {name: jax.device_put(self._arrays(name)) for name in ("audio", "visual")}

    def _arrays(self, modality: str) -> tuple[Any, np.ndarray, np.ndarray]:
        """Parameters, mean and scale of a tower."""
        statistics = self.towers.standardization
        return (
            self.towers.params[modality],
            getattr(statistics, f"{modality}_mean"),
            getattr(statistics, f"{modality}_scale"),
        )


def _padded_blocks(rows: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Blocks of rows with the numbers of their first ones, zeros up to a power of two behind.

    5000 rows are blocks of 4096 and of 1024, whose last 120 rows are zeros.
    """
    for first in range(0, len(rows), BLOCK_ROWS):
        block = rows[first : first + BLOCK_ROWS]
        missing = (1 << (len(block) - 1).bit_length()) - len(block)
        yield first, np.pad(block, ((0, missing), (0, 0))) if missing else block


def _outputs(
    model: TwoTowers,
    modality: str,
    limit: float | None,
    params: Any,
    mean: ArrayLike,
    scale: ArrayLike,
    features: Array,
) -> Array:
    """A tower's outputs for features as `aadml_jax.data.standardize` maps them."""
    mean, scale = jnp.asarray(mean), jnp.asarray(scale)
    deviations = (features - mean[None, :]) / jnp.where(scale == 0, 1, scale)[None, :]
    standardized = jnp.where(scale[None, :] == 0, 0, deviations)
    if limit is not None:
        standardized = jnp.clip(standardized, -limit, limit)

    def tower_outputs(towers: TwoTowers, inputs: Array) -> Array:
        return getattr(towers, modality)(inputs)

    outputs: Any = model.apply({"params": {modality: params}}, standardized, method=tower_outputs)
    return outputs


_jitted_outputs = jax.jit(_outputs, static_argnames=("model", "modality", "limit"))


def load_run(folder: str | os.PathLike[str], *, which: str = "latest") -> LoadedRun:
    """Loads the towers of a run, to embed features with them.

        run = aadml_jax.load_run("runs/vegas")
        embeddings = run.embed_audio(features)                  # [N, Da] -> [N, C]

    Of the checkpoint only the parameters of the towers and the standardisation are read. Nothing in
    the folder is changed, so that it may be read-only.

    Args:
      folder: the --workdir of the training; `~` is expanded.
      which: "latest", or "best", the checkpoint with the highest mean MAP on the test rows.

    Raises:
      UserError: if the folder is not that of a run, is damaged, or holds no such checkpoint.
      ValueError: for another checkpoint.
    """
    if which not in CHECKPOINTS:
        raise ValueError(f"which must be one of {', '.join(CHECKPOINTS)}; got {which!r}")
    path = local_path(folder)
    stored = read_run_json(path, CONFIG_FILE)
    data = recorded_data(stored)
    config, towers, progress = restore_for_evaluation(path, stored, which)
    has_result = (path / RESULT_FILE).exists()
    return LoadedRun(
        folder=path,
        which=which,
        epoch=progress.epoch,
        config=config,
        class_names=recorded_class_names(stored),
        result=read_run_json(path, RESULT_FILE) if has_result else None,
        model=build_model(config.recipe, data["num_classes"]),
        towers=towers,
        limit=recorded_limit(data),
    )
