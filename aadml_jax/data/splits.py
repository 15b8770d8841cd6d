"""Other splits of a data set: stratified folds, and parts of the training rows.

Which rows fall where depends on the rows' numbers, their classes and the seed alone: rows are
ordered by a digest, whose value no library's version changes.
"""

import dataclasses
import hashlib
from collections.abc import Sequence

import numpy as np

from aadml_jax.data.paired_features import PairedFeatures, StoredFeatures
from aadml_jax.data.retrieval_dataset import RetrievalDataset
from aadml_jax.data.strata import representative_classes
from aadml_jax.errors import UserError

NUM_FOLDS = 5


def with_fold(dataset: RetrievalDataset, fold: int, *, seed: int = 0) -> RetrievalDataset:
    """Splits all rows anew into five folds, of which one is for testing.

    Each class is dealt to the folds in turn, so that the counts of a class differ by one row at
    most, and so do the sizes of the folds. A clip of several classes is dealt as one of the rarest
    of them.

    Args:
      dataset: Whose training and test rows, in this order, are put together.
      fold: Of the test rows, 0 to 4.
      seed: Of the order in which rows are dealt.

    Returns:
      The same rows, split by the fold; each split is in the order of the rows. Posteriors, which
      are known of the old test rows only, are left out.

    Raises:
      UserError: A class would be left without a training row.
      ValueError: There is no such fold.
    """
    if not 0 <= fold < NUM_FOLDS:
        raise ValueError(f"fold must be from 0 to {NUM_FOLDS - 1}, got {fold}")
    rows = _joined(dataset.train, dataset.test)
    is_test = stratified_folds(rows.labels, NUM_FOLDS, seed=seed) == fold
    if not is_test.any():
        raise UserError(f"fold {fold} of {len(rows)} rows is empty; use the data set's own split")
    train, test = (
        dataclasses.replace(
            rows.select(np.flatnonzero(chosen)),
            name=f"{split} rows of fold {fold} of {dataset.source}",
        )
        for split, chosen in (("training", ~is_test), ("test", is_test))
    )
    return dataclasses.replace(dataset, train=train, test=test, test_posteriors=None, prepared=None)


def with_test_group(
    dataset: RetrievalDataset,
    groups: np.ndarray,
    *,
    test_group: int,
    left_out: Sequence[int] = (),
) -> RetrievalDataset:
    """Splits all rows anew: one group for testing, the others for training.

    A group is what should not be on both sides, such as the speaker of a recording.

    Args:
      dataset: Whose training and test rows, in this order, are put together.
      groups: Of each row, int [N].
      test_group: Whose rows are tested on.
      left_out: Groups that are in neither split, such as the test group of a later report while
        settings are chosen.

    Returns:
      The rows, split by group; each split is in the order of the rows, without posteriors.

    Raises:
      UserError: A group has no rows, no group is left to train on, or a class would be left without
        a training row.
      ValueError: There is not one group a row, a group is a fraction or NaN, or the test group is
        left out.
    """
    if test_group in left_out:
        raise ValueError(f"test_group={test_group} is left out")
    rows, groups = _joined(dataset.train, dataset.test), np.asarray(groups)
    if groups.shape != (len(rows),):
        raise ValueError(f"groups must be [{len(rows)}], one a row; got {groups.shape}")
    if groups.dtype.kind == "f" and not (groups == np.floor(groups)).all():
        raise ValueError("groups must be whole numbers, got fractions or NaN")
    known = np.unique(groups)
    for group in (test_group, *left_out):
        if group not in known:
            raise UserError(
                f"no row of {dataset.source} is of group {group}; the groups are "
                f"{', '.join(map(str, known[:20].tolist()))}"
            )
    is_test = groups == test_group
    is_train = ~is_test & ~np.isin(groups, left_out)
    if not is_train.any():
        raise UserError(f"{dataset.source} has no group left to train on; leave out fewer")
    train, test = (
        dataclasses.replace(
            rows.select(np.flatnonzero(chosen)),
            name=f"{split} rows of {dataset.source}",
        )
        for split, chosen in (
            (f"group {_listed(groups[is_train])}: training", is_train),
            (f"group {test_group}: test", is_test),
        )
    )
    return dataclasses.replace(dataset, train=train, test=test, test_posteriors=None, prepared=None)


def _listed(groups: np.ndarray) -> str:
    return ", ".join(map(str, np.unique(groups).tolist()))


