"""Which pairs an evaluation takes, and which of the model's classes their labels are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from frozenfusion.errors import UserError
from frozenfusion.pairs import Pairs
from frozenfusion.runs import Run

PARTS = ("train", "val", "test")


@dataclass(frozen=True)
class Part:
    """The pairs that are evaluated, in the order of their ids, and what a reader of the figures must know of them."""

    name: str  # "test", "val", "train", "all" or "new"
    ids: list[str]
    notes: tuple[str, ...] = ()


def choose_part(pairs: Pairs, runs: Sequence[Run], wanted: str, data: Path) -> Part:
    """The pairs of the part that is `wanted`, as the runs' own split names them.

    Data of which the split knows nothing, or that has no labels, is new: all of it is taken. Raises UserError where
    no pair is left, and where the runs do not agree on the part.
    """
    part = _part_of(pairs, runs[0], wanted, data)
    for run in runs[1:]:
        if _part_of(pairs, run, wanted, data).ids != part.ids:
            raise UserError(
                f"{runs[0].folder} and {run.folder} were trained on different splits, so their {wanted} parts are not "
                "the same pairs: compare runs of one split, or evaluate them one by one"
            )
    return part


def _part_of(pairs: Pairs, run: Run, wanted: str, data: Path) -> Part:
    split, here = run.split, set(pairs.ids)
    if wanted == "all":
        return Part("all", pairs.ids)
    if (pairs.labels < 0).all():
        return Part("new", pairs.ids, (f"{data} has no labels: all of its {len(pairs):,} pairs are predicted.",))
    known = {*split.train, *split.val, *split.test}
    if not known & here:
        return Part("new", pairs.ids, (f"{data} is new to the run: all of its {len(pairs):,} pairs are evaluated.",))
    ids = getattr(split, wanted)
    if not ids:
        raise UserError(f"{run.folder}: was trained without a {wanted} part: choose another --split")
    found = sorted(here.intersection(ids))
    if not found:
        raise UserError(f"{data}: has none of the {len(ids):,} {wanted} pairs of {run.folder}: check both paths")
    notes = []
    if len(found) < len(ids):
        missing = [id for id in ids if id not in here]
        told = ", ".join(missing[:3]) + (", …" if len(missing) > 3 else "")
        notes.append(f"{len(missing):,} of the {len(ids):,} {wanted} pairs are not in {data} ({told}).")
    beside = len(here - known)
    if beside:
        notes.append(f"{beside:,} pairs of {data} are in no part of the split and left out: --split all takes them.")
    return Part(wanted, found, tuple(notes))


def labels_of(pairs: Pairs, ids: Sequence[str], label_names: Sequence[str], data: Path) -> NDArray[np.int64]:
    """The labels (n,) of pairs in the model's own order of classes, -1 where there is none.

    Raises UserError for a class that the model does not know.
    """
    labels = pairs.labels[pairs.rows(ids)]
    place = {name: index for index, name in enumerate(label_names)}
    foreign = [
        pairs.label_names[label] for label in np.unique(labels[labels >= 0]) if pairs.label_names[label] not in place
    ]
    if foreign:
        raise UserError(
            f"{data}: has the class {foreign[0]!r}, and the model knows {', '.join(label_names)}: "
            "evaluate it on data with its own classes"
        )
    own = np.array([*(place.get(name, -1) for name in pairs.label_names), -1], dtype=np.int64)
    return own[labels]  # -1 takes the last
