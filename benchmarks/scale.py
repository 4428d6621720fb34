"""Whether stage one scales: a second worker, what shards and Ray cost, and a million rows; goals beside figures.

Workers have one thread each, and a network that is built before the clock runs. The rows of the last part are written
without a network; its end to end has one that gives random features, and one small picture in every row.
"""

from __future__ import annotations

import argparse
import csv
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image

from benchmarks.common import (
    alternate,
    memory_mib,
    own_process,
    parser,
    print_table,
    reset_peak,
    write_results,
)
from benchmarks.extract import ready, some_images
from frozenfusion.data.pairs import load_pairs
from frozenfusion.data.sample.build import make_sample
from frozenfusion.extraction.config import ExtractConfig
from frozenfusion.extraction.extractor import update_features
from frozenfusion.extraction.sharding import agree_on_plan
from frozenfusion.store.plan import shard_path
from frozenfusion.store.reader import FeatureStore
from frozenfusion.store.writer import StoreWriter
from frozenfusion.vision.backbone import Backbone, build_backbone
from frozenfusion.vision.registry import BACKBONES, register_backbone

STUB, STUB_SIDE = "benchmark-stub", 32
BATCHES = (8, 64, 512)
ROOT = Path(__file__).parents[1]

_held: Backbone | None = None  # in a worker's process


def main() -> None:
    given = arguments()
    with tempfile.TemporaryDirectory(dir=given.folder, prefix="benchmark-scale-") as name:
        folder = Path(name)
        results: dict[str, Any] = {"workers": workers(folder, given), "ray": ray(folder, given)}
        results["end to end"] = {f"{rows:,}": end_to_end(folder, rows, given) for rows in given.shards}
        results["rows"] = million(folder, given)
    rows = [[goal, figure, wanted, "yes" if met else "no"] for goal, figure, wanted, met in goals(results)]
    print_table("Goals", ["", "figure", "goal", "met"], rows)
    write_results(given.json, "scale", results)


def arguments() -> argparse.Namespace:
    options = parser("scale", __doc__)
    options.add_argument("--backbone", default="efficientnet-b0", help="network of the workers (%(default)s)")
    options.add_argument("--image-size", type=int, default=224, help="side of its images (%(default)s)")
    options.add_argument("--images", type=int, default=160, help="images of the workers (%(default)s)")
    options.add_argument("--rounds", type=int, default=5, help="measurements of each way (%(default)s)")
    options.add_argument("--rows", type=int, default=1_000_000, help="rows of stores (%(default)s)")
    options.add_argument("--width", type=int, default=256, help="numbers of a row, float16 (%(default)s)")
    options.add_argument("--shards", type=int, nargs="+", default=[2_048, 20_480], help="rows of one (%(default)s)")
    options.add_argument("--end-to-end", type=int, default=20_000, help="rows through the stub (%(default)s)")
    options.add_argument("--folder", type=Path, help="where to make the files for the time being")
    given = options.parse_args()
    given.weights, given.device = "random", "cpu"
    return given


def goals(found: dict[str, Any]) -> Iterator[tuple[str, str, str, bool]]:
    """What was asked for, what was measured, and whether that is enough."""
    efficiency, overhead = found["workers"]["efficiency"], found["workers"]["overhead"]
    yield "2 workers of one thread: efficiency", f"{efficiency:.2f}", "≥ 0.9", efficiency >= 0.9
    each = f" ({found['workers']['seconds_per_shard']:.3f} s a shard)"
    yield "shards against one file" + each, f"{100 * overhead:+.1f} %", "≤ 3 %", overhead <= 0.03
    if isinstance(found["ray"], dict):
        overhead = found["ray"]["overhead"]
        yield "Ray against no Ray", f"{100 * overhead:+.1f} %", "≤ 3 %", overhead <= 0.03
    for rows, of in found["rows"]["shards"].items():
        name = f"shards of {rows}: "
        yield name + "nothing left to do", f"{of['resume_seconds']:.2f} s", "< 5 s", of["resume_seconds"] < 5
        yield name + "open", f"{of['open_seconds']:.3f} s", "< 0.5 s", of["open_seconds"] < 0.5
        for batch, speed in of["random_rows"].items():
            yield name + f"{batch} random rows, one file's speed", f"{speed:.2f}", "≥ 0.8", speed >= 0.8


