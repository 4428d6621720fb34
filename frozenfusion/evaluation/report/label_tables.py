"""What labels are worth, as people read it (text, sentences, drawings) and as programs do (CSV)."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from frozenfusion.evaluation.label_curve import METHODS, Interval, Point
from frozenfusion.evaluation.report.charts import Line, fraction_chart, line_chart
from frozenfusion.evaluation.report.tables import percent, points
from frozenfusion.utils.tables import Cells, as_text, to_csv

STYLES = dict(zip(METHODS.values(), ("alone", "train", "val"), strict=True))  # of lines, by method


def curve_table(curve: Sequence[Point]) -> Cells:
    """A line for each point."""
    header = ("labels", "learned from", "draws", "accuracy %", "gain over labels alone", "pseudo-labels", "right %")
    several = len({point.head for point in curve}) > 1
    return [header, *(_cells(point, several) for point in curve)]


def _cells(point: Point, several: bool) -> tuple[str, ...]:
    low, high = point.accuracy.low, point.accuracy.high
    between = "" if low is None or high is None else f" ({percent(max(low, 0))}–{percent(min(high, 1))})"
    return (
        f"{point.head} {part(point)}" if several else part(point),
        point.method,
        str(point.draws),
        f"{percent(point.accuracy.mean)}{between}",
        "" if point.gain is None else gain(point.gain),
        "" if point.pseudo_labels is None else f"{point.pseudo_labels:,.0f}",
        " → ".join(percent(share) for share in (*point.by_round[:1], *point.by_round[-1:])),
    )


def part(point: Point) -> str:
    """The part of the labels that counted: 10 %."""
    return f"{100 * point.fraction:.3g} %"


def gain(of: Interval) -> str:
    """A difference with its interval, if it is known."""
    return (
        points(of.mean)
        if of.low is None or of.high is None
        else (f"{points(of.mean)} ({points(of.low)} to {points(of.high)})")
    )


def findings(curve: Sequence[Point]) -> list[str]:
    """What may be concluded: with which parts of the labels a method gained or lost, and where nothing is shown."""
    told = []
    for head in dict.fromkeys(point.head for point in curve):
        for method in METHODS.values():
            own = [point for point in curve if (point.head, point.method) == (head, method) and point.gain]
            shown = [(point, point.gain) for point in own if point.gain and point.gain.excludes_zero]
            for word, sign in (("more", 1), ("fewer", -1)):
                parts = [f"{points(by.mean)} points with {part(point)}" for point, by in shown if by.mean * sign > 0]
                if parts:
                    told.append(f"{method} ({head}) gets {word} pairs right than the labels alone: {', '.join(parts)}.")
            rest = [part(point) for point in own if point.gain and not point.gain.excludes_zero]
            if rest:
                told.append(f"{method} ({head}): no difference is shown with {', '.join(rest)} of the labels.")
    return told


def warnings(curve: Sequence[Point]) -> list[str]:
    """What to be wary of in each point's runs."""
    return [f"{point.method}, {part(point)}, {point.note}." for point in curve if point.note]


def curve_text(curve: Sequence[Point]) -> str:
    """The curve for a terminal: the table, what may be concluded, and what to be wary of."""
    lines = ["what labels are worth", "", as_text(curve_table(curve)), "", *findings(curve), *warnings(curve)]
    return "\n".join(lines)


def curve_csv(curve: Sequence[Point]) -> str:
    """The curve for a program."""
    lines: list[list[object]] = [
        [
            "head",
            "fraction",
            "method",
            "draws",
            "accuracy",
            "low",
            "high",
            "gain",
            "gain_low",
            "gain_high",
            "right_by_round",
        ]
    ]
    for point in curve:
        gained = (None, None, None) if point.gain is None else (point.gain.mean, point.gain.low, point.gain.high)
        lines.append(
            [
                *(point.head, point.fraction, point.method, point.draws),
                *(point.accuracy.mean, point.accuracy.low, point.accuracy.high),
                *(*gained, " ".join(f"{share:.4f}" for share in point.by_round)),
            ]
        )
    return to_csv(lines)


def curve_charts(curve: Sequence[Point]) -> list[tuple[str, Markup]]:
    """Accuracy by the part of the labels, one drawing for each head."""
    found = []
    for head in dict.fromkeys(point.head for point in curve):
        series = {
            STYLES[method]: [
                (point.fraction, point.accuracy.mean, point.accuracy.low, point.accuracy.high)
                for point in curve
                if (point.head, point.method) == (head, method)
            ]
            for method in METHODS.values()
        }
        found.append((head, fraction_chart(series, label=f"accuracy of {head} by the part of the labels")))
    return found


def round_charts(curve: Sequence[Point]) -> list[tuple[str, Markup]]:
    """Share of right pseudo-labels by round, one drawing for each part of the labels, on one scale."""
    charts = []
    several = len({point.head for point in curve}) > 1
    known = [point for point in curve if point.by_round]
    lowest = min((share for point in known for share in point.by_round), default=0.0)
    for head, fraction in dict.fromkeys((point.head, point.fraction) for point in known):
        own = [point for point in known if (point.head, point.fraction) == (head, fraction)]
        lines = [Line([(float(i), y) for i, y in enumerate(of.by_round, 1)], STYLES[of.method]) for of in own]
        title = f"{head}, {part(own[0])}" if several else part(own[0])
        charts.append((title, line_chart(lines, label=f"right pseudo-labels by round, {title}", y=(lowest, 1.0))))
    return charts
