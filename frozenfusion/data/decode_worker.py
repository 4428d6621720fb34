"""The process that decodes what may take long: `python -c "… main()"`, started by `decoding.py`, which may kill it.

It ends when its input does, so none outlives its parent, and when a picture takes longer than it may, even inside a
decoder that lets go of nothing: a thread of C's, `faulthandler`'s, sees to that.

To it: DECODE, ORDER, the file's bytes; then GO, once it has said what it needs. From it: a REPLY, and its bytes.
"""

from __future__ import annotations

import faulthandler
import os
import queue
import signal
import struct
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

from frozenfusion.data.images import BadImage, decode_image, quiet_pillow
from frozenfusion.data.resize import Resize
from frozenfusion.store.status import REFUSED

try:
    from PIL import AvifImagePlugin
except ImportError:  # Pillow before 11.3
    AvifImagePlugin = None  # type: ignore[assignment]
try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

DECODE, GO = b"D", b"G"
ORDER = struct.Struct("<QII?BQ?d")  # bytes of the file, Resize's four, max_pixels, draft, seconds
REPLY = struct.Struct("<cQ")
READY, NEEDS, PIXELS, BAD, NO_MEMORY = b"R", b"N", b"P", b"B", b"M"  # with NEEDS how many; PIXELS and BAD are followed

COPIES = 4  # of the file, while its header is read
SPARE_BYTES = 2**30  # of address space, most of it never used


class Order(NamedTuple):
    """One picture to be decoded."""

    data: bytes
    resize: Resize
    max_pixels: int
    draft: bool
    seconds: float


class _Memory:
    """A limit of this process's memory, where the system has one: a hostile file fails, and not its neighbours."""

    def __init__(self) -> None:
        self._statm = Path("/proc/self/statm")
        self._before = resource.getrlimit(resource.RLIMIT_AS) if resource and self._statm.exists() else None

    def allow(self, needed: int) -> None:
        self._needed = needed
        if self._before is not None:
            soft, hard = self._before
            limit = int(self._statm.read_text().split()[0]) * resource.getpagesize() + 2 * needed + SPARE_BYTES
            unlimited = soft == resource.RLIM_INFINITY
            resource.setrlimit(resource.RLIMIT_AS, (limit if unlimited else min(limit, soft), hard))

    @contextmanager
    def lifted_afterwards(self) -> Iterator[None]:
        try:
            yield
        finally:
            if self._before is not None:
                resource.setrlimit(resource.RLIMIT_AS, self._before)

    def is_there(self) -> bool:
        """Whether as much as is needed can be had."""
        return can_be_had(self._needed)


def can_be_had(memory: int) -> bool:
    """Whether this process could have so many bytes now."""
    try:
        bytearray(memory)
    except MemoryError:
        return False
    return True


def main() -> None:
    """Decode what comes in at stdin until it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's to hear
    replies = os.fdopen(os.dup(1), "wb")
    nowhere = open(os.devnull, "w")  # noqa: SIM115 - for as long as the process
    os.dup2(nowhere.fileno(), 1)  # whatever a library prints
    if AvifImagePlugin is not None:
        AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # there is a process for each core
    orders: queue.SimpleQueue[Order | bytes] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(sys.stdin.buffer, orders), daemon=True).start()
    replies.write(REPLY.pack(READY, 0))
    replies.flush()
    with quiet_pillow():
        while True:
            order = orders.get()
            assert isinstance(order, Order)
            kind, content = _decoded(order, orders, replies, nowhere)
            faulthandler.cancel_dump_traceback_later()
            replies.write(REPLY.pack(kind, len(content)) + content)
            replies.flush()


def _listen(incoming: IO[bytes], orders: queue.SimpleQueue[Order | bytes]) -> None:
    while kind := incoming.read(1):
        if kind == DECODE:
            head = incoming.read(ORDER.size)
            if len(head) < ORDER.size:
                break
            length, size, edge, keeps_shape, filter, *rest = ORDER.unpack(head)
            orders.put(Order(incoming.read(length), Resize(size, edge, keeps_shape, filter), *rest))
        else:
            orders.put(kind)
    os._exit(0)


def _decoded(
    order: Order, orders: queue.SimpleQueue[Order | bytes], replies: IO[bytes], nowhere: IO[str]
) -> tuple[bytes, bytes]:
    """PIXELS, BAD or NO_MEMORY, and what follows."""
    memory, began = _Memory(), time.monotonic()

    def wait_for_go(needed: int) -> None:
        nonlocal began
        faulthandler.cancel_dump_traceback_later()
        left = order.seconds - (time.monotonic() - began)
        replies.write(REPLY.pack(NEEDS, needed))
        replies.flush()
        orders.get()
        faulthandler.dump_traceback_later(max(left, 0.001), exit=True, file=nowhere)
        memory.allow(needed)

    faulthandler.dump_traceback_later(order.seconds, exit=True, file=nowhere)
    try:
        with memory.lifted_afterwards():
            memory.allow(COPIES * len(order.data))
            pixels = decode_image(
                order.data, order.resize, max_pixels=order.max_pixels, draft=order.draft, before_pixels=wait_for_go
            )
        return PIXELS, pixels.tobytes()
    except BadImage as bad:
        # a decoder that was refused memory may call the file damaged
        return (BAD, bytes([bad.status]) + bad.reason.encode()) if memory.is_there() else (NO_MEMORY, b"")
    except MemoryError:
        if memory.is_there():
            return BAD, bytes([REFUSED]) + b"takes far more memory than a picture of its size should"
        return NO_MEMORY, b""
