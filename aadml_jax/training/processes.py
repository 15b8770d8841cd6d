"""Collectives between the processes of a run; with one process they communicate nothing.

Every function but `is_primary` must be called by all processes, in the same order.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import jax
import numpy as np
import numpy.typing as npt
from jax.experimental import multihost_utils

from aadml_jax.errors import UserError

_Result = TypeVar("_Result")


def is_primary() -> bool:
    """Whether this process is the one that writes and prints for all."""
    return jax.process_index() == 0


def allreduce_max(number: int) -> int:
    """The largest of the numbers of all processes."""
    return int(allgather(np.int32(number)).max())


def allgather(array: npt.ArrayLike) -> np.ndarray:
    """Every process's array, [...] of one shape and dtype, stacked in process order: [P, ...]."""
    array = np.asarray(array)
    if jax.process_count() == 1:
        return array[None]
    # As bytes, since JAX would round float64.
    content = np.frombuffer(array.tobytes(), np.uint8)
    gathered = np.asarray(multihost_utils.process_allgather(content))
    return gathered.reshape(-1).view(array.dtype).reshape(-1, *array.shape)


def broadcast(arrays: Sequence[npt.ArrayLike]) -> list[np.ndarray]:
    """The primary process's arrays in every process; all pass the same shapes and dtypes."""
    own = [np.asarray(array) for array in arrays]
    if jax.process_count() == 1:
        return own
    content = np.frombuffer(b"".join(array.tobytes() for array in own), np.uint8)
    content = np.asarray(multihost_utils.broadcast_one_to_all(content)).astype(np.uint8)
    ends = np.cumsum([array.nbytes for array in own])
    return [
        part.copy().view(array.dtype).reshape(array.shape)
        for part, array in zip(np.split(content, ends[:-1]), own, strict=True)
    ]


def fail_together(load: Callable[[], _Result], failure_elsewhere: str) -> _Result:
    """The result of `load`, if every process has one.

    A process that stopped alone would leave the others waiting for it.

    Args:
      load: called once; what it returns is this process's own.
      failure_elsewhere: message where another process failed.

    Raises:
      UserError: in every process, if `load` raised one in any: its own where it failed.
    """
    try:
        result = load()
    except UserError:
        allreduce_max(True)
        raise
    if allreduce_max(False):
        raise UserError(failure_elsewhere)
    return result


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
    local = np.frombuffer(b"".join(digest.digest() for digest in digests), np.uint64)
    differs = (allgather(local) != broadcast([local])[0]).any(axis=0)
    for name, is_odd in zip(values, differs, strict=True):
        if is_odd:
            raise UserError(f"{name} differs between the processes of this run; {remedy}")


def allgather_rows(rows: np.ndarray) -> np.ndarray:
    """The local rows of all processes, [n, ...] with n of each its own, concatenated: [N, ...]."""
    counts = allgather(np.int64(len(rows)))
    filled = np.pad(rows, [(0, counts.max() - len(rows))] + [(0, 0)] * (rows.ndim - 1))
    gathered = allgather(filled)
    return np.concatenate([part[:count] for part, count in zip(gathered, counts, strict=True)])
