"""What a run's small files are checked by: their CRC-32 in checksums.json. Parameters carry their own."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from frozenfusion.utils.errors import UserError
from frozenfusion.utils.files import read_json, write_json, writing

CHECKSUMS = "checksums.json"
_COVERED = ("config.json", "split.json", "metrics.jsonl", "tokenizer", "text_encoder")
_OWN = "crc32"  # in summary.json and calibration.json, which are written after the others, over their other entries


def write_checksums(folder: Path) -> None:
    """Write the checksums of what is in a run's folder now. Raises UserError where the disk says no."""
    write_json(folder / CHECKSUMS, {path.relative_to(folder).as_posix(): _crc32(path) for path in _covered(folder)})


def check_files(folder: Path, *, all_there: bool = False) -> int:
    """Require that the files are as they were written, and count them; nothing in a folder without checksums.

    What is missing is told by who needs it, unless `all_there` asks for every file. Raises UserError. Runs of version
    0.1 have no checksums.
    """
    path = folder / CHECKSUMS
    if not path.exists():
        return 0
    written = read_json(path)
    if not isinstance(written, dict):
        raise UserError(f"{path}: no list of checksums: restore it, or remove it to do without")
    there = {path.relative_to(folder).as_posix(): path for path in _covered(folder)}
    for name, crc32 in written.items():
        if name not in there and all_there:
            raise UserError(f"{folder / name}: not there: the run folder is not whole: copy all of it")
        if name in there and _crc32(there[name]) != crc32:
            raise UserError(
                f"{there[name]}: not as it was written: restore it, or remove it, and the same training command writes "
                f"it again; if you changed it yourself, remove {path}"
            )
    return len(written)


def with_checksum(summary: Mapping[str, Any]) -> dict[str, Any]:
    """A summary and its own checksum."""
    return {**summary, _OWN: _of_entries(summary)}


def without_checksum(summary: Mapping[str, Any], path: Path, mend: str = "the same training command") -> dict[str, Any]:
    """A summary as it was before it was written to `path`. Raises UserError, which says `mend`, if it has changed."""
    entries = dict(summary)
    if entries.pop(_OWN, None) not in (None, _of_entries(entries)):
        raise UserError(f"{path}: not as it was written: remove it, and {mend} writes it again")
    return entries


def _covered(folder: Path) -> list[Path]:
    with writing(folder):
        parts = [folder / name for name in _COVERED]
        files = [file for part in parts for file in (sorted(part.iterdir()) if part.is_dir() else [part])]
        return [file for file in files if file.is_file() and file.suffix != ".safetensors" and file.name[0] != "."]


def _crc32(path: Path) -> str:
    with writing(path):
        return f"{zlib.crc32(path.read_bytes()):08x}"


def _of_entries(entries: Mapping[str, Any]) -> str:
    return f"{zlib.crc32(json.dumps(entries, sort_keys=True, default=str).encode()):08x}"
