"""The built-in sample: a few hundred drawn image–text pairs, in the reference's layout, dirty as real ones are."""

from __future__ import annotations

import io
import os
import shutil
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

from frozenfusion.data.folders import DATA, REFERENCE_LABELS
from frozenfusion.data.sample.pictures import NEGATIVE, NEUTRAL, POSITIVE, draw
from frozenfusion.data.sample.size import FEWEST_PAIRS, PAIRS
from frozenfusion.data.sample.texts import write_tweet
from frozenfusion.utils.errors import UserError
from frozenfusion.utils.files import read_json, sweep, temporary_beside, write_json, writing
from frozenfusion.utils.locks import WriterLock

TEXT_ENCODER = "text-encoder"

_VERSION = 1  # of what is drawn and written; a new one makes old samples be made anew
_MARK = "sample.json"

_SHARES = {POSITIVE: 0.45, NEUTRAL: 0.25, NEGATIVE: 0.30}
# Which modality tells the label: a pair where one is silent needs the other, so that fusion has something to win.
_TELLING = {"both": 0.20, "text": 0.38, "image": 0.38, "neither": 0.04}
_MISLEADING = 0.03  # chance that a telling modality tells a wrong label


@dataclass
class _Files:
    """What is written for one pair; None where the file is to be missing."""

    image: bytes | None
    text: bytes | None


def make_sample(folder: str | Path, n: int = PAIRS, seed: int = 0) -> Path:
    """Write `n` image–text pairs of three classes in the reference's layout: the same bytes for the same seed.

    Text and image each tell the class of about two pairs in three; together, of nearly all. A handful of files are
    dirty (see _DIRT). A sample that is there already is left as it is. Returns the folder; raises UserError where it
    holds anything else.
    """
    folder = Path(folder)
    mark = {"version": _VERSION, "pairs": n, "seed": seed}
    if n < FEWEST_PAIRS:
        raise UserError(f"a sample of {n} pairs cannot have every kind of dirt: take {FEWEST_PAIRS} or more")
    if (folder / _MARK).is_file() and read_json(folder / _MARK) == mark:
        return folder
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder}: holds something else, or another sample: remove it or choose another folder")
    with WriterLock(folder) as lock, writing(folder):
        lock.require()
        sweep(folder)
        beside = temporary_beside(folder)
        beside.mkdir()
        try:
            _write(beside, n, seed)
            write_json(beside / _MARK, mark)
            if folder.exists():  # and empty, which Windows would not replace
                folder.rmdir()
            os.replace(beside, folder)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
    return folder


