"""Messages of the library in the words of the command line: parameters become flags, scripts become commands.

A message names a parameter in backticks, alone (`lr`) or with a value (`resume=never`, `strict=True`).
"""

from __future__ import annotations

import dataclasses
import re

COMMANDS = {"extract_features.py": "extract", "train_head.py": "train", "evaluate.py": "evaluate"}

# What the library calls otherwise.
_FLAGS = {
    "imports": "--import",
    "import": "--import",
    "head": "--fusion",
    "heads": "--fusion",
    "head_options": "--head-option",
    "features": "--cache",
    "folder": "--run",
    "pool": "--pool",  # of stage one, which stage two speaks of
}
_PARAMETER = re.compile(r"`(\w+)(?:=([^`]*))?`")


def flag_of(name: str) -> str:
    """The flag of a parameter or option."""
    return _FLAGS.get(name, "--" + name.replace("_", "-"))


def worded(message: str, options: type, command: str) -> str:
    """A message for someone who typed `command`, whose options are a dataclass."""
    known = {field.name for field in dataclasses.fields(options)} | _FLAGS.keys()

    def flag(found: re.Match[str]) -> str:
        name, value = found.groups()
        if name not in known:
            return found[0]
        return flag_of(name) if value in (None, "True") else f"{flag_of(name)} {value}"

    message = _PARAMETER.sub(flag, message)
    if not command.endswith(".py"):
        for script, name in COMMANDS.items():
            message = message.replace(f"python {script}", f"frozenfusion {name}")
            message = message.replace(script, f"frozenfusion {name}")
    return message
