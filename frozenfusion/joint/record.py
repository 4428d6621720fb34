"""What joint learning leaves on the disk: joint.json, from which it goes on, and pseudo.csv, for a person.

joint.json is replaced whole after each round. Shapes: n pairs to be labelled, c classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from frozenfusion.fusion.base import MODALITIES
from frozenfusion.joint.selection import NOT_LABELLED, agreed
from frozenfusion.model.checksums import with_checksum, without_checksum
from frozenfusion.model.rounds import JOINT_FILE, checked_rounds
from frozenfusion.model.run_folder import RunFolder
from frozenfusion.training.checkpoint import State
from frozenfusion.training.origin import refuse_changes
from frozenfusion.utils import fits
from frozenfusion.utils.errors import UserError
from frozenfusion.utils.files import keep_current, read_json, write_json
from frozenfusion.utils.messages import shown
from frozenfusion.utils.tables import to_csv

FORMAT = 1

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


class Given(NamedTuple):
    """A pseudo-label that a teacher gave, and as long as it gave no other, and did not withdraw it, gives."""

    place: int  # of the pair, in [0, n)
    round: int  # in which it was given
    teacher: str  # "text" or "image"
    label: int
    confidence: float  # of the teacher when it gave it
    until: int | None = None  # the round that withdrew it


@dataclass
class Record:
    """How far joint learning is: the figures of its rounds, all labels that were given, and what it was made from."""

    made_from: Mapping[str, Any]
    history: list[Mapping[str, Any]] = field(default_factory=list)
    given: list[Given] = field(default_factory=list)

    @property
    def rounds(self) -> int:
        """Rounds done."""
        return len(self.history)

    def of(self, teacher: str, n: int) -> Ints:
        """The labels (n,) that a teacher gives at present."""
        labels = np.full(n, NOT_LABELLED, np.int64)
        for each in self.given:
            if each.teacher == teacher and each.until is None:
                labels[each.place] = each.label
        return labels

    def agreed(self, n: int) -> Ints:
        """The labels (n,) on which the teachers agree at present."""
        text, image = (self.of(name, n) for name in MODALITIES)
        return agreed(text, image)

    def give(self, teacher: str, labels: Ints, confidences: Floats) -> None:
        """Let a teacher give labels (n,) in the round under way; what it no longer gives is withdrawn."""
        number, before = self.rounds + 1, self.of(teacher, len(labels))
        changed = labels != before
        for place, each in enumerate(self.given):
            if each.teacher == teacher and each.until is None and changed[each.place]:
                self.given[place] = each._replace(until=number)
        for place in np.flatnonzero(changed & (labels != NOT_LABELLED)).tolist():
            self.given.append(Given(place, number, teacher, int(labels[place]), round(float(confidences[place]), 6)))

    def as_csv(self, ids: Sequence[str], label_names: Sequence[str]) -> str:
        """A line for each label that was given: id, round, teacher, label, confidence, and 1 where it is kept."""
        kept = self.agreed(len(ids))
        lines: list[list[object]] = [["id", "round", "teacher", "label", "confidence", "kept"]]
        for each in self.given:
            is_kept = each.until is None and kept[each.place] == each.label
            named = [ids[each.place], each.round, each.teacher, label_names[each.label], each.confidence]
            lines.append([*named, int(is_kept)])
        return to_csv(lines)


def read_record(folder: RunFolder, made_from: Mapping[str, Any], n: int, classes: int) -> Record:
    """How far joint learning in a folder is. Raises UserError for a damaged file, and where it was made from others."""
    path = folder.file(JOINT_FILE)
    if not path.exists():
        return Record(made_from)
    mend = "the same training command"
    values = read_json(path)
    wrong = fits.misfit(values, _FITS, ("format", *_FITS))
    if not wrong and values["format"] != FORMAT:
        wrong = f"format {shown(values['format'])}, and this program reads {FORMAT}"
    if not wrong:
        values = without_checksum(values, path, mend)
        history = checked_rounds(values["history"], path)
        refuse_changes(folder, State(values["made_from"]), made_from)
        known = all(_is_given(line, n, classes, len(history)) for line in values["given"])
        wrong = None if known else "given names what there is not"
    if wrong:
        raise UserError(f"{path}: no record of joint learning ({wrong}): remove it, and {mend} begins anew")
    return Record(values["made_from"], values["history"], [Given(*line) for line in values["given"]])


def write_record(folder: RunFolder, record: Record, ids: Sequence[str], label_names: Sequence[str]) -> None:
    """Make the round that just ended count. Raises UserError where the disk refuses: then the one before counts."""
    write_json(folder.file(JOINT_FILE), with_checksum({"format": FORMAT, **asdict(record)}))
    write_table(folder, record, ids, label_names)


def write_table(folder: RunFolder, record: Record, ids: Sequence[str], label_names: Sequence[str]) -> None:
    """Write pseudo.csv, unless it says just what the record does."""
    keep_current(folder.file("pseudo.csv"), record.as_csv(ids, label_names))


def _is_list(value: Any) -> bool:
    return isinstance(value, list)


_FITS: Mapping[str, fits.Fit] = {"made_from": fits.mapping, "history": _is_list, "given": _is_list}


def _is_given(line: Any, n: int, classes: int, rounds: int) -> bool:
    """Whether a line of a file can be a Given."""
    if not isinstance(line, list) or len(line) != len(Given._fields):
        return False
    a_round = fits.whole(1, rounds)
    kinds: Sequence[fits.Fit] = (
        *(fits.whole(0, n - 1), a_round, MODALITIES.__contains__),
        *(fits.whole(0, classes - 1), fits.number(0, 1), fits.optional(a_round)),
    )
    return all(fit(value) for fit, value in zip(kinds, line, strict=True))
