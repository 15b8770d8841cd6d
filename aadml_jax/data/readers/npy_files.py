"""Arrays from .npy and .npz files, read without trusting what they announce.

NumPy's own reader allocates whatever shape a header states; here the size is compared with what the
file holds before anything is allocated, and objects are refused.
"""

import contextlib
import io
import math
import pathlib
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from typing import IO

import numpy as np

from aadml_jax._files import read_at_most, reading, require_readable_file
from aadml_jax.data.readers.file_kinds import (
    NPY,
    NPZ,
    START_BYTES,
    ZIP,
    first_bytes,
    require_no_other_kind,
)
from aadml_jax.errors import UserError, one_line

# What an array may hold, by the kinds of its dtype.
NUMBERS, NUMBERS_OR_BOOLS, TEXT, TEXT_OR_COUNTS = "iuf", "iufb", "U", "Uiu"

_WANTED = {
    NUMBERS: ("real numbers", "a float32 array"),
    NUMBERS_OR_BOOLS: ("class numbers or multi-hot rows", "an array of integers or bools"),
    TEXT: ("text", "an array of strings"),
    TEXT_OR_COUNTS: ("text or whole numbers", "an array of strings"),
}
_LARGEST_ARRAY_BYTES = 2**27
# NumPy's header, and more than it accepts.
_HEADER_BYTES = 2**14
# Of a shape in a message.
_LISTED_CHARACTERS = 80
_MOST_DIMENSIONS = 8
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)


def read_npy(path: pathlib.Path) -> np.ndarray:
    """The array of a .npy file, of any real dtype.

    Raises:
      UserError: The file can't be read, is damaged, or holds no numbers or too many.
    """
    size = require_readable_file(path, "a .npy file").st_size
    with reading(path), open(path, "rb") as file:
        return _read_array(file, size, str(path), kinds=NUMBERS, largest=_LARGEST_ARRAY_BYTES)


def read_npz(path: pathlib.Path, keys: tuple[str, ...]) -> tuple[np.ndarray, ...]:
    """The arrays under some keys of a .npz file, of any real dtype.

    Raises:
      UserError: As `read_npy`, or if a key is missing, stands twice, or is encrypted.
    """
    with _opened(path) as archive:
        return tuple(_read_member(archive, path, key) for key in keys)


def read_large_npz(path: pathlib.Path, kinds: Mapping[str, str]) -> dict[str, np.ndarray]:
    """The arrays of a .npz file of many clips, which may be as large as the file says.

    Args:
      path: Of the file.
      kinds: The keys to read if they are there, and for each `NUMBERS`, `NUMBERS_OR_BOOLS`, `TEXT`
        or `TEXT_OR_COUNTS`.

    Returns:
      The arrays by their keys, without those that are missing.

    Raises:
      UserError: The file can't be read or is damaged, or an array is of another kind or empty.
    """
    with _opened(path) as archive:
        there = {name.removesuffix(".npy") for name in archive.namelist()}
        return {
            key: _read_member(archive, path, key, kinds=kinds[key], largest=None)
            for key in kinds
            if key in there
        }


@contextlib.contextmanager
def _opened(path: pathlib.Path) -> Iterator[zipfile.ZipFile]:
    require_readable_file(path, "a .npz file")
    require_no_other_kind(str(path), first_bytes(path), "a .npz file", NPZ, ZIP)
    try:
        with reading(path), zipfile.ZipFile(path) as archive:
            yield archive
    except UserError:
        raise
    except Exception as error:  # zipfile raises errors of many kinds on damaged files
        raise UserError(f"{path} is damaged ({one_line(error)}); write it anew") from error


def _read_member(
    archive: zipfile.ZipFile,
    path: pathlib.Path,
    key: str,
    *,
    kinds: str = NUMBERS,
    largest: int | None = _LARGEST_ARRAY_BYTES,
) -> np.ndarray:
    entries = [entry for entry in archive.infolist() if entry.filename == f"{key}.npy"]
    if len(entries) != 1:
        there = ", ".join(name.removesuffix(".npy") for name in archive.namelist()[:10]) or "none"
        number = "stands several times" if entries else "is missing"
        raise UserError(f"{path}: key {key} {number} (keys there: {there}); write it anew")
    if entries[0].flag_bits & 1:
        raise UserError(f"{path}: key {key} is encrypted; write it anew without a password")
    if entries[0].compress_type not in _METHODS:
        raise UserError(
            f"{path}: key {key} is compressed by method {entries[0].compress_type} of zip, which "
            "is not read; write it anew by numpy.savez_compressed"
        )
    with archive.open(entries[0]) as file:
        array = _read_array(
            file,
            entries[0].file_size,
            f"{path}: {key}",
            kinds=kinds,
            largest=largest,
        )
        # Only at the end of the member its checksum is compared.
        file.read(1)
    return array


def _read_array(
    file: IO[bytes],
    size: int,
    what: str,
    *,
    kinds: str,
    largest: int | None,
) -> np.ndarray:
    """Reads an array of at most `largest` bytes from a file of `size` bytes."""
    content = read_at_most(file, size if largest is None else min(size, largest + _HEADER_BYTES))
    require_no_other_kind(what, bytes(content[:START_BYTES]), "a .npy array", NPY)
    # A header may announce four gigabytes of itself: of these first bytes no more is read.
    start = io.BytesIO(content[:_HEADER_BYTES])
    try:
        shape, is_fortran, dtype = _read_header(start)
    except Exception as error:  # a header is Python source, and may hold anything
        raise UserError(
            f"{what} is no sound .npy array ({one_line(error)}); write it anew"
        ) from error
    wanted, remedy = _WANTED[kinds]
    if dtype.hasobject:
        raise UserError(
            f"{what} must hold {wanted}, got dtype {dtype}: objects are pickled, and loading "
            f"them runs code; store {remedy}"
        )
    if dtype.kind not in kinds:
        raise UserError(f"{what} must hold {wanted}, got dtype {dtype}; store {remedy}")
    listed = str(shape)[:_LISTED_CHARACTERS]
    if 0 in shape:
        raise UserError(f"{what} is empty, shape {listed}; store a vector or a series of vectors")
    num_bytes = math.prod(shape) * dtype.itemsize
    held = size - start.tell()
    if num_bytes != held or min(shape, default=1) < 0:
        raise UserError(
            f"{what} announces shape {listed} of {dtype}, but {held} bytes follow; write it anew"
        )
    if largest is not None and num_bytes > largest:
        raise UserError(f"{what} holds {num_bytes:,} bytes; a clip may have {largest:,} at most")
    if len(shape) > _MOST_DIMENSIONS:
        raise UserError(f"{what} has {len(shape)} dimensions; store a vector or a series of them")
    values = memoryview(content)[start.tell() :]
    if len(values) != num_bytes:  # the file was cut, or its directory says more than is there
        raise UserError(f"{what} ends after {len(values)} of {num_bytes} bytes; write it anew")
    return np.frombuffer(values, dtype).reshape(shape, order="F" if is_fortran else "C")


def _read_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(file)
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get(version)
    if read is None:
        raise ValueError(f"version {version} of the format")
    with warnings.catch_warnings():
        # Headers of Python 2, which are sound, and source that Python finds odd.
        warnings.simplefilter("ignore")
        return read(file)
