"""What the commands share: flags from a dataclass, configuration files, messages and exit statuses."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import logging
import os
import re
import shutil
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar, get_type_hints

import tyro

from frozenfusion.cli.options_file import read_options
from frozenfusion.cli.wording import flag_of, worded
from frozenfusion.utils.errors import UsageError, UserError
from frozenfusion.utils.memory import keep_freed_memory
from frozenfusion.utils.messages import shown
from frozenfusion.utils.plugins import import_plugin
from frozenfusion.utils.progress import TqdmHandler, log
from frozenfusion.utils.sources import field_docs

MAX_NAME_BYTES = 255
NARROWEST = 40  # columns of a terminal
INTERRUPTED, TERMINATED = 130, 143

Groups = Mapping[str, Sequence[str]]
"""Titles, each with the names of its options."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CommonOptions:
    """What every command takes. `groups` are the options as --help shows them, all but the positional one."""

    groups: ClassVar[Groups]

    imports: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(name="import")] = ()
    """a Python file or module that registers heads or backbones; may be given several times"""

    config: Path | None = None
    """YAML or JSON file of options; flags win over it"""

    debug: bool = False
    """show the traceback of an expected failure"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataOptions(CommonOptions):
    """What every command takes that reads image–text pairs."""

    no_follow_links: bool = False
    """for data of strangers: texts and images that links lead out of its folder count as missing"""


COMMON = ("imports", "config", "debug")

Options = TypeVar("Options", bound=CommonOptions)


def run(
    kind: type[Options],
    main: Callable[[Options], str],
    arguments: Sequence[str] | None = None,
    command: str | None = None,
) -> int:
    """Parse the command line into a `kind`, call `main` with it, print what it returns, and return the exit status.

    0 done, 1 failed, 2 wrong usage, 130 interrupted, 143 terminated. Expected failures are one line on stderr, and no
    traceback unless --debug is given. `command` is how the user called the program, by default the script's name.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    command = command or Path(sys.argv[0]).name

    def say(message: str) -> str:
        return worded(message, kind, command)

    _set_up_output(say, debug="--debug" in arguments)
    try:
        with _terminable():
            said = main(parse(kind, arguments, command))
        print(say(said))
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # whoever read has gone: say no more
        return UserError.exit_status
    except UserError as error:
        if "--debug" in arguments:
            traceback.print_exc()
        print(f"error: {say(' '.join(str(error).split()))}", file=sys.stderr)
        return error.exit_status
    except _Terminated:
        print("terminated: finished work is kept, the same command resumes it", file=sys.stderr)
        return TERMINATED
    except KeyboardInterrupt:
        print("interrupted: finished work is kept, the same command resumes it", file=sys.stderr)
        return INTERRUPTED
    return 0


class _Terminated(KeyboardInterrupt):
    """The end as a service or a scheduler asks for it: like Ctrl-C, with a status of its own."""


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM end the work as Ctrl-C does, where this is the thread that hears of it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def terminate(*_: object) -> None:
        raise _Terminated

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def _set_up_output(say: Callable[[str], str], *, debug: bool) -> None:
    log.handlers = [TqdmHandler(say)]
    log.setLevel(logging.DEBUG if debug else logging.INFO)
    log.propagate = False
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a console that lacks a letter shows another
            stream.reconfigure(errors="replace")
    keep_freed_memory()


def parse(kind: type[Options], arguments: Sequence[str], command: str = "frozenfusion") -> Options:
    """Parse flags over the values of --config, if given, over the defaults. Raises UsageError."""
    for name in _values_of("import", arguments):
        _check_names(name)
        import_plugin(name)
    grouped = _grouped(kind)
    path = _values_of("config", arguments)
    default, head_options = _from_config(kind, grouped, Path(path[-1]), command) if path else (None, {})
    values = _values(_tyro(grouped, arguments, command, default))
    if head_options:  # those of the file that no flag names
        given = {word.partition("=")[0] for word in values["head_option"]}
        kept = [f"{name}={value}" for name, value in head_options.items() if name not in given]
        values["head_option"] = (*kept, *values["head_option"])
    for value in values.values():
        _check_names(*(value if isinstance(value, tuple) else [value]))
    return kind(**values)


def _check_names(*values: Any) -> None:
    """Raise UsageError for a path that no file system has: Python's own questions about one fail."""
    for value in values:
        for part in Path(value).parts if isinstance(value, str | Path) else ():
            if len(os.fsencode(part)) > MAX_NAME_BYTES:
                raise UsageError(f"{shown(part)}: longer than the {MAX_NAME_BYTES} bytes of a name: shorten it")


