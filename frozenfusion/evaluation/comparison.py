"""Which head is better, and is that more than luck: runs on one part of the data gathered, ranked and tested.

How several seeds are treated: a head's score is the mean over its seeds, and its interval holds the luck of the test
pairs and of the training (`inference.analyse`). Of one seed it is the bootstrap's, over pairs. The difference of two
heads in accuracy is tested by the same analysis. McNemar's test stands beside it: it needs one decision per pair, so
the probabilities are averaged over the seeds. Each kind of p-value is corrected (Holm) for the number of heads tested.

Shapes: n pairs (all labelled), c classes, s seeds, k resamples.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frozenfusion.evaluation import inference, metrics
from frozenfusion.evaluation.naming import told_apart
from frozenfusion.fusion.base import MODALITIES
from frozenfusion.model.tuning import Tuning
from frozenfusion.utils.errors import UsageError
from frozenfusion.utils.progress import log

FIGURES = ("accuracy", "macro_f1", "weighted_f1")

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class RunResult:
    """What one run predicted, and what is known of how it was trained."""

    name: str  # of its folder
    head: str
    recipe: str  # all that the run was made with but its seed: runs of one recipe are repetitions
    probabilities: Floats  # (n, c)
    options: Mapping[str, Any] = field(default_factory=dict)  # the recipe by name, options of the head as `head.NAME`
    tuning: Tuning | None = None  # how the options were chosen
    without: Mapping[str, Floats] = field(default_factory=dict)  # (n, c) each, with "text" or "image" hidden
    parts: Mapping[str, Floats] = field(default_factory=dict)  # (n, c) each: every modality's own classifier
    calibrated: Floats | None = None  # (n, c): the same probabilities at the run's temperature
    temperature: float | None = None
    validation: float | None = None  # best accuracy on the validation part
    parameters: int | None = None  # trained ones
    seconds: float | None = None  # per epoch
    history: Sequence[Mapping[str, Any]] = ()  # lines of metrics.jsonl


@dataclass(frozen=True)
class Estimate:
    """A score or a difference: mean and standard deviation over seeds (None for one), and its 95 % interval."""

    mean: float
    sd: float | None
    low: float
    high: float


@dataclass(frozen=True, eq=False)
class HeadResult:
    """One line of the comparison: a head with all its seeds, or a baseline, which has no runs."""

    name: str
    runs: tuple[RunResult, ...]
    probabilities: tuple[Floats, ...]  # one (n, c) per seed
    accuracies: tuple[float, ...]  # one per seed
    figures: Mapping[str, Estimate]
    contributions: Mapping[str, Floats]  # one (s, n) per figure: what each pair adds to each seed's
    confusion: Ints  # (c, c), summed over seeds

    @property
    def head(self) -> str | None:
        """Name of the fusion head, None for a baseline."""
        return self.runs[0].head if self.runs else None

    @property
    def predictions(self) -> Ints:
        """One decision per pair (n,): of the probabilities averaged over the seeds."""
        decisions: Ints = np.mean(self.probabilities, axis=0).argmax(1)
        return decisions

    @property
    def scores(self) -> metrics.Scores:
        """Figures by class, over all seeds."""
        return metrics.scores(self.confusion)

    def calibration(self, labels: Ints) -> metrics.Calibration:
        """Calibration of the runs as they are, pooled over the seeds."""
        return metrics.calibration(np.tile(labels, len(self.probabilities)), np.concatenate(self.probabilities))

    def calibrated(self, labels: Ints) -> metrics.Calibration | None:
        """The same at the runs' temperatures, None where a run has none."""
        found = [run.calibrated for run in self.runs if run.calibrated is not None]
        if not found or len(found) < len(self.runs):
            return None
        return metrics.calibration(np.tile(labels, len(found)), np.concatenate(found))

    @property
    def temperatures(self) -> list[float]:
        """The runs' temperatures, of those that have one."""
        return [run.temperature for run in self.runs if run.temperature is not None]

    @property
    def validation(self) -> float | None:
        """Mean of the seeds' validation accuracy, None where a run has none."""
        return _mean([run.validation for run in self.runs])

    @property
    def seconds(self) -> float | None:
        """Mean seconds per epoch, None where it is not known."""
        return _mean([run.seconds for run in self.runs])

    @property
    def parameters(self) -> int | None:
        """Number of trained parameters."""
        return self.runs[0].parameters if self.runs else None


