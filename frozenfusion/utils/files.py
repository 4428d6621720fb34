"""Files that are whole or not there at all, and file errors in a user's words."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from frozenfusion.utils.errors import UserError
from frozenfusion.utils.messages import one_line

try:
    import fcntl
except ImportError:  # Windows, where nobody can remove a file that another has open
    fcntl = None  # type: ignore[assignment]

MAX_JSON_BYTES = 256 * 2**20

_ADVICE = {
    errno.ENOSPC: "the disk is full: make room and run the same command again",
    errno.EDQUOT: "the disk quota is used up: make room and run the same command again",
    errno.EFBIG: "the file would pass the file-size limit: raise it (ulimit -f) and run the same command again",
    errno.EROFS: "the file system is read-only: choose a folder that can be written",
    errno.EACCES: "permission denied: choose a path that you may use",
    errno.EPERM: "permission denied: choose a path that you may use",
    errno.ENOENT: "no such file or folder: check the path",
    errno.ENOTDIR: "a part of the path is not a folder: check the path",
    errno.EMFILE: "too many files are open: raise the limit (ulimit -n) and run the same command again",
    errno.EISDIR: "this is a folder, a file was expected: check the path",
}


def file_error(error: OSError, path: str | os.PathLike[str]) -> UserError:
    """The user's version of an operating-system error on `path`."""
    advice = _ADVICE.get(error.errno or 0, f"{error.strerror or error}: check the path and run again")
    if os.name == "nt" and isinstance(error, PermissionError):
        advice = "open in another program, or not yours to write: close it there and run the same command again"
    return UserError(f"{path}: {advice}")


@contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn operating-system errors inside the block into a UserError that names `path`."""
    try:
        yield
    except OSError as error:
        raise file_error(error, path) from error


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path` that takes its place when the block ends without an error.

    Readers see the old file or the new one, never a part. What a killed process left of the same file is swept away.
    Raises UserError where the disk says no.
    """
    path = Path(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path)
        temporary, handle = _held_file(path)
        try:
            yield temporary
            os.fsync(handle)
            os.close(handle)  # Windows replaces no open file
            handle = -1
            os.replace(temporary, path)
        finally:
            if handle >= 0:
                os.close(handle)
            temporary.unlink(missing_ok=True)


