"""Embeddings as they come out of trained towers, for measurements of retrieval."""

import numpy as np

NUM_CLASSES = 10
_NOISE = 0.35


def make_clips(size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Embeddings of both modalities [N, 10], float32, and labels [N].

    The shares of the classes run from 0.05 to 0.15, so that chance is at 0.11, as on VEGAS.
    """
    rng = np.random.default_rng(0)
    shares = np.linspace(0.052, 0.148, NUM_CLASSES)
    labels = rng.choice(NUM_CLASSES, size, p=shares / shares.sum()).astype(np.int32)
    sides = np.eye(NUM_CLASSES)[labels] + _NOISE * rng.standard_normal((2, size, NUM_CLASSES))
    return *sides.astype(np.float32), labels
