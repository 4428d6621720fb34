"""Figures as people read them (text, Markdown, sentences) and as programs do (CSV)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from frozenfusion.evaluation.comparison import FIGURES, Comparison, Estimate, HeadResult, PairedTest
from frozenfusion.model.tuning import Tuning, tuning_cells
from frozenfusion.utils.messages import printable, some_of
from frozenfusion.utils.tables import Cells, as_markdown, as_text, escape_markdown, to_csv

MOST_CLASSES = 20  # that are shown, and with which a confusion matrix can still be read
TUNED = (
    "The expected best validation accuracy (%) of so many trials, and the options of the best of all. The best of "
    "several is optimistic: quote the scores above. Trials that ended early count with what they had reached."
)


def percent(value: float | None) -> str:
    """A share as a percentage without its sign: 81.3, or – where there is none."""
    return "–" if value is None else f"{100 * value:.1f}"


def points(value: float) -> str:
    """A difference of shares in percentage points: +2.1."""
    return f"{100 * value:+.1f}".replace("-", "−")  # a minus sign, as wide as the plus


def p_value(value: float) -> str:
    """A p-value as papers print it."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def score(figure: Estimate) -> str:
    """A score with its deviation over seeds and its interval: 81.3 ± 0.4 (78.9–83.6)."""
    deviation = "" if figure.sd is None else f" ± {percent(figure.sd)}"
    return f"{percent(figure.mean)}{deviation} ({percent(figure.low)}–{percent(figure.high)})"


def difference(figure: Estimate) -> str:
    """A difference with its interval: +2.1 (+0.4 to +3.8)."""
    return f"{points(figure.mean)} ({points(figure.low)} to {points(figure.high)})"


def count(value: int | None) -> str:
    """A whole number with its thousands apart, or – where there is none."""
    return "–" if value is None else f"{value:,}"


def seconds(value: float | None) -> str:
    """A short time in seconds, with more digits the shorter it is."""
    return "–" if value is None else f"{value:.3g}" if value < 100 else f"{value:,.0f}"


def score_table(comparison: Comparison) -> Cells:
    """The comparison's rows: scores, and what they cost."""
    labels = comparison.labels
    header = ["", "accuracy %", "macro F1 %", "weighted F1 %", "ECE %", "validation %", "parameters", "s/epoch"]
    return [header, *(_score_cells(row, labels) for row in comparison.rows)]


def calibration_error(row: HeadResult, labels: NDArray[np.int64]) -> str:
    """The expected calibration error as a percentage, and after calibration where there is one: 18.2 → 3.1."""
    calibrated = row.calibrated(labels)
    after = "" if calibrated is None else f" → {percent(calibrated.ece)}"
    return f"{percent(row.calibration(labels).ece)}{after}"


def temperatures(row: HeadResult) -> str:
    """The temperatures of a head's runs: 1.83, or 1.71–1.90 over seeds."""
    low, high = f"{min(row.temperatures):.2f}", f"{max(row.temperatures):.2f}"
    return low if low == high else f"{low}–{high}"


def _score_cells(row: HeadResult, labels: NDArray[np.int64]) -> list[str]:
    figures = [*(score(row.figures[name]) for name in FIGURES), calibration_error(row, labels)]
    if not row.runs:
        return [row.name, *figures, "", "", ""]
    name = row.name if len(row.runs) == 1 else f"{row.name}, {len(row.runs)} seeds"
    return [name, *figures, percent(row.validation), count(row.parameters), seconds(row.seconds)]


def test_table(tests: Sequence[PairedTest]) -> Cells:
    """The paired tests, one per row."""
    header = ["", "accuracy, points", "macro F1, points", "only one right", "p", "could show, points"]
    return [header, *(_test_cells(test) for test in tests)]


def _test_cells(test: PairedTest) -> list[str]:
    return [
        f"{test.head} − {test.other}",
        difference(test.accuracy),
        difference(test.macro_f1),
        f"{test.only_head} : {test.only_other}",
        p_value(test.p),
        percent(test.detectable),
    ]


def most_seen(support: NDArray[np.number]) -> list[int]:
    """The classes that tables show, of pairs by class (c,): those of the most pairs, in the order of the classes."""
    return sorted(np.argsort(-support, kind="stable")[:MOST_CLASSES].tolist())


def class_table(row: HeadResult, label_names: Sequence[str]) -> Cells:
    """Precision, recall and F1 of each class, of many those with the most pairs."""
    found, seeds = row.scores, max(1, len(row.runs))
    figures = np.stack([found.precision, found.recall, found.f1])
    shown = most_seen(found.support)
    rest = len(label_names) - len(shown)
    return [
        ["class", "precision %", "recall %", "F1 %", "pairs"],
        *([label_names[i], *map(percent, figures[:, i]), count(round(found.support[i] / seeds))] for i in shown),
        *([[f"and {rest:,} more", "", "", "", ""]] if rest else []),
    ]


