"""Trainings side by side, each in a process that takes one job after another (`job_worker.py`)."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import pickle
import queue
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

import torch

from frozenfusion.fusion.registry import head_class
from frozenfusion.model.run_folder import RunFolder
from frozenfusion.training.inputs import TrainingInputs
from frozenfusion.training.job_worker import AT, DONE, EPOCH, FAILED, LOG, READY, Setup
from frozenfusion.training.jobs import Failure, Job, Outcome
from frozenfusion.utils.errors import UserError
from frozenfusion.utils.progress import Progress, log

# Not by `multiprocessing`, which would run the caller's script again where that lacks its guard. Ctrl-C at a terminal
# reaches every process of it, and is the parent's to hear.
_START = (
    "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); import sys; sys.path[:] = sys.argv[1:]; "
    "from frozenfusion.training.job_worker import main; main()"
)
_HOME = str(Path(__file__).resolve().parents[2])  # of the package, wherever the parent found it
LAST_SECONDS = 20.0  # for what should come to its end: a step, a commit
_LOOK_SECONDS = 0.2  # between looks for Ctrl-C, which Windows does not hear of while it waits

Message = dict[str, Any] | None  # None: the process ended


def train_in_processes(
    inputs: TrainingInputs, jobs: Mapping[int, Job], count: int
) -> Generator[tuple[int, Outcome], None, None]:
    """Train jobs in `count` processes, and give the key of each as it ends, and how.

    A process that crashes takes its run with it and no other. When the iterator is closed all processes end, and
    finished epochs are kept. Raises UserError where none can be started.
    """
    for job in jobs.values():
        job.prepare(inputs)  # texts are encoded once, before all would
    with _Processes(inputs, jobs) as processes, _Board(inputs, jobs) as board:
        waiting = deque(jobs)
        while waiting or processes.running:
            while waiting and len(processes.running) < count:
                processes.start(waiting.popleft())
            process, message = processes.next_message()
            key = process.key
            if message is None:
                outcome: Outcome = Failure(f"{jobs[key].folder.path}: {process.end()}")
                processes.remove(process)
            elif FAILED in message or DONE in message:
                outcome = Failure(**message[FAILED]) if FAILED in message else None
                if waiting:
                    processes.give(process, waiting.popleft())
                else:
                    processes.remove(process)
            else:
                board.take(key, message)
                continue
            board.end(key)
            yield key, outcome


class _Board:
    """One line for all: how far the runs are that are under way."""

    def __init__(self, inputs: TrainingInputs, jobs: Mapping[int, Job]) -> None:
        self._jobs, self._pairs = jobs, {key: job.config.epochs * job.pairs(inputs) for key, job in jobs.items()}
        self._at = dict.fromkeys(jobs, 0)
        self._epochs: dict[int, str] = {}  # of those under way
        self._progress = Progress(sum(self._pairs.values()), "pairs", f"{len(jobs)} runs")

    def take(self, key: int, message: dict[str, Any]) -> None:
        """Show what a process told."""
        if LOG in message:
            level, text = message[LOG]
            log.log(level, "%s", text)
        elif AT in message:
            self._epochs[key] = message[EPOCH]
            self._count(key, round(message[AT] * self._pairs[key]))

    def end(self, key: int) -> None:
        """Count a run that ended as done, however it did."""
        self._epochs.pop(key, None)
        self._count(key, self._pairs[key])

    def _count(self, key: int, at: int) -> None:
        more, self._at[key] = at - self._at[key], at
        told = ", ".join(f"{self._jobs[key].folder.path.name} {epoch}" for key, epoch in sorted(self._epochs.items()))
        self._progress.update(more, **({"training": told} if told else {}))

    def __enter__(self) -> _Board:
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.close()


class _Processes:
    """The processes that are at work; a context manager, which leaves none behind."""

    def __init__(self, inputs: TrainingInputs, jobs: Mapping[int, Job]) -> None:
        self._inputs, self._jobs = inputs, jobs
        self._setup = Setup.of(inputs, jobs.values())
        self._messages: queue.SimpleQueue[tuple[_Process, Message]] = queue.SimpleQueue()
        self._share: RunFolder | None = None  # where a frozen text encoder lies already
        self._places = deque(range(len(jobs)))  # one of each process, which says its GPU
        self.running: list[_Process] = []
        self._leaving: list[_Process] = []

    def start(self, key: int) -> None:
        """Start a process with a first job."""
        place = self._places.popleft()
        setup = dataclasses.replace(self._setup, config=self._on_a_device(place))
        self.running.append(_Process(key, place, pickle.dumps(setup) + self._order(key), self._messages))

    def give(self, process: _Process, key: int) -> None:
        """Give another job to a process that has done its own."""
        if self._inputs.config.freeze_text and "text" in head_class(self._jobs[process.key].head).uses:
            self._share = self._jobs[process.key].folder
        process.key = key
        process.send(self._order(key))

    def next_message(self) -> tuple[_Process, Message]:
        """Wait for what one of them says next."""
        while True:
            with contextlib.suppress(queue.Empty):
                process, message = self._messages.get(timeout=_LOOK_SECONDS)
                if process in self.running and not (message and READY in message):
                    return process, message

    def remove(self, process: _Process) -> None:
        """Let a process go that ended, or that has nothing more to do."""
        self.running.remove(process)
        self._places.appendleft(process.place)
        process.ask_to_end()
        self._leaving.append(process)

    def __enter__(self) -> _Processes:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.running:
            process.ask_to_end()
        for process in self.running + self._leaving:
            process.close()

    def _order(self, key: int) -> bytes:
        return pickle.dumps((self._jobs[key], self._share))

    def _on_a_device(self, place: int) -> Any:
        device = self._inputs.device
        if device.type != "cuda" or device.index is not None:
            return self._inputs.config
        return dataclasses.replace(self._inputs.config, device=f"cuda:{place % torch.cuda.device_count()}")


class _Process:
    """A process, and the thread that listens to it."""

    def __init__(
        self, key: int, place: int, first: bytes, messages: queue.SimpleQueue[tuple[_Process, Message]]
    ) -> None:
        self.key, self.place = key, place
        try:
            self._popen = subprocess.Popen(
                [sys.executable, "-c", _START, *sys.path, _HOME],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                bufsize=0,
                creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
            )
        except OSError as error:
            raise UserError(f"cannot start a process that trains ({error.strerror}): give fewer `jobs`") from error
        self._is_ready = False
        self._listener = threading.Thread(target=self._listen, args=(first, messages), daemon=True)
        self._listener.start()

    def _listen(self, first: bytes, messages: queue.SimpleQueue[tuple[_Process, Message]]) -> None:
        self.send(first)  # here, since it waits until the process reads, which takes it seconds to come to
        assert self._popen.stdout is not None
        with contextlib.suppress(OSError, ValueError):  # cut short
            for line in io.BufferedReader(self._popen.stdout):  # type: ignore[type-var]  # it is raw
                self._is_ready = True
                messages.put((self, json.loads(line)))
        messages.put((self, None))

    def send(self, content: bytes) -> None:
        """Write to the process; where it has ended, that is told by the end of its output."""
        assert self._popen.stdin is not None
        rest = memoryview(content)
        with contextlib.suppress(OSError):
            while rest:
                rest = rest[self._popen.stdin.write(rest) :]

    def end(self) -> str:
        """How the process ended, which it has or soon will."""
        try:
            status = self._popen.wait(LAST_SECONDS)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            status = self._popen.wait()
        if status >= 0:
            return f"the process that trained it ended with status {status}"
        with contextlib.suppress(ValueError):
            name = signal.Signals(-status).name
            hint = " (as when memory runs out: fewer `jobs` take less)" if name == "SIGKILL" else ""
            return f"the process that trained it ended by {name}{hint}"
        return f"the process that trained it ended by signal {-status}"

    def ask_to_end(self) -> None:
        """Let it end what should not be cut short; where nothing has begun, at once."""
        if self._is_ready:
            assert self._popen.stdin is not None
            self._popen.stdin.close()
        else:
            self._popen.kill()

    def close(self) -> None:
        """Make sure that it has ended."""
        self.ask_to_end()
        self.end()
        self._listener.join(LAST_SECONDS)
        for stream in (self._popen.stdin, self._popen.stdout):
            assert stream is not None
            stream.close()
