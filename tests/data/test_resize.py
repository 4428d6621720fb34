"""Ways to make a picture a square: filters, kept shapes, cut middles, in strips, in other processes, of any shape."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from frozenfusion.data import colours
from frozenfusion.data.colours import square
from frozenfusion.data.decoding import Decoder
from frozenfusion.data.images import decode_image
from frozenfusion.data.resize import FILTERS, Resize

SHORTER_SIDE = Resize(24, 30, keeps_shape=True, filter=FILTERS.index("bicubic"))
BOTH_SIDES = Resize(24, 29, filter=FILTERS.index("lanczos"))
WAYS = [SHORTER_SIDE, BOTH_SIDES, Resize(24, keeps_shape=True, filter=FILTERS.index("nearest"))]


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8))


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@given(width=st.integers(1, 90), height=st.integers(1, 90))
def test_the_shorter_side_is_resized_and_the_middle_cut_out(width, height):
    image = noise(width, height)
    if width <= height:
        resized = image.resize((30, int(30 * height / width)), Image.Resampling.BICUBIC)
    else:
        resized = image.resize((int(30 * width / height), 30), Image.Resampling.BICUBIC)
    top, left = (resized.height - 24) // 2, (resized.width - 24) // 2
    assert np.array_equal(square(image, SHORTER_SIDE), np.asarray(resized)[top : top + 24, left : left + 24])


def test_both_sides_are_resized_and_the_middle_cut_out():
    image = noise(70, 41)
    resized = np.asarray(image.resize((29, 29), Image.Resampling.LANCZOS))
    assert np.array_equal(square(image, BOTH_SIDES), resized[2:26, 2:26])


@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "CMYK"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_strips_give_what_the_whole_picture_does(way, mode, orientation, monkeypatch):
    image = noise(53, 38).convert(mode)
    image.getexif()[0x112] = orientation
    whole = square(image, way)
    monkeypatch.setattr(colours, "STRIP_PIXELS", 100)
    monkeypatch.setattr(colours, "MOST_NARROW_BYTES", 4 * 53 * 7)
    assert np.array_equal(square(image, way), whole)


@pytest.mark.parametrize("way", [WAYS[0], WAYS[2]], ids=str)
@pytest.mark.parametrize("size", [(900, 30), (30, 900)])
def test_of_a_long_picture_the_middle_alone_is_resized(way, size, monkeypatch):
    image = noise(12, 12).resize(size, Image.Resampling.BICUBIC)
    whole = square(image, way).astype(int)
    monkeypatch.setattr(colours, "MOST_RESIZED", 0)
    assert np.abs(square(image, way) - whole).max() <= 1


def test_the_longest_pictures_take_little_memory():
    for size in ((20_000, 1), (1, 20_000)):
        assert square(noise(*size), Resize(224, 256, keeps_shape=True)).shape == (224, 224, 3)


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_the_way_travels_to_the_process_that_decodes(way):
    image = noise(70, 41)
    with Decoder(way) as decoder:  # TIFF is decoded in a process of its own
        assert np.array_equal(decoder.decode(encoded(image, "TIFF")), square(image, way))
        assert np.array_equal(decoder.decode(encoded(image, "PNG")), square(image, way))


def test_a_draft_is_still_twice_as_large_as_what_the_middle_is_cut_out_of():
    y, x = np.mgrid[:300, :500]
    smooth = Image.fromarray(np.stack([127 + 120 * np.sin((x + y) / 40)] * 3, axis=-1).astype(np.uint8))
    data, way = encoded(smooth, "JPEG", quality=90), Resize(48, 64, keeps_shape=True)
    whole, draft = (decode_image(data, way, draft=draft).astype(int) for draft in (False, True))
    assert 0 < np.abs(draft - whole).mean() < 1
    finer = Resize(48, 80, keeps_shape=True)  # of which twice is more than half the picture
    assert np.array_equal(decode_image(data, finer, draft=True), decode_image(data, finer))


def test_ways_that_differ_are_told_apart():
    ways = [Resize(24), Resize(24, 29), Resize(24, 29, True), Resize(24, keeps_shape=True), Resize(24, filter=3)]
    assert str(ways[0]) == "pillow-bilinear"
    assert len(set(map(str, ways))) == len(ways)


def test_more_cannot_be_cut_out_than_there_is():
    with pytest.raises(ValueError, match="cut 24"):
        Resize(24, 20)
