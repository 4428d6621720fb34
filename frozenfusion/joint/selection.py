"""Which predictions of a classifier become pseudo-labels.

Shapes: n pairs, c classes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

NOT_LABELLED = -1

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


def balanced(probabilities: Floats, count: int, prior: Floats) -> Ints:
    """Labels (n,) of about `count` pairs: of each class those that are surest of it, by its prior (c,).

    A class of which fewer pairs are predicted gets fewer; NOT_LABELLED stands for no label.
    """
    predicted, labels = probabilities.argmax(1), np.full(len(probabilities), NOT_LABELLED, np.int64)
    for label, share in enumerate(prior.tolist()):
        rows = np.flatnonzero(predicted == label)
        labels[_surest(probabilities, rows, round(count * share))] = label
    return labels


def sure_enough(probabilities: Floats, confidence: float, most: int | None = None) -> Ints:
    """Labels (n,) of the pairs whose likeliest class has this probability or more; of the `most` surest of them."""
    labels = np.full(len(probabilities), NOT_LABELLED, np.int64)
    rows = np.flatnonzero(probabilities.max(1, initial=0) >= confidence)
    rows = _surest(probabilities, rows, len(rows) if most is None else most)
    labels[rows] = probabilities[rows].argmax(1)
    return labels


def agreed(one: Ints, other: Ints) -> Ints:
    """The labels (n,) that two teachers gave together: where only one gave any, its own; none where they disagree."""
    alone = np.where(one == NOT_LABELLED, other, one)
    disagree = (one != NOT_LABELLED) & (other != NOT_LABELLED) & (one != other)
    return np.where(disagree, NOT_LABELLED, alone)


def _surest(probabilities: Floats, rows: Ints, count: int) -> Ints:
    order = np.argsort(-probabilities[rows].max(1, initial=0), kind="stable")
    return rows[order[:count]]
