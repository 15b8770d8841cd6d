"""HDF5 files, opened and read with errors of one line that say what to do."""

import contextlib
import errno
import importlib
import itertools
import math
import pathlib
import re
from collections.abc import Iterator

import h5py
import numpy as np

from aadml_jax._files import require_readable_file, system_refusal
from aadml_jax.data.readers.file_kinds import first_bytes, kind_of
from aadml_jax.errors import UserError, one_line

# Keys that a message lists.
_LISTED_KEYS = 20
# A file may declare an array of any size without storing it; reading it would make up the values,
# and take their memory. Deflate makes 1,032 times less of data at best.
_MOST_COMPRESSION = 1100
_ALWAYS_ALLOWED_BYTES = 16 * 2**20
_LARGEST_ROW_BYTES = 2**28
_LARGEST_CHUNK_BYTES = 2**30


# The registered filters that circulate, https://github.com/HDFGroup/hdf5_plugins.
_FILTERS = {
    4: "SZIP",
    305: "LZO",
    307: "bzip2",
    32000: "LZF",
    32001: "Blosc",
    32003: "Snappy",
    32004: "LZ4",
    32008: "bitshuffle",
    32013: "ZFP",
    32014: "FPZIP",
    32015: "Zstandard",
    32017: "SZ",
    32018: "FCIDECOMP",
    32024: "SZ3",
    32026: "Blosc2",
    32028: "SPERR",
}
# Those that the package hdf5plugin brings along.
_OF_HDF5PLUGIN = {307, 32001, 32004, 32008, 32013, 32015, 32017, 32018, 32024, 32026, 32028}
# What a file system says that knows no locks.
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}


