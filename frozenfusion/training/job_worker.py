"""The process that trains one job after another: `python -c "… main()"`, started by `job_processes.py`.

To it, pickled by its parent: a `Setup`, then jobs, each with the folder whose frozen text encoder may be shared. From
it: lines of JSON. It ends when its input does, so none outlives its parent; a commit comes to its end, as by SIGTERM.
"""

from __future__ import annotations

import _thread
import contextlib
import dataclasses
import json
import logging
import os
import pickle
import platform
import queue
import signal
import sys
import threading
import time
from collections.abc import Iterable
from functools import partial
from typing import IO, Any

import torch

from frozenfusion.data.pairs import Pairs
from frozenfusion.data.splits import Split
from frozenfusion.fusion.registry import head_class, source_of
from frozenfusion.model.run_folder import RunFolder
from frozenfusion.store.reader import FeatureStore
from frozenfusion.training.config import TrainConfig
from frozenfusion.training.inputs import TrainingInputs
from frozenfusion.training.jobs import Failure, Job, Outcome, train_job
from frozenfusion.training.more import MorePairs
from frozenfusion.training.trackers import tracker_class
from frozenfusion.utils.errors import UserError
from frozenfusion.utils.interrupts import Terminated, interruptible
from frozenfusion.utils.memory import keep_freed_memory
from frozenfusion.utils.plugins import import_again
from frozenfusion.utils.progress import Progress, log

SECONDS_BETWEEN_REPORTS = 0.5
TERMINATED = 143  # the status
READY, LOG, AT, EPOCH, FAILED, DONE = "ready", "log", "at", "epoch", "failed", "done"  # keys of a message


@dataclasses.dataclass(frozen=True)
class Setup:
    """What a process makes its inputs from. Features and cached texts are files, which all processes map."""

    pairs: Pairs
    store: FeatureStore
    config: TrainConfig
    heads: list[str]
    split: Split
    more: MorePairs
    digest: str  # of what the pairs give to training
    plugins: list[tuple[str, str | None]]  # modules that the heads are from, each with its file
    threads: int
    log_level: int

    @classmethod
    def of(cls, inputs: TrainingInputs, jobs: Iterable[Job]) -> Setup:
        """What other processes make such inputs from, for jobs."""
        heads = list(dict.fromkeys(job.head for job in jobs))
        kinds = [*map(head_class, heads), *map(tracker_class, inputs.config.track)]
        sources = list(map(source_of, kinds))
        return cls(
            inputs.pairs,
            inputs.store,
            inputs.config,
            heads,
            inputs.split,
            inputs.more,
            inputs.digest,
            plugins=[(source["module"], source.get("file")) for source in sources if source],
            threads=torch.get_num_threads(),
            log_level=log.getEffectiveLevel(),
        )

    def prepared(self) -> TrainingInputs:
        """The inputs of all jobs, made in a process that is set up as their maker's was.

        Raises UserError where the files are others here than they were there: texts may be read only now.
        """
        torch.set_num_threads(self.threads)
        keep_freed_memory()
        for module, file in self.plugins:
            import_again(module, file)
        log.setLevel(logging.ERROR)  # what else there is to say of the inputs the parent has said
        inputs = TrainingInputs(self.pairs, self.store, self.config, self.heads, self.split, self.more)
        if inputs.digest != self.digest:
            raise UserError(
                f"{self.pairs.source}: texts or features are not on {platform.node()} what they are where the command "
                "runs: let all machines have the same files, and leave them as they are meanwhile"
            )
        inputs.prepare()
        log.setLevel(self.log_level)
        return inputs


Order = tuple[Job, RunFolder | None]


def main() -> None:
    """Train what comes in at stdin until it ends."""
    say = _Sayer()
    orders: queue.SimpleQueue[Order | None] = queue.SimpleQueue()
    status = 0
    try:
        with interruptible():
            setup = pickle.load(sys.stdin.buffer)
            say({READY: True})
            threading.Thread(target=_listen, args=(sys.stdin.buffer, orders), daemon=True).start()
            _train(setup, orders, say)
    except Terminated:
        status = TERMINATED
    except (EOFError, BrokenPipeError, pickle.UnpicklingError):  # cut short where the parent was killed
        pass
    os._exit(status)  # not by way of Python's end, which waits for whoever reads stdin


def _train(setup: Setup, orders: queue.SimpleQueue[Order | None], say: _Sayer) -> None:
    log.handlers, log.propagate = [_Teller(say)], False
    inputs: TrainingInputs | None = None
    while (order := orders.get()) is not None:
        job, share = order
        outcome: Outcome
        try:
            inputs = inputs or setup.prepared()  # what hinders it each job tells, as each would alone
        except Exception as error:
            outcome = Failure.of(error)
        else:
            inputs.share = inputs.share or share
            outcome = train_job(inputs, job, partial(_Report, say))
        say({DONE: True} if outcome is None else {FAILED: dataclasses.asdict(outcome)})


def _listen(incoming: IO[bytes], orders: queue.SimpleQueue[Order | None]) -> None:
    with contextlib.suppress(EOFError, OSError, pickle.UnpicklingError):  # cut short where the parent was killed
        while True:
            orders.put(pickle.load(incoming))
    orders.put(None)
    _thread.interrupt_main(signal.SIGTERM)


class _Sayer:
    """Sends messages to the parent; whatever else is printed in this process goes to its standard error."""

    def __init__(self) -> None:
        self._to = os.fdopen(os.dup(1), "w", encoding="utf-8")
        try:
            os.dup2(2, 1)
        except OSError:  # nobody reads that
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)

    def __call__(self, message: dict[str, Any]) -> None:
        self._to.write(json.dumps(message) + "\n")
        self._to.flush()


class _Teller(logging.Handler):
    """Sends what is logged to the parent."""

    def __init__(self, say: _Sayer) -> None:
        super().__init__()
        self._say = say

    def emit(self, record: logging.LogRecord) -> None:
        self._say({LOG: [record.levelno, record.getMessage()]})


class _Report(Progress):
    """Tells the parent which part of a training is done, a few times a second."""

    def __init__(self, say: _Sayer, total: int, unit: str, label: str = "", done: int = 0) -> None:
        self._say, self._total, self._at, self._said = say, total, done, 0.0

    def update(self, n: int = 1, **figures: float | str) -> None:
        self._at += n
        if time.monotonic() - self._said >= SECONDS_BETWEEN_REPORTS:
            self._said = time.monotonic()
            self._say({AT: self._at / self._total, EPOCH: figures.get("epoch", "")})

    def close(self) -> None:
        pass
