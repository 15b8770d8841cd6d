"""Towers of a run as artifacts of `jax.export`, which programs without this library run."""

import dataclasses
import json
import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
from jax import export

from aadml_jax._files import folder_written_as_a_whole, local_path, require_absent
from aadml_jax.errors import UserError, require_extra
from aadml_jax.models import TOWERS
from aadml_jax.training.loaded_runs import LoadedRun
from aadml_jax.training.run_folder import versions

PLATFORMS = ("cpu", "cuda", "tpu")
FACTS_FILE = "model.json"


def artifact_file(modality: str) -> str:
    """Name of a tower's file in the folder."""
    return f"{modality}.jax_export"


def require_flatbuffers() -> None:
    """Checks that the package is there by which `jax.export` writes.

    Raises:
      UserError: if it is not.
    """
    require_extra(
        "flatbuffers",
        "jax.export needs the package flatbuffers; run pip install -e '.[export]'",
    )


def export_tower(run: LoadedRun, modality: str) -> export.Exported:
    """A tower, with its parameters and standardisation, for any number of rows.

    Args:
      run: whose tower it is.
      modality: "audio" or "visual".

    Returns:
      A function of features, float32 [N, D] with N ≥ 1, that gives embeddings, float32 [N, C], on
      CPUs, CUDA GPUs and TPUs. Towers of precision `float32_high` multiply as those of `float32`.
    """
    if run.model.precision == jax.lax.Precision.HIGH:
        # JAX does not lower products of TF32 for CPUs, not even where they would not run.
        run = dataclasses.replace(run, model=run.model.clone(precision=jax.lax.Precision.HIGHEST))
    width = run.audio_dim if modality == "audio" else run.visual_dim
    rows = export.symbolic_shape(f"rows, {width}")
    embed = jax.jit(lambda features: run.outputs(modality, features))
    return export.export(embed, platforms=PLATFORMS)(jax.ShapeDtypeStruct(rows, jnp.float32))


def write_exported_towers(run: LoadedRun, folder: str | os.PathLike[str]) -> pathlib.Path:
    """Writes both towers into a new folder, and what is known of them as `model.json`.

    Args:
      run: whose towers they are.
      folder: which must not exist; `~` is expanded.

    Returns:
      The absolute path of the folder.

    Raises:
      UserError: if the folder exists or cannot be written, or flatbuffers is not installed.
    """
    require_flatbuffers()
    path = local_path(folder)
    require_absent(path, "folder")
    artifacts = {name: bytes(export_tower(run, name).serialize()) for name in TOWERS}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with folder_written_as_a_whole(path) as temporary:
            for name, content in artifacts.items():
                (temporary / artifact_file(name)).write_bytes(content)
            facts = json.dumps(_facts(run), indent=2, ensure_ascii=False)
            (temporary / FACTS_FILE).write_text(f"{facts}\n", encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror or error}); make room, or choose another "
            "folder"
        ) from error
    return path


def _facts(run: LoadedRun) -> dict[str, Any]:
    return {
        **run.provenance(),
        "class_names": list(run.class_names),
        "num_classes": run.num_classes,
        "audio": {"file": artifact_file("audio"), "features": run.audio_dim},
        "visual": {"file": artifact_file("visual"), "features": run.visual_dim},
        "platforms": list(PLATFORMS),
        "versions": versions(),
    }
