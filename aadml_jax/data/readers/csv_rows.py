"""Rows of CSV files, read without trusting that they are some."""

import csv
import pathlib
from collections.abc import Iterator
from typing import IO

from aadml_jax._files import reading, require_readable_file
from aadml_jax.data.readers.file_kinds import EMPTY, ZEROS, first_bytes, kind_of
from aadml_jax.errors import UserError, one_line

_LONGEST_LINE = 2**20


def csv_rows(path: pathlib.Path, what: str) -> Iterator[tuple[int, list[str]]]:
    """The rows of a CSV file, each with the number of the line it ends on.

    Args:
      path: Of the file.
      what: What it should be, such as "a CSV list of clips".

    Raises:
      UserError: The file can't be read, or is no CSV file.
    """
    require_readable_file(path, what)
    kind = kind_of(first_bytes(path))
    if kind is not None and not kind.is_text and kind not in (EMPTY, ZEROS):
        raise UserError(
            f"{path} is {kind.name}, not UTF-8 text with commas between; "
            f"{kind.remedy or f'give {what}'}"
        )
    with reading(path), open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(_lines(file, path), strict=True)
        try:
            for cells in reader:
                yield reader.line_num, cells
        except UnicodeDecodeError as error:
            raise UserError(
                f"{path} is not UTF-8 text ({one_line(error)}); save it as such"
            ) from error
        except csv.Error as error:
            raise UserError(
                f"{path}, line {reader.line_num}: {one_line(error)}; close quotes, or write it anew"
            ) from error


def _lines(file: IO[str], path: pathlib.Path) -> Iterator[str]:
    """Lines of bounded length."""
    while line := file.readline(_LONGEST_LINE):
        if len(line) == _LONGEST_LINE:
            raise UserError(
                f"{path} holds a line of over {_LONGEST_LINE:,} characters; is it a CSV?"
            )
        if "\0" in line:
            raise UserError(f"{path} holds null characters; save it as UTF-8 text")
        yield line
