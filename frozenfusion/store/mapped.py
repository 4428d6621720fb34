"""One feature file as arrays over its map."""

from __future__ import annotations

import contextlib
import mmap
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from frozenfusion.store.hdf5 import Layout, read_layout
from frozenfusion.store.raw_file import Array, open_regular
from frozenfusion.utils.files import writing

MOST_TWINS = 16  # a checksum has more or fewer digits, the last shard fewer rows, a worker other versions
_CHECKSUM = re.compile(rb'\{"crc32": (\d+), "names": \[')


class MappedFile:
    """The datasets of a feature file by name, as read-only arrays. Raises UserError for what is none.

    twins: of files that were opened before; one that is laid out alike is opened without HDF5, and others add theirs.
    on_open: called with the open file and its layout.
    """

    def __init__(
        self,
        path: Path,
        twins: list[Twin] | None = None,
        on_open: Callable[[BinaryIO, Layout], object] = lambda file, layout: None,
    ) -> None:
        with open_regular(path) as file:
            layout = next(filter(None, (twin.layout_of(file) for twin in twins or ())), None)
            if layout is None:
                file.seek(0)
                layout = read_layout(file, path)
                if twins is not None and len(twins) < MOST_TWINS:
                    twins += Twin.of(file, layout)
            with writing(path):
                self._map = _mapped(file.fileno())
            on_open(file, layout)
        self.layout = layout
        self.arrays: dict[str, Any] = {name: span.view(self._map) for name, span in layout.spans.items()}

    def will_need(self, rows: Array) -> None:
        """Have the features of some rows read from the disk meanwhile."""
        self.layout.spans["features"].will_need(self._map, rows)

    def let_go(self, rows: Array) -> None:
        """Unmap the pages that were read: they stay in the system's cache, and no longer count as this process's."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)

    def close(self) -> None:
        """Let go of the file and the arrays; an array that a caller still has keeps its memory."""
        self.arrays.clear()
        with contextlib.suppress(BufferError):
            self._map.close()


@dataclass(frozen=True)
class Twin:
    """A file whose layout has been checked: one that is the same outside its datasets has the same layout.

    Only two things there follow from the ids and are passed over: their checksum, and that of the attributes.
    """

    layout: Layout
    size: int
    outside: bytes
    ids_crc32: slice
    checksum: slice

    @classmethod
    def of(cls, file: BinaryIO, layout: Layout) -> list[Twin]:
        """What is the same in files that are laid out like this one, if that can be told."""
        outside = _outside(file, layout)
        crc32, checksum = layout.ids_crc32.to_bytes(8, "little"), list(_CHECKSUM.finditer(outside))
        if outside.count(crc32) != 1 or len(checksum) != 1:
            return []
        start = outside.index(crc32)
        return [cls(layout, _size(file), outside, slice(start, start + 8), slice(*checksum[0].span(1)))]

    def layout_of(self, file: BinaryIO) -> Layout | None:
        """The layout of another file; None where it is not laid out alike."""
        if _size(file) != self.size:
            return None
        found = bytearray(_outside(file, self.layout))
        ids_crc32 = int.from_bytes(found[self.ids_crc32], "little")
        for part in (self.ids_crc32, self.checksum):
            found[part] = self.outside[part]
        return replace(self.layout, ids_crc32=ids_crc32) if found == self.outside else None


def _outside(file: BinaryIO, layout: Layout) -> bytes:
    """All bytes of a file that no dataset of the layout has."""
    spans = sorted(layout.spans.values(), key=lambda span: span.offset)
    starts = [0, *(span.end for span in spans)]
    ends = [*(span.offset for span in spans), _size(file)]
    parts = []
    for start, end in zip(starts, ends, strict=True):
        file.seek(start)
        parts.append(file.read(end - start))
    return b"".join(parts)


def _size(file: BinaryIO) -> int:
    return os.fstat(file.fileno()).st_size


def _mapped(handle: int) -> mmap.mmap:
    if sys.version_info >= (3, 13) and sys.platform != "win32":  # else each map keeps a file open: many shards, many
        return mmap.mmap(handle, 0, access=mmap.ACCESS_READ, trackfd=False)
    return mmap.mmap(handle, 0, access=mmap.ACCESS_READ)
