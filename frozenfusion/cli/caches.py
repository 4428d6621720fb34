"""Which feature file a command means that names none: the one that is called after the data."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from frozenfusion.store.command import FOLDER, DataSource, default_cache, extraction_command, is_default_cache
from frozenfusion.utils.errors import UserError
from frozenfusion.utils.progress import log

OF_VERSION_0_1 = FOLDER / "features.h5"  # whatever the data
REFERENCE: Mapping[str, object] = {}  # the fingerprint of the reference's network, which needs no flag


def cache_to_make(data: DataSource, backbone: str) -> Path:
    """The file that stage one makes or brings up to date for `data`."""
    return default_cache(data, backbone) if _caches_of(data) or not OF_VERSION_0_1.is_file() else _old(data)


def cache_to_read(
    data: DataSource, given: Path | None, fingerprint: Mapping[str, object] = REFERENCE, weights: object = ""
) -> Path:
    """The file that was given, or the one that stage one made for `data`.

    Raises UserError where there is none, with the command that makes one, and where there are several.

    fingerprint, weights: of the features that are needed.
    """
    make = extraction_command(data, given, fingerprint, weights)
    if given is not None:
        if not given.exists():
            raise UserError(f"{given}: no such feature file: check the path, or make it with {make}")
        return given
    found = _caches_of(data)
    if len(found) > 1:
        raise UserError(f"{data} has several feature files, {', '.join(map(str, found))}: choose one with `cache`")
    if found:
        log.info("features: %s", found[0])
        return found[0]
    if OF_VERSION_0_1.is_file():
        return _old(data)
    raise UserError(f"{data} has no feature file in {FOLDER}: make it with {make}, or name yours with `cache`")


def _caches_of(data: DataSource) -> list[Path]:
    return sorted(path for path in FOLDER.glob("*.h5") if is_default_cache(path, data))


def _old(data: DataSource) -> Path:
    log.info("features: %s, the default of version 0.1, since %s has no file of its own", OF_VERSION_0_1, data)
    return OF_VERSION_0_1
