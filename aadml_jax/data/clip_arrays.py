"""Arrays of clips that need not be paired: features to embed, or embeddings, with what is known.

Unlike `PairedFeatures`, one modality may be missing, clips may have audio alone or visual alone,
and labels may be unknown.
"""

import dataclasses

import numpy as np

from aadml_jax.data.paired_features import as_finite_float32
from aadml_jax.data.validation import checked_labels, require_equal_lengths, require_labels_in_range
from aadml_jax.errors import UserError

MODALITIES = ("audio", "visual")


@dataclasses.dataclass(frozen=True, eq=False)
class ModalityRows:
    """One modality of some clips.

    Attributes:
      values: Vectors, float32 [N, D]; other real dtypes are converted.
      ids: A name for each row, all different.
      labels: Class numbers, int32 [N], or multi-hot, bool [N, C]; None if they are not known. Other
        forms are converted as `PairedFeatures` does.
      name: What error messages call these rows, such as "audio_embeddings of file.npz".

    Raises:
      UserError: The vectors are no finite matrix, numbers of rows differ, an id occurs twice, or
        the labels are not sound.
    """

    values: np.ndarray
    ids: tuple[str, ...]
    labels: np.ndarray | None
    name: str

    def __post_init__(self):
        object.__setattr__(self, "values", as_finite_float32(self.values, self.name))
        lengths = {"vectors": len(self.values), "ids": len(self.ids)}
        if self.labels is not None:
            labels = checked_labels(self.labels, what=f"labels of {self.name}")
            object.__setattr__(self, "labels", labels)
            lengths["labels"] = len(labels)
        require_equal_lengths(lengths, what=self.name)
        rows: dict[str, int] = {}
        for row, clip_id in enumerate(self.ids):
            first = rows.setdefault(clip_id, row)
            if first != row:
                raise UserError(
                    f"{self.name}: rows {first} and {row} have the same id {clip_id!r}; give each "
                    "clip its own"
                )

    def __len__(self) -> int:
        return len(self.values)


@dataclasses.dataclass(frozen=True, eq=False)
class ClipArrays:
    """The arrays of some clips, of one modality or of both.

    Attributes:
      audio: Rows of audio; None if there are none.
      visual: Rows of visual; None if there are none.
      is_paired: Whether row i of both is of one clip.
      class_names: Names of the classes that the labels count, empty where unknown.
      name: What error messages call them, such as the path of their file.

    Raises:
      UserError: There is no modality at all, paired rows are not equally many, the labels of the
        modalities are of different kinds, or there are names, but not of each class.
    """

    audio: ModalityRows | None
    visual: ModalityRows | None
    is_paired: bool
    class_names: tuple[str, ...] = ()
    name: str = "clips"

    def __post_init__(self):
        rows = list(self.rows().values())
        if not rows:
            raise UserError(f"{self.name} holds neither audio nor visual; give one of them")
        if self.is_paired and len(rows) == 2:
            lengths = {name: len(side) for name, side in self.rows().items()}
            require_equal_lengths(
                lengths,
                what=self.name,
                remedy="each clip needs one row in both, or else ids and labels of each modality",
            )
        labels = [side.labels for side in rows if side.labels is not None]
        if len({of_side.shape[1:] for of_side in labels}) > 1:
            shapes = " and ".join(str(of_side.shape) for of_side in labels)
            raise UserError(
                f"{self.name}: labels have shapes {shapes}; store class numbers [N] for both "
                "modalities, or for both multi-hot rows of the same classes [N, C]"
            )
        if self.class_names:
            for of_side in labels:
                if of_side.ndim == 1:
                    require_labels_in_range(
                        of_side, len(self.class_names), what=f"labels of {self.name}"
                    )
                elif of_side.shape[1] != len(self.class_names):
                    raise UserError(
                        f"labels of {self.name} have {of_side.shape[1]} columns, but there are "
                        f"{len(self.class_names)} names of classes; give each class both"
                    )

    def rows(self) -> dict[str, ModalityRows]:
        """The modalities that are there, by their names."""
        sides = {"audio": self.audio, "visual": self.visual}
        return {name: side for name, side in sides.items() if side is not None}


def fits_class_names(labels: np.ndarray | None, class_names: tuple[str, ...]) -> bool:
    """Whether labels may be of the classes that have these names."""
    if labels is None:
        return True
    if labels.ndim == 2:
        return labels.shape[1] == len(class_names)
    return bool(labels.max() < len(class_names))
