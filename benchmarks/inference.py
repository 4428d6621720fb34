"""How often tests of two heads see a difference that is not there, find one that is, and hold the truth in an interval.

    python -m benchmarks.inference --seeds 3 --pairs 450 --luck pair training

Both heads are right in 80 % of all cases. How easy a pair is, a head's liking for it, how a training went as a whole
and how it went on that pair are normal and add up; what is above zero is right. So the true difference is known. It is
zero for false positives; for power and coverage it is what a test that knew all variances would find in 80 %.
With one seed the question is put to these very trainings: both went equally well as a whole. `--seeds 3:10` gives the
heads 3 and 10 seeds; `3:1` is a head against a baseline, which is fitted once and knows no luck of training.

Last, what could be reached at all: the power of the best test whose false positives stay below 5 % however much
trainings differ, found by linear programming, where heads like the same pairs, pairs are many, both heads' trainings
differ alike, and do not differ in truth.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linprog
from scipy.special import bdtr, gammainc, ndtr, ndtri

from benchmarks.common import parser, print_table, write_results
from frozenfusion.evaluation import metrics
from frozenfusion.evaluation.inference import Inference, analyse

ACCURACY = 0.8
LEVEL = 0.05
FOUND_BY_ORACLE = ndtri(1 - LEVEL / 2) + ndtri(0.8)  # standard errors
CLASSES = (0.6, 0.3, 0.1)
AT_A_TIME = 2**22  # decisions

Floats = NDArray[np.floating]
Bools = NDArray[np.bool_]
Seeds = tuple[int, int]  # of the first head and of the second


class Luck(NamedTuple):
    """What varies: standard deviations of accuracy by training, and shares of the variance of what a pair brings."""

    training: tuple[float, float] = (0.0, 0.0)  # of the first head and of the second
    pair: float = 0.0  # of each training on each pair
    liking: float = 0.0  # of each head for each pair


LUCK: Mapping[str, Luck] = {
    "pair": Luck(pair=0.18),
    "pair, heads unlike": Luck(pair=0.18, liking=0.1),
    "training": Luck((0.02, 0.02), liking=0.1),
    "both": Luck((0.02, 0.02), pair=0.18),
    "both, heads unlike": Luck((0.02, 0.02), pair=0.18, liking=0.1),
    "both, 4 points": Luck((0.04, 0.04), pair=0.18),
    "one head's, 4 points": Luck((0.04, 0.0), pair=0.18),
}


@dataclass(frozen=True)
class Sample:
    """r repetitions of an evaluation of two heads, with n pairs and s and t seeds; all share k resamples."""

    first: Bools  # (r, s, n): right or not
    second: Bools  # (r, t, n)
    decided: tuple[Bools, Bools]  # (r, n): the same of the probabilities averaged over seeds
    truth: Floats  # (r,): the true difference
    random: np.random.Generator
    resamples: int

    @cached_property
    def by_pair(self) -> NDArray[np.float32]:
        """Differences of the two heads' means over seeds, (r, n)."""
        return (self.first.mean(1) - self.second.mean(1)).astype("f4")

    @cached_property
    def drawn(self) -> NDArray[np.float32]:
        """How often each pair is drawn, (k, n)."""
        pairs = self.first.shape[-1]
        return self.random.multinomial(pairs, np.full(pairs, 1 / pairs), self.resamples).astype("f4")

    def drawn_scores(self, right: Bools) -> Floats:
        """Scores of one head with pairs and seeds drawn, (r, k)."""
        seeds = right.shape[1]
        drawn_seeds = self.random.integers(0, seeds, (1, seeds, self.resamples))
        scores = right.astype("f4") @ self.drawn.T / right.shape[-1]
        return np.asarray(np.take_along_axis(scores, drawn_seeds, axis=1).mean(1))


class Verdict(NamedTuple):
    """What a test says of each repetition, (r,): whether there is a difference, and where its interval lies."""

    found: Bools
    low: Floats | None = None
    high: Floats | None = None


