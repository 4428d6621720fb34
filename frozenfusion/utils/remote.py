"""Files in object stores and on hubs, by addresses such as s3://bucket/key: through fsspec, within limits.

A `Path` cannot hold the two slashes of an address; `address_of` gives them back.
"""

from __future__ import annotations

import hashlib
import os
import re
from functools import cache
from typing import Any
from urllib.request import url2pathname

from frozenfusion.utils.errors import UserError
from frozenfusion.utils.files import TooLargeError
from frozenfusion.utils.messages import first_line, one_line, shown

# http is left out: a manifest could name addresses that only this machine can reach.
SCHEMES = ("s3", "s3a", "gs", "gcs", "az", "abfs", "hf", "memory")
_PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs"}
MOST_CONNECTIONS = 256  # to S3, whose package stops at ten
_ADDRESS = re.compile(rf"({'|'.join(SCHEMES)}):/{{1,2}}(?!/)(.+)", re.DOTALL)
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+(.+)", re.DOTALL)  # not C:/
_VERSIONS = ("ETag", "etag", "md5Hash", "generation", "blob_id")  # of a content, as stores tell them
_TIMES = ("LastModified", "last_modified", "updated", "mtime", "created")

Stat = tuple[int, int]


class UnreachableError(OSError):
    """A store that does not answer, or lets nobody in: nothing is known of the file."""


def address_of(path: str | os.PathLike[str]) -> str | None:
    """The address that `path` is, or was before it became a Path; None for a path of this machine."""
    found = _ADDRESS.fullmatch(path if isinstance(path, str) else os.fspath(path).replace("\\", "/"))
    return f"{found[1]}://{found[2]}" if found else None


def as_given(path: str | os.PathLike[str]) -> str:
    """A path, or the address that it was before it became a Path, as messages tell it."""
    return address_of(path) or os.fspath(path)


def check_no_url(path: str | os.PathLike[str]) -> None:
    """Raise UserError, which says what to give instead, for a URL that is no address of a store that is read."""
    found = _URL.fullmatch(os.fspath(path).replace("\\", "/"))
    if found is None:
        return
    scheme, rest = found.groups()
    if scheme.lower() == "file":
        raise UserError(f"file:///{rest}: a file of this machine is given by its path: {url2pathname(f'/{rest}')}")
    if scheme not in SCHEMES:
        check_scheme(f"{scheme}://{rest}")


@cache
def file_system(scheme: str) -> Any:
    """The file system of a scheme. Raises UserError, which says what to install."""
    try:
        import fsspec

        # a listing that is remembered would be all that is known of a file from then on
        options: dict[str, Any] = {"use_listings_cache": False}
        if _PACKAGES.get(scheme) == "s3fs":
            given = fsspec.config.conf.get(scheme, {}).get("config_kwargs", {})
            options["config_kwargs"] = {"max_pool_connections": MOST_CONNECTIONS, **given}
        return fsspec.filesystem(scheme, **options)
    except ImportError as error:
        needed = " ".join(["fsspec", *filter(None, [_PACKAGES.get(scheme)])])
        raise UserError(f"{scheme}://: reading it needs a package: pip install {needed}") from error
    except Exception as error:  # each store has its own
        raise UserError(f"{scheme}://: cannot be used ({one_line(error)}): check its configuration") from error


def stat_remote(address: str) -> Stat:
    """Size and a number that changes with the content. Raises OSError: UnreachableError, FileNotFoundError."""
    info = _asked(address, "info")
    if info.get("type") == "directory":
        raise FileNotFoundError(address)
    told = next((info[name] for name in (*_VERSIONS, *_TIMES) if info.get(name)), "")
    code = hashlib.blake2b(str(told).encode(errors="surrogatepass"), digest_size=8).digest()
    return int(info.get("size") or 0), int.from_bytes(code, "big") >> 1


def read_remote(address: str, limit: int) -> bytes:
    """A whole file of at most `limit` bytes. Raises OSError: UnreachableError, FileNotFoundError, TooLargeError."""
    try:
        content = read_remote_part(address, 0, limit + 1)
    except UnreachableError as error:
        if "range" not in str(error).lower() or stat_remote(address)[0]:
            raise
        return b""  # of which some stores have no part
    if len(content) > limit:
        raise TooLargeError(f"more than {limit:,} bytes")
    return content


def read_remote_part(address: str, offset: int, size: int) -> bytes:
    """Up to `size` bytes from `offset` on. Raises OSError: UnreachableError, FileNotFoundError."""
    return bytes(_asked(address, "cat_file", start=offset, end=offset + size))


def open_remote(address: str) -> Any:
    """A file to read and seek in. Raises OSError: UnreachableError, FileNotFoundError."""
    return _asked(address, "open", "rb")


def find_remote(address: str) -> list[str]:
    """The addresses of all files below one, sorted. Raises UserError where its store cannot be asked."""
    scheme = address.partition("://")[0]
    try:
        found = _asked(address, "find")
    except OSError as error:
        raise remote_error(error, address) from error
    return sorted(f"{scheme}://{name.removeprefix(f'{scheme}://').lstrip('/')}" for name in found)


def remote_error(error: OSError, address: str) -> UserError:
    """The user's version of an error on a remote file."""
    if isinstance(error, FileNotFoundError):
        told = "check the address"
        if address.startswith("memory:"):
            told = "every process has a memory:// of its own, so give a file or folder here"
        return UserError(f"{address}: no such file or folder: {told}")
    return UserError(f"{address}: cannot be read ({first_line(error)}): check the address, the network and your access")


def check_scheme(address: str) -> None:
    """Raise UserError unless addresses of this kind can be read here."""
    scheme = address.partition("://")[0]
    if scheme not in SCHEMES:
        told = ", ".join(f"{name}://" for name in SCHEMES)
        raise UserError(f"{shown(address)}: only {told} are read: copy it to one of these, or to a file here")
    file_system(scheme)


def _asked(address: str, what: str, *arguments: Any, **options: Any) -> Any:
    """What a store answers. Its errors are of many kinds: nothing there, and all the rest."""
    store = file_system(address.partition("://")[0])
    try:
        return getattr(store, what)(address, *arguments, **options)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise FileNotFoundError(address) from error
    except Exception as error:
        raise UnreachableError(one_line(error)) from error