def _grouped(kind: type[Options]) -> type[Any]:
    """The options as tyro shows them best: a dataclass of one dataclass per group."""
    hints, docs = get_type_hints(kind, include_extras=True), field_docs(kind)
    fields = {field.name: field for field in dataclasses.fields(kind)}
    missing = dataclasses.MISSING
    (positional,) = [name for name, each in fields.items() if each.default is each.default_factory is missing]

    def described(name: str) -> tuple[str, Any, Any]:
        field = fields[name]
        default = field.default
        if field.default_factory is not missing:
            default = dataclasses.field(default_factory=field.default_factory)
        return name, Annotated[hints[name], tyro.conf.arg(help=docs[name])], default

    parts: list[Any] = [described(positional)[:2]]
    for title, names in kind.groups.items():
        group = dataclasses.make_dataclass(title, [described(name) for name in names], kw_only=True)
        parts.append((title, Annotated[group, tyro.conf.OmitArgPrefixes], dataclasses.field(default_factory=group)))
    whole = dataclasses.make_dataclass(kind.__name__, parts)
    whole.__doc__ = kind.__doc__
    return whole


def _values(grouped: Any) -> dict[str, Any]:
    """The options out of their groups."""
    values: dict[str, Any] = {}
    for field in dataclasses.fields(grouped):
        value = getattr(grouped, field.name)
        if dataclasses.is_dataclass(value):
            values |= vars(value)
        else:
            values[field.name] = value
    return values


def _tyro(grouped: type[Any], arguments: Sequence[str], command: str, default: Any = None) -> Any:
    said = io.StringIO()
    if shutil.get_terminal_size().columns < NARROWEST:
        os.environ["COLUMNS"] = str(NARROWEST)  # in less, tyro's boxes never end
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(
                grouped,
                args=list(arguments),
                default=default,
                prog=command,
                config=(tyro.conf.FlagCreatePairsOff,),
            )
    except SystemExit as stop:
        if not stop.code:
            raise  # --help
        raise UsageError(_message_in(said.getvalue())) from None


def _message_in(box: str) -> str:
    """The text inside tyro's framed message, without the title and the repeated help, as one line."""
    lines = [line.strip("╭╮╰╯│─ \t") for line in box.splitlines()]
    message = " ".join(line for line in lines[1:] if line)
    return re.split(r" (?:Argument helptext|For full helptext)", message)[0].rstrip(".") + ": see --help"


def _values_of(flag: str, arguments: Sequence[str]) -> list[str]:
    """What a flag of one value was given, before the others are parsed."""
    values = []
    for position, argument in enumerate(arguments):
        if argument == f"--{flag}" and position + 1 < len(arguments):
            values.append(arguments[position + 1])
        elif argument.startswith(f"--{flag}="):
            values.append(argument.partition("=")[2])
    return values


def _from_config(kind: type[Options], grouped: type[Any], path: Path, command: str) -> tuple[Any, dict[str, str]]:
    """The options that a configuration file gives, as flags would; what it leaves out keeps its default.

    Those of a fusion head come apart, by name, since each is laid over by a flag of its own.
    """
    positional = dataclasses.fields(grouped)[0].name
    known = {field.name: flag_of(field.name) for field in dataclasses.fields(kind)}
    hints = get_type_hints(kind)
    flags: list[str] = []
    given: list[str] = []
    head_options: dict[str, str] = {}
    for key, value in read_options(path).items():
        name = str(key).replace("-", "_")
        if name in ("import", *COMMON):
            raise UsageError(f"{path}: {key} is given on the command line alone: take it out of the file")
        if name not in known:
            raise UsageError(f"{path}: unknown option {key!r}: the options are those that --help lists")
        if name == positional:
            given = _words(value, f"{path}: {key}")
        elif name in ("head_option", "head_options"):
            head_options = _head_options(value, path)
        elif isinstance(value, bool):
            if hints[name] is not bool:
                raise UsageError(
                    f"{path}: {key} is {str(value).lower()}, which it cannot be: leave it out for the default"
                )
            flags += [known[name]] if value else []
        elif value is not None and value != []:
            words = _words(value, f"{path}: {key}")
            if any(word.startswith("--") for word in words):
                raise UsageError(f"{path}: {key}: {words[0]!r} looks like a flag: give its value alone")
            flags += [known[name], *words]
    try:
        options = _tyro(grouped, [*(given or ["-"]), *flags], command)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None
    return (options if given else dataclasses.replace(options, **{positional: tyro.MISSING})), head_options


def _head_options(value: Any, path: Path) -> dict[str, str]:
    """Options of a head as a file has them: a list of NAME=VALUE, or a mapping."""
    if isinstance(value, dict):
        strange = [name for name, of in value.items() if not isinstance(of, bool | int | float | str)]
        if strange:
            raise UsageError(f"{path}: head_options {strange[0]} is {shown(value[strange[0]])}, which it cannot be")
        return {str(name): json.dumps(of) for name, of in value.items()}
    found = {}
    for word in _words(value, f"{path}: head_option"):
        name, separator, of = word.partition("=")
        if not separator:
            raise UsageError(f"{path}: head_option {word}: expected NAME=VALUE, as in layers=4")
        found[name] = of
    return found


def _words(value: Any, source: str) -> list[str]:
    """The words of a value as a command line has them. Raises UsageError for what no command line can hold."""
    parts = value if isinstance(value, list) else [value]
    words = [str(part) for part in parts]
    if any(isinstance(part, dict | list) for part in parts) or any("\0" in word for word in words):
        raise UsageError(f"{source} is {shown(value)}, which it cannot be")
    return words
