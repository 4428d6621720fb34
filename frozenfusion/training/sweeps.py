"""Several trainings in one go: fusion heads × seeds, on one split and shared inputs."""

from __future__ import annotations

import dataclasses
import logging
import os
import traceback
from collections.abc import Sequence
from pathlib import Path

from frozenfusion.data.pairs import Pairs
from frozenfusion.data.splits import Split
from frozenfusion.model.run_folder import RunFolder
from frozenfusion.store.reader import FeatureStore, as_store
from frozenfusion.training.config import ALL, TrainConfig, check_seeds
from frozenfusion.training.inputs import TrainingInputs
from frozenfusion.training.messages import seconds
from frozenfusion.training.run import TrainedRun, train_run
from frozenfusion.utils.checks import config_of
from frozenfusion.utils.errors import UserError
from frozenfusion.utils.files import keep_current, write_atomically
from frozenfusion.utils.messages import one_line
from frozenfusion.utils.progress import log
from frozenfusion.utils.tables import as_text, to_csv

DEFAULT_FOLDER = Path("runs") / "sweep"
COLUMNS = [field.name for field in dataclasses.fields(TrainedRun) if field.name != "folder"] + ["folder"]


@dataclasses.dataclass(frozen=True)
class Job:
    """One run of a sweep."""

    head: str
    config: TrainConfig
    folder: RunFolder


def sweep(
    pairs: Pairs,
    features: FeatureStore | str | os.PathLike[str],
    heads: Sequence[str] = (ALL,),
    *,
    seeds: Sequence[int] = (),
    config: TrainConfig | None = None,
    folder: str | os.PathLike[str] = DEFAULT_FOLDER,
    split: Split | None = None,
) -> list[TrainedRun]:
    """Train every head with every seed, each in a run folder of its own; resume where an earlier sweep stopped.

    The split is one for all runs, so that they can be compared pair by pair. A run that fails does not stop the
    others. sweep.csv in `folder` is written anew after each.

    Args:
        pairs, features, config, split: as for `train`; the config's seed draws the split.
        heads: names of fusion heads, or all.
        seeds: of the runs of each head; by default the config's alone.
        folder: for the run folders.

    Raises:
        UserError: as for `train`; at the end, for runs that failed.
    """
    config, folder = config_of(TrainConfig, config), Path(folder)
    heads = [heads] if isinstance(heads, str) else heads
    seeds = [seed.item() if hasattr(seed, "item") else seed for seed in seeds]
    check_seeds(seeds)
    inputs = TrainingInputs(pairs, as_store(features), config, heads, split)
    return train_jobs(inputs, jobs_of(inputs.heads, seeds, config, folder), folder, resume=config.resume)


def train_jobs(inputs: TrainingInputs, jobs: Sequence[Job], folder: Path, *, resume: str) -> list[TrainedRun]:
    """Train the jobs one after the other; see `sweep`."""
    check_resume(folder, jobs, resume)
    runs, failures = [], []
    for number, job in enumerate(jobs, 1):
        before = RunFolder(job.folder.path).summary
        try:
            job.folder.check_free()
            run = train_run(inputs, job.head, job.config, job.folder, talk=False)
        except Exception as error:
            failures.append(_failed(job, error))
            continue
        runs.append(run)
        if RunFolder(job.folder.path).summary != before:
            write_atomically(folder / "sweep.csv", _as_csv(runs))
        log.info("%d/%d  %s", number, len(jobs), _line(run))
    if runs:
        keep_current(folder / "sweep.csv", _as_csv(runs))
    if failures:
        raise UserError(
            f"{len(failures)} of {len(jobs)} runs failed, the first {failures[0]}; the others are in "
            f"{folder / 'sweep.csv'}: the same command tries again what failed"
        )
    return runs


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


def _failed(job: Job, error: Exception) -> str:
    """Say that a run failed; an error that is nobody's mistake at the keyboard with where it came from."""
    reason, known = one_line(error, 1000), isinstance(error, UserError)
    log.error("%s", reason if known else f"{job.folder.path}: {type(error).__name__}: {reason}")
    log.log(logging.DEBUG if known else logging.ERROR, "%s", traceback.format_exc())
    return f"{job.folder.path} ({reason})"


def _as_csv(runs: Sequence[TrainedRun]) -> str:
    lines: list[list[object]] = [[*COLUMNS]]
    for run in runs:
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
