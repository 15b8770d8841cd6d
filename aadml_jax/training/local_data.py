"""The local rows of a data set, those of a process's own devices, and facts about all rows."""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from aadml_jax.data import (
    LARGEST_DEVIATION,
    FeatureStandardization,
    PairedFeatures,
    PreparedFacts,
    RetrievalDataset,
    StoredFeatures,
    Sums,
    identity_standardization,
    measure_standardization,
    shared_rows,
    standardize,
)
from aadml_jax.errors import UserError
from aadml_jax.training.parallel import Placement, one_device
from aadml_jax.training.processes import (
    allgather,
    allgather_rows,
    allreduce_max,
    fail_together,
    require_agreement,
)
from aadml_jax.training.step import Batch

_FAILED_ELSEWHERE = "another process of this run cannot read its rows; its own message says why"
# Columns that a message names.
_LISTED_COLUMNS = 8


@dataclasses.dataclass(frozen=True, eq=False)
class LocalData:
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
      limit: of standardised values; None if there is none.
      description: what config.json records of the data.
    """

    train: Batch | StoredFeatures
    test: Batch
    num_train: int
    num_classes: int
    test_labels: np.ndarray
    test_posteriors: tuple[np.ndarray, np.ndarray] | None
    standardization: FeatureStandardization
    limit: float | None
    description: dict[str, Any]


def load_local_data(
    dataset: RetrievalDataset,
    placement: Placement | None = None,
    *,
    standardized: bool = True,
    streamed: bool = False,
) -> LocalData:
    """Reads this process's local rows; every process must call this.

    Args:
      dataset: the data; features that are stored are read for these rows only.
      placement: the devices over which the rows are sharded, in order; default one.
      standardized: whether by the statistics of the training rows, or not at all.
      streamed: leave the training rows where they are stored.

    Raises:
      UserError: in every process, if one cannot read its rows, if they have different data, or if
        rows cannot be streamed.
    """
    placement = placement or one_device()
    stream = _streamable(dataset) if streamed else None
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
    # 10 rows over 4 devices are shards of 3, the last one padded: a process with the first two
    # devices has the local rows 0 to 5, one with the other two 6 to 9. What is measured here counts
    # each row once, so the padding is left to `Placement.shard`.
    splits = {"train": dataset.train, "test": dataset.test}
    local = {name: placement.local_rows(len(split)) for name, split in splits.items()}
    counts = {name: rows.stop - rows.start for name, rows in local.items()}
    parts = {name: _part(split, local[name]) for name, split in splits.items()}

    def taken(name: str) -> PairedFeatures:
        return parts[name].take(slice(None))

    # What is not streamed is read once and for all.
    read = {
        name: fail_together(functools.partial(taken, name), _FAILED_ELSEWHERE)
        for name in ("train", "test")
        if stream is None or name == "test"
    }
    facts = dataset.prepared or _measured(dataset, {**parts, **read}, counts)
    statistics, limit = facts.standardization, facts.limit
    if not standardized:
        statistics = identity_standardization(dataset.audio_dim, dataset.visual_dim)
        limit = None

    def batch(name: str) -> Batch:
        features = standardize(read[name], statistics, limit=limit)
        return Batch(*(getattr(features, field)[: counts[name]] for field in Batch._fields))

    train = stream or fail_together(lambda: batch("train"), _FAILED_ELSEWHERE)
    test = fail_together(lambda: batch("test"), _FAILED_ELSEWHERE)
    description = None if not standardized else _described(facts, train, test, limit)
    return LocalData(
        train=train,
        test=test,
        num_train=len(dataset.train),
        num_classes=dataset.num_classes,
        test_labels=dataset.test.labels,
        test_posteriors=dataset.test_posteriors,
        standardization=statistics,
        limit=limit,
        description={
            "name": dataset.name,
            "source": dataset.source,
            "fingerprint": facts.fingerprint,
            "train_rows": len(dataset.train),
            "test_rows": len(dataset.test),
            "shared_rows": facts.shared_rows,
            "num_classes": dataset.num_classes,
            "class_names": list(dataset.class_names),
            "multi_label": dataset.is_multi_label,
            "audio_dim": dataset.audio_dim,
            "visual_dim": dataset.visual_dim,
            "standardization": description,
        },
    )


def _streamable(dataset: RetrievalDataset) -> StoredFeatures:
    train = dataset.train
    if not (isinstance(train, StoredFeatures) and train.random_access):
        raise UserError(
            f"--input=stream reads data sets that were prepared for it, not {dataset.name}; write "
            "it with python -m experiments.prepare, which says how to train on it"
        )
    return train


def _described(
    facts: PreparedFacts, train: Batch | StoredFeatures, test: Batch, limit: float | None
) -> dict[str, Any]:
    """What a run records of its standardisation."""
    is_limited: bool | None = False
    if limit is not None:
        is_limited = any(
            bool((np.abs(features) == limit).any())
            for batch in (train, test)
            if isinstance(batch, Batch)
            for features in (batch.audio, batch.visual)
        )
        is_limited = bool(allreduce_max(is_limited))
        if not is_limited and isinstance(train, StoredFeatures):
            is_limited = None  # of rows that are streamed it is not known
    constant = {}
    for name, columns in zip(("audio", "visual"), facts.nearly_constant, strict=True):
        scale = getattr(facts.standardization, f"{name}_scale")
        constant[name] = int((scale == 0).sum()) - len(columns)
    return {
        "limit": limit,
        "is_limited": is_limited,
        "constant": constant,
        "nearly_constant": dict(
            zip(("audio", "visual"), map(list, facts.nearly_constant), strict=True)
        ),
    }


def recorded_limit(description: Mapping[str, Any]) -> float | None:
    """The limit of standardised values that a run's description of its data records.

    Runs of earlier versions record none, and had none.
    """
    recorded = description.get("standardization")
    return None if recorded is None else recorded["limit"]


def is_standardization_described(recorded: Any) -> bool:
    """Whether what a run recorded of its standardisation can be right; None is no record."""
    if recorded is None:
        return True

    def are_counts(values: Any) -> bool:
        return all(type(value) is int and value >= 0 for value in values)

    try:
        limit, constant = recorded["limit"], recorded["constant"]
        columns = recorded["nearly_constant"]
        return (
            (limit is None or (type(limit) in (int, float) and 0 < limit < math.inf))
            and are_counts([constant["audio"], constant["visual"]])
            and all(isinstance(columns[name], list) for name in ("audio", "visual"))
            and are_counts([*columns["audio"], *columns["visual"]])
        )
    except (KeyError, TypeError):
        return False


def is_standardized_alike(recorded: Mapping[str, Any], description: Mapping[str, Any]) -> bool:
    """Whether the rows of a run are standardised as when it was begun.

    A run of an earlier version records nothing of it: then nothing was left out and nothing was
    limited.

    Args:
      recorded: the description of the data that the run recorded, of the same rows.
      description: of the data as they are held now.
    """
    now = description["standardization"]
    if "standardization" not in recorded:
        return now is None or (
            now["is_limited"] is False
            and not any(now["constant"].values())
            and not any(now["nearly_constant"].values())
        )
    then = recorded["standardization"]
    if now is None or then is None:
        return now is then
    return all(then[key] == now[key] for key in ("limit", "constant", "nearly_constant"))


def nearly_constant_in_words(description: Mapping[str, Any]) -> str | None:
    """Names the features that were left out for they are nearly constant; None if there are none.

    Args:
      description: of the data, as `LocalData` has it.
    """
    recorded = description["standardization"]
    parts = []
    for name, columns in (recorded or {"nearly_constant": {}})["nearly_constant"].items():
        if columns:
            listed = ", ".join(map(str, columns[:_LISTED_COLUMNS]))
            more = ", …" if len(columns) > _LISTED_COLUMNS else ""
            parts.append(
                f"{len(columns)} of the {description[f'{name}_dim']} {name} features "
                f"(column{'s' * (len(columns) > 1)} {listed}{more})"
            )
    return " and ".join(parts) or None


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
    digests = fail_together(
        lambda: [parts[name].row_digests()[: counts[name]] for name in ("train", "test")],
        _FAILED_ELSEWHERE,
    )

    def sum_over_all(compute: Sums) -> list[np.ndarray]:
        sums = fail_together(compute, _FAILED_ELSEWHERE)
        if not counts["train"]:
            sums = [np.zeros_like(total) for total in sums]
        return [allgather(total).sum(axis=0) for total in sums]

    digests = list(map(allgather_rows, digests))
    measured = measure_standardization(parts["train"], len(dataset.train), sum_over_all)
    return PreparedFacts(
        dataset.fingerprint_of(*digests),
        measured.statistics,
        shared_rows(*digests),
        measured.nearly_constant,
        LARGEST_DEVIATION,
    )
