"""One image file becomes one array, or a status and a reason."""

from __future__ import annotations

import io
import logging
import os
import struct
import subprocess
import sys
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from frozenfusion.data import colours, images
from frozenfusion.data.colours import square
from frozenfusion.data.images import BadImage, decode_image, file_digest, quiet_pillow, read_image_file
from frozenfusion.store.status import MISSING, OK, PENDING, REFUSED, UNREADABLE

pytestmark = pytest.mark.filterwarnings(r"ignore:::PIL\.")  # decoding alone leaves warnings to its caller: quiet_pillow

RAMP = np.tile(np.arange(0, 256, 8, dtype=np.uint8), (32, 1))  # dark at the left
COLOUR = Image.merge("RGB", [Image.fromarray(channel) for channel in (RAMP, RAMP.T.copy(), 255 - RAMP)])
GREY = Image.fromarray(RAMP)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and has next to no pixels."""
    parts = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(bytes(100))),
        (b"IEND", b""),
    ]
    chunks = [struct.pack(">I", len(d)) + t + d + struct.pack(">I", zlib.crc32(t + d)) for t, d in parts]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def refusal(data: bytes, **options: int) -> tuple[int, str]:
    with pytest.raises(BadImage) as caught:
        decode_image(data, 32, **options)
    return caught.value.status, caught.value.reason


def test_status_codes_are_those_of_the_file_format():
    assert (PENDING, OK, MISSING, UNREADABLE, REFUSED) == (0, 1, 2, 3, 4)


def test_resizes_as_torchvision_does_on_a_pillow_image():
    wide = COLOUR.resize((90, 50), Image.Resampling.NEAREST)
    pixels = decode_image(encoded(wide), 24)
    assert pixels.dtype == np.uint8
    assert pixels.shape == (24, 24, 3)
    assert np.array_equal(pixels, np.asarray(wide.resize((24, 24), Image.Resampling.BILINEAR)))


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "I;16"])
def test_a_picture_in_memory_becomes_what_its_file_does(mode):
    picture = COLOUR.convert("L").convert(mode) if mode == "I;16" else COLOUR.convert(mode)
    assert np.array_equal(square(picture, 24), decode_image(encoded(picture), 24))


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "TGA", "PCX", "SGI"])
def test_lossless_formats_keep_their_colours(kind):
    assert np.array_equal(decode_image(encoded(COLOUR, kind), 32), np.asarray(COLOUR))


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "AVIF", "JPEG2000", "GIF", "ICO"])
def test_other_formats_come_close(kind):
    if kind not in images._formats():
        pytest.skip(f"Pillow was built without {kind}")
    difference = decode_image(encoded(COLOUR, kind), 32).astype(int) - np.asarray(COLOUR)
    assert abs(difference).mean() < 8


def smooth(width: int, height: int) -> Image.Image:
    """A picture of slow waves, as JPEG likes them."""
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / 90 + shift) * np.cos(y / (70 + shift)) for shift in range(3)]
    return Image.fromarray((127 + 120 * np.stack(waves, axis=-1)).astype(np.uint8))


@pytest.mark.parametrize(("width", "height"), [(256, 300), (511, 900), (1100, 270)])
def test_a_draft_of_a_large_jpeg_is_decoded_smaller_and_comes_close(width, height, monkeypatch):
    data = encoded(smooth(width, height), "JPEG", quality=90)
    decoded = []
    monkeypatch.setattr(images, "square", lambda image, size: decoded.append(image.size) or square(image, size))
    whole, draft = (decode_image(data, 64, draft=draft).astype(int) for draft in (False, True))
    assert decoded[0] == (width, height)
    assert min(decoded[1]) < min(width, height) / 1.9
    assert min(decoded[1]) >= 128
    assert 0 < np.abs(draft - whole).mean() < 0.5
    assert np.abs(draft - whole).max() < 8


def test_a_draft_is_the_picture_itself_where_it_is_small_or_no_jpeg():
    for data in (encoded(smooth(250, 900), "JPEG"), encoded(smooth(600, 600), "PNG")):
        assert np.array_equal(decode_image(data, 64, draft=True), decode_image(data, 64))


def test_a_draft_is_upright_and_refused_by_its_whole_size():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(smooth(600, 400), "JPEG", quality=95, exif=exif)
    assert np.abs(decode_image(data, 64, draft=True).astype(int) - decode_image(data, 64)).mean() < 0.5
    assert refusal(data, draft=True, max_pixels=600 * 400 - 1)[0] == REFUSED


def test_grey_palette_and_one_bit_pictures_become_rgb():
    assert np.array_equal(decode_image(encoded(GREY), 32), np.repeat(RAMP[..., None], 3, axis=2))
    palette = COLOUR.quantize(16)
    assert np.array_equal(decode_image(encoded(palette), 32), np.asarray(palette.convert("RGB")))
    assert set(np.unique(decode_image(encoded(GREY.convert("1")), 32))) == {0, 255}


def test_cmyk_jpeg_keeps_its_colours():
    difference = decode_image(encoded(COLOUR.convert("CMYK"), "JPEG", quality=95), 32).astype(int) - np.asarray(COLOUR)
    assert abs(difference).mean() < 8


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_scale_to_eight(kind):
    deep = Image.fromarray(RAMP.astype(np.uint16) * 257)
    assert np.array_equal(decode_image(encoded(deep, kind), 32)[..., 0], RAMP)


def test_pictures_without_an_agreed_white_stretch_to_their_range():
    values = RAMP.astype(np.float32) / 248 * 7 - 3
    values[0, 0] = np.nan
    pixels = decode_image(encoded(Image.fromarray(values), "TIFF"), 32)[1:, :, 0]
    assert pixels[0, 0] == 0
    assert pixels[0, -1] == 255
    assert (np.diff(pixels[0].astype(int)) > 0).all()
    flat = Image.fromarray(np.ones((4, 4), dtype=np.float32))
    assert np.array_equal(decode_image(encoded(flat, "TIFF"), 8), np.zeros((8, 8, 3)))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_pixels_are_white_and_half_transparent_ones_half_white(mode):
    black = Image.new(mode, (8, 8), 0)
    assert (decode_image(encoded(black), 8) == 255).all()
    black.putalpha(Image.new("L", (8, 8), 128))
    assert (decode_image(encoded(black), 8) == 127).all()


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "I;16"])
def test_a_transparent_colour_is_white(mode):
    black = Image.new(mode, (8, 8), 0)
    if mode == "P":
        black.putpalette([0, 0, 0, 255, 0, 0])
    data = encoded(black, transparency=(0, 0, 0) if mode == "RGB" else 0)
    assert (decode_image(data, 8) == 255).all()


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_frame_of_an_animation_counts(kind):
    red, blue = Image.new("RGB", (16, 16), "red"), Image.new("RGB", (16, 16), "blue")
    data = encoded(red, kind, save_all=True, append_images=[blue])
    assert abs(decode_image(data, 16).astype(int) - [255, 0, 0]).max() < 8


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_exif_orientation_is_applied(kind, orientation):
    turns = [None, *(colours._TURNS[key] for key in range(2, 9))]
    exif = Image.Exif()
    exif[0x112] = orientation
    turn = turns[orientation - 1]
    upright = COLOUR if turn is None else COLOUR.transpose(turn)
    assert np.array_equal(decode_image(encoded(COLOUR, kind, exif=exif), 32), np.asarray(upright))


def test_damaged_exif_does_not_spoil_the_picture():
    data = encoded(COLOUR, "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert np.array_equal(decode_image(data, 32), decode_image(encoded(COLOUR, "JPEG"), 32))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\n<!DOCTYPE html><title>Not found</title>", "HTML"),
        (b"<html>", "HTML"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
        (b'{"error": "gone"}', "JSON"),
        (b"%PDF-1.7", "PDF"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
        (b"\0\0\0\x18ftypheic", "HEIC"),
        (b"\0\0\0\x18ftypmp42", "video"),
        (b"hello", "not an image"),
        (b"\0" * 1000, "not an image"),
    ],
)
def test_what_is_no_image_is_named(data, reason):
    status, said = refusal(data)
    assert status == UNREADABLE
    assert reason in said


def test_postscript_is_never_run():
    status, reason = refusal(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    assert status == UNREADABLE
    assert "not run" in reason


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "TIFF"])
@pytest.mark.parametrize("part", [0.02, 0.3, 0.7])
def test_a_truncated_picture_is_unreadable_with_a_short_reason(kind, part):
    whole = encoded(Image.effect_noise((64, 64), 90).convert("RGB"), kind)
    status, reason = refusal(whole[: int(len(whole) * part)])
    assert status == UNREADABLE
    assert reason == " ".join(reason.split())
    assert 0 < len(reason) <= 120
    assert "0x" not in reason


@pytest.mark.parametrize("side", [11_000, 60_000, 2**31 - 1])
def test_decompression_bombs_are_refused_from_their_header(side):
    status, reason = refusal(png_header(side, side))
    assert status == REFUSED
    assert "pixels" in reason


def test_the_pixel_limit_is_the_callers():
    data = encoded(COLOUR)
    assert refusal(data, max_pixels=32 * 32 - 1)[0] == REFUSED
    assert decode_image(data, 8, max_pixels=32 * 32).shape == (8, 8, 3)


def test_a_picture_without_pixels_is_unreadable():
    assert refusal(png_header(0, 5))[0] == UNREADABLE


@settings(max_examples=150)
@given(
    kind=st.sampled_from(["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "TGA"]),
    flips=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=8),
)
def test_damaged_bytes_give_an_array_or_a_reason_and_nothing_else(kind, flips):
    data = bytearray(encoded(COLOUR, kind))
    for place, value in flips:
        data[int(place * (len(data) - 1))] = value
    try:
        outcome = decode_image(bytes(data), 8, max_pixels=10**6).shape
    except BadImage as bad:
        outcome = (bad.status, bool(bad.reason))
    assert outcome in {(8, 8, 3), (UNREADABLE, True), (REFUSED, True)}


def test_decoding_in_threads_gives_the_same_arrays():
    files = [encoded(COLOUR.resize((40 + n, 60)), kind) for n in range(8) for kind in ("JPEG", "PNG", "GIF", "WEBP")]
    alone = [decode_image(data, 20) for data in files]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda data: decode_image(data, 20), files * 3))
    assert all(np.array_equal(one, two) for one, two in zip(alone * 3, together, strict=True))


def test_pillow_says_nothing_to_the_user(tmp_path):
    """Pillow warns of palettes with transparency, large pictures and odd metadata, and logs odd TIFF files."""
    palette = encoded(COLOUR.quantize(16), transparency=bytes(range(0, 160, 10)))
    for name, data in {"a": palette, "b": png_header(9_600, 9_600), "c": b"nothing", "d": palette[:-20]}.items():
        (tmp_path / name).write_bytes(data)
    program = (
        "import sys, logging; from pathlib import Path; from frozenfusion.data.images import *\n"
        "with quiet_pillow():\n"
        "    for path in sorted(Path(sys.argv[1]).iterdir()):\n"
        "        try: decode_image(path.read_bytes(), 8)\n"
        "        except BadImage: pass\n"
        "    logging.getLogger('PIL.TiffImagePlugin').error('more samples per pixel')\n"
    )
    command = [sys.executable, "-c", program, tmp_path]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout + done.stderr == ""


def test_pillow_is_quiet_within_the_block_alone():
    logger = logging.getLogger("PIL")
    before = list(warnings.filters), list(logger.handlers)
    with quiet_pillow():
        assert (list(warnings.filters), list(logger.handlers)) != before
    assert (list(warnings.filters), list(logger.handlers)) == before


def test_files_are_read_whole_and_digested(tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(b"abc")
    assert read_image_file(path) == b"abc"
    assert file_digest(b"abc").hex() == "cf4ab791c62b8d2b2109c90275287816"


def file_refusal(path: Path) -> tuple[int, str]:
    with pytest.raises(BadImage) as caught:
        read_image_file(path)
    return caught.value.status, caught.value.reason


def test_what_is_not_there_is_missing_and_what_is_no_file_is_never_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    assert file_refusal(tmp_path / "none.jpg") == (MISSING, "no such file")
    assert file_refusal(tmp_path) == (MISSING, "not a regular file")
    assert file_refusal(tmp_path / "pipe.jpg") == (MISSING, "not a regular file")
    assert file_refusal(Path("/dev/zero")) == (MISSING, "not a regular file")


def test_an_empty_file_is_unreadable(tmp_path):
    (tmp_path / "a.jpg").touch()
    assert file_refusal(tmp_path / "a.jpg") == (UNREADABLE, "empty file")


def test_a_dangling_link_is_missing_and_a_link_in_a_circle_unreadable(tmp_path):
    (tmp_path / "a.jpg").symlink_to(tmp_path / "gone.jpg")
    (tmp_path / "b.jpg").symlink_to(tmp_path / "b.jpg")
    assert file_refusal(tmp_path / "a.jpg")[0] == MISSING
    assert file_refusal(tmp_path / "b.jpg")[0] == UNREADABLE


def test_a_file_over_the_size_limit_is_refused_unread(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "MAX_FILE_BYTES", 10)
    (tmp_path / "a.jpg").write_bytes(bytes(11))
    status, reason = file_refusal(tmp_path / "a.jpg")
    assert status == REFUSED
    assert "11 bytes" in reason