def workers(folder: Path, given: argparse.Namespace) -> dict[str, float]:
    """One worker with one file, one with shards, and two with shards; each process is there and warm before."""
    data, number = some_data(folder, given.images), count()
    shards = min(4, given.images)
    rows = -(-given.images // shards)
    with own_process() as one, own_process() as other:
        for process in (one, other):
            process.submit(hold, given, data).result()

        def run(*processes: Any, shards: int | None = rows) -> None:
            cache = folder / f"features-{next(number)}"
            for future in [process.submit(extract_held, data, cache, shards) for process in processes]:
                future.result()

        seconds = alternate(
            {
                "one file": lambda: run(one, shards=None),
                "one worker": lambda: run(one),
                "two workers": lambda: run(one, other),
            },
            rounds=given.rounds,
        )
    file, single, double = (np.array(taken) for taken in seconds.values())
    print_table(
        f"{given.images} images, {given.backbone}, shards of {rows}: img/s",
        list(seconds),
        [[given.images / statistics.median(taken) for taken in seconds.values()]],
    )
    return {
        **{f"images_per_second, {name}": given.images / statistics.median(of) for name, of in seconds.items()},
        "efficiency": statistics.median(single / double) / 2,
        "overhead": statistics.median(single / file) - 1,
        "seconds_per_shard": statistics.median(single - file) / shards,
    }


def some_data(folder: Path, wanted: int) -> Path:
    """A manifest of so many rows over the pictures of the sample."""
    images = some_images(make_sample(folder / "sample", 40), folder / "images", wanted)
    names = [image.relative_to(folder).as_posix() for image in images]
    return manifest(folder / "images.csv", [names[i % len(names)] for i in range(wanted)])


def manifest(path: Path, images: list[str]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        lines = csv.writer(file)
        lines.writerow(["id", "text", "image"])
        lines.writerows([f"{i:08d}", "-", image] for i, image in enumerate(images))
    return path


def hold(given: argparse.Namespace, data: Path) -> None:
    """Build the network in this process, and run it once."""
    global _held
    torch.set_num_threads(1)
    _held = ready(given, "float32", "eager", np.zeros((8, given.image_size, given.image_size, 3), np.uint8))


def extract_held(data: Path, cache: Path, shards: int | None) -> None:
    config = ExtractConfig(device="cpu", workers=1, shards=shards)
    with mock.patch("frozenfusion.extraction.extractor.build_backbone", return_value=_held):
        update_features(load_pairs(data), cache, config)


def ray(folder: Path, given: argparse.Namespace) -> dict[str, float] | str:
    """What one worker of Ray takes longer than one without, beyond the start, which a run over few images tells."""
    if find_spec("ray") is None:
        print("\nleft out: there is no Ray here (pip install ray)")
        return "left out"
    few, many = max(1, given.images // 16), given.images
    data = {n: some_data(Path(tempfile.mkdtemp(dir=folder)), n) for n in (few, many)}
    number = count()

    def run(n: int, *flags: str) -> None:
        cache = folder / f"ray-{next(number)}"
        network = f"--backbone {given.backbone} --weights random --image-size {given.image_size} --runtime eager"
        words = f"{network} --device cpu --workers 1 --shards {few}".split()
        command = [sys.executable, str(ROOT / "extract_features.py"), str(data[n]), "--cache", str(cache), *words]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run([*command, *flags], env=environment, check=True, capture_output=True)

    local = ("--ray", "local", "--ray-workers", "1")
    ways = {f"{n} images{told}": (n, flags) for n in (few, many) for told, flags in (("", ()), (", Ray", local))}
    seconds = alternate(
        {name: lambda n=n, flags=flags: run(n, *flags) for name, (n, flags) in ways.items()},
        rounds=given.rounds,
        warm_up=0,
    )
    started, started_by_ray, plain, by_ray = (statistics.median(taken) for taken in seconds.values())
    print_table("One worker, start included: seconds", list(seconds), [[started, started_by_ray, plain, by_ray]])
    return {
        **{name: statistics.median(taken) for name, taken in seconds.items()},
        "overhead": (by_ray - started_by_ray) / (plain - started) - 1,
    }


def end_to_end(folder: Path, rows: int, given: argparse.Namespace) -> dict[str, float]:
    """Every row through the stub, by one worker: seconds, and its memory at the highest."""
    picture = folder / "picture.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (STUB_SIDE, STUB_SIDE, 3), np.uint8)).save(picture)
    data = manifest(folder / "stub.csv", [picture.name] * given.end_to_end)
    with own_process() as process:
        found = process.submit(extract_stub, data, folder / f"stub-{rows}", rows, given.width).result()
    title = f"{given.end_to_end:,} rows of {given.width} through the stub, shards of {rows:,}"
    print_table(title, list(found), [list(found.values())])
    return found


def extract_stub(data: Path, cache: Path, rows: int, width: int) -> dict[str, float]:
    torch.set_num_threads(1)
    register_stub(width)
    reset_peak()
    began = time.perf_counter()
    update_features(load_pairs(data), cache, stub_config(rows))
    return {"seconds": time.perf_counter() - began, "worker_peak_mib": memory_mib("VmHWM")}


def register_stub(width: int) -> None:
    if STUB not in BACKBONES.names():

        @register_backbone(STUB)
        def stub(weights: str) -> torch.nn.Module:
            torch.manual_seed(0)
            return torch.nn.Conv2d(3, width, STUB_SIDE, stride=STUB_SIDE)


def stub_config(rows: int) -> ExtractConfig:
    return ExtractConfig(
        backbone=STUB, image_size=STUB_SIDE, dtype="float16", device="cpu", runtime="eager", workers=1, shards=rows
    )


def million(folder: Path, given: argparse.Namespace) -> dict[str, Any]:
    """Rows in one file and in shards of each size: written by one process, found finished and read by another."""
    data = manifest(folder / "many.csv", ["picture.png"] * given.rows)
    with own_process() as process:
        process.submit(write_one, folder / "one.h5", given.rows, given.width).result()
    found = {}
    for rows in given.shards:
        cache = folder / f"shards-{rows}"
        with own_process() as writer:
            written = writer.submit(write_shards, data, cache, rows, given.width).result()
        with own_process() as reader:
            read = reader.submit(read_shards, data, cache, folder / "one.h5", rows, given).result()
        found[f"{rows:,}"] = {**written, **read}
    print_table(
        f"{given.rows:,} rows of {given.width} float16",
        ["shards of", "write, s", "writer, MiB", "load pairs, s", "nothing left, s", "driver, MiB", "open, s"],
        [[rows, *list(of.values())[:6]] for rows, of in found.items()],
    )
    return {"shards": found}


def write_one(path: Path, n: int, width: int) -> None:
    write_rows(path, [f"{i:08d}" for i in range(n)], width, {"backbone": STUB})


def write_rows(path: Path, ids: list[str], width: int, fingerprint: Any) -> None:
    """Random features of some rows, the same for every id wherever it is written."""
    random = np.random.default_rng(0).standard_normal((997, width)).astype(np.float16)
    with StoreWriter.create(path, ids, (width,), "float16", fingerprint) as writer:
        for rows in np.array_split(np.arange(len(ids)), -(-len(ids) // 4096)):
            features = random[np.array([int(ids[row]) for row in rows.tolist()]) % len(random)]
            writer.write(rows, features, np.zeros((len(rows), 16), np.uint8), np.zeros((len(rows), 2), np.int64))


def write_shards(data: Path, folder: Path, rows: int, width: int) -> dict[str, float]:
    """Write all shards of the plan that stage one would make; the peak is of that alone."""
    register_stub(width)
    pairs, config = load_pairs(data), stub_config(rows)
    backbone = build_backbone(STUB, image_size=STUB_SIDE, dtype="float16")
    plan = agree_on_plan(pairs, folder, config, backbone.feature_shape, backbone.fingerprint, {})
    ids = pairs.ids
    del pairs
    reset_peak()
    before, began = memory_mib("VmRSS"), time.perf_counter()
    for shard in plan.shards:
        write_rows(shard_path(folder, shard), ids[plan.rows(shard)], width, plan.fingerprint)
    return {"write_seconds": time.perf_counter() - began, "writer_peak_mib": memory_mib("VmHWM") - before}


def read_shards(data: Path, folder: Path, one: Path, rows: int, given: argparse.Namespace) -> dict[str, Any]:
    """What a run costs that finds all shards finished; then opening them, and random rows against one file's."""
    register_stub(given.width)
    began = time.perf_counter()
    pairs = load_pairs(data)
    loaded = time.perf_counter()
    summary = update_features(pairs, folder, stub_config(rows))
    resumed = time.perf_counter()
    if summary.timing.images or summary.counts["ok"] != given.rows:
        raise SystemExit(f"error: the shards of {folder} are not what stage one would make")
    figures: dict[str, Any] = {
        "load_seconds": loaded - began,
        "resume_seconds": resumed - loaded,
        "driver_peak_mib": memory_mib("VmHWM"),
        "open_seconds": statistics.median(alternate({"": lambda: FeatureStore(folder)}, rounds=given.rounds)[""]),
    }
    stores = {"one": FeatureStore(one), "shards": FeatureStore(folder)}
    figures["random_rows"] = {batch: speed(stores, batch, given.rounds) for batch in BATCHES}
    return figures


def speed(stores: dict[str, FeatureStore], batch: int, rounds: int) -> float:
    """How fast random rows come from the shards, in those of one file."""
    chance, n = np.random.default_rng(batch), stores["one"].n
    batches = [chance.integers(0, n, batch) for _ in range(max(20, min(n, 20_000) // batch))]
    for rows in batches:
        if not np.array_equal(stores["one"].gather(rows), stores["shards"].gather(rows)):
            raise SystemExit("error: one file and shards do not read the same rows")

    def reading(store: FeatureStore) -> None:
        for rows in batches:
            store.gather(rows)

    seconds = alternate({name: lambda of=of: reading(of) for name, of in stores.items()}, rounds=rounds)
    return float(np.median(np.array(seconds["one"]) / np.array(seconds["shards"])))


if __name__ == "__main__":
    main()
