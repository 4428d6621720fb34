"""A decoded picture becomes a small square of RGB, in strips: no second picture of its size is ever made.

Per pixel and per pass of the resizing this is what `convert` and `resize` of the whole picture give, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from PIL import ExifTags, Image

STRIP_PIXELS = 2**20  # converted at once
MOST_NARROW_BYTES = 128 * 2**20  # of the picture that has its final width and still its height

Converter = Callable[[Image.Image], Image.Image]
Box = tuple[int, int, int, int]

_BILINEAR = Image.Resampling.BILINEAR
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def square(image: Image.Image, size: int) -> np.ndarray:
    """A picture as RGB, uint8 of shape (size, size, 3).

    Grey, palette, CMYK and 16-bit pictures become RGB, transparency white; EXIF orientation is applied. Both sides are
    then resized to `size` regardless of shape, as torchvision's Resize((size, size)) does.
    """
    orientation = _orientation(image)
    plain = image.mode == "RGB" and orientation == 1 and not image.has_transparency_data
    columns = _columns_at_once(image.height, size)
    if plain and columns == size:
        return np.array(image.resize((size, size), _BILINEAR))
    width, height = image.size[::-1] if orientation > 4 else image.size
    columns, convert = _columns_at_once(height, size), _converter(image)
    done = Image.new("RGB", (size, size))
    for left in range(0, size, columns):
        right = min(left + columns, size)
        narrow = Image.new("RGB", (right - left, height))
        for top, bottom in _steps(height, max(1, STRIP_PIXELS // width)):
            strip = _upright(image, orientation, (0, top, width, bottom), convert)
            narrow.paste(strip.resize((size, bottom - top), _BILINEAR).crop((left, 0, right, bottom - top)), (0, top))
        done.paste(narrow.resize((right - left, size), _BILINEAR), (left, 0))
    return np.array(done)


def bytes_beside(image_size: tuple[int, int], size: int) -> int:
    """About how many bytes `square` takes beside the picture of `image_size`, at most."""
    longest = max(image_size)
    return 4 * (3 * STRIP_PIXELS + longest + longest * _columns_at_once(longest, size))


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
