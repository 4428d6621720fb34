"""Stage one: every image through the frozen network once, its features into the store."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from frozenfusion import bad_images
from frozenfusion.backbone import Backbone, build_backbone
from frozenfusion.device import choose_device
from frozenfusion.errors import UserError
from frozenfusion.images import MISSING, OK, PENDING, BadImage, decode_image, file_digest, read_image_file
from frozenfusion.options import ExtractOptions
from frozenfusion.pairs import Pairs, read_pairs
from frozenfusion.progress import Progress, duration, log
from frozenfusion.runtime import Ticket
from frozenfusion.store import STATUS_NAMES, StoreWriter

BATCHES_AHEAD = 4  # decoded or being decoded while the network works
NO_FILE = (0, 0)


class Task(NamedTuple):
    """An image to be turned into row `row` of the store."""

    row: int
    path: Path


class Decoded(NamedTuple):
    """What a worker made of a task: pixels (s, s, 3) uint8, or the reason why there are none."""

    task: Task
    pixels: np.ndarray | None
    bad: BadImage | None
    digest: bytes | None
    stat: tuple[int, int]
    seconds: float


@dataclass
class Timing:
    """Seconds of the loop: decode adds up over all workers, the others are parts of `total`."""

    images: int = 0
    decode: float = 0.0
    forward: float = 0.0
    write: float = 0.0
    waiting: float = 0.0
    total: float = 0.0

    def __str__(self) -> str:
        rate = self.images / self.total if self.total else 0.0
        return (
            f"{self.images:,} images in {duration(self.total)}, {rate:.1f} img/s: decode {self.decode:.1f} s (over all "
            f"workers), forward {self.forward:.1f} s, write {self.write:.1f} s, waiting {self.waiting:.1f} s"
        )


@dataclass
class ExtractSummary:
    """What stage one found and did; `counts` are the statuses of this data's images."""

    pairs: Pairs
    cache: Path
    counts: dict[str, int]
    timing: Timing = field(default_factory=Timing)
    bad_list: Path | None = None

    def __str__(self) -> str:
        if self.timing.images:
            done = str(self.timing)
        elif self.bad_list is None:
            done = "nothing to compute: every image is in the cache already"
        else:
            done = "nothing to compute; --retry-failed tries the images again that cannot be used"
        images = ", ".join(f"{count:,} {name}" for name, count in self.counts.items() if count or name == "ok")
        lines = [f"pairs   {self.pairs.summary()}", f"images  {images}", f"work    {done}", f"cache   {self.cache}"]
        if self.bad_list is not None:
            lines.append(f"listed  {self.bad_list}: the images that cannot be used, and why")
        return "\n".join(lines)


def extract(options: ExtractOptions) -> ExtractSummary:
    """Bring the feature file up to date with the images of the data; what is there already is not computed again.

    A bad image gets a status and a line in NAME.bad.csv, and the rest goes on. Raises UserError where the data, the
    weights, the feature file or the disk do not allow it, and with `strict` if an image cannot be used.
    """
    pairs = read_pairs(options.data)
    log.info(pairs.summary())
    choose_device(options.device)  # a wrong one is told before anything is written
    backbone = build_backbone(
        options.backbone,
        options.weights,
        pool=options.pool,
        image_size=options.image_size,
        precision=options.precision,
        dtype=options.dtype,
        jpeg_draft=options.jpeg_draft,
    )
    with _open_store(options, pairs, backbone) as writer:
        rows = writer.store.rows(pairs.ids)
        reasons = bad_images.read_list(options.cache)
        every = [Task(int(row), pair.image) for row, pair in zip(rows, pairs, strict=True)]
        tasks = _plan(writer, every, options, reasons)
        timing = Timing()
        try:
            if tasks:
                timing = _Extraction(writer, backbone, options, reasons).run(tasks)
            if options.rebuild:
                writer.publish()
        finally:
            files = {name: str(pair.image) for name, pair in zip(pairs.ids, pairs, strict=True)}
            bad_list = bad_images.write_list(options.cache, writer.store, files, reasons)
        statuses = np.bincount(writer.store.status[rows], minlength=len(STATUS_NAMES))
    counts = {name: int(statuses[status]) for status, name in STATUS_NAMES.items()}
    summary = ExtractSummary(pairs, options.cache, counts, timing, bad_list)
    if options.strict and counts["ok"] < len(pairs):
        log.info(str(summary))
        raise UserError(
            f"{options.cache}: {len(pairs) - counts['ok']:,} of {len(pairs):,} images cannot be used, as {bad_list} "
            "lists: mend them and run again with --retry-failed, or leave out --strict"
        )
    return summary


