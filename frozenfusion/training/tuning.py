"""Equal tuning: every head gets trials of the same budget, and the options that are best on the validation part."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
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
    ranked,
    save_tuning,
    tuning_cells,
)
from frozenfusion.store.reader import FeatureStore, as_store
from frozenfusion.training.config import ALL, TrainConfig, where_to_train
from frozenfusion.training.grid import changed, check_grid, check_halving, check_trials
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
Round = Mapping[int, Job]  # trials of a head, by their number
COLUMNS = ("head", "trial", "chosen", "epochs", "options", "val_accuracy", "val_macro_f1", "val_loss", "seconds")


def tune(
    pairs: Pairs,
    features: FeatureStore | str | os.PathLike[str],
    heads: Sequence[str] = (ALL,),
    *,
    trials: int = 20,
    grid: Mapping[str, Sequence[Any]] | None = None,
    halving: int = 0,
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

    Source of `halving`: Jamieson & Talwalkar, 2016 (arXiv:1502.07943).

    Args:
        pairs, features, heads, seeds, folder, split: as for `sweep`; trials have the config's seed.
        jobs, ray, ray_gpus_per_worker: as for `sweep`.
        config: what every trial starts from; its epochs are the budget of each.
        trials: of each head.
        grid: the values to try of each option, in place of random trials: a head gets every combination of those
            that mean something to it. Options of a head's own are called `head.NAME`.
        halving: the factor of successive halving: trials begin with few epochs, and only the best 1/factor of them
            begin anew with factor times as many, until the last have all. 0 gives every trial all epochs.

    Raises:
        UserError: as for `sweep`; no validation part to choose on, a grid that cannot be.
    """
    config, folder = config_of(TrainConfig, config), Path(folder)
    where = where_to_train(jobs, ray, ray_gpus_per_worker)
    heads, seeds = asked(heads, seeds, where)
    check_trials(trials)
    check_grid(grid or {}, config)
    check_halving(halving, tuned=True)
    inputs = TrainingInputs(pairs, as_store(features), config, heads, split)
    if not inputs.split.val:
        raise UsageError("`tune` chooses on the validation part, and there is none: raise `val_fraction`")
    plan = _plan(inputs.heads, config, trials, grid)
    searches = [
        _Search(head, options, rounds_of(config.epochs, len(options), halving)) for head, options in plan.items()
    ]
    rounds = max(len(search.rounds) for search in searches)
    if halving and rounds == 1:
        told = f"no trial can end early where `epochs={config.epochs}` and trials are so few"
        raise UsageError(f"`halving={halving}`: {told}: lower it, or leave it out")

    def due() -> list[Round]:
        return [search.due(inputs, config, folder / TRIALS) for search in searches]

    tried = distributed.by_first(due)
    begun = [*_jobs(tried), *jobs_of(inputs.heads, seeds, config, folder)]
    distributed.by_first(lambda: check_resume(folder, begun, config.resume))
    with connected(where.address) if isinstance(where, Cluster) else contextlib.nullcontext():  # once for all parts
        while any(tried):
            _train_trials(inputs, _jobs(tried), folder / TRIALS, where)
            for search, of in zip(searches, tried, strict=True):
                search.tried.append(of)
            tried = distributed.by_first(due)
        tunings = distributed.by_first(lambda: {search.head: search.tuning(config.epochs) for search in searches})
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


def rounds_of(epochs: int, trials: int, factor: int) -> list[tuple[int, int]]:
    """The epochs of each round of successive halving, and how many trials take part; one round for the factor 0."""
    rounds = [(epochs, trials)]
    while factor:
        fewer, left = round(epochs / factor ** len(rounds)), trials // factor ** len(rounds)
        if not 0 < fewer < rounds[-1][0] or not left:
            break
        rounds.append((fewer, left))
    return [(of, left) for (of, _), (_, left) in zip(reversed(rounds), rounds, strict=True)]


@dataclasses.dataclass
class _Search:
    """The search for the options of one head.

    Attributes:
        options: of each trial.
        rounds: the epochs of each, and how many trials take part.
        tried: the trials of the rounds so far.
    """

    head: str
    options: Sequence[Mapping[str, Any]]
    rounds: Sequence[tuple[int, int]]
    tried: list[Round] = dataclasses.field(default_factory=list)

    def due(self, inputs: TrainingInputs, config: TrainConfig, folder: Path) -> Round:
        """The next round: every trial, or the best of the round before; none after the last."""
        if len(self.tried) >= len(self.rounds):
            return {}
        epochs, count = self.rounds[len(self.tried)]
        numbers: Iterable[int] = range(count)
        if self.tried:
            ended = {number: self._trial(number, self.tried[-1:]) for number in self.tried[-1]}
            numbers = [number for number in ranked(ended) if ended[number].val_accuracy is not None][:count]
        shorter = dataclasses.replace(config, epochs=epochs)
        where = folder / f"epochs-{epochs}" if epochs < config.epochs else folder
        return {
            number: _trial_job(inputs, self.head, number, self.options[number], shorter, where) for number in numbers
        }

    def tuning(self, epochs: int) -> Tuning:
        """What came out of the trials. Raises UserError where none has a score."""
        tuning = Tuning([self._trial(number, self.tried) for number in range(len(self.options))], epochs)
        if not tuning.is_done:
            told = "the loss of every trial was not finite: give a lower `lr`, or another `grid`"
            raise UserError(f"{self.head}: {told}")
        return tuning

    def _trial(self, number: int, rounds: Sequence[Round]) -> Trial:
        """What came out of a trial, in the last of these rounds that it took part in."""
        jobs = [jobs[number] for jobs in rounds if number in jobs]
        last, runs = jobs[-1], [RunFolder(job.folder.path) for job in jobs]  # as they are now
        figures = {name: runs[-1].summary.get(name) for name in ("val_accuracy", "val_macro_f1", "val_loss")}
        seconds = sum(float(line["seconds"]) for run in runs for line in run.history)
        options = given(self.options[-1], head_class(self.head), last.config)
        return Trial(options, **figures, seconds=seconds, epochs=last.config.epochs)


def _jobs(rounds: Iterable[Round]) -> list[Job]:
    return [job for jobs in rounds for job in jobs.values()]


def _trial_job(
    inputs: TrainingInputs, head: str, number: int, options: Mapping[str, Any], config: TrainConfig, folder: Path
) -> Job:
    """A trial of a head as a run that can be built."""
    trial = changed(dataclasses.replace(config, save_every=config.epochs + 1, resume="auto"), options)
    run = RunFolder(folder / f"{head}-{number:03d}", figures_only=True)
    built_head(inputs, Job(head, trial, run))  # before anything is trained
    done = run.summary.get("epochs", 0)
    if done > config.epochs:
        raise UserError(f"{run.path}: a trial of {done} epochs, more than `epochs={config.epochs}`: {ANOTHER}")
    return Job(head, trial, RunFolder(run.path, figures_only=True))


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
            chosen = int(number == tuning.best)
            lines.append([head, number, chosen, trial.epochs, options_line(trial.options), *figures])
    return to_csv(lines, digits=None)


def tuning_table(runs: Sequence[TrainedRun]) -> str:
    """What was chosen for each head of tuned runs, one per line, and the expected best validation accuracy, in %."""
    found = {run.fusion: load_tuning(RunFolder(run.folder)) for run in runs}
    *cells, chosen = zip(*tuning_cells({head: of for head, of in found.items() if of is not None}), strict=True)
    width = max(map(len, chosen))
    return as_text([[*row, last.ljust(width)] for *row, last in zip(*cells, chosen, strict=True)])
