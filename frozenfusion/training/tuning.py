"""Equal tuning: every head gets trials of the same budget, and the options that are best on the validation part."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from frozenfusion.data.pairs import Pairs
from frozenfusion.data.splits import Split
from frozenfusion.fusion.registry import head_class
from frozenfusion.model.run_folder import RunFolder
from frozenfusion.model.tuning import (
    TABLE,
    TRIALS,
    Trial,
    Tuning,
    load_tuning,
    options_line,
    save_tuning,
    tuning_cells,
)
from frozenfusion.store.reader import FeatureStore, as_store
from frozenfusion.training.config import ALL, TrainConfig, where_to_train
from frozenfusion.training.grid import changed, check_grid, check_trials
from frozenfusion.training.inputs import TrainingInputs
from frozenfusion.training.jobs import Job, built_head
from frozenfusion.training.run import TrainedRun
from frozenfusion.training.space import drawn, given, grid_points, search_space
from frozenfusion.training.sweeps import DEFAULT_FOLDER, RunsFailed, asked, check_resume, jobs_of, train_jobs
from frozenfusion.utils import distributed
from frozenfusion.utils.checks import config_of
from frozenfusion.utils.errors import UsageError, UserError
from frozenfusion.utils.files import keep_current, writing
from frozenfusion.utils.locks import WriterLock
from frozenfusion.utils.progress import log
from frozenfusion.utils.ray_cluster import Cluster, connected
from frozenfusion.utils.tables import as_text, to_csv

ANOTHER = "give the same again, or choose another `run`"
COLUMNS = ("head", "trial", "chosen", "options", "val_accuracy", "val_macro_f1", "val_loss", "seconds")


def tune(
    pairs: Pairs,
    features: FeatureStore | str | os.PathLike[str],
    heads: Sequence[str] = (ALL,),
    *,
    trials: int = 20,
    grid: Mapping[str, Sequence[Any]] | None = None,
    seeds: Sequence[int] = (),
    config: TrainConfig | None = None,
    folder: str | os.PathLike[str] = DEFAULT_FOLDER,
    split: Split | None = None,
    jobs: int | Literal["auto"] = "auto",
    ray: str | None = None,
    ray_gpus_per_worker: float | None = None,
) -> list[TrainedRun]:
    """Try options for every head, and train each with its best ones, seed by seed: the runs of these.

    Trial 0 has the options of `config`, the others draw theirs at random (`search_space`), which follows from the
    seed, the head and the trial's number: more trials go on from what is there. Chosen is the highest validation
    accuracy, of equal ones that of the lower loss. Trials are run folders in `folder`/trials that keep their figures
    and no parameters; all are in tuning.csv, and each run has those of its head in its tuning.json.

    Args:
        pairs, features, heads, seeds, folder, split: as for `sweep`; trials have the config's seed.
        jobs, ray, ray_gpus_per_worker: as for `sweep`.
        config: what every trial starts from; its epochs are the budget of each.
        trials: of each head.
        grid: the values to try of each option, in place of random trials: a head gets every combination of those
            that mean something to it. Options of a head's own are called `head.NAME`.

    Raises:
        UserError: as for `sweep`; no validation part to choose on, a grid that cannot be.
    """
    config, folder = config_of(TrainConfig, config), Path(folder)
    where = where_to_train(jobs, ray, ray_gpus_per_worker)
    heads, seeds = asked(heads, seeds, where)
    check_trials(trials)
    check_grid(grid or {}, config)
    inputs = TrainingInputs(pairs, as_store(features), config, heads, split)
    if not inputs.split.val:
        raise UsageError("`tune` chooses on the validation part, and there is none: raise `val_fraction`")
    plan = _plan(inputs.heads, config, trials, grid)
    tried = distributed.by_first(
        lambda: {head: _trial_jobs(inputs, head, plan[head], config, folder / TRIALS) for head in inputs.heads}
    )
    every = [job for of in tried.values() for job in of]
    begun = [*every, *jobs_of(inputs.heads, seeds, config, folder)]
    distributed.by_first(lambda: check_resume(folder, begun, config.resume))
    with connected(where.address) if isinstance(where, Cluster) else contextlib.nullcontext():  # once for both parts
        _train_trials(inputs, every, folder / TRIALS, where)
        tunings = distributed.by_first(
            lambda: {head: _tuning(plan[head], tried[head], config.epochs) for head in inputs.heads}
        )
        if distributed.rank() == 0:
            keep_current(folder / TABLE, _as_csv(tunings))
        chosen = {head: changed(config, plan[head][of.best]) for head, of in tunings.items()}
        final = [job for head in inputs.heads for job in jobs_of([head], seeds, chosen[head], folder)]
        if distributed.rank() == 0:
            for job in final:
                _make_way(job, tunings[job.head])
        runs = train_jobs(inputs, final, folder, at_once=where)
    if distributed.rank() == 0:
        for job in final:
            save_tuning(job.folder, tunings[job.head])
    return runs


def _plan(
    heads: Sequence[str], config: TrainConfig, trials: int, grid: Mapping[str, Sequence[Any]] | None
) -> dict[str, list[dict[str, Any]]]:
    """The options of each trial of each head, beside those of the config."""
    if grid is None:
        spaces = {head: search_space(head_class(head), config) for head in heads}
        return {
            head: [{}, *(drawn(space, config.seed, head, number) for number in range(1, trials))]
            for head, space in spaces.items()
        }
    points = {head: grid_points(grid, head_class(head)) for head in heads}
    strange = grid.keys() - {name for of in points.values() for name in of[0]}
    if strange:
        raise UsageError(f"`grid`: {min(strange)} means nothing to {', '.join(heads)}: leave it out")
    return points


def _trial_jobs(
    inputs: TrainingInputs, head: str, options: Sequence[Mapping[str, Any]], config: TrainConfig, folder: Path
) -> list[Job]:
    """The trials of a head as runs, all of which can be built."""
    plain = dataclasses.replace(config, save_every=config.epochs + 1, resume="auto")
    jobs = []
    for number, each in enumerate(options):
        trial = changed(plain, each)
        run = RunFolder(folder / f"{head}-{number:03d}", figures_only=True)
        built_head(inputs, Job(head, trial, run))  # before anything is trained
        done = run.summary.get("epochs", 0)
        if done > config.epochs:
            raise UserError(f"{run.path}: a trial of {done} epochs, more than `epochs={config.epochs}`: {ANOTHER}")
        jobs.append(Job(head, trial, RunFolder(run.path, figures_only=True)))
    return jobs


def _train_trials(
    inputs: TrainingInputs, jobs: Sequence[Job], folder: Path, at_once: int | Literal["auto"] | Cluster
) -> None:
    """Train what is not there yet. A loss that is not finite is what came out of a trial; other failures are told."""
    try:
        train_jobs(inputs, jobs, folder, at_once=at_once)
    except RunsFailed as error:
        for job, failure in error.failures:
            if not failure.diverged:
                raise UserError(failure.of_job(job)) from error
    for job in jobs if distributed.rank() == 0 else ():
        for part in (job.folder.tokenizer, job.folder.text_encoder):
            if part.exists():
                with writing(part):
                    shutil.rmtree(part)


def _tuning(options: Sequence[Mapping[str, Any]], jobs: Sequence[Job], epochs: int) -> Tuning:
    """What came out of the trials of a head."""
    trials = []
    for job in jobs:
        run = RunFolder(job.folder.path)  # as it is now
        figures = {name: run.summary.get(name) for name in ("val_accuracy", "val_macro_f1", "val_loss")}
        told = given(options[-1], head_class(job.head), job.config)
        trials.append(Trial(told, **figures, seconds=sum(float(line["seconds"]) for line in run.history)))
    tuning = Tuning(trials, epochs)
    if not tuning.is_done:
        raise UserError(f"{jobs[0].head}: the loss of every trial was not finite: give a lower `lr`, or another `grid`")
    return tuning


def _make_way(job: Job, tuning: Tuning) -> None:
    """Note how a run's options were chosen; one that has others of an earlier, shorter tuning is removed.

    A run that no tuning has made is left as it is.
    """
    before = load_tuning(job.folder)
    if job.folder.exists and before is None:
        return
    if job.folder.exists and before is not None and before.chosen.options != tuning.chosen.options:
        log.info("%s: trained anew, for other options are the best of %d trials", job.folder.path, len(tuning.trials))
        with WriterLock(job.folder.checkpoint) as lock:
            lock.require()
        with writing(job.folder.path):
            shutil.rmtree(job.folder.path)
    save_tuning(job.folder, tuning)


def _as_csv(tunings: Mapping[str, Tuning]) -> str:
    lines: list[list[object]] = [[*COLUMNS]]
    for head, tuning in tunings.items():
        for number, trial in enumerate(tuning.trials):
            figures = (trial.val_accuracy, trial.val_macro_f1, trial.val_loss, trial.seconds)
            lines.append([head, number, int(number == tuning.best), options_line(trial.options), *figures])
    return to_csv(lines, digits=None)


def tuning_table(runs: Sequence[TrainedRun]) -> str:
    """What was chosen for each head of tuned runs, one per line, and the expected best validation accuracy, in %."""
    found = {run.fusion: load_tuning(RunFolder(run.folder)) for run in runs}
    *cells, chosen = zip(*tuning_cells({head: of for head, of in found.items() if of is not None}), strict=True)
    width = max(map(len, chosen))
    return as_text([[*row, last.ljust(width)] for *row, last in zip(*cells, chosen, strict=True)])
