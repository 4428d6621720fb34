"""What the three scripts share: parsing, configuration files, messages and exit statuses."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import logging
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import tyro

from frozenfusion.errors import UsageError, UserError
from frozenfusion.memory import keep_freed_memory
from frozenfusion.progress import TqdmHandler, log

INTERRUPTED = 130

Options = TypeVar("Options")


def run(kind: type[Options], main: Callable[[Options], None], arguments: Sequence[str] | None = None) -> int:
    """Parse the command line into a `kind`, call `main` with it, and return the exit status.

    0 done, 1 failed, 2 wrong usage, 130 interrupted. Expected failures are one line on stderr, without a traceback
    unless --debug is given.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    log.handlers = [TqdmHandler()]
    log.setLevel(logging.INFO)
    log.propagate = False
    keep_freed_memory()
    try:
        options = parse(kind, arguments)
        options.check()  # type: ignore[attr-defined]
        main(options)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # whoever read has gone: say no more
        return UserError.exit_status
    except UserError as error:
        if "--debug" in arguments:
            traceback.print_exc()
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        print("interrupted: finished work is kept, the same command goes on from here", file=sys.stderr)
        return INTERRUPTED
    return 0


def parse(kind: type[Options], arguments: Sequence[str]) -> Options:
    """Parse flags over the values of --config, if given, over the defaults. Raises UsageError."""
    default = _from_config(kind, _config_path(arguments))
    return _tyro(kind, arguments, default)


def _tyro(kind: type[Options], arguments: Sequence[str], default: Options | None = None) -> Options:
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(  # type: ignore[return-value]
                kind,
                args=list(arguments),
                default=default,
                prog=Path(sys.argv[0]).name,
                config=(tyro.conf.FlagCreatePairsOff,),
            )
    except SystemExit as stop:
        if not stop.code:
            raise  # --help
        raise UsageError(_one_line(said.getvalue())) from None


def _one_line(box: str) -> str:
    """The text inside tyro's framed message, without the title and the repeated help, as one line."""
    lines = [line.strip("╭╮╰╯│─ \t") for line in box.splitlines()]
    message = " ".join(line for line in lines[1:] if line)
    return re.split(r" (?:Argument helptext|For full helptext)", message)[0].rstrip(".") + ": see --help"


def _config_path(arguments: Sequence[str]) -> Path | None:
    path = None
    for position, argument in enumerate(arguments):
        if argument == "--config" and position + 1 < len(arguments):
            path = Path(arguments[position + 1])
        elif argument.startswith("--config="):
            path = Path(argument.removeprefix("--config="))
    return path


def _from_config(kind: type[Options], path: Path | None) -> Options | None:
    """The options that a configuration file gives, checked as flags are; what it leaves out keeps its default."""
    if path is None:
        return None
    values = _read_config(path)
    positional = dataclasses.fields(kind)[0].name  # type: ignore[arg-type]
    known = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    flags, given = [], []
    for key, value in values.items():
        name = str(key).replace("-", "_")
        if name not in known:
            raise UsageError(f"{path}: unknown option {key!r}: the options are those that --help lists")
        if name == positional:
            given = _words(value)
        elif value is not None and value is not False and value != []:
            flags += [f"--{name.replace('_', '-')}", *([] if value is True else _words(value))]
    try:
        options = _tyro(kind, [*(given or ["-"]), *flags])
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None
    return options if given else dataclasses.replace(options, **{positional: tyro.MISSING})  # type: ignore[type-var]


def _read_config(path: Path) -> dict[Any, Any]:
    import yaml

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: cannot read the configuration file ({error.strerror}): check the path") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from error
    if isinstance(values, dict) and isinstance(values.get("options"), dict):
        values = values["options"]  # a run's config.json
    if not isinstance(values, dict):
        raise UsageError(f"{path}: a configuration file holds lines of `option: value`")
    return values


def _words(value: Any) -> list[str]:
    return [str(part) for part in value] if isinstance(value, list) else [str(value)]
