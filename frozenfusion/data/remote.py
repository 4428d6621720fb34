"""Data in object stores and on hubs: which addresses a manifest may name, and manifests that are read from there."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit
from urllib.request import url2pathname

from frozenfusion.data.places import ImagePlace, RemoteFile
from frozenfusion.data.records import MAX_TABLE_BYTES, checked_path
from frozenfusion.utils.errors import UserError
from frozenfusion.utils.files import file_error
from frozenfusion.utils.messages import shown
from frozenfusion.utils.remote import (
    UnreachableError,
    address_of,
    as_given,
    check_scheme,
    read_remote_part,
    remote_error,
    stat_remote,
)

_COPIED_AT_ONCE = 2**26  # bytes of a manifest


def checked_image(folder: Path, name: str, source: str, *, remote: bool) -> ImagePlace:
    """Where the image is that a manifest in `folder` names: below it, or with `remote` in any object store.

    Raises UserError for what is not followed, so that a manifest of a stranger's fetches nothing.
    """
    base = address_of(folder)
    if "://" not in name:
        path = checked_path(folder, name, source)
        return path if base is None else RemoteFile(address_of(path) or "")
    scheme = name.partition("://")[0].lower()
    if scheme == "file":
        return _local(folder, name, source)
    try:
        check_scheme(name)
    except UserError as error:
        raise UserError(f"{source}: image {error}") from error
    if address_of(name) != name or ".." in PurePosixPath(name).parts:
        raise UserError(f"{source}: image {shown(name)} is no address: correct it")
    if not remote and not (base is not None and name.startswith(f"{base}/")):
        raise UserError(
            f"{source}: image {shown(name)} is not below {as_given(folder)}: `remote=True` lets images be anywhere in "
            "object stores"
        )
    return RemoteFile(name)


def checked_text_path(folder: Path, name: str, source: str) -> Path:
    """The text file that a manifest in `folder` names. Raises UserError where it is none of this machine's."""
    if address_of(folder) is not None or "://" in name:
        raise UserError(f"{source}: text_path {shown(name)}: texts are read on this machine: give a column text")
    return checked_path(folder, name, source)


@contextmanager
def fetched(address: str) -> Iterator[Path]:
    """A manifest as a file of this machine, meanwhile; what is said of that file is said of the address."""
    with tempfile.TemporaryDirectory() as folder:
        local = Path(folder, PurePosixPath(address).name)
        try:
            _copy(address, local)
        except (UnreachableError, FileNotFoundError) as error:
            raise remote_error(error, address) from error
        except OSError as error:
            raise file_error(error, local) from error
        try:
            yield local
        except UserError as error:
            raise UserError(str(error).replace(str(local), address)) from error


def _copy(address: str, local: Path) -> None:
    """Copy a manifest part by part. Raises UserError where it is too large, or changes meanwhile; OSError."""
    stat = stat_remote(address)
    if stat[0] > MAX_TABLE_BYTES:
        raise UserError(f"{address}: {stat[0]:,} bytes, more than {MAX_TABLE_BYTES:,}, which no file of this kind has")
    with local.open("wb") as file:
        for start in range(0, stat[0], _COPIED_AT_ONCE):
            file.write(read_remote_part(address, start, min(_COPIED_AT_ONCE, stat[0] - start)))
    if stat_remote(address) != stat:
        raise UserError(f"{address}: was changed while it was read: run the same command again")


def _local(folder: Path, name: str, source: str) -> Path:
    """The file of a file:// address, which has to be below `folder` as its letters say."""
    parts = urlsplit(name)
    path = Path(url2pathname(parts.path))
    root = folder.absolute()
    if parts.netloc not in ("", "localhost") or address_of(folder) is not None or not path.is_relative_to(root):
        raise UserError(f"{source}: image {shown(name)} is not below {as_given(folder)}: give paths inside that folder")
    return checked_path(folder, path.relative_to(root).as_posix(), source)
