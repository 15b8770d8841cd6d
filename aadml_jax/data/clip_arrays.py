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
      media: The path of each clip's media file, empty where there is none; no entries at all where
        none is known.

    Raises:
      UserError: The vectors are no finite matrix, numbers of rows differ, an id occurs twice, or
        the labels are not sound.
    """

    values: np.ndarray
    ids: tuple[str, ...]
    labels: np.ndarray | None
    name: str
    media: tuple[str, ...] = ()

    def __post_init__(self):
        object.__setattr__(self, "values", as_finite_float32(self.values, self.name))
        lengths = {"vectors": len(self.values), "ids": len(self.ids)}
        if self.labels is not None:
            labels = checked_labels(self.labels, what=f"labels of {self.name}")
            object.__setattr__(self, "labels", labels)
            lengths["labels"] = len(labels)
        if self.media:
            lengths["media files"] = len(self.media)
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


def appended(first: ClipArrays, second: ClipArrays) -> ClipArrays:
    """The clips of both, those of `second` last.

    Pairs stay pairs if both are pairs of the same modalities; else each modality is on its own:

        pairs a b, pairs c         audio a b c, visual a b c, pairs
        pairs a b, audio alone c   audio a b c, visual a b, no pairs

    Raises:
      UserError: An id of `second` is in the same modality of `first`, the vectors differ in length,
        or the labels in kind or classes, or only some clips have labels.
    """
    names = _common_class_names(first, second)
    sides = first.rows()
    for name, added in second.rows().items():
        sides[name] = _appended_rows(sides[name], added) if name in sides else added
    return ClipArrays(
        sides.get("audio"),
        sides.get("visual"),
        first.is_paired and second.is_paired and first.rows().keys() == second.rows().keys(),
        names,
        first.name,
    )


def _appended_rows(first: ModalityRows, second: ModalityRows) -> ModalityRows:
    taken = set(first.ids)
    twice = [clip_id for clip_id in second.ids if clip_id in taken]
    if twice:
        others = f" (and {len(twice) - 1} others of the new clips)" if len(twice) > 1 else ""
        raise UserError(
            f"{first.name}: the id {twice[0]!r} is there already{others}; give new clips ids of "
            "their own, by --prefix, say"
        )
    widths = [side.values.shape[1] for side in (first, second)]
    if widths[0] != widths[1]:
        raise UserError(
            f"{first.name} has {widths[0]} columns, but {second.name} {widths[1]}; keep them apart"
        )
    labels = None
    if first.labels is not None and second.labels is not None:
        if first.labels.shape[1:] != second.labels.shape[1:]:
            raise UserError(
                f"labels of {first.name} and of {second.name} have shapes {first.labels.shape} and "
                f"{second.labels.shape}; store class numbers [N] for both, or for both multi-hot "
                "rows of the same classes [N, C]"
            )
        labels = np.concatenate([first.labels, second.labels])
    elif first.labels is not None or second.labels is not None:
        known, unknown = (first, second) if second.labels is None else (second, first)
        raise UserError(
            f"{known.name} has labels, but {unknown.name} has none; keep clips with and without "
            "labels apart"
        )
    media = ()
    if first.media or second.media:
        media = tuple(path for side in (first, second) for path in side.media or ("",) * len(side))
    return ModalityRows(
        np.concatenate([first.values, second.values]),
        (*first.ids, *second.ids),
        labels,
        first.name,
        media,
    )


def _common_class_names(first: ClipArrays, second: ClipArrays) -> tuple[str, ...]:
    """The names that the labels of both count; what clips without labels say matters less."""
    labelled = [
        clips
        for clips in (first, second)
        if any(side.labels is not None for side in clips.rows().values())
    ]
    if len(labelled) == 1:
        return labelled[0].class_names
    if len(labelled) == 2 and first.class_names != second.class_names:
        names = [", ".join(clips.class_names)[:80] or "none" for clips in (first, second)]
        raise UserError(
            f"{first.name} has the class names {names[0]}, but {second.name} {names[1]}; number "
            "and name the classes alike"
        )
    return first.class_names or second.class_names
