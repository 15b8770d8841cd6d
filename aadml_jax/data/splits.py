"""Other splits of a data set: stratified folds, parts of the training rows, balanced subsets.

Which rows fall where depends on the rows' numbers, their classes and the seed alone: rows are
ordered by a digest, whose value no library's version changes.
"""

import dataclasses
import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from aadml_jax.data.paired_features import PairedFeatures, StoredFeatures
from aadml_jax.data.retrieval_dataset import RetrievalDataset
from aadml_jax.data.validation import checked_labels
from aadml_jax.errors import UserError

NUM_FOLDS = 5

# Of the copy of labels that is held at once.
_BLOCK_BYTES = 2**24


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
    rows = _concatenated(dataset.train, dataset.test)
    is_test = stratified_folds(rows.labels, NUM_FOLDS, seed=seed) == fold
    if not is_test.any():
        raise UserError(f"fold {fold} of {len(rows)} rows is empty; use the data set's own split")
    of_fold = f"fold {fold} of {dataset.source}"
    return _with_splits(
        dataset,
        rows,
        (~is_test, f"training rows of {of_fold}"),
        (is_test, f"test rows of {of_fold}"),
    )


def with_test_group(
    dataset: RetrievalDataset,
    groups: npt.ArrayLike,
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
    rows, groups = _concatenated(dataset.train, dataset.test), np.asarray(groups)
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
    train_groups = ", ".join(map(str, np.unique(groups[is_train]).tolist()))
    return _with_splits(
        dataset,
        rows,
        (is_train, f"group {train_groups}: training rows of {dataset.source}"),
        (is_test, f"group {test_group}: test rows of {dataset.source}"),
    )


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


def with_class_balanced_rows(
    dataset: RetrievalDataset, max_train: int, max_test: int
) -> RetrievalDataset:
    """Keeps the first rows of each class of either split, with their posteriors.

    Args:
      dataset: to choose from.
      max_train: most training rows to keep.
      max_test: most test rows to keep.

    Raises:
      UserError: if a class would be left without a row.
    """
    train_rows, test_rows = (
        class_balanced_rows(split.labels, max_rows, what=split.name)
        for split, max_rows in ((dataset.train, max_train), (dataset.test, max_test))
    )
    posteriors = dataset.test_posteriors and tuple(p[test_rows] for p in dataset.test_posteriors)
    return dataclasses.replace(
        dataset,
        train=dataset.train.select(train_rows),
        test=dataset.test.select(test_rows),
        test_posteriors=posteriors,
        prepared=None,
    )


def representative_classes(labels: npt.ArrayLike) -> np.ndarray:
    """One class for each clip: its own, or the rarest of several.

    The rarest is that with the fewest of these rows, the lowest number among equals. So a rare
    class keeps the few clips it has, however frequent their other classes are.

    Args:
      labels: Class numbers from 0, [N], or multi-hot rows of 0 and 1, [N, C], with a class in each.

    Returns:
      int32 [N].

    Raises:
      UserError: A label is neither.
    """
    labels = checked_labels(labels, what="labels")
    if labels.ndim == 1:
        return labels
    rarest_first = np.argsort(labels.sum(axis=0), kind="stable").astype(np.int32)
    block_rows = max(1, _BLOCK_BYTES // labels.shape[1])
    firsts = [
        np.argmax(labels[start : start + block_rows, rarest_first], axis=1)
        for start in range(0, len(labels), block_rows)
    ]
    return rarest_first[np.concatenate(firsts)]


def class_balanced_rows(labels: npt.ArrayLike, max_rows: int, *, what: str) -> np.ndarray:
    """The first rows of each class, for a smoke run.

    Rows are dealt to the classes in turn, each taking its next row in file order, until `max_rows`
    are dealt: counts differ by one at most, except where a class has no more rows. A clip of
    several classes counts for its representative one, see `representative_classes`.

    Args:
      labels: Class numbers, integers [N], or multi-hot, bool [N, C].
      max_rows: Most rows to keep.
      what: What the message calls these rows.

    Returns:
      The chosen row numbers in file order; all of them if there are no more than `max_rows`.

    Raises:
      UserError: `max_rows` leaves a class without a row.
    """
    labels = representative_classes(labels)
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


def rows_with_class_counts_of(
    labels: npt.ArrayLike, like: npt.ArrayLike, *, seed: int = 0
) -> np.ndarray:
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


def stratified_folds(labels: npt.ArrayLike, num_folds: int, *, seed: int = 0) -> np.ndarray:
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
    folds = np.empty(len(dealt), np.int64)
    # Going on from class to class in turn keeps the folds' sizes even as well.
    folds[dealt] = np.arange(len(dealt)) % num_folds
    return folds


def keyed_order(keys: npt.ArrayLike, *, seed: int) -> np.ndarray:
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


def _concatenated(
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


def _with_splits(
    dataset: RetrievalDataset,
    rows: PairedFeatures | StoredFeatures,
    train: tuple[np.ndarray, str],
    test: tuple[np.ndarray, str],
) -> RetrievalDataset:
    """The data set with other splits, each a mask of `rows` and a name.

    What is known of the old splits, their posteriors and measured facts, is left out.
    """
    train_rows, test_rows = (
        dataclasses.replace(rows.select(np.flatnonzero(mask)), name=name)
        for mask, name in (train, test)
    )
    return dataclasses.replace(
        dataset, train=train_rows, test=test_rows, test_posteriors=None, prepared=None
    )


def _class_members(labels: npt.ArrayLike, seed: int) -> list[np.ndarray]:
    """The rows of each class in a random order."""
    classes = representative_classes(labels)
    order = keyed_order(np.arange(len(classes)), seed=seed)
    by_class = order[np.argsort(classes[order], kind="stable")]
    _, counts = np.unique(classes, return_counts=True)
    return np.split(by_class, np.cumsum(counts)[:-1])
