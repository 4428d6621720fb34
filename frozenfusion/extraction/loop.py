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
from frozenfusion.data.images import BadImage, UnreachableImage, file_digest, quiet_pillow, read_image_file
from frozenfusion.data.places import NO_FILE, ImagePlace, image_address, is_remote, stat_of_each
from frozenfusion.extraction.config import ExtractConfig
from frozenfusion.store.status import MISSING
from frozenfusion.store.writer import StoreWriter
from frozenfusion.utils.errors import UserError
from frozenfusion.utils.progress import Progress, duration, log
from frozenfusion.vision.backbone import Backbone
from frozenfusion.vision.runner import PendingFeatures

UNREACHABLE_IN_A_ROW = 20  # then it is the network rather than the images
BATCHES_AHEAD = 4  # decoded or being decoded while the network works


class Task(NamedTuple):
    """An image to be turned into row `row` of the store."""

    row: int
    image: ImagePlace


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
        self._stat = stat_of_each()
        self._unreached: list[Decoded] = []  # in a row

    def run(self, tasks: Iterable[Task], n: int, images_left: int | None = None) -> Timing:
        """Compute the rows of `n` tasks, or mark why one cannot be; a network that ran before goes on as prepared.

        images_left: how many are to come in all, by default these.
        """
        left = n if images_left is None else images_left
        runner = self._backbone.runner or self._backbone.prepare(
            self._config.device, self._config.runtime, images_left=left, batch_size=self._config.batch_size
        )
        log.info("extracting on %s", runner)
        size, began = runner.batch_size, time.perf_counter()
        ahead = max(BATCHES_AHEAD * size, self._config.workers or 0)  # who waits for a store wants many
        showing, decoder = self._showing(n, "img", "extracting"), self._decoder()
        with quiet_pillow(), showing as self._progress, self._pool() as pool, decoder as self._decodes:
            batch: list[Decoded] = []
            for image in self._timed(_in_order(pool, self._decode, tasks, ahead)):
                self._timing.decode += image.seconds
                self._look_for_the_network(image)
                if image.pixels is None:
                    if not isinstance(image.bad, UnreachableImage):
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
            if n and len(self._unreached) == n:
                raise self._unreachable()
            self._mark_unreached()
        self._writer.commit()
        self._timing.images = n
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
        stat, digest, pixels, bad = self._stat(task.image), None, None, None
        try:
            with self._decodes.reading(task.image, stat):
                data = read_image_file(task.image)
                digest = file_digest(data)
                pixels = self._decodes.decode(data)
        except BadImage as error:
            bad = error
        except MemoryError as error:
            raise no_memory(task.image) from error
        return Decoded(task, pixels, bad, digest, stat, time.perf_counter() - began)

    def _look_for_the_network(self, image: Decoded) -> None:
        """Raise UserError, and mark none of them, where image after image cannot be reached; one alone is bad."""
        if isinstance(image.bad, UnreachableImage):
            self._unreached.append(image)
            if len(self._unreached) == UNREACHABLE_IN_A_ROW:
                raise self._unreachable()
        elif is_remote(image.task.image):
            self._mark_unreached()

    def _unreachable(self) -> UserError:
        last, before = self._unreached[-1], len(self._unreached) - 1
        return UserError(
            f"{image_address(last.task.image)}: cannot be reached, as the {before} before it ({last.bad}): check the "
            "network and your access, and run the same command again; finished rows are kept"
        )

    def _mark_unreached(self) -> None:
        for image in self._unreached:
            self._mark(image)
        self._unreached.clear()

    def _mark(self, image: Decoded) -> None:
        assert image.bad is not None
        row = image.task.row
        self._reasons[self._writer.store.names([row])[0]] = image.bad.reason
        gone = image.bad.status == MISSING and isinstance(image.task.image, Path)  # since it was looked at
        stat = NO_FILE if gone or isinstance(image.bad, UnreachableImage) else image.stat  # to be tried again
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