def _open_store(options: ExtractOptions, pairs: Pairs, backbone: Backbone) -> StoreWriter:
    path, ids, fingerprint = options.cache, pairs.ids, backbone.fingerprint
    there = os.path.lexists(path)
    if there and options.resume == "never":
        raise UserError(f"{path}: is there already, and --resume never does not touch it: choose another --cache")
    if not there and options.resume == "always":
        raise UserError(f"{path}: there is nothing to go on with: check --cache, or leave out --resume always")
    if there and not options.rebuild:
        return StoreWriter.extend(path, ids, fingerprint)
    make = StoreWriter.rebuild if options.rebuild else StoreWriter.create
    return make(path, ids, backbone.feature_shape, options.dtype, fingerprint, _versions())


def _versions() -> dict[str, str]:
    """What made the features, for people who ask later; not a part of the fingerprint."""
    from importlib.metadata import version

    packages = ("torch", "efficientnet_pytorch", "pillow", "numpy", "h5py")
    return {f"{name}_version": version(name) for name in packages}


def _plan(writer: StoreWriter, tasks: list[Task], options: ExtractOptions, reasons: Mapping[str, str]) -> list[Task]:
    """The tasks whose rows are pending, after rows whose files changed have gone back to pending.

    A file of the size and mtime that the store remembers is taken as unchanged; any other is compared by its digest.
    An image that was deleted after its features were computed keeps them; a bad one is tried again if a kill lost the
    reason why it is bad.
    """
    status, remembered = writer.store.status, writer.store.stat
    suspects, again = [], []
    for task in tasks:
        if status[task.row] == PENDING:
            continue
        now = file_stat(task.path)
        if status[task.row] == OK:
            if now not in (NO_FILE, tuple(remembered[task.row])):
                suspects.append(task)
        elif (
            options.retry_failed
            or now != tuple(remembered[task.row])
            or writer.store.names([task.row])[0] not in reasons
        ):
            again.append(task.row)
    changed = _changed(writer, suspects)
    if changed:
        log.info(f"{len(changed):,} images have changed since their features were computed: computing them again")
    if again or changed:
        writer.reset(again + changed)
    return [task for task in tasks if status[task.row] == PENDING]


def _changed(writer: StoreWriter, suspects: list[Task]) -> list[int]:
    """The rows among `suspects` whose file has other bytes; the others get their new size and mtime."""
    changed, same, stats = [], [], []
    for task in suspects:
        stat = file_stat(task.path)
        try:
            digest = file_digest(read_image_file(task.path))
        except BadImage:
            digest = b""
        if digest == writer.store.digest[task.row].tobytes():
            same.append(task.row)
            stats.append(stat)
        else:
            changed.append(task.row)
    if same:
        writer.set_stat(same, stats)
    return changed


