"""What torchrun, or another launcher of its kind, tells each of the processes that it starts for one training."""

from __future__ import annotations

import os

_MEETING = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # without one of them processes cannot find each other


def rank() -> int:
    """The number of this process among all, 0 of the first, or of one alone."""
    return _number("RANK", 0)


def world_size() -> int:
    """How many processes there are."""
    return _number("WORLD_SIZE", 1)


def local_rank() -> int:
    """The number of this process among those of its machine, and of its GPU."""
    return _number("LOCAL_RANK", 0)


def _number(name: str, alone: int) -> int:
    value = os.environ.get(name, "")
    return int(value) if value.isdecimal() and all(map(os.environ.get, _MEETING)) else alone
