"""Standard output and error of a command whose work does not depend on who listens."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, TextIO


class Stream:
    """A text stream that takes whatever is written; `error` says why the rest of it went nowhere, None if it did not.

    What it lacks is the stream's beneath.
    """

    def __init__(self, beneath: TextIO | None) -> None:
        self.error: Exception | None = None
        if beneath is None:  # closed by whoever started the program, as services do
            self.error = OSError(errno.EBADF, os.strerror(errno.EBADF))
            beneath = io.StringIO()
        elif isinstance(beneath, io.TextIOWrapper):  # a console that lacks a letter shows another
            beneath.reconfigure(errors="replace")
        self._beneath = beneath

    def write(self, text: str) -> int:
        """Pass `text` on, if that can be."""
        self._attempt(lambda: self._beneath.write(text))
        return len(text)

    def flush(self) -> None:
        """Pass on what is held back, if that can be."""
        self._attempt(self._beneath.flush)

    def _attempt(self, action: Callable[[], object]) -> None:
        if self.error is not None:
            return
        try:
            action()
        except (OSError, ValueError) as error:
            self.error = error
            with contextlib.suppress(OSError, ValueError):  # what it still holds must not fail again when Python ends
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self._beneath.fileno())
                os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._beneath, name)


@contextlib.contextmanager
def unfailing_streams() -> Iterator[Stream]:
    """Let nothing fail that is printed inside the block; yields standard output."""
    _occupy_standard_handles()
    before = sys.stdout, sys.stderr
    output, messages = map(Stream, before)
    sys.stdout, sys.stderr = output, messages
    try:
        yield output
    finally:
        output.flush()
        messages.flush()
        sys.stdout, sys.stderr = before


def _occupy_standard_handles() -> None:
    """Open nothing under the numbers of closed streams, lest a file of ours gets one, and a library's messages."""
    while True:
        handle = os.open(os.devnull, os.O_RDWR)
        if handle > 2:
            os.close(handle)
            return
