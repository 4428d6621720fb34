"""One image file becomes one array, or a reason why it cannot."""

from __future__ import annotations

import hashlib
import io
import logging
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from frozenfusion.store.status import DIGEST_BYTES, MISSING, REFUSED, UNREADABLE
from frozenfusion.utils.files import NotRegularError, TooLargeError, read_regular_file

MAX_FILE_BYTES = 256 * 2**20
MAX_PIXELS = 100_000_000
RESAMPLING = "pillow-bilinear"  # antialiased when shrinking; part of a feature file's fingerprint

# Pictures that Pillow decodes itself, in memory. Left out: EPS and WMF (run other programs or need Windows), stubs
# that only name a format, and scientific formats without agreed colours.
_WANTED = "JPEG PNG GIF WEBP BMP TIFF AVIF JPEG2000 PPM ICO PSD QOI PCX SGI TGA"

# What is often found under an image's name, by its first bytes.
_IMPOSTORS = [
    (re.compile(pattern, re.DOTALL | re.IGNORECASE), reason)
    for pattern, reason in (
        (rb"\s*(?:\xef\xbb\xbf)?\s*<(?:!doctype|html|head|body)", "an HTML page, not an image"),
        (rb"\s*(?:\xef\xbb\xbf)?\s*<", "XML or SVG, not an image of pixels"),
        (rb"\s*[{\[]", "JSON, not an image"),
        (rb"%PDF", "a PDF file, not an image"),
        (rb"%!PS|\xc5\xd0\xd3\xc6", "PostScript, which is a program and is not run"),
        (rb"....ftyp(?:hei|hev|mif1)", "a HEIC picture, which cannot be decoded here"),
        (rb"....ftyp(?!avi)|\x1aE\xdf\xa3", "a video, not an image"),
        (rb"version https://git-lfs", "a Git LFS pointer, not the image itself"),
        (rb"\xff\xd8|\x89PNG|GIF8|RIFF....WEBP|BM|II\*\0|MM\0\*|....ftypavi", "damaged or cut short within its header"),
    )
]

_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@cache
def _formats() -> tuple[str, ...]:
    """The wanted formats that this Pillow can decode. Safe to ask from several threads: each waits for the decoders."""
    Image.init()
    return tuple(name for name in _WANTED.split() if name in Image.OPEN)


@contextmanager
def quiet_pillow() -> Iterator[None]:
    """Keep what Pillow has to say about damaged files to ourselves: each of them gets its status and reason.

    Around whole loops, not single images: Python's warnings are filtered for all threads at once.
    """
    logger = logging.getLogger("PIL")
    silent = logging.NullHandler()
    logger.addHandler(silent)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"PIL\.")
            yield
    finally:
        logger.removeHandler(silent)


class BadImage(Exception):
    """An image that cannot be used: `status` is MISSING, UNREADABLE or REFUSED, `reason` a short line."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


def read_image_file(path: str | os.PathLike[str]) -> bytes:
    """The bytes of an image file of at most MAX_FILE_BYTES. Raises BadImage; never waits on a pipe."""
    try:
        data = read_regular_file(path, MAX_FILE_BYTES)
    except FileNotFoundError:
        raise BadImage(MISSING, "no such file") from None
    except NotRegularError as error:
        raise BadImage(MISSING, str(error)) from None
    except TooLargeError as error:
        raise BadImage(REFUSED, str(error)) from None
    except OSError as error:
        raise BadImage(UNREADABLE, (error.strerror or type(error).__name__).lower()) from None
    if not data:
        raise BadImage(UNREADABLE, "empty file")
    return data


def file_digest(data: bytes) -> bytes:
    """BLAKE2b of a file's bytes, DIGEST_BYTES long."""
    return hashlib.blake2b(data, digest_size=DIGEST_BYTES).digest()


def decode_image(data: bytes, size: int, *, max_pixels: int = MAX_PIXELS, draft: bool = False) -> np.ndarray:
    """Decode an image file's bytes to RGB, uint8 of shape (size, size, 3), as `square` makes it.

    Of an animation the first frame counts. With `draft`, a JPEG picture at least four times as large is decoded at a
    half, a quarter or an eighth, still twice as large. Raises BadImage; REFUSED before any pixel is decoded.
    """
    try:
        with Image.open(io.BytesIO(data), formats=_formats()) as image:
            _check_size(image.size, max_pixels)
            if draft:
                image.draft(None, (2 * size, 2 * size))
            image.load()
            return square(image, size)
    except BadImage:
        raise
    except UnidentifiedImageError:
        raise BadImage(UNREADABLE, _what_it_is(data)) from None
    except Image.DecompressionBombError:
        raise BadImage(REFUSED, f"more than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels") from None
    except MemoryError:
        raise BadImage(REFUSED, "more memory than there is") from None
    except Exception as error:  # decoders of hostile bytes raise anything
        raise BadImage(UNREADABLE, _reason(error)) from None


def square(image: Image.Image, size: int) -> np.ndarray:
    """A picture as RGB, uint8 of shape (size, size, 3).

    Grey, palette, CMYK and 16-bit pictures become RGB, transparency white; EXIF orientation is applied. Both sides are
    then resized to `size` regardless of shape, as torchvision's Resize((size, size)) does.
    """
    return np.array(_rgb(_upright(image)).resize((size, size), Image.Resampling.BILINEAR))


def _check_size(size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise BadImage(UNREADABLE, f"no pixels ({width} x {height})")
    if width * height > max_pixels:
        raise BadImage(REFUSED, f"{width} x {height} pixels, more than {max_pixels:,}")


def _upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # damaged EXIF does not make a picture worse
        return image
    method = _TRANSPOSE.get(orientation) if isinstance(orientation, int) else None
    return image if method is None else image.transpose(method)


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode in {"F", "I"} or image.mode.startswith("I;16"):
        return Image.fromarray(_grey(image)).convert("RGB")
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")  # of what is RGB already, Pillow makes a copy
    seen = image.convert("RGBA")
    white = Image.new("RGBA", seen.size, "white")
    return Image.alpha_composite(white, seen).convert("RGB")


def _grey(image: Image.Image) -> np.ndarray:
    """More than 8 bits per pixel as uint8: 16 bits by their high byte, as Pillow does for colour, others stretched.

    32-bit and floating-point pictures have no agreed white, so theirs is the highest value; portable graymaps, which
    Pillow holds in 32 bits, are 16-bit ones.
    """
    values = np.asarray(image)
    if image.mode.startswith("I;16") or image.format == "PPM":
        grey = (values >> 8).clip(0, 255).astype(np.uint8)
    else:
        finite = np.nan_to_num(values.astype(np.float64), posinf=0.0, neginf=0.0)
        low, high = finite.min(), finite.max()
        grey = ((finite - low) * (255 / (high - low or 1.0))).round().astype(np.uint8)
    transparent = image.info.get("transparency")
    return np.where(values == transparent, np.uint8(255), grey) if isinstance(transparent, int) else grey


def _what_it_is(data: bytes) -> str:
    start = data[:512]
    for pattern, reason in _IMPOSTORS:
        if pattern.match(start):
            return reason
    return "not an image"


def _reason(error: Exception) -> str:
    said = re.sub(r"<[^>]* at 0x[0-9a-f]+>| \(\d+ bytes not processed\)", "", str(error)) or type(error).__name__
    return " ".join("".join(c if c.isprintable() else " " for c in said).split())[:120]
