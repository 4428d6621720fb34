"""Store files that are made: anew, larger than before, beside the one that they will replace."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from frozenfusion.store.entries import entry_checks
from frozenfusion.store.hdf5 import Scalar, create_file
from frozenfusion.store.raw_file import Array, RowFile
from frozenfusion.store.reader import FeatureStore
from frozenfusion.store.status import PENDING
from frozenfusion.utils.errors import UserError
from frozenfusion.utils.files import sync_folder, writing


def copy_rows(old: FeatureStore, new: FeatureStore, file: RowFile) -> None:
    """Put every settled row of a store into its place in a larger one, whose file is open for writing."""
    settled = np.flatnonzero(old.status != PENDING)
    places = np.searchsorted(new.ids, old.ids.astype(new.ids.dtype))
    for rows in old.in_chunks(settled):
        file.put("features", places[rows], old.features[rows])
        entries = {name: getattr(old, name)[rows] for name in ("crc32", "digest", "stat", "status")}
        checks = entry_checks(**entries) if old.check is None else old.check[rows]  # damage stays visible
        for name, values in {"check": checks, **entries}.items():
            file.put(name, places[rows], values)
    file.sync()


def make_store(
    path: Path,
    ids: Array,
    shape: tuple[int, ...],
    dtype: npt.DTypeLike,
    fingerprint: Mapping[str, Scalar],
    attributes: Mapping[str, Scalar],
) -> None:
    """Make a file of pending rows at `path`, whole or not at all, in the place of whatever is there."""
    kind = np.dtype(dtype).newbyteorder("<")
    if kind not in (np.dtype("<f4"), np.dtype("<f2")) or len(shape) not in (1, 2):
        raise ValueError(f"rows are (d,) or (r, d) float32 or float16, not {shape} {kind}")
    beside = new_path(path)
    create_file(beside, ids, shape, kind, fingerprint, attributes)
    with writing(path):
        os.replace(beside, path)
        sync_folder(path.parent)


def continues(
    path: Path, ids: Array, shape: tuple[int, ...], dtype: npt.DTypeLike, fingerprint: Mapping[str, Scalar]
) -> bool:
    """Whether the file at `path` is a store of just these ids, rows and fingerprint, to be resumed."""
    try:
        store = FeatureStore(path)
        store.require_fingerprint(fingerprint)
    except UserError:
        return False
    return store.shape == tuple(shape) and store.dtype == np.dtype(dtype) and np.array_equal(store.ids, ids)


def new_path(path: Path) -> Path:
    """Where a file lies until it takes the place of `path`."""
    return path.with_name(path.name + ".new")


def rebuild_path(path: Path) -> Path:
    """Where a rebuild of `path` lies until it is finished."""
    return path.with_name(path.name + ".rebuild")
