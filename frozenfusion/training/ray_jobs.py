"""Trainings on a Ray cluster, a task each. What is finished, and how far the others are, is in their run folders."""

from __future__ import annotations

import contextlib
import os
import pickle
import secrets
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

from frozenfusion.fusion.registry import head_class
from frozenfusion.model.run_folder import RunFolder
from frozenfusion.training.inputs import TrainingInputs
from frozenfusion.training.job_processes import LAST_SECONDS
from frozenfusion.training.job_worker import Setup
from frozenfusion.training.jobs import Failure, Job, Outcome, train_job
from frozenfusion.utils.errors import UserError
from frozenfusion.utils.messages import one_line
from frozenfusion.utils.progress import Progress, log
from frozenfusion.utils.ray_cluster import (
    Cluster,
    Told,
    connected,
    go_to,
    keeping_warnings,
    result_of,
    room_for,
    wait_for,
)

RETRIES = 2  # of a run whose process died, each from its last checkpoint
LOOK_SECONDS = 0.5

_inputs: dict[str, TrainingInputs] = {}  # of the sweep that this process works for, by its token


def train_on_ray(
    inputs: TrainingInputs, jobs: Mapping[int, Job], cluster: Cluster
) -> Generator[tuple[int, Outcome], None, None]:
    """Train jobs on a cluster, and give the key of each as it ends, and how.

    When the iterator is closed all tasks end, and finished epochs are kept. Raises UserError where there is no cluster.
    """
    setup = Setup.of(inputs, jobs.values())
    fine_tuned = any("text" in head_class(job.head).uses and not job.config.freeze_text for job in jobs.values())
    with connected(cluster.address) as ray:
        room = room_for(ray, cluster.gpus_per_worker, setup.threads if fine_tuned else 1)
        for job in jobs.values():
            job.prepare(inputs)  # texts are encoded once, before all would
        task = ray.remote(num_cpus=room.cpus, num_gpus=room.gpus, max_retries=RETRIES)(train_there)
        shared, token = ray.put(pickle.dumps(setup)), secrets.token_hex(8)
        where = os.getcwd(), inputs.pairs.path, inputs.store.path
        keys = {task.remote(shared, token, where, job): key for key, job in jobs.items()}
        try:
            with _Board(inputs, jobs) as board:
                while keys:
                    for call in wait_for(ray, [*keys], LOOK_SECONDS):
                        key = keys.pop(call)
                        board.end(key)
                        yield key, _outcome(ray, call, jobs[key])
                    board.look()
        finally:
            for call in keys:
                ray.cancel(call)
            if keys:
                ray.wait([*keys], num_returns=len(keys), timeout=LAST_SECONDS)


def _outcome(ray: Any, call: Any, job: Job) -> Outcome:
    outcome: Outcome
    try:
        outcome, told = result_of(ray, call)
    except (ray.exceptions.WorkerCrashedError, ray.exceptions.NodeDiedError, ray.exceptions.OutOfMemoryError) as error:
        kind = type(error).__name__
        return Failure(f"{job.folder.path}: the process that trained it died, and those of {RETRIES} retries ({kind})")
    except (RuntimeError, ImportError, ray.exceptions.RaySystemError) as error:  # what a run raises is its outcome
        raise UserError(
            f"a worker of the Ray cluster could not begin ({one_line(error, 300)}): see whether all nodes have the "
            "package, of the same version (docs/scaling.md)"
        ) from error
    for level, text in told:
        log.log(level, "%s", text)
    return outcome


def train_there(setup: bytes, token: str, where: tuple[str, Path, Path], job: Job) -> tuple[Outcome, Told]:
    """Train a run in a process of the cluster; and the warnings that it gave rise to.

    setup: a `Setup`, pickled, since unpickled it opens its feature file. where: the driver's folder, the data,
    and that file.
    """
    with keeping_warnings() as told:
        try:
            go_to(*where, job.folder.path)
            if token not in _inputs:
                _inputs.clear()
                _inputs[token] = pickle.loads(setup).prepared()
        except Exception as error:
            return Failure.of(error), told
        return train_job(_inputs[token], job), told


class _Board:
    """One line for all: how many epochs are in the run folders."""

    def __init__(self, inputs: TrainingInputs, jobs: Mapping[int, Job]) -> None:
        self._jobs, self._pairs = dict(jobs), {key: job.pairs(inputs) for key, job in jobs.items()}
        self._at = {key: self._epochs(key) for key in jobs}
        total = sum(job.config.epochs * self._pairs[key] for key, job in jobs.items())
        done = sum(epochs * self._pairs[key] for key, epochs in self._at.items())
        self._progress = Progress(total, "pairs", f"{len(jobs)} runs", done)

    def end(self, key: int) -> None:
        """Count a run that ended as done, however it did."""
        self._count(key, self._jobs.pop(key).config.epochs)

    def look(self) -> None:
        """Look how far those are that are under way."""
        for key in self._jobs:
            self._count(key, self._epochs(key))

    def _epochs(self, key: int) -> int:
        with contextlib.suppress(UserError):  # in the middle of being written, on some file systems
            return len(RunFolder(self._jobs[key].folder.path).history)
        return 0

    def _count(self, key: int, epochs: int) -> None:
        more = max(0, epochs - self._at[key])
        self._at[key] += more
        self._progress.update(more * self._pairs[key], unfinished=f"{len(self._jobs):,} runs")

    def __enter__(self) -> _Board:
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.close()
