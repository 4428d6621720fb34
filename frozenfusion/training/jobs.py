"""One training of many: what it is, and what became of it."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import traceback
from collections.abc import Callable, Mapping

import torch

from frozenfusion.fusion.base import FusionHead
from frozenfusion.fusion.registry import build_head
from frozenfusion.model.config import DEFAULT_WIDTH
from frozenfusion.model.run_folder import RunFolder
from frozenfusion.training.config import TrainConfig
from frozenfusion.training.inputs import TrainingInputs
from frozenfusion.training.run import TrainedRun, finished_run, train_run
from frozenfusion.training.trainer import Diverged
from frozenfusion.utils import distributed
from frozenfusion.utils.errors import UserError
from frozenfusion.utils.messages import one_line
from frozenfusion.utils.progress import Progress, log


@dataclasses.dataclass(frozen=True)
class Job:
    """A training: the fusion head, the options, the folder of the run."""

    head: str
    config: TrainConfig
    folder: RunFolder

    def prepare(self, inputs: TrainingInputs) -> None:
        """Make what several processes that train jobs would else make at once: cached texts."""
        inputs.prepare()

    def train(
        self, inputs: TrainingInputs, *, talk: bool = False, progress: Callable[..., Progress] = Progress
    ) -> TrainedRun:
        """Train it, or resume it; `talk` and `progress` are as for `train_run`."""
        return train_run(inputs, self.head, self.config, self.folder, talk=talk, progress=progress)

    def finished(self, inputs: TrainingInputs) -> TrainedRun | None:
        """What came out of it, where `train` would find nothing to do. Raises UserError as that does."""
        return finished_run(inputs, self.head, self.config, self.folder)

    def pairs(self, inputs: TrainingInputs) -> int:
        """About how many pairs an epoch has."""
        return len(inputs.train)


@dataclasses.dataclass(frozen=True)
class Failure:
    """Why a training came to nothing.

    Attributes:
        reason: in one line.
        kind: the error's name, where it is nobody's mistake at the keyboard.
        trace: where it came from.
        diverged: whether its loss was not finite.
    """

    reason: str
    kind: str = ""
    trace: str = ""
    diverged: bool = False

    @classmethod
    def of(cls, error: Exception) -> Failure:
        """What an error that was just caught says."""
        kind = "" if isinstance(error, UserError) else type(error).__name__
        return cls(one_line(error, 1000), kind, traceback.format_exc(), isinstance(error, Diverged))

    def of_job(self, job: Job) -> str:
        """It in one line that names the run."""
        return f"{job.folder.path}: {self.kind}: {self.reason}" if self.kind else self.reason

    def tell(self, job: Job) -> None:
        """Log it, with where it came from if that is nobody's mistake."""
        log.error("%s", self.of_job(job))
        if self.trace:
            log.log(logging.ERROR if self.kind else logging.DEBUG, "%s", self.trace)


Outcome = Failure | None  # None where the run is finished


def train_job(inputs: TrainingInputs, job: Job, progress: Callable[..., Progress] = Progress) -> Outcome:
    """Train one run, or resume it; `progress` makes what is told how far it is.

    Of several processes all find the same loss, and go on after one that is not finite; other errors end them all.
    """
    try:
        distributed.by_first(job.folder.check_free)
        job.train(inputs, progress=progress)
    except Exception as error:
        if distributed.world() > 1 and not isinstance(error, Diverged):
            raise
        return Failure.of(error)
    return None


def built_head(inputs: TrainingInputs, job: Job) -> FusionHead:
    """The head of a job, as its first step would find it. Raises UserError where its options build none."""
    model = inputs.model_config(job.head, config=job.config)
    width = model.head.own_width or DEFAULT_WIDTH
    with torch.random.fork_rng([]):
        return build_head(
            model.head, width=width, text_width=width, classes=len(model.label_names), **model.fusion_options
        )


def longest_first(inputs: TrainingInputs, jobs: Mapping[int, Job]) -> dict[int, Job]:
    """The jobs in an order that leaves no process alone with a long one: most steps of most parameters first.

    Of a head on cached vectors the optimiser's pass over its parameters is what a step takes longest for.
    """
    sizes: dict[str, int] = {}
    for job in jobs.values():
        if job.head not in sizes:
            sizes[job.head] = 0
            with contextlib.suppress(Exception):  # of a head that cannot be built its own run will tell
                sizes[job.head] = sum(parameter.numel() for parameter in built_head(inputs, job).parameters())
    pairs = {key: job.config.epochs * job.pairs(inputs) for key, job in jobs.items()}
    return dict(sorted(jobs.items(), key=lambda item: -sizes[item[1].head] * pairs[item[0]]))
