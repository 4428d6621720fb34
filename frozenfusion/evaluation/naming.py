"""What several recipes of one head are called, so that a reader can tell them apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from frozenfusion.model.tuning import options_line

MOST_TOLD, LONGEST = 3, 80  # options in a name, and its letters


def told_apart(head: str, recipes: Sequence[Mapping[str, Any]], runs: Sequence[str]) -> list[str]:
    """`concat lr=0.001` for each recipe, by the options that differ; where that is too long, the run's own name."""
    if len(recipes) == 1:
        return [head]
    names = dict.fromkeys(name for recipe in recipes for name in recipe)
    differ = [name for name in names if any(recipe.get(name) != recipes[0].get(name) for recipe in recipes)]
    told = [
        f"{head} {options_line({name: recipe[name] for name in differ if recipe.get(name) is not None})}".strip()
        for recipe in recipes
    ]
    clear = 0 < len(differ) <= MOST_TOLD and len(set(told)) == len(told) and max(map(len, told)) <= LONGEST
    return told if clear else list(runs)
