"""Plots of training and evaluation, as PNG files."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from frozenfusion.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_NUMBERED = 20  # classes; in a larger confusion matrix numbers would not be legible
DOTS_PER_INCH = 130
TRAIN_COLOUR, VAL_COLOUR = "#3b6fb6", "#d9772b"

Metrics = Sequence[Mapping[str, Any]]
"""The lines of a run's metrics.jsonl, one an epoch."""


def plot_learning_rate(metrics: Metrics, path: str | Path) -> None:
    """Draw the learning rate of every epoch as a PNG."""
    figure = _figure(6.4, 3.6)
    axes = figure.add_subplot()
    epochs, rates = _series(metrics, "lr")
    axes.plot(epochs, rates, marker="o", color=TRAIN_COLOUR)
    axes.set(xlabel="epoch", ylabel="learning rate", title="Learning rate")
    axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 2))
    _dress(axes)
    _save(figure, path)


def plot_curves(metrics: Metrics, path: str | Path) -> None:
    """Draw loss and accuracy of the training and validation parts over the epochs as a PNG."""
    figure = _figure(9.6, 3.8)
    for position, (what, title) in enumerate((("loss", "Loss"), ("accuracy", "Accuracy")), start=1):
        axes = figure.add_subplot(1, 2, position)
        for part, colour in (("train", TRAIN_COLOUR), ("val", VAL_COLOUR)):
            epochs, values = _series(metrics, f"{part}_{what}")
            if epochs:
                axes.plot(epochs, values, marker="o", label=part, color=colour)
        axes.set(xlabel="epoch", title=title)
        if axes.lines:
            axes.legend(frameon=False)
        _dress(axes)
    _save(figure, path)


def plot_confusion(confusion: NDArray[np.integer], label_names: Sequence[str], path: str | Path) -> None:
    """Draw a confusion matrix (c, c), rows labels and columns predictions, as a PNG: counts, shaded by row."""
    classes = len(label_names)
    side = min(2.4 + 0.9 * classes, 14.0)
    figure = _figure(side, side * 0.85)
    axes = figure.add_subplot()
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    names = [_plain(name) for name in label_names]
    axes.set_xticks(range(classes), names, rotation=30 if classes > 3 else 0)
    axes.set_yticks(range(classes), names)
    axes.set(xlabel="prediction", ylabel="label")
    if classes <= MOST_NUMBERED:
        for (row, column), number in np.ndenumerate(confusion):
            colour = "white" if shares[row, column] > 0.6 else "black"
            axes.text(column, row, f"{number:,}", ha="center", va="center", color=colour)
    _save(figure, path)


def _plain(name: str, longest: int = 24) -> str:
    """A label name that is drawn as it is written: matplotlib would read $…$ as mathematics."""
    shown = name if len(name) <= longest else f"{name[: longest - 1]}…"
    return shown.replace("$", r"\$")


def _series(metrics: Metrics, name: str) -> tuple[list[int], list[float]]:
    """Epochs and values of one figure, without the epochs that do not have it (no validation part)."""
    points = [(line["epoch"], line[name]) for line in metrics if line.get(name) is not None]
    return [epoch for epoch, _ in points], [value for _, value in points]


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure  # heavy to import; and no pyplot, whose state is global

    return Figure(figsize=(width, height), dpi=DOTS_PER_INCH, layout="constrained")


def _dress(axes: Any) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _save(figure: Figure, path: str | Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    canvas, content = FigureCanvasAgg(figure), io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from")  # a label in a script the font lacks
        canvas.draw()  # once: savefig would draw twice
    Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB").save(content, "PNG")
    write_atomically(path, content.getvalue())
