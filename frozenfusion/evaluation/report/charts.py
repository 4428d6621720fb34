"""Drawings for the HTML report, as inline SVG that takes its colours from the page (light and dark).

Sizes are in the drawing's own units, about one CSS pixel each.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup, escape
from numpy.typing import NDArray
from PIL import Image

from frozenfusion.evaluation.metrics import Calibration

WIDTH, HEIGHT = 300, 180
LEFT, RIGHT, TOP, BOTTOM = 40, 8, 8, 24  # margins that hold the axes' numbers

Point = tuple[float, float]


@dataclass(frozen=True)
class Line:
    """A polyline through points, drawn in the style of a CSS class of the page."""

    points: Sequence[Point]
    style: str


@dataclass(frozen=True)
class _Frame:
    """The plot's inner area and the values at its edges."""

    x: tuple[float, float]
    y: tuple[float, float]
    height: float = HEIGHT

    def at(self, x: float, y: float) -> Point:
        return self._along(x, self.x, LEFT, WIDTH - RIGHT), self._along(y, self.y, self.height - BOTTOM, TOP)

    @staticmethod
    def _along(value: float, values: tuple[float, float], start: float, end: float) -> float:
        low, high = values
        return start + (end - start) * (value - low) / ((high - low) or 1.0)


def line_chart(lines: Sequence[Line], *, label: str, y: tuple[float, float] | None = None) -> Markup:
    """Lines over whole numbers (epochs); `y` fixes the range of values, else it is that of the lines."""
    points = [point for line in lines for point in line.points]
    if not points:
        return Markup()
    frame = _Frame(extent(x for x, _ in points), _rounded(*(y or extent(y for _, y in points))))
    drawn = [_axes(frame, _whole_ticks(*frame.x), ticks(*frame.y))]
    for line in lines:
        places = [frame.at(*point) for point in line.points]
        drawn.append(f'<polyline class="{line.style}" points="{_joined(places)}"/>')
        drawn += [f'<circle class="{line.style}" r="2" cx="{x:.1f}" cy="{y:.1f}"/>' for x, y in places[-1:]]
    return _svg(drawn, label)


def fraction_chart(
    series: Mapping[str, Sequence[tuple[float, float, float | None, float | None]]], *, label: str
) -> Markup:
    """Shares over fractions, on a logarithmic axis, with their intervals; series come by the style of their line."""
    points = [point for of in series.values() for point in of]
    if not points:
        return Markup()
    known = [value for _, *values in points for value in values if value is not None]
    low, high = extent(known)
    fractions = sorted({fraction for fraction, *_ in points})
    first, last = extent(math.log(fraction) for fraction in fractions)
    room = (last - first) / 12  # for the outermost fractions' intervals and names
    frame = _Frame((first - room, last + room), _rounded(max(low, 0.0), min(high, 1.0)))
    drawn = [_axes(frame, [], ticks(*frame.y))]
    for fraction in fractions:
        x, y = frame.at(math.log(fraction), frame.y[0])
        drawn.append(f'<text class="tick middle" x="{x:.1f}" y="{y + 15:.1f}">{100 * fraction:.3g} %</text>')
    for place, (style, of) in enumerate(series.items()):
        shift = 3.0 * (place - 1)  # lest the intervals lie on each other
        spots = [(frame.at(math.log(fraction), mean), below, above) for fraction, mean, below, above in sorted(of)]
        drawn.append(f'<polyline class="{style}" points="{_joined([(x + shift, y) for (x, y), *_ in spots])}"/>')
        for (x, y), below, above in spots:
            drawn.append(f'<circle class="{style}" r="2.5" cx="{x + shift:.1f}" cy="{y:.1f}"/>')
            if below is not None and above is not None:
                ends_at = [(x + shift, frame.at(0, min(max(value, 0), 1))[1]) for value in (below, above)]
                drawn.append(f'<polyline class="{style}" points="{_joined(ends_at)}"/>')
    return _svg(drawn, label)


