"""Paired audio and visual feature vectors with labels: the form in which all data is trained on.

`PairedFeatures` are in memory and checked on construction, so that code further on may rely on
finite float32 features. `StoredFeatures` know their labels; their features are read when rows are
taken, so that each process of a run reads its own.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from aadml_jax.data.validation import (
    NonFiniteRows,
    as_float32,
    checked_labels,
    require_equal_lengths,
    require_real_dtype,
    require_unmasked,
)
from aadml_jax.errors import UserError

# Rows per block where a float64 copy of the whole array is to be avoided.
_BLOCK_ROWS = 4096
DIGEST_BYTES = 16


@dataclasses.dataclass(frozen=True, eq=False)
class PairedFeatures:
    """N clips, each with an audio vector, a visual vector and one class or several.

    Attributes:
      audio: Audio features, float32 [N, Da]. Other real dtypes are converted.
      visual: Visual features, float32 [N, Dv], row for row of the same clips.
      labels: Class of each clip, int32 [N], counted from 0; other integers, and floats without a
        fractional part, are converted. Or multi-hot, bool [N, C] with C > 1, at least one class a
        clip; numbers that are 0 or 1 are converted. The number of dimensions decides which.
      name: What error messages call these rows, such as "train split of /data/vegas.h5".

    Raises:
      UserError: An array has the wrong rank, no rows, no columns or another number of rows than
        its fellows; a feature is NaN, infinite or beyond float32; a label is no class index, or a
        multi-hot row holds other values than 0 and 1 or no class at all.
    """

    audio: np.ndarray
    visual: np.ndarray
    labels: np.ndarray
    name: str = "paired features"

    def __post_init__(self):
        for field in ("audio", "visual"):
            what = f"{field} of {self.name}"
            object.__setattr__(self, field, as_finite_float32(getattr(self, field), what))
        labels = checked_labels(self.labels, what=f"labels of {self.name}")
        object.__setattr__(self, "labels", labels)
        require_equal_lengths(
            {"audio": len(self.audio), "visual": len(self.visual), "labels": len(labels)},
            what=self.name,
        )

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def audio_dim(self) -> int:
        """Number of audio features, Da."""
        return self.audio.shape[1]

    @property
    def visual_dim(self) -> int:
        """Number of visual features, Dv."""
        return self.visual.shape[1]

    def take(self, rows: np.ndarray | slice) -> "PairedFeatures":
        """The given rows, in the given order.

        Args:
          rows: Row indices, integers [K], a mask, bool [N], or a slice.

        Raises:
          IndexError: A row doesn't exist.
          UserError: No row is selected.
        """
        return dataclasses.replace(
            self, audio=self.audio[rows], visual=self.visual[rows], labels=self.labels[rows]
        )

    select = take

    def blocks(self) -> Iterator["PairedFeatures"]:
        """All rows, in blocks of which a float64 copy is small."""
        for rows in _block_slices(len(self)):
            yield self.take(rows)

    def rows(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.int32 | np.ndarray]]:
        """Audio vector, visual vector and label (class number or bool [C]) of each row."""
        return zip(self.audio, self.visual, self.labels, strict=True)

    def row_digests(self) -> np.ndarray:
        """A digest of each row's features, the same on every machine, uint8 [N, 16]."""
        arrays = [
            np.ascontiguousarray(array, "<f4").view(np.uint8) for array in (self.audio, self.visual)
        ]
        digests = bytearray()
        for rows in zip(*arrays, strict=True):
            digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
            for row in rows:
                digest.update(row)
            digests += digest.digest()
        return np.frombuffer(digests, np.uint8).reshape(-1, DIGEST_BYTES)


@dataclasses.dataclass(frozen=True, eq=False)
class StoredFeatures:
    """N clips of which only the labels are in memory.

    Attributes:
      labels: Class of each clip, int32 [N], counted from 0; or multi-hot, bool [N, C]. Other forms
        are converted as `PairedFeatures` does.
      audio_dim: Number of audio features, Da.
      visual_dim: Number of visual features, Dv.
      read: Gives the audio and the visual features, real [K, Da] and [K, Dv], of rows of the
        storage, ascending int [K]. Raises UserError where they can't be read.
      rows: Each clip's row in the storage, int [N].
      name: What error messages call these rows, such as "train split of /data/vegas.h5".
      random_access: Whether scattered rows are read about as fast as rows in a run.
    """

    labels: np.ndarray
    audio_dim: int
    visual_dim: int
    read: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
    rows: np.ndarray
    name: str
    random_access: bool = False

    def __post_init__(self):
        # What is already in this form was checked, or is checked with the number of classes.
        if (self.labels.ndim, self.labels.dtype) not in ((1, np.int32), (2, bool)):
            labels = checked_labels(self.labels, what=f"labels of {self.name}")
            object.__setattr__(self, "labels", labels)
        require_equal_lengths({"labels": len(self.labels), "rows": len(self.rows)}, what=self.name)

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: np.ndarray | slice) -> PairedFeatures:
        """Reads the given rows, in the given order.

        Args:
          rows: Row indices, integers [K], a mask, bool [N], or a slice.

        Raises:
          IndexError: A row doesn't exist.
          UserError: No row is selected, or one can't be read or holds what `PairedFeatures`
            refuses.
        """
        chosen = self.select(rows)
        if (np.diff(chosen.rows) > 0).all():
            audio, visual = self.read(chosen.rows)
        else:
            order = np.argsort(chosen.rows, kind="stable")
            places = np.empty_like(order)
            places[order] = np.arange(len(order))
            audio, visual = (features[places] for features in self.read(chosen.rows[order]))
        return PairedFeatures(audio, visual, chosen.labels, name=self.name)

    def select(self, rows: np.ndarray | slice) -> "StoredFeatures":
        """The given rows, as `take` has them, without reading."""
        return dataclasses.replace(self, labels=self.labels[rows], rows=self.rows[rows])

    def blocks(self) -> Iterator[PairedFeatures]:
        """All rows, read block by block."""
        for rows in _block_slices(len(self)):
            yield self.take(rows)

    def row_digests(self) -> np.ndarray:
        """What `PairedFeatures.row_digests` gives, read block by block."""
        return np.concatenate([block.row_digests() for block in self.blocks()])


def as_finite_float32(features: npt.ArrayLike, what: str) -> np.ndarray:
    """Checks a feature matrix and converts it to float32 [N, D].

    Args:
      features: Of any real dtype.
      what: What messages call it.

    Raises:
      UserError: It is no matrix, is empty, or holds what is not finite in float32.
    """
    require_unmasked(features, what=what)
    features = np.asarray(features)
    if features.ndim != 2:
        raise UserError(
            f"{what} must be a matrix, one row per clip, got shape {features.shape}; average "
            "series over time, and drop an axis of length 1 by features[..., 0]"
        )
    require_real_dtype(features.dtype, what=what)
    if 0 in features.shape:
        raise UserError(
            f"{what} is empty, shape {features.shape}; give at least one row and column"
        )
    converted = as_float32(features)
    bad = NonFiniteRows(what)
    for rows in _block_slices(len(features)):
        bad.add(rows.start, features[rows], converted[rows])
    bad.raise_if_any(len(features))
    return converted


def _block_slices(num_rows: int) -> Iterator[slice]:
    for start in range(0, num_rows, _BLOCK_ROWS):
        yield slice(start, min(start + _BLOCK_ROWS, num_rows))
