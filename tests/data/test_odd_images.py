"""A corpus of odd images, made here: each gives pixels or one reason, and those that are known give the right pixels.

With FROZENFUSION_PILLOW_IMAGES=FOLDER the images that Pillow's own tests use are decoded as well.
"""

from __future__ import annotations

import io
import os
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

from frozenfusion.data import colours
from frozenfusion.data.colours import square
from frozenfusion.data.decoding import Decoder
from frozenfusion.data.images import _WANTED, BadImage, decode_image
from frozenfusion.store.status import REFUSED, UNREADABLE

pytestmark = pytest.mark.filterwarnings(r"ignore:::PIL\.")

MODES = (
    "1",
    "L",
    "LA",
    "P",
    "PA",
    "RGB",
    "RGBA",
    "RGBa",
    "La",
    "RGBX",
    "CMYK",
    "YCbCr",
    "LAB",
    "HSV",
    "I",
    "F",
    "I;16",
)
KINDS = [kind for kind in _WANTED.split() if kind != "PSD"]
RAMP = np.tile(np.arange(0, 256, 8, dtype=np.uint8), (32, 1))
needs_jpeg2000 = pytest.mark.skipif(not features.check("jpg_2000"), reason="Pillow was built without JPEG 2000")


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def picture(mode: str, width: int, height: int) -> Image.Image:
    values = np.random.default_rng(width + height).integers(0, 256, (height, width, 4), dtype=np.uint8)
    if mode in ("I", "F", "I;16"):
        return Image.fromarray(values[..., 0].astype({"I": np.int32, "F": np.float32, "I;16": np.uint16}[mode]) * 200)
    if mode == "LAB":
        return Image.merge(mode, [Image.fromarray(values[..., band].copy()) for band in range(3)])
    rgba = Image.fromarray(values)
    if mode in ("RGBA", "RGBa"):
        return rgba.convert(mode)
    if mode in ("LA", "La"):
        return rgba.convert("LA").convert(mode)
    if mode in ("P", "PA"):
        return rgba.convert("RGB").quantize(9).convert(mode)
    return rgba.convert("RGB").convert(mode)


def expected(data: bytes) -> tuple[int, ...]:
    """Pixels, where Pillow reads what it wrote."""
    try:
        Image.open(io.BytesIO(data)).load()
    except OSError:
        return (UNREADABLE,)
    return (16, 16, 3)


def outcome(data: bytes, size: int = 16) -> tuple[int, ...]:
    """The shape of the pixels, or the status, of bytes for which there is nothing else."""
    try:
        pixels = decode_image(data, size, max_pixels=10**6)
    except BadImage as bad:
        return (bad.status,) if 0 < len(bad.reason) <= 120 and bad.reason.isprintable() else ()
    assert pixels.dtype == np.uint8
    return pixels.shape


@pytest.mark.parametrize("kind", KINDS)
def test_every_mode_and_size_that_pillow_writes_gives_pixels(kind):
    written = 0
    for mode in MODES:
        for width, height in ((1, 1), (1, 40), (300, 1), (17, 5)):
            try:
                options = {"sizes": [(width, height)]} if kind == "ICO" else {}
                data = encoded(picture(mode, width, height), kind, **options)
            except (OSError, KeyError, ValueError, RuntimeError):
                continue
            assert outcome(data) == expected(data), (mode, width, height)
            written += expected(data) == (16, 16, 3)
    assert written or kind not in Image.SAVE


@pytest.mark.parametrize("kind", KINDS)
def test_cut_anywhere_or_with_more_behind_it_is_pixels_or_a_reason(kind):
    if kind not in Image.SAVE:
        pytest.skip(f"Pillow does not write {kind}")
    exif = Image.Exif()
    exif[0x112] = 6
    options = {"exif": exif} if kind in ("JPEG", "PNG", "WEBP", "AVIF", "TIFF") else {}
    data = encoded(picture("RGB", 20, 16), kind, **options)
    for end in [*range(0, min(len(data), 400), 7), *range(400, len(data), 97), len(data) - 1]:
        assert outcome(data[:end]) in {(16, 16, 3), (UNREADABLE,), (REFUSED,)}
    for more in (bytes(1000), data):
        assert outcome(data + more) == expected(data + more)


def test_huge_declared_sizes_are_refused():
    tiff = encoded(Image.new("L", (4, 4)), "TIFF")
    for tag in (256, 257):
        at = tiff.index(struct.pack("<HHI", tag, 4, 1)) + 8 if struct.pack("<HHI", tag, 4, 1) in tiff else 0
        tiff = tiff[:at] + struct.pack("<I", 60_000) + tiff[at + 4 :] if at else tiff
    gif = bytearray(encoded(Image.new("L", (4, 4)), "GIF"))
    gif[6:10] = b"\xff\xff\xff\xff"
    ppm, pfm = b"P5\n60000 60000\n255\n", b"PF\n60000 60000\n-1.0\n"
    bmp = bytearray(encoded(Image.new("RGB", (4, 4)), "BMP"))
    bmp[18:26] = struct.pack("<II", 60_000, 60_000)
    for data in (bytes(gif), ppm, pfm, bytes(bmp)):
        assert outcome(data) == (REFUSED,)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "CMYK", "I;16", "F"])