def confusion_table(row: HeadResult, label_names: Sequence[str]) -> Cells:
    """The confusion matrix; over several seeds their sum. Of many classes none, which nobody could read."""
    if len(label_names) > MOST_CLASSES:
        return [["label \\ predicted"], [f"the matrix of {len(label_names):,} classes is in metrics.json"]]
    cells = [[name, *map(count, line)] for name, line in zip(label_names, row.confusion.tolist(), strict=True)]
    return [["label \\ predicted", *label_names], *cells]


def tunings(comparison: Comparison) -> dict[str, Tuning]:
    """How the options of each row were chosen, of those that were tuned, by the row's name."""
    return {row.name: row.runs[0].tuning for row in comparison.heads if row.runs[0].tuning is not None}


def _budgets(comparison: Comparison) -> list[str]:
    """Whether all heads were tuned alike, where any was."""
    found = tunings(comparison)
    budgets = {name: of.budget for name, of in found.items()}
    if not budgets or len(comparison.heads) < 2:
        return []
    if len(budgets) == len(comparison.heads) and len(set(budgets.values())) == 1:
        budget = next(iter(budgets.values()))
        return [f"Every head was tuned with the same budget: {budget}, the best on the validation part taken."]
    told = ", ".join(f"{row.name} {budgets.get(row.name, 'none')}" for row in comparison.heads)
    return [f"Not every head was tuned with the same budget, so effort may be what differs: {told}."]


def conclusions(comparison: Comparison, part: str) -> list[str]:
    """What the figures of a part ("test", "val", …) say and do not say, in sentences."""
    said = []
    if comparison.chosen:
        chosen = comparison.row(comparison.chosen)
        said.append(
            f"Chosen by the validation part alone: {chosen.name} ({percent(chosen.validation)} % there). "
            f"Accuracy on {part_name(part)}: {score(chosen.figures['accuracy'])} %."
        )
        if part == "test":
            said.append(
                "The test part had no say in this choice; whoever tunes on by it should keep another part aside."
            )
    if part == "val":
        said.append(
            "The validation part chose each run's best epoch, so scores are optimistic: quote those of the test part."
        )
    if part in ("train", "all"):
        said.append("These figures hold pairs that the models were trained on: they say nothing about new ones.")
    return said + _budgets(comparison) + _findings(comparison)


def _findings(comparison: Comparison) -> list[str]:
    said = []
    if comparison.tests:
        better = [test.head for test in comparison.tests if differs(test) and test.accuracy.mean > 0]
        worse = [test.head for test in comparison.tests if differs(test) and test.accuracy.mean < 0]
        rest = [test.head for test in comparison.tests if not differs(test)]
        told = [
            *([f"{', '.join(better)} {_are(better)} better"] if better else []),
            *([f"{', '.join(worse)} {_are(worse)} worse"] if worse else []),
            *(
                [f"{', '.join(rest) if len(rest) < 5 else f'the other {len(rest)}'} cannot be told apart from it"]
                if rest
                else []
            ),
        ]
        said.append(f"Against {comparison.reference} (corrected p below 0.05): {'; '.join(told)}.")
    if comparison.fusion_tests:
        gains = ", ".join(
            f"{points(test.accuracy.mean)} points over {test.other} alone "
            f"({'a real difference' if differs(test) else 'within chance'})"
            for test in comparison.fusion_tests
        )
        said.append(f"Fusion by {comparison.chosen}: {gains}.")
    if comparison.baseline_tests:
        gains = ", ".join(
            f"{points(test.accuracy.mean)} over {test.other}{'' if differs(test) else ' (within chance)'}"
            for test in comparison.baseline_tests
        )
        said.append(f"Points of {comparison.baseline_tests[0].head} over the baselines: {gains}.")
    return said + _limits(comparison)


def _limits(comparison: Comparison) -> list[str]:
    """How large a difference the pairs could have shown, and what one seed cannot."""
    said = []
    tests = comparison.tests or comparison.fusion_tests or comparison.baseline_tests
    least = sorted({percent(test.detectable) for test in tests if test.detectable is not None}, key=float)
    if least:
        shown = " to ".join([least[0], least[-1]] if len(least) > 1 else least)
        said.append(
            f"{count(len(comparison.labels))} pairs can show a difference of {shown} points or more "
            "(it would be found four times in five)."
        )
    every = [test for _, tests in _families(comparison) for test in tests]
    alike = [f"{test.head} and {test.other}" for test in every if is_alike(test)]
    if alike:
        said.append(f"Right on the same pairs, so that nothing tells how far they could differ: {some_of(alike)}.")
    single = sorted({name for test in every for name in test.single})
    if single:
        named = ", ".join(single) if len(single) < 5 else f"{len(single)} heads"
        these = "that very training" if len(single) == 1 else "those very trainings"
        said.append(
            f"There is only one seed of {named}: the tests hold for {these}, and cannot know how others turn out."
        )
    return said


