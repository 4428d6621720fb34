"""One image file becomes one array, or a reason why it cannot."""

from __future__ import annotations

import hashlib
import io
import logging
import os
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

import numpy as np
from PIL import Image, UnidentifiedImageError

from frozenfusion.data.colours import bytes_beside, limits, square, stretched
from frozenfusion.data.places import Place, image_bytes
from frozenfusion.data.resize import Resize, as_resize
from frozenfusion.data.table_files import NoImageError
from frozenfusion.store.status import DIGEST_BYTES, MISSING, REFUSED, UNREADABLE
from frozenfusion.utils.files import NotRegularError, TooLargeError
from frozenfusion.utils.remote import UnreachableError

MAX_FILE_BYTES = 256 * 2**20
MAX_PIXELS = 100_000_000

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

# Bytes of a pixel in Pillow, where they are not four; and what decoders hold beside it.
_BYTES = {"1": 1, "L": 1, "P": 1}
_DECODERS_BYTES = {"JPEG": 6, "MPO": 6, "JPEG2000": 16, "AVIF": 8, "WEBP": 8, "TIFF": 4}

_PFM = re.compile(rb"PF\s+(\d{1,10})\s+(\d{1,10})\s+([-+.\deE]{1,30})\s")


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


class UnreachableImage(BadImage):
    """An image of which nothing is known, since its store does not answer or lets nobody in."""


def read_image_file(image: str | os.PathLike[str] | Place) -> bytes:
    """The bytes of an image of at most MAX_FILE_BYTES. Raises BadImage; never waits on a pipe."""
    try:
        data = image_bytes(image, MAX_FILE_BYTES)
    except FileNotFoundError:
        raise BadImage(MISSING, "no such file") from None
    except UnreachableError as error:
        raise UnreachableImage(UNREADABLE, str(error)) from None
    except (NotRegularError, NoImageError) as error:
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


def decode_image(
    data: bytes,
    size: int | Resize,
    *,
    max_pixels: int = MAX_PIXELS,
    draft: bool = False,
    before_pixels: Callable[[int], None] | None = None,
) -> np.ndarray:
    """Decode an image file's bytes to RGB, uint8 of shape (s, s, 3), as `square` makes it.

    Of an animation the first frame counts. With `draft`, a JPEG picture at least four times as large is decoded at a
    half, a quarter or an eighth, still twice as large. `before_pixels` is told about how many bytes decoding will take.
    Raises BadImage, REFUSED before any pixel is decoded; MemoryError.
    """
    told = before_pixels or (lambda needed: None)
    try:
        if data.startswith(b"PF"):
            return _colour_pfm(data, size, max_pixels, told)
        with Image.open(io.BytesIO(data), formats=_formats()) as image:
            _check_size(image.size, max_pixels)
            if draft:
                image.draft(None, (2 * as_resize(size).edge,) * 2)
            told(_bytes_of(image, size))
            image.load()
            _check_size(image.size, max_pixels)  # an icon may hold another size than it says
            return square(image, size)
    except (BadImage, MemoryError):
        raise
    except UnidentifiedImageError:
        raise BadImage(UNREADABLE, _what_it_is(data)) from None
    except Image.DecompressionBombError:
        raise BadImage(REFUSED, f"more than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels") from None
    except Exception as error:  # decoders of hostile bytes raise anything
        if isinstance(error, OSError) and "out of memory" in str(error):  # so Pillow's decoders say it
            raise MemoryError(str(error)) from None
        raise BadImage(UNREADABLE, _reason(error)) from None


def _bytes_of(image: Image.Image, size: int | Resize) -> int:
    """About how many bytes decoding a picture and making it small takes."""
    own = _BYTES.get(image.mode, 2 if image.mode.startswith("I;16") else 4)
    beside = _DECODERS_BYTES.get(image.format or "", 0)
    return image.width * image.height * (own + beside) + bytes_beside(image.size, size)


def _colour_pfm(data: bytes, size: int | Resize, max_pixels: int, told: Callable[[int], None]) -> np.ndarray:
    """A portable float map of three channels, which Pillow does not read; its rows go from the bottom to the top."""
    header = _PFM.match(data)
    if header is None:
        raise BadImage(UNREADABLE, "damaged or cut short within its header")
    width, height, scale = int(header[1]), int(header[2]), float(header[3])
    _check_size((width, height), max_pixels)
    if not scale or not np.isfinite(scale):
        raise BadImage(UNREADABLE, "scale must be finite and non-zero")
    if len(data) - header.end() < 12 * width * height:
        raise BadImage(UNREADABLE, "image file is truncated")
    told(7 * width * height + bytes_beside((width, height), size))
    kind = "<f4" if scale < 0 else ">f4"
    values = np.frombuffer(data, kind, 3 * width * height, header.end()).reshape(height, width, 3)[::-1]
    ranges = np.array([limits(row) for row in values])
    pixels = np.empty(values.shape, np.uint8)
    for y, row in enumerate(values):
        pixels[y] = stretched(row, ranges[:, 0].min(), ranges[:, 1].max())
    return square(Image.fromarray(pixels), size)


def _check_size(size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise BadImage(UNREADABLE, f"no pixels ({width} x {height})")
    if width * height > max_pixels:
        raise BadImage(REFUSED, f"{width} x {height} pixels, more than {max_pixels:,}")


def _what_it_is(data: bytes) -> str:
    start = data[:512]
    for pattern, reason in _IMPOSTORS:
        if pattern.match(start):
            return reason
    return "not an image"


def _reason(error: Exception) -> str:
    said = re.sub(r"<[^>]* at 0x[0-9a-f]+>| \(\d+ bytes not processed\)", "", str(error)) or type(error).__name__
    return " ".join("".join(c if c.isprintable() else " " for c in said).split())[:120]
