"""The options of a command in groups, as --help shows them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, get_type_hints

import tyro

from frozenfusion.utils.sources import field_docs

Groups = Mapping[str, Sequence[str]]
"""Titles, each with the names of its options."""


@functools.cache
def grouped_options(kind: Any) -> type[Any]:
    """The options as tyro shows them best: a dataclass of one dataclass per group. It is made once."""
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


def ungrouped(grouped: Any) -> dict[str, Any]:
    """The options out of their groups."""
    values: dict[str, Any] = {}
    for field in dataclasses.fields(grouped):
        value = getattr(grouped, field.name)
        if dataclasses.is_dataclass(value):
            values |= vars(value)
        else:
            values[field.name] = value
    return values
