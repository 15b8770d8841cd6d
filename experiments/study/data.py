"""Data of the study: whole groups held out, or generated.

A *draw* decides what is held out for validation, and which rows are trained on where only a part
is: other draws validate on other groups, or are other generated problems. No draw's screening sees
a row that any draw's test is on.
"""

import dataclasses

import numpy as np

from aadml_jax._files import local_path
from aadml_jax.data import (
    NUM_FOLDS,
    SYNTHETIC,
    RetrievalDataset,
    keyed_order,
    make_synthetic,
    open_dataset,
    open_hdf5,
    stratified_folds,
    with_test_group,
)
from aadml_jax.errors import UserError


def grouped_data(path: str, key: str, *, for_test: bool, draw: int = 0) -> RetrievalDataset:
    """The rows of a feature file, whole groups held out.

    Args:
      path: feature file with the keys KEY_train and KEY_test.
      key: of the groups.
      for_test: whether the last group is held out, for the test; if not, another one is, for
        validation, and the last is left out of both sides.
      draw: 0 validates on the group before the last, 1 on the one before that, and so on. The test
        is on the last group in every draw.

    Raises:
      UserError: if the file has no such groups, fewer than three, or none left for that draw.
    """
    dataset = open_dataset("features", features_file=path).loaded()
    with open_hdf5(local_path(path)) as file:
        groups = np.concatenate(
            [
                file.array(f"{key}_{split}", expected="name other groups with --group").rows()
                for split in ("train", "test")
            ]
        )
    if groups.shape != (len(dataset.train) + len(dataset.test),):
        raise UserError(
            f"{path}: {key}_train and {key}_test must hold a group a row, together shape "
            f"{(len(dataset.train) + len(dataset.test),)}, not {groups.shape}; store them so"
        )
    names = np.unique(groups).tolist()
    if len(names) < 3:
        raise UserError(
            f"{path} has the values {names} of {key}; three are needed, to train, to validate and "
            "to test; name another key with --group"
        )
    *others, last = names
    if for_test:
        return with_test_group(dataset, groups, test_group=last)
    if draw >= len(others):
        raise UserError(
            f"{path} has {len(others)} values of {key} to validate on besides that of the test; "
            f"with --data_by_seed choose at most --seeds={len(others)}"
        )
    return with_test_group(dataset, groups, test_group=others[-1 - draw], left_out=(last,))


def generated_data(*, for_test: bool, draw: int = 0) -> RetrievalDataset:
    """Generated data; for validation a fold of the training rows stands for the test rows.

    Args:
      for_test: whether the test rows are measured.
      draw: seed of the problem; 0 is the data set `synthetic`.
    """
    name = f"synthetic, seed {draw}" if draw else "synthetic"
    dataset = make_synthetic(dataclasses.replace(SYNTHETIC, seed=draw), name=name)
    if for_test:
        return dataset
    is_validation = stratified_folds(dataset.train.labels, NUM_FOLDS) == 0
    train, test = (
        dataset.train.take(np.flatnonzero(chosen)) for chosen in (~is_validation, is_validation)
    )
    return dataclasses.replace(dataset, train=train, test=test, test_posteriors=None)


def with_label_noise(dataset: RetrievalDataset, share: float, *, seed: int = 0) -> RetrievalDataset:
    """Gives a part of the training rows wrong classes; the rows that are measured keep theirs.

    Args:
      dataset: of one class a row.
      share: of the training rows, from 0 to below 1, rounded to whole rows; the other classes come
        in turn.
      seed: of the choice of rows.

    Returns:
      The data, with another fingerprint if a label changed.

    Raises:
      UserError: if the share is too small for a single row.
      ValueError: if the share is out of range, or rows have several classes.
    """
    train = dataset.train
    if not 0 <= share < 1 or train.labels.ndim != 1:
        raise ValueError(
            f"share must be from 0 to below 1 and labels one a row; got {share} and labels "
            f"{train.labels.shape}"
        )
    count = round(share * len(train))
    if share and not count:
        raise UserError(
            f"--label_noise={share:g} of {len(train)} training rows is none; choose a larger one"
        )
    chosen = keyed_order(np.arange(len(train)), seed=seed)[:count]
    labels = train.labels.copy()
    others = dataset.num_classes - 1
    labels[chosen] = (labels[chosen] + 1 + np.arange(count) % others) % dataset.num_classes
    return dataclasses.replace(
        dataset, train=dataclasses.replace(train, labels=labels), prepared=None
    )
