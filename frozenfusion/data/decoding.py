"""Image files become arrays, many at a time, whatever they are: within a time, within a memory, and killed if need be.

Pictures that surely are quick (`quick.py`) are decoded in threads, which is faster (docs/performance.md) and needs no
start. Everything else, and what a thread found no memory for, is decoded in processes, started when they are first
needed: no thread can be stopped, and no decoder of a rare format can be trusted to end, to be modest, or not to crash.
"""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from frozenfusion.data.decode_worker import BAD, DECODE, GO, NEEDS, ORDER, PIXELS, READY, REPLY, can_be_had
from frozenfusion.data.images import MAX_FILE_BYTES, MAX_PIXELS, BadImage, decode_image
from frozenfusion.data.places import Place, Stat, image_size
from frozenfusion.data.quick import quick_bytes
from frozenfusion.data.resize import Resize, as_resize
from frozenfusion.store.status import REFUSED, UNREADABLE
from frozenfusion.utils.errors import UserError

IMAGE_SECONDS = 30.0
MOST_FILE_BYTES = MAX_FILE_BYTES  # of files read at once
MOST_DECODED_BYTES = 512 * 2**20  # of pictures decoded at once

_START = "import sys; sys.path[:] = sys.argv[1:]; from frozenfusion.data.decode_worker import main; main()"
_HOME = str(Path(__file__).resolve().parents[2])  # of the package, wherever the parent found it
LAST_SECONDS = 5  # of a process that closed its output
_KILLED = -9  # as the system does when memory runs out


class Closed(Exception):
    """The work was given up meanwhile."""


class Budget:
    """An amount that many threads share: each gets its part when it is its turn and there is enough left."""

    def __init__(self, total: int) -> None:
        self._total = self._left = total
        self._queue: deque[object] = deque()
        self._changed = threading.Condition()

    @contextmanager
    def hold(self, amount: int) -> Iterator[None]:
        """Hold `amount`; more than there is in all is held alone."""
        amount, ticket = min(amount, self._total), object()
        with self._changed:
            self._queue.append(ticket)
            try:
                self._changed.wait_for(lambda: self._queue[0] is ticket and amount <= self._left)
                self._left -= amount
            finally:
                self._queue.remove(ticket)
                self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._left += amount
                self._changed.notify_all()


