"""What the commands share: flags from a dataclass, configuration files, messages and exit statuses."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import logging
import os
import shutil
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, TypeVar, get_type_hints

import tyro

from frozenfusion.cli.groups import Groups, grouped_options, ungrouped
from frozenfusion.cli.options_file import read_options
from frozenfusion.cli.streams import unfailing_streams, with_one_voice
from frozenfusion.cli.wording import flag_of, usage_message, worded
from frozenfusion.utils.errors import UsageError, UserError
from frozenfusion.utils.interrupts import Terminated, interruptible
from frozenfusion.utils.memory import keep_freed_memory
from frozenfusion.utils.messages import for_terminal, shown
from frozenfusion.utils.plugins import import_plugin
from frozenfusion.utils.progress import TqdmHandler, log

if TYPE_CHECKING:
    from frozenfusion.data.pairs import Pairs

MAX_NAME_BYTES = 255
NARROWEST = 40  # columns of a terminal
INTERRUPTED, TERMINATED = 130, 143
RESUMED = "finished work is kept, the same command resumes it"


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

    @property
    def when_interrupted(self) -> str:
        """What becomes of work that is interrupted."""
        return "the same command begins anew"

    @classmethod
    def passes_over(cls, option: str, flags: Sequence[str]) -> bool:
        """Whether an option of a configuration file is beside the point of what the flags ask for."""
        return False

    @classmethod
    def recipe_options(cls, name: str) -> Mapping[str, Any]:
        """The options that a value of `recipe` stands for, where there is such an option. Raises UsageError."""
        return {}


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataOptions(CommonOptions):
    """What every command takes that reads image–text pairs."""

    no_follow_links: bool = False
    """for data of strangers: texts and images that links lead out of its folder count as missing"""

    remote: bool = False
    """let a manifest name images anywhere in object stores (s3://bucket/1.jpg), not only below its own folder"""

    columns: str | None = None
    """what a table calls the columns id, text, image, label and split, as in text=caption,image=img"""

    def load(self, data: Path) -> Pairs:
        """The pairs of `data`, read as the options say. Raises UserError."""
        from frozenfusion.data.pairs import load_pairs

        return load_pairs(data, **self.reading)

    @property
    def reading(self) -> dict[str, Any]:
        """How pairs are read, as `load_pairs` takes it. Raises UsageError."""
        words = [word.partition("=") for word in (self.columns or "").split(",") if word]
        if not all(name for _, _, name in words):
            raise UsageError(f"`columns` are NAME=COLUMN, as in text=caption,image=img, not {shown(self.columns)}")
        named = {role.strip(): name.strip() for role, _, name in words}
        if len(named) < len(words):
            raise UsageError(f"`columns` say twice what one of them is called: {shown(self.columns)}")
        return {"follow_links": not self.no_follow_links, "remote": self.remote, "columns": named}


COMMON = ("imports", "config", "debug")
READING = ("no_follow_links", "remote", "columns")

Options = TypeVar("Options", bound=CommonOptions)


def run(
    kind: type[Options],
    main: Callable[[Options], str],
    arguments: Sequence[str] | None = None,
    command: str | None = None,
    *,
    rank: int = 0,
) -> int:
    """Parse the command line into a `kind`, call `main` with it, print what it returns, and return the exit status.

    0 done, 1 failed, or done and standard output could not be written, 2 wrong usage, 130 interrupted, 143 terminated.
    Expected failures are one line on stderr, and no traceback unless --debug is given. `command` is how the user
    called the program, by default the script's name. Of several processes that do one work that of `rank` 0 talks.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    command = command or Path(sys.argv[0]).name

    def say(message: str) -> str:
        return for_terminal(worded(message, kind, command))

    with unfailing_streams() as output, interruptible():
        _set_up_messages(say, debug="--debug" in arguments)
        status = with_one_voice(lambda: _status(kind, main, arguments, command, say), rank)
        output.flush()
        if output.error is None or status:
            return status
        if not isinstance(output.error, BrokenPipeError):  # else whoever read has had enough
            print(f"error: the work is done, but standard output could not be written: {output.error}", file=sys.stderr)
        return UserError.exit_status


def _status(
    kind: type[Options],
    main: Callable[[Options], str],
    arguments: Sequence[str],
    command: str,
    say: Callable[[str], str],
) -> int:
    """Do the work and print what came out, or why nothing did; the exit status."""
    kept = ""
    try:
        options = parse(kind, arguments, command)
        kept = f": {options.when_interrupted}"
        print(say(main(options)), flush=True)
    except UserError as error:
        if "--debug" in arguments:
            print(for_terminal(traceback.format_exc()), file=sys.stderr)
        print(f"error: {say(' '.join(str(error).split()))}", file=sys.stderr)
        return error.exit_status
    except Terminated:
        print(f"terminated{kept}", file=sys.stderr)
        return TERMINATED
    except KeyboardInterrupt:
        print(f"interrupted{kept}", file=sys.stderr)
        return INTERRUPTED
    except SystemExit as end:  # --help
        if end.code:
            raise
    return 0


def _set_up_messages(say: Callable[[str], str], *, debug: bool) -> None:
    log.handlers = [TqdmHandler(say)]
    log.setLevel(logging.DEBUG if debug else logging.INFO)
    log.propagate = False
    keep_freed_memory()


def parse(kind: type[Options], arguments: Sequence[str], command: str = "frozenfusion") -> Options:
    """Parse flags over those of their --recipe, over the values of --config, over its recipe's, over the defaults.

    Raises UsageError.
    """
    for name in _values_of("import", arguments):
        _check_names(name)
        import_plugin(name)
    grouped = grouped_options(kind)  # type: ignore[arg-type]  # mypy doubts that a class has a hash
    paths, recipes = _values_of("config", arguments), _values_of("recipe", arguments)
    default: Any = None
    head_options: dict[str, str] = {}
    if paths or recipes:
        values: Mapping[Any, Any] = read_options(Path(paths[-1])) if paths else {}
        layers = [values, kind.recipe_options(recipes[-1])] if recipes else [values]
        if "recipe" in values:
            layers.insert(0, kind.recipe_options(str(values["recipe"])))
        source = paths[-1] if paths else f"recipe {recipes[-1]}"
        default, head_options = _from_config(kind, grouped, layers, source, arguments, command)
    values = ungrouped(_tyro(grouped, arguments, command, default))
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
            try:
                size = len(os.fsencode(part))
            except UnicodeEncodeError as error:
                raise UsageError(f"{shown(part)}: no name that a file can have: correct it") from error
            if size > MAX_NAME_BYTES:
                raise UsageError(f"{shown(part)}: longer than the {MAX_NAME_BYTES} bytes of a name: shorten it")


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
                config=(tyro.conf.FlagCreatePairsOff, tyro.conf.HelptextFromCommentsOff),  # to look for those is slow
            )
    except SystemExit as stop:
        if not stop.code:
            raise  # --help
        raise UsageError(usage_message(said.getvalue())) from None


def _values_of(flag: str, arguments: Sequence[str]) -> list[str]:
    """What a flag of one value was given, before the others are parsed."""
    values = []
    for position, argument in enumerate(arguments):
        if argument == f"--{flag}" and position + 1 < len(arguments):
            values.append(arguments[position + 1])
        elif argument.startswith(f"--{flag}="):
            values.append(argument.partition("=")[2])
    return values


def _from_config(
    kind: type[Options],
    grouped: type[Any],
    layers: Sequence[Mapping[Any, Any]],
    path: str,
    arguments: Sequence[str],
    command: str,
) -> tuple[Any, dict[str, str]]:
    """The options that a configuration file and recipes give, the later layer over the earlier, as flags would.

    What they leave out keeps its default. Those of a fusion head come apart, by name, since each is laid over by a flag
    of its own.
    """
    positional = dataclasses.fields(grouped)[0].name
    known = {field.name: flag_of(field.name) for field in dataclasses.fields(kind)}
    hints = get_type_hints(kind)
    flags: list[str] = []
    given: list[str] = []
    head_options: dict[str, str] = {}
    options = {str(key).replace("-", "_"): (key, value) for layer in layers for key, value in layer.items()}
    for name, (key, value) in options.items():
        if name in ("import", *COMMON):
            raise UsageError(f"{path}: {key} is given on the command line alone: take it out of the file")
        if name not in known:
            raise UsageError(f"{path}: unknown option {key!r}: the options are those that --help lists")
        if kind.passes_over(name, arguments):
            continue
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
            each = [[word] for word in words] if name == "track" else [words]  # which is given for each of them
            flags += [word for some in each for word in (known[name], *some)]
    try:
        default = _tyro(grouped, [*(given or ["-"]), *flags], command)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None
    return (default if given else dataclasses.replace(default, **{positional: tyro.MISSING})), head_options


def _head_options(value: Any, path: str) -> dict[str, str]:
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
