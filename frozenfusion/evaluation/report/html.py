"""The page of an evaluation as one self-contained HTML file: nothing is fetched, and every foreign text is escaped."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from frozenfusion.evaluation.comparison import Comparison, HeadResult, PairedTest
from frozenfusion.evaluation.report import label_tables, tables
from frozenfusion.evaluation.report.charts import Line, attention_chart, extent, line_chart, reliability_chart, ticks
from frozenfusion.evaluation.report.page import Page
from frozenfusion.fusion.base import MODALITIES
from frozenfusion.model.tuning import tuning_cells

TEMPLATES = Path(__file__).parent / "templates"
MOST_HEADS = 24  # that get drawings of their own; the tables hold all


def render(page: Page) -> str:
    """The page as HTML."""
    comparison = page.comparison
    support = np.bincount(comparison.labels, minlength=len(comparison.label_names))
    shown = [row for row in comparison.rows if row.runs][:MOST_HEADS]
    return (
        _environment()
        .get_template("report.html")
        .render(
            page=page,
            c=comparison,
            focus=comparison.focus,
            shown=shown,
            seeded=comparison.seeded,
            support=support.tolist(),
            classes=tables.most_seen(support),
            conclusions=tables.conclusions(comparison, page.part),
            dropping=dropping(comparison),
            curves=_curves(shown),
            rates=_rates(shown),
            tuned=tuning_cells(tables.tunings(comparison)),
            tuned_note=tables.TUNED,
            searches=_searches(comparison),
            label_table=label_tables.curve_table(page.label_curve),
            label_findings=label_tables.findings(page.label_curve),
            label_warnings=label_tables.warnings(page.label_curve),
            label_charts=label_tables.curve_charts(page.label_curve),
            round_charts=label_tables.round_charts(page.label_curve),
            most_classes=tables.MOST_CLASSES,
        )
    )


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for of in (tables.percent, tables.points, tables.p_value, tables.difference, tables.count, tables.seconds):
        environment.filters[of.__name__] = of
    environment.filters["part_name"] = tables.part_name
    environment.globals.update(
        attention_chart=attention_chart,
        calibration_error=tables.calibration_error,
        differs=tables.differs,
        reliability_chart=reliability_chart,
        temperatures=tables.temperatures,
        test_reach=_reach,
        tick_label=lambda tick: f"{100 * tick:+.3g}".replace("-", "−") if tick else "0",
        test_ticks=lambda reach: ticks(-reach, reach),
        place=lambda value, reach: round(50 + 50 * max(-1.0, min(1.0, value / reach)), 2),
    )
    return environment


def dropping(comparison: Comparison) -> list[tuple[str, float, list[float]]]:
    """Of each head that uses both modalities: accuracy with both, without text, without image."""
    found = []
    for row in comparison.heads:
        if all(set(run.without) == set(MODALITIES) for run in row.runs):
            rest = [
                float(np.mean([(run.without[name].argmax(1) == comparison.labels).mean() for run in row.runs]))
                for name in MODALITIES
            ]
            found.append((row.name, row.figures["accuracy"].mean, rest))
    return found


def _reach(tests: Sequence[PairedTest]) -> float:
    """Half the width of a chart of differences, in shares."""
    largest = max(abs(value) for test in tests for value in (test.accuracy.low, test.accuracy.high))
    return max(0.01, largest * 1.08)


def _curves(rows: Sequence[HeadResult]) -> list[tuple[str, Markup, Markup]]:
    """Name, accuracy chart and loss chart of each head that has a history; accuracy on one scale for all."""
    trained = [row for row in rows if _lines(row, "loss")]
    shared = extent(y for row in trained for line in _lines(row, "accuracy") for _, y in line.points)
    return [
        (
            row.name,
            line_chart(_lines(row, "accuracy"), y=shared, label=f"accuracy of {row.name} over the epochs"),
            line_chart(_lines(row, "loss"), label=f"loss of {row.name} over the epochs"),
        )
        for row in trained
    ]


def _lines(row: HeadResult, what: str) -> list[Line]:
    lines = []
    for part in ("train", "val"):
        for run in row.runs:
            points = _points(run.history, f"{part}_{what}")
            if points:
                lines.append(Line(points, part))
    return lines


def _points(history: Sequence[Mapping[str, Any]], name: str) -> list[tuple[float, float]]:
    return [
        (float(line["epoch"]), float(line[name]))
        for line in history
        if line.get(name) is not None and math.isfinite(line[name])
    ]


def _searches(comparison: Comparison) -> list[tuple[str, Markup]]:
    """A chart of the expected best validation accuracy over the number of trials for each head, on one scale."""
    expected = {name: of.expected_best() for name, of in tables.tunings(comparison).items() if len(of.trials) > 1}
    shared = extent(value for values in expected.values() for value in values)
    return [
        (
            name,
            line_chart(
                [Line([(float(n), value) for n, value in enumerate(values, 1)], "val")],
                y=shared,
                label=f"expected best validation accuracy of {name} over the number of trials",
            ),
        )
        for name, values in list(expected.items())[:MOST_HEADS]
    ]


def _rates(rows: Sequence[HeadResult]) -> list[tuple[str, Markup]]:
    """One learning-rate chart for each course that the rate took, with the names of the heads that took it."""
    courses: dict[tuple[tuple[float, float], ...], list[str]] = {}
    for row in rows:
        for run in row.runs[:1]:
            points = tuple(_points(run.history, "lr"))
            if points:
                courses.setdefault(points, []).append(row.name)
    return [
        (
            "all heads" if len(courses) == 1 and len(names) > 1 else ", ".join(names),
            line_chart([Line(points, "train")], label="learning rate over the epochs"),
        )
        for points, names in courses.items()
    ]
