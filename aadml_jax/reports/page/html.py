"""Pieces of the HTML page: text, tables, figures, the frame. All text is escaped."""

import html
import json
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from aadml_jax.reports import markdown
from aadml_jax.reports.page import inline_svg
from aadml_jax.reports.tables import Cell, Table, cell_text, sort_value

# Whatever a report is fed with, the page loads nothing and sends nothing; with local media files it
# loads these, from the disk or from the server that the page comes from.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"
_POLICY_WITH_MEDIA = f"{_POLICY} 'self' file:; media-src 'self' file:"

# Characters; a cell with more may be broken, all others stay on one line.
_LONG_TEXT = 48


def paragraph(text: str, css_class: str = "") -> str:
    """A paragraph; `words in backticks` are set as code."""
    content = _line(text)
    return f'<p class="{css_class}">{content}</p>' if css_class else f"<p>{content}</p>"


def _line(text: str) -> str:
    return "".join(
        f"<code>{html.escape(piece)}</code>" if is_code else html.escape(piece)
        for is_code, piece in markdown.pieces(text)
    )


def section(identifier: str, title: str, content: Sequence[str]) -> str:
    """A section under its heading."""
    return (
        f'<section aria-labelledby="{identifier}">\n'
        f'<h2 id="{identifier}">{html.escape(title)}</h2>\n' + "\n".join(content) + "\n</section>"
    )


def table(identifier: str, content: Table, file_name: str) -> str:
    """A table that its headers sort, in a box that scrolls where it is too wide."""
    numeric = content.numeric_columns()
    head = "".join(
        f'<th scope="col" aria-sort="none"{_number_class(is_number)}>'
        f'<button type="button">{html.escape(name)}</button></th>'
        for name, is_number in zip(content.columns, numeric, strict=True)
    )
    body = "\n".join(
        "<tr>"
        + "".join(
            _cell(cell, is_number, is_header=index == 0 and not is_number)
            for index, (cell, is_number) in enumerate(zip(row, numeric, strict=True))
        )
        + "</tr>"
        for row in content.rows
    )
    lines = [
        "<figure>",
        f'<p class="table-title" id="{identifier}">{html.escape(content.title)}</p>',
        f'<div class="box" role="region" tabindex="0" aria-labelledby="{identifier}">'
        f'<table aria-labelledby="{identifier}">',
        f"<thead><tr>{head}</tr></thead>",
        f"<tbody>\n{body}\n</tbody>",
        "</table></div>",
        *([paragraph(content.note, "note")] if content.note else []),
        f'<p class="note">All digits: <a href="{file_name}">{file_name}</a></p>',
        "</figure>",
    ]
    return "\n".join(lines)


def figure(name: str, svg: str, caption: str) -> str:
    """A figure, its drawing part of the page, and its caption; `words in backticks` are code."""
    drawing = inline_svg.inline(svg, name, markdown.plain(caption))
    width = drawing.partition('width="')[2].partition('"')[0]
    return (
        f'<figure class="figure" id="figure-{name}" style="--width:{width or 640}px">'
        f'\n<div class="box" role="group" tabindex="0" aria-label="Figure {name}">'
        f"{drawing}</div>\n<figcaption>{_line(caption)}</figcaption>\n</figure>"
    )


def folded(title: str, content: Mapping[str, Any]) -> str:
    """Names and values, shown when asked for."""
    rows = "\n".join(
        f'<tr><th scope="row">{html.escape(name)}</th><td><code>{html.escape(value_text(value))}'
        "</code></td></tr>"
        for name, value in content.items()
    )
    return (
        f'<details><summary>{html.escape(title)}</summary>\n<div class="box"><table><tbody>\n'
        f"{rows}\n</tbody></table></div></details>"
    )


def value_text(value: Any) -> str:
    """A value of a configuration: a text as it is, anything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def page(
    title: str,
    introduction: Sequence[str],
    contents: Mapping[str, str],
    sections: Sequence[str],
    *,
    has_media: bool = False,
) -> str:
    """The whole page.

    Args:
      title: of the page.
      introduction: paragraphs, as HTML.
      contents: headings by their identifiers.
      sections: as HTML.
      has_media: whether they show local media files.
    """
    links = "\n".join(
        f'<li><a href="#{identifier}">{html.escape(heading)}</a></li>'
        for identifier, heading in contents.items()
    )
    navigation = f'<nav aria-label="Contents"><ol>\n{links}\n</ol></nav>' if contents else ""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY_WITH_MEDIA if has_media else _POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{html.escape(title)}</title>
<style>
{_part("page.css")}</style>
</head>
<body>
<a class="skip" href="#content">Skip to the content</a>
<header>
<h1>{html.escape(title)}</h1>
<button type="button" id="theme" hidden>Dark colours</button>
</header>
<main id="content">
{"".join(f"{line}{chr(10)}" for line in introduction)}{navigation}
{chr(10).join(sections)}
</main>
<script>
{_part("page.js")}</script>
</body>
</html>
"""


def _part(name: str) -> str:
    return resources.files("aadml_jax.reports.page").joinpath(name).read_text(encoding="utf-8")


def _number_class(is_number: bool) -> str:
    return ' class="number"' if is_number else ""


def _cell(cell: Cell, is_number: bool, *, is_header: bool) -> str:
    value = sort_value(cell)
    sort = "" if isinstance(value, str) else f' data-sort="{"" if value is None else repr(value)}"'
    text = html.escape(cell_text(cell))
    if is_header:
        return f'<th scope="row"{sort}>{text}</th>'
    kind = ' class="long"' if len(cell_text(cell)) > _LONG_TEXT else _number_class(is_number)
    return f"<td{kind}{sort}>{text}</td>"
