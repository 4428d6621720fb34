"""What the benchmarks share: timing in alternation, tables, and JSON that says which machine it was."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any

from frozenfusion.data.images import BadImage, decode_image, read_image_file
from frozenfusion.data.pairs import load_pairs
from frozenfusion.utils.files import write_json

PACKAGES = ("torch", "transformers", "efficientnet_pytorch", "openvino", "numpy", "h5py", "pillow")


def parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """An argument parser that knows --json."""
    result = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=description)
    result.add_argument("--json", type=Path, metavar="FILE", help="also write the figures and the machine to FILE")
    return result


def own_process() -> ProcessPoolExecutor:
    """A new process for what is submitted to it, one after another: its memory holds nothing of other ways.

    How fast a network runs depends on what the allocator has seen before, the reference's by a factor of two.
    """
    return ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))


HELD: dict[str, Callable[[], Any]] = {}  # in a process of its own: its ways by name


def call_held(name: str) -> Any:
    """Call a way that this process holds; submitted to one of its own."""
    return HELD[name]()


def reset_peak() -> None:
    """Make VmHWM begin anew from what is in memory now."""
    Path("/proc/self/clear_refs").write_text("5")


def memory_mib(name: str) -> float:
    """VmRSS, what is in memory now, or VmHWM, the most that there was; mapped file pages included."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.partition(f"{name}:")[2].split()[0]) / 2**10


def images_that_can_be_read(data: Path) -> Iterator[bytes]:
    """The image files of a data folder or manifest, pair by pair, without those that are none."""
    for pair in load_pairs(data):
        try:
            content = read_image_file(pair.image)
            decode_image(content, 32)
        except BadImage:
            continue
        yield content


def alternate(ways: Mapping[str, Callable[[], object]], *, rounds: int = 7, warm_up: int = 1) -> dict[str, list[float]]:
    """Seconds of each call of each way, in rounds that take every way once.

    The rounds begin with another way each time, so that whatever changes on the machine meanwhile meets all alike.
    The first `warm_up` rounds are not counted.
    """
    names = list(ways)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(warm_up + rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            began = time.perf_counter()
            ways[name]()
            taken = time.perf_counter() - began
            if turn >= warm_up:
                seconds[name].append(taken)
    return seconds


def rates(seconds: Mapping[str, Sequence[float]], units: Mapping[str, int]) -> dict[str, float]:
    """The median rate of each way, in units per second; one call of a way does `units[way]` of them."""
    return {name: units[name] / statistics.median(taken) for name, taken in seconds.items()}


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print rows under a header: the first column to the left, figures to the right."""
    cells = [[_shown(cell) for cell in row] for row in [header, *rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    print(f"\n{title}")
    for number, row in enumerate(cells):
        print(
            "  ".join(
                cell.rjust(width) if i else cell.ljust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
        )
        if not number:
            print("  ".join("-" * width for width in widths))
    sys.stdout.flush()


def write_results(path: Path | None, name: str, results: Mapping[str, Any]) -> None:
    """Write the figures, with the machine and the versions they were measured on; nothing without a path."""
    if path is not None:
        write_json(path, {"benchmark": name, "machine": machine(), "results": results})
        print(f"\nwritten to {path}")


def machine() -> dict[str, Any]:
    """Processor, instructions that matter, memory, accelerator, and versions."""
    info = _cpuinfo()
    flags = info.get("flags", "").split()
    described: dict[str, Any] = {
        "processor": info.get("model name", platform.processor() or platform.machine()),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "instructions": [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags],
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
    }
    torch = sys.modules.get("torch")  # described if the benchmark uses it, not loaded for the description
    if torch is not None:
        described["threads"] = torch.get_num_threads()
        if torch.cuda.is_available():
            described["gpu"] = torch.cuda.get_device_name()
    return described


def _cpuinfo() -> dict[str, str]:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0].splitlines()
    except OSError:
        return {}
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _shown(cell: object) -> str:
    if isinstance(cell, float):
        return f"{cell:,.0f}" if abs(cell) >= 100 else f"{cell:.3g}"
    return f"{cell:,}" if isinstance(cell, int) else str(cell)
