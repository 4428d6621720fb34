"""A decoded picture becomes a small square of RGB, in strips: no second picture of its size is ever made.

Per pixel and per pass of the resizing this is what `convert` and `resize` of the whole picture give, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from PIL import ExifTags, Image

from frozenfusion.data.resize import Box, Resize, as_resize

STRIP_PIXELS = 2**20  # converted at once
MOST_NARROW_BYTES = 128 * 2**20  # of the picture that has its final width and still its height
MOST_RESIZED = 2**25  # pixels of a long picture that keeps its shape, of which the middle is cut out

Converter = Callable[[Image.Image], Image.Image]

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def square(image: Image.Image, size: int | Resize) -> np.ndarray:
    """A picture as RGB, uint8 of shape (s, s, 3), of the size and in the way of `size`.

    Grey, palette, CMYK and 16-bit pictures become RGB, transparency white; EXIF orientation is applied. By default both
    sides are then resized regardless of shape, as torchvision's Resize((s, s)) does.
    """
    resize = as_resize(size)
    side, filter = resize.size, Image.Resampling(resize.filter)
    orientation = _orientation(image)
    width, height = image.size[::-1] if orientation > 4 else image.size
    target = resize.target(width, height)
    left, top, right, bottom = resize.middle(*target)
    columns = _columns_at_once(height, side)
    plain = image.mode == "RGB" and orientation == 1 and not image.has_transparency_data
    if plain and columns == side and target[0] * max(target[1], height) <= MOST_RESIZED:
        return np.array(image.resize(target, filter).crop((left, top, right, bottom)))
    convert = _converter(image)
    done = Image.new("RGB", (side, side))
    for x, x_end in _steps(side, columns):
        narrow = Image.new("RGB", (x_end - x, height))
        for y, y_end in _steps(height, max(1, STRIP_PIXELS // max(width, side))):
            strip = _upright(image, orientation, (0, y, width, y_end), convert)
            across = (left + x, 0, left + x_end, y_end - y)
            narrow.paste(_part(strip, (target[0], y_end - y), across, filter), (0, y))
        done.paste(_part(narrow, (x_end - x, target[1]), (0, top, x_end - x, bottom), filter), (x, 0))
    return np.array(done)


def _part(image: Image.Image, target: tuple[int, int], box: Box, filter: Image.Resampling) -> Image.Image:
    """A part of a resized picture, of which only that is made where the whole would be huge; then up to rounding."""
    if target[0] * target[1] <= MOST_RESIZED:
        return image.resize(target, filter).crop(box)
    left, top, right, bottom = box
    x, y = (own / resized for own, resized in zip(image.size, target, strict=True))
    return image.resize((right - left, bottom - top), filter, (left * x, top * y, right * x, bottom * y))


def bytes_beside(image_size: tuple[int, int], size: int | Resize) -> int:
    """About how many bytes `square` takes beside the picture of `image_size`, at most."""
    resize, longest = as_resize(size), max(image_size)
    pixels = 3 * STRIP_PIXELS + longest + longest * _columns_at_once(longest, resize.size)
    if resize.keeps_shape:
        wide = max(resize.target(*image_size))
        pixels += min(MOST_RESIZED, wide * longest) + min(MOST_RESIZED, STRIP_PIXELS * wide // longest)
    return 4 * pixels


def stretched(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Numbers without an agreed white as uint8: from `low`, black, to `high`; what is not finite counts as 0."""
    return np.asarray(((_finite(values) - low) * (255 / (high - low or 1.0))).round(), dtype=np.uint8)


def limits(values: np.ndarray) -> tuple[float, float]:
    """The lowest and the highest of some numbers, of which those that are not finite count as 0."""
    finite = _finite(values)
    return float(finite.min()), float(finite.max())


def _finite(values: np.ndarray) -> np.ndarray:
    return np.nan_to_num(values.astype(np.float64), posinf=0.0, neginf=0.0)


def _columns_at_once(height: int, size: int) -> int:
    return max(1, min(size, MOST_NARROW_BYTES // (4 * height)))


def _steps(length: int, step: int) -> Iterator[tuple[int, int]]:
    return ((start, min(start + step, length)) for start in range(0, length, step))


def _blocks(size: tuple[int, int]) -> Iterator[Box]:
    """Boxes of at most STRIP_PIXELS that cover a picture."""
    width, height = size
    for top, bottom in _steps(height, max(1, STRIP_PIXELS // width)):
        for left, right in _steps(width, max(1, STRIP_PIXELS // (bottom - top))):
            yield left, top, right, bottom


def _orientation(image: Image.Image) -> int:
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except MemoryError:
        raise
    except Exception:  # damaged EXIF does not make a picture worse
        return 1
    return orientation if isinstance(orientation, int) and orientation in _TURNS else 1


def _upright(image: Image.Image, orientation: int, box: Box, convert: Converter) -> Image.Image:
    """What is at `box` once the picture is upright, as RGB."""
    left, top, right, bottom = box
    if orientation > 4:  # its rows are the file's columns
        left, top, right, bottom = top, left, bottom, right
    if orientation in (2, 3, 7, 8):
        left, right = image.width - right, image.width - left
    if orientation in (3, 4, 6, 7):
        top, bottom = image.height - bottom, image.height - top
    part = Image.new("RGB", (right - left, bottom - top))
    for block in _blocks(part.size):
        x, y, x_end, y_end = block
        part.paste(convert(image.crop((left + x, top + y, left + x_end, top + y_end))), (x, y))
    return part if orientation == 1 else part.transpose(_TURNS[orientation])


def _converter(image: Image.Image) -> Converter:
    """What makes parts of this picture RGB."""
    if image.mode == "RGB" and not image.has_transparency_data:
        return lambda part: part
    if image.mode in {"F", "I"} or image.mode.startswith("I;16"):
        return _grey_converter(image)
    if not image.has_transparency_data:
        return lambda part: part.convert("RGB")
    return _over_white


def _over_white(part: Image.Image) -> Image.Image:
    seen = part.convert("RGBA")
    white = Image.new("RGBA", seen.size, "white")
    return Image.alpha_composite(white, seen).convert("RGB")


def _grey_converter(image: Image.Image) -> Converter:
    """More than 8 bits per pixel as uint8: up to 16 by the highest eight, as Pillow does for colour, others stretched.

    32-bit and floating-point pictures have no agreed white, so theirs is the highest value; portable graymaps, which
    Pillow holds in 32 bits, are 16-bit ones, and TIFFs of 12 bits keep their numbers in 16.
    """
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
        shift = 4 if getattr(image, "tag_v2", {}).get(ExifTags.Base.BitsPerSample) == (12,) else 8

        def to_bytes(values: np.ndarray) -> np.ndarray:
            return (values >> shift).clip(0, 255).astype(np.uint8)

    else:
        ranges = np.array([limits(np.asarray(image.crop(box))) for box in _blocks(image.size)])
        low, high = float(ranges[:, 0].min()), float(ranges[:, 1].max())

        def to_bytes(values: np.ndarray) -> np.ndarray:
            return stretched(values, low, high)

    transparent = image.info.get("transparency")

    def convert(part: Image.Image) -> Image.Image:
        values = np.asarray(part)
        grey = to_bytes(values)
        if isinstance(transparent, int):
            grey = np.where(values == transparent, np.uint8(255), grey)
        return Image.fromarray(grey).convert("RGB")

    return convert
