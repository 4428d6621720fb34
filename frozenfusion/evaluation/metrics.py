"""How good predictions are, how sure one may be of it, and whether two classifiers really differ.

Shapes: n pairs, c classes, m classifiers that predict the same pairs, k resamples.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

CALIBRATION_BINS = 15
_CELLS_A_TIME = 2**22  # drawn indices held at once by the bootstrap: 32 MiB


@dataclass(frozen=True)
class Scores:
    """Figures of one confusion matrix, or of a stack of them: every array has the stack's shape in front.

    A class that is never predicted has precision 0, one that never occurs recall 0, as in scikit-learn with
    zero_division=0.
    """

    accuracy: Floats  # (...)
    macro_f1: Floats  # (...): the mean of f1 over the classes that occur or are predicted
    weighted_f1: Floats  # (...): the mean of f1 weighted by support
    precision: Floats  # (..., c)
    recall: Floats  # (..., c)
    f1: Floats  # (..., c)
    support: Floats  # (..., c)


def confusion_matrix(labels: Ints, predictions: Ints, classes: int) -> Ints:
    """Count pairs by label (rows) and prediction (columns): (n,), (n,) -> (c, c)."""
    joint = labels * classes + predictions
    return np.bincount(joint, minlength=classes * classes).reshape(classes, classes).astype(np.int64)


def scores(confusion: NDArray[np.number]) -> Scores:
    """Figures of a confusion matrix (..., c, c), rows labels and columns predictions."""
    counts = np.asarray(confusion, dtype=np.float64)
    return _scores(np.diagonal(counts, axis1=-2, axis2=-1), counts.sum(-1), counts.sum(-2))


def _scores(right: NDArray[Any], support: NDArray[Any], predicted: NDArray[Any]) -> Scores:
    """Figures of the right pairs, all pairs and predictions of each class, (..., c) each."""
    total, seen = support.sum(-1), support + predicted > 0
    f1 = _ratio(2 * right, support + predicted)
    return Scores(
        accuracy=_ratio(right.sum(-1), total),
        macro_f1=_ratio((f1 * seen).sum(-1), seen.sum(-1)),
        weighted_f1=_ratio((f1 * support).sum(-1), total),
        precision=_ratio(right, predicted),
        recall=_ratio(right, support),
        f1=f1,
        support=support,
    )


class Contributions(NamedTuple):
    """What each pair adds to a figure: values (n,) whose mean is the figure."""

    accuracy: Floats
    macro_f1: Floats
    weighted_f1: Floats


def contributions(labels: Ints, predictions: Ints, classes: int) -> Contributions:
    """What each pair adds to the figures of predictions (n,): of an F1, the figure plus the pair's influence on it.

    Their spread tells how far a figure varies with the pairs. Source: the infinitesimal jackknife, Efron, The
    Jackknife, the Bootstrap and Other Resampling Plans, SIAM 1982, chapter 6.
    """
    found = scores(confusion_matrix(labels, predictions, classes))
    right, predicted = predictions == labels, np.bincount(predictions, minlength=classes)
    whole = found.support + predicted
    of_label = (2 * right - found.f1[labels]) / whole[labels]
    of_prediction = found.f1[predictions] / whole[predictions]
    seen = np.count_nonzero(whole)
    return Contributions(
        accuracy=right.astype(np.float64),
        macro_f1=found.macro_f1 + len(labels) / seen * (of_label - of_prediction),
        weighted_f1=found.f1[labels] + found.support[labels] * of_label - found.support[predictions] * of_prediction,
    )


class Resampled(NamedTuple):
    """Figures of m classifiers in k resamples, (m, k) each."""

    accuracy: Floats
    macro_f1: Floats
    weighted_f1: Floats


def bootstrap(labels: Ints, predictions: Sequence[Ints], classes: int, *, resamples: int, seed: int) -> Resampled:
    """Figures of predictions (n,) on resampled pairs.

    Pairs are drawn with replacement, n at a time; one draw serves all classifiers, so that their differences are
    paired.
    """
    found = Resampled(*(np.empty((len(predictions), resamples)) for _ in Resampled._fields))
    of_label = _one_hot(labels, classes)
    right = [of_label * (row == labels)[:, None] for row in predictions]
    generator = np.random.default_rng(seed)
    for part, times in _draws(len(labels), resamples, generator):
        support = times @ of_label
        for place, row in enumerate(predictions):
            drawn = _scores(times @ right[place], support, times @ _one_hot(row, classes))
            for name in Resampled._fields:
                getattr(found, name)[place, part] = getattr(drawn, name)
    return found


def _draws(n: int, resamples: int, generator: np.random.Generator) -> Iterator[tuple[slice, NDArray[np.float32]]]:
    """How often each of n pairs is drawn, in stretches of the resamples that memory holds: (stretch, n)."""
    at_a_time = max(1, _CELLS_A_TIME // max(n, 1))
    for start in range(0, resamples, at_a_time):
        size = min(at_a_time, resamples - start)
        drawn = generator.integers(0, n, (size, n))
        drawn += np.arange(size)[:, None] * n
        yield slice(start, start + size), np.bincount(drawn.ravel(), minlength=size * n).reshape(size, n).astype("f4")


def interval(values: Floats, level: float = 0.95) -> tuple[float, float]:
    """The percentile interval of resampled values (k,)."""
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


@dataclass(frozen=True)
class McNemar:
    """Outcome of McNemar's exact test on the pairs that exactly one of two classifiers gets right."""

    only_first: int
    only_second: int
    p: float


