"""What labels are worth: accuracy by the fraction of labels that counted, and what pseudo-labels add to it.

A point is the mean over draws of the labels. Draws and test pairs are crossed, and both have their luck, so an interval
is that of a mean with two random effects: the variances of the draws' means and of the pairs' means add up, and its
degrees of freedom are Satterthwaite's. It is somewhat too wide where a draw matters for some pairs alone: unlike
`inference.analyse`, which compares trainings, it does not take out what is then counted twice, nor correct the degrees
of freedom for few draws. With one draw nothing is known of the luck of the draw, and no interval is given.

Shapes: n pairs, s draws.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frozenfusion.evaluation.runs import Run
from frozenfusion.model.rounds import read_rounds
from frozenfusion.utils import fits
from frozenfusion.utils.messages import printable

MOST_DRIFT = 0.1  # of pseudo-labels from the labelled pairs' shares of classes, before it is warned of
METHODS = {None: "labels alone", "self": "self", "co": "co"}

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class LabelledRun:
    """One run by how it came by its labels, and what it predicts (n,)."""

    head: str
    method: str | None  # "self" or "co"; None learned from labels alone
    fraction: float  # of the labels
    draw: int  # the seed that drew them
    predictions: Ints
    rounds: Sequence[Mapping[str, Any]] = ()  # figures of the pseudo-labels


@dataclass(frozen=True)
class Interval:
    """A mean and its 95 % interval, which is not known of one draw."""

    mean: float
    low: float | None
    high: float | None

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval is known and zero is not in it."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


@dataclass(frozen=True)
class Point:
    """A method at a fraction of the labels: accuracy, and the gain over the same draws' labels alone."""

    head: str
    method: str  # as people call it
    fraction: float
    draws: int
    accuracy: Interval
    gain: Interval | None = None  # None of the labels alone, and where no draw is shared with them
    by_round: Sequence[float] = ()  # share of the agreed pseudo-labels that are right, mean over the draws
    pseudo_labels: float | None = None  # mean number of those that were kept
    note: str | None = None  # what to be wary of


def labelled_runs(runs: Sequence[Run], predictions: Mapping[str, Ints]) -> list[LabelledRun]:
    """Those of the runs that know their part of the labels, with their predictions (n,), which come by name.

    Raises UserError for a run whose record of pseudo-labels is damaged.
    """
    found = []
    for run in runs:
        options = run.folder.config.get("options")
        options = options if isinstance(options, dict) else {}
        method, part = options.get("joint"), options.get("label_fraction")
        draw = next(iter(options.get("seeds") or [options.get("seed")]), None)
        if method in METHODS and isinstance(part, list) and len(part) == 1 and fits.number(0, 1)(part[0]):
            rounds = read_rounds(run.path)
            found.append(LabelledRun(run.model.fusion, method, part[0], int(draw or 0), predictions[run.name], rounds))
    return found


def label_curve(labels: Ints, label_names: Sequence[str], runs: Sequence[LabelledRun]) -> list[Point]:
    """The points of a study: by head, method and fraction; nothing where no run knows its fraction."""
    groups: dict[tuple[str, str | None, float], dict[int, LabelledRun]] = defaultdict(dict)
    for run in runs:
        groups[run.head, run.method, run.fraction][run.draw] = run
    points = []
    for (head, method, fraction), drawn in groups.items():
        alone = groups.get((head, None, fraction), {}) if method else {}
        shared = sorted(drawn.keys() & alone.keys())
        last = [run.rounds[-1] for run in drawn.values() if run.rounds]
        points.append(
            Point(
                head=head,
                method=METHODS[method],
                fraction=fraction,
                draws=len(drawn),
                accuracy=crossed(_right(labels, [drawn[seed] for seed in sorted(drawn)])),
                gain=crossed(
                    _right(labels, [drawn[seed] for seed in shared]) - _right(labels, [alone[s] for s in shared])
                )
                if shared
                else None,
                by_round=_by_round(list(drawn.values())),
                pseudo_labels=float(np.mean([line["agreed"]["pairs"] for line in last])) if last else None,
                note=_note(drawn, label_names),
            )
        )
    order = list(METHODS.values())
    return sorted(points, key=lambda point: (point.head, point.fraction, order.index(point.method)))


def crossed(values: Floats) -> Interval:
    """Mean of values (s, n) of draws and pairs that are crossed, and its 95 % interval: see the module."""
    from scipy.stats import t

    draws, pairs = values.shape
    mean = float(values.mean())
    if draws < 2 or pairs < 2:
        return Interval(mean, None, None)
    of_draws = float(values.mean(1).var(ddof=1)) / draws
    of_pairs = float(values.mean(0).var(ddof=1)) / pairs
    variance = of_draws + of_pairs
    if not variance:
        return Interval(mean, mean, mean)
    freedom = variance**2 / (of_draws**2 / (draws - 1) + of_pairs**2 / (pairs - 1))
    reach = float(t.ppf(0.975, freedom)) * math.sqrt(variance)
    return Interval(mean, mean - reach, mean + reach)


def drift(line: Mapping[str, Any]) -> float:
    """The share of agreed pseudo-labels that would have to be of another class for all classes to have their prior."""
    counts, given = np.array(line["labels"]), np.array(line["agreed"]["of_class"])
    return float(np.abs(given / max(1, given.sum()) - counts / max(1, counts.sum())).sum()) / 2


def drift_note(line: Mapping[str, Any], label_names: Sequence[str]) -> str | None:
    """What to say where agreed pseudo-labels leave the shares of classes among the labels; None where they do not."""
    counts, given = np.array(line["labels"]), np.array(line["agreed"]["of_class"])
    if not given.sum():
        return "no pseudo-label is kept, the labels alone are learned from"
    if drift(line) <= MOST_DRIFT:
        return None
    prior, shares = counts / max(1, counts.sum()), given / given.sum()
    most = int(np.abs(shares - prior).argmax())
    name = printable(label_names[most]) if most < len(label_names) else f"class {most}"
    return (
        f"the pseudo-labels have other shares of classes than the labels: {100 * drift(line):.0f} % of them would have "
        f"to be of another class, and {name} has {100 * shares[most]:.0f} % instead of {100 * prior[most]:.0f} %"
    )


def _note(drawn: Mapping[int, LabelledRun], label_names: Sequence[str]) -> str | None:
    """The note of the draw whose pseudo-labels are farthest from the prior, and how many draws have one."""
    lines = {draw: run.rounds[-1] for draw, run in sorted(drawn.items()) if run.rounds}
    noted = [draw for draw, line in lines.items() if drift_note(line, label_names)]
    if not noted:
        return None
    worst = max(noted, key=lambda draw: drift(lines[draw]))
    return f"{len(noted)} of {len(lines)} draws, most in draw {worst}: {drift_note(lines[worst], label_names)}"


def _right(labels: Ints, runs: Sequence[LabelledRun]) -> Floats:
    return np.stack([run.predictions == labels for run in runs]).astype(np.float64)


def _by_round(runs: Sequence[LabelledRun]) -> list[float]:
    """Mean share of right pseudo-labels by round, as far as all runs know it."""
    known = [[line["agreed"]["accuracy"] for line in run.rounds] for run in runs]
    return [float(np.mean(of)) for of in zip(*known, strict=False) if None not in of]
