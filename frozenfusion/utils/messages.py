"""What messages are made of: a few names of many, the first line of another program's error, a value in quotes."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

NAMED = 3
MOST_NAMED = 10  # where all are wanted
LONGEST_LINE = 200
_JOINERS = "\u200c\u200d"  # which several scripts, and some emoji, are spelt with


def first_few(names: Sequence[str], most: int = NAMED) -> str:
    """The first names of a list, with an ellipsis where there are more: `a, b, c, …`."""
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")


def some_of(names: Sequence[str], most: int = 20) -> str:
    """The first names of a list, and how many there are beside them: `a, b and 12 more`."""
    return ", ".join(names[:most]) + (f" and {len(names) - most:,} more" if len(names) > most else "")


def first_line(error: BaseException) -> str:
    """What an error of another library says, cut to one line; its kind where it says nothing."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(" .:")[:LONGEST_LINE]


def one_line(error: BaseException, longest: int = LONGEST_LINE) -> str:
    """All that an error says, on one line."""
    return " ".join(str(error).split())[:longest].rstrip(" .:") or type(error).__name__


def shown(value: object) -> str:
    """`value` as a message quotes it: one short printable line."""
    quoted = ascii(value) if isinstance(value, str) and not value.isprintable() else repr(value)
    return quoted if len(quoted) <= 60 else f"{quoted[:59]}…"


def printable(value: object, longest: int | None = 80) -> str:
    """What others wrote as one line for a terminal; what would steer it, or turn letters around, is a question mark."""
    return "".join(map(_letter, str(value)[:longest]))


def for_terminal(text: str) -> str:
    """All that is printed goes through here: lines of letters, whatever names and values came into them."""
    return "\n".join(printable(line, None) for line in text.split("\n"))


def _letter(letter: str) -> str:
    if letter.isprintable() or letter in _JOINERS:
        return letter
    return " " if unicodedata.category(letter) == "Zs" else "?"
