"""Data whose images are not files of their own: what there is at a path or an address, and its rows."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from glob import glob, has_magic
from pathlib import Path, PurePosixPath

from frozenfusion.data.folders import DATA, IMAGE_SUFFIXES, LAYOUT_FILES
from frozenfusion.data.hub_datasets import is_dataset, tables_of
from frozenfusion.data.links import check_inside
from frozenfusion.data.manifests import READERS, manifest_rows
from frozenfusion.data.remote import fetched
from frozenfusion.data.table_files import ARROW, PARQUET, File, suffix_of
from frozenfusion.data.tables import Rows, rows_of_tables
from frozenfusion.data.tars import COMPRESSED, rows_of_tars
from frozenfusion.utils.errors import UserError
from frozenfusion.utils.remote import address_of, find_remote

TAR = ".tar"
MOST_FILES = 1_000_000  # that braces may stand for
Found = tuple[str, Rows, Path]  # the layout, the rows, the folder that they are of
_BRACES = re.compile(r"(.*)\{(\d{1,18})\.\.(\d{1,18})\}(.*)", re.DOTALL)


def is_data(path: Path) -> bool:
    """Whether a path is that of image–text pairs, not of a feature file, by its name alone."""
    return suffix_of(path) in (*READERS, TAR) or _is_missing_pattern(path) or address_of(path) is not None


def find_rows(path: Path, columns: Mapping[str, str], *, follow_links: bool) -> Found | None:
    """The layout of a manifest, or of data in tables, in tars or in a store, its rows, and the folder that they are of.

    None for any other folder, and for what is not there. Raises UserError for what is not there, or cannot be read.
    """
    address = address_of(path)
    root: File
    if address is not None:
        if suffix_of(path) in READERS and suffix_of(path) != PARQUET:
            return "manifest", _fetched_rows(address, columns), path.parent
        files, root = _remote_files(address)
    elif path.is_dir():
        files, root = _files_of_folder(path), path
        if not follow_links:
            check_inside(path, [os.path.relpath(file, path) for file in files])
    elif _is_missing_pattern(path):
        files = [Path(name) for part in _expanded(str(path)) for name in sorted(glob(part))]
        root = _fixed(path)
        if not files:
            raise UserError(f"{path}: no file is called so: check the pattern")
    elif path.name.lower().endswith((TAR, *COMPRESSED)):
        files, root = [path], path.parent
    elif path.exists():
        return "manifest", manifest_rows(path, columns), path.parent
    else:
        return None
    if not files:
        return None
    suffixes = {suffix_of(file) for file in files}
    if suffixes <= {PARQUET, ARROW}:
        return "table", rows_of_tables(files, root, columns), Path(root)
    if not all(str(file).lower().endswith((TAR, *COMPRESSED)) for file in files):
        raise UserError(f"{path}: stands for other files than tables ({PARQUET}) or tars: name those of one kind")
    return "webdataset", rows_of_tars(files, columns), Path(root)


def _fetched_rows(address: str, columns: Mapping[str, str]) -> Rows:
    with fetched(address) as local:
        for source, row in READERS[suffix_of(local)](local, columns):
            yield source.replace(str(local), address), row


def _files_of_folder(folder: Path) -> list[File]:
    """The tables or tars of a folder; none where pictures or label files say that it is of another layout."""
    if is_dataset(folder):
        return list(tables_of(folder))
    names = os.listdir(folder) if os.access(folder, os.R_OK) else []
    if any((name in LAYOUT_FILES and name != DATA) or suffix_of(name) in IMAGE_SUFFIXES for name in names):
        return []
    found: dict[str, list[Path]] = {PARQUET: [], TAR: []}
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if suffix_of(name) in found and not name.startswith("."):
                found[suffix_of(name)].append(Path(place, name))
    return sorted(found[PARQUET] or found[TAR])


def _remote_files(address: str) -> tuple[list[File], File]:
    """The tables or tars that an address stands for, and the address that they are below."""
    root = str(PurePosixPath(address).parent).replace(":/", "://", 1)
    if not _is_pattern(address) and suffix_of(address) in (PARQUET, TAR):
        return [address], root
    if not has_magic(address) and _is_pattern(address):
        return list(_expanded(address)), root
    root = address_of(_fixed(Path(address))) or ""
    there = find_remote(root)
    for kind in (PARQUET, TAR):
        wanted = list(_expanded(address)) if _is_pattern(address) else [f"{root}/*{kind}"]
        files: list[File] = [name for name in there if any(fnmatchcase(name, each) for each in wanted)]
        if files:
            return files, root
    converted = ": the hub may have converted it, to hf://datasets/USER/NAME@refs/convert/parquet"
    raise UserError(f"{address}: no {PARQUET} or {TAR} files are there{converted if root.startswith('hf:') else ''}")


def _is_pattern(name: str) -> bool:
    return has_magic(name) or _BRACES.fullmatch(name) is not None


def _is_missing_pattern(path: Path) -> bool:
    return _is_pattern(str(path)) and not path.exists()


def _fixed(path: Path) -> Path:
    """The folder that a pattern's files are below."""
    while _is_pattern(str(path)):
        path = path.parent
    return path


def _expanded(name: str) -> Iterator[str]:
    """The names that {000..012} stands for. Raises UserError for too many."""
    found = _BRACES.fullmatch(name)
    if found is None:
        yield name
        return
    before, first, last, after = found.groups()
    if int(last) - int(first) >= MOST_FILES:
        raise UserError(f"{name}: stands for more than {MOST_FILES:,} files: name fewer")
    for number in range(int(first), int(last) + 1):
        yield from _expanded(f"{before}{number:0{len(first)}}{after}")
