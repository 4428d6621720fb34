"""A folder of shards, one feature file per contiguous range of rows, as if it were one file.

Shapes: n rows of all shards, k rows of a call.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from frozenfusion.store.adjoining import Adjoining
from frozenfusion.store.hdf5 import Layout
from frozenfusion.store.mapped import MappedFile, Twin
from frozenfusion.store.plan import read_ids, read_plan, shard_path
from frozenfusion.store.raw_file import Array
from frozenfusion.store.status import DIGEST_BYTES, PENDING
from frozenfusion.utils.errors import UserError


class Joined:
    """A column of several files, read like one array: what is indexed is copied out of the files that have it.

    parts: the column of each, a zero-strided array for one that is not there. bounds: (parts + 1,), where each begins.
    """

    def __init__(self, parts: Sequence[Array], bounds: Array) -> None:
        self._parts, self._bounds = parts, bounds
        self.shape: tuple[int, ...] = (int(bounds[-1]), *parts[0].shape[1:])
        self.dtype = parts[0].dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> Any:
        first, *rest = index if isinstance(index, tuple) else (index,)
        if isinstance(first, slice):
            rows = np.arange(*first.indices(len(self)))
        else:
            rows = np.asarray(first, None if np.size(first) else np.int64)
            if rows.dtype == bool:
                rows = np.arange(len(self))[rows]
        if rows.size and (rows.min() < -len(self) or rows.max() >= len(self)):
            raise IndexError(f"rows go from 0 to {len(self) - 1}, not {rows.min()} to {rows.max()}")
        taken = self.take(np.where(rows < 0, rows + len(self), rows).ravel(), part=tuple(rest))
        return taken.reshape(*rows.shape, *taken.shape[1:]) if rows.shape else taken[0]

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> Array:
        return np.asarray(self[:], dtype)

    def take(self, rows: Array, axis: int = 0, out: Array | None = None, mode: str = "clip", part: Any = ()) -> Array:
        """The rows, (k,) int64 and all within, of the column, or of a `part` of each: as numpy's take."""
        if out is None:
            of_one = np.empty(self.shape[1:], np.uint8)[part].shape if part else self.shape[1:]
            out = np.empty((len(rows), *of_one), self.dtype)
        files = np.searchsorted(self._bounds, rows, side="right") - 1
        local, parts = rows - self._bounds[files], self._parts
        starts = np.flatnonzero(np.diff(files, prepend=-1))
        at_random = len(starts) > len(rows) // 2 > 0
        if at_random and len(rows) > 2 * len(parts):
            order = np.argsort(rows, kind="stable")
            out[order] = self.take(rows[order], part=part)
            return out
        if at_random and not part:  # nearly each row is in another file
            pairs = zip(files.tolist(), local.tolist(), strict=True)
            return np.concatenate([parts[file][row : row + 1] for file, row in pairs], out=out)
        ends = np.append(starts, len(rows))[1:].tolist()
        for file, start, end in zip(files[starts].tolist(), starts.tolist(), ends, strict=True):
            if part:
                where = (local[start:end], *part)
                out[start:end] = parts[file][where]
            else:
                parts[file].take(local[start:end], axis=0, out=out[start:end], mode="clip")
        return out


