"""Options of a head's own as they are typed, and what is worth trying of any option."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from frozenfusion.utils.errors import UsageError

HEAD = "head."  # before the name of an option of a head's own, among those of a training
MOST_TRIALS = 1000  # of a head
DIGITS = 3  # of a number that was drawn: as exact as it is worth, and short enough to type


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, all as likely; with `log` every power of ten is. Raises UsageError."""

    low: float
    high: float
    log: bool = False

    def __post_init__(self) -> None:
        if not -math.inf < self.low < self.high < math.inf or (self.log and self.low <= 0):
            raise UsageError(f"{self}: a range goes from a lower number to a higher one, with log from above 0")

    def at(self, share: float) -> float:
        """The number that lies at a share in [0, 1) of the range."""
        if self.log:
            number = math.exp(math.log(self.low) + share * math.log(self.high / self.low))
        else:
            number = self.low + share * (self.high - self.low)
        return float(f"{number:.{DIGITS}g}")

    def __str__(self) -> str:
        return f"{self.low:g} to {self.high:g}{', log-uniform' if self.log else ''}"


Space = Mapping[str, Range | Sequence[Any]]
"""What a search tries, option by option: a range of numbers, or one of several values."""


def parse_options(words: Sequence[str]) -> dict[str, Any]:
    """`NAME=VALUE` words as options: numbers, true and false as such, anything else as a string. Raises UsageError."""
    options: dict[str, Any] = {}
    for word in words:
        name, separator, value = word.partition("=")
        if not separator or not name.isidentifier():
            raise UsageError(f"`head_option={word}`: expected NAME=VALUE, as in layers=4")
        if name in options:
            raise UsageError(f"`head_option={word}`: {name} is given twice")
        options[name] = _parsed(value)
    return options


def parse_grid(words: Sequence[str]) -> dict[str, tuple[Any, ...]]:
    """`NAME=VALUE,VALUE` words as the values of each option; a head's own are `head.NAME`. Raises UsageError."""
    grid: dict[str, tuple[Any, ...]] = {}
    for word in words:
        name, separator, given = word.partition("=")
        name, values = name.removeprefix("--").replace("-", "_"), given.split(",")
        if not separator or not name.removeprefix(HEAD).isidentifier() or "" in values:
            raise UsageError(f"`grid={word}`: expected NAME=VALUE,VALUE, as in lr=1e-4,1e-3 or head.layers=1,2")
        if name in grid:
            raise UsageError(f"`grid={word}`: {name} is given twice")
        grid[name] = tuple(map(_parsed, values))
    return grid


def _parsed(value: str) -> Any:
    try:
        parsed = json.loads(value)
    except ValueError:
        return value
    return parsed if isinstance(parsed, bool | int | float | str) else value
