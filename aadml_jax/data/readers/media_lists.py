"""Lists of media files by clip: a CSV file with the columns `id`, `audio` and `visual`.

The columns may be in any order and beside others, and one of audio and visual may be missing. A
cell is the path of a local file, relative to the folder of the list, or is empty.
"""

import os
import pathlib

from aadml_jax._files import expanded_home, local_path
from aadml_jax.data.clip_arrays import MODALITIES
from aadml_jax.data.readers.csv_rows import csv_rows
from aadml_jax.errors import UserError

_ID = "id"


def read_media_list(path: str | os.PathLike[str]) -> dict[str, dict[str, str]]:
    """Reads a list of media files.

    Returns:
      For "audio" and "visual", the absolute paths of their files by the ids of clips, without those
      that the list does not name.

    Raises:
      UserError: The list can't be read, lacks a column, names an id twice, or a file that is not
        there.
    """
    path = local_path(path)
    rows = csv_rows(path, "a CSV list of media files")
    header = [name.strip().lower() for name in next(rows, (0, []))[1]]
    named = [name for name in MODALITIES if name in header]
    if _ID not in header or not named or any(header.count(name) > 1 for name in (_ID, *named)):
        raise UserError(
            f"{path}: the header must name the columns id,audio,visual once each; it reads "
            f"{','.join(header)[:200] or 'nothing'}"
        )
    media: dict[str, dict[str, str]] = {name: {} for name in MODALITIES}
    lines_of_ids: dict[str, int] = {}
    for line, cells in rows:
        where = f"{path}, line {line}"
        if not cells:
            continue
        if len(cells) != len(header):
            raise UserError(
                f"{where} has {len(cells)} cells, but the header {len(header)}; put cells that "
                "hold commas into quotes"
            )
        of_column = dict(zip(header, map(str.strip, cells), strict=True))
        clip_id = of_column[_ID]
        first = lines_of_ids.setdefault(clip_id, line)
        if first != line:
            raise UserError(
                f"{where}: the id {clip_id!r} stands in line {first} as well; leave one of them out"
            )
        for name in named:
            if of_column[name]:
                media[name][clip_id] = str(_media_file(path.parent, of_column[name], where))
    return media


def _media_file(folder: pathlib.Path, cell: str, where: str) -> pathlib.Path:
    try:
        file = local_path(folder / expanded_home(cell))
        is_file = file.is_file()
    except (UserError, OSError, ValueError) as error:  # ValueError: a null character
        raise UserError(f"{where}: {error}") from None
    if not is_file:
        raise UserError(f"{where}: {file} is not a file; correct the path, or leave the cell empty")
    return file
