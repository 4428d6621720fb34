"""What can be chosen of joint learning."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

from frozenfusion.utils.checks import at_least, at_most, one_of, tidy, whole
from frozenfusion.utils.errors import UsageError

MOST_ROUNDS = 1000


@dataclass(frozen=True, kw_only=True)
class JointConfig:
    """How pairs without a label get pseudo-labels; checked when it is made, raises UsageError."""

    joint: Literal["self", "co"] | None = None
    """also learn from pairs without a label: in self each modality labels its own, in co they then teach each other"""

    rounds: int = 8
    """how often each modality labels and learns anew"""

    select: Literal["balanced", "threshold"] = "balanced"
    """balanced: the surest of each class, by its share of the labelled pairs; threshold: all that are sure enough"""

    per_round: int | None = None
    """how many more pairs each round may label; by default balanced labels half of all in the last, threshold any"""

    confidence: float = 0.9
    """what threshold calls sure enough, a probability"""

    pseudo_weight: float = 1.0
    """weight of a pseudo-label in the loss, where a label weighs 1"""

    def __post_init__(self) -> None:
        tidy(self)
        for name in ("joint", "select") if self.joint else ("select",):
            one_of(self, name)
        whole("rounds", self.rounds, 1)
        at_most("rounds", self.rounds, MOST_ROUNDS)
        if self.per_round is not None:
            whole("per_round", self.per_round, 1)
        at_least("confidence", self.confidence, 0)
        at_most("confidence", self.confidence, 1)
        at_least("pseudo_weight", self.pseudo_weight, 0)
        at_most("pseudo_weight", self.pseudo_weight, 1)
        if not self.pseudo_weight:
            raise UsageError("`pseudo_weight` is 0, so that no pseudo-label counts: give more, or leave `joint` out")
        given = [each.name for each in fields(JointConfig) if getattr(self, each.name) != each.default]
        if given and self.joint is None:
            raise UsageError(f"`{given[0]}` means nothing without `joint`: give both, or leave it out")
        if "confidence" in given and self.select != "threshold":
            raise UsageError(
                "`confidence` means nothing to `select=balanced`: leave it out, or give `select=threshold`"
            )


def check_fraction(fraction: float) -> None:
    """Raise UsageError for what cannot be the part of the labels that count."""
    at_most("label_fraction", fraction, 1)
    if not fraction > 0:
        raise UsageError(f"`label_fraction` must be above 0, not {fraction}")
