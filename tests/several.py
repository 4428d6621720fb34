"""Several processes that train together, started as torchrun starts them, but from a process that has all imported."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import warm
from torch.distributed import TCPStore

SECONDS = 60


class Launch:
    """`count` processes that call `work(*arguments)`; what each prints goes to `out`/RANK.txt."""

    def __init__(self, count: int, out: Path, work: Callable[..., Any], *arguments: Any) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self._out = out
        self._store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        given = (count, self._store.port, out, work, arguments)
        self.processes: list[BaseProcess] = [warm.process(_work, rank, *given) for rank in range(count)]
        for process in self.processes:
            process.start()

    def end(self) -> list[int | None]:
        """Wait until all have ended, and the exit status of each; where one fails the others are told to end."""
        last, told = time.monotonic() + SECONDS, False
        while any(process.is_alive() for process in self.processes):
            assert time.monotonic() < last, "the processes hang"
            if not told and any(process.exitcode for process in self.processes):
                time.sleep(0.1)  # as often as torchrun looks
                self.signal(signal.SIGTERM)
                told = True
            time.sleep(0.02)
        return [process.exitcode for process in self.processes]

    def results(self) -> list[Any]:
        """What the call returned in each process."""
        assert self.end() == [0] * len(self.processes), self.said()
        return [pickle.loads((self._out / f"{rank}.pickle").read_bytes()) for rank in range(len(self.processes))]

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to those that are still there."""
        for process in self.processes:
            if process.is_alive() and process.pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, number)

    def said(self) -> list[str]:
        """What each process printed."""
        return [(self._out / f"{rank}.txt").read_text() for rank in range(len(self.processes))]


def _work(rank: int, count: int, port: int, out: Path, work: Callable[..., Any], arguments: Any) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    with (out / f"{rank}.txt").open("w", buffering=1) as file:
        sys.stdout = sys.stderr = file
        (out / f"{rank}.pickle").write_bytes(pickle.dumps(work(*arguments)))
