"""Data whose images are not files of their own: what there is at a path or an address, and its rows."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
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
from frozenfusion.utils.remote import address_of, as_given, find_remote

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
        _check_links(files, root, follow_links)
    elif _is_missing_pattern(path):
        files, root = _files_of_pattern(str(path)), _fixed(path)
        _check_links(files, root, follow_links)
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
        raise UserError(
            f"{as_given(path)}: stands for other files than tables ({PARQUET}) or tars: name those of one kind"
        )
    return "webdataset", rows_of_tars(files, columns), Path(root)


def _fetched_rows(address: str, columns: Mapping[str, str]) -> Rows:
    with fetched(address) as local:
        for source, row in READERS[suffix_of(local)](local, columns):
            yield source.replace(str(local), address), row


def _files_of_folder(folder: Path) -> list[File]:
    """The tables or tars of a folder; none where pictures or label files say that it is of another layout."""
    if is_dataset(folder):
        return list(tables_of(folder))
    names = _names_in(folder)
    if any(name in LAYOUT_FILES and name != DATA for name in names):
        return []
    if any(suffix_of(name) in IMAGE_SUFFIXES for name in [*names, *_names_in(folder / DATA)]):
        return []
    found: dict[str, list[Path]] = {PARQUET: [], TAR: []}
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if suffix_of(name) in found and not name.startswith("."):
                found[suffix_of(name)].append(Path(place, name))
    return sorted(found[PARQUET] or found[TAR])


def _names_in(folder: Path) -> list[str]:
    return os.listdir(folder) if folder.is_dir() and os.access(folder, os.R_OK) else []


def _files_of_pattern(pattern: str) -> list[File]:
    """The files that a pattern stands for; those that braces name have to be there, as whoever opens them says."""
    files: list[File] = []
    for name in _expanded(pattern):
        files += map(Path, sorted(glob(name)) if has_magic(name) else [name])
    if not files:
        raise UserError(f"{pattern}: no file is called so: check the pattern")
    return files


def _check_links(files: list[File], root: Path, follow_links: bool) -> None:
    if not follow_links:
        check_inside(root, [os.path.relpath(file, root) for file in files])


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
        wanted = _expanded(address) if _is_pattern(address) else [f"{root}/*{kind}"]
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


def _expanded(name: str) -> list[str]:
    """The names that {000..012} stands for. Raises UserError for too many."""
    before, ends = name, [""]
    while found := _BRACES.fullmatch(before):
        before, first, last, after = found.groups()
        numbers = range(int(first), int(last) + 1)
        if len(numbers) * len(ends) > MOST_FILES:
            raise UserError(f"{name}: stands for more than {MOST_FILES:,} files: name fewer")
        ends = [f"{number:0{len(first)}}{after}{end}" for number in numbers for end in ends]
    return [f"{before}{end}" for end in ends]
