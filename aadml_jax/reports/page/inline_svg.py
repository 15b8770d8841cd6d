"""Matplotlib's SVG made fit to stand inside an HTML page, beside others, light or dark."""

import html
import re

from aadml_jax.reports.figures.style import GRID, INK, MUTED, PAPER

_THEME = {PAPER: "--paper", INK: "--ink", MUTED: "--muted", GRID: "--grid"}
_ROOT = re.compile(r"<svg\b[^>]*>")
_SIZE = re.compile(r'\b(width|height)="([\d.]+)pt"')
_VIEW_BOX = re.compile(r'\bviewBox="[^"]*"')


def inline(svg: str, name: str, description: str) -> str:
    """An `<svg>` element of a figure's file.

    Identifiers get the figure's name before them, for those of two figures are often the same and
    a clip path of the one would cut the other. The colours of the page that the house style draws
    with become those of the page; a figure of another style keeps its white ground, on which it
    was drawn. Metadata and style sheet, which would hold for the whole page, are left out.

    Args:
      svg: content of the file.
      name: of the figure.
      description: for those who cannot see it.
    """
    start = _ROOT.search(svg)
    if start is None:
        raise ValueError(f"figure {name!r}: no <svg> element in its file")
    body = svg[start.end() :]
    body = re.sub(r"<metadata>.*?</metadata>\s*", "", body, flags=re.DOTALL)
    body = re.sub(r"<defs>\s*<style\b.*?</style>\s*</defs>\s*", "", body, flags=re.DOTALL)
    body = re.sub(r"<style\b.*?</style>\s*", "", body, flags=re.DOTALL)
    body = re.sub(r"<!--.*?-->\s*", "", body, flags=re.DOTALL)
    # A dot keeps them apart from the page's own identifiers, which have none.
    body = re.sub(r'\bid="([^"]*)"', rf'id="{name}.\1"', body)
    body = re.sub(r'\bhref="#([^"]*)"', rf'href="#{name}.\1"', body)
    body = re.sub(r"url\(#([^)]*)\)", rf"url(#{name}.\1)", body)
    has_theme = INK in body
    if has_theme:
        for color, variable in _THEME.items():
            body = body.replace(color, f"var({variable})")
    sizes = {match[1]: float(match[2]) for match in _SIZE.finditer(start[0])}
    view_box = _VIEW_BOX.search(start[0])
    attributes = [
        'class="themed"' if has_theme else 'class="on-white"',
        'role="img"',
        f'aria-label="{html.escape(description)}"',
        # Points of print, at 72 an inch, where the page has 96.
        *(f'{side}="{round(points * 96 / 72)}"' for side, points in sizes.items()),
        *([view_box[0]] if view_box else []),
        'xmlns:xlink="http://www.w3.org/1999/xlink"',
    ]
    return f"<svg {' '.join(attributes)}>{body.strip()}"
