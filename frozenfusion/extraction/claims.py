"""Which worker computes which shard: claims in the folder itself, so that workers need nothing but files in common.

A claim is a file that only one worker can create. Its owner is alive as long as it renews the time stamp of its own
lock file; a claim of one that is not counts no longer, and the next worker creates the next generation of it. Nobody
takes another's claim away, so two can never both believe to have replaced the same dead one.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import secrets
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from frozenfusion.utils.errors import UserError
from frozenfusion.utils.files import read_regular_file, writing
from frozenfusion.utils.locks import WriterLock, is_locked, lock_path

LEASE = 120.0  # seconds without a renewal after which a worker counts as dead; network file systems tell late
RENEWAL = 15.0
MAX_NAME = 200
_NAME = re.compile(r"[\w-]{1,64}-\d+-[0-9a-f]{8}", re.ASCII)
_CLAIM = re.compile(r"shard-(\d{5,})\.claim-(\d{1,9})")
_PARTIAL = re.compile(rf"shard-(\d{{5,}})\.({_NAME.pattern})\.partial", re.ASCII)


class Worker:
    """One process at work on a folder of shards: a context manager, within which it shows that it is alive."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.name = f"{_host()}-{os.getpid()}-{secrets.token_hex(4)}"
        self._lock = WriterLock(folder / self.name)
        self._lock.require()
        self._ended = threading.Event()
        self._renewing = threading.Thread(target=self._renew, name="lease", daemon=True)

    def __enter__(self) -> Worker:
        self._now()  # there is a file to renew even where the file system has no locks
        self._renewing.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._ended.set()
        self._renewing.join()
        self._lock.release()
        _unlink(lock_path(self._folder / self.name))

    def claim(self, shard: int, generations: dict[int, str]) -> Path | None:
        """The claim that this worker now has on a shard, None where another has it.

        generations: the claims that were there, by generation, as `claims` gives them for the shard; however old that
        is, no claim is had twice. Look afterwards whether the shard has been finished meanwhile.
        """
        newest = max(generations, default=0)
        if newest and (self.is_alive(generations[newest]) or self._is_being_signed(shard, newest, generations)):
            return None
        path = self._path(shard, newest + 1)
        with writing(path):
            try:
                handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
            except FileExistsError:
                return None
            with open(handle, "w", encoding="ascii") as file:
                file.write(self.name)
        return path

    def claims(self) -> dict[int, dict[int, str]]:
        """Who claims what: the owner's name by generation, by shard. An owner who has not signed yet is ""."""
        found: dict[int, dict[int, str]] = {}
        for entry in self._entries():
            of = _CLAIM.fullmatch(entry.name)
            if of:
                with contextlib.suppress(OSError):  # it has just been given up
                    owner = read_regular_file(entry.path, MAX_NAME).decode("ascii", "replace")
                    found.setdefault(int(of[1]), {})[int(of[2])] = owner
        return found

    def give_up(self, claim: Path) -> None:
        """Let others have a shard: this worker's claim, unless it is another's by now."""
        with contextlib.suppress(OSError):
            if read_regular_file(claim, MAX_NAME) == self.name.encode():
                claim.unlink()

    def owns(self, shard: int) -> bool:
        """Whether the newest claim on a shard is this worker's."""
        generations = self.claims().get(shard, {})
        return bool(generations) and generations[max(generations)] == self.name

    def leftovers(self) -> list[tuple[int, Path]]:
        """Shards that dead workers had begun, each with its file."""
        found = []
        for entry in self._entries():
            of = _PARTIAL.fullmatch(entry.name)
            if of and not self.is_alive(of[2]):
                found.append((int(of[1]), Path(entry.path)))
        return sorted(found)

    def clear(self, is_done: Callable[[int], bool]) -> None:
        """Take away claims and locks of dead workers; a claim only where its shard is done."""
        for shard, generations in self.claims().items():
            for generation, owner in generations.items():
                if is_done(shard) and not self.is_alive(owner):
                    _unlink(self._path(shard, generation))
        for entry in self._entries():
            name = entry.name.removesuffix(".lock")
            if name != entry.name and _NAME.fullmatch(name) and not self.is_alive(name):
                _unlink(Path(entry.path))

    def partial(self, shard: int) -> Path:
        """Where this worker puts a shard until it is finished."""
        return self._folder / f"shard-{shard:05}.{self.name}.partial"

    def is_alive(self, name: str) -> bool:
        """Whether a worker is at work: it has renewed its lease and, on this machine, holds its lock."""
        if not _NAME.fullmatch(name):
            return False
        lock = lock_path(self._folder / name)
        try:
            renewed = lock.stat().st_mtime
        except OSError:
            return False
        if self._now() - renewed > LEASE:
            return False
        return name.rsplit("-", 2)[0] != _host() or is_locked(self._folder / name)

    def _entries(self) -> list[os.DirEntry[str]]:
        with writing(self._folder):
            return list(os.scandir(self._folder))

    def _path(self, shard: int, generation: int) -> Path:
        return self._folder / f"shard-{shard:05}.claim-{generation}"

    def _is_being_signed(self, shard: int, generation: int, generations: dict[int, str]) -> bool:
        """Whether a claim without a name is so new that its owner is about to write it."""
        try:
            made = self._path(shard, generation).stat().st_mtime
        except OSError:
            return False
        return not generations[generation] and self._now() - made <= LEASE

    def _now(self) -> float:
        """The time by the clock of the file system, which all workers share."""
        own = lock_path(self._folder / self.name)
        with writing(own):
            own.touch()
            return own.stat().st_mtime

    def _renew(self) -> None:
        while not self._ended.wait(RENEWAL):
            with contextlib.suppress(UserError):  # a file system that is away for a moment
                self._now()


def _unlink(path: Path) -> None:
    with contextlib.suppress(OSError):  # gone, or open elsewhere, which Windows minds
        path.unlink()


def _host() -> str:
    return re.sub(r"\W", "-", platform.node() or "host", flags=re.ASCII)[:64]
