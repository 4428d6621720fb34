"""One writer at a time."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

from filelock import FileLock, Timeout

from frozenfusion.utils.errors import UserError
from frozenfusion.utils.files import file_error, writing
from frozenfusion.utils.progress import log

PATIENCE = 0.2  # seconds for a holder that is just letting go


_UNSUPPORTED = {errno.ENOLCK, errno.EOPNOTSUPP}  # a file system's "not here"
_UNWRITABLE = {errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EDQUOT}


def lock_path(path: Path) -> Path:
    """Where the lock of a file lies."""
    return path.with_name(path.name + ".lock")


def sweep_lock(path: Path) -> None:
    """Remove the lock file of `path` that a killed process left, for who only reads and takes no lock."""
    if lock_path(path).is_file():
        with contextlib.suppress(UserError):  # a writer is at work, or nothing can be removed there
            WriterLock(path).release()


def is_locked(path: Path) -> bool:
    """Whether a process of this machine holds the lock of `path`, or that cannot be told."""
    lock = FileLock(lock_path(path), thread_local=False)
    try:
        lock.acquire(timeout=0)
    except (Timeout, OSError, NotImplementedError):
        return True
    lock.release()
    return False


class WriterLock:
    """Holds `PATH.lock` until released, or until the process ends. Readers take no lock.

    As a context manager it is released at the end of the block. Raises UserError, with the holder's process id where
    it is known, if another writer holds it. Where no lock file can be made, because nothing can be written there,
    that stops only who goes on to write: see `require`.
    """

    def __init__(self, path: Path) -> None:
        self._locked, self._path = path, lock_path(path)
        self._refused: OSError | None = None
        self._made_folder = not path.parent.exists()
        with writing(self._path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(self._path, thread_local=False)
            try:
                self._lock.acquire(timeout=PATIENCE)
            except Timeout as error:
                raise UserError(f"{path}: {self._holder()} is writing it: wait until that ends, or stop it") from error
            except OSError as error:
                if error.errno in _UNWRITABLE:
                    self._refused = error
                    return
                if error.errno not in _UNSUPPORTED:
                    raise
                log.warning("%s: this file system has no locks: make sure that no second run writes it", path)
                self._unlink()
                return
        with contextlib.suppress(OSError):  # a courtesy to the second writer; a full disk must not stop the first
            told = self._path.read_bytes()
            if not told.strip() or told.strip().isdigit():  # else the library's own, where a file system has no locks
                self._path.write_text(str(os.getpid()), encoding="ascii")

    def require(self) -> None:
        """Raise UserError if the lock could not be taken: to be called before the first write."""
        if self._refused is not None:
            raise file_error(self._refused, self._locked) from self._refused

    def release(self) -> None:
        """Let the next writer in; take the lock file away, and a folder that was made for it and is empty."""
        if not self._lock.is_locked:
            return
        if os.name != "nt":  # while it is held, so that nobody's new lock is taken away
            self._unlink()
        self._lock.release()
        if os.name == "nt":  # Windows deletes no open file, and so nobody's held lock
            self._unlink()
        if self._made_folder:
            with contextlib.suppress(OSError):  # nothing was written into it
                self._locked.parent.rmdir()

    def __enter__(self) -> WriterLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def _unlink(self) -> None:
        with contextlib.suppress(OSError):
            self._path.unlink()

    def _holder(self) -> str:
        try:
            told = self._path.read_bytes()[:20].decode(errors="replace").strip()
        except OSError:  # Windows lets nobody read a locked file
            told = ""
        return f"process {told}" if told.isdecimal() else "another process"
