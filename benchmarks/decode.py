"""Decoding a JPEG whole, and as `extract_features.py --jpeg-draft` does it: milliseconds, and how the pixels differ.

The pictures are those of the data, enlarged or shrunk to each size and compressed anew at quality 90; one thread.
"""

from __future__ import annotations

import argparse
import io
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.common import alternate, images_that_can_be_read, parser, print_table, rates, write_results
from frozenfusion.data.images import decode_image
from frozenfusion.data.sample.build import make_sample

WAYS = WHOLE, DRAFT = "whole", "draft"


def main() -> None:
    given = arguments()
    with tempfile.TemporaryDirectory(prefix="benchmark-decode-") as folder:
        pictures = some_pictures(given.data or make_sample(Path(folder, "data")), given.images)
    found = {megapixels: measured(pictures, megapixels, given) for megapixels in given.megapixels}
    print_table(
        f"JPEGs to {given.image_size} pixels, milliseconds each; difference of the pixels, of 255",
        ["megapixels", *WAYS, "times", "mean difference", "largest"],
        [[megapixels, *row.values()] for megapixels, row in found.items()],
    )
    write_results(given.json, "decode", {str(megapixels): row for megapixels, row in found.items()})


def arguments() -> argparse.Namespace:
    options = parser("decode", __doc__)
    options.add_argument("data", type=Path, nargs="?", help="folder or manifest of pairs (by default the sample)")
    options.add_argument(
        "--megapixels", type=float, nargs="+", default=[0.3, 1, 3, 12], help="sizes of pictures (%(default)s)"
    )
    options.add_argument("--image-size", type=int, default=224, help="side that they are resized to (%(default)s)")
    options.add_argument("--images", type=int, default=10, help="pictures of each size (%(default)s)")
    options.add_argument("--rounds", type=int, default=5, help="measurements of each way (%(default)s)")
    return options.parse_args()


def some_pictures(data: Path, wanted: int) -> list[Image.Image]:
    """The largest of the data's pictures."""
    found = [Image.open(io.BytesIO(content)) for content in images_that_can_be_read(data)]
    return sorted(found, key=lambda picture: -picture.width * picture.height)[:wanted]


def measured(pictures: list[Image.Image], megapixels: float, given: argparse.Namespace) -> dict[str, float]:
    files = [as_jpeg(picture, megapixels) for picture in pictures]
    pixels: dict[str, np.ndarray] = {}

    def decode(way: str) -> None:
        pixels[way] = np.stack([decode_image(file, given.image_size, draft=way == DRAFT) for file in files])

    seconds = alternate({way: lambda way=way: decode(way) for way in WAYS}, rounds=given.rounds)
    each = {way: 1000 / rate for way, rate in rates(seconds, dict.fromkeys(WAYS, len(files))).items()}
    difference = np.abs(pixels[DRAFT].astype(int) - pixels[WHOLE])
    return {
        **each,
        "times": each[WHOLE] / each[DRAFT],
        "mean_difference": float(difference.mean()),
        "largest_difference": int(difference.max()),
    }


def as_jpeg(picture: Image.Image, megapixels: float) -> bytes:
    """A picture of about so many megapixels, its shape kept."""
    scale = (megapixels * 1e6 / (picture.width * picture.height)) ** 0.5
    size = round(picture.width * scale), round(picture.height * scale)
    file = io.BytesIO()
    picture.convert("RGB").resize(size, Image.Resampling.LANCZOS).save(file, "JPEG", quality=90)
    return file.getvalue()


if __name__ == "__main__":
    main()
