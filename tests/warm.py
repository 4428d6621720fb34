"""Processes that are forked, where the system can, from one that has imported everything: that takes seconds each.

It has run nothing but imports, so what is started here is as fresh as `python SCRIPT`, and is killed, stopped and
interrupted like it. Each process of pytest has one of them. (macOS and Windows spawn.)
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

from conftest import ROOT
from tqdm import tqdm

SECONDS = 120
_STREAMS = ("out", "err")
_CONTEXT: Any = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
_IMPORTED = (
    *("tiny", "tyro", "efficientnet_pytorch", "matplotlib.pyplot", "sklearn.linear_model"),
    *("transformers.models.albert.modeling_albert", "frozenfusion.extraction.extractor"),
    *("frozenfusion.training.tuning", "frozenfusion.joint.run", "frozenfusion.evaluation.evaluator"),
)


def process(work: Callable[..., Any], *arguments: Any) -> BaseProcess:
    """A process that calls `work(*arguments)`, not yet started; it ends at the latest with this one."""
    if sys.platform == "linux":
        from multiprocessing import forkserver

        _CONTEXT.set_forkserver_preload(list(_IMPORTED))
        with mock.patch.dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path)):  # it knows of no other before 3.12
            forkserver.ensure_running()
    found: BaseProcess = _CONTEXT.Process(target=work, args=arguments, daemon=True)
    return found


class Ended(NamedTuple):
    """How a script ended: its exit status, or minus the signal; and what it printed."""

    status: int | None
    out: str
    err: str


class Script:
    """`python SCRIPT WORDS` in the folder `cwd`, started; `first` is called there before, as Popen's `preexec_fn`."""

    def __init__(
        self, script: str | Path, *words: object, cwd: Path = ROOT, first: Callable[[], object] | None = None
    ) -> None:
        self._said = tempfile.TemporaryDirectory()
        for name in _STREAMS:
            Path(self._said.name, name).touch()
        given = [str(ROOT / script), *map(str, words)]
        self._process = process(_be, given, dict(os.environ), str(cwd), first, self._said.name)
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    def poll(self) -> int | None:
        """Its exit status, once it has ended."""
        return self._process.exitcode

    def send_signal(self, number: signal.Signals) -> None:
        """Send it a signal, if it is still there."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def finish(self) -> Ended:
        """Wait until it has ended."""
        self._process.join(SECONDS)
        status = self.poll()
        if status is None:
            self._process.kill()
            self._process.join()
        with self._said as folder:
            out, err = (Path(folder, name).read_text(encoding="utf-8") for name in _STREAMS)
        assert status is not None, f"it hangs: {out}{err}"
        return Ended(status, out, err)


def _be(given: list[str], environment: dict[str, str], cwd: str, first: Callable[[], object] | None, said: str) -> None:
    for handle, name in enumerate(_STREAMS, 1):
        file = os.open(os.path.join(said, name), os.O_WRONLY)
        os.dup2(file, handle)
        os.close(file)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = given
    sys.path.insert(0, os.path.dirname(given[0]))
    tqdm.set_lock(threading.RLock())  # a killed process would leave the semaphore of tqdm's own behind
    if first is not None:
        first()
    try:
        runpy.run_path(given[0], run_name="__main__")
    except KeyboardInterrupt:  # as Python itself ends, unlike `multiprocessing`
        traceback.print_exc()
        sys.stdout.flush()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
