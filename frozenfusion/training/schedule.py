"""The learning rate of every epoch, as a function of the epoch alone: nothing to save, nothing to restore."""

from __future__ import annotations

import math
from collections.abc import Callable

LOWEST = 1e-6  # the reference's eta_min
RESTART_AFTER = 10  # epochs, the reference's T_0


def learning_rate(schedule: str, *, epoch: int, epochs: int, highest: float) -> float:
    """The learning rate in `epoch` (1 is the first) of so many epochs.

    cosine-restarts is the reference's `CosineAnnealingWarmRestarts(T_0=10, T_mult=1, eta_min=1e-6)` stepped once per
    epoch: the eleventh epoch is back at the highest rate. Source: Loshchilov & Hutter, 2017 (arXiv:1608.03983).
    """
    return _SCHEDULES[schedule](epoch - 1, epochs, highest)


def warmed_up(epochs: float, warmup: float) -> float:
    """What part of its learning rate a step has that ends after so many `epochs`, of which `warmup` rise from 0.

    Source: Goyal et al., 2017 (arXiv:1706.02677). Counted in epochs, it is the same whatever the training's length.
    """
    return min(1.0, epochs / warmup) if warmup else 1.0


def _cosine(part: float, highest: float) -> float:
    lowest = min(LOWEST, highest)
    return lowest + (highest - lowest) * (1 + math.cos(math.pi * part)) / 2


_SCHEDULES: dict[str, Callable[[int, int, float], float]] = {
    "cosine-restarts": lambda done, epochs, highest: _cosine(done % RESTART_AFTER / RESTART_AFTER, highest),
    "cosine": lambda done, epochs, highest: _cosine(done / epochs, highest),
    "linear": lambda done, epochs, highest: highest * (1 - done / epochs),
    "constant": lambda done, epochs, highest: highest,
}
