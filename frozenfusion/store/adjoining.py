"""The features of all shards side by side in one range of addresses, so that they are one array."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from frozenfusion.store.raw_file import Array, Span, byte_count

_MAP_FIXED = 0x10  # on Linux, macOS and the BSDs; Python does not name it


class Adjoining:
    """Read-only memory for n rows, zeros at first, in whose place parts of files are mapped.

    Whatever is mapped lies within memory that this object has, so that no index of `array` (n, *shape) leads out of it.
    """

    def __init__(self, n: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self._span = Span(0, (n, *shape), dtype)
        self._map = mmap.mmap(-1, self._span.end, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=mmap.PROT_READ)
        self.array: Array = self._span.view(self._map)
        self._address: int = self.array.ctypes.data

    @classmethod
    def of(cls, bounds: Sequence[int], shape: tuple[int, ...], dtype: np.dtype[Any]) -> Adjoining | None:
        """Memory for shards with those bounds; None where the system has no such memory, or they are no whole pages."""
        row_bytes = byte_count(shape, dtype)
        if _system_mmap is None or any(row * row_bytes % mmap.PAGESIZE for row in bounds[:-1]):
            return None
        with contextlib.suppress(OSError, OverflowError, ValueError):  # a limit on addresses, absurd sizes
            return cls(bounds[-1], shape, dtype)
        return None

    def place(self, file: int, span: Span, rows: slice) -> bool:
        """Map a dataset of an open file, which has checked where it is, as those rows; False where that cannot be."""
        shape = (rows.stop - rows.start, *self.array.shape[1:])
        if span.offset % mmap.PAGESIZE or span.shape != shape or span.dtype != self.array.dtype:
            return False
        address = self._address + rows.start * span.row_bytes
        flags = mmap.MAP_SHARED | _MAP_FIXED
        assert _system_mmap is not None
        placed = _system_mmap(address, span.end - span.offset, mmap.PROT_READ, flags, file, span.offset)
        return bool(placed == address)

    def will_need(self, rows: Array) -> None:
        """Have some rows read from the disk meanwhile."""
        self._span.will_need(self._map, rows)

    def let_go(self, rows: Array) -> None:
        """Unmap the pages from the first to the last of some rows, as MappedFile does."""
        start = int(rows.min()) * self._span.row_bytes
        page = start - start % mmap.PAGESIZE
        self._map.madvise(mmap.MADV_DONTNEED, page, (int(rows.max()) + 1) * self._span.row_bytes - page)

    def close(self) -> None:
        """Let go of the memory; an array that a caller still has keeps it."""
        del self.array
        with contextlib.suppress(BufferError):
            self._map.close()


def _find_mmap() -> Any:
    """The system's own mmap, which takes an address; None where there is none (Windows), or addresses are short."""
    if sys.platform == "win32" or sys.maxsize < 2**32 or not hasattr(mmap, "MADV_DONTNEED"):
        return None
    try:
        found = ctypes.CDLL(None).mmap
    except (OSError, AttributeError, TypeError):
        return None
    found.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64)
    found.restype = ctypes.c_void_p
    return found


_system_mmap = _find_mmap()
