"""Tables as people read them (text, Markdown) and as programs do (CSV)."""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import TextIO

from frozenfusion.utils.messages import printable

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_EQUALS, _SIGNS = frozenset("=＝"), frozenset("+-@＋－＠")  # as wide letters too, which some spreadsheets take alike

Cells = Sequence[Sequence[str]]
"""A table: its header, then its rows."""


def as_text(cells: Cells) -> str:
    """A table in columns, for a terminal: the first to the left, the others to the right."""
    cells = [[printable(cell, None) for cell in row] for row in cells]
    widths = [max(_width(cell) for cell in column) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(_filled(cell, widths[i], i == 0) for i, cell in enumerate(row)).rstrip() for row in cells
    )


def _filled(cell: str, width: int, left: bool) -> str:
    space = " " * (width - _width(cell))
    return cell + space if left else space + cell


def _width(cell: str) -> int:
    """Columns that a string takes on a terminal."""
    return sum(0 if unicodedata.combining(c) else 1 + (unicodedata.east_asian_width(c) in "WF") for c in cell)


def as_markdown(cells: Cells) -> str:
    """A table in Markdown; what would be markup in a cell is escaped."""
    lines = ["| " + " | ".join(map(escape_markdown, row)) + " |" for row in cells]
    lines.insert(1, "|---" + "|---:" * (len(cells[0]) - 1) + "|")
    return "\n".join(lines)


def escape_markdown(cell: str) -> str:
    """A string as Markdown shows it, in one line, whatever it holds."""
    cell = printable(cell, None)
    for special in "\\`*_[]<>|#":
        cell = cell.replace(special, f"\\{special}")
    return cell


def to_csv(lines: Sequence[Sequence[object]], *, digits: int | None = 6) -> str:
    """Lines of cells as CSV; floats with so many significant digits (None: all), None as an empty cell.

    All that is written as CSV goes through here, and every string through `csv_cell`.
    """
    text = io.StringIO()
    write_csv(text, lines, digits=digits)
    return text.getvalue()


def write_csv(file: TextIO, lines: Iterable[Sequence[object]], *, digits: int | None = 6) -> None:
    """Write lines of cells into a file that keeps their ends, as `to_csv` makes them, one after another."""
    writer = csv.writer(file, lineterminator="\n")

    def told(cell: object) -> object:
        if isinstance(cell, float) and digits is not None:
            return f"{cell:.{digits}g}"
        return csv_cell(cell) if isinstance(cell, str) else cell

    writer.writerows([told(cell) for cell in line] for line in lines)


def csv_cell(cell: str) -> str:
    """A string of anybody's as a cell: in one line, and nothing that a spreadsheet would run as a formula."""
    return spreadsheet_safe(_CONTROL.sub(" ", cell))


def spreadsheet_safe(cell: str) -> str:
    """`cell` with an apostrophe before it if a spreadsheet would run it as a formula; `from_csv_cell` takes it away.

    Ids and label names come from others. Plain ones that only look like a beginning (-5, +1, @name) stay as they are,
    so that programs can join on them: without brackets, quotes, bars or operators a formula can do no harm.
    """
    return f"'{cell}" if _is_formula(cell.lstrip("'")) else cell


def from_csv_cell(cell: str) -> str:
    """What `spreadsheet_safe` made a cell from."""
    return cell[1:] if cell.startswith("'") and _is_formula(cell.lstrip("'")) else cell


def _is_formula(cell: str) -> bool:
    begun = cell.lstrip()
    plain = all(letter.isalnum() or letter in "_.@#-+ " for letter in begun[1:])
    return begun[:1] in _EQUALS or (begun[:1] in _SIGNS and not plain)
