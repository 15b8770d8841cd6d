"""What a converter tells of the data it has written, from one pass over them."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from aadml_jax.data.paired_features import PairedFeatures, StoredFeatures
from aadml_jax.data.retrieval_dataset import RetrievalDataset, shared_rows

# Where there are more classes, a table tells only of the smallest and the largest.
_LISTED_CLASSES = 30


class ValueRange(NamedTuple):
    """Smallest value, mean and largest value of some features."""

    smallest: float
    mean: float
    largest: float


class SplitSummary(NamedTuple):
    """A split in numbers.

    Attributes:
      rows: N.
      class_rows: Rows of each class, int [C].
      duplicates: Rows whose features stood in an earlier row of the split.
      audio: Range of the audio features.
      visual: Range of the visual features.
      dims: Numbers of audio and of visual features.
    """

    rows: int
    class_rows: np.ndarray
    duplicates: int
    audio: ValueRange
    visual: ValueRange
    dims: tuple[int, int]


class DatasetSummary(NamedTuple):
    """A data set in numbers.

    Attributes:
      train: Of the training rows.
      test: Of the test rows.
      shared_rows: Test rows whose features are those of a training row.
      fingerprint: See `RetrievalDataset.fingerprint`.
    """

    train: SplitSummary
    test: SplitSummary
    shared_rows: int
    fingerprint: str

    def table(self, class_names: tuple[str, ...] = (), missing: tuple[int, int] = (0, 0)) -> str:
        """The numbers as lines of text.

        Args:
          class_names: In label order; empty stands for the numbers.
          missing: Rows of either split that were to be there and are not.
        """
        splits = (self.train, self.test)

        def counts(name: str, count: Callable[[SplitSummary], int]) -> str:
            return f"{name:22}" + "".join(f"{count(split):>26,}" for split in splits)

        def ranges(name: str) -> str:
            cells = [
                f"{of.smallest:.3g} / {of.mean:.3g} / {of.largest:.3g}"
                for of in (getattr(split, name) for split in splits)
            ]
            return f"{name + ' min/mean/max':22}" + "".join(f"{cell:>26}" for cell in cells)

        lines = [
            f"{'':22}{'train':>26}{'test':>26}",
            counts("rows", lambda split: split.rows),
            counts("classes", lambda split: int(np.count_nonzero(split.class_rows))),
            f"{'missing':22}" + "".join(f"{count:>26,}" for count in missing),
            counts("duplicate rows", lambda split: split.duplicates),
            f"{'shared rows':22}{'':26}{self.shared_rows:>26,}",
            counts("audio features", lambda split: split.dims[0]),
            ranges("audio"),
            counts("visual features", lambda split: split.dims[1]),
            ranges("visual"),
        ]
        if len(self.train.class_rows) > _LISTED_CLASSES:
            lines.append(counts("smallest class", lambda split: split.class_rows.min()))
            lines.append(counts("largest class", lambda split: split.class_rows.max()))
        else:
            names = class_names or [f"class {n}" for n in range(len(self.train.class_rows))]
            for number, name in enumerate(names):
                lines.append(counts(name, lambda split, number=number: split.class_rows[number]))
        return "\n".join(lines)


def summarize(dataset: RetrievalDataset) -> DatasetSummary:
    """Reads all rows once.

    Raises:
      UserError: Rows can't be read.
    """
    train, train_digests = _summarize_split(dataset.train, dataset.num_classes)
    test, test_digests = _summarize_split(dataset.test, dataset.num_classes)
    return DatasetSummary(
        train,
        test,
        shared_rows(train_digests, test_digests),
        dataset.fingerprint_of(train_digests, test_digests),
    )


def _summarize_split(
    features: PairedFeatures | StoredFeatures, num_classes: int
) -> tuple[SplitSummary, np.ndarray]:
    """A split in numbers, and the digests of its rows."""
    digests = []
    ranges: dict[str, list[tuple[float, float, float]]] = {"audio": [], "visual": []}
    for block in features.blocks():
        digests.append(block.row_digests())
        for name, of_blocks in ranges.items():
            values = getattr(block, name)
            of_blocks.append((values.min(), values.sum(dtype=np.float64), values.max()))
    all_digests = np.concatenate(digests)
    labels = features.labels
    class_rows = np.bincount(labels, minlength=num_classes) if labels.ndim == 1 else labels.sum(0)
    audio, visual = (
        _joined_range(of_blocks, len(features) * getattr(features, f"{name}_dim"))
        for name, of_blocks in ranges.items()
    )
    duplicates = len(all_digests) - len(np.unique(all_digests, axis=0))
    dims = (features.audio_dim, features.visual_dim)
    return SplitSummary(len(features), class_rows, duplicates, audio, visual, dims), all_digests


def _joined_range(of_blocks: list[tuple[float, float, float]], num_values: int) -> ValueRange:
    smallest, total, largest = np.array(of_blocks).T
    return ValueRange(float(smallest.min()), float(total.sum()) / num_values, float(largest.max()))
