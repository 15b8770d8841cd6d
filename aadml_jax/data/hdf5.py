"""HDF5 files, opened and read with errors of one line that say what to do."""

import contextlib
import itertools
import math
import pathlib
from collections.abc import Iterator

import h5py
import numpy as np

from aadml_jax._files import require_readable_file
from aadml_jax.errors import UserError, one_line

# Keys that a message lists.
_LISTED_KEYS = 20
# A file may declare an array of any size without storing it; reading it would make up the values,
# and take their memory. Deflate makes 1,032 times less of data at best.
_MOST_COMPRESSION = 1100
_ALWAYS_ALLOWED_BYTES = 16 * 2**20
_LARGEST_ROW_BYTES = 2**28
_LARGEST_CHUNK_BYTES = 2**30


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
    try:
        with file:
            yield file
    except (OSError, RuntimeError, MemoryError) as error:  # wherever the library meets damage
        raise UserError(f"{path} is damaged ({one_line(error)}); fetch it again") from error


def array_of(file: h5py.File, path: pathlib.Path, key: str, *, expected: str) -> h5py.Dataset:
    """Looks up a key that must be an array with rows, stored in this file."""
    try:
        if isinstance(file.get(key, getlink=True), h5py.ExternalLink):
            raise UserError(
                f"{path}: {key} is a link to another file; store the array itself under this key"
            )
        node = file[key]
    except KeyError:
        there = ", ".join(map(str, itertools.islice(file, _LISTED_KEYS))) or "none"
        if len(file) > _LISTED_KEYS:
            there += f", … ({len(file)} in all)"
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
    except (TypeError, ValueError) as error:
        raise UserError(
            f"{path}: {key} has a dtype unknown to NumPy ({one_line(error)}); store float32 "
            "features and integer labels"
        ) from error
    _require_stored(node, f"{path}: {key}")
    return node


def _require_stored(array: h5py.Dataset, what: str) -> None:
    """Refuses arrays of which less is there than they declare, before they are read."""
    if array.is_virtual or array.external:
        raise UserError(f"{what} is a view of other files; store the array itself under this key")
    declared = math.prod(array.shape) * array.dtype.itemsize
    held = array.id.get_storage_size()
    if declared > _MOST_COMPRESSION * held + _ALWAYS_ALLOWED_BYTES:
        raise UserError(
            f"{what} declares an array of shape {array.shape}, {declared:,} bytes, but the file "
            f"holds {held:,} bytes of it; write the file anew"
        )
    row_bytes = math.prod(array.shape[1:]) * array.dtype.itemsize
    if row_bytes > _LARGEST_ROW_BYTES:
        raise UserError(
            f"{what} has shape {array.shape}, {row_bytes:,} bytes in each row; a clip may have "
            f"{_LARGEST_ROW_BYTES:,} at most"
        )
    # Read, a chunk is held as a whole, however few of its rows there are.
    chunk_bytes = math.prod(array.chunks or (0,)) * array.dtype.itemsize
    if chunk_bytes > _LARGEST_CHUNK_BYTES:
        raise UserError(
            f"{what} is stored in chunks of {chunk_bytes:,} bytes; {_LARGEST_CHUNK_BYTES:,} at "
            "most are read, write the file anew"
        )


def read_rows(dataset: h5py.Dataset, rows: slice, what: str) -> np.ndarray:
    """Reads a range of rows; damage that only shows here is reported with that range."""
    try:
        return dataset[rows]
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"{what}: rows {rows.start} to {rows.stop - 1} cannot be read ({one_line(error)}); "
            "the file is damaged, fetch it again"
        ) from error
