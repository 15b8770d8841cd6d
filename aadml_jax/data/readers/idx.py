"""Arrays in IDX files, the format of MNIST, plain or compressed by gzip."""

import gzip
import math
import os
import zlib

import numpy as np

from aadml_jax._files import local_path, read_at_most, reading, require_readable_file
from aadml_jax.data.readers.file_kinds import GZIP, START_BYTES, first_bytes, kind_of
from aadml_jax.errors import UserError, one_line

_UNSIGNED_BYTE = 8
_LARGEST_BYTES = 2**28


def read_idx(path: str | os.PathLike[str], *, num_dimensions: int) -> np.ndarray:
    """Reads an IDX file of unsigned bytes.

    The file begins with two zeros, the code 8 of the type and the number of dimensions, a byte
    each; the dimensions follow as big-endian 32-bit numbers, then the values.

    Args:
      path: Of the file.
      num_dimensions: That the array must have.

    Returns:
      uint8, of the shape that the file states.

    Raises:
      UserError: The file can't be read, is damaged, or holds another type or rank.
    """
    path = local_path(path)
    require_readable_file(path, "an IDX file")
    try:
        start = first_bytes(path)
        is_compressed = kind_of(start) is GZIP
        with reading(path), gzip.open(path) if is_compressed else open(path, "rb") as file:
            magic = file.read(4)
            if magic != bytes([0, 0, _UNSIGNED_BYTE, num_dimensions]):
                kind = kind_of(magic + file.read(START_BYTES - 4))
                found = f"{kind.name} that begins" if kind else "it begins"
                remedy = (kind and kind.remedy) or (
                    "give the file of that kind" if kind else "fetch it again"
                )
                raise UserError(
                    f"{path} is no IDX file of unsigned bytes in {num_dimensions} dimensions "
                    f"({found} with {magic.hex(' ') or 'nothing'}); {remedy}"
                )
            header = file.read(4 * num_dimensions)
            if len(header) != 4 * num_dimensions:
                raise UserError(f"{path} ends within its header; fetch it again")
            shape = tuple(map(int, np.frombuffer(header, ">u4")))
            size = math.prod(shape)
            if not 0 < size <= _LARGEST_BYTES:
                raise UserError(
                    f"{path} announces an array of shape {shape}; from 1 to {_LARGEST_BYTES:,} "
                    "values are expected; fetch it again"
                )
            # A file may announce more than it holds: what is there decides how much is kept.
            values = read_at_most(file, size + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} is damaged ({one_line(error)}); fetch it again") from error
    if len(values) != size:
        more = "more" if len(values) > size else len(values)
        raise UserError(f"{path} announces {size} values and holds {more}; fetch it again")
    return np.frombuffer(values, np.uint8).reshape(shape)
