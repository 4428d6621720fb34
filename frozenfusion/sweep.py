"""Several trainings with one command: fusion heads × seeds, on one split and shared material."""

from __future__ import annotations

import csv
import dataclasses
import io
import traceback
from collections.abc import Sequence
from pathlib import Path

from frozenfusion.errors import UsageError, UserError
from frozenfusion.files import write_atomically
from frozenfusion.fusion import head_class
from frozenfusion.material import Material
from frozenfusion.options import TrainOptions
from frozenfusion.progress import log
from frozenfusion.train import TrainedRun, seconds, train

COLUMNS = [field.name for field in dataclasses.fields(TrainedRun) if field.name != "folder"] + ["folder"]


def train_all(options: TrainOptions) -> list[TrainedRun]:
    """Train every head of options.fusion with every seed, each in a run folder of its own; go on where one stopped.

    The split is that of options.seed for all runs, so that they can be compared pair by pair. A run that fails does
    not stop the others. Several runs leave sweep.csv, written anew after each. Raises UserError, at the end, for runs
    that failed.
    """
    for name in options.fusion:
        if name != "all":
            head_class(name)
    if len(set(options.fusion)) != len(options.fusion):
        raise UsageError(f"--fusion names a head twice: {' '.join(options.fusion)}")
    if len(options.fusion) == 1 and options.fusion != ("all",) and len(options.seeds) < 2:
        return [train(options)]
    folder = sweep_folder(options)
    material = Material(options)
    jobs = _jobs(options, folder, material.heads)
    _check_resume(options, folder, jobs)
    runs, failures = [], []
    for number, job in enumerate(jobs, 1):
        try:
            run = train(job, material, talk=False)
        except Exception as error:
            failures.append(_told(job, error, options.debug))
            continue
        runs.append(run)
        write_atomically(folder / "sweep.csv", _as_csv(runs))
        log.info("%d/%d  %s", number, len(jobs), _line(run))
    if failures:
        raise UserError(
            f"{len(failures)} of {len(jobs)} runs failed, the first {failures[0]}; the others are in "
            f"{folder / 'sweep.csv'}: the same command tries again what failed"
        )
    return runs


def sweep_folder(options: TrainOptions) -> Path:
    """Where the run folders of several trainings go."""
    return options.run or Path("runs") / "sweep"


def summary(runs: Sequence[TrainedRun], options: TrainOptions) -> str:
    """What was trained, as a table for a person, best first, and the command that evaluates it."""
    header = ("head", "seed", "epochs", "best", "val accuracy", "val macro F1", "trained", "epoch", "run")
    lines = [header, *(_cells(run) for run in sorted(runs, key=lambda run: -(run.val_accuracy or 0)))]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    where = runs[0].folder if len(runs) == 1 else sweep_folder(options)
    told = f"next: python evaluate.py {where} {options.data} --cache {options.cache}"
    return "\n".join([*table, "", told])


def _jobs(options: TrainOptions, folder: Path, heads: Sequence[str]) -> list[TrainOptions]:
    seeds = options.seeds or (options.seed,)
    return [
        dataclasses.replace(
            options,
            fusion=(head,),
            seeds=(seed,),
            run=folder / (f"{head}-seed{seed}" if len(seeds) > 1 else head),
            resume="auto",
        )
        for head in heads
        for seed in seeds
    ]


def _check_resume(options: TrainOptions, folder: Path, jobs: Sequence[TrainOptions]) -> None:
    begun = [job.run for job in jobs if job.run and (job.run / "config.json").exists()]
    if options.resume == "never" and begun:
        raise UserError(f"{begun[0]}: holds a training, and --resume never keeps off those: choose another --run")
    if options.resume == "always" and not begun:
        raise UserError(f"{folder}: no training to go on with, and --resume always asks for one: check --run")


def _told(job: TrainOptions, error: Exception, debug: bool) -> str:
    """Say that a run failed; an error that is nobody's mistake at the keyboard with where it came from."""
    reason = " ".join(str(error).split()) or type(error).__name__
    known = isinstance(error, UserError)
    log.error("%s", reason if known else f"{job.run}: {type(error).__name__}: {reason}")
    if debug or not known:
        log.error("%s", traceback.format_exc())
    return f"{job.run} ({reason})"


def _as_csv(runs: Sequence[TrainedRun]) -> str:
    text = io.StringIO()
    lines = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    lines.writeheader()
    lines.writerows(dataclasses.asdict(run) for run in runs)
    return text.getvalue()


def _line(run: TrainedRun) -> str:
    told = f"{run.folder}: best epoch {run.best_epoch} of {run.epochs}"
    if run.val_accuracy is not None and run.val_macro_f1 is not None:
        told += f", validation accuracy {run.val_accuracy:.1%}, macro F1 {run.val_macro_f1:.1%}"
    return f"{told}, {seconds(run.seconds_per_epoch)} an epoch"


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
        str(run.folder),
    )


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"
