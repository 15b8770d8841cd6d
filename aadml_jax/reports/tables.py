"""Tables whose cells keep their full numbers, and their texts for people, spreadsheets, programs.

>>> table = Table("Results", ["method", "MAP"], [["plain", MeanAndSpread(0.727, 0.004, 5)]])
>>> print(table.markdown())
**Results**
<BLANKLINE>
| method | MAP |
|---|---:|
| plain | .727 ± .004 |
<BLANKLINE>
>>> print(table.csv())
method,MAP mean,MAP std,MAP n
plain,0.727,0.004,5
<BLANKLINE>
"""

import csv
import dataclasses
import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from aadml_jax.reports import markdown
from aadml_jax.reports.statistics import MeanAndSpread, PairedDifference

Cell = str | int | float | None | MeanAndSpread | PairedDifference
MISSING = "–"
_DECIMALS = 3
# Fields of a split cell, under the names that they have in CSV and JSON.
_PARTS = {
    MeanAndSpread: {"mean": "mean", "std": "std", "n": "count"},
    PairedDifference: {"mean": "mean", "low": "low", "high": "high", "n": "count"},
}
_PART_ORDER = ("mean", "std", "low", "high", "n")


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of texts and numbers.

    Attributes:
      title: what the table shows, one line.
      columns: their names, each once.
      rows: a cell for each column. NumPy's scalars become Python's; None is a missing value.
      note: what a reader must know to read it; may be empty.

    Raises:
      ValueError: if a row has too many or too few cells, a column's name stands twice, or a cell is
        neither a text nor a finite number.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "columns", tuple(self.columns))
        if not self.columns:
            raise ValueError(f"table {self.title!r} has no columns; name one at least")
        rows = []
        for number, row in enumerate(self.rows, start=1):
            row = tuple(row)
            if len(row) != len(self.columns):
                raise ValueError(
                    f"table {self.title!r}, row {number}: {len(row)} cells for "
                    f"{len(self.columns)} columns; give one for each"
                )
            rows.append(
                tuple(
                    _checked(cell, f"table {self.title!r}, row {number}, column {column!r}")
                    for cell, column in zip(row, self.columns, strict=True)
                )
            )
        object.__setattr__(self, "rows", tuple(rows))
        names = [name for split in self._split_columns() for name in split.values()]
        for name in (*self.columns, *names):
            if self.columns.count(name) > 1 or names.count(name) > 1:
                raise ValueError(
                    f"table {self.title!r}: column {name!r} stands twice; rename one of them"
                )

    def markdown(self) -> str:
        """The table in GitHub's Markdown, its title above and its note below.

        Numbers are rounded as `cell_text` says; columns of numbers are aligned to the right.
        """
        lines = [
            f"**{markdown.escape(self.title)}**",
            "",
            _markdown_row(markdown.escape(name) for name in self.columns),
            "|" + "".join("---:|" if numeric else "---|" for numeric in self.numeric_columns()),
            *(_markdown_row(markdown.escape(cell_text(cell)) for cell in row) for row in self.rows),
        ]
        if self.note:
            lines += ["", markdown.paragraph(self.note)]
        return "\n".join(lines) + "\n"

    def csv(self) -> str:
        """The table as comma-separated values with a header line, at full precision.

        A column with `MeanAndSpread` or `PairedDifference` cells becomes several, such as
        `MAP mean`, `MAP std` and `MAP n`; a plain number in it stands under the mean. Missing
        values are empty.
        """
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        splits = self._split_columns()
        writer.writerow([name for split in splits for name in split.values()])
        for row in self.rows:
            writer.writerow(
                [
                    _csv_text(_part(cell, part))
                    for cell, split in zip(row, splits, strict=True)
                    for part in split
                ]
            )
        return file.getvalue()

    def records(self) -> list[dict[str, Any]]:
        """A dictionary per row, for JSON, at full precision.

        Each maps the columns' names to a text, a number, None, or for the cells with several
        numbers a dictionary with `mean`, `std`, `n` or `mean`, `low`, `high`, `n`.
        """
        return [
            {name: _record(cell) for name, cell in zip(self.columns, row, strict=True)}
            for row in self.rows
        ]

    def numeric_columns(self) -> list[bool]:
        """For each column, whether it has numbers and no texts."""
        flags = []
        for index in range(len(self.columns)):
            cells = [row[index] for row in self.rows if row[index] not in (None, MISSING)]
            flags.append(bool(cells) and not any(isinstance(cell, str) for cell in cells))
        return flags

    def _split_columns(self) -> list[dict[str, str]]:
        """For each column, the names of its columns in CSV by part; part "" is the whole cell."""
        splits = []
        for index, name in enumerate(self.columns):
            parts = {part for row in self.rows for part in _PARTS.get(type(row[index]), ())}
            splits.append(
                {part: f"{name} {part}" for part in _PART_ORDER if part in parts} or {"": name}
            )
        return splits


