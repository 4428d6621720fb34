"""What messages are made of: a few names of many, the first line of another program's error, a value in quotes."""

from __future__ import annotations

from collections.abc import Sequence

NAMED = 3
LONGEST_LINE = 200


def first_few(names: Sequence[str], most: int = NAMED) -> str:
    """The first names of a list, with an ellipsis where there are more: `a, b, c, …`."""
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")


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


def printable(value: object, longest: int = 80) -> str:
    """What a file says, fit for a line on a terminal."""
    return "".join(letter if letter.isprintable() else "?" for letter in str(value)[:longest])
