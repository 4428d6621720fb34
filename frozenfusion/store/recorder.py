"""Where HDF5 lays a file out: in memory, whatever the number of rows."""

from __future__ import annotations

import io
from dataclasses import dataclass, field


@dataclass
class Recorder:
    """A file object that keeps what HDF5 writes, and where, instead of a file as large as the datasets."""

    written: list[tuple[int, bytes]] = field(default_factory=list)
    size: int = 0
    _at: int = 0

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset if whence == io.SEEK_SET else self.size
        return self._at

    def tell(self) -> int:
        return self._at

    def write(self, content: bytes) -> int:
        self.written.append((self._at, bytes(content)))
        self.size = max(self.size, self._at + len(content))
        return len(content)

    def truncate(self, size: int) -> int:
        self.size = size
        return size

    def flush(self) -> None:
        pass

    def read(self, size: int) -> bytes:
        """What was written last at each place, zeros elsewhere: HDF5 asks when it opens the file again."""
        found, first = bytearray(max(0, min(size, self.size - self._at))), self._at
        for offset, content in self.written:
            start, end = max(offset, first), min(offset + len(content), first + len(found))
            if start < end:
                found[start - first : end - first] = content[start - offset : end - offset]
        return bytes(found)
