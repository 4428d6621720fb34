"""Several trainings in one go: fusion heads × seeds, on one split and shared inputs."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import torch

from frozenfusion.data.pairs import Pairs
from frozenfusion.data.splits import Split
from frozenfusion.fusion.registry import head_class
from frozenfusion.model.run_folder import RunFolder
from frozenfusion.store.reader import FeatureStore, as_store
from frozenfusion.training.config import ALL, AUTO, TrainConfig, check_seeds, where_to_train
from frozenfusion.training.inputs import TrainingInputs
from frozenfusion.training.job_processes import train_in_processes
from frozenfusion.training.jobs import Failure, Job, Outcome, longest_first, train_job
from frozenfusion.training.messages import seconds
from frozenfusion.training.ray_jobs import train_on_ray
from frozenfusion.training.run import TrainedRun, read_run
from frozenfusion.training.trackers import tracker_class
from frozenfusion.utils import distributed
from frozenfusion.utils.checks import config_of
from frozenfusion.utils.device import usable_cores
from frozenfusion.utils.errors import UsageError, UserError
from frozenfusion.utils.files import keep_current, write_atomically
from frozenfusion.utils.progress import log
from frozenfusion.utils.ray_cluster import Cluster
from frozenfusion.utils.tables import as_text, to_csv

DEFAULT_FOLDER = Path("runs") / "sweep"
WORTH_STEPS = 10_000  # training steps in all; fewer are done before the processes for them have started
COLUMNS = [field.name for field in dataclasses.fields(TrainedRun) if field.name != "folder"] + ["folder"]


class RunsFailed(UserError):
    """Some runs came to nothing; all others were trained."""

    def __init__(self, message: str, failures: Sequence[tuple[Job, Failure]]) -> None:
        super().__init__(message)
        self.failures = failures


def sweep(
    pairs: Pairs,
    features: FeatureStore | str | os.PathLike[str],
    heads: Sequence[str] = (ALL,),
    *,
    seeds: Sequence[int] = (),
    config: TrainConfig | None = None,
    folder: str | os.PathLike[str] = DEFAULT_FOLDER,
    split: Split | None = None,
    jobs: int | Literal["auto"] = "auto",
    ray: str | None = None,
    ray_gpus_per_worker: float | None = None,
) -> list[TrainedRun]:
    """Train every head with every seed, each in a run folder of its own; resume where an earlier sweep stopped.

    The split is one for all runs, so that they can be compared pair by pair. A run that fails does not stop the
    others. sweep.csv in `folder` is written anew after each.

    Args:
        pairs, features, config, split: as for `train`; the config's seed draws the split.
        heads: names of fusion heads, or all.
        seeds: of the runs of each head; by default the config's alone.
        folder: for the run folders.
        jobs: how many runs are trained at once, in processes of their own; "auto" is one for each core where the text
            is frozen, one for each GPU, and one where that would not pay. What comes out is the same.
        ray: train them on the Ray cluster at this address instead, or "auto"; "local" makes one of this machine.
        ray_gpus_per_worker: of each run, also a part of one; by default 1 where the cluster has any.

    Raises:
        UserError: as for `train`; at the end, for runs that failed.
    """
    config, folder = config_of(TrainConfig, config), Path(folder)
    where = where_to_train(jobs, ray, ray_gpus_per_worker)
    heads, seeds = asked(heads, seeds, where)
    inputs = TrainingInputs(pairs, as_store(features), config, heads, split)
    return train_jobs(inputs, jobs_of(inputs.heads, seeds, config, folder), folder, resume=config.resume, at_once=where)


def asked(
    heads: Sequence[str], seeds: Sequence[int], where: int | Literal["auto"] | Cluster
) -> tuple[Sequence[str], Sequence[int]]:
    """Heads, of which one may come by its name alone, and seeds as plain numbers.

    Raises UsageError: seeds that are none; several processes that train each run together cannot train it elsewhere.
    """
    plain = [seed.item() if hasattr(seed, "item") else seed for seed in seeds]
    check_seeds(plain)
    if where not in (AUTO, 1) and distributed.world() > 1:
        told = f"ray={where.address}" if isinstance(where, Cluster) else f"jobs={where}"
        raise UsageError(f"`{told}`: under torchrun each run takes all processes, one after another: leave it out")
    return [heads] if isinstance(heads, str) else heads, plain


def train_jobs(
    inputs: TrainingInputs,
    jobs: Sequence[Job],
    folder: Path,
    *,
    resume: str = "auto",
    at_once: int | Literal["auto"] | Cluster = "auto",
) -> list[TrainedRun]:
    """Train the jobs, `at_once` at a time or on a cluster, and keep `folder`/sweep.csv, in their order, up to date.

    Raises RunsFailed, once the others are trained.
    """
    distributed.by_first(lambda: check_resume(folder, jobs, resume))
    runs: dict[int, TrainedRun] = {}
    failures: dict[int, Failure] = {}

    def ended(number: int, outcome: Outcome) -> None:
        job = jobs[number]
        if outcome is not None:
            outcome.tell(job)
            failures[number] = outcome
            return
        runs[number] = distributed.by_first(lambda: read_run(job.folder))
        log.info("%d/%d  %s", len(runs) + len(failures), len(jobs), _line(runs[number]))

    waiting = {}
    for number, job in enumerate(jobs):
        finished = distributed.by_first(partial(_finished, inputs, job))
        if finished is False:
            waiting[number] = job
        else:
            ended(number, finished)
    with contextlib.closing(_train(inputs, waiting, at_once)) as outcomes:
        for number, outcome in outcomes:
            ended(number, outcome)
            if outcome is None and distributed.rank() == 0:
                write_atomically(folder / "sweep.csv", _as_csv(runs))
    if runs and distributed.rank() == 0:
        keep_current(folder / "sweep.csv", _as_csv(runs))
    if failures:
        failed = [(jobs[number], failure) for number, failure in sorted(failures.items())]
        job, first = failed[0]
        raise RunsFailed(
            f"{len(failed)} of {len(jobs)} runs failed, the first {job.folder.path} ({first.reason}); the others are "
            f"in {folder / 'sweep.csv'}: the same command tries again what failed",
            failed,
        )
    return [runs[number] for number in sorted(runs)]


def _finished(inputs: TrainingInputs, job: Job) -> Outcome | Literal[False]:
    """What became of a run that needs no training; False where it does."""
    try:
        job.folder.check_free()
        return None if job.finished(inputs) else False
    except Exception as error:
        return Failure.of(error)


def _train(
    inputs: TrainingInputs, jobs: Mapping[int, Job], at_once: int | Literal["auto"] | Cluster
) -> Generator[tuple[int, Outcome], None, None]:
    """The key of each job as soon as it ended, and how."""
    elsewhere: Callable[..., Generator[tuple[int, Outcome], None, None]] | None = None
    if isinstance(at_once, Cluster):
        elsewhere = partial(train_on_ray, cluster=at_once) if jobs else None
    elif distributed.world() == 1:  # several train each run together
        count = min(len(jobs), _worth(inputs, jobs.values()) if at_once == "auto" else at_once)
        elsewhere = partial(train_in_processes, count=count) if count > 1 else None
    kinds: dict[str, type] = {job.head: head_class(job.head) for job in jobs.values()}
    kinds |= {name: tracker_class(name) for name in inputs.config.track}
    strange = [name for name, kind in kinds.items() if kind.__module__ == "__main__"]
    if elsewhere and strange:
        log.warning("one run at a time: %s is of the program itself, which no other process can import", strange[0])
    elif elsewhere:
        yield from elsewhere(inputs, longest_first(inputs, jobs))
        return
    for number, job in jobs.items():
        yield number, train_job(inputs, job)


def _worth(inputs: TrainingInputs, jobs: Collection[Job]) -> int:
    """How many trainings at once are the fastest, as far as can be told beforehand."""
    steps = sum(job.config.epochs * math.ceil(job.pairs(inputs) / job.config.batch_size) for job in jobs)
    if steps < WORTH_STEPS:
        return 1
    if inputs.device.type == "cuda" and inputs.device.index is None:
        return torch.cuda.device_count()
    fine_tuned = any("text" in head_class(job.head).uses and not job.config.freeze_text for job in jobs)
    return usable_cores() if inputs.device.type == "cpu" and not fine_tuned else 1


def jobs_of(heads: Sequence[str], seeds: Sequence[int], config: TrainConfig, folder: Path) -> list[Job]:
    """The runs of a sweep; within it, what is there is always resumed."""
    seeds = seeds or (config.seed,)
    return [
        Job(
            head,
            dataclasses.replace(config, seed=seed, resume="auto"),
            RunFolder(folder / (f"{head}-seed{seed}" if len(seeds) > 1 else head)),
        )
        for head in heads
        for seed in seeds
    ]


def check_resume(folder: Path, jobs: Sequence[Job], resume: str) -> None:
    """Raise UserError where `resume` forbids to go on, or to begin."""
    begun = [job.folder.path for job in jobs if job.folder.exists]
    if resume == "never" and begun:
        raise UserError(f"{begun[0]}: holds a training, and `resume=never` keeps off those: choose another `folder`")
    if resume == "always" and not begun:
        raise UserError(f"{folder}: no training to resume, and `resume=always` asks for one: check `folder`")


def _as_csv(runs: Mapping[int, TrainedRun]) -> str:
    lines: list[list[object]] = [[*COLUMNS]]
    for _, run in sorted(runs.items()):
        values = {**dataclasses.asdict(run), "folder": run.folder.as_posix()}
        lines.append([values[name] for name in COLUMNS])
    return to_csv(lines, digits=None)


def _line(run: TrainedRun) -> str:
    told = f"{run.folder}: best epoch {run.best_epoch} of {run.epochs}"
    if run.val_accuracy is not None and run.val_macro_f1 is not None:
        told += f", validation accuracy {run.val_accuracy:.1%}, macro F1 {run.val_macro_f1:.1%}"
    return f"{told}, {seconds(run.seconds_per_epoch)} per epoch"


def run_table(runs: Sequence[TrainedRun]) -> str:
    """What was trained, one run per line, best first."""
    header = ("head", "seed", "epochs", "best", "val accuracy", "val macro F1", "trained", "epoch", "run")
    return as_text([header, *map(_cells, sorted(runs, key=lambda run: -(run.val_accuracy or 0)))])


def _cells(run: TrainedRun) -> tuple[str, ...]:
    return (
        run.fusion,
        str(run.seed),
        str(run.epochs),
        str(run.best_epoch),
        _percent(run.val_accuracy),
        _percent(run.val_macro_f1),
        f"{run.trained_parameters:,}",
        seconds(run.seconds_per_epoch),
        run.folder.as_posix(),
    )


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"
