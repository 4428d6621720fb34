"""Plots of a training, as PNG files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from frozenfusion.utils.figures import new_figure, save_figure, style_axes

TRAIN_COLOUR, VAL_COLOUR = "#3b6fb6", "#d9772b"

Metrics = Sequence[Mapping[str, Any]]
"""The lines of a run's metrics.jsonl, one per epoch."""


def plot_learning_rate(metrics: Metrics, path: str | Path) -> None:
    """Draw the learning rate at the end of every epoch as a PNG; the text encoder's beside it where it is another."""
    figure = new_figure(6.4, 3.6)
    axes = figure.add_subplot()
    for name, label, colour in (("lr", "all else", TRAIN_COLOUR), ("text_lr", "text encoder", VAL_COLOUR)):
        epochs, rates = _series(metrics, name)
        if epochs:
            axes.plot(epochs, rates, marker="o", label=label, color=colour)
    if len(axes.lines) > 1:
        axes.legend(frameon=False)
    axes.set(xlabel="epoch", ylabel="learning rate", title="Learning rate")
    axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 2))
    style_axes(axes)
    save_figure(figure, path)


def plot_curves(metrics: Metrics, path: str | Path) -> None:
    """Draw loss and accuracy of the training and validation parts over the epochs as a PNG."""
    figure = new_figure(9.6, 3.8)
    for position, (what, title) in enumerate((("loss", "Loss"), ("accuracy", "Accuracy")), start=1):
        axes = figure.add_subplot(1, 2, position)
        for part, colour in (("train", TRAIN_COLOUR), ("val", VAL_COLOUR)):
            epochs, values = _series(metrics, f"{part}_{what}")
            if epochs:
                axes.plot(epochs, values, marker="o", label=part, color=colour)
        axes.set(xlabel="epoch", title=title)
        if axes.lines:
            axes.legend(frameon=False)
        style_axes(axes)
    save_figure(figure, path)


def _series(metrics: Metrics, name: str) -> tuple[list[int], list[float]]:
    """Epochs and values of one figure, without the epochs that do not have it (no validation part)."""
    points = [(line["epoch"], line[name]) for line in metrics if line.get(name) is not None]
    return [epoch for epoch, _ in points], [value for _, value in points]
