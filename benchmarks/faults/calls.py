"""The calls of a process that change files below one folder: counted, and one of them stopped.

They are caught where Python makes them. That is nearly all of them, as strace shows: HDF5 and safetensors write into
memory here, and only tokenizers writes a file (tokenizer.json) in Rust, which is written by Python instead.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
import pathlib
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

KILL, ENOSPC, EIO = FAULTS = ("kill", "ENOSPC", "EIO")
_TWO_NAMES = ("rename", "replace", "link", "symlink")
_OTHERS = (
    *("unlink", "remove", "mkdir", "rmdir", "truncate", "utime", "chmod", "fchmod"),
    *("writev", "ftruncate", "posix_fallocate", "fsync", "fdatasync", "sendfile"),
)
_TAKES_ROOM = {"create", "write", "pwrite", "writev", "ftruncate", "posix_fallocate", "sendfile", "mkdir", "link"}
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


class Calls:
    """Counts the file-changing calls below `folder`, from 1, once installed; call number `at` meets the fault.

    kill: the process ends before it. EIO: it fails, once. ENOSPC: it fails, a write after half of its bytes, and so
    does from then on whatever takes room. `made` has name and path of each call.
    """

    def __init__(self, folder: Path, fault: str = "", at: int = 0) -> None:
        self.made: list[tuple[str, str]] = []
        self._folder, self._fault, self._at = os.path.join(folder, ""), fault, at
        self._paths: dict[int, str] = {}  # of open files, by handle
        self._failure = getattr(errno, fault, 0)

    def install(self) -> None:
        """Catch the calls of this process, for good."""
        accessor = getattr(pathlib, "_NormalAccessor", None)  # Python 3.10 keeps the functions of its own there
        special = {"open": self._open, "close": self._close, "write": self._writing, "pwrite": self._writing}
        for name in (*special, *_TWO_NAMES, *_OTHERS):
            if hasattr(os, name):
                caught = special.get(name, self._calling)(getattr(os, name))
                setattr(os, name, caught)
                if hasattr(accessor, name) and name != "open":
                    setattr(accessor, name, staticmethod(caught))
        io.open = builtins.open = self._opening(io.open)
        if accessor is not None:
            accessor.open = staticmethod(io.open)
        self._catch_tokenizers()

    def meet(self, name: str, path: str, half: Callable[[], object] = lambda: None) -> None:
        """Count a call that is about to be made; `half` does a part of it."""
        self.made.append((name, os.path.relpath(path, self._folder)))
        number = len(self.made)
        if number == self._at and self._fault == KILL:
            os.kill(os.getpid(), signal.SIGKILL)
        full = self._fault == ENOSPC and number > self._at > 0 and name in _TAKES_ROOM
        if number == self._at or full:
            if self._fault == ENOSPC and number == self._at:
                half()
            raise OSError(self._failure, os.strerror(self._failure), path)

    def _below(self, path: Any, folder: int | None = None) -> str | None:
        """The path of a file that is watched: a name, or an open file's handle."""
        if isinstance(path, int):
            return self._paths.get(path)
        path = os.path.join(self._paths.get(folder, "") if folder is not None else "", os.fsdecode(path))
        path = os.path.abspath(path)
        return path if path.startswith(self._folder) or os.path.join(path, "") == self._folder else None

    def _calling(self, real: Callable[..., Any]) -> Callable[..., Any]:
        name = real.__name__

        def caught(*given: Any, **more: Any) -> Any:
            named = given[:2] if name in _TWO_NAMES else given[:1]
            found = next((below for each in named if (below := self._below(each, more.get("dir_fd")))), None)
            if found:
                self.meet(name, found)
            return real(*given, **more)

        return caught

    def _writing(self, real: Callable[..., int]) -> Callable[..., int]:
        def caught(handle: int, content: Any, *place: int) -> int:
            if handle in self._paths:
                part = memoryview(content).cast("B")
                self.meet(real.__name__, self._paths[handle], lambda: real(handle, part[: len(part) // 2], *place))
            return real(handle, content, *place)

        return caught

    def _open(self, real: Callable[..., int]) -> Callable[..., int]:
        def caught(path: Any, flags: int, *mode: Any, **more: Any) -> int:
            found = self._below(path, more.get("dir_fd"))
            if found and flags & _WRITES:
                self.meet("create" if flags & os.O_CREAT else "open", found)
            handle = real(path, flags, *mode, **more)
            if found:
                self._paths[handle] = found
            return handle

        return caught

    def _close(self, real: Callable[[int], None]) -> Callable[[int], None]:
        def caught(handle: int) -> None:
            self._paths.pop(handle, None)
            real(handle)

        return caught

    def _opening(self, real: Callable[..., Any]) -> Callable[..., Any]:
        calls = self

        class File(io.FileIO):
            """A file whose writes are caught."""

            def __init__(self, path: Any, mode: str, closefd: bool) -> None:
                self.path = calls._below(path)
                if not isinstance(path, int):
                    calls.meet("open" if mode[0] == "r" else "create", self.path)
                super().__init__(path, mode, closefd)
                calls._paths[self.fileno()] = self.path

            def write(self, content: Any) -> int:
                part = memoryview(content).cast("B")
                calls.meet("write", self.path, lambda: super(File, self).write(part[: len(part) // 2]))
                return super().write(content)

            def truncate(self, size: int | None = None) -> int:
                calls.meet("ftruncate", self.path)
                return super().truncate(size)

            def close(self) -> None:
                if not self.closed and self.closefd:
                    calls._paths.pop(self.fileno(), None)
                super().close()

        def caught(file: Any, mode: str = "r", buffering: int = -1, encoding: Any = None, errors: Any = None,
                   newline: Any = None, closefd: bool = True, opener: Any = None) -> Any:  # fmt: skip
            if opener is not None or not set(mode) & set("wax+") or self._below(file) is None:
                return real(file, mode, buffering, encoding, errors, newline, closefd, opener)
            raw = File(file, mode.replace("b", "").replace("t", ""), closefd)
            if buffering == 0:
                return raw
            whole = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
            return whole if "b" in mode else io.TextIOWrapper(whole, encoding, errors, newline)

        return caught

    def _catch_tokenizers(self) -> None:
        from transformers import PreTrainedTokenizerFast

        real = PreTrainedTokenizerFast.backend_tokenizer

        class Saver:
            """A tokenizer of Rust that is saved by Python, with the error that Rust would raise."""

            def __init__(self, tokenizer: Any) -> None:
                self._tokenizer = tokenizer

            def __getattr__(self, name: str) -> Any:
                return getattr(self._tokenizer, name)

            def save(self, path: str, pretty: bool = True) -> None:
                try:
                    Path(path).write_text(self._tokenizer.to_str(pretty=pretty), encoding="utf-8")
                except OSError as error:
                    raise Exception(f"{error.strerror} (os error {error.errno})") from None

        PreTrainedTokenizerFast.backend_tokenizer = property(lambda tokenizer: Saver(real.fget(tokenizer)))