def _are(names: Sequence[str]) -> str:
    return "is" if len(names) == 1 else "are"


def differs(test: PairedTest) -> bool:
    """Whether the test finds a difference at the usual 5 %."""
    return test.p < 0.05


def is_alike(test: PairedTest) -> bool:
    """Whether both are right on the same pairs: such pairs say nothing of a difference that they could show."""
    return test.detectable is None and test.accuracy.mean == test.only_head == test.only_other == 0


def part_name(part: str) -> str:
    """A part of the data as a sentence names it."""
    names = {"val": "the validation part", "all": "all pairs", "new": "new data"}
    return names.get(part, f"the {part} part")


def comparison_text(comparison: Comparison, part: str) -> str:
    """The comparison for a terminal; of a single head its classes and its confusion matrix too."""
    heads, names = comparison.heads, comparison.label_names
    tables = [as_text(score_table(comparison))]
    tables += [
        f"{printable(name, None)}: {_corrected(tests, comparison)}\n\n{as_text(test_table(tests))}"
        for name, tests in _families(comparison)
    ]
    if len(heads) == 1:
        tables += [as_text(class_table(heads[0], names)), as_text(confusion_table(heads[0], names))]
    blocks = [f"{part_name(part)}, {count(len(comparison.labels))} pairs (95 % intervals in brackets)"]
    said = [printable(sentence, None) for sentence in conclusions(comparison, part)]
    return "\n\n".join([*blocks, *tables, *(["\n".join(said)] if said else [])])


def _families(comparison: Comparison) -> list[tuple[str, Sequence[PairedTest]]]:
    found = (
        (f"Against {comparison.reference}", comparison.tests),
        ("Against each modality alone", comparison.fusion_tests),
        ("Against the baselines", comparison.baseline_tests),
    )
    return [(name, tests) for name, tests in found if tests]


def comparison_markdown(comparison: Comparison, title: str, part: str, notes: Sequence[str]) -> str:
    """The whole comparison as a Markdown page."""
    blocks = [f"# {escape_markdown(title)}", *map(escape_markdown, conclusions(comparison, part))]
    if notes:
        blocks.append("\n".join(f"- {escape_markdown(note)}" for note in notes))
    blocks += ["Mean ± standard deviation over seeds (95 % interval).", as_markdown(score_table(comparison))]
    for name, tests in _families(comparison):
        blocks += [f"## {escape_markdown(name)}", _corrected(tests, comparison), as_markdown(test_table(tests))]
    tuned = tunings(comparison)
    if tuned:
        blocks += ["## Tuning", TUNED, as_markdown(tuning_cells(tuned))]
    for row in comparison.rows:
        blocks += [f"## {escape_markdown(row.name)}", as_markdown(class_table(row, comparison.label_names))]
        blocks.append(as_markdown(confusion_table(row, comparison.label_names)))
    return "\n\n".join(blocks) + "\n"


def _corrected(tests: Sequence[PairedTest], comparison: Comparison) -> str:
    number = f"{len(tests)} comparison{'s' if len(tests) > 1 else ''}"
    over = "two-way t-test over pairs and seeds" if comparison.seeded else "t-test over pairs"
    return f"Difference in accuracy: {over}, Holm-corrected for {number}. Could show: found four times in five."


def comparison_csv(comparison: Comparison) -> str:
    """The comparison as CSV: one line per row, shares as numbers from 0 to 1, cells empty where there is nothing."""
    tests = {test.head: test for test in comparison.tests}
    figures = [f"{name}{part}" for name in FIGURES for part in ("", "_sd", "_low", "_high")]
    compared = ["difference", "difference_low", "difference_high", "p", "detectable", "p_mcnemar"]
    header = ["name", "head", "seeds", *figures, "reference", *compared, "validation_accuracy", "ece", "ece_calibrated"]
    lines: list[list[object]] = [[*header, "temperature", "parameters", "seconds_per_epoch", "chosen"]]
    for row in comparison.rows:
        cells: list[object] = [row.name, row.head, len(row.runs)]
        for name in FIGURES:
            figure = row.figures[name]
            cells += [figure.mean, figure.sd, figure.low, figure.high]
        cells += [comparison.reference if row.name in tests else None, *_test_numbers(tests.get(row.name))]
        calibrated = row.calibrated(comparison.labels)
        cells += [row.validation, row.calibration(comparison.labels).ece, calibrated.ece if calibrated else None]
        cells += [float(np.mean(row.temperatures)) if calibrated else None, row.parameters, row.seconds]
        lines.append([*cells, int(row.name == comparison.chosen)])
    return to_csv(lines)


def _test_numbers(test: PairedTest | None) -> list[float | None]:
    if test is None:
        return [None] * 6
    return [test.accuracy.mean, test.accuracy.low, test.accuracy.high, test.p, test.detectable, test.p_mcnemar]
