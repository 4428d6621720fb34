"""The bytes of a store's file: datasets as spans of it, rows written at their offsets, one writer at a time."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import stat
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from frozenfusion.errors import UserError
from frozenfusion.files import file_error, writing
from frozenfusion.progress import log

Array = npt.NDArray[Any]

_UNSUPPORTED = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}  # a file system's "not here"
_HELD: weakref.WeakSet[WriterLock] = weakref.WeakSet()


@dataclass(frozen=True)
class Span:
    """One dataset: where its bytes lie in the file and what they are."""

    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def row_bytes(self) -> int:
        return byte_count(self.shape[1:], self.dtype)

    @property
    def end(self) -> int:
        return self.offset + self.shape[0] * self.row_bytes

    def view(self, buffer: mmap.mmap) -> Array:
        """The dataset as an array over `buffer`, which holds the whole file."""
        count = (self.end - self.offset) // self.dtype.itemsize
        return np.frombuffer(buffer, self.dtype, count, self.offset).reshape(self.shape)


class RowFile:
    """A store's file open for writing rows at the datasets' offsets; HDF5 has no part in it."""

    def __init__(self, path: Path, spans: Mapping[str, Span], flags: int = 0) -> None:
        self._spans = spans
        self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | flags, 0o666)

    def put(self, name: str, rows: Array, values: Array) -> None:
        """Write `values[i]` as row `rows[i]` of dataset `name`; runs of consecutive rows go in one write."""
        span = self._spans[name]
        values = np.ascontiguousarray(values, dtype=span.dtype)
        if values.shape != (len(rows), *span.shape[1:]):
            raise ValueError(f"{name}: {len(rows)} rows of {span.shape[1:]} are expected, not {values.shape}")
        ends = [*(np.flatnonzero(np.diff(rows) != 1) + 1).tolist(), len(rows)]
        start = 0
        for end in ends:
            if start < end:
                self.put_bytes(values[start:end].tobytes(), span.offset + int(rows[start]) * span.row_bytes)
            start = end

    def put_bytes(self, content: bytes, offset: int) -> None:
        left = memoryview(content)
        while left:
            count = os.pwrite(self._fd, left, offset)
            left, offset = left[count:], offset + count

    def reserve(self, size: int) -> None:
        """Give the file its full size, with disk space behind it where the system can promise any."""
        os.ftruncate(self._fd, size)
        if hasattr(os, "posix_fallocate"):
            try:
                os.posix_fallocate(self._fd, 0, size)
            except OSError as error:
                if error.errno not in _UNSUPPORTED:
                    raise

    def sync(self) -> None:
        """Return when all that was written is on the disk."""
        getattr(os, "fdatasync", os.fsync)(self._fd)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> RowFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a regular file for reading. Raises UserError for anything else, and never waits on a pipe."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise UserError(f"{path}: not a regular file: check the path")
        return open(path, "rb")
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such feature file: make it with extract_features.py, or check the path") from error
    except OSError as error:
        raise file_error(error, path) from error


def byte_count(shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
    count = dtype.itemsize
    for length in shape:  # Python's own integers: absurd shapes must not wrap around
        count *= int(length)
    return count


class WriterLock:
    """Holds `PATH.lock` by flock until released. Readers take no lock.

    Raises UserError, with the holder's process id where it is known, if another writer holds it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path.with_name(path.name + ".lock")
        with writing(self._path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._fd = self._acquire(path)
            with contextlib.suppress(OSError):  # a courtesy to the second writer; a full disk must not stop the first
                os.ftruncate(self._fd, 0)
                os.pwrite(self._fd, str(os.getpid()).encode(), 0)
        _HELD.add(self)

    def release(self) -> None:
        """Let the next writer in and take the lock file away."""
        if self._fd >= 0:
            with contextlib.suppress(OSError):
                self._path.unlink()
            self._close()

    def _acquire(self, path: Path) -> int:
        while True:
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                holder = os.pread(fd, 20, 0).decode(errors="replace").strip()
                os.close(fd)
                who = f"process {holder}" if holder.isdecimal() else "another process"
                raise UserError(f"{path}: {who} is writing it: wait until that ends, or stop it") from error
            except OSError as error:
                if error.errno in _UNSUPPORTED:
                    log.warning("%s: this file system has no locks: make sure that no second run writes it", path)
                    return fd
                os.close(fd)
                raise
            if self._is_current(fd):
                return fd
            os.close(fd)

    def _is_current(self, fd: int) -> bool:
        """False if the former holder took the lock file away between our opening and our locking it."""
        try:
            return os.path.samestat(os.fstat(fd), os.stat(self._path))
        except FileNotFoundError:
            return False

    def _close(self) -> None:
        os.close(self._fd)
        self._fd = -1


def _leave_locks_to_parent() -> None:
    # A forked worker shares the parent's lock, and would go on holding it if it outlived a killed parent.
    for lock in list(_HELD):
        if lock._fd >= 0:
            lock._close()


os.register_at_fork(after_in_child=_leave_locks_to_parent)
