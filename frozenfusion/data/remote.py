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
from frozenfusion.utils.files import TooLargeError
from frozenfusion.utils.messages import shown
from frozenfusion.utils.remote import address_of, check_scheme, read_remote, remote_error


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
            f"{source}: image {shown(name)} is not below {base or folder}: `remote=True` lets images be anywhere in "
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
    try:
        content = read_remote(address, MAX_TABLE_BYTES)
    except TooLargeError as error:
        raise UserError(f"{address}: {error}, which no file of this kind has") from error
    except OSError as error:
        raise remote_error(error, address) from error
    with tempfile.TemporaryDirectory() as folder:
        local = Path(folder, PurePosixPath(address).name)
        local.write_bytes(content)
        try:
            yield local
        except UserError as error:
            raise UserError(str(error).replace(str(local), address)) from error


def _local(folder: Path, name: str, source: str) -> Path:
    """The file of a file:// address, which has to be below `folder` as its letters say."""
    parts = urlsplit(name)
    path = Path(url2pathname(parts.path))
    root = folder.absolute()
    if parts.netloc not in ("", "localhost") or address_of(folder) is not None or not path.is_relative_to(root):
        raise UserError(f"{source}: image {shown(name)} is not below {folder}: give paths inside that folder")
    return checked_path(folder, path.relative_to(root).as_posix(), source)
