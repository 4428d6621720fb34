"""Options of a head's own as they are typed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from frozenfusion.utils.errors import UsageError


def parse_options(words: Sequence[str]) -> dict[str, Any]:
    """`NAME=VALUE` words as options: numbers, true and false as such, anything else as a string. Raises UsageError."""
    options: dict[str, Any] = {}
    for word in words:
        name, separator, value = word.partition("=")
        if not separator or not name.isidentifier():
            raise UsageError(f"`head_option={word}`: expected NAME=VALUE, as in layers=4")
        if name in options:
            raise UsageError(f"`head_option={word}`: {name} is given twice")
        try:
            parsed = json.loads(value)
        except ValueError:
            parsed = value
        options[name] = parsed if isinstance(parsed, bool | int | float | str) else value
    return options
