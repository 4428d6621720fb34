"""The rounds: each modality's classifier labels what it is surest of and learns anew, alone and then from the other.

A classifier is a logistic regression on the outputs of a frozen network: it has one best fit, wherever it starts, and
learning anew takes a moment. Shapes: n pairs to be labelled, d features, c classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frozenfusion.evaluation.calibration import fit_temperature
from frozenfusion.evaluation.probes import Regression, best_penalty
from frozenfusion.fusion.base import MODALITIES
from frozenfusion.joint.config import JointConfig
from frozenfusion.joint.record import Record
from frozenfusion.joint.selection import NOT_LABELLED, balanced, sure_enough
from frozenfusion.joint.views import Matrix, View
from frozenfusion.model.calibration import at_temperature
from frozenfusion.utils.errors import UserError

SHARE = 0.5  # of all pairs, which balanced selection labels in the end unless it is told otherwise

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Classroom:
    """What the classifiers learn from, are measured on, and label.

    Attributes:
        views: of the labelled, the held-out and the unlabelled pairs, in this order, by modality.
        labels: of the labelled pairs.
        held_out: labels of the held-out pairs.
        truth: hidden labels of the others, (n,), -1 where none is known: nothing but the figures sees them.
        classes: c.
    """

    views: Mapping[str, View]
    labels: Ints
    held_out: Ints
    truth: Ints
    classes: int

    @property
    def n(self) -> int:
        """How many pairs are to be labelled."""
        return len(self.truth)

    @cached_property
    def counts(self) -> Ints:
        """How many of the labelled pairs each class has, (c,)."""
        return np.bincount(self.labels, minlength=self.classes)

    def part(self, modality: str, part: int) -> tuple[Matrix, NDArray[np.bool_]]:
        """Features and presence of the labelled (0), the held-out (1) or the unlabelled pairs (2)."""
        ends = np.cumsum([0, len(self.labels), len(self.held_out), self.n])
        rows, view = slice(ends[part], ends[part + 1]), self.views[modality]
        return view.values[rows], view.present[rows]

    @cached_property
    def penalties(self) -> Mapping[str, float]:
        """The penalty of each modality's classifier, chosen once: by the held-out pairs, on the labelled ones."""
        return {name: self._penalty(name) for name in MODALITIES}

    def _penalty(self, modality: str) -> float:
        (values, present), (held_out, there) = self.part(modality, 0), self.part(modality, 1)
        labels, what = self.labels[present], "an image" if modality == "image" else "a text"
        if len(np.unique(labels)) < 2:
            found = "of one class" if len(labels) else "none"
            raise UserError(f"the labelled pairs that have {what} are {found}, and `joint` needs two: give more labels")
        if not there.any():
            raise UserError(
                f"no validation pair has {what}, and `joint` needs such: raise `val_fraction`, or give more"
            )
        return best_penalty(values[present], labels, held_out[there], self.held_out[there], self.classes)


def learn_rounds(room: Classroom, config: JointConfig, record: Record, commit: Callable[[], None]) -> None:
    """Do the rounds that the record lacks, and call `commit` after each."""
    for number in range(record.rounds + 1, config.rounds + 1):
        exchanged = config.joint == "co" and number > config.rounds // 2
        learned = {name: record.agreed(room.n) if exchanged else record.of(name, room.n) for name in MODALITIES}
        line: dict[str, Any] = {"round": number, "exchanged": exchanged, "labels": room.counts.tolist()}
        for name in MODALITIES:
            labels, confidences, temperature = _teach(room, name, learned[name], config, number)
            record.give(name, labels, confidences)
            line[name] = {"temperature": temperature, **_figures(labels, room)}
        record.history.append({**line, "agreed": _figures(record.agreed(room.n), room)})
        commit()


def _teach(
    room: Classroom, modality: str, learned: Ints, config: JointConfig, number: int
) -> tuple[Ints, Floats, float]:
    """Let a classifier learn from labels and pseudo-labels, and label: labels (n,), confidences (n,), temperature."""
    values, present = room.part(modality, 0)
    others, there = room.part(modality, 2)
    taken = (learned != NOT_LABELLED) & there
    classifier = Regression(room.classes)
    weights = np.repeat([1.0, config.pseudo_weight], [present.sum(), taken.sum()])
    classifier.fit(
        np.concatenate([values[present], others[taken]]),
        np.concatenate([room.labels[present], learned[taken]]),
        room.penalties[modality],
        weights,
    )
    temperature = _temperature(room, modality, classifier)
    probabilities = np.zeros((room.n, room.classes))
    if there.any():
        probabilities[there] = at_temperature(classifier.probabilities(others[there]), temperature)
    labels = np.full(room.n, NOT_LABELLED, np.int64)
    labels[there] = _select(probabilities[there], config, number, room.counts / room.counts.sum())
    return labels, probabilities.max(1, initial=0), temperature


def _select(probabilities: Floats, config: JointConfig, number: int, prior: Floats) -> Ints:
    each = config.per_round
    if config.select == "threshold":
        return sure_enough(probabilities, config.confidence, None if each is None else each * number)
    count = SHARE * len(probabilities) * number / config.rounds if each is None else each * number
    return balanced(probabilities, round(count), prior)


def _temperature(room: Classroom, modality: str, classifier: Regression) -> float:
    """The temperature of the classifier's probabilities by the held-out pairs."""
    held_out, there = room.part(modality, 1)
    return fit_temperature(room.held_out[there], classifier.probabilities(held_out[there])).temperature


def _figures(labels: Ints, room: Classroom) -> dict[str, Any]:
    """Of labels (n,): how many, how many of each class, and the share that is right of those whose truth is known."""
    given = labels != NOT_LABELLED
    known = given & (room.truth >= 0)
    right = int((labels[known] == room.truth[known]).sum())
    return {
        "pairs": int(given.sum()),
        "of_class": np.bincount(labels[given], minlength=room.classes).tolist(),
        "accuracy": right / int(known.sum()) if known.any() else None,
    }