class StoredArray:
    """An array of an open file, read in ranges of rows.

    Attributes:
      path: of the file.
      key: under which the array is stored.
      what: the name of the array in messages.
      shape: of the array, with rows first; no axis is empty.
      dtype: as stored.
    """

    def __init__(self, dataset: h5py.Dataset, path: pathlib.Path, key: str):
        self._dataset = dataset
        self.path, self.key, self.what = path, key, f"{path}: {key}"
        self.shape: tuple[int, ...] = dataset.shape
        self.dtype: np.dtype = dataset.dtype

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def is_text(self) -> bool:
        """Whether the values are strings."""
        return h5py.check_string_dtype(self.dtype) is not None

    def rows(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """The rows from `start` to before `stop`, or to the end.

        Raises:
          UserError: if they cannot be read; damage that only shows here is reported with the range.
        """
        stop = len(self) if stop is None else stop
        # A filter that is missing may be optional and not have been applied: so reading is tried.
        missing = _missing_filters(self._dataset)
        try:
            return self._dataset[start:stop]
        except (OSError, RuntimeError) as error:
            if missing:
                raise _filter_refusal(missing, self.what) from error
            if (number := _system_error(error)) is not None:
                raise system_refusal(self.what, number) from error
            raise UserError(
                f"{self.what}: rows {start} to {stop - 1} cannot be read ({one_line(error)}); "
                "the file is damaged, fetch it again"
            ) from error


class OpenFile:
    """An HDF5 file that is open for reading."""

    def __init__(self, file: h5py.File, path: pathlib.Path):
        self._file = file
        self.path = path

    def __contains__(self, key: str) -> bool:
        return key in self._file

    def array(self, key: str, *, expected: str) -> StoredArray:
        """The array under a key, which must have rows and be stored in this file.

        Args:
          key: of the array.
          expected: what the message says if the key is missing.

        Raises:
          UserError: if there is no such array, or less of it than it declares.
        """
        what = f"{self.path}: {key}"
        try:
            if isinstance(self._file.get(key, getlink=True), h5py.ExternalLink):
                raise UserError(
                    f"{what} is a link to another file; store the array itself under this key"
                )
            node = self._file[key]
        except KeyError:
            there = ", ".join(map(str, itertools.islice(self._file, _LISTED_KEYS))) or "none"
            if len(self._file) > _LISTED_KEYS:
                there += f", … ({len(self._file)} in all)"
            raise UserError(
                f"{self.path}: key {key} is missing (keys there: {there}); {expected}"
            ) from None
        except (OSError, RuntimeError) as error:
            if (number := _system_error(error)) is not None:
                raise system_refusal(what, number) from error
            raise UserError(
                f"{what} cannot be opened ({one_line(error)}); fetch the file again"
            ) from error
        if not isinstance(node, h5py.Dataset):
            raise UserError(f"{what} is a group; store an array under this key")
        if not node.shape or 0 in node.shape:
            raise UserError(
                f"{what} is empty or has no rows (shape {node.shape}); store one row per clip"
            )
        try:
            _ = node.dtype
        except (TypeError, ValueError) as error:
            raise UserError(
                f"{what} has a dtype unknown to NumPy ({one_line(error)}); store float32 "
                "features and integer labels"
            ) from error
        _require_stored(node, what)
        return StoredArray(node, self.path, key)


@contextlib.contextmanager
def open_hdf5(path: pathlib.Path) -> Iterator[OpenFile]:
    """Opens an HDF5 file for reading.

    Raises:
      UserError: if it cannot be read, is of another format, in use by a writer, or damaged.
    """
    # HDF5 reports what is wrong with a path in a paragraph of its own.
    status = require_readable_file(path, "an HDF5 feature file")
    if not h5py.is_hdf5(path):
        raise _not_hdf5(path, status.st_size)
    try:
        file = _opened(path)
    except (OSError, RuntimeError, MemoryError) as error:
        raise _refusal(path, error) from error
    try:
        with file:
            yield OpenFile(file, path)
    except (OSError, RuntimeError, MemoryError) as error:  # wherever the library meets damage
        raise _refusal(path, error) from error


def _opened(path: pathlib.Path) -> h5py.File:
    try:
        return h5py.File(path, "r")
    except OSError as error:
        if "unable to lock file" not in str(error) or _system_error(error) not in _NO_LOCKS:
            raise
    # Nobody can hold a lock on such a file system, so reading without one loses nothing.
    return h5py.File(path, "r", locking=False)


def _not_hdf5(path: pathlib.Path, size: int) -> UserError:
    """What a file without HDF5's signature is, and how it becomes one that has it."""
    kind = kind_of(first_bytes(path))
    if kind is None:
        return UserError(
            f"{path} is not an HDF5 file ({size} bytes), nor of another known format; give a "
            "feature file, or fetch it again if it was one"
        )
    remedy = kind.remedy or kind.to_hdf5 or "give a feature file"
    return UserError(f"{path} is not an HDF5 file ({size} bytes) but {kind.name}; {remedy}")


def _system_error(error: BaseException) -> int | None:
    """The operating system's number of an error, which HDF5 passes on within its text."""
    found = re.search(r"errno = (\d+)", str(error))
    return int(found[1]) if found else getattr(error, "errno", None)


def _refusal(path: pathlib.Path, error: BaseException) -> UserError:
    """What to say of a file that HDF5 does not read."""
    text, number = str(error), _system_error(error)
    if isinstance(error, MemoryError):
        return system_refusal(path, errno.ENOMEM)
    if "unable to lock file" in text and number in (errno.EAGAIN, errno.EACCES):
        return UserError(
            f"{path} is in use by another program that writes it; wait for it, or set "
            "HDF5_USE_FILE_LOCKING=FALSE if it only holds the file open"
        )
    if "already open for write" in text:
        return UserError(
            f"{path} was not closed by the program that wrote it; wait for it, or run h5clear -s "
            f"{path} if it was killed"
        )
    if "superblock version" in text:
        return UserError(
            f"{path} has a superblock that HDF5 {h5py.version.hdf5_version} does not know; update "
            "h5py if a newer one wrote the file, or fetch it again"
        )
    if number is not None:
        return system_refusal(path, number)
    return UserError(f"{path} is damaged ({one_line(error)}); fetch it again")


def _missing_filters(array: h5py.Dataset) -> list[int]:
    """Numbers of the filters of an array that are not there, once hdf5plugin was looked for."""
    properties = array.id.get_create_plist()
    numbers = [properties.get_filter(place)[0] for place in range(properties.get_nfilters())]
    missing = [number for number in numbers if not h5py.h5z.filter_avail(number)]
    if missing:
        # Registers its filters where it is installed.
        with contextlib.suppress(ImportError):
            importlib.import_module("hdf5plugin")
    return [number for number in missing if not h5py.h5z.filter_avail(number)]


def _filter_refusal(missing: list[int], what: str) -> UserError:
    """What to say of an array whose compression cannot be undone."""
    named = ", ".join(f"{number} ({_FILTERS.get(number, 'unknown')})" for number in missing)
    install = "run pip install hdf5plugin, or " if set(missing) <= _OF_HDF5PLUGIN else ""
    return UserError(
        f"{what} is compressed by the filter {named}, which is not installed; {install}write the "
        "file anew with gzip where that filter is"
    )


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
