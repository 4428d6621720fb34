"""Messages of the library in the words of the command line: parameters become flags, scripts become commands.

A message names a parameter in backticks, alone (`lr`) or with a value (`resume=never`, `strict=True`).
"""

from __future__ import annotations

import dataclasses
import re

from frozenfusion.utils.messages import LONGEST_LINE

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


# What the parser of flags says, and how it is said here; the first that fits.
_FLAG = r"Error parsing (?P<flag>--[\w-]+): "
_USAGE = (
    (r"Missing from .*?: \S+ (?P<what>.*?)[ .]*(?:\(required\))?", "DATA is missing: {what}"),
    (r"Missing value for argument '(?P<flag>\S+)'.*", "{flag} needs a value"),
    (
        r"Unrecognized options: (?P<word>[^,\s]+).*?Perhaps you meant: (?P<flag>--[\w-]+).*",
        "{word}: no such option, perhaps {flag}",
    ),
    (r"Unrecognized options: (?P<word>[^,\s]+).*", "{word}: no such option, or a word too many"),
    (
        r"invalid choice (?P<value>.*?) for argument '(?P<flag>\S+)'.*?\((?P<kind>.*)\)",
        "{flag} must be one of {kind}, not {value}",
    ),
    (rf"{_FLAG}invalid literal for int.*?: (?P<value>.*)", "{flag} must be a whole number, not {value}"),
    (rf"{_FLAG}could not convert string to float: (?P<value>.*)", "{flag} must be a number, not {value}"),
    (rf"{_FLAG}no type matching (?P<kind>\S+) .*?\[(?P<value>.*?)\].*", "{flag} must be {kind}, not {value}"),
    (rf"{_FLAG}Could not find valid parse for arguments: \[(?P<value>.*)\]", "{flag} cannot be {value}"),
)
_KINDS = (("{None}|", ""), ("FLOAT", "a number"), ("INT", "a whole number"), (", 'None'", ""), ("|", " or "))


def usage_message(box: str) -> str:
    """What the parser says in its framed message is wrong, as one short line; as it says it if that is new."""
    lines = [line.strip("╭╮╰╯│─ \t") for line in box.splitlines()]
    whole = " ".join(line for line in lines[1:] if line.strip("-"))
    message = re.split(r" (?:Argument helptext|For full helptext)", whole)[0].rstrip(".")
    for told, short in _USAGE:
        found = re.fullmatch(told, message, re.DOTALL)
        if found:
            parts = found.groupdict()
            message = short.format(**{**parts, "kind": _kind(parts.get("kind", ""))})
            break
    return f"{message[:LONGEST_LINE]}: see --help"


def _kind(told: str) -> str:
    for theirs, ours in _KINDS:
        told = told.replace(theirs, ours)
    return re.sub(r"[{}']", "", told)
