"""Decoding as stage one does it: the rate on plain JPEGs, in threads and in processes, and the memory that bombs take.

The bombs are 20 files of some hundred KB, each of 99 megapixels: floating-point TIFFs, RGBA and 16-bit PNGs. They are
extracted with a small network in a process of its own, whose memory, with that of the processes it starts, is read from
/proc as often as that goes (Linux).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

import numpy as np
from PIL import Image

from benchmarks.common import alternate, images_that_can_be_read, parser, print_table, rates, write_results
from benchmarks.decode import as_jpeg, some_pictures
from frozenfusion.data import decoding
from frozenfusion.data.images import decode_image
from frozenfusion.data.sample.build import make_sample

BOMBS, SIDE = 20, 9_950
WAYS = ALONE, THREADS, PROCESSES = "decode_image in threads", "Decoder", "Decoder, all in processes"


def main() -> None:
    given = arguments()
    with tempfile.TemporaryDirectory(prefix="benchmark-images-") as folder:
        data = given.data or make_sample(Path(folder, "data"))
        files = [as_jpeg(picture, given.megapixels) for picture in some_pictures(data, given.images)]
        files += list(images_that_can_be_read(given.data)) if given.data else []
        speed = measured(files, given)
        print_table(f"{len(files)} plain JPEGs, {given.workers} workers", ["way", "img/s"], list(speed.items()))
        peak = peak_of_bombs(Path(folder, "bombs"), given.bomb_workers)
    print_table(f"{BOMBS} bombs, {given.bomb_workers} workers", ["", "peak, MB"], [["parent and workers", peak / 1e6]])
    write_results(given.json, "images", {"images_per_second": speed, "peak_bytes_of_bombs": peak})


def arguments() -> argparse.Namespace:
    options = parser("images", __doc__)
    options.add_argument("data", type=Path, nargs="?", help="folder or manifest of pairs (by default the sample)")
    options.add_argument("--images", type=int, default=200, help="JPEGs made of the data's pictures (%(default)s)")
    options.add_argument("--megapixels", type=float, default=0.75, help="size of each (%(default)s)")
    options.add_argument("--image-size", type=int, default=224, help="side that they are resized to (%(default)s)")
    options.add_argument("--workers", type=int, default=2, help="threads, and processes (%(default)s)")
    options.add_argument("--bomb-workers", type=int, default=16, help="workers beside bombs (%(default)s)")
    options.add_argument("--rounds", type=int, default=7, help="measurements of each way (%(default)s)")
    return options.parse_args()


def measured(files: list[bytes], given: argparse.Namespace) -> dict[str, float]:
    """Images per second of each way; the processes are started beforehand."""
    size, workers = given.image_size, given.workers
    with (
        ThreadPoolExecutor(workers) as pool,
        decoding.Decoder(size, workers=workers) as decoder,
    ):
        ways = {
            ALONE: lambda: list(pool.map(lambda data: decode_image(data, size), files)),
            THREADS: lambda: list(pool.map(decoder.decode, files)),
            PROCESSES: lambda: in_processes(lambda: list(pool.map(decoder.decode, files))),
        }
        return rates(alternate(ways, rounds=given.rounds), dict.fromkeys(WAYS, len(files)))


def in_processes(work: Callable[[], object]) -> None:
    """Do the work as if no picture surely were quick."""
    with mock.patch.object(decoding, "quick_bytes", return_value=None):
        work()


def peak_of_bombs(folder: Path, workers: int) -> int:
    make_bombs(folder)
    network = ("--backbone", "efficientnet-b0", "--weights", "random", "--image-size", "32", "--device", "cpu")
    command = [sys.executable, "-m", "frozenfusion", "extract", folder, "--cache", folder / "features.h5", *network]
    process = subprocess.Popen([*command, "--workers", str(workers), "--strict"], stderr=subprocess.DEVNULL)
    peak = 0
    while process.poll() is None:
        peak = max(peak, sum(map(resident_bytes, family(process.pid))))
        time.sleep(0.02)
    if process.returncode:
        raise SystemExit(f"the extraction of bombs failed with status {process.returncode}")
    return peak


def make_bombs(folder: Path) -> None:
    folder.mkdir()
    grey = np.zeros((SIDE, SIDE), np.uint8)
    grey[: SIDE // 2] = 200
    kinds = [
        (Image.fromarray(grey.astype(np.float32)), "tif", {"compression": "tiff_adobe_deflate"}),
        (Image.merge("RGBA", [Image.fromarray(grey)] * 4), "png", {"compress_level": 1}),
        (Image.fromarray(grey.astype(np.uint16) * 257), "png", {"compress_level": 1}),
    ]
    for kind, (picture, suffix, options) in enumerate(kinds):
        made = folder / f"first.{suffix}"
        picture.save(made, **options)
        for number in range(kind, BOMBS, len(kinds)):
            (folder / f"{number:02d}.{suffix}").write_bytes(made.read_bytes())
        made.unlink()


def family(pid: int) -> list[int]:
    """A process and those that it and its threads started."""
    found = [pid]
    for task in Path("/proc", str(pid), "task").glob("*/children"):
        try:
            children = task.read_text().split()
        except OSError:
            continue
        for child in children:
            found += family(int(child))
    return found


def resident_bytes(pid: int) -> int:
    """Memory of a process in bytes, 0 once it has gone; what it shares with others counts in each."""
    try:
        lines = Path("/proc", str(pid), "status").read_text().splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmRSS")), 0)


if __name__ == "__main__":
    main()
