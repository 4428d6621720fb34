"""What a feature file holds, and whether it still holds what was written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from frozenfusion.data.identity import Comparison, compare_files, how_to_mend
from frozenfusion.data.pairs import Pairs, load_pairs
from frozenfusion.store.command import DataSource
from frozenfusion.store.plan import is_sharded, read_plan, shard_path
from frozenfusion.store.reader import FeatureStore
from frozenfusion.store.status import OK
from frozenfusion.utils.errors import UserError
from frozenfusion.utils.messages import first_few, printable
from frozenfusion.utils.progress import Progress

NAMED_AT_MOST = 5
LONGEST_VALUE = 1000


def info(cache: Path) -> str:
    """What a feature file or a folder of shards holds, as lines for a person. Raises UserError for what is neither."""
    store, files = FeatureStore(cache), [cache]
    if is_sharded(cache):
        plan = read_plan(cache)
        files = [path for path in (shard_path(cache, shard) for shard in plan.shards) if path.exists()]
        shards = {"shards": f"{len(files):,} of {len(plan.shards):,}, each of {plan.bounds[1]:,} rows or less"}
    else:
        shards = {}
    size = sum(path.stat().st_size for path in files)
    counts = ", ".join(f"{count:,} {name}" for name, count in store.counts().items() if count)
    lines = {
        "file": f"{cache} ({size / 1e6:,.1f} MB, {'finished' if store.finished else 'not finished'})",
        **shards,
        "rows": f"{store.n:,} ({counts}), each {' × '.join(map(str, store.shape))} {store.dtype}",
        **store.fingerprint,
        **{name: value for name, value in store.attributes.items() if name not in store.fingerprint},
    }
    told = {printable(name): printable(value, LONGEST_VALUE) for name, value in lines.items()}
    width = max(map(len, told))
    return "\n".join(f"{name:<{width}}  {value}" for name, value in told.items())


def verify(cache: Path, data: Path | None = None, **reading: Any) -> str:
    """Check every row against its checksum and, with `data`, every image there against its row's digest.

    reading: how `load_pairs` is to read the data.

    Returns what was found, if all is well. Raises UserError that names what is not.
    """
    store, source = FeatureStore(cache), None if data is None else DataSource.of(data, **reading)
    checked, pending = (store.counts()[name] for name in ("ok", "pending"))
    with Progress(checked, "row", "verifying") as progress:
        damaged = store.names(store.damaged_rows(progress.update))
    if damaged:
        raise UserError(
            f"{cache}: {len(damaged):,} of {checked:,} rows are damaged or not finite "
            f"({first_few(damaged, NAMED_AT_MOST)}): "
            f"{_how_to_make_anew(store, damaged, source)}"
        )
    told = f"{cache}: all {checked:,} rows are as they were written"
    if pending:
        told += f" ({pending:,} more are pending)"
    if data is None or source is None:
        return told
    found, changed = _compare(store, load_pairs(data, **reading))
    if changed:
        raise UserError(
            f"{source}: {len(changed):,} of {found.there:,} images are not those that {cache} was made from "
            f"({first_few(changed, NAMED_AT_MOST)}): {how_to_mend(found, store, source)}"
        )
    return f"{told}, and come from the {found.there:,} image files that are there"


def _how_to_make_anew(store: FeatureStore, damaged: list[str], data: DataSource | None) -> str:
    if not is_sharded(store.path):
        return f"make the file anew with {store.command(data or 'DATA', '--rebuild')}, or restore it"
    plan, rows = read_plan(store.path), store.rows(damaged)
    shards = sorted({int(shard) for shard in np.searchsorted(plan.bounds, rows, side="right") - 1})
    paths = first_few([shard_path(store.path, shard).as_posix() for shard in shards], NAMED_AT_MOST)
    return f"delete or restore {paths}, and run {store.command(data or 'DATA')}"


def _compare(store: FeatureStore, pairs: Pairs) -> tuple[Comparison, list[str]]:
    """Every image file that is there beside its row's digest, and the ids of those that differ."""
    rows = store.rows(pairs.columns.encoded_ids)
    computed = np.where((rows >= 0) & (store.status[rows] == OK), rows, -1)
    found = compare_files(store, computed, pairs.columns.image, every=True)
    return found, [pairs[place].id for place in found.changed.tolist()]
