"""A folder of shards copied into one feature file."""

from __future__ import annotations

import os
from pathlib import Path

from frozenfusion.extraction import bad_images
from frozenfusion.extraction.inspection import verify
from frozenfusion.store.hdf5 import create_file
from frozenfusion.store.making import copy_rows
from frozenfusion.store.plan import is_sharded, read_plan, shard_path
from frozenfusion.store.raw_file import RowFile
from frozenfusion.store.reader import FeatureStore
from frozenfusion.utils.errors import UserError
from frozenfusion.utils.files import sync_folder, temporary_beside, writing
from frozenfusion.utils.locks import WriterLock


def merge_shards(folder: Path, target: Path) -> str:
    """Copy all shards into one ordinary file, byte by byte what one machine makes, and say so.

    Each row is checked against its checksums in the folder before anything is made, and again in the copy. Raises
    UserError where a shard is missing, unfinished or damaged, and where `target` is there already.
    """
    if not is_sharded(folder):
        raise UserError(f"{folder}: no folder of shards, which `merge` copies into one file: check the path")
    store = FeatureStore(folder)
    if not store.finished:
        left = store.counts()["pending"]
        raise UserError(f"{folder}: {left:,} of {store.n:,} rows are pending: compute them with {store.command()}")
    verify(folder)
    with WriterLock(target) as lock, writing(target):
        lock.require()
        if os.path.lexists(target):
            raise UserError(f"{target}: is there already: choose another name")
        beside = temporary_beside(target)
        try:
            create_file(beside, store.ids, store.shape, store.dtype, store.fingerprint, store.attributes)
            copy = FeatureStore(beside)
            with RowFile(beside, copy.spans) as file:
                copy_rows(store, copy, file)
            copy.close()
            verify(beside)
            os.replace(beside, target)
            sync_folder(target.parent)
        finally:
            beside.unlink(missing_ok=True)
    _merge_lists(folder, target)
    return f"{target}: {store.n:,} rows of {len(read_plan(folder).shards):,} shards, each checked against its checksum"


def _merge_lists(folder: Path, target: Path) -> None:
    """Write the list of bad images, as one machine does, from those of the shards."""
    files: dict[str, str] = {}
    reasons: dict[str, str] = {}
    for shard in read_plan(folder).shards:
        listed = bad_images.read_rows(shard_path(folder, shard))
        files |= {name: row["file"] for name, row in listed.items()}
        reasons |= {name: row["reason"] for name, row in listed.items()}
    store = FeatureStore(target)
    bad_images.write_list(target, store, lambda ids: [files.get(id, "") for id in ids], reasons)
