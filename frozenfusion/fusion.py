"""The fusion heads and their one registry: what `--fusion NAME` can name, and what each can be given."""

from __future__ import annotations

import inspect
from typing import Any

from frozenfusion import fusion_decision, fusion_feature, fusion_sequence  # noqa: F401  (each registers its heads)
from frozenfusion.errors import UsageError, UserError
from frozenfusion.fusion_base import FUSION_HEADS, FusionHead, Inputs, Output, register

__all__ = ["FUSION_HEADS", "FusionHead", "Inputs", "Output", "build_head", "head_options", "register", "why_not"]

_COMMON = ("width", "text_width", "classes")


def head_class(name: str) -> type[FusionHead]:
    """The head called `name`. Raises UsageError that lists the names there are."""
    if name not in FUSION_HEADS:
        raise UsageError(f"--fusion {name}: no such fusion head: choose from {', '.join(FUSION_HEADS)}, or all")
    return FUSION_HEADS[name]


def head_options(name: str) -> dict[str, Any]:
    """The options of its own that a head takes, with their defaults."""
    parameters = inspect.signature(head_class(name)).parameters
    return {key: parameter.default for key, parameter in parameters.items() if key not in _COMMON}


def why_not(name: str, *, regions: int) -> str | None:
    """Why a head cannot be built on image features with so many regions (0: pooled), or None where it can."""
    if head_class(name).needs_regions and regions < 2:
        return (
            f"--fusion {name} attends over image regions, and the cache holds one pooled vector an image "
            "(attention over one key is constant): extract with --pool none, or choose another head"
        )
    return None


def build_head(name: str, *, width: int, text_width: int, classes: int, **options: Any) -> FusionHead:
    """A new head for features of `width`, text tokens of `text_width`, and so many classes.

    Raises UserError for an unknown name or an option that the head does not take.
    """
    head = head_class(name)
    unknown = sorted(options.keys() - head_options(name).keys())
    if unknown:
        known = ", ".join(head_options(name)) or "none"
        raise UserError(f"fusion head {name}: unknown option {', '.join(unknown)}: its options are: {known}")
    return head(width=width, text_width=text_width, classes=classes, **options)
