"""Writing of embeddings, as `read_embeddings` reads them."""

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from aadml_jax._files import local_path, require_absent, written_as_a_whole
from aadml_jax.data.clip_arrays import ClipArrays
from aadml_jax.data.readers.clip_arrays import EMBEDDINGS_SUFFIX, MEDIA_SUFFIX
from aadml_jax.errors import UserError


def write_embeddings(
    clips: ClipArrays,
    path: str | os.PathLike[str],
    facts: Mapping[str, str | int | Sequence[str]],
    *,
    replace: bool = False,
) -> pathlib.Path:
    """Writes a .npz file of embeddings, complete or not at all.

    Args:
      clips: Whose values are embeddings.
      path: Of the file; `~` is expanded.
      facts: Where the embeddings come from, each under a key of its own; "similarity" is read again
        by `read_embeddings`, the others that it knows by `read_provenance`.
      replace: Whether it takes the place of a file that is there.

    Returns:
      The absolute path.

    Raises:
      UserError: The file exists and is not to be replaced, or can't be written.
    """
    path = local_path(path)
    arrays: dict[str, Any] = {key: np.asarray(value) for key, value in facts.items()}
    if clips.class_names:
        arrays["class_names"] = np.asarray(clips.class_names)
    for name, side in clips.rows().items():
        prefix = "" if clips.is_paired else f"{name}_"
        arrays[f"{name}{EMBEDDINGS_SUFFIX}"] = side.values
        arrays[f"{prefix}ids"] = np.asarray(side.ids)
        if side.labels is not None:
            arrays[f"{prefix}labels"] = side.labels
        if side.media:
            arrays[f"{name}{MEDIA_SUFFIX}"] = np.asarray(side.media)
    if not replace:
        require_absent(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_as_a_whole(path, "wb") as file:
            np.savez(file, **arrays)
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror or error}); make room, or choose another "
            "folder"
        ) from error
    return path
