"""A sweep of heads and seeds on cached pairs with frozen text: one run at a time, and side by side.

    python -m benchmarks.sweep --cores 1 2 --busy --before CHECKOUT

Each way is train_head.py as a person calls it, start and end included, in a new run folder. `--before` adds the
command of another checkout of this project, on the same data. `--busy` measures everything once more beside a process
that never rests, on the same cores. Features and texts are random, since no step takes longer for what is in them.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from transformers import AlbertConfig

from benchmarks.common import alternate, parser, print_table, write_results
from frozenfusion.data.sample.texts import make_text_encoder
from frozenfusion.store.writer import StoreWriter

HERE = Path(__file__).resolve().parents[1]
IMAGE_WIDTH, REGIONS = 2560, 4  # B7's numbers; regions, so that every head can be trained
TOKENS, MOST_TOKENS = 33, 64  # of a text: mean, as MVSA's, and most
TEXT_SHAPES = {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072, "num_hidden_layers": 1}
BEFORE, ONE, BESIDE = "before", "one at a time", "one on each core"
Surroundings = tuple[int, bool]  # cores, and whether another process is busy on them


@dataclass(frozen=True)
class Sweep:
    """One command, but for what differs between the ways."""

    data: Path
    cache: Path
    options: Sequence[str]


def main() -> None:
    given = arguments()
    with tempfile.TemporaryDirectory(dir=given.folder, prefix="benchmark-sweep-") as name:
        folder = Path(name)
        sweep = make_sweep(folder, given)
        found, epochs = {}, {}
        for place in [(cores, busy) for busy in ((False, True) if given.busy else (False,)) for cores in given.cores]:
            found[place], epochs[place] = measure(sweep, folder, place, given)
            print(f"{told(place)}: " + ", ".join(f"{way} {seconds:.1f} s" for way, seconds in found[place].items()))
    ways = list(dict.fromkeys(way for of in found.values() for way in of))
    print_table(
        f"Seconds of a sweep of {', '.join(given.heads)}: {len(given.seeds)} seeds x {given.epochs} epochs on "
        f"{given.pairs:,} pairs; how many times as fast as {ways[0]} the last way is",
        ["where", *ways, "times"],
        [
            [told(place), *(of.get(way, "") for way in ways), of[ways[0]] / list(of.values())[-1]]
            for place, of in found.items()
        ],
    )
    for place, of in epochs.items():
        ways = list(of)
        print_table(
            f"Seconds of an epoch, {told(place)}",
            ["head", *ways],
            [[head, *(of[way].get(head, float("nan")) for way in ways)] for head in of[ways[0]]],
        )
    write_results(
        given.json,
        "sweep",
        {
            "pairs": given.pairs,
            "heads": given.heads,
            "seeds": given.seeds,
            "epochs": given.epochs,
            "load_before": os.getloadavg() if hasattr(os, "getloadavg") else None,
            "seconds": {told(place): of for place, of in found.items()},
            "seconds_an_epoch": {told(place): of for place, of in epochs.items()},
        },
    )


def arguments() -> argparse.Namespace:
    options = parser("sweep", __doc__)
    options.add_argument("--pairs", type=int, default=4511, help="pairs in all (%(default)s)")
    options.add_argument("--heads", nargs="+", default=["all"], help="fusion heads (%(default)s)")
    options.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="seeds (%(default)s)")
    options.add_argument("--epochs", type=int, default=11, help="epochs of a run (%(default)s)")
    options.add_argument("--cores", type=int, nargs="+", default=[os.cpu_count()], help="cores to run on (%(default)s)")
    options.add_argument("--busy", action="store_true", help="also beside a process that never rests")
    options.add_argument("--before", type=Path, metavar="CHECKOUT", help="also with the code of another checkout")
    options.add_argument("--rounds", type=int, default=3, help="measurements of each way (%(default)s)")
    options.add_argument("--folder", type=Path, help="where to make the files for the time being")
    return options.parse_args()


def told(place: Surroundings) -> str:
    cores, busy = place
    return f"{cores} core{'s' * (cores > 1)}, {'beside a busy process' if busy else 'idle'}"


def make_sweep(folder: Path, given: argparse.Namespace) -> Sweep:
    """The data and caches of all ways: texts are encoded here, once."""
    random = np.random.default_rng(0)
    words = [f"word{number}" for number in range(500)]
    lengths = random.normal(TOKENS, 10, given.pairs).clip(3, MOST_TOKENS).astype(int) - 2  # and two of the encoder's
    texts = [" ".join(random.choice(words, length)) for length in lengths]
    ids = [f"{number:07d}" for number in range(given.pairs)]
    data, cache = folder / "pairs.csv", folder / "features.h5"
    with data.open("w", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(["id", "text", "image", "label"])
        lines.writerows(
            [name, text, "none.jpg", "abc"[place % 3]]
            for place, (name, text) in enumerate(zip(ids, texts, strict=True))
        )
    with StoreWriter.create(cache, ids, (REGIONS, IMAGE_WIDTH), "float32", {"features": "random"}) as writer:
        for rows in np.array_split(np.arange(len(ids)), -(-len(ids) // 500)):
            features = random.random((len(rows), REGIONS, IMAGE_WIDTH), np.float32)
            writer.write(rows, features, np.zeros((len(rows), 16), np.uint8), np.zeros((len(rows), 2), np.int64))
    encoder = make_text_encoder(folder / "encoder", texts)
    AlbertConfig(vocab_size=30_000, **TEXT_SHAPES).save_pretrained(encoder)
    sweep = Sweep(
        data,
        cache,
        [
            *("--cache", str(cache), "--text-encoder", str(encoder), "--text-weights", "random", "--freeze-text"),
            *("--device", "cpu"),
        ],
    )
    run(HERE, sweep, folder / "warm-up", ["transformer", "concat"], [0], 1)
    return sweep


def measure(
    sweep: Sweep, folder: Path, place: Surroundings, given: argparse.Namespace
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """The median seconds of each way, and those of an epoch of each head in it."""
    epochs: dict[str, dict[str, float]] = {}

    def way(name: str, checkout: Path, *options: str) -> None:
        into = folder / "run"
        shutil.rmtree(into, ignore_errors=True)
        run(checkout, sweep, into, given.heads, given.seeds, given.epochs, *options)
        epochs[name] = seconds_an_epoch(into)

    ways = {ONE: lambda: way(ONE, HERE, "--jobs", "1")}
    if place[0] > 1:
        ways[BESIDE] = lambda: way(BESIDE, HERE, "--jobs", str(place[0]))
    if given.before is not None:
        ways = {BEFORE: lambda: way(BEFORE, given.before.resolve()), **ways}
    with on_cores(place[0]), busy_process() if place[1] else contextlib.nullcontext():
        taken = alternate(ways, rounds=given.rounds, warm_up=0)
    return {name: statistics.median(seconds) for name, seconds in taken.items()}, {name: epochs[name] for name in ways}


def run(
    checkout: Path, sweep: Sweep, into: Path, heads: Sequence[str], seeds: Sequence[int], epochs: int, *options: str
) -> None:
    """A sweep by the command of a checkout."""
    command = [
        *(sys.executable, "train_head.py", str(sweep.data), *sweep.options, "--run", str(into), *options),
        *("--epochs", str(epochs), "--fusion", *heads, "--seeds", *map(str, seeds)),
    ]
    # in the checkout, whose code is the first that Python finds there; the environment's number of threads is its own
    environment = {name: value for name, value in os.environ.items() if name not in ("OMP_NUM_THREADS", "PYTHONPATH")}
    done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(
            f"{' '.join(command)}\nin {checkout} ended with status {done.returncode}:\n{done.stderr[-2000:]}"
        )


def seconds_an_epoch(folder: Path) -> dict[str, float]:
    """By head, the median over its seeds, as the sweep itself tells."""
    found: dict[str, list[float]] = {}
    with (folder / "sweep.csv").open(newline="") as file:
        for line in csv.DictReader(file):
            found.setdefault(line["fusion"], []).append(float(line["seconds_per_epoch"]))
    return {head: statistics.median(seconds) for head, seconds in found.items()}


@contextlib.contextmanager
def on_cores(count: int) -> Iterator[None]:
    """Keep this process, and those that it starts meanwhile, to the first cores that it may use."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:count])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextlib.contextmanager
def busy_process() -> Iterator[None]:
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


if __name__ == "__main__":
    main()
