"""The command `frozenfusion`: one word for each thing that it does."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

from frozenfusion import __version__
from frozenfusion.utils.messages import printable

COMMANDS = {
    "extract": "run the frozen image network once and store one feature row per image",
    "train": "fine-tune the text encoder and a fusion head against the cached image features",
    "evaluate": "evaluate one or several runs offline, in batches, and compare them",
    "sample": "make a small data set to try things on",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Call the command that the first word names with the words after it; the exit status."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    first = arguments[0] if arguments else "--help"
    if first in COMMANDS:
        status: int = import_module(f"frozenfusion.cli.{first}").main(arguments[1:], f"frozenfusion {first}")
        return status
    if first in ("-h", "--help"):
        print(_usage())
        return 0
    if first == "--version":
        print(f"frozenfusion {__version__}")
        return 0
    print(f"error: {printable(first)}: no such command: choose from {', '.join(COMMANDS)}", file=sys.stderr)
    return 2


def _usage() -> str:
    lines = [f"  {name:<10}{what}" for name, what in COMMANDS.items()]
    return "\n".join(
        ["usage: frozenfusion COMMAND ...", "", *lines, "", "frozenfusion COMMAND --help lists the options"]
    )