def two_way(sample: Sample) -> Verdict:
    """What the page says."""
    result = analyse(sample.first, sample.second)
    return Verdict(result.p < LEVEL, *result.interval())


def two_way_macro_f1(sample: Sample) -> Verdict:
    """The same of macro F1; a wrong decision is for the next class."""
    labels = sample.random.choice(len(CLASSES), sample.first.shape[-1], p=CLASSES)
    found = analyse(*(_macro_f1(labels, right) for right in (sample.first, sample.second)))
    return Verdict(found.p < LEVEL)


def mcnemar(sample: Sample) -> Verdict:
    """McNemar's exact test of the probabilities averaged over seeds."""
    first, second = sample.decided
    ones, others = (first & ~second).sum(1), (second & ~first).sum(1)
    return Verdict(2 * bdtr(np.minimum(ones, others).astype(float), ones + others, 0.5) < LEVEL)


def bootstrap_of_both(sample: Sample) -> Verdict:
    """The percentile bootstrap that draws pairs and seeds together."""
    return _percentile(sample.drawn_scores(sample.first) - sample.drawn_scores(sample.second))


def former_rule(sample: Sample) -> Verdict:
    """A difference is one where McNemar's test and that bootstrap both find it."""
    return Verdict(mcnemar(sample).found & bootstrap_of_both(sample).found)


def bootstrap_of_pairs(sample: Sample) -> Verdict:
    """The percentile bootstrap that draws pairs alone."""
    return _percentile(sample.by_pair @ sample.drawn.T / sample.by_pair.shape[-1])


def sign_flips(sample: Sample) -> Verdict:
    """A permutation test that exchanges the two heads pair by pair."""
    flips = sample.random.choice(np.array([-1, 1], "f4"), (sample.resamples, sample.by_pair.shape[-1]))
    flipped, seen = np.abs(sample.by_pair @ flips.T), np.abs(sample.by_pair.sum(1))
    as_far = (flipped > seen[:, None] - 1e-3).sum(1)
    return Verdict((as_far + 1) / (sample.resamples + 1) < LEVEL)


def t_of_seeds(sample: Sample) -> Verdict:
    """Welch's t-test of the seeds' scores, as if each had pairs of its own; of one seed it finds nothing."""
    scores = sample.first.mean(2), sample.second.mean(2)
    seeds = [each.shape[1] for each in scores]
    if 1 in seeds:
        return Verdict(np.zeros(len(sample.truth), dtype=bool))
    squares = [each.var(1, ddof=1) / count + 1e-12 for each, count in zip(scores, seeds, strict=True)]
    freedom = sum(squares) ** 2 / sum(square**2 / (count - 1) for square, count in zip(squares, seeds, strict=True))
    found = Inference(scores[0].mean(1) - scores[1].mean(1), np.sqrt(sum(squares)), freedom)
    return Verdict(found.p < LEVEL, *found.interval())


TESTS: Mapping[str, Callable[[Sample], Verdict]] = {
    "two-way t": two_way,
    "of macro F1": two_way_macro_f1,
    "McNemar": mcnemar,
    "bootstrap, both": bootstrap_of_both,
    "McNemar & bootstrap": former_rule,
    "bootstrap, pairs": bootstrap_of_pairs,
    "sign flips": sign_flips,
    "t of seeds": t_of_seeds,
}


def _percentile(differences: Floats) -> Verdict:
    """A difference is found where fewer than 2.5 % of the resampled ones (r, k) lie on the other side of zero."""
    beyond = np.minimum((differences <= 0).sum(1), (differences >= 0).sum(1))
    low, high = np.quantile(differences, [LEVEL / 2, 1 - LEVEL / 2], axis=1)
    return Verdict(2 * (beyond + 1) / (differences.shape[1] + 1) < LEVEL, low, high)


