"""Image–text pairs: every input layout read into one ordered sequence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import overload

import numpy as np
from numpy.typing import NDArray

from frozenfusion.data.folders import LAYOUT_FILES, read_folder
from frozenfusion.data.links import check_inside, without_links
from frozenfusion.data.listing import Listing, Twice, tell_of_twice
from frozenfusion.data.manifests import label_names, list_manifest, read_manifest, tell_of_labels
from frozenfusion.data.pair_columns import Pair as Pair
from frozenfusion.data.pair_columns import PairColumns
from frozenfusion.data.records import SENTIMENTS
from frozenfusion.utils.errors import UsageError, UserError
from frozenfusion.utils.files import writing
from frozenfusion.utils.messages import printable


@dataclass(frozen=True)
class Pairs(Sequence[Pair]):
    """The pairs of one data set, in the order of their ids (code points), each id once.

    Args:
        path: the folder or manifest that they were read from.
        layout: "reference", "mvsa", "course", "manifest" or "unlabelled".
        label_names: the classes; labels are positions in it.
        pairs: themselves; they are kept as columns, whatever sequence is given.
        text_counts: how the texts were read: "utf-8", "utf-16", "gb18030", "replaced", "empty" and "missing" add up to
            all pairs, "several lines" is beside them.
        dropped: pairs that were left out, by reason.
    """

    path: Path
    layout: str
    label_names: tuple[str, ...]
    pairs: Sequence[Pair] = field(repr=False)
    text_counts: dict[str, int]
    dropped: dict[str, int]

    def __post_init__(self) -> None:
        if not isinstance(self.pairs, PairColumns):
            root = self.path if self.path.is_dir() else self.path.parent
            object.__setattr__(self, "pairs", PairColumns.of(self.pairs, root))

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
        return Pairs(self.path, self.layout, self.label_names, self.pairs[rows], {}, {})

    def subset(self, ids: Iterable[str]) -> Pairs:
        """These pairs alone, as a data set of their own. Raises KeyError for an id that is not here."""
        kept = self.columns.take(np.unique(self._rows(ids)))
        return Pairs(self.path, self.layout, self.label_names, kept, {}, {})

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
        classes = dict(zip((*self.label_names, "unlabelled"), (*labels[1:], labels[0]), strict=True))
        told = [f"{len(self):,} pairs ({self.layout} layout)", _counts(classes)]
        told.append(f"texts: {_counts(self.text_counts)}")
        if self.dropped:
            told.append(f"left out: {_counts(self.dropped)}")
        return "; ".join(told)


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {printable(name)}" for name, count in counts.items() if count)


def load_pairs(path: str | Path, *, follow_links: bool = True) -> Pairs:
    """Read a folder or manifest of image–text pairs; its layout is recognised by what is there.

    Texts are read, images are not opened.

    Args:
        path: a folder (the reference's layout, MVSA's, the course's, or images with texts), or a manifest (.csv, .tsv,
            .jsonl, .parquet): docs/data.md.
        follow_links: False, for data of strangers, takes a text or image that a link leads out of the folder (the
            manifest's folder) as missing.

    Raises:
        UserError: an unknown layout or label, an id that comes twice or is no plain name, a path that leaves the data
            folder, a malformed line; each with its file and line. Without links, a label file that is one.
    """
    path = Path(path)
    with writing(path):  # a name that no file system has
        is_folder, is_there = path.is_dir(), path.exists()
    if not is_there:
        raise UserError(f"{path}: no such folder or manifest: check the path")
    listing = Listing(path if is_folder else path.parent)
    empty: Counter[str] = Counter()  # labels that stand for none
    if is_folder:
        if not follow_links:
            check_inside(path, LAYOUT_FILES)
        layout, records, dropped = read_folder(path)
        listing.add(records if follow_links else without_links(path, records))
    else:
        layout, dropped = "manifest", {}
        if follow_links:
            list_manifest(path, listing, empty)
        else:
            listing.add(without_links(path.parent, read_manifest(path, empty)))
    if not listing.n:
        raise UserError(f"{path}: no pairs are listed: check the label files or the manifest")
    classes = listing.class_counts()
    names = SENTIMENTS if is_folder else label_names(classes)
    try:
        columns, text_counts = listing.columns(names)
    except Twice as twice:
        raise tell_of_twice(twice, read_manifest(path, empty)) from None
    if not is_folder:
        tell_of_labels(path, empty, classes)
    return Pairs(path, layout, names, columns, text_counts, dropped)


def require_pairs(pairs: object) -> None:
    """Raise UsageError for what is not all of a data set, as load_pairs returns it."""
    if not isinstance(pairs, Pairs):
        raise UsageError(
            f"`pairs` must be what load_pairs returned, not {type(pairs).__name__}: a part of them is pairs.subset(ids)"
        )
