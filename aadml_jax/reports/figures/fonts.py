"""Fonts for whatever a figure says: names of classes are written in any script."""

import functools
import pathlib
import unicodedata
import warnings
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.font_manager import FontEntry
    from matplotlib.text import Text

_reported: set[str] = set()
# Characters that a warning shows.
_SHOWN = 10


def add_missing_fonts(figure: "Figure") -> None:
    """Lets texts whose font lacks characters take them from other fonts that are installed.

    Of the characters that no font has, which are drawn as boxes, a warning tells once. Whether a
    script is also written as it should be, with joined letters or from the right, is up to
    Matplotlib.

    Args:
      figure: any figure of Matplotlib; only such texts of it change.
    """
    from matplotlib.text import Text

    for ax in figure.axes:  # the ticks' labels are made when they are asked for
        ax.get_xticklabels()
        ax.get_yticklabels()
    lacking = [
        (text, characters)
        for text in figure.findobj(Text)
        if (characters := _missing_characters(text))
    ]
    if not lacking:
        return
    wanted = frozenset().union(*(characters for _, characters in lacking))
    families, boxes = _families_with(wanted)
    for text, _ in lacking:
        text.set_fontfamily([*text.get_fontfamily(), *families])
    if new := sorted(boxes - _reported):
        _reported.update(new)
        shown = " ".join(new[:_SHOWN]) + " …" * (len(new) > _SHOWN)
        warnings.warn(
            f"no installed font has the characters {shown}, which figures show as boxes; install "
            "one that does, such as the package fonts-noto-cjk for Chinese, Japanese and Korean",
            stacklevel=2,
        )


def drawn_width(text: str) -> int:
    """How wide a text is drawn, in letters of the Latin alphabet, about."""
    return sum(2 if unicodedata.east_asian_width(one) in "WF" else 1 for one in text)


def _missing_characters(text: "Text") -> frozenset[str]:
    """The characters of a text that none of its fonts has."""
    # Controls, joiners and selectors of variants have no shape of their own.
    characters = {
        one
        for one in text.get_text()
        if not one.isspace() and unicodedata.category(one) not in ("Cc", "Cf", "Mn")
    }
    if all(map(str.isascii, characters)):
        return frozenset()
    from matplotlib import font_manager

    properties = text.get_fontproperties().copy()
    for family in text.get_fontfamily():
        properties.set_family(family)
        characters -= _supported_characters(font_manager.findfont(properties), characters)
    return frozenset(characters)


@functools.lru_cache(maxsize=256)
def _families_with(characters: frozenset[str]) -> tuple[tuple[str, ...], frozenset[str]]:
    """Installed fonts that together have some characters, and those that none of them has."""
    from matplotlib import font_manager

    manager = font_manager.fontManager
    families, left = _families_covering(manager.ttflist, characters)
    if left:
        # The list is of the day on which it was made: a font that was installed since is not there.
        known = {pathlib.Path(entry.fname) for entry in manager.ttflist}
        for path in map(pathlib.Path, font_manager.findSystemFonts()):
            if path not in known:
                try:
                    manager.addfont(path)
                except Exception:  # whatever FreeType says of a file that is no font for it
                    continue
        families, left = _families_covering(manager.ttflist, characters)
    return tuple(families), left


def _families_covering(
    entries: Iterable["FontEntry"], characters: frozenset[str]
) -> tuple[list[str], frozenset[str]]:
    import matplotlib

    def preference(entry: "FontEntry") -> tuple[bool, bool, bool, str]:
        is_plain = entry.style == "normal" and entry.weight in (400, "normal", "regular", "book")
        is_sans = any(word in entry.name for word in ("Sans", "Gothic", "Hei"))
        return not is_plain, not is_sans, "Mono" in entry.name, entry.name

    own = pathlib.Path(matplotlib.get_data_path())
    families: list[str] = []
    for entry in sorted(entries, key=preference):
        if not characters:
            break
        # Matplotlib's own fonts hold formulas, or a box for every character there is.
        if entry.name not in families and own not in pathlib.Path(entry.fname).parents:
            held = _supported_characters(entry.fname, characters)
            if held:
                families.append(entry.name)
                characters -= held
    return families, characters


def _supported_characters(path: str, characters: Iterable[str]) -> set[str]:
    """Those of some characters that a font has; none of a file that is gone or damaged."""
    from matplotlib import font_manager

    try:
        font = font_manager.get_font(path)
    except (OSError, RuntimeError):
        return set()
    return {one for one in characters if font.get_char_index(ord(one))}