def temporary_beside(path: Path) -> Path:
    """A name, like no other, for what will take the place of `path`."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp{path.suffix}")


def sweep(path: Path) -> None:
    """Remove what killed processes left of writing `path`: files under our temporary names that nobody holds."""
    _sweep(path.parent, re.escape(f".{path.name}.") + "[0-9a-f]{8}" + re.escape(f".tmp{path.suffix}"))


def sweep_folder(folder: Path) -> None:
    """Remove what killed processes left of writing any file of a folder."""
    _sweep(folder, r"\..+?(\.[^.]+|)\.[0-9a-f]{8}\.tmp\1")


def _sweep(folder: Path, names: str) -> None:
    ours = re.compile(names, re.DOTALL)
    with contextlib.suppress(OSError):  # a folder that is not there, or where nothing can be removed
        for leftover in [Path(entry.path) for entry in os.scandir(folder) if ours.fullmatch(entry.name)]:
            with contextlib.suppress(OSError):
                _remove_unheld(leftover)


def _remove_unheld(leftover: Path) -> None:
    """Remove a temporary file or folder, unless a process that is at work holds it."""
    mode = leftover.lstat().st_mode
    if stat.S_ISDIR(mode):
        shutil.rmtree(leftover)
    elif stat.S_ISREG(mode) and fcntl is None:
        leftover.unlink()
    elif stat.S_ISREG(mode):
        handle = os.open(leftover, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            leftover.unlink()
        finally:
            os.close(handle)


def _held_file(path: Path) -> tuple[Path, int]:
    """A new temporary file beside `path` and a handle that holds it as long as it is open, if only by being open."""
    while True:
        temporary = temporary_beside(path)
        handle = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0), 0o666)
        if fcntl is not None:
            with contextlib.suppress(OSError):  # a file system without locks: then nobody else can take one either
                fcntl.flock(handle, fcntl.LOCK_EX)
        if temporary.exists():
            return temporary, handle
        os.close(handle)  # swept away before it was held


def write_atomically(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Write a whole file or none of it: text as UTF-8, bytes as they are."""
    with replacing(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    write_atomically(path, json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n")


def keep_current(path: str | os.PathLike[str], content: str) -> None:
    """Write a whole text file unless it says just that already: then nothing has to be writable."""
    with contextlib.suppress(OSError):
        if read_regular_file(path, len(content.encode())) == content.encode():
            return
    write_atomically(path, content)


def check_writable(folder: Path) -> None:
    """Raise UserError, before hours of work, where nothing can be put into a folder, which need not be there yet."""
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    with writing(folder), tempfile.TemporaryFile(dir=there):
        pass


def link_or_copy(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """Give a file a second name, atomically; where the file system cannot, a copy.

    Only for files that are always replaced whole: a write in place would change both.
    """
    link = temporary_beside(Path(target))
    try:
        os.link(source, link)
    except OSError:
        with replacing(target) as temporary:
            shutil.copyfile(source, temporary)
        return
    with writing(target):
        try:
            os.replace(link, target)
        finally:
            link.unlink(missing_ok=True)  # still there if both names meant one file before


def put_first(source: Path, target: Path) -> bool:
    """Give a finished file the name `target`, unless another has it already; `source` is gone either way.

    Returns whether it was the first. Raises UserError where the disk says no.
    """
    with writing(target):
        try:
            os.link(source, target)
        except FileExistsError:
            source.unlink()
            return False
        except OSError:  # no hard links here, or no `source`
            if target.exists():
                source.unlink(missing_ok=True)
                return False
            os.replace(source, target)
        else:
            source.unlink()
        sync_folder(target.parent)
    return True


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read a JSON file of bounded size. Raises UserError for a missing, huge or malformed one."""
    return parse_json(read_file(path, MAX_JSON_BYTES), path)


def parse_json(content: str | bytes, path: str | os.PathLike[str]) -> Any:
    """What JSON out of `path` says. Raises UserError for a malformed, or too deeply nested, one."""
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON ({one_line(error)}): restore or remove the file") from error


# What a system has of these: not to wait on a pipe, not to lend the handle to children, and bytes as they are.
_READ = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)

_WINDOWS_DEVICE = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)\s*(\.|$)|.*:", re.IGNORECASE | re.DOTALL)


def is_windows_device(name: str) -> bool:
    """Whether a file name means no file of its own on Windows: a device (NUL.txt), a stream of another file (a:b)."""
    return _WINDOWS_DEVICE.match(name) is not None


def sync_folder(folder: Path) -> None:
    """Return when the names in a folder are on the disk, where the system can tell: Windows cannot."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class NotRegularError(OSError):
    """A path that is there but is a folder, a pipe or a device."""


class TooLargeError(OSError):
    """A file with more bytes than the caller reads."""


@contextmanager
def open_regular_file(path: str | os.PathLike[str], limit: int) -> Iterator[BinaryIO]:
    """Open a regular file of at most `limit` bytes for reading; never waits on a pipe or a device.

    Raises OSError: NotRegularError, TooLargeError, or what the operating system says.
    """
    if os.name == "nt" and is_windows_device(os.path.basename(path)):
        raise NotRegularError("not a regular file")
    handle = os.open(path, _READ)
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise NotRegularError("not a regular file")
        if status.st_size > limit:
            raise TooLargeError(f"{status.st_size:,} bytes, more than {limit:,}")
        with open(handle, "rb", closefd=False) as file:
            yield file
    finally:
        os.close(handle)


def read_regular_file(path: str | os.PathLike[str], limit: int) -> bytes:
    """Read what `open_regular_file` opens. Raises OSError as it does."""
    with open_regular_file(path, limit) as file:
        content = file.read(limit + 1)
    if len(content) > limit:  # it grew, or is of a kind that does not tell its size
        raise TooLargeError(f"more than {limit:,} bytes")
    return content


def read_part(path: str | os.PathLike[str], offset: int, size: int) -> bytes:
    """The `size` bytes at `offset` of a regular file. Raises OSError: NotRegularError, or that the file ends before."""
    with open_regular_file(path, 2**63) as file:
        file.seek(offset)
        content = file.read(size)
    if len(content) < size:
        raise OSError(None, f"cut short: {len(content):,} of {size:,} bytes are there")
    return content


def read_file(path: str | os.PathLike[str], limit: int) -> bytes:
    """What `read_regular_file` reads. Raises UserError for what is missing, no regular file, or larger than that."""
    with reading(path):
        return read_regular_file(path, limit)


@contextmanager
def reading(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn what `open_regular_file` raises inside the block into a UserError that names `path`."""
    try:
        yield
    except (NotRegularError, TooLargeError) as error:
        raise UserError(f"{path}: {error}, which no file of this kind is: check the path") from error
    except OSError as error:
        raise file_error(error, path) from error


def is_regular(path: str | os.PathLike[str]) -> bool:
    """Whether a regular file is there. Raises OSError where there is nothing, or it may not be looked at."""
    return stat.S_ISREG(os.stat(path).st_mode)


def check_regular(path: str | os.PathLike[str], limit: int | None = None) -> None:
    """Raise UserError for a pipe, device, folder or too large a file, before a library reads it.

    What is not there, or may not be looked at, is left to who reads.
    """
    try:
        status = os.stat(path)
    except OSError:
        return
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"{path}: not a regular file, which no file of this kind is: check the path")
    if limit is not None and status.st_size > limit:
        raise UserError(f"{path}: {status.st_size:,} bytes, more than {limit:,}, which no file of this kind has")