def with_train_fraction(
    dataset: RetrievalDataset, fraction: float, *, seed: int = 0
) -> RetrievalDataset:
    """Keeps the same part of the training rows of every class, for studies of scarce data.

    Each class keeps its rows times the fraction, rounded, and one at least; clips of several
    classes are counted as one of the rarest of them. A smaller fraction's rows are among those of
    a larger one.

    Args:
      dataset: Whose test rows stay.
      fraction: Above 0, at most 1.
      seed: Of the choice.

    Raises:
      ValueError: The fraction is out of range.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must be above 0 and at most 1, got {fraction}")
    if fraction == 1:
        return dataset
    rows = []
    for members in _class_members(dataset.train.labels, seed):
        rows.append(members[: max(1, int(np.floor(fraction * len(members) + 0.5)))])
    return dataclasses.replace(
        dataset, train=dataset.train.select(np.sort(np.concatenate(rows))), prepared=None
    )


def rows_in_shares_of(labels: np.ndarray, like: np.ndarray, *, seed: int = 0) -> np.ndarray:
    """Rows with as many of each class as another set has, or all of a class that has fewer.

    Args:
      labels: To choose from, int [N], or bool [N, C]; clips of several classes count as one of the
        rarest of them.
      like: Labels of the other set, of the same kind.
      seed: Of the choice.

    Returns:
      Row numbers in rising order.
    """
    classes = representative_classes(labels)
    wanted = dict(zip(*np.unique(representative_classes(like), return_counts=True), strict=True))
    chosen = [
        members[: wanted.get(classes[members[0]], 0)] for members in _class_members(labels, seed)
    ]
    return np.sort(np.concatenate(chosen))


def stratified_folds(labels: np.ndarray, num_folds: int, *, seed: int = 0) -> np.ndarray:
    """The fold of each row.

    Args:
      labels: int [N], or bool [N, C] where a clip has several classes.
      num_folds: K, at least 2.
      seed: Of the order in which rows are dealt.

    Returns:
      int [N], from 0 to K − 1.

    Raises:
      UserError: A label is neither a class number nor a multi-hot row.
      ValueError: There is but one fold.
    """
    if num_folds < 2:
        raise ValueError(f"num_folds must be at least 2, got {num_folds}")
    dealt = np.concatenate(_class_members(labels, seed))
    folds = np.empty(len(labels), np.int64)
    # Going on from class to class in turn keeps the folds' sizes even as well.
    folds[dealt] = np.arange(len(dealt)) % num_folds
    return folds


def keyed_order(keys: np.ndarray, *, seed: int) -> np.ndarray:
    """An order of non-negative numbers that looks random and is the same everywhere.

    Args:
      keys: Distinct integers [N].
      seed: Another one gives another order.

    Returns:
      Indices, int [N].
    """
    digests = np.array(
        [
            hashlib.blake2b(f"{seed} {key}".encode(), digest_size=8).digest()
            for key in np.asarray(keys).tolist()
        ],
        dtype="S8",
    )
    return np.argsort(digests.view(">u8"), kind="stable")


def _joined(
    first: PairedFeatures | StoredFeatures, second: PairedFeatures | StoredFeatures
) -> PairedFeatures | StoredFeatures:
    """The rows of both, one after the other."""
    labels = np.concatenate([first.labels, second.labels])
    if isinstance(first, PairedFeatures) and isinstance(second, PairedFeatures):
        audio, visual = (
            np.concatenate([getattr(part, name) for part in (first, second)])
            for name in ("audio", "visual")
        )
        return PairedFeatures(audio, visual, labels, name=f"{first.name} and {second.name}")

    def read(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        is_second = rows >= len(first)
        parts = [
            part.take(own)
            for part, own in ((first, rows[~is_second]), (second, rows[is_second] - len(first)))
            if len(own)
        ]
        audio, visual = (
            np.concatenate([getattr(part, name) for part in parts]) for name in ("audio", "visual")
        )
        return audio, visual

    return StoredFeatures(
        labels=labels,
        audio_dim=first.audio_dim,
        visual_dim=first.visual_dim,
        read=read,
        rows=np.arange(len(labels)),
        name=f"{first.name} and {second.name}",
        random_access=all(getattr(part, "random_access", True) for part in (first, second)),
    )


def _class_members(labels: np.ndarray, seed: int) -> list[np.ndarray]:
    """The rows of each class in a random order."""
    classes = representative_classes(labels)
    order = keyed_order(np.arange(len(labels)), seed=seed)
    by_class = order[np.argsort(classes[order], kind="stable")]
    _, counts = np.unique(classes, return_counts=True)
    return np.split(by_class, np.cumsum(counts)[:-1])
