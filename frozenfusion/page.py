"""The comparison as one self-contained HTML page: nothing is fetched, and every foreign text is escaped."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from frozenfusion import metrics, tables
from frozenfusion.charts import Line, attention_chart, data_uri, extent, line_chart, reliability_chart, ticks
from frozenfusion.comparison import MODALITIES, Comparison, PairedTest, Row
from frozenfusion.images import BadImage, decode_image, read_image_file
from frozenfusion.pairs import Pair

TEMPLATES = Path(__file__).parent / "templates"
MOST_MISTAKES = 12
MOST_ATTENTION = 6
MOST_HEADS = 24  # that get drawings of their own; the tables hold all
MOST_CLASSES = 20  # with which a confusion matrix can still be read
LONGEST_TEXT = 400
THUMBNAIL = 224


@dataclass(frozen=True, eq=False)
class Example:
    """One pair as the page shows it."""

    id: str
    text: str
    image: str | None  # data URI
    label: str
    predicted: str
    probabilities: Sequence[tuple[str, float]]  # by class, the likeliest first
    attention: NDArray[np.floating] | None = None  # (r,) over image regions


@dataclass(frozen=True)
class Modalities:
    """How the text's classifier and the image's agree, and the head that sees both."""

    source: str  # a sentence: whose predictions these are
    fused: str
    agreement: metrics.Agreement


@dataclass(frozen=True, eq=False)
class Page:
    """All that the page shows."""

    title: str
    part: str  # "test", "val", "train", "all" or "new"
    facts: Sequence[str]
    notes: Sequence[str]
    comparison: Comparison
    modalities: Modalities | None = None
    mistakes: Sequence[Example] = ()
    attention: Sequence[Example] = ()
    attention_of: str = ""


def render(page: Page) -> str:
    """The page as HTML."""
    comparison = page.comparison
    shown = [row for row in comparison.rows if row.runs][:MOST_HEADS]
    return (
        _environment()
        .get_template("report.html")
        .render(
            page=page,
            c=comparison,
            focus=comparison.focus,
            shown=shown,
            seeded=any(len(row.runs) > 1 for row in comparison.rows),
            support=np.bincount(comparison.labels, minlength=len(comparison.label_names)).tolist(),
            conclusions=tables.conclusions(comparison, page.part),
            dropping=dropping(comparison),
            curves=_curves(shown),
            rates=_rates(shown),
            most_classes=MOST_CLASSES,
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
        differs=tables.differs,
        reliability_chart=reliability_chart,
        test_reach=_reach,
        tick_label=lambda tick: f"{100 * tick:+.3g}".replace("-", "−") if tick else "0",
        test_ticks=lambda reach: ticks(-reach, reach),
        place=lambda value, reach: round(50 + 50 * max(-1.0, min(1.0, value / reach)), 2),
    )
    return environment


def most_confident_mistakes(comparison: Comparison, pairs: Sequence[Pair]) -> list[Example]:
    """The wrong predictions of the comparison's head that were the surest, surest first; pairs as in the labels."""
    probabilities = np.mean(comparison.focus.probabilities, axis=0)
    predictions = probabilities.argmax(1)
    wrong = np.flatnonzero(predictions != comparison.labels)
    order = wrong[np.argsort(-probabilities[wrong].max(1), kind="stable")][:MOST_MISTAKES]
    names = comparison.label_names
    return [example(pairs[i], names[comparison.labels[i]], probabilities[i], names) for i in order.tolist()]


def example(
    pair: Pair,
    label: str,
    probabilities: NDArray[np.floating],
    label_names: Sequence[str],
    attention: NDArray[np.floating] | None = None,
) -> Example:
    """A pair with its thumbnail and its three likeliest classes."""
    order = np.argsort(-probabilities, kind="stable")[:3].tolist()
    text = "".join(map(_shown, pair.text))
    return Example(
        id=pair.id,
        text=text if len(text) <= LONGEST_TEXT else f"{text[: LONGEST_TEXT - 1]}…",
        image=thumbnail(pair.image),
        label=label,
        predicted=label_names[order[0]],
        probabilities=[(label_names[i], float(probabilities[i])) for i in order],
        attention=attention,
    )


def _shown(character: str) -> str:
    """A character of a foreign text: controls become visible, marks that reorder the text around them go."""
    category = unicodedata.category(character)
    if category == "Cf":
        return character if character in "\u200c\u200d" else ""  # joiners make emoji and letters whole
    return "\ufffd" if category in ("Cc", "Cs") and character not in "\n\t" else character


def thumbnail(path: Path) -> str | None:
    """A small square copy of an image file as a data URI, None where it cannot be read."""
    try:
        return data_uri(decode_image(read_image_file(path), THUMBNAIL), "JPEG")
    except BadImage:
        return None


def modalities(comparison: Comparison) -> Modalities | None:
    """How the modalities agree, by the best evidence there is.

    That is the heads `text` and `image` if both were run, else the two classifiers inside the comparison's head, else
    that head with one modality withheld.
    """
    focus, labels, classes = comparison.focus, comparison.labels, len(comparison.label_names)
    alone = {row.head: row for row in comparison.heads if row.head in MODALITIES}
    run = focus.runs[0]
    fused = focus
    if len(alone) == 2:
        if focus.head in MODALITIES:
            fused = next((row for row in comparison.heads if row.head not in MODALITIES), focus)
        text, image = (alone[name].predictions for name in MODALITIES)
        source = "The heads text and image see one modality each."
    elif all(name in run.parts for name in MODALITIES):
        text, image = (_mean_of([run.parts[name] for run in focus.runs]).argmax(1) for name in MODALITIES)
        source = f"Inside {focus.name} each modality has a classifier of its own."
    elif set(run.without) == set(MODALITIES):
        image, text = (_mean_of([run.without[name] for run in focus.runs]).argmax(1) for name in MODALITIES)
        source = f"{focus.name} was given the text alone, and the image alone."
    else:
        return None
    if fused.head in MODALITIES:
        return None
    return Modalities(source, fused.name, metrics.agreement(labels, text, image, fused.predictions, classes))


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


def _mean_of(probabilities: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    return np.asarray(np.mean(probabilities, axis=0), dtype=np.float64)


def _reach(tests: Sequence[PairedTest]) -> float:
    """Half the width of a chart of differences, in shares."""
    largest = max(abs(value) for test in tests for value in (test.accuracy.low, test.accuracy.high))
    return max(0.01, largest * 1.08)


def _curves(rows: Sequence[Row]) -> list[tuple[str, Markup, Markup]]:
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


def _lines(row: Row, what: str) -> list[Line]:
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


def _rates(rows: Sequence[Row]) -> list[tuple[str, Markup]]:
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
