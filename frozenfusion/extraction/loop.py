"""The loop of stage one: workers decode ahead, the network computes, rows are written as they come.

Shapes: s pixels per side.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import astuple, dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from frozenfusion.data.decoding import Decoder, no_memory
from frozenfusion.data.identity import NO_FILE, file_stat
from frozenfusion.data.images import BadImage, file_digest, quiet_pillow, read_image_file
from frozenfusion.extraction.config import ExtractConfig
from frozenfusion.store.status import MISSING
from frozenfusion.store.writer import StoreWriter
from frozenfusion.utils.progress import Progress, duration, log
from frozenfusion.vision.backbone import Backbone
from frozenfusion.vision.runner import PendingFeatures

BATCHES_AHEAD = 4  # decoded or being decoded while the network works


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

    def __add__(self, other: Timing) -> Timing:
        return Timing(*(mine + its for mine, its in zip(astuple(self), astuple(other), strict=True)))

    def __str__(self) -> str:
        rate = self.images / self.total if self.total else 0.0
        return (
            f"{self.images:,} images in {duration(self.total)}, {rate:.1f} img/s: decode {self.decode:.1f} s (over all "
            f"workers), forward {self.forward:.1f} s, write {self.write:.1f} s, waiting {self.waiting:.1f} s"
        )


class ExtractionLoop:
    """The loop: workers decode ahead while the network computes, and rows are written as they come."""

    def __init__(
        self,
        writer: StoreWriter,
        backbone: Backbone,
        config: ExtractConfig,
        reasons: dict[str, str],
        progress: Callable[..., Progress] = Progress,
    ) -> None:
        self._writer, self._backbone, self._config, self._reasons = writer, backbone, config, reasons
        self._showing = progress
        self._timing = Timing()
        self._started: deque[tuple[list[Decoded], PendingFeatures]] = deque()

    def run(self, tasks: list[Task], images_left: int | None = None) -> Timing:
        """Compute every task's row, or mark why it cannot be; a network that ran before goes on as it was prepared.

        images_left: how many are to come in all, by default these.
        """
        left = len(tasks) if images_left is None else images_left
        runner = self._backbone.runner or self._backbone.prepare(
            self._config.device, self._config.runtime, images_left=left, batch_size=self._config.batch_size
        )
        log.info("extracting on %s", runner)
        size, began = runner.batch_size, time.perf_counter()
        showing, decoder = self._showing(len(tasks), "img", "extracting"), self._decoder()
        with quiet_pillow(), showing as self._progress, self._pool() as pool, decoder as self._decodes:
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

    @property
    def _workers(self) -> int:
        return self._config.workers or min(16, os.cpu_count() or 1)

    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self._workers, "decode")

    def _decoder(self) -> Decoder:
        config = self._config
        return Decoder(
            self._backbone.resize,
            max_pixels=config.max_pixels,
            draft=config.jpeg_draft,
            seconds=config.image_seconds,
            workers=self._workers,
        )

    def _timed(self, images: Iterator[Decoded]) -> Iterator[Decoded]:
        while True:
            began = time.perf_counter()
            image = next(images, None)
            self._timing.waiting += time.perf_counter() - began
            if image is None:
                return
            yield image

    def _decode(self, task: Task) -> Decoded:
        began = time.perf_counter()
        stat, digest, pixels, bad = file_stat(task.path), None, None, None
        try:
            with self._decodes.reading(task.path):
                data = read_image_file(task.path)
                digest = file_digest(data)
                pixels = self._decodes.decode(data)
        except BadImage as error:
            bad = error
        except MemoryError as error:
            raise no_memory(task.path) from error
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
        pending = self._backbone.start(np.stack([image.pixels for image in batch if image.pixels is not None]))
        self._started.append((batch, pending))
        self._timing.forward += time.perf_counter() - began

    def _finish(self) -> None:
        began = time.perf_counter()
        batch, pending = self._started.popleft()
        features = self._backbone.finish(pending)
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