def _macro_f1(labels: NDArray[np.int64], right: Bools) -> Floats:
    predictions = np.where(right, labels, (labels + 1) % len(CLASSES)).reshape(-1, len(labels))
    added = [metrics.contributions(labels, each, len(CLASSES)).macro_f1 for each in predictions]
    return np.stack(added).reshape(right.shape)


def samples(
    luck: Luck, seeds: Seeds, pairs: int, difference: float, repetitions: int, resamples: int, state: int
) -> Iterator[Sample]:
    """Repetitions in stretches that memory holds, with the first head better by `difference`."""
    world = (*luck.training, luck.pair, luck.liking)
    random = np.random.default_rng([state, pairs, *seeds, *(round(1000 * part) for part in world)])
    at_a_time = max(1, AT_A_TIME // (pairs * max(seeds)))
    for start in range(0, repetitions, at_a_time):
        count = min(at_a_time, repetitions - start)
        common = np.sqrt(1 - luck.pair - luck.liking) * _normal(random, (count, 1, pairs))
        spread = [sd / np.exp(-(ndtri(ACCURACY) ** 2) / 2) * np.sqrt(2 * np.pi) for sd in luck.training]
        if 1 in seeds and seeds != (1, 1):
            spread[seeds.index(1)] = 0.0
        trainings = [by * _normal(random, (count, each, 1)) for by, each in zip(spread, seeds, strict=True)]
        if seeds == (1, 1):
            spread[1], trainings[1] = spread[0], trainings[0]
        right, decided, true = [], [], []
        accuracies = ACCURACY + difference / 2, ACCURACY - difference / 2
        for accuracy, by, training, each in zip(accuracies, spread, trainings, seeds, strict=True):
            middle = ndtri(accuracy) * np.sqrt(1 + by**2)
            logits = common + np.float32(middle) + training
            if luck.liking:
                logits = logits + np.sqrt(luck.liking) * _normal(random, (count, 1, pairs))
            if luck.pair:
                logits = logits + np.sqrt(luck.pair) * _normal(random, (count, each, pairs))
            right.append(logits > 0)
            decided.append((0.5 + 0.5 * np.tanh(2 * logits)).mean(1) > 0.5)
            true.append(ndtr(middle + training[:, 0, 0]) if each == 1 else np.full(count, accuracy))
        yield Sample(
            first=right[0],
            second=right[1],
            decided=(decided[0], decided[1]),
            truth=true[0] - true[1],
            random=random.spawn(1)[0],
            resamples=resamples,
        )


def _normal(random: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float32]:
    return random.standard_normal(shape, dtype=np.float32)


def measure(
    luck: Luck, seeds: Seeds, pairs: int, repetitions: int, resamples: int, tests: Sequence[str]
) -> dict[str, Any]:
    """Shares of the repetitions: false positives, and with a true difference what is found and what is covered."""
    nothing: dict[str, list[Bools]] = {name: [] for name in tests}
    found: dict[str, list[Bools]] = {name: [] for name in tests}
    covered: dict[str, list[Bools]] = {name: [] for name in tests}
    errors = []
    for sample in samples(luck, seeds, pairs, 0.0, repetitions, resamples, state=1):
        errors.append(sample.by_pair.mean(1) - sample.truth)
        for name in tests:
            nothing[name].append(TESTS[name](sample).found)
    difference = float(FOUND_BY_ORACLE * np.concatenate(errors).std())
    for sample in samples(luck, seeds, pairs, difference, repetitions, resamples, state=2):
        for name in tests:
            verdict = TESTS[name](sample)
            found[name].append(verdict.found)
            if verdict.low is not None and verdict.high is not None:
                covered[name].append((verdict.low <= sample.truth) & (sample.truth <= verdict.high))
    return {
        "difference": difference,
        "false_positives": {name: float(np.concatenate(of).mean()) for name, of in nothing.items()},
        "power": {name: float(np.concatenate(of).mean()) for name, of in found.items() if name != "of macro F1"},
        "coverage": {name: float(np.concatenate(of).mean()) for name, of in covered.items() if of},
    }


def best_power(seeds: int, worst: float = 200.0) -> float:
    """The most power that a test can have at the difference where one that knew all variances has 80 %.

    A test decides by the difference and by the spread of the seeds' scores (a χ² of 2 (s - 1) degrees of freedom),
    each in cells. Trainings differ by up to `worst` times the variance that luck by pairs gives their scores.
    """
    freedom, differences = 2 * (seeds - 1), np.r_[np.linspace(0, 8, 61), np.geomspace(8.3, 120, 40), np.inf]
    spreads = np.r_[0, np.geomspace(0.05, 2 * worst, 70), np.inf]

    def cells(middle: float, trainings: float) -> Floats:
        below = (
            ndtr((differences - middle) / np.sqrt(1 + trainings)),
            ndtr((-differences - middle) / np.sqrt(1 + trainings)),
        )
        by_spread = np.diff(gammainc(freedom / 2, freedom * spreads / (1 + trainings) / 2))
        return np.outer(np.diff(below[0]) - np.diff(below[1]), by_spread).ravel()

    nothing = np.stack([cells(0, trainings) for trainings in (0, *np.geomspace(0.1, worst, 24))])
    found = linprog(-cells(FOUND_BY_ORACLE, 0), nothing, np.full(len(nothing), LEVEL), bounds=(0, 1), method="highs")
    return float(-found.fun)


def main() -> None:
    """Measure and print."""
    options = _options()
    results: list[dict[str, Any]] = []
    for luck in options.luck:
        for pairs in options.pairs:
            for seeds in options.seeds:
                found = measure(LUCK[luck], seeds, pairs, options.repetitions, options.resamples, options.tests)
                results.append({"luck": luck, "pairs": pairs, "seeds": _named(seeds), **found})
    for title, key in (
        ("False positives, %, of no difference (nominal 5)", "false_positives"),
        ("Power, %, where a test that knew all variances had 80", "power"),
        ("Coverage of the 95 % interval, %", "coverage"),
    ):
        names = [name for name in options.tests if any(name in result[key] for result in results)]
        rows = [
            [f"{of['luck']}", of["pairs"], of["seeds"], f"{100 * of['difference']:.1f}"]
            + [f"{100 * of[key][name]:.1f}" if name in of[key] else "" for name in names]
            for of in results
        ]
        print_table(title, ["luck", "pairs", "seeds", "points", *names], rows)
    best = {_named(seeds): best_power(seeds[0]) for seeds in options.seeds if 1 < seeds[0] == seeds[1]}
    rows = [[seeds, f"{100 * power:.1f}"] for seeds, power in best.items()]
    print_table("Power, %, of the best test that is right however trainings differ", ["seeds", "luck by pair"], rows)
    found = {"repetitions": options.repetitions, "worlds": results, "best_power": best}
    write_results(options.json, "inference", found)


def _seeds(given: str) -> Seeds:
    first, _, second = given.partition(":")
    return int(first), int(second or first)


def _named(seeds: Seeds) -> str:
    return str(seeds[0]) if seeds[0] == seeds[1] else f"{seeds[0]}:{seeds[1]}"


def _options() -> argparse.Namespace:
    known = parser("inference", __doc__)
    known.formatter_class = argparse.RawDescriptionHelpFormatter
    known.add_argument("--luck", nargs="+", choices=LUCK, default=list(LUCK), help="what varies (default: each)")
    known.add_argument("--pairs", nargs="+", type=int, default=[120, 450, 5000], help="test pairs")
    known.add_argument(
        "--seeds", nargs="+", type=_seeds, default=[(1, 1), (3, 3), (5, 5), (10, 10)], help="trainings of the heads"
    )
    known.add_argument("--tests", nargs="+", choices=TESTS, default=list(TESTS), help="which (default: all)")
    known.add_argument("--repetitions", type=int, default=500, help="evaluations of each kind")
    known.add_argument("--resamples", type=int, default=200, help="of the bootstraps and of the permutations")
    return known.parse_args()


if __name__ == "__main__":
    main()
