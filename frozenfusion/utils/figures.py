"""Figures of matplotlib as PNG files, without its global state."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from frozenfusion.utils.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DOTS_PER_INCH = 130


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, inches wide and high."""
    from matplotlib.figure import Figure  # heavy to import; and no pyplot, whose state is global

    return Figure(figsize=(width, height), dpi=DOTS_PER_INCH, layout="constrained")


def style_axes(axes: Axes) -> None:
    """Epochs as whole numbers, a faint grid, no box."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def save_figure(figure: Figure, path: str | Path) -> None:
    """Write a figure as PNG, whole or not at all. Raises UserError where the disk says no."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    canvas, content = FigureCanvasAgg(figure), io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from")  # a label in a script the font lacks
        canvas.draw()  # once: savefig would draw twice
    Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB").save(content, "PNG")
    write_atomically(path, content.getvalue())
