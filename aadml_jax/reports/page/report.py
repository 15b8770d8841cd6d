"""A report: sections of text, tables and figures, written as one page and as plain files.

>>> report = Report("Margins", "How the margin of the triplet loss changes MAP.")
>>> section = report.section("Results", "Five seeds, `--epochs=60`.")
>>> section.table(Table("MAP", ["margin", "MAP"], [[0.2, 0.71], [1.0, 0.73]]))
>>> page = report.write("runs/margins")  # doctest: +SKIP
"""

import json
import os
import pathlib
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from aadml_jax._files import local_path, written_as_a_whole
from aadml_jax.errors import UserError
from aadml_jax.reports import markdown
from aadml_jax.reports.figures.files import check_name, write_figure
from aadml_jax.reports.page import html
from aadml_jax.reports.page.cards import SideBySide
from aadml_jax.reports.tables import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAGE_FILE = "report.html"
MARKDOWN_FILE = "report.md"
NUMBERS_FILE = "numbers.json"
FIGURES_FOLDER = "figures"


class _Drawing(NamedTuple):
    name: str
    figure: "Figure"
    caption: str


class Section:
    """A part of a report, made by `Report.section`; its content stands in the order of the calls.

    Attributes:
      title: its heading.
    """

    def __init__(self, title: str, report: "Report"):
        self.title = title
        self._report = report
        self._content: list[str | Table | _Drawing | SideBySide] = []

    def text(self, paragraph: str) -> None:
        """Adds paragraphs, parted by empty lines; `words in backticks` are set as code."""
        self._content += _paragraphs(paragraph)

    def table(self, table: Table) -> None:
        """Adds a table."""
        self._content.append(table)

    def side_by_side(self, items: SideBySide) -> None:
        """Adds a query and what was found for it; their media files are not copied."""
        self._content.append(items)

    def figure(self, name: str, figure: "Figure", caption: str) -> None:
        """Adds a figure.

        Args:
          name: of its files; small letters, digits, - and _, each name once in a report.
          figure: of Matplotlib, drawn by `figures` or otherwise.
          caption: what it shows, in words that also serve those who cannot see it; `words in
            backticks` are set as code.

        Raises:
          ValueError: if the name has other characters or is taken, or there is no caption.
        """
        check_name(name)
        if not caption.strip():
            raise ValueError(f"figure {name!r} has no caption; say what it shows")
        if any(name == drawing.name for drawing in self._report._contents(_Drawing)):
            raise ValueError(f"figure name {name!r} is taken; give each figure its own")
        self._content.append(_Drawing(name, figure, caption))


