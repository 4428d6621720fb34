"""Reading a store: arrays over the mapped file, look-up by id, checks."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from frozenfusion.store.command import extraction_command
from frozenfusion.store.entries import entry_checks
from frozenfusion.store.hdf5 import MEND, Scalar
from frozenfusion.store.mapped import MappedFile
from frozenfusion.store.plan import is_sharded
from frozenfusion.store.raw_file import Array, byte_count
from frozenfusion.store.shards import MappedShards
from frozenfusion.store.status import OK, PENDING, STATUS_NAMES
from frozenfusion.utils.errors import UsageError, UserError
from frozenfusion.utils.messages import first_few, printable
from frozenfusion.utils.names import are_encoded, decoded, encoded_names

MAX_ID_BYTES = 1024
CHUNK_BYTES = 2**22
_NAMES_AT_ONCE = 2**16
_ENTRIES_AT_ONCE = 2**18

Rows = npt.NDArray[np.int64]


class FeatureStore:
    """A feature file opened for reading: arrays over the mapped file, without an HDF5 handle or a lock.

    The arrays are read-only, and live while a writer commits. A store pickles, forks and spawns. A folder of shards
    is one store as well: shards that are not there yet are pending rows, and what is there is what was when it was
    opened. Its columns but ids and status are copied from the shards when they are indexed.

    Args:
        path: the file, or the folder of shards.

    Attributes:
        ids: (n,) S, sorted UTF-8.
        features: (n, *shape) float32 or float16; a row counts only where its status is ok.
        status: (n,) uint8, see frozenfusion.store.status.
        digest: (n, 16) uint8, of the image file's bytes.
        stat: (n, 2) int64, size in bytes and modification time in ns of the image file.
        crc32: (n,) uint32, of the row's bytes.
        check: (n,) uint64, of the four above, see frozenfusion.store.entries; None in a file of version 0.1.
        fingerprint: everything that the features depend on.
        attributes: who made them, and when.

    Raises:
        UserError: the file is missing, damaged, or not a store of this format.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._mapped = MappedShards(self.path) if is_sharded(self.path) else MappedFile(self.path)
        layout, arrays = self._mapped.layout, self._mapped.arrays
        self.spans, self.fingerprint, self.attributes = layout.spans, layout.fingerprint, layout.attributes
        self.ids, self.features, self.status = arrays["ids"], arrays["features"], arrays["status"]
        self.digest, self.stat, self.crc32 = arrays["digest"], arrays["stat"], arrays["crc32"]
        self.check = arrays.get("check")
        self.n = len(self.ids)
        self.shape: tuple[int, ...] = self.features.shape[1:]
        self.dtype: np.dtype[Any] = self.features.dtype
        self._ids_crc32 = layout.ids_crc32
        sound = zlib.crc32(self.ids.data) == layout.ids_crc32 and (self.ids[:-1] < self.ids[1:]).all()
        if not sound or self.status.max() >= len(STATUS_NAMES):
            raise UserError(f"{path}: its ids or statuses are damaged: {MEND}")

    def __repr__(self) -> str:
        return f"FeatureStore({str(self.path)!r}, {self.n:,} rows of {self.shape} {self.dtype})"

    def close(self) -> None:
        """Let go of the file, which Windows replaces only when nobody has it open. The arrays are gone then."""
        for name in ("ids", "features", "status", "digest", "stat", "crc32", "check"):
            vars(self).pop(name, None)
        self._mapped.close()

    def rows(self, ids: Sequence[str] | Array) -> Rows:
        """The row of each id, (k,) int64; -1 where the store has no such id. An array of S has them as a store has."""
        wanted = encoded_names(ids)
        if np.array_equal(wanted, self.ids):
            rows = np.arange(self.n)
        else:
            rows = np.minimum(np.searchsorted(self.ids, wanted), self.n - 1)
        found = self.ids[rows] == wanted
        if not are_encoded(ids):
            found &= np.fromiter((not name.endswith("\0") for name in ids), bool, len(ids))  # NumPy ignores those
        return np.where(found, rows, -1).astype(np.int64)

    def require_rows(self, ids: Sequence[str] | Array, data: str | os.PathLike[str] = "DATA") -> Rows:
        """The row of each id, (k,) int64. Raises UserError, with the command for `data`, unless all are computed."""
        rows = self.rows(ids)
        self.require_sound_entries(rows[rows >= 0])
        lacking = {"lacks {}": rows < 0, "has not computed {} yet": (rows >= 0) & (self.status[rows] == PENDING)}
        for told, where in lacking.items():
            if where.any():
                places = np.flatnonzero(where)
                some = _decoded(ids[places] if are_encoded(ids) else [ids[place] for place in places.tolist()])
                which = f"{len(some):,} of the {len(ids):,} pairs that are needed ({first_few(some)})"
                raise UserError(f"{self.path}: {told.format(which)}: add them with {self.command(data)}")
        return rows

    def command(self, data: str | os.PathLike[str] = "DATA", *flags: str) -> str:
        """The command that brings the file up to date for `data`, with the options that made it."""
        return extraction_command(data, self.path, self.fingerprint, self.attributes.get("weights", ""), *flags)

    def names(self, rows: npt.ArrayLike | None = None) -> list[str]:
        """The ids of `rows`, by default of all, as str."""
        ids = self.ids if rows is None else self.ids[np.asarray(rows, dtype=np.int64)]
        return [code.decode(errors="replace") for code in ids.tolist()]

    def gather(self, rows: npt.ArrayLike, out: Array | None = None) -> Array:
        """Copy the features of `rows`, in any order, (k, *shape); into `out` if given. Does not look at status."""
        rows = np.asarray(rows, dtype=np.int64)
        if np.maximum.reduce(rows.view(np.uint64), axis=None, initial=0) >= self.n:  # a negative row is a huge one
            raise IndexError(f"{self.path}: rows go from 0 to {self.n - 1}, not {rows.min()} to {rows.max()}")
        taken: Array = self.features.take(rows, axis=0, out=out, mode="clip")
        return taken  # "raise" would copy through a buffer

    def will_need(self, rows: Rows) -> None:
        """Have the features of `rows` read from the disk meanwhile, where the system can be asked to (not Windows)."""
        self._mapped.will_need(rows)

    def let_go(self, rows: Rows) -> None:
        """Unmap what was read from the first to the last of `rows`: it no longer counts as this process's memory."""
        if len(rows):
            self._mapped.let_go(rows)

    def counts(self) -> dict[str, int]:
        """How many rows have each status, by its name."""
        counted = np.bincount(self.status, minlength=len(STATUS_NAMES))
        return {name: int(counted[status]) for status, name in STATUS_NAMES.items()}

    @property
    def finished(self) -> bool:
        """Whether no row is pending."""
        return bool((self.status != PENDING).all())

    def require_fingerprint(self, expected: Mapping[str, Scalar]) -> None:
        """Raise UserError, naming each part that differs, unless the features were computed as `expected` says."""
        changes = self.differences(expected)
        if changes:
            raise UserError(
                f"{self.path}: computed otherwise than now asked for ({changes}):"
                " choose another file, or make it anew with `rebuild=True`"
            )

    def differences(self, expected: Mapping[str, Scalar]) -> str:
        """How the fingerprint differs from `expected`, part by part, this one's → that one's; empty if it does not."""
        here, wanted, nothing = self.fingerprint, json.loads(json.dumps(dict(expected))), "not set"
        return "; ".join(
            f"{printable(part)} {printable(here.get(part, nothing))} → {printable(wanted.get(part, nothing))}"
            for part in sorted(wanted.keys() | self.fingerprint.keys())
            if part not in wanted or part not in self.fingerprint or wanted[part] != self.fingerprint[part]
        )

    def require_sound_entries(self, rows: Rows | None = None) -> None:
        """Raise UserError, naming them, if what is kept of some of `rows`, by default of all, no longer matches."""
        damaged = self._damaged_entries(np.arange(self.n) if rows is None else rows)
        if len(damaged):
            raise UserError(
                f"{self.path}: what it keeps of {first_few(self.names(damaged))} beside the features is damaged: {MEND}"
            )

    def _damaged_entries(self, rows: Rows) -> Rows:
        if self.check is None:
            return rows[:0]
        parts = [rows[:0]]
        for start in range(0, len(rows), _ENTRIES_AT_ONCE):
            some = rows[start : start + _ENTRIES_AT_ONCE]
            for _ in range(2):  # a row that a writer takes back meanwhile is found pending at the second look
                status = self.status[some]
                checks = entry_checks(status, self.crc32[some], self.digest[some], self.stat[some])
                some = some[(status != PENDING) & (checks != self.check[some])]
            parts.append(some)
        return np.concatenate(parts)

    def damaged_rows(self, on_rows: Callable[[int], object] = lambda count: None) -> Rows:
        """The rows that do not match their checksums, or are not finite, (k,) int64; memory does not grow with n.

        `on_rows` is called with the number of ok rows checked since the last call.
        """
        damaged = self._damaged_entries(np.arange(self.n)).tolist()
        for rows in self.in_chunks(np.flatnonzero(self.status == OK)):
            damaged += self._damaged(rows)
            on_rows(len(rows))
        return np.unique(np.array(damaged, dtype=np.int64))

    def require_undamaged(self, rows: Rows) -> None:
        """Raise UserError, naming them, if the bytes of some of `rows`, all of them ok, no longer match."""
        damaged = self._damaged(rows)
        if damaged:
            raise UserError(
                f"{self.path}: the rows of {first_few(self.names(damaged))} are damaged or not finite: {MEND}"
            )

    def _damaged(self, rows: Rows) -> list[int]:
        return [
            row
            for row, features, crc32 in zip(rows.tolist(), self.gather(rows), self.crc32[rows].tolist(), strict=True)
            if zlib.crc32(features) != crc32 or not np.isfinite(features).all()
        ]

    def in_chunks(self, rows: Rows) -> Iterator[Rows]:
        """Parts of `rows` whose features fit in a few megabytes each, letting go of what was mapped for one before."""
        size = max(1, CHUNK_BYTES // byte_count(self.shape, self.dtype))
        for start in range(0, len(rows), size):
            yield rows[start : start + size]
            self.let_go(rows[start : start + size])

    def __reduce__(self) -> tuple[Callable[..., FeatureStore], tuple[Path, int]]:
        return _reopen, (self.path, self._ids_crc32)


def as_store(features: FeatureStore | str | os.PathLike[str]) -> FeatureStore:
    """A store, or the one at a path. Raises UserError where there is none."""
    if isinstance(features, FeatureStore):
        return features
    if not isinstance(features, str | os.PathLike):
        raise UsageError(f"`features` is a feature file, or what extract returned, not {features!r}")
    return FeatureStore(features)


def encode_ids(ids: Sequence[str] | Array) -> Array:
    """Row names as sorted fixed-length UTF-8, (n,) S; an array of S has them so, maybe longer than the longest.

    Raises UserError for names that cannot be a store's.
    """
    if not len(ids):
        raise UserError("a feature store needs at least one id: check that the data has any pairs")
    for start in range(0, len(ids), _NAMES_AT_ONCE):
        for name in _decoded(ids[start : start + _NAMES_AT_ONCE]):
            try:
                code = name.encode()
            except UnicodeEncodeError as error:
                raise UserError(f"id {name!r} is not valid text: rename it") from error
            if not 0 < len(code) <= MAX_ID_BYTES or b"\0" in code:
                raise UserError(f"id {name[:40]!r} is empty, over {MAX_ID_BYTES} bytes or has a NUL in it: rename it")
    array = ids.astype(f"S{np.char.str_len(ids).max()}") if are_encoded(ids) else encoded_names(ids)
    wrong = np.flatnonzero(array[:-1] >= array[1:])
    if wrong.size:
        first, second = _decoded(ids[int(wrong[0]) : int(wrong[0]) + 2])
        raise UserError(f"ids must be sorted and each occur once, but {first!r} comes before {second!r}: mend the ids")
    return array


def _decoded(names: Sequence[str] | Array) -> Sequence[str]:
    return [*map(decoded, names.tolist())] if are_encoded(names) else list(names)


def _reopen(path: Path, ids_crc32: int) -> FeatureStore:
    store = FeatureStore(path)
    if store._ids_crc32 != ids_crc32:  # row numbers kept beside the pickle would mean other rows
        raise UserError(f"{path}: was extended or replaced while it was in use: run the same command again")
    return store
