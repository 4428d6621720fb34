"""Plots of an evaluation, as PNG files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from frozenfusion.utils.figures import new_figure, save_figure

MOST_NUMBERED = 20  # classes; in a larger confusion matrix numbers would not be legible
MOST_NAMED = 60  # classes; nor would names


def plot_confusion(confusion: NDArray[np.integer], label_names: Sequence[str], path: str | Path) -> None:
    """Draw a confusion matrix (c, c), rows labels and columns predictions, as a PNG: counts, shaded by row."""
    classes = len(label_names)
    side = min(2.4 + 0.9 * classes, 14.0)
    figure = new_figure(side, side * 0.85)
    axes = figure.add_subplot()
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    names = [_plain(name) for name in label_names]
    if classes <= MOST_NAMED:
        axes.set_xticks(range(classes), names, rotation=30 if classes > 3 else 0)
        axes.set_yticks(range(classes), names)
    axes.set(xlabel="prediction", ylabel="label")
    if classes <= MOST_NUMBERED:
        for (row, column), number in np.ndenumerate(confusion):
            colour = "white" if shares[row, column] > 0.6 else "black"
            axes.text(column, row, f"{number:,}", ha="center", va="center", color=colour)
    save_figure(figure, path)


def _plain(name: str, longest: int = 24) -> str:
    """A label name that is drawn as it is written: matplotlib would read $…$ as mathematics."""
    shown = name if len(name) <= longest else f"{name[: longest - 1]}…"
    return shown.replace("$", r"\$")