def cell_text(cell: Cell) -> str:
    """A cell for people.

    Numbers have three decimals and no zero before the point: `.727`, `.727 ± .004`,
    `+.003 [−.001, +.007]`. A plain number that these would show as 0 has two significant digits
    instead; a missing value is a dash.

    Args:
      cell: of a `Table`.
    """
    match cell:
        case None:
            return MISSING
        case str():
            return cell
        case MeanAndSpread():
            mean = _decimal(cell.mean)
            return mean if cell.std is None else f"{mean} ± {_decimal(cell.std)}"
        case PairedDifference():
            mean = _signed(cell.mean)
            if cell.low is None or cell.high is None:
                return mean
            return f"{mean} [{_signed(cell.low)}, {_signed(cell.high)}]"
        case int():
            return str(cell).replace("-", "−")
    if cell and abs(cell) < 0.5 * 10**-_DECIMALS:
        return f"{cell:.2g}".replace("-", "−")
    return _decimal(cell)


def sort_value(cell: Cell) -> float | str | None:
    """What a cell is sorted by: its number or mean, its text, or None where it is missing."""
    if isinstance(cell, MeanAndSpread | PairedDifference):
        return cell.mean
    return None if cell == MISSING else cell


def _decimal(value: float) -> str:
    text = f"{value:.{_DECIMALS}f}"
    if not float(text):
        text = text.lstrip("-")  # no −.000
    if abs(float(text)) < 1:
        text = text.replace("0.", ".", 1)
    return text.replace("-", "−")


def _signed(value: float) -> str:
    text = _decimal(value)
    return f"+{text}" if value > 0 and text.strip(".0") else text


def _markdown_row(texts: Any) -> str:
    return f"| {' | '.join(texts)} |"


def _checked(cell: Any, where: str) -> Cell:
    cell = _as_python(cell)
    if isinstance(cell, MeanAndSpread | PairedDifference):
        cell = type(cell)(*map(_as_python, cell))
        for part in cell:
            if isinstance(part, str) or (part is None and cell.mean is None):
                raise ValueError(f"{where}: {cell!r:.80} has no number; give None in its place")
            _check_value(part, where)
    else:
        _check_value(cell, where)
    return cell


def _as_python(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _check_value(value: Any, where: str) -> None:
    if isinstance(value, bool) or not isinstance(value, str | int | float | None):
        raise ValueError(
            f"{where}: {value!r:.80} is a {type(value).__name__}; give a text or a number"
        )
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{where}: {value} is not a finite number; give None or a text")


def _part(cell: Cell, part: str) -> Cell:
    if fields := _PARTS.get(type(cell)):
        return getattr(cell, fields[part]) if part in fields else None
    return cell if part in ("", "mean") else None


def _csv_text(value: Any) -> str:
    return "" if value is None else repr(value) if isinstance(value, float) else str(value)


def _record(cell: Cell) -> Any:
    if fields := _PARTS.get(type(cell)):
        return {part: getattr(cell, field) for part, field in fields.items()}
    return cell
