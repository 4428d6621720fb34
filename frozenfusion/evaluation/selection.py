"""Which pairs an evaluation takes, and which of the model's classes their labels are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from frozenfusion.data.pairs import Pairs
from frozenfusion.data.views import PairView
from frozenfusion.evaluation.runs import Run
from frozenfusion.model.run_folder import UNKNOWN
from frozenfusion.utils.errors import UserError
from frozenfusion.utils.messages import first_few, some_of

Rows = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Selection:
    """The pairs that are evaluated, in the order of their ids, and what a reader of the figures must know of them."""

    name: str  # "test", "val", "train", "all", "unlabelled" or "new"
    members: PairView
    notes: tuple[str, ...] = ()

    @property
    def ids(self) -> list[str]:
        """Their ids."""
        return list(self.members.ids())


def select_pairs(pairs: Pairs, runs: Sequence[Run], wanted: str) -> Selection:
    """The pairs of the part that is `wanted`, as the runs' own split names them.

    Data of which the split knows nothing, or that has no labels, is new: all of it is taken. Raises UserError where
    no pair is left, and where the runs do not agree on the part.
    """
    part = _part_of(pairs, runs[0], wanted)
    for run in runs[1:]:
        if not np.array_equal(_part_of(pairs, run, wanted).members.rows, part.members.rows):
            raise UserError(
                f"{runs[0].path} and {run.path} were trained on different splits, so their {wanted} parts are not "
                "the same pairs: compare runs of one split, or evaluate them one by one"
            )
    return part


def _part_of(pairs: Pairs, run: Run, wanted: str) -> Selection:
    split, everything, data = run.folder.split, PairView(pairs.columns, np.arange(len(pairs))), pairs.source
    if wanted == "all":
        return Selection("all", everything)
    if wanted == "unlabelled":
        return Selection("unlabelled", PairView(pairs.columns, _unlabelled(pairs)))
    if (pairs.labels < 0).all():
        return Selection("new", everything, (f"{data} has no labels: all of its {len(pairs):,} pairs are predicted.",))
    if split.source == UNKNOWN:
        note = f"Which pairs {run.path} was trained on is not known: if {data} holds some, scores are optimistic."
        return Selection("new", everything, (note,))
    known = np.unique(np.concatenate([pairs.rows(ids) for ids in (split.train, split.val, split.test)]))
    known = known[known >= 0]
    if not len(known):
        return Selection(
            "new", everything, (f"{data} is new to the run: all of its {len(pairs):,} pairs are evaluated.",)
        )
    ids = getattr(split, wanted)
    if not ids:
        raise UserError(f"{run.path}: was trained without a {wanted} part: choose another `split`")
    rows = pairs.rows(ids)
    if (rows < 0).all():
        raise UserError(f"{data}: has none of the {len(ids):,} {wanted} pairs of {run.path}: check both paths")
    notes = []
    if (rows < 0).any():
        missing = [ids[place] for place in np.flatnonzero(rows < 0).tolist()]
        notes.append(f"{len(missing):,} of the {len(ids):,} {wanted} pairs are not in {data} ({first_few(missing)}).")
    beside = len(pairs) - len(known)
    if beside:
        notes.append(f"{beside:,} pairs of {data} are in no part of the split and left out: the split all takes them.")
    return Selection(wanted, PairView(pairs.columns, np.unique(rows[rows >= 0])), tuple(notes))


def _unlabelled(pairs: Pairs) -> Rows:
    """The positions of the pairs without a label. Raises UserError where there is none."""
    rows = np.flatnonzero(pairs.columns.label_codes < 0)
    if not len(rows):
        raise UserError(f"{pairs.source}: every pair has a label: choose another `split`")
    return rows


def model_labels(pairs: Pairs, rows: Rows, label_names: Sequence[str]) -> NDArray[np.int64]:
    """The labels (n,) of the pairs at some rows, in the model's own order of classes, -1 where there is none.

    Raises UserError for a class that the model does not know.
    """
    labels = pairs.labels[rows]
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
