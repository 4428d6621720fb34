"""What a value out of a file may be, since such a file may come from anybody: kinds, ranges, and what does not fit."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

from frozenfusion.utils.messages import shown

Fit = Callable[[Any], bool]
LARGEST = 2**24  # of what counts or sizes something in memory
MOST_LAYERS = 1024  # of anything: each takes time and memory before a single weight is read
_LAYERS = re.compile("layer|block|group")


def whole(low: int = 0, high: int = LARGEST) -> Fit:
    """A whole number of a range."""
    return lambda value: type(value) is int and low <= value <= high


def number(low: float = -math.inf, high: float = math.inf) -> Fit:
    """A number of a range that a float64 can hold; one that is not finite only where the range has no end."""

    def fits(value: Any) -> bool:
        if type(value) not in (int, float):
            return False
        endless = math.isinf(low) and math.isinf(high)
        return low <= value <= high if not endless else type(value) is float or abs(value) < 2**63

    return fits


def optional(fit: Fit) -> Fit:
    """That, or nothing."""
    return lambda value: value is None or fit(value)


def flag(value: Any) -> bool:
    """True or false."""
    return isinstance(value, bool)


def mapping(value: Any) -> bool:
    """An object, whatever it holds."""
    return isinstance(value, dict)


def text(value: Any) -> bool:
    """A string that can be written to a file: JSON can hold halves of characters."""
    return isinstance(value, str) and not any("\ud800" <= letter <= "\udfff" for letter in value)


def texts(value: Any) -> bool:
    """A list of such strings."""
    return isinstance(value, list | tuple) and all(map(text, value))


def scalars(value: Any) -> bool:
    """A mapping of names to strings, numbers, true, false or nothing."""
    return isinstance(value, dict) and all(text(name) and _scalar(of) for name, of in value.items())


def _scalar(value: Any) -> bool:
    return value is None or isinstance(value, bool) or text(value) or number()(value)


def few_layers(values: Mapping[str, Any]) -> bool:
    """Whether all that counts layers, by its name, among the values of a configuration can be built."""
    return all(
        value <= MOST_LAYERS for name, value in values.items() if type(value) is int and _LAYERS.search(name.lower())
    )


def misfit(values: Any, fits: Mapping[str, Fit], required: Collection[str] = ()) -> str | None:
    """What is wrong with a mapping of which each entry has to fit, in words; None where nothing is.

    Entries that `fits` does not have are left alone.
    """
    if not isinstance(values, dict):
        return f"is {shown(values)}, not an object"
    lacking = [name for name in required if name not in values]
    if lacking:
        return f"has no {lacking[0]}"
    wrong = [name for name, fit in fits.items() if name in values and not fit(values[name])]
    return f"{wrong[0]} is {shown(values[wrong[0]])}, which it cannot be" if wrong else None