class Report:
    """Texts, tables and figures under headings."""

    def __init__(self, title: str, introduction: str = ""):
        """Begins a report.

        Args:
          title: one line.
          introduction: paragraphs parted by empty lines, what was asked and what was found.

        Raises:
          ValueError: if the title is empty.
        """
        if not title.strip():
            raise ValueError("a report needs a title; say what it is about")
        self._title = title
        self._introduction = _paragraphs(introduction)
        self._sections: list[Section] = []
        self._configuration: dict[str, Any] = {}
        self._versions: dict[str, Any] = {}

    def section(self, title: str, text: str = "") -> Section:
        """Adds a section.

        Args:
          title: its heading.
          text: paragraphs that open it, as for `Section.text`.

        Returns:
          The section, to add to.
        """
        section = Section(title, self)
        section.text(text)
        self._sections.append(section)
        return section

    def configuration(self, values: Mapping[str, Any]) -> None:
        """States the settings behind the numbers, in place of any stated before.

        Args:
          values: by name; texts, numbers, truth values, None, and lists and dictionaries of them.

        Raises:
          ValueError: if JSON knows no such value.
        """
        self._configuration = _json_values(values, "configuration")

    def versions(self, values: Mapping[str, str]) -> None:
        """States the versions of the packages, in place of any stated before.

        Raises:
          ValueError: if JSON knows no such value.
        """
        self._versions = _json_values(values, "versions")

    def write(self, folder: str | os.PathLike[str]) -> pathlib.Path:
        """Writes the report.

        Into the folder go `numbers.json` (all tables with all digits), a CSV file per table,
        `figures/NAME.png` and `.svg`, `report.md`, and last `report.html`, which needs none of the
        others, but media files, if it shows some, where they are. Each file is written as a whole.
        The same report gives the same bytes. Files that are there under other names stay.

        Args:
          folder: made if need be.

        Returns:
          The path of the page.

        Raises:
          UserError: if the folder cannot be written to, or Matplotlib is not installed.
        """
        folder = local_path(folder)
        names = self._table_files()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _write(folder / NUMBERS_FILE, _json_text(self._numbers(names)))
            for table, name in zip(self._contents(Table), names, strict=True):
                _write(folder / name, table.csv())
            drawings = {
                drawing.name: write_figure(
                    drawing.figure, folder / FIGURES_FOLDER, drawing.name
                ).svg.read_text(encoding="utf-8")
                for drawing in self._contents(_Drawing)
            }
            _write(folder / MARKDOWN_FILE, self._markdown(folder))
            _write(folder / PAGE_FILE, self._html(folder, names, drawings))
        except OSError as error:
            raise UserError(
                f"{folder} cannot be written to ({error.strerror}); choose another folder"
            ) from error
        return folder / PAGE_FILE

    def _contents(self, kind: type) -> list[Any]:
        return [
            item
            for section in self._sections
            for item in section._content
            if isinstance(item, kind)
        ]

    def _table_files(self) -> list[str]:
        names: dict[str, None] = {}
        for table in self._contents(Table):
            names[_unique(_slug(table.title) or "table", ".csv", names)] = None
        return list(names)

    def _numbers(self, table_files: list[str]) -> dict[str, Any]:
        files = iter(table_files)
        return {
            "title": self._title,
            "sections": [
                {
                    "title": section.title,
                    "tables": [
                        {
                            "title": table.title,
                            "file": next(files),
                            "columns": list(table.columns),
                            "note": table.note,
                            "records": table.records(),
                        }
                        for table in section._content
                        if isinstance(table, Table)
                    ],
                }
                for section in self._sections
            ],
            "configuration": self._configuration,
            "versions": self._versions,
        }

    def _markdown(self, folder: pathlib.Path) -> str:
        blocks = [f"# {markdown.escape(self._title)}"]
        blocks += map(markdown.paragraph, self._introduction)
        for section in self._sections:
            blocks.append(f"## {markdown.escape(section.title)}")
            for item in section._content:
                if isinstance(item, Table):
                    blocks.append(item.markdown().rstrip("\n"))
                elif isinstance(item, SideBySide):
                    blocks.append(item.markdown(folder))
                elif isinstance(item, _Drawing):
                    alternative = markdown.plain(item.caption)
                    # A bracket would end the text of the picture before its time.
                    text = re.sub(r"(?<!\\)([\[\]])", r"\\\1", markdown.escape(alternative))
                    blocks.append(f"![{text}]({FIGURES_FOLDER}/{item.name}.png)")
                    blocks.append(markdown.paragraph(item.caption))
                else:
                    blocks.append(markdown.paragraph(item))
        for title, values in self._provenance().items():
            rows = [[name, html.value_text(value)] for name, value in values.items()]
            blocks.append(f"## {title}")
            # Without the table's own title, which would say the same as the heading.
            table = Table(title, ["name", "value"], rows).markdown()
            blocks.append(table.split("\n\n", 1)[1].rstrip("\n"))
        return "\n\n".join(blocks) + "\n"

    def _html(
        self, folder: pathlib.Path, table_files: list[str], drawings: Mapping[str, str]
    ) -> str:
        contents: dict[str, str] = {}
        sections = []
        tables = iter(enumerate(table_files, start=1))
        for section in self._sections:
            identifier = _unique(f"section-{_slug(section.title)}".rstrip("-"), "", contents)
            contents[identifier] = section.title
            parts = []
            for item in section._content:
                if isinstance(item, Table):
                    number, file_name = next(tables)
                    parts.append(html.table(f"table-{number}", item, file_name))
                elif isinstance(item, SideBySide):
                    parts.append(item.html(folder))
                elif isinstance(item, _Drawing):
                    parts.append(html.figure(item.name, drawings[item.name], item.caption))
                else:
                    parts.append(html.paragraph(item))
            sections.append(html.section(identifier, section.title, parts))
        if provenance := self._provenance():
            contents["provenance"] = "How it was made"
            parts = [html.folded(title, values) for title, values in provenance.items()]
            sections.append(html.section("provenance", contents["provenance"], parts))
        introduction = [html.paragraph(text) for text in self._introduction]
        has_media = any(items.has_media for items in self._contents(SideBySide))
        return html.page(self._title, introduction, contents, sections, has_media=has_media)

    def _provenance(self) -> dict[str, dict[str, Any]]:
        parts = {"Configuration": self._configuration, "Versions": self._versions}
        return {title: values for title, values in parts.items() if values}


def _paragraphs(text: str) -> list[str]:
    return [part.strip() for part in re.split(r"\n\s*\n", text) if part.strip()]


def _slug(title: str) -> str:
    return re.sub("[^a-z0-9]+", "-", title.lower()).strip("-")[:60].rstrip("-")


def _unique(stem: str, ending: str, taken: Mapping[str, Any]) -> str:
    number, name = 1, stem + ending
    while name in taken:
        number += 1
        name = f"{stem}-{number}{ending}"
    return name


def _json_values(values: Mapping[str, Any], what: str) -> dict[str, Any]:
    for name, value in values.items():
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{what}: {name} = {value!r:.80} cannot be written as JSON ({error}); give texts, "
                "numbers, lists or dictionaries"
            ) from None
        if not isinstance(name, str):
            raise ValueError(f"{what}: the name {name!r:.80} is not a text; give one")
    return json.loads(json.dumps(dict(values)))  # a copy that later changes do not reach


def _json_text(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _write(path: pathlib.Path, content: str) -> None:
    with written_as_a_whole(path, "wb") as file:
        file.write(content.encode())