@dataclass(frozen=True)
class PairedTest:
    """One head against another on the same pairs; differences are head minus other, p-values are corrected."""

    head: str
    other: str
    accuracy: Estimate
    macro_f1: Estimate
    only_head: int  # pairs that only the head gets right
    only_other: int
    p: float  # of the difference in accuracy
    p_mcnemar: float
    detectable: float | None  # the smallest true difference in accuracy that an uncorrected test finds in 80 %
    single: tuple[str, ...]  # heads with one seed: of these the test holds for that training alone


@dataclass(frozen=True, eq=False)
class Comparison:
    """All rows, best accuracy first, and the paired tests between them."""

    labels: Ints  # (n,)
    label_names: tuple[str, ...]
    rows: tuple[HeadResult, ...]
    reference: str | None  # the head that the others were tested against
    tests: tuple[PairedTest, ...]
    chosen: str | None  # the head with the best validation accuracy, where there is a choice
    fusion_tests: tuple[PairedTest, ...]  # the chosen head against each single modality
    baseline_tests: tuple[PairedTest, ...]  # the chosen head, the reference or the only one against each baseline

    def row(self, name: str) -> HeadResult:
        """The row called `name`."""
        return next(row for row in self.rows if row.name == name)

    @property
    def focus(self) -> HeadResult:
        """The head that stands for all where one has to: the chosen one, else the reference, else the first."""
        name = self.chosen or self.reference
        return self.row(name) if name else self.heads[0]

    @property
    def seeded(self) -> bool:
        """Whether any head has several seeds."""
        return any(len(row.runs) > 1 for row in self.rows)

    @property
    def heads(self) -> list[HeadResult]:
        """The rows that are no baselines."""
        return [row for row in self.rows if row.runs]


def compare(
    labels: Ints,
    label_names: tuple[str, ...],
    runs: Sequence[RunResult],
    baselines: Mapping[str, Floats],
    *,
    reference: str,
    resamples: int,
    seed: int,
) -> Comparison:
    """Rank runs and baselines by accuracy and test every head against the head called `reference`.

    Raises UsageError for a reference that several rows could be.
    """
    groups = _groups(runs)
    members: list[tuple[str, tuple[RunResult, ...]]] = [*groups.items(), *((name, ()) for name in baselines)]
    given = [tuple(run.probabilities for run in group) or (baselines[name],) for name, group in members]
    first = [probabilities[0].argmax(1) for probabilities in given]
    drawn = metrics.bootstrap(labels, first, len(label_names), resamples=resamples, seed=seed)
    rows = [
        _row(name, group, probabilities, labels, len(label_names), {of: getattr(drawn, of)[place] for of in FIGURES})
        for place, ((name, group), probabilities) in enumerate(zip(members, given, strict=True))
    ]
    rows.sort(key=lambda row: -row.figures["accuracy"].mean)
    heads = [row for row in rows if row.runs]
    against = _reference(heads, reference)
    tests = [] if against is None else [_paired(labels, row, against) for row in heads if row is not against]
    chosen = _chosen(heads)
    single = [row for row in heads if row.head in MODALITIES]
    fusion_tests = [_paired(labels, chosen, row) for row in single] if chosen and chosen not in single else []
    judged = chosen or against or (heads[0] if len(heads) == 1 else None)  # the best on these pairs would be too lucky
    plain = [row for row in rows if not row.runs]
    baseline_tests = [_paired(labels, judged, row) for row in plain] if judged else []
    return Comparison(
        labels=labels,
        label_names=label_names,
        rows=tuple(rows),
        reference=against.name if against else None,
        tests=_corrected(tests),
        chosen=chosen.name if chosen else None,
        fusion_tests=_corrected(fusion_tests),
        baseline_tests=_corrected(baseline_tests),
    )


