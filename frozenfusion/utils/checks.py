"""Checks of a config's values, in messages that name the parameter: the command line shows it as the flag."""

from __future__ import annotations

import math
import os
from functools import cache
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from frozenfusion.utils.errors import UsageError
from frozenfusion.utils.messages import shown

Config = TypeVar("Config")


def tidy(config: Any, *paths: str) -> None:
    """Make numpy scalars of a frozen dataclass plain values, and its fields `paths`, which may be paths, strings."""
    for name, value in list(vars(config).items()):
        if name in paths:
            object.__setattr__(config, name, os.fspath(value))
        elif hasattr(value, "item"):
            object.__setattr__(config, name, value.item())


def config_of(kind: type[Config], config: Config | None) -> Config:
    """The config itself, or the default one. Raises UsageError for anything else."""
    if config is None:
        return kind()
    if not isinstance(config, kind):
        raise UsageError(f"`config` is a {kind.__name__}, not {config!r}")
    return config


def at_least(name: str, value: float, bound: float) -> None:
    """Raise UsageError for what is no number, or below `bound`."""
    _number(name, value)
    if not value >= bound:
        raise UsageError(f"`{name}` must be at least {bound}, not {value}")


def at_most(name: str, value: float, bound: float) -> None:
    """Raise UsageError for what is no number, or above `bound`."""
    _number(name, value)
    if not value <= bound:
        raise UsageError(f"`{name}` must be at most {bound}, not {value}")


def below(name: str, value: float, bound: float) -> None:
    """Raise UsageError for what is no number, or `bound` or more."""
    _number(name, value)
    if not value < bound:
        raise UsageError(f"`{name}` must be below {bound}, not {value}")


def whole(name: str, value: int, bound: int) -> None:
    """Raise UsageError for what is no whole number, or below `bound`."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise UsageError(f"`{name}` must be a whole number, not {value!r}")
    at_least(name, value, bound)


@cache
def _hints(kind: type[Any]) -> dict[str, Any]:
    return get_type_hints(kind)


def one_of(config: Any, name: str) -> None:
    """Raise UsageError unless the field `name` of a dataclass has one of the values that its Literal lists."""
    value, kind = getattr(config, name), _hints(type(config))[name]  # type: ignore[arg-type]  # a class is hashable
    allowed = [each for part in (kind, *get_args(kind)) if get_origin(part) is Literal for each in get_args(part)]
    if value not in allowed:
        raise UsageError(f"`{name}` must be one of {', '.join(map(str, allowed))}, not {value!r}")


def _number(name: str, value: float) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool) or value in (math.inf, -math.inf):
        raise UsageError(f"`{name}` must be a number, not {shown(value)}")
