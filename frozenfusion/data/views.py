"""Some of the pairs of a data set: they stay in its columns, and only their positions are kept.

The functions here give one column of pairs, whether they are such a view or objects. Shapes: k pairs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import overload

import numpy as np
from numpy.typing import NDArray

from frozenfusion.data.pair_columns import Array, Pair, PairColumns
from frozenfusion.data.places import ImagePlace
from frozenfusion.utils.names import decoded

_AT_ONCE = 4096


class PairView(Sequence[Pair]):
    """The pairs at some rows of columns, (k,) int64, in that order; each is made when it is asked for."""

    def __init__(self, columns: PairColumns, rows: Array) -> None:
        self.columns, self.rows = columns, rows

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Pair: ...
    @overload
    def __getitem__(self, index: slice) -> PairView: ...
    def __getitem__(self, index: int | slice) -> Pair | PairView:
        if isinstance(index, slice):
            return PairView(self.columns, self.rows[index])
        return self.columns[int(self.rows[index])]

    def __iter__(self) -> Iterator[Pair]:
        for rows in self._in_parts():
            yield from self.columns.pairs_at(rows)

    def ids(self) -> Iterator[str]:
        """The id of each."""
        for rows in self._in_parts():
            yield from map(decoded, self.columns.encoded_ids[rows].tolist())

    def texts(self) -> Iterator[str]:
        """The text of each. Raises UserError for one that may not be read."""
        for rows in self._in_parts():
            yield from self.columns.read_texts(rows)

    def _in_parts(self) -> Iterator[Array]:
        for start in range(0, len(self), _AT_ONCE):
            yield self.rows[start : start + _AT_ONCE]


def ids_of(pairs: Sequence[Pair]) -> Sequence[str] | Array:
    """The ids, of a view as UTF-8, (k,) S."""
    return pairs.columns.encoded_ids[pairs.rows] if isinstance(pairs, PairView) else [pair.id for pair in pairs]


def texts_of(pairs: Sequence[Pair]) -> Iterator[str]:
    """The texts, one after another. Raises UserError for one that may not be read."""
    return pairs.texts() if isinstance(pairs, PairView) else (pair.text for pair in pairs)


def labels_of(pairs: Sequence[Pair]) -> NDArray[np.int64]:
    """The labels, (k,), -1 where there is none."""
    if isinstance(pairs, PairView):
        return pairs.columns.label_codes[pairs.rows].astype(np.int64)
    return np.array([-1 if pair.label is None else pair.label for pair in pairs], dtype=np.int64)


def image_of(pairs: Sequence[Pair], place: int) -> ImagePlace:
    """Where the image of one of the pairs is, or should be."""
    return pairs.columns.image(int(pairs.rows[place])) if isinstance(pairs, PairView) else pairs[place].image
