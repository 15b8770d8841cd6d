"""HDF5 files, opened and read with errors of one line that say what to do."""

import contextlib
import os
import pathlib
from collections.abc import Iterator

import h5py
import numpy as np

from aadml_jax.errors import UserError


@contextlib.contextmanager
def open_file(path: pathlib.Path) -> Iterator[h5py.File]:
    """Opens an HDF5 file for reading."""
    # HDF5 reports each of these cases as "unable to open file" in a paragraph of its own.
    if os.path.isdir(path):
        raise UserError(f"{path} is a directory; give the HDF5 file itself")
    try:
        with open(path, "rb") as raw:
            raw.read(1)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; give the path of an HDF5 feature file") from None
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}); check its permissions"
        ) from error
    if not h5py.is_hdf5(path):
        raise UserError(
            f"{path} is not an HDF5 file ({path.stat().st_size} bytes); fetch it again, a "
            "download link may have answered with a web page"
        )
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise UserError(
            f"{path} is damaged or in use ({_one_line(error)}); fetch it again"
        ) from error
    with file:
        yield file


def array_of(file: h5py.File, path: pathlib.Path, key: str, *, expected: str) -> h5py.Dataset:
    """Looks up a key that must be an array with rows."""
    try:
        node = file[key]
    except KeyError:
        there = ", ".join(file) or "none"
        raise UserError(f"{path}: key {key} is missing (keys there: {there}); {expected}") from None
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"{path}: {key} cannot be opened ({_one_line(error)}); fetch the file again"
        ) from error
    if not isinstance(node, h5py.Dataset):
        raise UserError(f"{path}: {key} is a group; store an array under this key")
    if not node.shape or 0 in node.shape:
        raise UserError(
            f"{path}: {key} is empty or has no rows (shape {node.shape}); store one row per clip"
        )
    try:
        _ = node.dtype
    except TypeError as error:
        raise UserError(
            f"{path}: {key} has a dtype unknown to NumPy ({_one_line(error)}); store float32 "
            "features and integer labels"
        ) from error
    return node


def read_rows(dataset: h5py.Dataset, rows: slice, what: str) -> np.ndarray:
    """Reads a range of rows; damage that only shows here is reported with that range."""
    try:
        return dataset[rows]
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"{what}: rows {rows.start} to {rows.stop - 1} cannot be read ({_one_line(error)}); "
            "the file is damaged, fetch it again"
        ) from error


def _one_line(error: Exception) -> str:
    """The message of an HDF5 error, which may span lines."""
    return " ".join(str(error).split())
