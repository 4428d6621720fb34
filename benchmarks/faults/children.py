"""Processes that are forked from one that has imported everything: one for each fault (POSIX only)."""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

SECONDS = 60  # of a child: what takes longer hangs


@dataclass(frozen=True)
class Ended:
    """How a child ended: its exit status, or minus the signal; what it said on stderr; what its work returned."""

    status: int
    said: str
    result: Any

    @property
    def hung(self) -> bool:
        return self.status == -signal.SIGALRM


def in_child(work: Callable[[], Any]) -> Ended:
    """Do `work`, whose result JSON can hold, in a forked process. Its stdout is thrown away."""
    with tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as result:
        sys.stdout.flush()
        sys.stderr.flush()
        gc.freeze()  # or the child's collections would copy all that it shares
        child = os.fork()
        if not child:
            _be_child(work, said.fileno(), result.fileno())
        _, how = os.waitpid(child, 0)
        said.seek(0)
        result.seek(0)
        content = result.read()
        return Ended(
            -os.WTERMSIG(how) if os.WIFSIGNALED(how) else os.WEXITSTATUS(how),
            said.read().decode(errors="replace"),
            json.loads(content) if content else None,
        )


def _be_child(work: Callable[[], Any], said: int, result: int) -> None:
    status = 70
    try:
        signal.alarm(SECONDS)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(said, 2)
        found = work()
        os.write(result, json.dumps(found).encode())
        status = found if isinstance(found, int) else 0
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(status)