def reliability_chart(calibration: Calibration, *, label: str) -> Markup:
    """Accuracy in each bin of confidence, against the diagonal of a perfectly calibrated model."""
    frame = _Frame((0.0, 1.0), (0.0, 1.0), height=240)
    tick_values = [0.0, 0.25, 0.5, 0.75, 1.0]
    drawn = [_axes(frame, tick_values, tick_values)]
    total = max(1, int(calibration.count.max(initial=0)))
    for place in np.flatnonzero(calibration.count):
        left, right = calibration.edges[place], calibration.edges[place + 1]
        (x0, y0), (x1, y1) = frame.at(left, calibration.accuracy[place]), frame.at(right, 0)
        weight = 0.25 + 0.75 * math.sqrt(calibration.count[place] / total)  # bins of few pairs are fainter
        drawn.append(
            f'<rect class="bin" x="{x0 + 0.5:.1f}" y="{y0:.1f}" width="{x1 - x0 - 1:.1f}" height="{y1 - y0:.1f}"'
            f' fill-opacity="{weight:.2f}"/>'
        )
    drawn.append(f'<polyline class="diagonal" points="{_joined([frame.at(0, 0), frame.at(1, 1)])}"/>')
    return _svg(drawn, label, height=240)


def attention_chart(thumbnail: str, attention: NDArray[np.floating], *, label: str) -> Markup:
    """An image (data URI) with the regions (r,), a square grid by rows, dark where little attention falls."""
    side = math.isqrt(len(attention))
    grid = attention[: side * side].reshape(side, side).astype(np.float64)
    bright = np.sqrt((grid - grid.min()) / ((grid.max() - grid.min()) or 1.0))  # lest one peak hide the rest
    shade = np.zeros((side, side, 4), dtype=np.uint8)
    shade[..., 3] = np.round(205 * (1 - bright))
    place = f'x="0" y="0" width="{side * 20}" height="{side * 20}" preserveAspectRatio="none"'
    drawn = [f'<image {place} href="{escape(thumbnail)}"/>', f'<image {place} href="{data_uri(shade, "PNG")}"/>']
    return _svg(drawn, label, width=side * 20, height=side * 20)


def data_uri(pixels: NDArray[np.uint8], kind: str) -> str:
    """An image, uint8 (h, w, 3 or 4), as a data URI of the kind JPEG or PNG."""
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, format=kind, quality=78, optimize=True)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(content.getvalue()).decode()}"


def ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) from `low` to `high`."""
    if not high > low:
        return [low]
    step = _step(low, high, about)
    first = math.ceil(low / step - 1e-9)
    return [place * step for place in range(first, math.floor(high / step + 1e-9) + 1)]


def _step(low: float, high: float, about: int) -> float:
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * 0.999)


def _rounded(low: float, high: float, about: int = 4) -> tuple[float, float]:
    """The range from the tick below `low` to the one above `high`."""
    step = _step(low, high, about)
    return math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step


def _whole_ticks(low: float, high: float) -> list[float]:
    """The first number, and round whole ones that are not too near it."""
    found = {float(round(value)) for value in ticks(low, high, about=5) if value - low > (high - low) / 12}
    return sorted({low, *found})


def extent(values: Iterable[float]) -> tuple[float, float]:
    """The lowest and the highest value, apart also where all are the same; 0 and 1 where there is none."""
    known = list(values) or [0.0, 1.0]
    low, high = min(known), max(known)
    return (low, high) if high > low else (low - 0.5 * abs(low or 1), high + 0.5 * abs(high or 1))


def _axes(frame: _Frame, x_ticks: Sequence[float], y_ticks: Sequence[float]) -> str:
    drawn = []
    for value in y_ticks:
        x, y = frame.at(frame.x[0], value)
        drawn.append(f'<line class="grid" x1="{x:.1f}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        drawn.append(f'<text class="tick end" x="{x - 5:.1f}" y="{y + 3.5:.1f}">{_number(value)}</text>')
    for value in x_ticks:
        x, y = frame.at(value, frame.y[0])
        drawn.append(f'<text class="tick middle" x="{x:.1f}" y="{y + 15:.1f}">{_number(value)}</text>')
    return "".join(drawn)


def _number(value: float) -> str:
    return f"{value:.3g}" if value == 0 or abs(value) >= 1e-3 else f"{value:.0e}".replace("e-0", "e-")


def _joined(points: Sequence[Point]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def _svg(drawn: Sequence[str], label: str, *, width: float = WIDTH, height: float = HEIGHT) -> Markup:
    title = escape(label)
    return Markup(  # the only foreign text in it is escaped just above
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{title}">{"".join(drawn)}</svg>'
    )
