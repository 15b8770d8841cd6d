"""The class that a clip counts for where rows are chosen or split by class."""

import numpy as np

from aadml_jax.data.validation import checked_labels
from aadml_jax.errors import UserError

# Of the copy of labels that is held at once.
_BLOCK_BYTES = 2**24


def representative_classes(labels: np.ndarray) -> np.ndarray:
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


def class_balanced_rows(labels: np.ndarray, max_rows: int, *, what: str) -> np.ndarray:
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
