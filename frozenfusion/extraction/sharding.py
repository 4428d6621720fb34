"""Stage one in shards: each is an ordinary feature file, computed by whichever worker claims it, on any machine."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from frozenfusion import __version__
from frozenfusion.data.pair_columns import without_mark
from frozenfusion.data.pairs import Pairs
from frozenfusion.extraction.bad_images import list_path
from frozenfusion.extraction.claims import Worker
from frozenfusion.extraction.config import ExtractConfig
from frozenfusion.store.hdf5 import Scalar
from frozenfusion.store.plan import (
    IDS,
    MOST_SHARDS,
    PLAN,
    Plan,
    evenly,
    is_sharded,
    read_ids,
    read_plan,
    shard_path,
    write_ids,
    write_plan,
)
from frozenfusion.store.reader import FeatureStore, encode_ids
from frozenfusion.store.status import PENDING
from frozenfusion.store.writer import StoreWriter
from frozenfusion.utils.errors import UserError
from frozenfusion.utils.files import put_first, replacing, writing
from frozenfusion.utils.locks import lock_path
from frozenfusion.utils.progress import log

_HASHED_AT_ONCE = 2**14  # pairs

Compute = Callable[[Pairs, Path, int], None]
"""Brings a feature file, which need not be there yet, up to date for some pairs; given how many are left in all."""


class Portion(NamedTuple):
    """Rows of a shard by their place in it; where `crashed`, they are given up, since processes die of their images."""

    first: int
    stop: int
    crashed: bool = False


def agree_on_plan(
    pairs: Pairs,
    folder: Path,
    config: ExtractConfig,
    shape: tuple[int, ...],
    fingerprint: Mapping[str, Scalar],
    attributes: Mapping[str, Scalar],
) -> Plan:
    """The plan of a folder, which the first worker makes. Raises UserError, naming what differs from this work."""
    if config.rebuild:
        raise UserError(
            f"{folder}: `rebuild=True` makes one file anew, and this is a folder of shards: delete it instead"
        )
    ids = encode_ids(pairs.columns.encoded_ids)
    there = is_sharded(folder)
    if not there and folder.exists() and not (folder.is_dir() and _is_begun(folder)):
        raise UserError(f"{folder}: is there already, and no folder of shards: choose another `cache`")
    planned = read_plan(folder) if there else None
    n = len(pairs)
    rows = config.shards or (planned.bounds[1] if planned else n)
    if planned is None and n > rows * MOST_SHARDS:
        raise UserError(
            f"{folder}: {n:,} images in shards of {rows:,} are {-(-n // rows):,} files, more than the {MOST_SHARDS:,} "
            f"that can be read as one: give `shards` of {-(-n // MOST_SHARDS):,} or more"
        )
    bounds = evenly(n, rows)
    if planned and planned.n == n and config.shards is None:
        bounds = planned.bounds
    attributes = {"created_by": f"frozenfusion {__version__}", **attributes}
    mine = Plan(_pairs_sha256(pairs), zlib.crc32(ids.data), bounds, shape, config.dtype, fingerprint, attributes)
    if planned is None:
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        planned = write_plan(folder, mine, ids)
    differences = planned.differences(mine)
    if differences:
        raise UserError(
            f"{folder / PLAN}: is the plan of other work than now asked for ({differences}): choose another `cache`, "
            "or delete the folder"
        )
    try:
        read_ids(folder, planned)
    except UserError:  # they follow from the pairs
        write_ids(folder, ids)
    return planned


def compute_shards(
    pairs: Pairs, folder: Path, plan: Plan, shards: Iterable[int], compute: Compute, *, again: bool = False
) -> int:
    """Compute those of some shards that nobody else computes, and return how many of them others are at work on.

    A shard is computed under a name of the worker's own and then takes its place, unless another was there first. With
    `again` finished ones are brought up to date as well.
    """
    todo = set(shards)
    if not again:
        todo &= unfinished(folder, plan)
    if not todo:
        return 0
    images = sum(plan.bounds[shard + 1] - plan.bounds[shard] for shard in todo)
    with Worker(folder) as worker:
        while todo:
            left, claims = set(), worker.claims()
            for shard in sorted(todo):
                of_shard = claims.get(shard, {})
                if not compute_shard(worker, of_shard, pairs, folder, plan, shard, images, compute, again=again):
                    left.add(shard)
            if left == todo:  # all of them have been others' for a whole round
                break
            todo = left & unfinished(folder, plan)
        clear(folder, worker)
    return len(todo & unfinished(folder, plan))


def compute_shard(
    worker: Worker,
    claims: dict[int, str],
    pairs: Pairs,
    folder: Path,
    plan: Plan,
    shard: int,
    images: int,
    compute: Compute,
    *,
    again: bool = False,
) -> bool:
    """Compute a shard, or go on with it; False where another worker is at it. See `compute_shards`, `Worker.claim`."""
    claim = worker.claim(shard, claims)
    if claim is None:
        return False
    try:
        path = shard_path(folder, shard)
        if again or not (path.exists() and FeatureStore(path).finished):
            log.info(f"shard {shard + 1:,} of {len(plan.shards):,}")
            _compute_shard(worker, path, shard, pairs.part(plan.rows(shard)), images, compute)
    finally:
        worker.give_up(claim)
    return True


def _compute_shard(worker: Worker, path: Path, shard: int, pairs: Pairs, images: int, compute: Compute) -> None:
    if path.exists():  # to be brought up to date, or left in the middle of that
        compute(pairs, path, images)
        return
    partial = worker.partial(shard)
    for number, other in worker.leftovers():
        if number == shard:
            _take_over(other, partial)
    try:
        compute(pairs, partial, images)
        if not FeatureStore(partial).finished:  # it was a portion of them
            return
        _put_list(partial, path)
        first = put_first(partial, path)
    except UserError:
        if partial.exists() or worker.owns(shard):
            raise
        first = False  # who took over took what there was
    if not first:
        log.warning("%s: this worker seemed dead for a while, and another does it: theirs is kept", path)


def _take_over(other: Path, partial: Path) -> None:
    """Go on with what a dead worker left, in a copy: should it not be dead, it writes where nobody reads."""
    if not partial.exists():
        try:
            with replacing(partial) as beside:
                shutil.copyfile(other, beside)
            with StoreWriter.open(partial, FeatureStore(partial).fingerprint) as writer:
                writer.reset(writer.store.damaged_rows())
            if list_path(other).exists():
                os.replace(list_path(other), list_path(partial))
        except (OSError, UserError):  # it is too damaged to be of use, or gone
            _remove(partial)
    _remove(other)


def _remove(partial: Path) -> None:
    for path in (partial, lock_path(partial), list_path(partial)):
        with contextlib.suppress(OSError):  # Windows lets nobody remove what another has open
            path.unlink(missing_ok=True)


def _put_list(partial: Path, path: Path) -> None:
    """Give the list of bad images the shard's name, if there is one."""
    with writing(path):
        if list_path(partial).exists():
            os.replace(list_path(partial), list_path(path))


