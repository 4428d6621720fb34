"""Random rows from the feature store, numpy.memmap and chunked HDF5; opening and resuming stores of many rows."""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from benchmarks.common import alternate, parser, print_table, rates, write_results
from frozenfusion.store.reader import FeatureStore
from frozenfusion.store.writer import StoreWriter

WIDTH = 2560
FINGERPRINT = {"backbone": "efficientnet-b7"}
OURS, MEMMAP = "feature store", "numpy memmap"
CHUNKED, ROW_CHUNKS = "chunked HDF5, h5py's chunks", "chunked HDF5, a chunk a row"
SHARE = {OURS: 1, MEMMAP: 1, CHUNKED: 50, ROW_CHUNKS: 5}  # the slow ways read one in so many of the batches


def main() -> None:
    options = arguments()
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="benchmark-store-") as name:
        folder = Path(name)
        reading = read_random_rows(folder, options)
        print_table(
            f"Random batches of {options.rows:,} rows, {WIDTH} × float32, from the page cache: rows per second",
            ["batch", "store", "memmap", "h5py's chunks", "row chunks", "÷ memmap", "÷ h5py's chunks", "÷ row chunks"],
            [
                [figures["batch_size"], *figures["rows_per_second"].values(), *figures["ratios"].values()]
                for figures in reading
            ],
        )
        opening = [open_and_resume(folder, n, options.rounds) for n in options.sizes if room_for(folder, n)]
        print_table(
            f"Opening a store, {WIDTH} × float16: milliseconds",
            ["rows", "open", "open, cold", "find every id", "resume", "MiB mapped in"],
            [list(figures.values()) for figures in opening],
        )
    write_results(options.json, "store", {"random_rows": reading, "open_and_resume": opening})


def arguments() -> argparse.Namespace:
    options = parser("store", __doc__)
    options.add_argument("--rows", type=int, default=10_000, help="rows of the files read from (%(default)s)")
    options.add_argument(
        "--batch-size", type=int, nargs="+", default=[8, 64, 512], help="rows read at once (%(default)s)"
    )
    options.add_argument(
        "--sizes", type=int, nargs="*", default=[10_000, 100_000, 1_000_000], help="rows of stores opened (%(default)s)"
    )
    options.add_argument("--rounds", type=int, default=9, help="measurements of each way (%(default)s)")
    options.add_argument("--folder", type=Path, help="where to make the files for the time being")
    return options.parse_args()


def read_random_rows(folder: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows per second of every way for every batch size, all from the same values and the same batches."""
    features = np.random.default_rng(0).standard_normal((options.rows, WIDTH), dtype=np.float32)
    features.tofile(folder / "plain")
    write_store(folder / "store.h5", features)
    with h5py.File(folder / "chunked.h5", "w") as file:
        file.create_dataset(CHUNKED, data=features, chunks=True)
        file.create_dataset(ROW_CHUNKS, data=features, chunks=(1, WIDTH))
    store = FeatureStore(folder / "store.h5")
    plain = np.memmap(folder / "plain", np.float32, "r", shape=features.shape)
    results = []
    with h5py.File(folder / "chunked.h5") as file:
        readers: dict[str, Callable[[np.ndarray], np.ndarray]] = {
            OURS: store.gather,
            MEMMAP: lambda rows: plain[rows],
            # h5py reads single rows faster than a list of them
            CHUNKED: lambda rows: np.stack([file[CHUNKED][row] for row in rows]),
            ROW_CHUNKS: lambda rows: np.stack([file[ROW_CHUNKS][row] for row in rows]),
        }
        for read in readers.values():
            if not np.array_equal(read(np.array([3, 1])), features[[3, 1]]):
                raise SystemExit("error: the ways do not read the same rows")
        for batch_size in options.batch_size:
            results.append(compare(readers, options.rows, batch_size, options.rounds))
    return results


def compare(
    readers: dict[str, Callable[[np.ndarray], np.ndarray]], n: int, batch_size: int, rounds: int
) -> dict[str, Any]:
    chance = np.random.default_rng(batch_size)
    batches = [chance.integers(0, n, batch_size) for _ in range(max(100, 10_000 // batch_size))]

    def reading_all(name: str) -> Callable[[], None]:
        def run() -> None:
            for rows in batches[:: SHARE[name]]:
                readers[name](rows)

        return run

    seconds = alternate({name: reading_all(name) for name in readers}, rounds=rounds)
    rows_read = {name: len(batches[:: SHARE[name]]) * batch_size for name in readers}
    per_row = {name: np.array(taken) / rows_read[name] for name, taken in seconds.items()}
    ratios = {name: float(np.median(per_row[name] / per_row[OURS])) for name in readers if name != OURS}
    return {"batch_size": batch_size, "rows_per_second": rates(seconds, rows_read), "ratios": ratios}


def open_and_resume(folder: Path, n: int, rounds: int) -> dict[str, Any]:
    """Median milliseconds to open a store of `n` rows, to look up all its ids, and to go on with it as a run does."""
    path, ids = folder / "many.h5", [f"{i:09d}" for i in range(n)]
    StoreWriter.create(path, ids, (WIDTH,), "float16", FINGERPRINT).close()

    def resume() -> None:
        with StoreWriter.extend(path, ids, FINGERPRINT) as writer:
            np.flatnonzero(writer.store.status == 0)

    def dropped() -> None:
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    milliseconds: dict[str, Any] = {"rows": n, "open": timed(lambda: FeatureStore(path), rounds)}
    milliseconds["open_cold"] = timed(lambda: FeatureStore(path), rounds, before=dropped)
    store = FeatureStore(path)
    milliseconds["find_every_id"] = timed(lambda: store.rows(ids), rounds)
    milliseconds["resume"] = timed(resume, rounds)
    before = resident_mib()
    with StoreWriter.extend(path, ids[:1], FINGERPRINT) as writer:
        np.flatnonzero(writer.store.status == 0)
        milliseconds["mapped_mib"] = resident_mib() - before
    path.unlink()
    return milliseconds


def timed(action: Callable[[], object], rounds: int, before: Callable[[], None] = lambda: None) -> float:
    taken = []
    for _ in range(rounds):
        before()
        began = time.perf_counter()
        action()
        taken.append(1000 * (time.perf_counter() - began))
    return statistics.median(taken)


def room_for(folder: Path, n: int) -> bool:
    """Whether a store of `n` rows takes less than half of the free disk space; says so where not."""
    size, free = n * WIDTH * 2, shutil.disk_usage(folder).free
    if size > free / 2:
        print(
            f"left out: a store of {n:,} rows takes {size / 2**30:.1f} GiB, and {free / 2**30:.1f} are free in {folder}"
        )
    return size <= free / 2


def resident_mib() -> float:
    """Mapped file pages in memory."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.partition("RssFile:")[2].split()[0]) / 2**10


def write_store(path: Path, features: np.ndarray) -> None:
    n = len(features)
    ids = [f"{i:09d}" for i in range(n)]
    with StoreWriter.create(path, ids, features.shape[1:], features.dtype, FINGERPRINT) as writer:
        for start in range(0, n, 500):
            rows = np.arange(start, min(start + 500, n))
            writer.write(rows, features[rows], np.zeros((len(rows), 16), np.uint8), np.zeros((len(rows), 2), np.int64))


if __name__ == "__main__":
    main()
