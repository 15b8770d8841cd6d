"""A data set for retrieval: what to train on, what to rank, and what is known about both."""

import dataclasses
import hashlib
from typing import NamedTuple

import numpy as np

from aadml_jax.data.paired_features import DIGEST_BYTES, PairedFeatures, StoredFeatures
from aadml_jax.data.standardization import FeatureStandardization
from aadml_jax.data.validation import (
    require_a_class,
    require_columns,
    require_every_class,
    require_labels_in_range,
)
from aadml_jax.errors import UserError


class PreparedFacts(NamedTuple):
    """What was measured when a data set was prepared, and need not be measured again.

    Attributes:
      fingerprint: See `RetrievalDataset.fingerprint`.
      standardization: Of the training rows.
      shared_rows: See the function `shared_rows`.
      nearly_constant: See `MeasuredStandardization`.
      limit: Of standardised values, see `standardize`; None of facts that were measured before
        there was one.
    """

    fingerprint: str
    standardization: FeatureStandardization
    shared_rows: int
    nearly_constant: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())
    limit: float | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class RetrievalDataset:
    """A training split, a test split and what is known about them.

    Attributes:
      name: Short name, such as "vegas".
      train: Rows to learn from. Of class numbers every class has at least one; multi-hot labels may
        leave classes out, as a part of a published vocabulary does.
      test: Rows to rank, both as queries and as gallery; their labels are of the same kind.
      num_classes: C; class numbers run from 0 to C − 1, multi-hot labels have C columns.
      source: Where the rows come from: an absolute path, or a description of the generator.
      test_posteriors: Exact class probabilities (p(c | audio), p(c | visual)) of the test rows,
        real [len(test), C] each, where the density is known; else None.
      prepared: Facts about these very rows that are known beforehand.
      class_names: Names in label order, empty where unknown.
      source_files: Absolute paths of the files from which rows are read, empty without files.
      averaged_over: Of audio and of visual features, what was averaged away when they were read, in
        words such as "10 time steps"; empty where they are stored as vectors.

    Raises:
      UserError: There are fewer than two classes, the splits differ in their numbers of features
        or in the kind of their labels, a label is C or above, multi-hot labels don't have C
        columns, or a class number is absent from training.
      ValueError: The posteriors have another shape than [len(test), C] or are no probabilities, or
        there are names, but not of each class.
    """

    name: str
    train: PairedFeatures | StoredFeatures
    test: PairedFeatures | StoredFeatures
    num_classes: int
    source: str
    test_posteriors: tuple[np.ndarray, np.ndarray] | None = None
    prepared: PreparedFacts | None = None
    class_names: tuple[str, ...] = ()
    source_files: tuple[str, ...] = ()
    averaged_over: tuple[str, str] = ("", "")

    def __post_init__(self):
        for field in ("audio", "visual"):
            train_dim, test_dim = (
                getattr(split, f"{field}_dim") for split in (self.train, self.test)
            )
            if train_dim != test_dim:
                raise UserError(
                    f"{field} features have {train_dim} columns in {self.train.name} but "
                    f"{test_dim} in {self.test.name}; extract both with the same model"
                )
        if self.train.labels.ndim != self.test.labels.ndim:
            of_train, of_test = (
                "multi-hot rows" if split.labels.ndim == 2 else "class numbers"
                for split in (self.train, self.test)
            )
            raise UserError(
                f"labels of {self.train.name} are {of_train}, but those of {self.test.name} are "
                f"{of_test}; store both alike"
            )
        if self.num_classes < 2:
            raise UserError(
                f"{self.train.name} has only one class, so every ranking of clips is right; "
                "give clips of two classes at least"
            )
        check = require_columns if self.is_multi_label else require_labels_in_range
        for split in (self.train, self.test):
            check(split.labels, self.num_classes, what=f"labels of {split.name}")
            if self.is_multi_label:
                require_a_class(split.labels, what=f"labels of {split.name}")
        if not self.is_multi_label:
            require_every_class(
                self.train.labels, self.num_classes, what=f"labels of {self.train.name}"
            )
        expected = (len(self.test), self.num_classes)
        for posteriors in self.test_posteriors or ():
            if np.shape(posteriors) != expected:
                raise ValueError(
                    f"test_posteriors of {self.name} must have shape {expected}, "
                    f"got {np.shape(posteriors)}"
                )
            if not ((posteriors >= 0) & (posteriors <= 1)).all():
                raise ValueError(
                    f"test_posteriors of {self.name} must be probabilities, got values from "
                    f"{np.min(posteriors)} to {np.max(posteriors)}"
                )
        if self.class_names and len(self.class_names) != self.num_classes:
            raise ValueError(
                f"{self.name} has {self.num_classes} classes, got {len(self.class_names)} names"
            )

    @property
    def audio_dim(self) -> int:
        """Number of audio features, Da."""
        return self.train.audio_dim

    @property
    def visual_dim(self) -> int:
        """Number of visual features, Dv."""
        return self.train.visual_dim

    def features_in_words(self) -> str:
        """Numbers of features, and what they were averaged over: what a misread axis changes."""
        averaged = [
            f"{name} averaged over {what}"
            for name, what in zip(("audio", "visual"), self.averaged_over, strict=True)
            if what
        ]
        note = f" ({', '.join(averaged)})" if averaged else ""
        return f"{self.audio_dim} audio and {self.visual_dim} visual features{note}"

    @property
    def is_multi_label(self) -> bool:
        """Whether labels are multi-hot, bool [N, C], instead of class numbers, int32 [N]."""
        return self.train.labels.ndim == 2

    def loaded(self) -> "RetrievalDataset":
        """The same with all features in memory.

        Raises:
          UserError: Rows can't be read; see `StoredFeatures.take`.
        """
        every = slice(None)
        return dataclasses.replace(self, train=self.train.take(every), test=self.test.take(every))

    def fingerprint(self) -> str:
        """Digest of all features and labels, 32 hexadecimal digits, the same on every machine.

        Two data sets share it only if their splits hold the same values in the same order and they
        count the same classes in the same kind of labels. Names, source and posteriors don't enter.
        Of prepared data it is the one that was measured then; else all features are read.
        """
        if self.prepared is not None:
            return self.prepared.fingerprint
        return self.fingerprint_of(self.train.row_digests(), self.test.row_digests())

    def fingerprint_of(self, train_digests: np.ndarray, test_digests: np.ndarray) -> str:
        """The fingerprint, where the digests of the rows are known.

        Args:
          train_digests: `row_digests` of all training rows, uint8 [N, 16].
          test_digests: The same of the test rows.
        """
        kind = "multi-hot" if self.is_multi_label else "class numbers"
        numbers = (self.num_classes, self.audio_dim, self.visual_dim, len(self.train), kind)
        digest = hashlib.blake2b(str(numbers).encode(), digest_size=DIGEST_BYTES)
        for digests in (train_digests, test_digests):
            digest.update(np.ascontiguousarray(digests).data)
        for split in (self.train, self.test):
            labels = split.labels
            digest.update(
                np.packbits(labels, axis=1).data
                if self.is_multi_label
                else np.ascontiguousarray(labels, "<i4").data
            )
        return digest.hexdigest()


def shared_rows(train_digests: np.ndarray, test_digests: np.ndarray) -> int:
    """How many test rows have the features of a training row, whatever their labels.

    Such a row is ranked after it was learned: MAP over it doesn't tell how new clips are ranked.

    Args:
      train_digests: `row_digests` of all training rows, uint8 [N, 16].
      test_digests: The same of the test rows, uint8 [M, 16].
    """
    train, test = (
        np.ascontiguousarray(digests).view(f"S{DIGEST_BYTES}")[:, 0]
        for digests in (train_digests, test_digests)
    )
    return int(np.isin(test, train).sum())
