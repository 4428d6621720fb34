"""Which options a trial can have of its own, checked as they are given; loads nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from frozenfusion.fusion.options import HEAD, MOST_TRIALS
from frozenfusion.training.config import TrainConfig
from frozenfusion.utils.checks import at_most, whole
from frozenfusion.utils.errors import UsageError

# The inputs are shared by all trials, and so is the number of epochs.
OF_TRIALS = (
    *("lr", "text_lr", "head_lr", "weight_decay", "image_dropout", "modality_dropout", "alpha", "batch_size"),
    *("schedule", "optimizer", "warmup", "clip", "accumulate", "label_smoothing", "focal", "class_weights"),
    "standardise_images",
)


def changed(config: TrainConfig, options: Mapping[str, Any]) -> TrainConfig:
    """A config with other options, those of a head called `head.NAME`. Raises UsageError for what cannot be."""
    own = {name.removeprefix(HEAD): of for name, of in options.items() if name.startswith(HEAD)}
    rest = {name: of for name, of in options.items() if not name.startswith(HEAD)}
    return dataclasses.replace(config, **rest, head_options={**config.head_options, **own})


def check_trials(trials: int) -> None:
    """Raise UsageError for what cannot be a number of trials."""
    whole("tune", trials, 2)
    at_most("tune", trials, MOST_TRIALS)


def check_halving(halving: int, tuned: bool) -> None:
    """Raise UsageError for what cannot be a factor of successive halving."""
    if halving and not tuned:
        raise UsageError("`halving` ends trials early, and there are none: give `tune` or `grid` as well")
    if halving:
        whole("halving", halving, 2)


def check_grid(grid: Mapping[str, Sequence[Any]], config: TrainConfig) -> None:
    """Raise UsageError for options that no trial can have of its own, and for values that they cannot have."""
    for name, values in grid.items():
        if name not in OF_TRIALS and not name.startswith(HEAD):
            raise UsageError(f"`grid`: {name} is none of {', '.join(OF_TRIALS)}, nor {HEAD}NAME, a head's own option")
        if isinstance(values, str) or not values:
            raise UsageError(f"`grid`: {name} needs one or several values")
        for value in values:
            changed(config, {name: value})
