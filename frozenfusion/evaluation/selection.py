"""Which pairs an evaluation takes, and which of the model's classes their labels are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from frozenfusion.data.pairs import Pairs
from frozenfusion.evaluation.runs import Run
from frozenfusion.model.run_folder import UNKNOWN
from frozenfusion.utils.errors import UserError
from frozenfusion.utils.messages import first_few, some_of


@dataclass(frozen=True)
class Selection:
    """The pairs that are evaluated, in the order of their ids, and what a reader of the figures must know of them."""

    name: str  # "test", "val", "train", "all", "unlabelled" or "new"
    ids: list[str]
    notes: tuple[str, ...] = ()


def select_pairs(pairs: Pairs, runs: Sequence[Run], wanted: str) -> Selection:
    """The pairs of the part that is `wanted`, as the runs' own split names them.

    Data of which the split knows nothing, or that has no labels, is new: all of it is taken. Raises UserError where
    no pair is left, and where the runs do not agree on the part.
    """
    part = _part_of(pairs, runs[0], wanted)
    for run in runs[1:]:
        if _part_of(pairs, run, wanted).ids != part.ids:
            raise UserError(
                f"{runs[0].path} and {run.path} were trained on different splits, so their {wanted} parts are not "
                "the same pairs: compare runs of one split, or evaluate them one by one"
            )
    return part


def _part_of(pairs: Pairs, run: Run, wanted: str) -> Selection:
    split, here, data = run.folder.split, set(pairs.ids), pairs.source
    if wanted == "all":
        return Selection("all", pairs.ids)
    if wanted == "unlabelled":
        return Selection("unlabelled", _unlabelled(pairs))
    if (pairs.labels < 0).all():
        return Selection("new", pairs.ids, (f"{data} has no labels: all of its {len(pairs):,} pairs are predicted.",))
    if split.source == UNKNOWN:
        note = f"Which pairs {run.path} was trained on is not known: if {data} holds some, scores are optimistic."
        return Selection("new", pairs.ids, (note,))
    known = {*split.train, *split.val, *split.test}
    if not known & here:
        return Selection(
            "new", pairs.ids, (f"{data} is new to the run: all of its {len(pairs):,} pairs are evaluated.",)
        )
    ids = getattr(split, wanted)
    if not ids:
        raise UserError(f"{run.path}: was trained without a {wanted} part: choose another `split`")
    found = sorted(here.intersection(ids))
    if not found:
        raise UserError(f"{data}: has none of the {len(ids):,} {wanted} pairs of {run.path}: check both paths")
    notes = []
    if len(found) < len(ids):
        missing = [id for id in ids if id not in here]
        notes.append(f"{len(missing):,} of the {len(ids):,} {wanted} pairs are not in {data} ({first_few(missing)}).")
    beside = len(here - known)
    if beside:
        notes.append(f"{beside:,} pairs of {data} are in no part of the split and left out: the split all takes them.")
    return Selection(wanted, found, tuple(notes))


def _unlabelled(pairs: Pairs) -> list[str]:
    """The ids of the pairs without a label. Raises UserError where there is none."""
    ids = [id for id, label in zip(pairs.ids, pairs.labels.tolist(), strict=True) if label < 0]
    if not ids:
        raise UserError(f"{pairs.source}: every pair has a label: choose another `split`")
    return ids


def labels_of(pairs: Pairs, ids: Sequence[str], label_names: Sequence[str]) -> NDArray[np.int64]:
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
            f"{pairs.source}: has the class {foreign[0]!r}, and the model knows {some_of(label_names)}: "
            "evaluate it on data with its own classes"
        )
    own = np.array([*(place.get(name, -1) for name in pairs.label_names), -1], dtype=np.int64)
    return own[labels]  # -1 takes the last
