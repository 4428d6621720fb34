"""Figures of the rounds of joint learning, as a run keeps them: what may stand in them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from frozenfusion.utils import fits
from frozenfusion.utils.errors import UserError
from frozenfusion.utils.files import read_json

JOINT_FILE = "joint.json"  # in a run's folder

# The options of joint learning and of few labels, which stand in a run's config.json where there was any.
JOINT = (
    *("joint", "rounds", "select", "per_round", "confidence", "pseudo_weight"),
    *("label_fraction", "unlabelled", "unlabelled_cache"),
)

# What is figured of each round of joint learning: by each modality alone, and together.
_LABELS_GIVEN: Mapping[str, fits.Fit] = {
    "pairs": fits.whole(0),
    "of_class": lambda value: isinstance(value, list) and len(value) > 0 and all(map(fits.whole(0), value)),
    "accuracy": fits.optional(fits.number(0, 1)),
}
_ROUND: Mapping[str, fits.Fit] = {
    "round": fits.whole(1),
    "exchanged": fits.flag,
    "labels": _LABELS_GIVEN["of_class"],
    **dict.fromkeys(("text", "image", "agreed"), lambda value: not fits.misfit(value, _LABELS_GIVEN, _LABELS_GIVEN)),
}


def checked_rounds(lines: Any, path: Path) -> list[Mapping[str, Any]]:
    """The figures of rounds that a file of a run holds. Raises UserError for anything else."""
    wrong = None if isinstance(lines, list) else "holds no list of rounds"
    for line in lines if not wrong else ():
        wrong = wrong or fits.misfit(line, _ROUND, _ROUND)
        if not wrong:
            counts = (line["labels"], *(line[name]["of_class"] for name in ("text", "image", "agreed")))
            wrong = None if len(set(map(len, counts))) == 1 else "has other classes in each count"
    if wrong:
        raise UserError(
            f"{path}: no record of joint learning ({wrong}): remove it, and the same training command makes it anew"
        )
    checked: list[Mapping[str, Any]] = lines
    return checked


def read_rounds(run: Path) -> list[Mapping[str, Any]]:
    """The figures of the rounds of joint learning in a run's folder; none where there was none. Raises UserError."""
    path = run / JOINT_FILE
    if not path.exists():
        return []
    values = read_json(path)
    return checked_rounds(values.get("history") if isinstance(values, dict) else None, path)
