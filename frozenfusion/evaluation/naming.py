"""What several recipes of one head are called, so that a reader can tell them apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from frozenfusion.model.tuning import options_line

MOST_TOLD = 3  # options in a name


def told_apart(head: str, recipes: Sequence[Mapping[str, Any]], runs: Sequence[str]) -> list[str]:
    """`concat lr=0.001` for each recipe, by the options that differ; where these are too many, the run's own name."""
    if len(recipes) == 1:
        return [head]
    names = dict.fromkeys(name for recipe in recipes for name in recipe)
    differ = [name for name in names if any(recipe.get(name) != recipes[0].get(name) for recipe in recipes)]
    if not 0 < len(differ) <= MOST_TOLD:
        return list(runs)
    return [f"{head} {options_line({name: recipe.get(name) for name in differ})}" for recipe in recipes]