def _groups(runs: Sequence[RunResult]) -> dict[str, tuple[RunResult, ...]]:
    """Runs of one recipe under the head's name; where several recipes share the head, with what differs in them."""
    by_recipe: dict[str, dict[str, list[RunResult]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        by_recipe[run.head][run.recipe].append(run)
    groups: dict[str, tuple[RunResult, ...]] = {}
    for head, recipes in by_recipe.items():
        first = [group[0] for group in recipes.values()]
        names = told_apart(head, [run.options for run in first], [run.name for run in first])
        groups |= {name: tuple(group) for name, group in zip(names, recipes.values(), strict=True)}
    return groups


def _row(
    name: str,
    runs: tuple[RunResult, ...],
    probabilities: tuple[Floats, ...],
    labels: Ints,
    classes: int,
    resampled: Mapping[str, Floats],  # of the first seed
) -> HeadResult:
    predictions = [each.argmax(1) for each in probabilities]
    confusion = np.stack([metrics.confusion_matrix(labels, each, classes) for each in predictions])
    measured = metrics.scores(confusion)
    added = [metrics.contributions(labels, each, classes) for each in predictions]
    contributions = {figure: np.stack([getattr(each, figure) for each in added]) for figure in FIGURES}
    return HeadResult(
        name=name,
        runs=runs,
        probabilities=probabilities,
        accuracies=tuple(measured.accuracy.tolist()),
        figures={of: _estimate(getattr(measured, of), contributions[of], resampled[of]) for of in FIGURES},
        contributions=contributions,
        confusion=confusion.sum(0),
    )


def _estimate(values: Floats, contributions: Floats, resampled: Floats) -> Estimate:
    """The mean of `values` (s,), with the interval of contributions (s, n), or of resampled values (k,) of one seed."""
    if len(values) == 1:
        return Estimate(float(values[0]), None, *metrics.interval(resampled))
    low, high = _bounds(inference.analyse(contributions), 0, 1)
    return Estimate(float(values.mean()), float(values.std(ddof=1)), low, high)


def _bounds(found: inference.Inference, least: float, most: float) -> tuple[float, float]:
    low, high = found.interval()
    return max(least, float(low)), min(most, float(high))


def _paired(labels: Ints, row: HeadResult, other: HeadResult) -> PairedTest:
    """The test of `row` against `other`, not yet corrected."""
    found = {of: inference.analyse(row.contributions[of], other.contributions[of]) for of in ("accuracy", "macro_f1")}
    figures = {of: Estimate(float(each.mean), None, *_bounds(each, -1, 1)) for of, each in found.items()}
    exact = metrics.mcnemar(labels, row.predictions, other.predictions)
    detectable = float(found["accuracy"].detectable())
    return PairedTest(
        head=row.name,
        other=other.name,
        accuracy=figures["accuracy"],
        macro_f1=figures["macro_f1"],
        only_head=exact.only_first,
        only_other=exact.only_second,
        p=float(found["accuracy"].p),
        p_mcnemar=exact.p,
        detectable=detectable if detectable < 1 else None,
        single=tuple(each.name for each in (row, other) if len(each.runs) == 1),
    )


def _corrected(tests: Sequence[PairedTest]) -> tuple[PairedTest, ...]:
    primary = metrics.holm([test.p for test in tests])
    exact = metrics.holm([test.p_mcnemar for test in tests])
    return tuple(replace(test, p=p, p_mcnemar=beside) for test, p, beside in zip(tests, primary, exact, strict=True))


def _reference(heads: Sequence[HeadResult], name: str) -> HeadResult | None:
    if len(heads) < 2:
        return None
    own = [row for row in heads if name in (row.name, *(run.name for run in row.runs))]
    found = own or [row for row in heads if row.head == name]
    if len(found) > 1:
        names = ", ".join(row.name for row in found)
        raise UsageError(f"`baseline={name}`: several trained models have this head: name one of {names}")
    if not found:
        names = ", ".join(sorted(row.name for row in heads))
        log.warning("no run of `baseline=%s` is here, so no head is tested against it: there are %s", name, names)
        return None
    return found[0]


def _chosen(heads: Sequence[HeadResult]) -> HeadResult | None:
    """The head with the best validation accuracy, if there are several and all have one; the smaller of equals."""
    if len(heads) < 2 or any(row.validation is None for row in heads):
        return None
    # rounded, since means over seeds of equal accuracies differ in their last bits
    return max(heads, key=lambda row: (round(row.validation or 0.0, 9), -(row.parameters or 0)))


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known and len(known) == len(values) else None