def unfinished(folder: Path, plan: Plan) -> set[int]:
    """The shards that are not there, or have pending rows."""
    store = FeatureStore(folder)
    shards = np.searchsorted(plan.bounds, np.flatnonzero(store.status == PENDING), side="right") - 1
    store.close()
    return set(shards.tolist())


def _is_begun(folder: Path) -> bool:
    """Whether a folder holds nothing but what is there before a plan is."""
    return all(name == IDS or name.startswith(".") for name in os.listdir(folder)) or is_sharded(folder)


def clear(folder: Path, worker: Worker) -> None:
    """Take away what dead workers left of shards that are finished, and their locks."""
    for shard, partial in worker.leftovers():
        if shard_path(folder, shard).exists():
            _remove(partial)
    worker.clear(lambda shard: shard_path(folder, shard).exists())


def _pairs_sha256(pairs: Pairs) -> str:
    """SHA-256 of all ids and of where their images are within the data, which each machine may have elsewhere."""
    digest, columns = hashlib.sha256(), pairs.columns
    for start in range(0, len(pairs), _HASHED_AT_ONCE):
        some = columns[start : start + _HASHED_AT_ONCE]
        named = zip(some.ids(), map(without_mark, some.addresses), strict=True)
        digest.update("".join([f"{id}\0{place}\0" for id, place in named]).encode(errors="surrogatepass"))
    return digest.hexdigest()
