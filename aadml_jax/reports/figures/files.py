"""The files of a figure: the same bytes each time, and never half of them."""

import io
import os
import pathlib
import re
from typing import TYPE_CHECKING, NamedTuple

from aadml_jax._files import local_path, written_as_a_whole
from aadml_jax.errors import UserError
from aadml_jax.reports.figures import style
from aadml_jax.reports.figures.fonts import add_missing_fonts

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")


class FigureFiles(NamedTuple):
    """Where the two files of a figure are."""

    png: pathlib.Path
    svg: pathlib.Path


def write_figure(figure: "Figure", folder: str | os.PathLike[str], name: str) -> FigureFiles:
    """Writes NAME.png (150 dots an inch) and NAME.svg, each as a whole.

    Args:
      figure: any figure of Matplotlib.
      folder: made if need be.
      name: small letters, digits, - and _.

    Raises:
      ValueError: if the name has other characters.
      UserError: if the folder cannot be written to, or Matplotlib is not installed.
    """
    check_name(name)
    folder = local_path(folder)
    files = FigureFiles(folder / f"{name}.png", folder / f"{name}.svg")
    with style.own_style():
        add_missing_fonts(figure)
    contents = [_file_bytes(figure, kind) for kind in FigureFiles._fields]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, content in zip(files, contents, strict=True):
            with written_as_a_whole(path, "wb") as file:
                file.write(content)
    except OSError as error:
        raise UserError(
            f"{folder} cannot be written to ({error.strerror}); choose another folder"
        ) from error
    return files


def check_name(name: str) -> None:
    """Checks that a figure's name can be one of files.

    Raises:
      ValueError: if it cannot.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(f"figure name {name!r} must be small letters, digits, - and _")


def _file_bytes(figure: "Figure", kind: str) -> bytes:
    """A figure's PNG (150 dots an inch) or SVG, without the date and the drawing program's name."""
    content = io.BytesIO()
    metadata = {"png": {"Software": None}, "svg": {"Date": None, "Creator": None}}[kind]
    with style.own_style():
        figure.savefig(content, format=kind, dpi=150, metadata=metadata)
    return content.getvalue()