class Decoder:
    """Decodes from several threads, at most `workers` files at once; a context manager, which leaves no process behind.

    `size`, `max_pixels` and `draft` are those of `decode_image`; `seconds` is what one picture may take.
    """

    def __init__(
        self,
        size: int | Resize,
        *,
        max_pixels: int = MAX_PIXELS,
        draft: bool = False,
        seconds: float = IMAGE_SECONDS,
        workers: int = 1,
    ) -> None:
        self._resize, self._max_pixels, self._draft, self._seconds = as_resize(size), max_pixels, draft, seconds
        self._files, self._pictures = Budget(MOST_FILE_BYTES), Budget(MOST_DECODED_BYTES)
        self._turns = threading.Semaphore(min(workers, os.cpu_count() or 1))
        self._lock = threading.Lock()
        self._idle: list[_Process] = []
        self._running: set[_Process] = set()
        self._closed = False

    def __enter__(self) -> Decoder:
        return self

    def __exit__(self, *_: object) -> None:
        """Give up whatever is being decoded, at once."""
        with self._lock:
            self._closed = True
            for process in self._running:  # whose threads put them away
                process.kill()
            for process in self._idle:
                process.close()

    @contextmanager
    def reading(self, image: str | os.PathLike[str] | Place, stat: Stat | None = None) -> Iterator[None]:
        """Around reading and decoding an image, whose `image_stat` may be known: waits until there is room for it."""
        with self._files.hold(image_size(image, stat)):
            self._check_open()
            yield

    def decode(self, data: bytes) -> np.ndarray:
        """The pixels that `decode_image` gives. Raises BadImage; MemoryError where the machine has too little."""
        needed = quick_bytes(data)
        if needed is not None:
            try:
                with self._pictures.hold(needed):
                    self._check_open()
                    return decode_image(data, self._resize, max_pixels=self._max_pixels, draft=self._draft)
            except BadImage:
                if can_be_had(needed):
                    raise
            except MemoryError:
                pass
        with self._turns, self._process() as process:
            return self._decoded_by(process, data)

    def _check_open(self) -> None:
        if self._closed:
            raise Closed

    @contextmanager
    def _process(self) -> Iterator[_Process]:
        """A process that waits for work, or a new one; it is kept unless something went wrong."""
        with self._lock:
            self._check_open()
            try:
                process = self._idle.pop() if self._idle else _Process()
            except OSError as error:
                raise UserError(f"cannot start a process that decodes images ({error.strerror})") from error
            self._running.add(process)
        fit = False
        try:
            yield process
            fit = True
        except BadImage:
            fit = process.is_alive()
            raise
        finally:
            with self._lock:
                self._running.discard(process)
                if fit and not self._closed:
                    self._idle.append(process)
                else:
                    process.close()

    def _decoded_by(self, process: _Process, data: bytes) -> np.ndarray:
        began = None
        waited = 0.0
        try:
            process.wait_until_ready()
            began = time.monotonic()
            limits = self._max_pixels, self._draft, self._seconds
            process.send(DECODE + ORDER.pack(len(data), *dataclasses.astuple(self._resize), *limits), data)
            kind, length = process.reply()
            if kind == NEEDS:
                asked = time.monotonic()
                with self._pictures.hold(length):
                    waited = time.monotonic() - asked
                    process.send(GO)
                    kind, length = process.reply()
                    content = process.read(length)
            else:
                content = process.read(length)
        except (EOFError, OSError):
            self._check_open()
            status = process.status()
            if began is None:
                raise UserError(f"a process that decodes images ended with status {status} as it was started") from None
            if time.monotonic() - began - waited >= self._seconds:
                raise BadImage(REFUSED, f"takes more than {self._seconds:g} s to decode") from None
            if status == _KILLED:
                raise MemoryError from None
            raise BadImage(UNREADABLE, "makes its decoder crash") from None
        if kind == PIXELS:
            return np.frombuffer(content, np.uint8).reshape(self._resize.size, self._resize.size, 3)
        if kind == BAD:
            raise BadImage(content[0], content[1:].decode())
        raise MemoryError


class _Process:
    """A process that decodes, one file after another."""

    def __init__(self) -> None:
        # Not of `multiprocessing`, which would run the caller's script again where that lacks its guard.
        self._popen = subprocess.Popen(
            [sys.executable, "-c", _START, *sys.path, _HOME],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
            creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
        )
        assert self._popen.stdin is not None
        assert self._popen.stdout is not None
        self._to, self._from = self._popen.stdin, self._popen.stdout
        self._ready = False

    def wait_until_ready(self) -> None:
        if not self._ready:
            self._ready = self.reply() == (READY, 0)

    def send(self, *parts: bytes) -> None:
        for part in parts:
            rest = memoryview(part)
            while rest:
                rest = rest[self._to.write(rest) :]

    def reply(self) -> tuple[bytes, int]:
        kind, length = REPLY.unpack(self.read(REPLY.size))
        return kind, length

    def read(self, length: int) -> bytes:
        parts = []
        while length:
            part = self._from.read(length)
            if not part:
                raise EOFError
            parts.append(part)
            length -= len(part)
        return b"".join(parts)

    def is_alive(self) -> bool:
        return self._popen.poll() is None

    def status(self) -> int:
        """How the process ended, which it has or soon will."""
        try:
            return self._popen.wait(LAST_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            return self._popen.wait()

    def kill(self) -> None:
        self._popen.kill()

    def close(self) -> None:
        self.kill()
        self._popen.wait()
        self._to.close()
        self._from.close()


def no_memory(image: str | os.PathLike[str] | Place) -> UserError:
    """What to tell of a MemoryError while an image was decoded: the machine's lack, never the row's fault."""
    name = image.address if isinstance(image, Place) else os.fspath(image)
    return UserError(
        f"{name}: not enough memory to decode it beside what runs: free some, or give fewer `workers`, a "
        "smaller `batch_size` or fewer `max_pixels`; finished rows are kept, and no image is marked for it"
    )
