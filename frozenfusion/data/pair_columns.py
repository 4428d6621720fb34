"""Pairs column by column: ten million of them take a gigabyte, and a `Pair` is made when it is asked for.

Shapes: n pairs, k rows of a call.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import repeat
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from frozenfusion.data.columns import StringColumn, StringsMaker, TextColumn, TextsMaker
from frozenfusion.data.places import ImagePlace, below, image_address, place_of
from frozenfusion.data.records import read_text
from frozenfusion.utils.errors import UsageError
from frozenfusion.utils.messages import shown
from frozenfusion.utils.names import decoded, encoded_names

Array = NDArray[Any]

SPLITS = ("train", "val", "test")
_SPLIT_OF: tuple[str | None, ...] = (*SPLITS, None)  # by its code, -1 for none
_SPLIT_CODE = {split: code for code, split in enumerate(SPLITS)} | {None: -1}
# What begins the addresses of files that are not below the root, of other places, and of those in a file below it; what
# is checked has no such letters.
_ELSEWHERE, _PLACE, _PLACE_BELOW = "\0", "\1", "\2"
_AT_ONCE = 4096  # pairs that are made when all are iterated


@dataclass(frozen=True, slots=True)
class Pair:
    """One image–text pair: its text is read, its image is not and may not be there."""

    id: str
    text: str  # "" when missing or empty
    image: ImagePlace  # where the image is, or should be
    label: int | None  # index into Pairs.label_names
    split: str | None  # "train", "val" or "test" where the files say so


def stored_file(file: Path, root: Path) -> str:
    """A text file as a column holds it: its path below the root, another behind a mark."""
    try:
        return file.relative_to(root).as_posix()
    except ValueError:
        return _ELSEWHERE + file.as_posix()


def file_at(stored: str, root: Path) -> Path:
    """The file that `stored_file` made this of."""
    return Path(stored[1:]) if stored.startswith(_ELSEWHERE) else root / stored


def stored_image(image: ImagePlace, root: Path) -> str:
    """Where an image is as a column holds it: a file as `stored_file` does, else an address behind a mark."""
    if isinstance(image, Path):
        return stored_file(image, root)
    is_below = isinstance(image.file, Path) and image.file.is_relative_to(root)
    return _PLACE_BELOW + image_address(image, root) if is_below else _PLACE + image.address


def image_at(stored: str, root: Path) -> ImagePlace:
    """Where the image is that `stored_image` made this of."""
    if not stored.startswith((_PLACE, _PLACE_BELOW)):
        return file_at(stored, root)
    place = place_of(stored[1:])
    return place if stored.startswith(_PLACE) else below(root, place)


def without_mark(stored: str) -> str:
    """The path or address in what a column holds: relative to the root where it is below it."""
    return stored[1:] if stored.startswith((_ELSEWHERE, _PLACE, _PLACE_BELOW)) else stored


@dataclass(frozen=True, eq=False)
class PairColumns(Sequence[Pair]):
    """Pairs as columns, each of n: what is sliced or taken are columns again, one that is indexed is a `Pair`.

    Attributes:
        root: what the addresses of images and text files are relative to.
        encoded_ids: S, UTF-8.
        addresses: of the images, see stored_image.
        label_codes: int32, -1 where there is no label.
        split_codes: int8, positions in SPLITS, -1 where there is none.
        texts: themselves, "" where they are in files.
        text_files: files that are read when a text is asked for, "" where `texts` has it; None where there are none.
    """

    root: Path
    encoded_ids: Array
    addresses: StringColumn
    label_codes: Array
    split_codes: Array
    texts: TextColumn
    text_files: StringColumn | None = None

    @classmethod
    def of(cls, pairs: Sequence[Pair], root: Path) -> PairColumns:
        """The columns of pairs that are there already, in their order. Raises UsageError for what no pair can have."""
        for pair in pairs:
            if "\0" in pair.id or pair.split not in _SPLIT_CODE:
                raise UsageError(f"a pair {shown(pair.id)} of split {shown(pair.split)}: neither has such a name")
        made = PairsMaker()
        for start in range(0, len(pairs), _AT_ONCE):
            some = pairs[start : start + _AT_ONCE]
            made.extend(
                [pair.id for pair in some],
                [stored_image(pair.image, root) for pair in some],
                [-1 if pair.label is None else pair.label for pair in some],
                [pair.split for pair in some],
                [pair.text for pair in some],
            )
        return made.columns(root)

    def __len__(self) -> int:
        return len(self.encoded_ids)

    @overload
    def __getitem__(self, index: int) -> Pair: ...
    @overload
    def __getitem__(self, index: slice) -> PairColumns: ...
    def __getitem__(self, index: int | slice) -> Pair | PairColumns:
        if isinstance(index, slice):
            return self._each(lambda column: column[index])
        row = range(len(self))[index]
        label, split = self.label_codes[row].item(), self.split_codes[row].item()
        id, text, image = decoded(self.encoded_ids[row]), self.text(row), self.image(row)
        return Pair(id, text, image, None if label < 0 else label, _SPLIT_OF[split])

    def __iter__(self) -> Iterator[Pair]:
        for start in range(0, len(self), _AT_ONCE):
            yield from self.pairs_at(np.arange(start, min(start + _AT_ONCE, len(self))))

    def pairs_at(self, rows: Array) -> Iterator[Pair]:
        """The pairs at some rows, (k,) int64, in that order. Raises UserError for a text that may not be read."""
        ids = map(decoded, self.encoded_ids[rows].tolist())
        images = map(image_at, self.addresses.take(rows).tolist(), repeat(self.root))
        labels, splits = self.label_codes[rows].tolist(), self.split_codes[rows].tolist()
        columns = zip(ids, self.read_texts(rows), images, labels, splits, strict=True)
        for id, text, image, label, split in columns:
            yield Pair(id, text, image, None if label < 0 else label, _SPLIT_OF[split])

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, PairColumns):
            return NotImplemented
        return len(self) == len(other) and all(mine == its for mine, its in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def take(self, rows: Array) -> PairColumns:
        """The pairs at some rows, (k,) int64, in that order."""
        return self._each(lambda column: column.take(rows))

    def ids(self) -> list[str]:
        """All ids as strings."""
        return [decoded(id) for id in self.encoded_ids.tolist()]

    def splits(self) -> list[str | None]:
        """The split that the files name for each pair."""
        return [_SPLIT_OF[code] for code in self.split_codes.tolist()]

    def rows(self, ids: Sequence[str]) -> Array:
        """The position of each id, (k,) int64, -1 where absent."""
        wanted = encoded_names(ids)
        if not len(self):
            return np.full(len(ids), -1)
        places = np.minimum(np.searchsorted(self.encoded_ids, wanted, sorter=self._order), len(self) - 1)
        found = places if self._order is None else self._order[places]
        plain = np.array(["\0" not in id for id in ids], bool)  # NumPy takes no notice of one at the end
        return np.where(plain & (self.encoded_ids[found] == wanted), found, -1)

    @cached_property
    def _order(self) -> Array | None:
        """What sorts the ids; None where they are."""
        if (self.encoded_ids[:-1] <= self.encoded_ids[1:]).all():
            return None
        return np.argsort(self.encoded_ids, kind="stable")

    def image(self, row: int) -> ImagePlace:
        """Where the image of a pair is, or should be."""
        return image_at(self.addresses[row], self.root)

    def text(self, row: int) -> str:
        """The text of a pair, read now if it is in a file. Raises UserError where that may not be read."""
        file = self.text_files[row] if self.text_files is not None else ""
        return read_text(file_at(file, self.root))[0] if file else self.texts[row]

    def read_texts(self, rows: Array) -> list[str]:
        """The texts of some pairs, in that order; faster than one by one. Raises UserError as `text` does."""
        return self.texts.read(rows) if self.text_files is None else [self.text(row) for row in rows.tolist()]

    @property
    def nbytes(self) -> int:
        """What they take."""
        columns = (getattr(self, name) for name in _COLUMNS)
        return sum(column.nbytes for column in columns if column is not None)

    def _each(self, part: Callable[[Any], Any]) -> PairColumns:
        columns = {name: getattr(self, name) for name in _COLUMNS}
        parts: dict[str, Any] = {name: None if of is None else part(of) for name, of in columns.items()}
        return PairColumns(self.root, **parts)


_COLUMNS = tuple(field.name for field in dataclasses.fields(PairColumns) if field.name != "root")


class PairsMaker:
    """Makes PairColumns of pairs that come some at a time."""

    def __init__(self) -> None:
        self.n = 0
        self._ids: list[Array] = []
        self._labels, self._splits = bytearray(), bytearray()  # which grow in place
        self._addresses, self._texts = StringsMaker(), TextsMaker()
        self._files: StringsMaker | None = None

    def extend(
        self,
        ids: Sequence[str],
        addresses: Sequence[str],
        labels: Sequence[int],
        splits: Sequence[str | None],
        texts: Sequence[str],
        text_files: Sequence[str] | None = None,
    ) -> None:
        """Add some pairs at the end; `labels` are codes of any kind, -1 for none."""
        if text_files is not None and self._files is None:
            self._files = StringsMaker()
            self._files.extend([""] * self.n)
        if self._files is not None:
            self._files.extend(text_files or [""] * len(ids))
        self.n += len(ids)
        self._ids.append(encoded_names(ids))
        self._addresses.extend(addresses)
        self._labels += np.fromiter(labels, np.int32, len(ids)).tobytes()
        self._splits += np.fromiter(map(_SPLIT_CODE.__getitem__, splits), np.int8, len(ids)).tobytes()
        self._texts.extend(texts)

    def ids(self) -> Array:
        """The ids of all that were added, (n,) S."""
        self._ids = [np.concatenate(self._ids)] if self._ids else [np.zeros(0, "S1")]
        return self._ids[0]

    def labels(self) -> Array:
        """The codes of all that were added, (n,) int32."""
        return np.frombuffer(self._labels, np.int32)

    def columns(self, root: Path, order: Array | None = None) -> PairColumns:
        """All that were added, or those at the rows of `order`, (k,) int64; the maker is used up.

        Addresses and text files are relative to the root.
        """

        def placed(column: Any) -> Any:
            return column if order is None else column.take(order)

        self.ids()
        return PairColumns(
            root,
            placed(self._ids.pop()),  # each column is given up before the next is made
            placed(self._addresses.column()),
            placed(self.labels()),
            placed(np.frombuffer(self._splits, np.int8)),
            placed(self._texts.column()),
            None if self._files is None else placed(self._files.column()),
        )
