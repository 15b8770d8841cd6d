"""What one process holds of a data set: its devices' rows, standardised, and facts of the whole."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np

from aadml_jax.data import (
    FeatureStandardization,
    PairedFeatures,
    PreparedFacts,
    RetrievalDataset,
    StoredFeatures,
    fit_standardization,
    identity_standardization,
    shared_rows,
    standardize,
)
from aadml_jax.data.standardization import Sums
from aadml_jax.errors import UserError
from aadml_jax.training.parallel import Placement, one_device
from aadml_jax.training.processes import (
    from_all_processes,
    largest_of_all_processes,
    require_agreement,
    rows_from_all_processes,
)
from aadml_jax.training.step import Batch

_Result = TypeVar("_Result")


@dataclasses.dataclass(frozen=True, eq=False)
class HeldData:
    """A data set as one process of a run has it.

    Attributes:
      train: the training rows of this process's devices, standardised, on the host; or all training
        rows where they are stored, to be streamed.
      test: the test rows of this process's devices, standardised.
      num_train: training rows of all processes.
      num_classes: C.
      test_labels: of all test rows, int32 [N], or multi-hot, bool [N, C].
      test_posteriors: of all test rows; see `RetrievalDataset`.
      standardization: the statistics of all training rows, or those that change nothing.
      description: what config.json records of the data.
    """

    train: Batch | StoredFeatures
    test: Batch
    num_train: int
    num_classes: int
    test_labels: np.ndarray
    test_posteriors: tuple[np.ndarray, np.ndarray] | None
    standardization: FeatureStandardization
    description: dict[str, Any]


def hold(
    dataset: RetrievalDataset,
    placement: Placement | None = None,
    *,
    standardized: bool = True,
    streamed: bool = False,
) -> HeldData:
    """Reads this process's share of the rows; every process must call this.

    Args:
      dataset: the data; features that are stored are read for these rows only.
      placement: over devices, which share the rows in order; default one.
      standardized: whether by the statistics of the training rows, or not at all.
      streamed: leave the training rows where they are stored.

    Raises:
      UserError: in every process, if one cannot read its rows, if they have different data, or if
        rows cannot be streamed.
    """
    placement = placement or one_device()
    if streamed and not (isinstance(dataset.train, StoredFeatures) and dataset.train.random_access):
        raise UserError(
            f"--input=stream reads data sets that were prepared for it, not {dataset.name}; write "
            "it with python -m experiments.prepare, which says how to train on it"
        )
    require_agreement(
        {
            f"the data of --dataset ({what})": value
            for what, value in (
                ("training labels", dataset.train.labels.tobytes()),
                ("test labels", dataset.test.labels.tobytes()),
                ("kind of labels", (dataset.is_multi_label, dataset.num_classes)),
                ("numbers of features", (dataset.audio_dim, dataset.visual_dim)),
                ("prepared facts", dataset.prepared and dataset.prepared.fingerprint),
            )
        },
        "give all of them the same data",
    )
    splits = {"train": dataset.train, "test": dataset.test}
    own = {name: placement.own_rows(len(split)) for name, split in splits.items()}
    counts = {name: rows.stop - rows.start for name, rows in own.items()}
    parts = {name: _part(split, own[name]) for name, split in splits.items()}
    # What is not streamed is read once and for all.
    for name in ("test",) if streamed else ("train", "test"):
        parts[name] = _agreed(lambda name=name: parts[name].take(slice(None)))
    fingerprint, statistics, num_shared = dataset.prepared or _measured(dataset, parts, counts)
    if not standardized:
        statistics = identity_standardization(dataset.audio_dim, dataset.visual_dim)

    def batch(name: str) -> Batch:
        features = standardize(parts[name], statistics)
        return Batch(*(getattr(features, field)[: counts[name]] for field in Batch._fields))

    return HeldData(
        train=dataset.train if streamed else _agreed(lambda: batch("train")),
        test=_agreed(lambda: batch("test")),
        num_train=len(dataset.train),
        num_classes=dataset.num_classes,
        test_labels=dataset.test.labels,
        test_posteriors=dataset.test_posteriors,
        standardization=statistics,
        description={
            "name": dataset.name,
            "source": dataset.source,
            "fingerprint": fingerprint,
            "train_rows": len(dataset.train),
            "test_rows": len(dataset.test),
            "shared_rows": num_shared,
            "num_classes": dataset.num_classes,
            "multi_label": dataset.is_multi_label,
            "audio_dim": dataset.audio_dim,
            "visual_dim": dataset.visual_dim,
        },
    )


def _part(
    features: PairedFeatures | StoredFeatures, rows: slice
) -> PairedFeatures | StoredFeatures:
    # Features are never empty: where no rows are due, one stands in, to be left out of all counts.
    return features.select(rows if rows.stop > rows.start else slice(0, 1))


def _measured(
    dataset: RetrievalDataset,
    parts: Mapping[str, PairedFeatures | StoredFeatures],
    counts: Mapping[str, int],
) -> PreparedFacts:
    """Facts of all rows, from the parts of all processes."""
    digests = _agreed(
        lambda: [parts[name].row_digests()[: counts[name]] for name in ("train", "test")]
    )

    def sum_over_all(compute: Sums) -> list[np.ndarray]:
        sums = _agreed(compute)
        if not counts["train"]:
            sums = [np.zeros_like(total) for total in sums]
        return [from_all_processes(total).sum(axis=0) for total in sums]

    digests = list(map(rows_from_all_processes, digests))
    return PreparedFacts(
        dataset.fingerprint_of(*digests),
        fit_standardization(parts["train"], len(dataset.train), sum_over_all),
        shared_rows(*digests),
    )


def _agreed(load: Callable[[], _Result]) -> _Result:
    """The result, if every process has one: a process that stopped alone would leave the others."""
    result, failure = None, None
    try:
        result = load()
    except UserError as error:
        failure = error
    if largest_of_all_processes(failure is not None):
        raise failure or UserError(
            "another process of this run cannot read its rows; its own message says why"
        )
    return result
