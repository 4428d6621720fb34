"""What a feature file holds, and whether it still holds what was written."""

from __future__ import annotations

from pathlib import Path

from frozenfusion.data.images import BadImage, file_digest, read_image_file
from frozenfusion.data.pairs import Pairs, load_pairs
from frozenfusion.store.reader import FeatureStore
from frozenfusion.store.status import OK
from frozenfusion.utils.errors import UserError
from frozenfusion.utils.messages import first_few, printable
from frozenfusion.utils.progress import Progress

NAMED_AT_MOST = 5
LONGEST_VALUE = 1000


def info(cache: Path) -> str:
    """What a feature file holds, as lines for a person. Raises UserError for a file that is none."""
    store = FeatureStore(cache)
    counts = ", ".join(f"{count:,} {name}" for name, count in store.counts().items() if count)
    lines = {
        "file": f"{cache} ({cache.stat().st_size / 1e6:,.1f} MB, {'finished' if store.finished else 'not finished'})",
        "rows": f"{store.n:,} ({counts}), each {' × '.join(map(str, store.shape))} {store.dtype}",
        **store.fingerprint,
        **{name: value for name, value in store.attributes.items() if name not in store.fingerprint},
    }
    told = {printable(name): printable(value, LONGEST_VALUE) for name, value in lines.items()}
    width = max(map(len, told))
    return "\n".join(f"{name:<{width}}  {value}" for name, value in told.items())


def verify(cache: Path, data: Path | None = None, *, follow_links: bool = True) -> str:
    """Check every row against its checksum and, with `data`, every image file there against its row's digest.

    Returns what was found, if all is well. Raises UserError that names what is not.
    """
    store = FeatureStore(cache)
    checked, pending = (store.counts()[name] for name in ("ok", "pending"))
    with Progress(checked, "row", "verifying") as progress:
        damaged = store.names(store.damaged_rows(progress.update))
    if damaged:
        raise UserError(
            f"{cache}: {len(damaged):,} of {checked:,} rows are damaged or not finite "
            f"({first_few(damaged, NAMED_AT_MOST)}): "
            "make the file anew with python extract_features.py DATA --rebuild, or restore it"
        )
    told = f"{cache}: all {checked:,} rows are as they were written"
    if pending:
        told += f" ({pending:,} more are pending)"
    if data is None:
        return told
    changed, compared = _changed_files(store, load_pairs(data, follow_links=follow_links))
    if changed:
        raise UserError(
            f"{data}: {len(changed):,} of {compared:,} images are not those that {cache} was made from "
            f"({first_few(changed, NAMED_AT_MOST)}): run python extract_features.py {data} --cache {cache} to update it"
        )
    return f"{told}, and come from the {compared:,} image files that are there"


def _changed_files(store: FeatureStore, pairs: Pairs) -> tuple[list[str], int]:
    """The ids whose image file is there with other bytes, and how many files were compared."""
    changed, compared = [], 0
    with Progress(len(pairs), "img", "comparing") as progress:
        for pair, row in zip(pairs, store.rows(pairs.ids), strict=True):
            progress.update(1)
            if row < 0 or store.status[row] != OK:
                continue
            try:
                digest = file_digest(read_image_file(pair.image))
            except BadImage:
                continue
            compared += 1
            if digest != store.digest[row].tobytes():
                changed.append(pair.id)
    return changed, compared
