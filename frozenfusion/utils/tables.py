"""Tables as people read them (text, Markdown) and as programs do (CSV)."""

from __future__ import annotations

import csv
import io
import unicodedata
from collections.abc import Sequence

Cells = Sequence[Sequence[str]]
"""A table: its header, then its rows."""


def as_text(cells: Cells) -> str:
    """A table in columns, for a terminal: the first to the left, the others to the right."""
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
    """A string as Markdown shows it, whatever it holds."""
    for special in "\\`*_[]<>|#":
        cell = cell.replace(special, f"\\{special}")
    return cell


def to_csv(lines: Sequence[Sequence[object]], *, digits: int | None = 6) -> str:
    """Lines of cells as CSV; floats with so many significant digits (None: all), None as an empty cell."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    cut = digits is not None
    writer.writerows(
        [f"{cell:.{digits}g}" if cut and isinstance(cell, float) else cell for cell in line] for line in lines
    )
    return text.getvalue()


def spreadsheet_safe(cell: str) -> str:
    """`cell` with an apostrophe before it if a spreadsheet would run it as a formula.

    Ids and label names come from others. Plain ones that only look like a beginning (-5, +1, @name) stay as they are,
    so that programs can join on them: without brackets, quotes, bars or operators a formula can do no harm.
    """
    if cell[:1] in ("=", "+", "-", "@", "\t", "\r") and not all(c.isalnum() or c in "_.@#-+ " for c in cell[1:]):
        return f"'{cell}"
    return cell
