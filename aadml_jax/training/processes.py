"""What the processes of a run tell each other; with one process, nothing.

Every function but `is_primary` must be called by all processes, in the same order.
"""

import hashlib
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.experimental import multihost_utils

from aadml_jax.errors import UserError


def is_primary() -> bool:
    """Whether this process is the one that writes and prints for all."""
    return jax.process_index() == 0


def largest_of_all_processes(number: int) -> int:
    """What all processes then agree on."""
    return int(from_all_processes(np.int32(number)).max())


def from_all_processes(array: np.ndarray) -> np.ndarray:
    """The arrays of all processes, of the same shape and dtype in each, stacked in their order."""
    array = np.asarray(array)
    if jax.process_count() == 1:
        return array[None]
    # As bytes, since JAX would round float64.
    content = np.frombuffer(array.tobytes(), np.uint8)
    gathered = np.asarray(multihost_utils.process_allgather(content))
    return gathered.reshape(-1).view(array.dtype).reshape(-1, *array.shape)


def from_primary(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The arrays of the primary process, in all; theirs must have the same shapes and dtypes."""
    arrays = [np.asarray(array) for array in arrays]
    if jax.process_count() == 1:
        return arrays
    content = np.frombuffer(b"".join(array.tobytes() for array in arrays), np.uint8)
    content = np.asarray(multihost_utils.broadcast_one_to_all(content)).astype(np.uint8)
    ends = np.cumsum([array.nbytes for array in arrays])
    return [
        part.copy().view(array.dtype).reshape(array.shape)
        for part, array in zip(np.split(content, ends[:-1]), arrays, strict=True)
    ]


def require_agreement(values: Mapping[str, object], remedy: str) -> None:
    """Checks that all processes of a run have the same values.

    Args:
      values: by the name that the message gives them, the same names in all processes.
      remedy: what to do if they differ.

    Raises:
      UserError: in every process, naming what differs.
    """
    if jax.process_count() == 1:
        return
    contents = (
        value if isinstance(value, bytes) else repr(value).encode() for value in values.values()
    )
    digests = [hashlib.blake2b(content, digest_size=8) for content in contents]
    own = np.frombuffer(b"".join(digest.digest() for digest in digests), np.uint64)
    differs = (from_all_processes(own) != from_primary([own])[0]).any(axis=0)
    for name, is_odd in zip(values, differs, strict=True):
        if is_odd:
            raise UserError(f"{name} differs between the processes of this run; {remedy}")


def rows_from_all_processes(rows: np.ndarray) -> np.ndarray:
    """The rows of all processes, [own, ...] in each, one after the other."""
    counts = from_all_processes(np.int64(len(rows)))
    filled = np.pad(rows, [(0, counts.max() - len(rows))] + [(0, 0)] * (rows.ndim - 1))
    gathered = from_all_processes(filled)
    return np.concatenate([part[:count] for part, count in zip(gathered, counts, strict=True)])
