"""Stop the commands before every call that changes a file, flip bits of what they made, and look what comes of it.

Killed, with a full disk or a failing one: the same command, typed again, has to end with the same files as one to
which nothing happened, and to leave nothing else; an error is one line; and whoever reads meanwhile sees the old state
or the new one. Flipped: whatever reads it says so in one line, or finds the same as before. Needs fork, so not Windows.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from benchmarks.common import parser, print_table, write_results

if TYPE_CHECKING:
    from benchmarks.faults.flips import Flips
    from benchmarks.faults.stops import Stops

FLIP, FLIPS = "flip", 12  # bits of each part that are flipped if all points are asked for


class Point(NamedTuple):
    """Where what happens: to a call of a command, or to a bit of a part."""

    where: str
    fault: str
    number: int

    def __str__(self) -> str:
        return f"{self.where}/{self.fault}/{self.number}"


def main() -> int:
    """Try the points, print what came of them; 1 if anything is wrong."""
    options = _arguments()
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: threads do not outlive a fork
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch

    from benchmarks.faults.calls import FAULTS
    from benchmarks.faults.flips import Flips
    from benchmarks.faults.stops import Stops
    from benchmarks.faults.world import World

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="faults-") as name:
        world = World(Path(name).resolve())
        stops = {name: Stops(world, name) for name in world.commands}
        flips = Flips(world)
        points = [
            *(
                Point(name, fault, number)
                for name, of in stops.items()
                if _wanted(name, options)
                for fault in FAULTS
                for number in range(1, len(of.calls) + 1)
            ),
            *(Point(part, FLIP, number) for part in flips.parts if _wanted(part, options) for number in range(FLIPS)),
        ]
        points = _chosen(points, options)
        began, tried = time.perf_counter(), []
        wrong: dict[Point, list[str]] = {}
        try:
            for point in points:
                problems = _problems(point, stops, flips, options.seed)
                tried.append(point)
                if problems:
                    wrong[point] = problems
                    print(f"\npython -m benchmarks.faults --seed {options.seed} --point '{point}'")
                    print(*(f"  {problem}" for problem in problems), sep="\n", flush=True)
                if len(tried) % 100 == 0:
                    seconds = time.perf_counter() - began
                    print(f"{len(tried):,} of {len(points):,} points, {seconds:.0f} s", file=sys.stderr)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
    figures = _report(tried, wrong, time.perf_counter() - began)
    write_results(options.json, "faults", figures)
    return int(bool(wrong))


def _arguments() -> argparse.Namespace:
    options = parser("faults", __doc__)
    options.add_argument(
        "--only", type=lambda words: words.split(","), default=[], metavar="NAMES",
        help="commands (create, extend, rebuild, update, train, resume, sweep, evaluate) and parts whose bits are "
        "flipped (store, texts, run; store:features, run:config.json, ...), with commas between",
    )  # fmt: skip
    options.add_argument("--points", default="300", metavar="N", help="how many, spread evenly; or all (%(default)s)")
    options.add_argument("--point", metavar="WHERE/FAULT/NUMBER", help="this one alone, as a failure names it")
    options.add_argument("--seed", type=int, default=0, help="which points, and which bits (%(default)s)")
    found = options.parse_args()
    if found.points != "all" and not found.points.isdecimal():
        options.error(f"--points {found.points}: give a number, or all")
    if not hasattr(os, "fork"):
        options.error("this system has no fork")
    return found


def _wanted(name: str, options: argparse.Namespace) -> bool:
    if options.point:
        return bool(options.point.startswith(f"{name}/"))
    return not options.only or any(name == of or name.startswith(f"{of}:") for of in options.only)


def _chosen(points: list[Point], options: argparse.Namespace) -> list[Point]:
    """As many as asked for: of each place and fault alike, as far as it has so many."""
    if options.point:
        return [point for point in points if str(point) == options.point]
    if options.points == "all":
        return points
    chance = random.Random(options.seed)
    groups = [list(group) for _, group in itertools.groupby(points, lambda point: point[:2])]
    for group in groups:
        chance.shuffle(group)
    chance.shuffle(groups)
    in_turn = itertools.chain.from_iterable(itertools.zip_longest(*groups))
    return list(itertools.islice((point for point in in_turn if point), int(options.points)))


def _problems(point: Point, stops: dict[str, Stops], flips: Flips, seed: int) -> list[str]:
    """Try one point: what is wrong afterwards."""
    if point.fault == FLIP:
        return flips.problems(point.where, point.number, seed)
    call = " ".join(stops[point.where].calls[point.number - 1])
    return [f"({call}) {problem}" for problem in stops[point.where].problems(point.fault, point.number)]


def _report(tried: list[Point], wrong: dict[Point, list[str]], seconds: float) -> dict[str, object]:
    """Print how many were tried and how many were wrong, by place and fault."""
    counts, failed = (Counter(point[:2] for point in some) for some in (tried, wrong))
    rows = [[*group, count, failed[group]] for group, count in sorted(counts.items())]
    title = f"{len(tried):,} faults in {seconds:.0f} s, {len(wrong)} failures"
    print_table(title, ["where", "fault", "tried", "failures"], rows)
    return {"tried": rows, "failures": {str(point): problems for point, problems in wrong.items()}, "seconds": seconds}


if __name__ == "__main__":
    sys.exit(main())
