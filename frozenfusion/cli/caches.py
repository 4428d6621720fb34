"""Which feature file a command means that names none: the one that is called after the data."""

from __future__ import annotations

import shlex
from pathlib import Path

from frozenfusion.store.command import FOLDER, default_cache, is_default_cache
from frozenfusion.utils.errors import UserError
from frozenfusion.utils.progress import log

OF_VERSION_0_1 = FOLDER / "features.h5"  # whatever the data


def cache_to_make(data: Path, backbone: str) -> Path:
    """The file that stage one makes or brings up to date for `data`."""
    return default_cache(data, backbone) if _caches_of(data) or not OF_VERSION_0_1.is_file() else _old(data)


def cache_to_read(data: Path, make: str | None = None) -> Path:
    """The one file that stage one made for `data`. Raises UserError where there is none, or several.

    make: the command that makes one, by default that of the reference's network.
    """
    found = _caches_of(data)
    if len(found) > 1:
        raise UserError(f"{data} has several feature files, {', '.join(map(str, found))}: choose one with `cache`")
    if found:
        log.info("features: %s", found[0])
        return found[0]
    if OF_VERSION_0_1.is_file():
        return _old(data)
    make = make or f"python extract_features.py {shlex.quote(data.as_posix())}"
    raise UserError(f"{data} has no feature file in {FOLDER}: make it with {make}, or name yours with `cache`")


def _caches_of(data: Path) -> list[Path]:
    return sorted(path for path in FOLDER.glob("*.h5") if is_default_cache(path, data))


def _old(data: Path) -> Path:
    log.info("features: %s, the default of version 0.1, since %s has no file of its own", OF_VERSION_0_1, data)
    return OF_VERSION_0_1
