"""Image–text pairs: every input layout read into one ordered sequence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import overload

import numpy as np
from numpy.typing import NDArray

from frozenfusion.data.folders import LAYOUT_FILES, read_folder
from frozenfusion.data.layouts import Found, find_rows
from frozenfusion.data.links import check_inside, without_links
from frozenfusion.data.listing import Listing, Twice, tell_of_twice
from frozenfusion.data.manifests import label_names, list_rows, read_rows, tell_of_labels
from frozenfusion.data.pair_columns import Pair as Pair
from frozenfusion.data.pair_columns import PairColumns
from frozenfusion.data.records import COLUMNS, SENTIMENTS, checked_columns
from frozenfusion.store.command import DataSource
from frozenfusion.utils.errors import UsageError, UserError
from frozenfusion.utils.files import reading
from frozenfusion.utils.messages import printable, some_of
from frozenfusion.utils.remote import address_of


@dataclass(frozen=True)
class Pairs(Sequence[Pair]):
    """The pairs of one data set, in the order of their ids (code points), each id once.

    Args:
        path: the folder or manifest that they were read from.
        layout: "reference", "mvsa", "course", "manifest", "table", "webdataset" or "unlabelled".
        label_names: the classes; labels are positions in it.
        pairs: themselves; they are kept as columns, whatever sequence is given.
        text_counts: how the texts were read: "utf-8", "utf-16", "gb18030", "replaced", "empty" and "missing" add up to
            all pairs, "several lines" is beside them.
        dropped: pairs that were left out, by reason.
        flags: what a command line needs beside the path to read them so again.
        unread: what columns a manifest or table has that mean nothing here.
    """

    path: Path
    layout: str
    label_names: tuple[str, ...]
    pairs: Sequence[Pair] = field(repr=False)
    text_counts: dict[str, int]
    dropped: dict[str, int]
    flags: tuple[str, ...] = ()
    unread: tuple[str, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.pairs, PairColumns):
            root = self.path if self.path.is_dir() else self.path.parent
            object.__setattr__(self, "pairs", PairColumns.of(self.pairs, root))

    @property
    def source(self) -> DataSource:
        """What they were read from, for messages and the commands in them."""
        return DataSource(self.path, self.flags)

    @property
    def columns(self) -> PairColumns:
        """The pairs column by column, which is what takes little memory for millions."""
        assert isinstance(self.pairs, PairColumns)
        return self.pairs

    def __len__(self) -> int:
        return len(self.pairs)

    @overload
    def __getitem__(self, index: int) -> Pair: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Pair, ...]: ...
    def __getitem__(self, index: int | slice) -> Pair | tuple[Pair, ...]:
        return tuple(self.pairs[index]) if isinstance(index, slice) else self.pairs[index]

    def __iter__(self) -> Iterator[Pair]:
        return iter(self.pairs)

    @cached_property
    def ids(self) -> list[str]:
        """The ids, sorted."""
        return self.columns.ids()

    @cached_property
    def labels(self) -> NDArray[np.int64]:
        """The labels, int64 of shape (n,), -1 where there is none."""
        return self.columns.label_codes.astype(np.int64)

    def rows(self, ids: Iterable[str]) -> NDArray[np.int64]:
        """The positions of `ids`, int64, -1 where absent."""
        return self.columns.rows(list(ids))

    def part(self, rows: slice) -> Pairs:
        """The pairs at some positions, as a data set of their own."""
        return replace(self, pairs=self.pairs[rows], text_counts={}, dropped={})

    def subset(self, ids: Iterable[str]) -> Pairs:
        """These pairs alone, as a data set of their own. Raises KeyError for an id that is not here."""
        kept = self.columns.take(np.unique(self._rows(ids)))
        return replace(self, pairs=kept, text_counts={}, dropped={})

    def select(self, ids: Iterable[str]) -> list[Pair]:
        """The pairs called `ids`, in that order. Raises KeyError for one that is not here."""
        return list(self.columns.pairs_at(self._rows(ids)))

    def _rows(self, ids: Iterable[str]) -> NDArray[np.int64]:
        ids = list(ids)
        rows = self.rows(ids)
        if (rows < 0).any():
            raise KeyError(ids[int(rows.argmin())])
        return rows

    def summary(self) -> str:
        """What was found, in one line for a person."""
        labels = np.bincount(self.columns.label_codes + 1, minlength=len(self.label_names) + 1)
        classes = dict(zip(self.label_names, labels[1:].tolist(), strict=True))
        labelled = [*filter(None, (_counts(classes), _counts({"unlabelled": int(labels[0])})))]
        told = [f"{len(self):,} pairs ({self.layout} layout)", ", ".join(labelled)]
        told.append(f"texts: {_counts(self.text_counts)}")
        if self.dropped:
            told.append(f"left out: {_counts(self.dropped)}")
        return "; ".join(told)


def _counts(counts: dict[str, int]) -> str:
    return some_of([f"{count:,} {printable(name)}" for name, count in counts.items() if count])


def load_pairs(
    path: str | Path, *, follow_links: bool = True, remote: bool = False, columns: Mapping[str, str] | None = None
) -> Pairs:
    """Read a folder or manifest of image–text pairs; its layout is recognised by what is there.

    Texts are read, images are not opened.

    Args:
        path: a folder (the reference's layout, MVSA's, the course's, or images with texts), or a manifest (.csv, .tsv,
            .jsonl, .parquet), tables or tars that hold the images, or the address of such data: docs/data.md.
        follow_links: False, for data of strangers, takes a text or image that a link leads out of the folder (the
            manifest's folder) as missing.
        remote: let a manifest name images anywhere in object stores, not only below its own folder.
        columns: what a manifest or table calls columns that it names otherwise, as in {"text": "caption"}.

    Raises:
        UserError: an unknown layout or label, an id that comes twice or is no plain name, a path that leaves the data
            folder, a malformed line; each with its file and line. Without links, a label file that is one.
    """
    path, columns = Path(path), checked_columns(columns or {})
    source = DataSource.of(path, follow_links=follow_links, remote=remote, columns=columns)
    with reading(path):  # a name that no file system has
        is_there, found = path.exists(), find_rows(path, columns, follow_links=follow_links)
    if found is not None:
        return _of_rows(source, found, columns, follow_links=follow_links, remote=remote)
    if not is_there:
        raise UserError(f"{path}: no such folder or manifest: check the path")
    return _of_folder(source, follow_links=follow_links)


def _of_folder(source: DataSource, *, follow_links: bool) -> Pairs:
    path = source.path
    if not follow_links:
        check_inside(path, LAYOUT_FILES)
    layout, records, dropped = read_folder(path)
    listing = Listing(path)
    listing.add(records if follow_links else without_links(path, records))
    listing.require_some()
    return Pairs(path, layout, SENTIMENTS, *listing.columns(SENTIMENTS), dropped, source.flags)


def _of_rows(
    source: DataSource, found: Found, columns: Mapping[str, str], *, follow_links: bool, remote: bool
) -> Pairs:
    layout, rows, folder = found
    first = [*islice(rows, 1)]
    unread = tuple(name for _, row in first for name in row if name and name not in COLUMNS)
    rows = chain(first, rows)
    listing, empty = Listing(folder), Counter[str]()  # labels that stand for none
    if follow_links or address_of(folder) is not None:
        list_rows(rows, folder, listing, empty, remote=remote)
    else:
        listing.add(without_links(folder, read_rows(rows, folder, empty, remote=remote)))
    listing.require_some()
    classes = listing.class_counts()
    names = label_names(classes)
    try:
        listed, text_counts = listing.columns(names)
    except Twice as twice:
        _, again, _ = find_rows(source.path, columns, follow_links=follow_links) or found
        raise tell_of_twice(twice, read_rows(again, folder, empty, remote=remote)) from None
    tell_of_labels(source, empty, classes)
    return Pairs(source.path, layout, names, listed, text_counts, {}, source.flags, unread)


def require_pairs(pairs: object) -> None:
    """Raise UsageError for what is not all of a data set, as load_pairs returns it."""
    if not isinstance(pairs, Pairs):
        raise UsageError(
            f"`pairs` must be what load_pairs returned, not {type(pairs).__name__}: a part of them is pairs.subset(ids)"
        )