def file_stat(path: Path) -> tuple[int, int]:
    """Size in bytes and mtime in ns of a file, zeros where there is none."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return NO_FILE
    return found.st_size, found.st_mtime_ns


class _Extraction:
    """The loop: workers decode ahead while the network computes, and rows are written as they come."""

    def __init__(
        self, writer: StoreWriter, backbone: Backbone, options: ExtractOptions, reasons: dict[str, str]
    ) -> None:
        self._writer, self._backbone, self._options, self._reasons = writer, backbone, options, reasons
        self._timing = Timing()
        self._started: deque[tuple[list[Decoded], Ticket]] = deque()

    def run(self, tasks: list[Task]) -> Timing:
        """Compute every task's row, or mark why it cannot be."""
        runner = self._backbone.prepare(
            self._options.device, self._options.runtime, images_left=len(tasks), batch_size=self._options.batch_size
        )
        log.info("extracting on %s", runner)
        size, began = runner.batch_size, time.perf_counter()
        with Progress(len(tasks), "img", "extracting") as self._progress, self._pool() as pool:
            batch: list[Decoded] = []
            for image in self._timed(_in_order(pool, self._decode, tasks, BATCHES_AHEAD * size)):
                self._timing.decode += image.seconds
                if image.pixels is None:
                    self._mark(image)
                    continue
                batch.append(image)
                if len(batch) == size:
                    self._start(batch)
                    batch = []
                    while len(self._started) >= runner.in_flight:
                        self._finish()
            if batch:
                self._start(batch)
            while self._started:
                self._finish()
        self._writer.commit()
        self._timing.images = len(tasks)
        self._timing.total = time.perf_counter() - began
        return self._timing

    def _pool(self) -> ThreadPoolExecutor:
        # Threads, because Pillow lets go of the interpreter while it decodes and resizes.
        return ThreadPoolExecutor(self._options.workers or min(16, os.cpu_count() or 1), "decode")

    def _timed(self, images: Iterator[Decoded]) -> Iterator[Decoded]:
        while True:
            began = time.perf_counter()
            image = next(images, None)
            self._timing.waiting += time.perf_counter() - began
            if image is None:
                return
            yield image

    def _decode(self, task: Task) -> Decoded:
        began, options = time.perf_counter(), self._options
        stat, digest, pixels, bad = file_stat(task.path), None, None, None
        try:
            data = read_image_file(task.path)
            digest = file_digest(data)
            pixels = decode_image(data, options.image_size, max_pixels=options.max_pixels, draft=options.jpeg_draft)
        except BadImage as error:
            bad = error
        return Decoded(task, pixels, bad, digest, stat, time.perf_counter() - began)

    def _mark(self, image: Decoded) -> None:
        assert image.bad is not None
        row = image.task.row
        self._reasons[self._writer.store.names([row])[0]] = image.bad.reason
        stat = NO_FILE if image.bad.status == MISSING else image.stat
        self._writer.mark([row], image.bad.status, None if image.digest is None else [image.digest], [stat])
        self._progress.update(1)

    def _start(self, batch: list[Decoded]) -> None:
        began = time.perf_counter()
        ticket = self._backbone.start(np.stack([image.pixels for image in batch if image.pixels is not None]))
        self._started.append((batch, ticket))
        self._timing.forward += time.perf_counter() - began

    def _finish(self) -> None:
        began = time.perf_counter()
        batch, ticket = self._started.popleft()
        features = self._backbone.finish(ticket)
        computed = time.perf_counter()
        self._writer.write(
            [image.task.row for image in batch],
            features,
            [image.digest or b"" for image in batch],
            [image.stat for image in batch],
        )
        self._timing.forward += computed - began
        self._timing.write += time.perf_counter() - computed
        self._progress.update(len(batch))


def _in_order(
    pool: ThreadPoolExecutor, work: Callable[[Task], Decoded], tasks: Iterable[Task], ahead: int
) -> Iterator[Decoded]:
    """`pool.map(work, tasks)` that never holds more than `ahead` results."""
    waiting: deque[Future[Decoded]] = deque()
    tasks = iter(tasks)
    try:
        for task in islice(tasks, ahead):
            waiting.append(pool.submit(work, task))
        while waiting:
            yield waiting.popleft().result()
            for task in islice(tasks, 1):
                waiting.append(pool.submit(work, task))
    finally:
        for future in waiting:
            future.cancel()