def test_strips_of_any_size_give_what_the_whole_picture_does(mode, orientation, monkeypatch):
    image = picture(mode, 53, 38)
    image.getexif()[0x112] = orientation
    whole = square(image, 24)
    assert np.array_equal(whole, square(image.transpose(colours._TURNS[orientation]), 24) if orientation > 1 else whole)
    monkeypatch.setattr(colours, "STRIP_PIXELS", 100)
    monkeypatch.setattr(colours, "MOST_NARROW_BYTES", 4 * 53 * 7)
    assert np.array_equal(square(image, 24), whole)


def test_a_strip_s_rgb_is_pillow_s():
    for mode in ("CMYK", "P", "L", "1", "YCbCr", "HSV"):
        image = picture(mode, 53, 38)
        assert np.array_equal(
            square(image, 24), np.asarray(image.convert("RGB").resize((24, 24), Image.Resampling.BILINEAR))
        )


def deep_jpeg2000(bits: int, *, signed: bool = False, jp2: bool = False) -> bytes:
    """RAMP in samples of so many bits: written with 16, and the headers say otherwise."""
    values = np.rint(RAMP * ((2**bits - 1) / 255)).astype(int) + 2**15 - 2 ** (bits - 1)
    data = bytearray(encoded(Image.fromarray(values.astype(np.uint16)), "JPEG2000", irreversible=False, no_jp2=not jp2))
    depth = (bits - 1) | (128 if signed else 0)
    data[data.index(b"\xff\x51") + 40] = depth
    if jp2:
        data[data.index(b"ihdr") + 14] = depth
    return bytes(data)


@needs_jpeg2000
@pytest.mark.parametrize("jp2", [False, True])
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("bits", range(8, 17))
def test_jpeg2000_of_up_to_16_bits_keeps_its_brightness(bits, signed, jp2):
    pixels = decode_image(deep_jpeg2000(bits, signed=signed, jp2=jp2), 32)
    assert np.abs(pixels[..., 0].astype(int) - RAMP).max() <= (0 if bits == 16 else 1)


def twelve_bit_tiff() -> bytes:
    values = np.rint(RAMP * (4095 / 255)).astype(np.uint16)
    first, second = values[:, ::2], values[:, 1::2]
    packed = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], axis=-1).astype(np.uint8).tobytes()
    shorts = {256: 32, 257: 32, 258: 12, 259: 1, 262: 1, 277: 1, 278: 32}
    entries = [(tag, 3, 1, value) for tag, value in shorts.items()] + [(273, 4, 1, 8), (279, 4, 1, len(packed))]
    table = b"".join(struct.pack("<HHII", *entry) for entry in sorted(entries))
    return b"II*\0" + struct.pack("<I", 8 + len(packed)) + packed + struct.pack("<H", len(entries)) + table + bytes(4)


def test_tiff_of_12_bits_keeps_its_brightness():
    assert np.array_equal(decode_image(twelve_bit_tiff(), 32)[..., 0], RAMP)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", ["Pf", "PF"])
def test_portable_float_maps_are_stretched_and_upright(kind, order):
    values = np.stack([RAMP.T, RAMP, 248 - RAMP], axis=-1).astype(np.float32) / 100 - 1
    seen = values[..., :1] if kind == "Pf" else values
    header = f"{kind}\n32 32\n{-1.0 if order == '<' else 1.0}\n".encode()
    data = header + seen[::-1].astype(f"{order}f4").tobytes()
    expected = np.rint((values + 1) * 100 * 255 / 248) if kind == "PF" else np.rint(RAMP.T * (255 / 248))[..., None]
    assert np.abs(decode_image(data, 32).astype(int) - expected).max() <= 1
    for bad in (header, data[:-1], data.replace(b"1.0", b"nan"), data.replace(b"1.0", b"0.0")):
        assert outcome(bad) == (UNREADABLE,)


def test_an_icon_of_another_size_than_it_says_is_refused():
    inside = encoded(Image.new("L", (1200, 1200)), "PNG")
    entry = struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 8, len(inside), 22)
    assert outcome(struct.pack("<HHH", 0, 1, 1) + entry + inside) == (REFUSED,)


def test_the_images_of_pillow_s_own_tests():
    folder = os.environ.get("FROZENFUSION_PILLOW_IMAGES")
    if not folder:
        pytest.skip("FROZENFUSION_PILLOW_IMAGES names no folder")
    files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    assert files

    def tried(path: Path) -> str | tuple[int, ...]:
        try:
            return decoder.decode(path.read_bytes()).shape
        except BadImage as bad:
            return bad.reason

    with ThreadPoolExecutor(4) as pool, Decoder(16, workers=4) as decoder:
        for path, found in zip(files, pool.map(tried, files), strict=True):
            assert found == (16, 16, 3) or (isinstance(found, str) and found), path
