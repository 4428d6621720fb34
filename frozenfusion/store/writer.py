"""Writing a store: rows at their offsets, commits, files that grow and files made anew.

One row per id; a row is trusted only at status ok. cache/README.md describes the file. Shapes: n rows of a store,
k rows of a call, `shape` what one row is, (d,) or (r, d).
"""

from __future__ import annotations

import os
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt

from frozenfusion.store.entries import entry_checks
from frozenfusion.store.hdf5 import Scalar, create_file, require_own
from frozenfusion.store.making import continues, copy_rows, make_store, rebuild_path
from frozenfusion.store.raw_file import Array, RowFile, open_regular
from frozenfusion.store.reader import FeatureStore, Rows, encode_ids
from frozenfusion.store.status import DIGEST_BYTES, OK, PENDING, STATUS_NAMES
from frozenfusion.utils.errors import UserError
from frozenfusion.utils.files import sweep, sync_folder, temporary_beside, writing
from frozenfusion.utils.interrupts import held_back
from frozenfusion.utils.locks import WriterLock
from frozenfusion.utils.names import are_encoded
from frozenfusion.utils.progress import log

SECONDS_BETWEEN_COMMITS = 1.0


class StoreWriter:
    """The one writer of a store: holds its lock, writes rows at their offsets, and commits about once per second.

    A commit writes a row's features, checksums, digest and stat, waits until they are on the disk, and only then
    sets the status. So whenever the process is killed, and if the power fails, every row at status ok is right.
    Use as a context manager, from one thread; leaving it commits. `store` reads what has been committed.
    Raises UserError if another writer is at work and where the disk refuses.
    """

    def __init__(self, path: Path, file_path: Path, lock: WriterLock) -> None:
        """Not to be called: see `create`, `open`, `extend` and `rebuild`."""
        self.path, self._file_path, self._lock = path, file_path, lock
        self._uncommitted: list[tuple[Rows, Array]] = []
        self._next_commit = time.monotonic() + SECONDS_BETWEEN_COMMITS
        self._opened: RowFile | None = None
        self.store = FeatureStore(file_path)

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        ids: Sequence[str] | Array,
        shape: tuple[int, ...],
        dtype: npt.DTypeLike,
        fingerprint: Mapping[str, Scalar],
        attributes: Mapping[str, Scalar] | None = None,
    ) -> StoreWriter:
        """Make a store of pending rows and open it. `ids` are sorted and unique; dtype float32 or float16.

        The file appears whole or not at all. Raises UserError if there is one already.
        """
        with _locking(path) as (path, lock):
            if os.path.lexists(path):
                raise UserError(f"{path}: is there already: resume it, or choose another name")
            lock.require()
            make_store(path, encode_ids(ids), shape, dtype, fingerprint, attributes or {})
            return cls(path, path, lock)

    @classmethod
    def open(cls, path: str | os.PathLike[str], fingerprint: Mapping[str, Scalar]) -> StoreWriter:
        """Go on with a store. Raises UserError if its fingerprint differs."""
        return cls.extend(path, (), fingerprint)

    @classmethod
    def extend(
        cls, path: str | os.PathLike[str], new_ids: Sequence[str] | Array, fingerprint: Mapping[str, Scalar]
    ) -> StoreWriter:
        """Go on with a store after adding those of `new_ids` that it lacks, as pending rows.

        A larger file is made beside it, the rows are copied in chunks, and it takes the old one's place; readers
        of the old one keep what they have mapped.
        """
        open_regular(path).close()  # before the lock, which would make the folder of a mistyped path
        with _locking(path) as (path, lock):
            writer = cls(path, path, lock)
        try:
            writer.store.require_fingerprint(fingerprint)
            writer.store.require_sound_entries()
            writer.grow(new_ids)
            return writer
        except BaseException:
            writer.close()
            raise

    @classmethod
    def rebuild(
        cls,
        path: str | os.PathLike[str],
        ids: Sequence[str] | Array,
        shape: tuple[int, ...],
        dtype: npt.DTypeLike,
        fingerprint: Mapping[str, Scalar],
        attributes: Mapping[str, Scalar] | None = None,
    ) -> StoreWriter:
        """Make a store anew at PATH.rebuild; `publish` then puts it in the place of the one at `path`, if there is any.

        An interrupted rebuild of the same ids, shape, dtype and fingerprint is resumed; any other begins anew.
        """
        with _locking(path) as (path, lock):
            if os.path.lexists(path):
                require_own(path)
            lock.require()
            beside, encoded = rebuild_path(path), encode_ids(ids)
            if not continues(beside, encoded, shape, dtype, fingerprint):
                make_store(beside, encoded, shape, dtype, fingerprint, attributes or {})
            return cls(path, beside, lock)

    def write(
        self, rows: npt.ArrayLike, features: Array, digests: Sequence[bytes] | Array, stats: npt.ArrayLike
    ) -> None:
        """Write pending rows: features (k, *shape), digests k × 16 bytes, stats (k, 2); ok at the next commit."""
        rows = self._pending(rows)
        features = np.ascontiguousarray(features, dtype=self.store.dtype)
        with writing(self._file_path):
            self._file.put("features", rows, features)
        crc32 = np.fromiter(map(zlib.crc32, features), np.uint32, len(rows))
        self._settle(rows, np.full(len(rows), OK, np.uint8), crc32, digests, stats)

    def mark(
        self,
        rows: npt.ArrayLike,
        status: int,
        digests: Sequence[bytes] | Array | None = None,
        stats: npt.ArrayLike | None = None,
    ) -> None:
        """Give pending rows a status other than ok at the next commit; their features become zeros."""
        rows = self._pending(rows)
        if status not in STATUS_NAMES or status in (PENDING, OK):
            raise ValueError(f"rows are marked missing, unreadable, refused or crashed, not {status}")
        with writing(self._file_path):
            for part in self.store.in_chunks(rows):
                if self.store.gather(part).any():  # left by a write never committed, or from before a reset
                    self._file.put("features", part, np.zeros((len(part), *self.store.shape)))
        self._settle(rows, np.full(len(rows), status, np.uint8), np.zeros(len(rows), np.uint32), digests, stats)

    def reset(self, rows: npt.ArrayLike) -> None:
        """Turn rows back to pending, on the disk at once: what they hold may be written over from now on."""
        self.commit()
        rows = np.unique(np.asarray(rows, dtype=np.int64))
        with writing(self._file_path):
            self._file.put("status", rows, np.full(len(rows), PENDING))
            self._file.sync()

    def set_stat(self, rows: npt.ArrayLike, stats: npt.ArrayLike) -> None:
        """Replace the size and mtime of rows whose files were found to have the same content; they pend meanwhile.

        Where nothing can be written they stay: the files are then only compared again the next time.
        """
        rows = np.asarray(rows, dtype=np.int64)
        statuses, crc32, digests = (of[rows] for of in (self.store.status, self.store.crc32, self.store.digest))
        try:
            self.reset(rows)
        except UserError as error:
            log.debug("%s: sizes and times of files are not kept: %s", self._file_path, error)
            return
        self._settle(rows, statuses, crc32, digests, stats)
        self.commit()

    def commit(self) -> None:
        """Make all that was written count: its bytes reach the disk before any status does."""
        if not self._uncommitted:
            return
        began = time.monotonic()
        rows = np.concatenate([rows for rows, _ in self._uncommitted])
        statuses = np.concatenate([statuses for _, statuses in self._uncommitted])
        order = np.argsort(rows, kind="stable")
        try:
            with held_back(), writing(self._file_path):
                self._file.sync()
                self._file.put("status", rows[order], statuses[order])
        except UserError:
            self._uncommitted.clear()  # after a failed sync nobody knows what is on the disk: the rows stay pending
            raise
        self._uncommitted.clear()
        now = time.monotonic()
        self._next_commit = now + max(SECONDS_BETWEEN_COMMITS, 10 * (now - began))  # a slow disk costs at most a tenth

    def publish(self) -> None:
        """Put a finished rebuild in its place."""
        self.commit()
        if not self.store.finished:
            raise ValueError("a rebuild takes its place when no row is pending")
        with writing(self.path):
            self._file.sync()
            self._let_go()
            try:
                os.replace(self._file_path, self.path)
                self._file_path = self.path
            finally:
                self.store = FeatureStore(self._file_path)
            sync_folder(self.path.parent)

    def close(self) -> None:
        """Commit, let go of the file, of `store` and of the lock."""
        try:
            self.commit()
            if self._opened is not None:
                with writing(self._file_path):
                    self._opened.sync()
        finally:
            self._let_go()
            self._lock.release()

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def _file(self) -> RowFile:
        """The file, opened for the first write: who finds nothing to do needs nothing that can be written."""
        if self._opened is None:
            self._lock.require()
            with writing(self._file_path):
                self._opened = RowFile(self._file_path, self.store.spans)
        return self._opened

    def _let_go(self) -> None:
        """Close the file: Windows replaces no open one."""
        if self._opened is not None:
            self._opened.close()
            self._opened = None
        self.store.close()

    def _pending(self, rows: npt.ArrayLike) -> Rows:
        rows = np.asarray(rows, dtype=np.int64)
        if (rows < 0).any() or (self.store.status[rows] != PENDING).any():
            raise ValueError("only pending rows are written: reset the others first")
        return rows

    def _settle(
        self,
        rows: Rows,
        statuses: Array,
        crc32: Array,
        digests: Sequence[bytes] | Array | None,
        stats: npt.ArrayLike | None,
    ) -> None:
        """Write what is kept of rows beside their features; their status follows with the next commit."""
        if digests is None:
            digests = np.zeros((len(rows), DIGEST_BYTES), np.uint8)
        elif not isinstance(digests, np.ndarray):
            digests = np.frombuffer(b"".join(digests), np.uint8).reshape(-1, DIGEST_BYTES)
        stats = np.zeros((len(rows), 2), np.int64) if stats is None else np.asarray(stats, dtype=np.int64)
        with writing(self._file_path):
            for name, values in (("crc32", crc32), ("digest", digests), ("stat", stats)):
                self._file.put(name, rows, values)
            if self.store.check is not None:
                self._file.put("check", rows, entry_checks(statuses, crc32, digests, stats))
        self._uncommitted.append((rows, statuses))
        if time.monotonic() >= self._next_commit:
            self.commit()

    def grow(self, ids: Sequence[str] | Array) -> None:
        """Add those of `ids` that the store lacks, as pending rows: see `extend`. Rows have other numbers then."""
        old = self.store
        lacking = np.flatnonzero(old.rows(ids) < 0)
        if not len(lacking):
            return
        self._lock.require()
        missing = np.unique(ids[lacking]) if are_encoded(ids) else sorted({ids[i] for i in lacking.tolist()})
        merged = np.union1d(old.ids, encode_ids(missing))
        beside = temporary_beside(self.path)
        create_file(beside, merged, old.shape, old.dtype, old.fingerprint, old.attributes)
        with writing(beside):
            try:
                larger = FeatureStore(beside)
                with RowFile(beside, larger.spans) as file:
                    copy_rows(old, larger, file)
                larger.close()
                self._let_go()
                try:
                    os.replace(beside, self.path)
                finally:
                    self.store = FeatureStore(self.path)
                sync_folder(self.path.parent)
            finally:
                beside.unlink(missing_ok=True)


@contextmanager
def _locking(path: str | os.PathLike[str]) -> Iterator[tuple[Path, WriterLock]]:
    """The file that is written and its lock, which the block's writer keeps; an error lets go of it."""
    path = Path(path)
    if path.is_symlink():
        path = path.resolve()  # the lock and a replacement belong beside the file itself
    lock = WriterLock(path)
    try:
        sweep(path)
        sweep(rebuild_path(path))
        yield path, lock
    except BaseException:
        lock.release()
        raise
