"""Image–text pairs: every input layout read into one ordered sequence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import overload

import numpy as np
from numpy.typing import NDArray

from frozenfusion.data.folders import LAYOUT_FILES, read_folder
from frozenfusion.data.layouts import find_rows
from frozenfusion.data.links import check_inside, without_links
from frozenfusion.data.manifests import read_manifest, read_rows
from frozenfusion.data.places import ImagePlace
from frozenfusion.data.records import SENTIMENTS, Record, checked_columns, line_count, read_text
from frozenfusion.utils.errors import UsageError, UserError
from frozenfusion.utils.files import writing
from frozenfusion.utils.messages import printable
from frozenfusion.utils.remote import address_of

SEVERAL_LINES = "several lines"


@dataclass(frozen=True, slots=True)
class Pair:
    """One image–text pair: its text is read, its image is not and may not be there."""

    id: str
    text: str  # "" when missing or empty
    image: ImagePlace  # where the image is, or should be
    label: int | None  # index into Pairs.label_names
    split: str | None  # "train", "val" or "test" where the files say so


@dataclass(frozen=True)
class Pairs(Sequence[Pair]):
    """The pairs of one data set, in the order of their ids (code points), each id once.

    Args:
        path: the folder or manifest that they were read from.
        layout: "reference", "mvsa", "course", "manifest", "table", "webdataset" or "unlabelled".
        label_names: the classes; labels are positions in it.
        pairs: themselves.
        text_counts: how the texts were read: "utf-8", "utf-16", "gb18030", "replaced", "empty" and "missing" add up to
            all pairs, "several lines" is beside them.
        dropped: pairs that were left out, by reason.
    """

    path: Path
    layout: str
    label_names: tuple[str, ...]
    pairs: tuple[Pair, ...] = field(repr=False)
    text_counts: dict[str, int]
    dropped: dict[str, int]

    def __len__(self) -> int:
        return len(self.pairs)

    @overload
    def __getitem__(self, index: int) -> Pair: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Pair, ...]: ...
    def __getitem__(self, index: int | slice) -> Pair | tuple[Pair, ...]:
        return self.pairs[index]

    @cached_property
    def ids(self) -> list[str]:
        """The ids, sorted."""
        return [pair.id for pair in self.pairs]

    @cached_property
    def labels(self) -> NDArray[np.int64]:
        """The labels, int64 of shape (n,), -1 where there is none."""
        return np.array([-1 if pair.label is None else pair.label for pair in self.pairs], dtype=np.int64)

    def rows(self, ids: Iterable[str]) -> NDArray[np.int64]:
        """The positions of `ids`, int64, -1 where absent."""
        return np.array([self._position.get(id, -1) for id in ids], dtype=np.int64)

    def subset(self, ids: Iterable[str]) -> Pairs:
        """These pairs alone, as a data set of their own. Raises KeyError for an id that is not here."""
        chosen = {pair.id for pair in self.select(ids)}
        kept = tuple(pair for pair in self.pairs if pair.id in chosen)
        return Pairs(self.path, self.layout, self.label_names, kept, {}, {})

    def select(self, ids: Iterable[str]) -> list[Pair]:
        """The pairs called `ids`, in that order. Raises KeyError for one that is not here."""
        return [self.pairs[self._position[id]] for id in ids]

    @cached_property
    def _position(self) -> dict[str, int]:
        return {pair.id: position for position, pair in enumerate(self.pairs)}

    def summary(self) -> str:
        """What was found, in one line for a person."""
        labels = np.bincount(self.labels + 1, minlength=len(self.label_names) + 1)
        classes = dict(zip((*self.label_names, "unlabelled"), (*labels[1:], labels[0]), strict=True))
        told = [f"{len(self):,} pairs ({self.layout} layout)", _counts(classes)]
        told.append(f"texts: {_counts(self.text_counts)}")
        if self.dropped:
            told.append(f"left out: {_counts(self.dropped)}")
        return "; ".join(told)


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {printable(name)}" for name, count in counts.items() if count)


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
    with writing(path):  # a name that no file system has
        is_folder, is_there = path.is_dir(), path.exists()
        elsewhere = find_rows(path, columns, follow_links=follow_links)
    if not is_there and elsewhere is None:
        raise UserError(f"{path}: no such folder or manifest: check the path")
    names: tuple[str, ...] = SENTIMENTS
    folder = path if is_folder else path.parent
    dropped: dict[str, int] = {}
    if elsewhere is not None:
        layout, rows, folder = elsewhere
        records, names = read_rows(rows, path, folder, remote=remote)
    elif is_folder:
        if not follow_links:
            check_inside(path, LAYOUT_FILES)
        layout, records, dropped = read_folder(path)
    else:
        records, names = read_manifest(path, columns, remote=remote)
        layout = "manifest"
    if not follow_links and address_of(folder) is None:
        records = without_links(folder, records)
    return _assemble(path, layout, names, records, dropped)


def require_pairs(pairs: object) -> None:
    """Raise UsageError for what is not all of a data set, as load_pairs returns it."""
    if not isinstance(pairs, Pairs):
        raise UsageError(
            f"`pairs` must be what load_pairs returned, not {type(pairs).__name__}: a part of them is pairs.subset(ids)"
        )


def _assemble(path: Path, layout: str, names: tuple[str, ...], records: list[Record], dropped: dict[str, int]) -> Pairs:
    if not records:
        raise UserError(f"{path}: no pairs are listed: check the label files or the manifest")
    index = {name: label for label, name in enumerate(names)}
    found: Counter[str] = Counter()
    pairs = []
    for record in records:
        text, how = read_text(record.text) if isinstance(record.text, Path) else clean_text(record.text)
        found[how] += 1
        found[SEVERAL_LINES] += line_count(text) > 1
        label = None if record.label is None else index[record.label]
        pairs.append(Pair(record.id, text, record.image, label, record.split))
    order = ("utf-8", "utf-16", "gb18030", "replaced", "empty", "missing", SEVERAL_LINES)
    counts = {name: found[name] for name in order if found[name]}
    return Pairs(path, layout, names, tuple(pairs), counts, dropped)


def clean_text(text: str) -> tuple[str, str]:
    """A text that is a string already, cleaned as texts of files are, and how it was read: see read_text."""
    whole = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # JSON can hold halves of characters
    text = whole.strip()
    if not text:
        return "", "empty"
    return text, "utf-8" if "\ufffd" not in text else "replaced"
