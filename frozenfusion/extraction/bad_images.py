"""NAME.bad.csv beside a feature file: the images that cannot be used, and why."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from frozenfusion.store.reader import FeatureStore
from frozenfusion.store.status import OK, PENDING, STATUS_NAMES
from frozenfusion.utils.files import keep_current, read_regular_file, sweep
from frozenfusion.utils.progress import log
from frozenfusion.utils.tables import from_csv_cell, to_csv

MAX_LIST_BYTES = 2**30
COLUMNS = ("id", "file", "status", "reason")


def list_path(cache: Path) -> Path:
    """Where the list of a feature file is."""
    return cache.with_name(f"{cache.stem}.bad.csv")


def read_list(cache: Path) -> dict[str, str]:
    """The reasons that earlier runs gave, by id; nothing where there is no list or it is not one of ours."""
    return {name: row["reason"] for name, row in read_rows(cache).items() if row["reason"]}


def read_rows(cache: Path) -> dict[str, dict[str, str]]:
    """The rows of a list by id, each its columns by name; nothing where there is no list or it is not one of ours."""
    try:
        text = read_regular_file(list_path(cache), MAX_LIST_BYTES).decode()
        lines = csv.DictReader(io.StringIO(text, newline=""))
        rows = [{name: from_csv_cell(line[name] or "") for name in COLUMNS} for line in lines]
    except (OSError, UnicodeDecodeError, csv.Error, KeyError):
        return {}
    return {row["id"]: row for row in rows}


def _is_own(path: Path) -> bool:
    """Whether a list may be replaced or removed: it is ours, or not there."""
    try:
        return read_regular_file(path, MAX_LIST_BYTES).startswith(",".join(COLUMNS).encode())
    except FileNotFoundError:
        return True
    except OSError:
        return False


def write_list(
    cache: Path, store: FeatureStore, files: Callable[[list[str]], list[str]], reasons: Mapping[str, str]
) -> Path | None:
    """Write the list of every row that is neither ok nor pending; take an old list away where there is none.

    `files` tells where the images of ids are, "" where that is not known; `reasons` are by id. Returns the list's path,
    or None. Raises UserError where the disk refuses.
    """
    path = list_path(cache)
    sweep(path)
    if not _is_own(path):
        log.warning(
            "%s: not a list of ours, so it is left as it is: the images that cannot be used are not listed", path
        )
        return None
    bad = np.flatnonzero((store.status != OK) & (store.status != PENDING))
    if not len(bad):
        if os.path.lexists(path):  # a disk that may only be read refuses to remove even what is not there
            path.unlink(missing_ok=True)
        return None
    lines: list[tuple[str, ...]] = [COLUMNS]
    names = store.names(bad)
    for row, name, file in zip(bad, names, files(names), strict=True):
        lines.append((name, file, STATUS_NAMES[int(store.status[row])], reasons.get(name, "")))
    keep_current(path, to_csv(lines))
    return path
