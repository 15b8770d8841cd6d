"""HDF5 files, opened and read with errors of one line that say what to do."""

import contextlib
import pathlib
from collections.abc import Iterator

import h5py
import numpy as np

from aadml_jax._files import require_readable_file
from aadml_jax.errors import UserError, one_line


@contextlib.contextmanager
def open_file(path: pathlib.Path) -> Iterator[h5py.File]:
    """Opens an HDF5 file for reading."""
    # HDF5 reports what is wrong with a path in a paragraph of its own.
    status = require_readable_file(path, "an HDF5 feature file")
    if not h5py.is_hdf5(path):
        raise UserError(
            f"{path} is not an HDF5 file ({status.st_size} bytes); fetch it again, a "
            "download link may have answered with a web page"
        )
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise UserError(
            f"{path} is damaged or in use ({one_line(error)}); fetch it again"
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
            f"{path}: {key} cannot be opened ({one_line(error)}); fetch the file again"
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
            f"{path}: {key} has a dtype unknown to NumPy ({one_line(error)}); store float32 "
            "features and integer labels"
        ) from error
    return node


def read_rows(dataset: h5py.Dataset, rows: slice, what: str) -> np.ndarray:
    """Reads a range of rows; damage that only shows here is reported with that range."""
    try:
        return dataset[rows]
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"{what}: rows {rows.start} to {rows.stop - 1} cannot be read ({one_line(error)}); "
            "the file is damaged, fetch it again"
        ) from error
