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
# Fonts of Linux, Windows and macOS that have what matplotlib's own lacks: Chinese, Japanese and Korean letters.
WIDE_FONTS = (
    *("Noto Sans CJK SC", "Noto Sans CJK JP", "Source Han Sans SC", "WenQuanYi Zen Hei", "WenQuanYi Micro Hei"),
    *("Microsoft YaHei", "SimHei", "SimSun", "Malgun Gothic"),
    *("PingFang SC", "PingFang HK", "Hiragino Sans GB", "Heiti TC", "Apple SD Gothic Neo", "Arial Unicode MS"),
)


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
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from")  # a label in a script that no font here has
        canvas.draw()  # once: savefig would draw twice
        if _found_letters(figure):
            canvas.draw()
    Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB").save(content, "PNG")
    write_atomically(path, content.getvalue())


def _found_letters(figure: Figure) -> bool:
    """Have the texts of a drawn figure take what their font lacks from other fonts; whether there are any to do so."""
    from matplotlib.font_manager import fontManager
    from matplotlib.text import Text

    texts = [text for text in figure.findobj(Text) if isinstance(text, Text) and not text.get_text().isascii()]
    installed = set(fontManager.get_font_names()) if texts else ()
    fonts = [name for name in WIDE_FONTS if name in installed]
    for text in texts:
        text.set_fontfamily([*text.get_fontfamily(), *fonts])
    return bool(texts and fonts)
