"""Pairs on their way from a list of records, or of rows of a table, to columns in the order of their ids."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frozenfusion.data.columns import TextsMaker
from frozenfusion.data.pair_columns import PairColumns, PairsMaker, file_at, stored_file, stored_image
from frozenfusion.data.records import Record, clean_text, line_count, read_text
from frozenfusion.utils.errors import UserError
from frozenfusion.utils.remote import as_given

SEVERAL_LINES = "several lines"
IN_FILES = "in files that are read when needed"
MOST_FILES = 100_000  # of texts, that are read while the pairs are listed
MAX_PAIRS = 2**28
_AT_ONCE = 4096


class Twice(Exception):
    """An id that comes twice, in the records `first` and `second`, counted from 0."""

    def __init__(self, first: int, second: int) -> None:
        super().__init__(first, second)
        self.first, self.second = first, second


class Listing:
    """Takes pairs as they are listed, some at a time, and makes columns of them; `root` is where their files are."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._made = PairsMaker()
        self._texts: Counter[str] = Counter()  # how they were read
        self._classes = _Codes()

    @property
    def n(self) -> int:
        """How many pairs are listed."""
        return self._made.n

    def add(self, records: Iterable[Record]) -> None:
        """Add pairs that have been checked."""
        records = iter(records)
        while some := list(islice(records, _AT_ONCE)):
            texts = ["" if isinstance(record.text, Path) else clean_text(record.text) for record in some]
            files = [stored_file(record.text, self.root) if isinstance(record.text, Path) else "" for record in some]
            self.extend(
                [record.id for record in some],
                [stored_image(record.image, self.root) for record in some],
                [record.label for record in some],
                [record.split for record in some],
                texts,
                files,
            )

    def extend(
        self,
        ids: Sequence[str],
        addresses: Sequence[str],
        labels: Sequence[str | None],
        splits: Sequence[str | None],
        texts: Sequence[str],
        text_files: Sequence[str],
    ) -> None:
        """Add pairs column by column: checked names, cleaned texts, "" where a text is not in a file."""
        if self._made.n + len(ids) > MAX_PAIRS:
            raise UserError(
                f"{as_given(self.root)}: more than {MAX_PAIRS:,} pairs are listed: cut the list into several"
            )
        codes = [-1 if label is None else self._classes[label] for label in labels]
        has_files = any(text_files)
        in_table = [text for text, file in zip(texts, text_files, strict=True) if not file] if has_files else texts
        self._count(in_table)
        self._made.extend(ids, addresses, codes, splits, texts, text_files if has_files else None)

    def require_some(self) -> None:
        """Raise UserError where nothing is listed."""
        if not self.n:
            raise UserError(f"{as_given(self.root)}: no pairs are listed: check the label files or the manifest")

    def class_counts(self) -> dict[str, int]:
        """How many pairs each class has, in the order in which they came."""
        counts = np.bincount(self._made.labels() + 1, minlength=len(self._classes) + 1)[1:].tolist()
        return dict(zip(self._classes, counts, strict=True))

    def columns(self, label_names: Sequence[str]) -> tuple[PairColumns, dict[str, int]]:
        """All pairs by id, and how their texts were read; labels are positions in `label_names`.

        Raises Twice; UserError for a text that may not be read.
        """
        order = _order(self._made.ids())
        pairs = self._made.columns(self.root, order)
        place = {name: code for code, name in enumerate(label_names)}
        codes = np.array([*map(place.__getitem__, self._classes), -1], dtype=np.int32)
        pairs = dataclasses.replace(pairs, label_codes=codes[pairs.label_codes])  # -1 takes the last
        if pairs.text_files is not None:
            in_files = int(np.count_nonzero(pairs.text_files.lengths))
            if in_files <= MOST_FILES:
                pairs = self._with_read_texts(pairs)
            else:
                self._texts[IN_FILES] = in_files
        told = ("utf-8", "utf-16", "gb18030", "replaced", "empty", "missing", IN_FILES, SEVERAL_LINES)
        return pairs, {name: self._texts[name] for name in told if self._texts[name]}

    def _with_read_texts(self, pairs: PairColumns) -> PairColumns:
        assert pairs.text_files is not None
        made = TextsMaker()
        for start in range(0, len(pairs), _AT_ONCE):
            some = pairs[start : start + _AT_ONCE]
            texts = list(some.texts)
            for row, file in enumerate(some.text_files or ()):
                if file:
                    texts[row], how = read_text(file_at(file, self.root))
                    self._texts[how] += 1
                    self._texts[SEVERAL_LINES] += line_count(texts[row]) > 1
            made.extend(texts)
        return dataclasses.replace(pairs, texts=made.column(), text_files=None)

    def _count(self, texts: Sequence[str]) -> None:
        together = "".join(texts)
        empty = texts.count("")
        replaced = sum("\ufffd" in text for text in texts) if "\ufffd" in together else 0
        self._texts.update({"empty": empty, "replaced": replaced, "utf-8": len(texts) - empty - replaced})
        if "\n" in together or "\r" in together:
            self._texts[SEVERAL_LINES] += sum(line_count(text) > 1 for text in texts)


class _Codes(dict[str, int]):
    """A number for each class, given when it is first asked for."""

    def __missing__(self, name: str) -> int:
        return self.setdefault(name, len(self))


def _order(ids: NDArray[Any]) -> NDArray[np.int64] | None:
    """What sorts ids, (n,) S; None where they are. Raises Twice."""
    if (ids[:-1] < ids[1:]).all():
        return None
    order = np.argsort(ids, kind="stable")
    ids = ids[order]
    same = np.flatnonzero(ids[:-1] == ids[1:])
    if len(same):
        seconds = order[same + 1]
        first = seconds.argmin()
        raise Twice(int(order[same[first]]), int(seconds[first]))
    return order


def tell_of_twice(twice: Twice, records: Iterator[Record]) -> UserError:
    """The error that names both places of an id that comes twice, which are looked up in the records, read again."""
    first = next(islice(records, twice.first, None))
    second = next(islice(records, twice.second - twice.first - 1, None))
    return UserError(f"{second.source}: id {second.id!r} was already given at {first.source}: keep one of them")