def _write(folder: Path, n: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    labels = random.permutation(np.repeat(list(_SHARES), _parts(n, list(_SHARES.values()))))
    telling = random.permutation(np.repeat(list(_TELLING), _parts(n, list(_TELLING.values()))))
    in_test = _held_out(labels)
    pairs = [_pair(np.random.default_rng([seed, i]), labels[i], telling[i]) for i in range(n)]
    _repeat_some(random, pairs, labels, in_test)
    _spoil(random, pairs)

    (folder / DATA).mkdir()
    for i, pair in enumerate(pairs):
        for suffix, content in ((".jpg", pair.image), (".txt", pair.text)):
            if content is not None:
                (folder / DATA / f"{i + 1}{suffix}").write_bytes(content)
    lines = np.array([f"{i + 1},{label}\n" for i, label in enumerate(labels)])
    for name, part in (("", lines), ("-train", lines[~in_test]), ("-test", lines[in_test])):
        (folder / REFERENCE_LABELS.replace(".", f"{name}.")).write_text("ID,label\n" + "".join(part))


def _parts(n: int, shares: Sequence[float]) -> list[int]:
    """`n` divided by shares that add up to 1, in whole numbers."""
    ends = [round(n * share) for share in np.cumsum(shares)]
    return list(np.diff([0, *ends]))


def _held_out(labels: np.ndarray) -> np.ndarray:
    """Every fifth pair of each class: the reference's 8:2."""
    in_test = np.zeros(len(labels), dtype=bool)
    for label in _SHARES:
        in_test[np.flatnonzero(labels == label)[2::5]] = True
    return in_test


def _pair(random: np.random.Generator, label: int, telling: str) -> _Files:
    def mood(modality: str) -> int | None:
        if telling not in {"both", modality}:
            return None
        wrong = random.random() < _MISLEADING
        return (int(label) + int(random.integers(1, 3))) % 3 if wrong else int(label)

    text = write_tweet(random, mood("text"))
    return _Files(_jpeg(draw(random, mood("image"))), f"{text}\n".encode())


def _repeat_some(random: np.random.Generator, pairs: list[_Files], labels: np.ndarray, in_test: np.ndarray) -> None:
    """Make a few test pairs retweets of train pairs, with the same picture, as there are in any real collection."""
    for i in random.choice(np.flatnonzero(in_test), max(1, len(pairs) // 200), replace=False):
        original = pairs[random.choice(np.flatnonzero(~in_test & (labels == labels[i])))]
        pairs[i] = _Files(original.image, b"RT @someone: " + (original.text or b""))


def _spoil(random: np.random.Generator, pairs: list[_Files]) -> None:
    """Spoil a few pairs, each in one way."""
    order = iter(random.permutation(len(pairs)))
    for spoil, per_thousand in _DIRT.items():
        for _ in range(max(1, round(len(pairs) * per_thousand / 1000))):
            spoil(pairs[next(order)])


def _jpeg(picture: Image.Image, **options: object) -> bytes:
    return _encoded(picture, "JPEG", quality=85, **options)


def _encoded(picture: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def _picture(pair: _Files) -> Image.Image:
    return Image.open(io.BytesIO(pair.image or b""))


def _cut_short_in_gb18030(pair: _Files) -> None:
    pair.text = (pair.text or b"").rstrip() + "…\n".encode("gb18030")


def _in_several_lines(pair: _Files) -> None:
    pair.text = (pair.text or b"").replace(b" ", b"\n", 1)


def _text_empty(pair: _Files) -> None:
    pair.text = b"\n"


def _text_missing(pair: _Files) -> None:
    pair.text = None


def _image_missing(pair: _Files) -> None:
    pair.image = None


def _image_empty(pair: _Files) -> None:
    pair.image = b""


def _image_truncated(pair: _Files) -> None:
    pair.image = (pair.image or b"")[:1500]


def _image_is_html(pair: _Files) -> None:
    pair.image = b"<!DOCTYPE html>\n<html><title>404 Not Found</title><p>The picture is gone.</p></html>\n"


def _image_is_bomb(pair: _Files) -> None:
    """A PNG header that claims 3.6 billion pixels."""
    chunks = ((b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)), (b"IDAT", b""), (b"IEND", b""))
    packed = (struct.pack(">I", len(d)) + t + d + struct.pack(">I", zlib.crc32(t + d)) for t, d in chunks)
    pair.image = b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def _image_grey(pair: _Files) -> None:
    pair.image = _jpeg(_picture(pair).convert("L"))


def _image_cmyk(pair: _Files) -> None:
    pair.image = _jpeg(_picture(pair).convert("CMYK"))


def _image_turned(pair: _Files) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    pair.image = _jpeg(_picture(pair).transpose(Image.Transpose.ROTATE_90), exif=exif)


def _image_is_png_with_alpha(pair: _Files) -> None:
    picture = _picture(pair).convert("RGBA")
    picture.putalpha(230)
    pair.image = _encoded(picture, "PNG")


# Kinds of dirt, with how many of a thousand pairs have each; at least one has.
_DIRT: dict[Callable[[_Files], None], float] = {
    _cut_short_in_gb18030: 60,
    _in_several_lines: 5,
    _text_empty: 4,
    _text_missing: 2,
    _image_missing: 4,
    _image_empty: 2,
    _image_truncated: 4,
    _image_is_html: 4,
    _image_is_bomb: 2,
    _image_grey: 10,
    _image_cmyk: 10,
    _image_turned: 8,
    _image_is_png_with_alpha: 4,
}