def mcnemar(labels: Ints, first: Ints, second: Ints) -> McNemar:
    """McNemar's exact (binomial, two-sided) test of two classifiers' predictions of the same pairs, each (n,).

    Source: McNemar, Psychometrika 12 (1947); exact form as in Fagerland et al., BMC Med. Res. Methodol. 13:91 (2013).
    """
    from scipy.stats import binomtest

    only_first = int(np.count_nonzero((first == labels) & (second != labels)))
    only_second = int(np.count_nonzero((first != labels) & (second == labels)))
    discordant = only_first + only_second
    p = float(binomtest(only_first, discordant).pvalue) if discordant else 1.0
    return McNemar(only_first, only_second, p)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number, in the order given. Source: Holm, Scand. J. Statist. 6 (1979)."""
    order = np.argsort(p_values, kind="stable")
    count = len(order)
    stepped = np.asarray(p_values, dtype=np.float64)[order] * np.arange(count, 0, -1)
    corrected = np.empty(count)
    corrected[order] = np.minimum(1.0, np.maximum.accumulate(stepped))
    return [float(p) for p in corrected]


@dataclass(frozen=True)
class Calibration:
    """How well confidence foretells accuracy, in bins of equal width; empty bins hold zeros."""

    ece: float
    edges: Floats  # (bins + 1,)
    count: Ints  # (bins,)
    confidence: Floats  # (bins,): mean probability of the predicted class
    accuracy: Floats  # (bins,)


def calibration(labels: Ints, probabilities: Floats, bins: int = CALIBRATION_BINS) -> Calibration:
    """Expected calibration error and the reliability diagram's figures, from labels (n,) and probabilities (n, c).

    A bin holds its upper edge and not its lower one. Source: Guo et al., On Calibration of Modern Neural Networks,
    ICML 2017.
    """
    probabilities = np.asarray(probabilities, dtype=np.float64)
    confidence = probabilities.max(1)
    right = probabilities.argmax(1) == labels
    edges = np.linspace(0, 1, bins + 1)
    place = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)
    count = np.bincount(place, minlength=bins)
    mean_confidence = _ratio(np.bincount(place, confidence, bins), count)
    accuracy = _ratio(np.bincount(place, right, bins), count)
    ece = float(np.abs(accuracy - mean_confidence) @ count / max(1, len(labels)))
    return Calibration(ece, edges, count.astype(np.int64), mean_confidence, accuracy)


@dataclass(frozen=True)
class Agreement:
    """How two single-modality classifiers agree, and what the fused one makes of each case.

    The cases, in order: both right, only the first, only the second, neither.
    """

    share: float  # of pairs on which the two predict the same class
    kappa: float  # Cohen's, which takes away what chance alone would give; 0 where it is undefined
    count: Ints  # (4,)
    fused_right: Ints  # (4,)


def agreement(labels: Ints, first: Ints, second: Ints, fused: Ints, classes: int) -> Agreement:
    """Compare the predictions (n,) of one modality, of the other, and of both together."""
    case = 3 - 2 * (first == labels) - (second == labels)
    table = confusion_matrix(first, second, classes)
    n = max(1, len(labels))
    share = float(np.trace(table)) / n
    by_chance = float(table.sum(0) @ table.sum(1)) / n**2
    return Agreement(
        share=share,
        kappa=(share - by_chance) / (1 - by_chance) if by_chance < 1 else 0.0,
        count=np.bincount(case, minlength=4),
        fused_right=np.bincount(case[fused == labels], minlength=4),
    )


def _one_hot(codes: Ints, size: int) -> NDArray[np.float32]:
    table = np.zeros((len(codes), size), dtype=np.float32)
    table[np.arange(len(codes)), codes] = 1
    return table


def _ratio(part: NDArray[Any], whole: NDArray[np.number]) -> Floats:
    """part / whole, and 0 where whole is 0."""
    part = np.asarray(part, dtype=np.float64)
    ratio = np.zeros(np.broadcast(part, whole).shape)
    np.divide(part, whole, out=ratio, where=np.asarray(whole) > 0)
    return ratio
