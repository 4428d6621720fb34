"""The fusion heads there are: what `head` can name, and what each can be given."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from frozenfusion.fusion import decision, feature, sequence  # noqa: F401  (each registers its heads)
from frozenfusion.fusion.base import HEADS, FusionHead
from frozenfusion.utils.errors import UsageError
from frozenfusion.utils.messages import first_line

_COMMON = ("width", "text_width", "classes")


def head_names() -> list[str]:
    """Every head: the built-in ones, those registered, those of installed packages."""
    return HEADS.names()


def head_class(name: str) -> type[FusionHead]:
    """The head called `name`. Raises UsageError that lists the names there are."""
    found = HEADS.get(name) if isinstance(name, str) else None
    if found is None:
        raise UsageError(f"{name}: no such fusion head: choose from {', '.join(head_names())}")
    return found


def head_options(head: type[FusionHead]) -> dict[str, Any]:
    """The options of its own that a head takes, with their defaults."""
    parameters = inspect.signature(head).parameters
    return {key: parameter.default for key, parameter in parameters.items() if key not in _COMMON}


def check_options(head: type[FusionHead], options: Mapping[str, Any]) -> None:
    """Raise UsageError for an option that a head does not take, or of another kind than its default."""
    known, parameters = head_options(head), inspect.signature(head).parameters
    for name, value in options.items():
        if name not in known:
            told = ", ".join(f"{key}={default}" for key, default in known.items()) or "none"
            raise UsageError(f"fusion head {head.name}: no option {name!r}: its options are: {told}")
        kind = type(known[name])
        if kind in (bool, int) and type(value) is not kind:
            raise UsageError(f"fusion head {head.name}: {name}={value}: expected {_KINDS[kind]}, as in {known[name]}")
        numbers = (int, float, str) if "str" in str(parameters[name].annotation) else (int, float)
        if kind is float and (isinstance(value, bool) or not isinstance(value, numbers)):
            raise UsageError(f"fusion head {head.name}: {name}={value}: expected a number, as in {known[name]}")


_KINDS = {bool: "true or false", int: "a whole number"}


def unsupported_reason(head: type[FusionHead], *, regions: int) -> str | None:
    """Why a head cannot be built on image features with so many regions (0: pooled), or None where it can."""
    if head.needs_regions and regions < 2:
        return (
            f"{head.name} attends over image regions, and the features are one pooled vector per image "
            "(attention over one key is constant): extract with `pool=none`, or choose another head"
        )
    return None


def build_head(head: type[FusionHead], *, width: int, text_width: int, classes: int, **options: Any) -> FusionHead:
    """A new head for features of `width`, text tokens of `text_width`, and so many classes.

    Raises UsageError for an option that the head does not take.
    """
    check_options(head, options)
    try:
        return head(width=width, text_width=text_width, classes=classes, **options)
    except (ArithmeticError, RuntimeError, TypeError, ValueError) as error:
        told = ", ".join(f"{name}={value}" for name, value in options.items()) or "its defaults"
        raise UsageError(f"fusion head {head.name}: cannot be built with {told} ({first_line(error)})") from error


def source_of(kind: type[Any]) -> dict[str, str]:
    """Where the class of a head or a tracker comes from, to import it again; nothing for those that are built in."""
    if kind.__module__.split(".")[0] == "frozenfusion":
        return {}
    try:
        file = inspect.getsourcefile(kind)
    except (OSError, TypeError):  # typed into a notebook or a shell
        file = None
    return {"class": kind.__qualname__, "module": kind.__module__, **({"file": file} if file else {})}
