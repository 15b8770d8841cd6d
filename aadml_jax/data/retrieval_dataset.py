"""A data set for retrieval: what to train on, what to rank, and what is known about both."""

import dataclasses
import hashlib
from typing import NamedTuple

import numpy as np

from aadml_jax.data.paired_features import DIGEST_BYTES, PairedFeatures, StoredFeatures
from aadml_jax.data.standardization import FeatureStandardization
from aadml_jax.data.validation import require_every_class, require_labels_in_range
from aadml_jax.errors import UserError


class PreparedFacts(NamedTuple):
    """What was measured when a data set was prepared, and need not be measured again.

    Attributes:
      fingerprint: See `RetrievalDataset.fingerprint`.
      standardization: Of the training rows.
    """

    fingerprint: str
    standardization: FeatureStandardization


@dataclasses.dataclass(frozen=True, eq=False)
class RetrievalDataset:
    """A training split, a test split and what is known about them.

    Attributes:
      name: Short name, such as "vegas".
      train: Rows to learn from; every class has at least one.
      test: Rows to rank, both as queries and as gallery.
      num_classes: C; labels run from 0 to C − 1.
      source: Where the rows come from: an absolute path, or a description of the generator.
      test_posteriors: Exact class probabilities (p(c | audio), p(c | visual)) of the test rows,
        real [len(test), C] each, where the density is known; else None.
      prepared: Facts about these very rows that are known beforehand.

    Raises:
      UserError: The splits differ in their numbers of features, a label is C or above, or a class
        is absent from training.
      ValueError: The posteriors have another shape than [len(test), C].
    """

    name: str
    train: PairedFeatures | StoredFeatures
    test: PairedFeatures | StoredFeatures
    num_classes: int
    source: str
    test_posteriors: tuple[np.ndarray, np.ndarray] | None = None
    prepared: PreparedFacts | None = None

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
        for split in (self.train, self.test):
            require_labels_in_range(split.labels, self.num_classes, what=f"labels of {split.name}")
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

    @property
    def audio_dim(self) -> int:
        """Number of audio features, Da."""
        return self.train.audio_dim

    @property
    def visual_dim(self) -> int:
        """Number of visual features, Dv."""
        return self.train.visual_dim

    def class_balanced_subset(self, max_train: int, max_test: int) -> "RetrievalDataset":
        """The first rows of each class of either split, with their posteriors.

        Args:
          max_train: Most training rows to keep.
          max_test: Most test rows to keep.

        Raises:
          UserError: A class would be left without a row.
        """
        train_rows, test_rows = (
            class_balanced_rows(split.labels, max_rows, what=split.name)
            for split, max_rows in ((self.train, max_train), (self.test, max_test))
        )
        posteriors = self.test_posteriors and tuple(p[test_rows] for p in self.test_posteriors)
        return dataclasses.replace(
            self,
            train=self.train.select(train_rows),
            test=self.test.select(test_rows),
            test_posteriors=posteriors,
            prepared=None,
        )

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
        count the same classes. Names, source and posteriors don't enter. Of prepared data it is the
        one that was measured then; else all features are read.
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
        numbers = (self.num_classes, self.audio_dim, self.visual_dim, len(self.train))
        digest = hashlib.blake2b(str(numbers).encode(), digest_size=DIGEST_BYTES)
        for digests in (train_digests, test_digests):
            digest.update(np.ascontiguousarray(digests))
        return digest.hexdigest()


def class_balanced_rows(labels: np.ndarray, max_rows: int, *, what: str) -> np.ndarray:
    """The first rows of each class, for a smoke run.

    Rows are dealt to the classes in turn, each taking its next row in file order, until `max_rows`
    are dealt: counts differ by one at most, except where a class has no more rows.

    Args:
      labels: Class of each row, integers [N].
      max_rows: Most rows to keep.
      what: What the message calls these rows.

    Returns:
      The chosen row numbers in file order; all of them if there are no more than `max_rows`.

    Raises:
      UserError: `max_rows` leaves a class without a row.
    """
    classes, counts = np.unique(labels, return_counts=True)
    if max_rows < len(classes):
        raise UserError(
            f"{max_rows} rows cannot represent the {len(classes)} classes of {what}; "
            f"keep at least {len(classes)} rows"
        )
    by_class = np.argsort(labels, kind="stable")
    turns = np.concatenate([np.arange(count) for count in counts])
    dealt = by_class[np.argsort(turns, kind="stable")]
    return np.sort(dealt[:max_rows])
