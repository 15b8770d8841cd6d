"""Reading of .npz files of clips: features to embed, and embeddings from wherever they come.

The vectors are under `audio` and `visual` in a file of features, under `audio_embeddings` and
`visual_embeddings` in one of embeddings; one of the two may be missing. Besides, there may be

    ids, labels                  of pairs: row i of audio and of visual is clip i
    audio_ids, audio_labels      of audio alone, and the same of visual, if they are no pairs
    audio_media, visual_media    paths of media files, one a row, empty where there is none
    class_names                  [C], of the classes that the labels count from 0
    similarity                   of embeddings: "cosine" or "posterior"
    run, which, fingerprint      of embeddings: the folder of the run that made them, its checkpoint
                                 ("latest" or "best"), and the digest of its towers
    source                       of embeddings: where their features came from, one text or several

Ids are text or whole numbers, default the numbers of the rows; labels are class numbers [N] or
multi-hot rows [N, C]. Vectors of both modalities are pairs unless the keys say otherwise.
"""

import os
import pathlib
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from aadml_jax._files import local_path
from aadml_jax.data.clip_arrays import MODALITIES, ClipArrays, ModalityRows
from aadml_jax.data.readers.npy_files import (
    NUMBERS,
    NUMBERS_OR_BOOLS,
    TEXT,
    TEXT_OR_COUNTS,
    read_large_npz,
)
from aadml_jax.errors import UserError

EMBEDDINGS_SUFFIX = "_embeddings"
MEDIA_SUFFIX = "_media"
_SHARED_KINDS = {"ids": TEXT_OR_COUNTS, "labels": NUMBERS_OR_BOOLS}


class StoredEmbeddings(NamedTuple):
    """What a file of embeddings holds.

    Attributes:
      clips: The embeddings.
      similarity: Name of the one they are made for; None if the file does not say.
    """

    clips: ClipArrays
    similarity: str | None


class Provenance(NamedTuple):
    """Where embeddings come from, each None or empty where their file does not say.

    Attributes:
      run: The folder of the run that made them.
      which: Its checkpoint.
      fingerprint: The digest of its towers.
      sources: Where the features came from.
    """

    run: str | None
    which: str | None
    fingerprint: str | None
    sources: tuple[str, ...]


def read_clip_features(path: str | os.PathLike[str]) -> ClipArrays:
    """Reads a .npz file of features; see the module.

    Raises:
      UserError: The file can't be read, or holds no clips or other things than they need.
    """
    return _read(path, "")[0]


def read_embeddings(path: str | os.PathLike[str]) -> StoredEmbeddings:
    """Reads a .npz file of embeddings; see the module.

    Raises:
      UserError: As `read_clip_features`.
    """
    clips, similarity = _read(path, EMBEDDINGS_SUFFIX)
    widths = {name: side.values.shape[1] for name, side in clips.rows().items()}
    if len(set(widths.values())) > 1:
        raise UserError(
            f"{clips.name}: audio embeddings have {widths['audio']} columns, visual ones "
            f"{widths['visual']}; embed both in one space"
        )
    return StoredEmbeddings(clips, similarity)


def read_provenance(path: str | os.PathLike[str]) -> Provenance:
    """Reads of a .npz file of embeddings alone where they come from; see the module.

    Raises:
      UserError: The file can't be read or is damaged.
    """
    path = local_path(path)
    arrays = read_large_npz(path, dict.fromkeys(("run", "which", "fingerprint", "source"), TEXT))
    sources = arrays.get("source")
    return Provenance(
        run=_word(arrays, "run", path),
        which=_word(arrays, "which", path),
        fingerprint=_word(arrays, "fingerprint", path),
        sources=() if sources is None else tuple(map(str, sources.reshape(-1).tolist())),
    )


def _read(given: str | os.PathLike[str], suffix: str) -> tuple[ClipArrays, str | None]:
    path = local_path(given)
    kinds = {f"{name}{suffix}": NUMBERS for name in MODALITIES}
    kinds |= {f"{name}{MEDIA_SUFFIX}": TEXT for name in MODALITIES}
    for key, of_key in _SHARED_KINDS.items():
        kinds |= {key: of_key, **{f"{name}_{key}": of_key for name in MODALITIES}}
    arrays = read_large_npz(path, {**kinds, "class_names": TEXT, "similarity": TEXT})
    present = [name for name in MODALITIES if f"{name}{suffix}" in arrays]
    if not present:
        wanted = " and ".join(f"{name}{suffix}" for name in MODALITIES)
        raise UserError(
            f"{path} has none of the keys {wanted}; write at least one of them by numpy.savez"
        )
    shared = [key for key in _SHARED_KINDS if key in arrays]
    own = [f"{name}_{key}" for key in _SHARED_KINDS for name in MODALITIES]
    own = [key for key in own if key in arrays]
    if shared and own:
        raise UserError(
            f"{path} has the keys {', '.join(shared)} of pairs and {', '.join(own)} of one "
            "modality; keep one kind"
        )
    for key in own:
        modality = key.partition("_")[0]
        if modality not in present:
            raise UserError(f"{path} has the key {key}, but not {modality}{suffix}; add it")
    sides: dict[str, ModalityRows | None] = dict.fromkeys(MODALITIES)
    for name in present:
        values, of_side = arrays[f"{name}{suffix}"], f"{name}_" * bool(own)
        ids, labels = (arrays.get(f"{of_side}{key}") for key in _SHARED_KINDS)
        if ids is None:
            ids = np.arange(len(values) if values.ndim else 0)
        _require_vector(ids, f"{path}: {of_side}ids")
        media = arrays.get(f"{name}{MEDIA_SUFFIX}", np.empty(0, str))
        _require_vector(media, f"{path}: {name}{MEDIA_SUFFIX}")
        sides[name] = ModalityRows(
            values,
            tuple(map(str, ids.tolist())),
            labels,
            f"{name}{suffix} of {path}",
            tuple(map(str, media.tolist())),
        )
    names = arrays.get("class_names")
    if names is not None:
        _require_vector(names, f"{path}: class_names")
    clips = ClipArrays(
        sides["audio"],
        sides["visual"],
        is_paired=not own,
        class_names=() if names is None else tuple(map(str, names.tolist())),
        name=str(path),
    )
    return clips, _word(arrays, "similarity", path)


def _word(arrays: Mapping[str, np.ndarray], key: str, path: pathlib.Path) -> str | None:
    if key not in arrays:
        return None
    if arrays[key].size != 1:
        raise UserError(f"{path}: {key} must be one word, got shape {arrays[key].shape}")
    return str(arrays[key].reshape(()))


def _require_vector(array: np.ndarray, what: str) -> None:
    if array.ndim != 1:
        raise UserError(f"{what} must be a vector, got shape {array.shape}; store one name a row")
