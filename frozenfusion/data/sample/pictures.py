"""Pictures of the built-in sample: colour and texture tell a mood, as random convolutions can see."""

from __future__ import annotations

import colorsys

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

POSITIVE, NEUTRAL, NEGATIVE = range(3)

# Hue, saturation and brightness (in the middle of their spread) that a mood's colours come from.
_PALETTES = {
    POSITIVE: ((0.12, 0.75, 0.95), (0.05, 0.65, 0.95), (0.93, 0.45, 0.95), (0.54, 0.45, 0.95)),
    NEUTRAL: ((0.11, 0.12, 0.75), (0.58, 0.12, 0.65), (0.30, 0.12, 0.70), (0.08, 0.25, 0.60)),
    NEGATIVE: ((0.68, 0.50, 0.25), (0.98, 0.60, 0.30), (0.60, 0.25, 0.20), (0.80, 0.35, 0.25)),
}
_PLAIN = ((0.38, 0.45, 0.55), (0.45, 0.40, 0.60), (0.25, 0.40, 0.60), (0.50, 0.30, 0.50))


def draw(random: np.random.Generator, mood: int | None) -> Image.Image:
    """A small RGB picture that shows a mood, or none: 96 to 160 pixels per side, the same for the same generator.

    POSITIVE is bright and full of soft round lights, NEUTRAL pale and lined like paper and brick, NEGATIVE dark and
    cracked; a picture without a mood is a plain green scene with a few shapes.
    """
    size = tuple(int(side) for side in random.integers(96, 161, size=2))
    palette = _PLAIN if mood is None else _PALETTES[mood]
    picture = _background(random, size, palette)
    pen = ImageDraw.Draw(picture)
    if mood == POSITIVE:
        _lights(random, pen, size, palette)
        picture = picture.filter(ImageFilter.GaussianBlur(1.5))
    elif mood == NEUTRAL:
        _lines(random, pen, size, palette)
    elif mood == NEGATIVE:
        _cracks(random, pen, size)
    _shapes(random, ImageDraw.Draw(picture), size)
    noise = random.normal(0, random.uniform(3, 8), (size[1], size[0], 1))
    return Image.fromarray((np.asarray(picture) + noise).clip(0, 255).astype(np.uint8))


def _colour(random: np.random.Generator, palette: tuple[tuple[float, float, float], ...]) -> tuple[int, int, int]:
    hue, saturation, value = palette[random.integers(len(palette))] + random.normal(0, (0.03, 0.08, 0.08))
    red, green, blue = colorsys.hsv_to_rgb(hue % 1, min(max(saturation, 0), 1), min(max(value, 0.05), 1))
    return round(red * 255), round(green * 255), round(blue * 255)


def _background(
    random: np.random.Generator, size: tuple[int, ...], palette: tuple[tuple[float, float, float], ...]
) -> Image.Image:
    """A gradient between two colours of the palette, in any direction."""
    across, down = np.meshgrid(np.linspace(-1, 1, size[0]), np.linspace(-1, 1, size[1]))
    angle = random.uniform(0, 2 * np.pi)
    share = ((across * np.cos(angle) + down * np.sin(angle)) / 2.9 + 0.5)[..., None]
    first, second = np.array(_colour(random, palette)), np.array(_colour(random, palette))
    return Image.fromarray((first * share + second * (1 - share)).clip(0, 255).astype(np.uint8))


def _lights(
    random: np.random.Generator,
    pen: ImageDraw.ImageDraw,
    size: tuple[int, ...],
    palette: tuple[tuple[float, float, float], ...],
) -> None:
    for _ in range(random.integers(14, 30)):
        x, y = random.uniform(0, size[0]), random.uniform(0, size[1])
        radius = random.uniform(4, 14)
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=_colour(random, palette))


def _lines(
    random: np.random.Generator,
    pen: ImageDraw.ImageDraw,
    size: tuple[int, ...],
    palette: tuple[tuple[float, float, float], ...],
) -> None:
    step = int(random.integers(5, 10))
    upright = random.random() < 0.5
    for place in range(0, max(size), step):
        ends = (place, 0, place, size[1]) if upright else (0, place, size[0], place)
        pen.line(ends, fill=_colour(random, palette), width=int(random.integers(1, 3)))


def _cracks(random: np.random.Generator, pen: ImageDraw.ImageDraw, size: tuple[int, ...]) -> None:
    for _ in range(random.integers(8, 16)):
        steps = random.normal(0, 13, (int(random.integers(4, 9)), 2))
        points = np.cumsum(steps, axis=0) + random.uniform(0, 1, 2) * size
        grey = int(random.choice([10, 15, 110, 130]))
        pen.line([(float(x), float(y)) for x, y in points], fill=(grey, grey, grey + 10), width=1)


def _shapes(random: np.random.Generator, pen: ImageDraw.ImageDraw, size: tuple[int, ...]) -> None:
    """Up to two small things that mean nothing; random convolutions would notice little else than large ones."""
    for _ in range(random.integers(0, 3)):
        x, y = random.uniform(0, 0.9, 2) * size
        width, height = random.uniform(5, 16, 2)
        colour = tuple(int(part) for part in random.integers(40, 216, 3))
        figure = pen.rectangle if random.random() < 0.5 else pen.ellipse
        figure((x, y, x + width, y + height), fill=colour)
