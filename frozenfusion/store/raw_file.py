"""The bytes of a store's file: datasets as spans of it, rows written at their offsets."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from frozenfusion.utils.errors import UserError
from frozenfusion.utils.files import file_error

Array = npt.NDArray[Any]

_READ_AND_WRITE = os.O_RDWR | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
_UNSUPPORTED = {errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}  # a file system that promises no space


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

    def will_need(self, buffer: mmap.mmap, rows: Array) -> None:
        """Ask the system to read some rows of `buffer` from the disk, without waiting; where it cannot be, nothing."""
        if not hasattr(mmap, "MADV_WILLNEED"):
            return
        with contextlib.suppress(OSError):  # it was a hint
            for row in rows.tolist():
                start = self.offset + row * self.row_bytes
                page = start - start % mmap.PAGESIZE
                buffer.madvise(mmap.MADV_WILLNEED, page, start + self.row_bytes - page)


def _write_at(handle: int, content: memoryview, offset: int) -> int:
    """os.pwrite, which Windows lacks; a RowFile belongs to one thread, so nobody else moves its place meanwhile."""
    if hasattr(os, "pwrite"):
        return os.pwrite(handle, content, offset)
    os.lseek(handle, offset, os.SEEK_SET)
    return os.write(handle, content)


class RowFile:
    """A store's file open for writing rows at the datasets' offsets; HDF5 has no part in it."""

    def __init__(self, path: Path, spans: Mapping[str, Span], flags: int = 0) -> None:
        self._spans = spans
        self._fd = os.open(path, _READ_AND_WRITE | flags, 0o666)

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
            count = _write_at(self._fd, left, offset)
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
        """Return when all that was written is on the disk; of a closed file, at once."""
        if self._fd >= 0:
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
        raise UserError(
            f"{path}: no such feature file: check the path, or make it with python extract_features.py DATA --cache "
            f"{path}"
        ) from error
    except OSError as error:
        raise file_error(error, path) from error


def byte_count(shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
    count = dtype.itemsize
    for length in shape:  # Python's own integers: absurd shapes must not wrap around
        count *= int(length)
    return count