class MappedShards:
    """The columns of all shards of a folder by name; those of shards that are not there are zeros, and pending.

    Features are one array where each shard's begin and end with a page of memory, else joined when they are read.
    Raises UserError, with the command that mends it, for a shard that is damaged or not the plan's.
    """

    def __init__(self, folder: Path) -> None:
        self.plan = plan = read_plan(folder)
        ids = read_ids(folder, plan)
        self._bounds = np.array(plan.bounds)
        self.layout = Layout({}, plan.ids_crc32, dict(plan.fingerprint), dict(plan.attributes))
        twins: list[Twin] = []
        self._adjoining = Adjoining.of(plan.bounds, plan.shape, np.dtype(plan.dtype))
        self._files = [self._opened(folder, shard, ids, twins) for shard in plan.shards]
        columns: dict[str, tuple[str, tuple[int, ...]]] = {
            "features": (plan.dtype, plan.shape),
            "digest": ("u1", (DIGEST_BYTES,)),
            "stat": ("<i8", (2,)),
            "crc32": ("<u4", ()),
            "check": ("<u8", ()),
        }
        self.arrays: dict[str, Any] = {"ids": ids, "status": self._statuses()}
        for name, (dtype, shape) in columns.items():
            nothing = np.zeros(shape, dtype)
            parts = [
                np.broadcast_to(nothing, (of.stop - of.start, *shape)) if file is None else file.arrays[name]
                for file, of in zip(self._files, map(plan.rows, plan.shards), strict=True)
            ]
            self.arrays[name] = Joined(parts, self._bounds)
        if self._adjoining is not None:
            self.arrays["features"] = self._adjoining.array

    def will_need(self, rows: Array) -> None:
        """Have the features of some rows read from the disk meanwhile."""
        if self._adjoining is not None:
            self._adjoining.will_need(rows)
            return
        shards = np.searchsorted(self._bounds, rows, side="right") - 1
        for shard in np.unique(shards).tolist():
            file = self._files[shard]
            if file is not None:
                file.will_need(rows[shards == shard] - self._bounds[shard])

    def let_go(self, rows: Array) -> None:
        """Unmap the pages of those shards that have rows from the first to the last of some."""
        if self._adjoining is not None:
            self._adjoining.let_go(rows)
        first, last = np.searchsorted(self._bounds, [rows.min(), rows.max()], side="right") - 1
        for file in self._files[first : last + 1]:
            if file is not None:
                file.let_go(rows)

    def close(self) -> None:
        """Let go of the files and the arrays."""
        self.arrays.clear()
        self._leave_apart()
        for file in self._files:
            if file is not None:
                file.close()

    def _leave_apart(self) -> None:
        """Read each shard where it is mapped by itself."""
        if self._adjoining is not None:
            self._adjoining.close()
            self._adjoining = None

    def _statuses(self) -> Array:
        statuses = np.full(self.plan.n, PENDING, np.uint8)
        for shard, file in enumerate(self._files):
            if file is not None:
                statuses[self.plan.rows(shard)] = file.arrays["status"]
        statuses.flags.writeable = False
        return statuses

    def _opened(self, folder: Path, shard: int, ids: Array, twins: list[Twin]) -> MappedFile | None:
        path, plan = shard_path(folder, shard), self.plan
        if not path.exists():
            return None

        def place(file: BinaryIO, layout: Layout) -> None:
            if self._adjoining and not self._adjoining.place(file.fileno(), layout.spans["features"], plan.rows(shard)):
                self._leave_apart()

        mend = f"delete it and run {plan.command(folder)}"
        try:
            file = MappedFile(path, twins, place)
        except UserError as error:
            reason = error.__cause__.errno if isinstance(error.__cause__, OSError) else None
            if reason == errno.EMFILE:  # which says nothing of the shard
                raise
            if reason == errno.ENOMEM:
                raise UserError(
                    f"{folder}: the system does not map all of its {len(plan.shards):,} shards: raise the limit (on "
                    "Linux sysctl vm.max_map_count), or make a folder with larger `shards`"
                ) from error
            raise UserError(f"{error}: a shard of {folder}: {mend}") from error
        features = file.arrays["features"]
        if file.layout.fingerprint != plan.fingerprint or (features.shape[1:], features.dtype) != (
            plan.shape,
            np.dtype(plan.dtype),
        ):
            raise UserError(f"{path}: its features are made otherwise than the plan of {folder} says: {mend}")
        if not np.array_equal(file.arrays["ids"], ids[plan.rows(shard)]) or "check" not in file.arrays:
            raise UserError(f"{path}: its rows are not those that the plan of {folder} gives it: {mend}")
        return file
