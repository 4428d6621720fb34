"""Columns of strings in little memory: short ones in one buffer, texts compressed block by block.

Columns are not changed once they are made. Shapes: n strings of a column, k rows of a call.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from frozenfusion.utils.names import decoded, encoded

Array = NDArray[Any]

ROWS_AT_ONCE = 2**16  # are copied or iterated
TEXTS_OF_A_BLOCK = 128
_TEXTS_AT_ONCE = 2**21  # are put in order
_LEVEL = 1  # of zlib: higher ones take three times as long to save a tenth


class StringColumn(Sequence[str]):
    """Strings as one buffer of UTF-8: string i is data[bounds[i]:bounds[i + 1]].

    data: (b,) uint8. bounds: (n + 1,) of integers, the first is 0.
    """

    def __init__(self, data: Array, bounds: Array) -> None:
        self._data, self._bounds = data, bounds

    @classmethod
    def of(cls, strings: Iterable[str]) -> StringColumn:
        """A column of strings that are there already."""
        made = StringsMaker()
        made.extend(list(strings))
        return made.column()

    def __len__(self) -> int:
        return len(self._bounds) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> StringColumn: ...
    def __getitem__(self, index: int | slice) -> str | StringColumn:
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            return self._part(start, max(start, stop)) if step == 1 else self.take(np.arange(start, stop, step))
        row = range(len(self))[index]
        return decoded(self._data[self._bounds[row] : self._bounds[row + 1]].tobytes())

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), ROWS_AT_ONCE):
            yield from self._part(start, min(start + ROWS_AT_ONCE, len(self))).tolist()

    def tolist(self) -> list[str]:
        """All of them as strings."""
        data, bounds = self._data.tobytes(), self._bounds.tolist()
        if data.isascii():
            text = data.decode()
            return [text[start:end] for start, end in pairwise(bounds)]
        return [decoded(data[start:end]) for start, end in pairwise(bounds)]

    def take(self, rows: Array) -> StringColumn:
        """Those of some rows, (k,) int64, in that order."""
        starts = self._bounds[rows]
        lengths = self._bounds[rows + 1] - starts
        bounds = _bounds_of(lengths)
        data = np.empty(int(bounds[-1]), np.uint8)
        for first in range(0, len(rows), ROWS_AT_ONCE):
            some = slice(first, first + ROWS_AT_ONCE)
            begin, end = int(bounds[first]), int(bounds[min(first + ROWS_AT_ONCE, len(rows))])
            shift = starts[some].astype(np.int64) - bounds[:-1][some].astype(np.int64)
            data[begin:end] = self._data[np.repeat(shift, lengths[some]) + np.arange(begin, end)]
        return StringColumn(data, bounds)

    @property
    def lengths(self) -> Array:
        """How many bytes each has, (n,)."""
        return np.diff(self._bounds)

    @property
    def nbytes(self) -> int:
        """What they take."""
        return self._data.nbytes + self._bounds.nbytes

    def _part(self, start: int, stop: int) -> StringColumn:
        first = self._bounds[start]
        return StringColumn(self._data[first : self._bounds[stop]], self._bounds[start : stop + 1] - first)


class StringsMaker:
    """Makes a StringColumn of strings that come some at a time."""

    def __init__(self) -> None:
        self._data, self._lengths = bytearray(), bytearray()  # which grow in place

    def extend(self, strings: Sequence[str]) -> None:
        """Add some strings at the end."""
        together = "".join(strings)
        if together.isascii():
            self._data += together.encode()
            lengths = np.fromiter(map(len, strings), np.uint32, len(strings))
        else:
            codes = [encoded(text) for text in strings]
            self._data += b"".join(codes)
            lengths = np.fromiter(map(len, codes), np.uint32, len(codes))
        self._lengths += lengths.tobytes()

    def column(self) -> StringColumn:
        """All that were added; the maker is used up."""
        bounds = _bounds_of(np.frombuffer(self._lengths, np.uint32))
        data = np.frombuffer(self._data, np.uint8)
        self._data, self._lengths = bytearray(), bytearray()
        return StringColumn(data, bounds)


def _bounds_of(lengths: Array) -> Array:
    total = int(lengths.sum(dtype=np.int64))
    bounds = np.zeros(len(lengths) + 1, np.uint32 if total < 2**32 else np.int64)
    np.cumsum(lengths, out=bounds[1:])
    return bounds


class TextColumn(Sequence[str]):
    """Texts in compressed blocks of TEXTS_OF_A_BLOCK, of which one is open at a time.

    blocks: what TextsMaker made; the column begins at text `first` of the first one, and has `n`.
    """

    def __init__(self, blocks: Sequence[bytes], n: int, first: int = 0) -> None:
        self._blocks, self._n, self._first = blocks, n, first
        self._open: tuple[int, str, list[int]] | None = None  # a block's number, its texts, their bounds

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": None}

    def __len__(self) -> int:
        return self._n

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> TextColumn: ...
    def __getitem__(self, index: int | slice) -> str | TextColumn:
        if isinstance(index, slice):
            start, stop, step = index.indices(self._n)
            if step != 1:
                return self.take(np.arange(start, stop, step))
            first, end = self._first + start, self._first + max(start, stop)
            begin = first // TEXTS_OF_A_BLOCK
            blocks = self._blocks[begin : -(-end // TEXTS_OF_A_BLOCK)]
            return TextColumn(blocks, end - first, first - begin * TEXTS_OF_A_BLOCK)
        block, place = divmod(self._first + range(self._n)[index], TEXTS_OF_A_BLOCK)
        text, bounds = self._opened(block)
        return text[bounds[place] : bounds[place + 1]]

    def __iter__(self) -> Iterator[str]:
        for start in range(0, self._n, TEXTS_OF_A_BLOCK):
            yield from self.read(np.arange(start, min(start + TEXTS_OF_A_BLOCK, self._n)))

    def read(self, rows: Array) -> list[str]:
        """Those of some rows, (k,) int64, in that order; each block that has some of them is opened once."""
        order = np.argsort(rows, kind="stable")
        blocks, places = np.divmod(rows[order] + self._first, TEXTS_OF_A_BLOCK)
        starts = np.flatnonzero(np.diff(blocks, prepend=-1)).tolist()
        texts = [""] * len(rows)
        for start, end in pairwise([*starts, len(rows)]):
            text, bounds = self._opened(int(blocks[start]))
            for row, place in zip(order[start:end].tolist(), places[start:end].tolist(), strict=True):
                texts[row] = text[bounds[place] : bounds[place + 1]]
        return texts

    def take(self, rows: Array) -> TextColumn:
        """Those of some rows, (k,) int64, in that order."""
        made = TextsMaker()
        for start in range(0, len(rows), _TEXTS_AT_ONCE):  # each time all blocks that have some of them are opened
            made.extend(self.read(rows[start : start + _TEXTS_AT_ONCE]))
        return made.column()

    @property
    def nbytes(self) -> int:
        """What they take."""
        return sum(map(len, self._blocks))

    def _opened(self, block: int) -> tuple[str, list[int]]:
        opened = self._open
        if opened is None or opened[0] != block:
            content = zlib.decompress(self._blocks[block])
            lengths = np.frombuffer(content, np.uint32, TEXTS_OF_A_BLOCK)
            opened = block, decoded(content[lengths.nbytes :]), [0, *np.cumsum(lengths).tolist()]
            self._open = opened
        return opened[1:]


class TextsMaker:
    """Makes a TextColumn of texts that come some at a time."""

    def __init__(self) -> None:
        self._blocks: list[bytes] = []
        self._waiting: list[str] = []

    def extend(self, texts: Sequence[str]) -> None:
        """Add some texts at the end."""
        waiting = [*self._waiting, *texts]
        whole = len(waiting) - len(waiting) % TEXTS_OF_A_BLOCK
        for start in range(0, whole, TEXTS_OF_A_BLOCK):
            self._blocks.append(_packed(waiting[start : start + TEXTS_OF_A_BLOCK]))
        self._waiting = waiting[whole:]

    def column(self) -> TextColumn:
        """All that were added; the maker is used up."""
        n = len(self._blocks) * TEXTS_OF_A_BLOCK + len(self._waiting)
        blocks = [*self._blocks, _packed(self._waiting)] if self._waiting else self._blocks
        self._blocks, self._waiting = [], []
        return TextColumn(blocks, n)


def _packed(texts: Sequence[str]) -> bytes:
    lengths = np.zeros(TEXTS_OF_A_BLOCK, np.uint32)
    lengths[: len(texts)] = [*map(len, texts)]
    return zlib.compress(lengths.tobytes() + encoded("".join(texts)), _LEVEL)
