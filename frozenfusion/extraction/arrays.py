"""Features from elsewhere: the rows of a file of arrays, by their ids, into a feature file.

Shapes: k pairs, `shape` what one row is, (d,) or (r, d).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from frozenfusion.data.identity import compare_files, identity_of
from frozenfusion.data.pairs import Pair, Pairs
from frozenfusion.data.places import image_stem
from frozenfusion.extraction.array_files import files_of, read_parts
from frozenfusion.store.command import ARRAYS
from frozenfusion.store.raw_file import Array
from frozenfusion.store.reader import Rows
from frozenfusion.store.status import MISSING, OK, PENDING
from frozenfusion.store.writer import StoreWriter
from frozenfusion.utils.errors import UserError
from frozenfusion.utils.files import writing
from frozenfusion.utils.messages import first_few, shown
from frozenfusion.utils.progress import Progress

FORMAT_VERSION = 1  # of what a row means
HASHED_BYTES = 2**20  # at once


class FeatureArrays:
    """A file of features that another program computed, in the place of a backbone: each row is looked up by its id.

    Args:
        path: a .npz file with ids and features, a .npy file beside its ids, a Parquet file, or a folder of
            clip-retrieval, whose rows are found by the names of the pairs' image files.
        dtype: float32 or float16, of the features as they are stored.

    Raises:
        UserError: it cannot be read, its features are no rows of numbers, or an id comes twice or is missing.
    """

    def __init__(self, path: str | Path, dtype: str = "float32") -> None:
        self.path, self.dtype = Path(path), np.dtype(dtype)
        self._parts, self._by_image = read_parts(self.path), self.path.is_dir()
        self.feature_shape, self._stored = self._parts[0].shape, self._parts[0].dtype
        for part in self._parts:
            if (part.shape, part.dtype) != (self.feature_shape, self._stored):
                raise UserError(
                    f"{part.path}: rows are {part.shape} {part.dtype}, and those of {self._parts[0].path} "
                    f"{self.feature_shape} {self._stored}: give arrays of one network"
                )
        self._row: dict[str, int] = {}
        for row, name in enumerate(id for part in self._parts for id in part.ids):
            if not name:
                raise UserError(f"{self.path}: row {row + 1} has no id: give every row one")
            if self._row.setdefault(name, row) != row:
                raise UserError(
                    f"{self.path}: id {shown(name)} comes twice, in rows {self._row[name] + 1} and {row + 1}: keep one"
                )

    @cached_property
    def fingerprint(self) -> dict[str, str | int]:
        """Everything that the stored numbers depend on."""
        return {
            "backbone": ARRAYS,
            "arrays_sha256": self._sha256(),
            "arrays_shape": " x ".join(map(str, (len(self._row), *self.feature_shape))),
            "arrays_dtype": self._stored.name,
            "dtype": self.dtype.name,
            "format": FORMAT_VERSION,
        }

    def rows(self, pairs: Sequence[Pair]) -> Rows:
        """The row of each pair, (k,) int64; -1 where there is none."""
        names = [image_stem(pair.image) if self._by_image else pair.id for pair in pairs]
        return np.array([self._row.get(name, -1) for name in names], dtype=np.int64)

    def require_rows(self, pairs: Pairs) -> None:
        """Raise UserError unless some of the pairs have a row, and their rows hold numbers that can be stored."""
        rows = self.rows(pairs)
        if (rows < 0).all():
            what = "names of images" if self._by_image else "ids"
            raise UserError(
                f"{self.path}: has a row for none of the {len(pairs):,} pairs of {pairs.source}: its {what} are "
                f"{first_few(list(self._row))}, not {first_few(pairs.ids)}: give each row its pair's id"
            )
        for _ in self.features(np.unique(rows[rows >= 0])):
            pass

    def features(self, rows: Rows) -> Iterator[tuple[Rows, Array]]:
        """The features of sorted `rows`, block by block: which places of `rows`, and theirs, (k, *shape) of `dtype`."""
        first = 0
        for part in self._parts:
            for block in part.blocks():
                begin, end = np.searchsorted(rows, (first, first + len(block)))
                if begin < end:
                    yield np.arange(begin, end), self._storable(block[rows[begin:end] - first], rows[begin:end])
                first += len(block)

    def _storable(self, features: Array, rows: Rows) -> Array:
        with np.errstate(over="ignore", invalid="ignore"):
            stored = features.astype(self.dtype)
        wrong = ~np.isfinite(stored).reshape(len(rows), -1).all(axis=1)
        if wrong.any():
            names = list(self._row)
            told = f"{self.path}: the features of {first_few([names[row] for row in rows[wrong]])}"
            if np.isfinite(features).all():
                raise UserError(f"{told} reach {np.abs(features).max():.3g}, more than {self.dtype} holds: scale them")
            raise UserError(f"{told} are not finite: leave those rows out, and the pairs count as without an image")
        return stored

    def _sha256(self) -> str:
        """Of the file; of several, of the lines that sha256sum would print."""
        sums = {}
        for path in files_of(self.path):
            code = hashlib.sha256()
            with writing(path), path.open("rb") as file:
                while chunk := file.read(HASHED_BYTES):
                    code.update(chunk)
            sums[path.name] = code.hexdigest()
        if len(sums) == 1:
            return next(iter(sums.values()))
        return hashlib.sha256("".join(f"{code}  {name}\n" for name, code in sums.items()).encode()).hexdigest()


def reset_replaced(writer: StoreWriter, pairs: Pairs, arrays: FeatureArrays, *, update: bool) -> None:
    """Look whether the images are those that were there when their rows were taken; with `update`, take those again.

    Raises UserError, and changes nothing, where others are there and `update` does not say that the arrays are theirs.
    """
    rows = writer.store.rows(pairs.columns.encoded_ids)
    settled = (rows >= 0) & (writer.store.status[rows] != PENDING)
    found = compare_files(writer.store, np.where(settled, rows, -1), pairs.columns.image, every=update)
    usable = writer.store.status[rows[found.changed]] == OK
    others = [pairs[place].id for place in found.changed[usable].tolist()]
    if others and not update:
        raise UserError(
            f"{writer.path}: {len(others):,} of {found.there:,} images of {pairs.source} are not those that were there "
            f"when their rows were taken from {arrays.path} ({first_few(others)}): if its features are of the images "
            "that are there now, `update=True` says so; if not, give a file of theirs with `rebuild=True`"
        )
    if len(found.same):
        writer.set_stat(rows[found.same], found.stats)
    if len(found.changed):
        writer.reset(rows[found.changed])


def import_rows(writer: StoreWriter, pairs: Pairs, places: Rows, arrays: FeatureArrays, reasons: dict[str, str]) -> int:
    """Put the features of the pairs at `places` into their pending rows; how many there were.

    A pair that the arrays lack counts as without an image. With each row goes what tells its image file from another,
    where there is one.
    """
    places = places[np.argsort(arrays.rows([pairs[place] for place in places.tolist()]), kind="stable")]
    members = [pairs[place] for place in places.tolist()]
    found, rows = arrays.rows(members), writer.store.rows([pair.id for pair in members])
    lacking = int(np.searchsorted(found, 0))
    with Progress(len(members), "row", "importing") as progress:
        for place in range(lacking):
            reasons[members[place].id] = f"not in {arrays.path}"
            digest, stat = identity_of(members[place].image)
            writer.mark(rows[[place]], MISSING, [digest], [stat])
            progress.update()
        for block, features in arrays.features(found[lacking:]):
            known = [identity_of(members[lacking + place].image) for place in block.tolist()]
            writer.write(rows[lacking + block], features, [digest for digest, _ in known], [stat for _, stat in known])
            progress.update(len(block))
    writer.commit()
    return len(members) - lacking
