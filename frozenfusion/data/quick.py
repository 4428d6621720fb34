"""Pictures of which the bytes say that decoding takes about a second and little memory: plain JPEGs and PNGs.

What is looked at is what a hostile file can make a decoder work on: pixels, scans over them, and lists of tags, each of
which may name any part of the file.
"""

from __future__ import annotations

import re
import struct
from itertools import islice

MOST_BYTES = 32 * 2**20
MOST_PIXELS = 16 * 10**6
MOST_SIDE = 16_384
MOST_SCANNED = 160 * 10**6  # pixels, in all scans of a JPEG
MOST_PARTS = 4096  # segments before a JPEG's pixels, chunks of a PNG
MOST_ABOUT = 2**18  # bytes of a PNG that are no pixels
MOST_TAGS = 256

_NO_IMAGE = re.compile(rb"\s*(?:\xef\xbb\xbf)?\s*[<{\[]|%PDF|%!PS|version https://git-lfs")
_SCANS = re.compile(rb"\xff\xda")
_BEGIN, _SCAN, _APP1, _APP2 = 0xD8, 0xDA, 0xE1, 0xE2
_FRAMES = {0xC0, 0xC1, 0xC2}  # Huffman-coded: sequential or progressive
_OTHER_SEGMENTS = {0xC4, 0xDB, 0xDD, 0xFE, *range(0xE0, 0xF0)}
_OTHER_PNGS = {b"acTL", b"fcTL", b"fdAT"}  # animated
_TAGS = {b"II*\0": "<", b"MM\0*": ">"}


def quick_bytes(data: bytes) -> int | None:
    """About how many bytes decoding takes, where that surely does not take long; None for everything else."""
    if len(data) > MOST_BYTES:
        return None
    if data.startswith(b"\xff\xd8\xff"):
        return _jpeg(data)
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return _png(data)
    return 0 if _NO_IMAGE.match(data) else None  # what no format begins with is turned away at once


def _jpeg(data: bytes) -> int | None:
    at, frame, tagged = 2, None, 0
    for _ in range(MOST_PARTS):
        mark, kind, length = struct.unpack_from(">BBH", data, at) if at + 4 <= len(data) else (0, 0, 0)
        if mark != 0xFF or length < 2:
            return None
        if kind == _SCAN:
            break
        about = at + 4
        if kind in _FRAMES and frame is None and length >= 8:
            frame = struct.unpack_from(">HH", data, about + 1) if about + 5 <= len(data) else None
        elif kind not in _OTHER_SEGMENTS:
            return None
        if kind == _APP1 and data.startswith(b"Exif\0\0", about):
            tagged += 1
            if tagged > 1 or not _few_tags(data[about + 6 : about + length - 2]):
                return None
        if kind == _APP2 and data.startswith(b"MPF\0", about) and not _few_tags(data[about + 4 : about + length - 2]):
            return None
        at = about + length - 2
    else:
        return None
    if frame is None or not _small(*frame):
        return None
    pixels = frame[0] * frame[1]
    most = min(MOST_PARTS, MOST_SCANNED // pixels)
    scans = sum(1 for _ in islice(_SCANS.finditer(data, at), most + 1))  # faster than to count them all
    return None if scans > most else 10 * pixels


def _png(data: bytes) -> int | None:
    at, about = 8, 0
    width, height = struct.unpack_from(">II", data, 16) if len(data) >= 33 and data[12:16] == b"IHDR" else (0, 0)
    for _ in range(MOST_PARTS):
        if at + 8 > len(data):
            return 4 * width * height if _small(width, height) else None
        length, kind = struct.unpack_from(">I4s", data, at)
        about += 0 if kind == b"IDAT" else length
        if about > MOST_ABOUT or kind in _OTHER_PNGS or (kind == b"IHDR" and at != 8):
            return None
        if kind in (b"tEXt", b"zTXt", b"iTXt") and data[at + 8 : at + 19].lower() == b"raw profile":  # tags, as text
            return None
        if kind == b"eXIf" and not _few_tags(data[at + 8 : at + 8 + length]):
            return None
        at += 12 + length
    return None


def _small(width: int, height: int) -> bool:
    return 0 < width <= MOST_SIDE and 0 < height <= MOST_SIDE and width * height <= MOST_PIXELS


def _few_tags(exif: bytes) -> bool:
    """Whether a list of tags is short, so that to read it is to read little more than the file."""
    order = _TAGS.get(exif[:4])
    if order is None or len(exif) < 8:
        return False
    (at,) = struct.unpack_from(f"{order}I", exif, 4)
    return at + 2 <= len(exif) and bool(struct.unpack_from(f"{order}H", exif, at)[0] <= MOST_TAGS)
