"""One feature file as arrays over its map."""

from __future__ import annotations

import contextlib
import mmap
import sys
from pathlib import Path
from typing import Any

from frozenfusion.store.hdf5 import read_layout
from frozenfusion.store.raw_file import Array, open_regular
from frozenfusion.utils.files import writing


class MappedFile:
    """The datasets of a feature file by name, as read-only arrays. Raises UserError for what is none."""

    def __init__(self, path: Path) -> None:
        with open_regular(path) as file:
            self.layout = read_layout(file, path)
            with writing(path):
                self._map = _mapped(file.fileno())
        self.arrays: dict[str, Any] = {name: span.view(self._map) for name, span in self.layout.spans.items()}

    def let_go(self, rows: Array) -> None:
        """Unmap the pages that were read: they stay in the system's cache, and no longer count as this process's."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)

    def close(self) -> None:
        """Let go of the file and the arrays; an array that a caller still has keeps its memory."""
        self.arrays.clear()
        with contextlib.suppress(BufferError):
            self._map.close()


def _mapped(handle: int) -> mmap.mmap:
    if sys.version_info >= (3, 13) and sys.platform != "win32":  # else each map keeps a file open: many shards, many
        return mmap.mmap(handle, 0, access=mmap.ACCESS_READ, trackfd=False)
    return mmap.mmap(handle, 0, access=mmap.ACCESS_READ)
