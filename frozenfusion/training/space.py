"""What tuning tries of each head: options drawn at random from its space, or the points of a grid.

Random search: Bergstra & Bengio, Random Search for Hyper-Parameter Optimization, JMLR 13:281, 2012.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from frozenfusion.fusion.base import FusionHead
from frozenfusion.fusion.options import HEAD, MOST_TRIALS, Range, Space
from frozenfusion.fusion.registry import head_options
from frozenfusion.training.config import TrainConfig
from frozenfusion.training.grid import OF_TRIALS
from frozenfusion.training.options import meaningless
from frozenfusion.utils.errors import UsageError

RATES = Range(3e-5, 1e-2, log=True)  # of what is trained from scratch
FINE_TUNING_RATES = Range(3e-6, 1e-4, log=True)  # of a pretrained text encoder
DECAYS = {"adam": Range(1e-7, 1e-3, log=True), "adamw": Range(1e-4, 1e-1, log=True)}
DROPOUTS = Range(0.0, 0.8)


def search_space(head: type[FusionHead], config: TrainConfig) -> dict[str, Range | Sequence[Any]]:
    """What random search tries of a head: learning rates, weight decay, dropout, and what the head declares.

    Raises UsageError for a head that declares no values.
    """
    for name, of in head.search_space.items():
        if not isinstance(of, Range | list | tuple) or of in ([], ()):
            raise UsageError(f"fusion head {head.name}: search_space: {name} needs a Range, or a tuple of values")
    fine_tuned = not config.freeze_text and config.text_weights == "pretrained" and not config.is_recurrent
    rates: Space = {"lr" if config.head_lr is None else "head_lr": RATES}
    if fine_tuned and "text" in head.uses:
        rates = {"head_lr": RATES, "text_lr": FINE_TUNING_RATES}
    common = {**rates, "weight_decay": DECAYS[config.optimizer], "image_dropout": DROPOUTS}
    own = {name if name == "alpha" else HEAD + name: of for name, of in head.search_space.items()}
    return {name: of for name, of in {**common, **own}.items() if name not in meaningless(head)}


def drawn(space: Space, seed: int, head: str, number: int) -> dict[str, Any]:
    """The options of a trial, which follow from the seed, the head's name and the trial's number alone."""
    random = np.random.default_rng([seed, zlib.crc32(head.encode()), number])
    return {name: _at(of, float(random.random())) for name, of in space.items()}


def _at(of: Range | Sequence[Any], share: float) -> Any:
    return of.at(share) if isinstance(of, Range) else of[int(share * len(of))]


def grid_points(grid: Mapping[str, Sequence[Any]], head: type[FusionHead]) -> list[dict[str, Any]]:
    """Every combination of the values of those options that mean something to a head. Raises UsageError for many."""
    known = {HEAD + name for name in head_options(head)} | set(OF_TRIALS) - meaningless(head)
    names = [name for name in grid if name in known]
    count = math.prod(len(grid[name]) for name in names)
    if count > MOST_TRIALS:
        raise UsageError(f"`grid`: {count:,} trials of {head.name}, more than {MOST_TRIALS:,}: give fewer values")
    return [dict(zip(names, values, strict=True)) for values in itertools.product(*(grid[name] for name in names))]


def given(names: Iterable[str], head: type[FusionHead], config: TrainConfig) -> dict[str, Any]:
    """What options are where no trial changes them."""
    values = {**dataclasses.asdict(config), **{HEAD + name: of for name, of in head_options(head).items()}}
    values |= {HEAD + name: of for name, of in config.head_options.items()}
    return {name: config.lr if values[name] is None else values[name] for name in names}  # rates alone can be None
