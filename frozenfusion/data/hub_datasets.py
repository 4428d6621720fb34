"""Folders that `datasets` saves: the tables of a data set, or of each of its splits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from frozenfusion.data.records import checked_id
from frozenfusion.data.table_files import ARROW
from frozenfusion.utils.errors import UserError
from frozenfusion.utils.files import read_json

SPLITS, STATE, INFO = "dataset_dict.json", "state.json", "dataset_info.json"


def is_dataset(folder: Path) -> bool:
    """Whether `save_to_disk` made a folder, of a Dataset or of a DatasetDict."""
    return (folder / SPLITS).is_file() or all((folder / name).is_file() for name in (STATE, INFO))


def tables_of(folder: Path) -> list[Path]:
    """The Arrow files of such a folder, in their order; those of a split are in its folder. Raises UserError."""
    path = folder / SPLITS
    if path.is_file():
        return [file for split in _names(path, read_json(path), "splits") for file in _tables(folder / split)]
    return _tables(folder)


def _tables(folder: Path) -> list[Path]:
    path = folder / STATE
    state = read_json(path)
    files = state.get("_data_files") if isinstance(state, dict) else None
    named = [file.get("filename") if isinstance(file, dict) else None for file in files or []]
    return [folder / name for name in _names(path, {STATE: named}, STATE) if name.endswith(ARROW)]


def _names(path: Path, told: Any, entry: str) -> list[str]:
    """The names of files beside `path` that it gives. Raises UserError where it gives none."""
    names = told.get(entry) if isinstance(told, dict) else None
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise UserError(f"{path}: does not say where the tables of the data set are: save it again")
    return [checked_id(name, str(path)) for name in names]
