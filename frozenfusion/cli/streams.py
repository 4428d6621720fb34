"""Standard output and error of a command whose work does not depend on who listens."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, TextIO

from frozenfusion.utils.errors import UsageError, UserError

UNTIL_ENDED = 10.0  # seconds until a launcher that ends its processes has done so


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


def with_one_voice(work: Callable[[], int], rank: int) -> int:
    """The exit status of `work`, which several processes do, and of which that of rank 0 alone is to be heard.

    An error that all of them meet is the first one's to tell. When it has ended, so does the launcher end this one;
    where that does not happen, the last words of this one are printed after all.
    """
    if rank == 0:
        return work()
    said, failure, status = io.StringIO(), None, UserError.exit_status
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            status = work()
        except Exception as error:
            failure = error
    if not status or status > UsageError.exit_status:  # done, or interrupted
        return status
    try:
        time.sleep(UNTIL_ENDED)
    except KeyboardInterrupt:
        return status
    if failure is not None:
        raise failure
    print(said.getvalue().rstrip().rpartition("\n")[2], file=sys.stderr)
    return status


def _occupy_standard_handles() -> None:
    """Open nothing under the numbers of closed streams, lest a file of ours gets one, and a library's messages."""
    while True:
        handle = os.open(os.devnull, os.O_RDWR)
        if handle > 2:
            os.close(handle)
            return
