"""Which options of a training mean something to which head."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from frozenfusion.fusion.base import FusionHead
from frozenfusion.fusion.registry import head_class, head_names, head_options, unsupported_reason
from frozenfusion.training.config import ALL, TrainConfig, check_heads
from frozenfusion.utils.errors import UsageError, UserError
from frozenfusion.utils.progress import log


def supported(names: Sequence[str], regions: int) -> list[str]:
    """The heads that are meant; `all` leaves out, and says so, those that the features cannot serve."""
    check_heads(names)
    wanted = head_names() if ALL in names else names
    reasons = {name: unsupported_reason(head_class(name), regions=regions) for name in wanted}
    for name, reason in reasons.items():
        if reason and name in names:
            raise UserError(reason)
        if reason:
            log.warning("left out: %s", reason)
    return [name for name, reason in reasons.items() if not reason]


def effective(config: TrainConfig, head: type[FusionHead]) -> TrainConfig:
    """A config without what means nothing to a head: what a run of it is made from."""
    usual = TrainConfig()
    own = {name: value for name, value in config.head_options.items() if name in head_options(head)}
    nothing = {name: getattr(usual, name) for name in meaningless(head)}
    return dataclasses.replace(config, **nothing, head_options=own)


def meaningless(head: type[FusionHead]) -> set[str]:
    """The options that mean nothing to a head."""
    names = set() if "alpha" in head_options(head) else {"alpha"}
    names |= set() if "text" in head.uses else {"freeze_text", "text_cache", "text_lr"}
    names |= set() if "image" in head.uses else {"image_dropout", "standardise_images", "region_pool"}
    return names | ({"region_pool"} if head.takes_regions else set())


def options_for(head: type[FusionHead], config: TrainConfig) -> dict[str, Any]:
    """What of the config's options for heads a head takes; where alpha was not given, the head's own default stays."""
    known, given = head_options(head), dict(config.head_options)
    if config.alpha != TrainConfig().alpha or known.get("alpha") == config.alpha:
        given["alpha"] = config.alpha
    return {name: given[name] for name in known if name in given}


def refuse_meaningless(config: TrainConfig, heads: Sequence[str]) -> None:
    """Raise UsageError for options that were given and that none of the heads has a use for."""
    kinds, usual, named = [head_class(head) for head in heads], TrainConfig(), ", ".join(heads)
    for name in set.intersection(*map(meaningless, kinds)):
        if getattr(config, name) != getattr(usual, name):
            raise UsageError(f"`{name}` means nothing to {named}: leave it out")
    taken = {name for kind in kinds for name in head_options(kind)}
    for name in config.head_options.keys() - taken:
        known = ", ".join(sorted(taken)) or "none"
        raise UsageError(f"`head_options` {name} means nothing to {named}, whose options are: {known}")
