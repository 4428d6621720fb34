"""Where the figures of a training go beside metrics.jsonl: TensorBoard, Weights & Biases, MLflow, Trackio.

metrics.jsonl remains the record. A tracker that fails costs its copy, and never the training.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from frozenfusion.utils.errors import UsageError
from frozenfusion.utils.files import read_file, write_atomically
from frozenfusion.utils.messages import one_line
from frozenfusion.utils.plugins import Registry
from frozenfusion.utils.progress import log

PROJECT = "frozenfusion"  # what the trackers' services call all runs together, unless their own variables say otherwise
_IDENTITY = re.compile(r"[\w-]{1,100}")
_LONGEST_PARAMETER = 500  # letters that MLflow's own tables have room for

Figures = Mapping[str, Any]


@dataclass(frozen=True)
class TrackedRun:
    """A run as a tracker is told of it.

    Attributes:
        name: its folder, as it was named.
        folder: for what the tracker keeps, within the run's.
        options: what it is made with, as its config.json has them.
        epochs: how many are done already; the last of them is told again, since a kill may have come between.
    """

    name: str
    folder: Path
    options: Mapping[str, Any]
    epochs: int

    def identity(self, make: Callable[[], str] = lambda: uuid.uuid4().hex) -> str:
        """What the tracker calls the run: made once, and kept in `folder`, so that a resumed training goes on in it."""
        path = self.folder / "id"
        if path.exists():
            found = read_file(path, 1000).decode(errors="replace").strip()
            if _IDENTITY.fullmatch(found):
                return found
        made = make()
        write_atomically(path, made + "\n")
        return made


class Tracker:
    """Base of all trackers: made when a training begins or goes on. Whatever it raises ends it, and not the training.

    Attributes:
        package: what has to be installed for it.
    """

    package: ClassVar[str | None] = None

    def __init__(self, run: TrackedRun) -> None:
        """Begin the run, or go on with it."""

    def log(self, epoch: int, figures: Figures) -> None:
        """Take the figures of an epoch: those of its line in metrics.jsonl that were measured."""
        raise NotImplementedError

    def finish(self, summary: Figures) -> None:
        """Take what came out of the run, as its summary.json has it."""

    def close(self, *, finished: bool) -> None:
        """Let go of what is held; `finished` says whether the training came to its end."""


TRACKERS: Registry[type[Tracker]] = Registry("tracker", "frozenfusion.trackers")
Kind = TypeVar("Kind", bound=type[Tracker])


def register_tracker(name: str) -> Callable[[Kind], Kind]:
    """Class decorator that makes a Tracker a value of `track` (`--track` on the command line) under `name`."""

    def add(tracker: Kind) -> Kind:
        if not (isinstance(tracker, type) and issubclass(tracker, Tracker)):
            raise UsageError(f"tracker {name!r}: register a subclass of Tracker, not {tracker!r}")
        TRACKERS.add(name, tracker, tracker)
        return tracker

    return add


def tracker_class(name: str) -> type[Tracker]:
    """The tracker called `name`. Raises UsageError where there is none, or its package is not installed."""
    found = TRACKERS.get(name)
    if found is None:
        raise UsageError(f"`track={name}`: no such tracker: choose from {', '.join(TRACKERS.names())}")
    if found.package is not None and importlib.util.find_spec(found.package) is None:
        raise UsageError(f"`track={name}`: needs a package that is not installed: pip install {found.package}")
    return found


class Trackers:
    """The trackers of a run, as a context manager that closes them. What fails is told of once, and left out."""

    def __init__(self, names: Sequence[str], run: Path, options: Mapping[str, Any], history: Sequence[Figures]) -> None:
        self._run, self._open, self._finished = run, dict[str, Tracker](), False
        for name in dict.fromkeys(names):
            told = TrackedRun(run.as_posix(), run / "tracking" / name, options, len(history))
            self._attempt(name, partial(self._begin, name, told))
        for line in history[-1:]:
            self.log(line)

    def log(self, line: Figures) -> None:
        """Pass on a line of metrics.jsonl."""
        figures = {name: value for name, value in line.items() if name != "epoch" and value is not None}
        for name, tracker in list(self._open.items()):
            self._attempt(name, partial(tracker.log, line["epoch"], figures))

    def finish(self, summary: Figures) -> None:
        """Pass on what came out."""
        self._finished = True
        figures = {name: value for name, value in summary.items() if value is not None}
        for name, tracker in list(self._open.items()):
            self._attempt(name, partial(tracker.finish, figures))

    def _begin(self, name: str, run: TrackedRun) -> None:
        run.folder.mkdir(parents=True, exist_ok=True)
        self._open[name] = tracker_class(name)(run)

    def _attempt(self, name: str, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:  # of the network, of the disk, of another's program
            self._open.pop(name, None)
            log.warning(
                "%s: the tracker %s failed (%s): the training goes on without it, metrics.jsonl has all figures",
                *(self._run, name, one_line(error)),
            )

    def __enter__(self) -> Trackers:
        return self

    def __exit__(self, *_: object) -> None:
        for name, tracker in list(self._open.items()):
            self._attempt(name, partial(tracker.close, finished=self._finished))


@register_tracker("tensorboard")
class TensorBoard(Tracker):
    """Event files in the run's folder: `tensorboard --logdir runs` finds them."""

    package = "tensorboard"

    def __init__(self, run: TrackedRun) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(run.folder), purge_step=run.epochs or None)  # which is told again
        self._writer.add_text("options", _as_markdown(run.options))

    def log(self, epoch: int, figures: Figures) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(name, value, epoch)
        self._writer.flush()

    def finish(self, summary: Figures) -> None:
        self._writer.add_text("summary", _as_markdown(summary))

    def close(self, *, finished: bool) -> None:
        self._writer.close()


@register_tracker("wandb")
class WeightsAndBiases(Tracker):
    """Weights & Biases, configured by its own variables: WANDB_PROJECT, WANDB_MODE=offline, …"""

    package = "wandb"

    def __init__(self, run: TrackedRun) -> None:
        import wandb

        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=run.name,
            id=run.identity(),
            resume="allow",
            dir=str(run.folder),
            config=dict(run.options),
            settings=wandb.Settings(console="off"),  # what is printed stays ours
        )

    def log(self, epoch: int, figures: Figures) -> None:
        self._run.log(dict(figures), step=epoch)

    def finish(self, summary: Figures) -> None:
        self._run.summary.update(dict(summary))

    def close(self, *, finished: bool) -> None:
        self._run.finish(exit_code=0 if finished else 1)


@register_tracker("mlflow")
class MLflow(Tracker):
    """MLflow, configured by its own variables: MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME, …"""

    package = "mlflow"

    def __init__(self, run: TrackedRun) -> None:
        from mlflow import MlflowClient

        self._client, self._name = MlflowClient(), run.name
        self._id = run.identity(partial(self._new_run, run))
        self._client.update_run(self._id, "RUNNING")
        known = self._client.get_metric_history(self._id, "seconds")
        self._last = max((metric.step for metric in known), default=0)

    def _new_run(self, run: TrackedRun) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        experiment = self._client.get_experiment_by_name(name)
        place = self._client.create_experiment(name) if experiment is None else experiment.experiment_id
        made: str = self._client.create_run(place, run_name=run.name).info.run_id
        for option, value in run.options.items():
            self._client.log_param(made, option, str(value)[:_LONGEST_PARAMETER])
        return made

    def log(self, epoch: int, figures: Figures) -> None:
        from mlflow.entities import Metric

        if epoch <= self._last:  # it would keep both
            return
        now = int(time.time() * 1000)
        self._client.log_batch(self._id, [Metric(name, float(value), now, epoch) for name, value in figures.items()])

    def finish(self, summary: Figures) -> None:
        for name, value in summary.items():
            self._client.set_tag(self._id, name, str(value))

    def close(self, *, finished: bool) -> None:
        self._client.set_terminated(self._id, "FINISHED" if finished else "KILLED")


@register_tracker("trackio")
class Trackio(Tracker):
    """Trackio, on this machine unless its own variables say otherwise: TRACKIO_SPACE_ID, …"""

    package = "trackio"

    def __init__(self, run: TrackedRun) -> None:
        import trackio

        name = f"{run.name}-{run.identity()[:8]}"  # by which it knows a run
        self._trackio = trackio
        trackio.init(project=PROJECT, name=name, config=dict(run.options), resume="allow")

    def log(self, epoch: int, figures: Figures) -> None:
        self._trackio.log(dict(figures), step=epoch)

    def close(self, *, finished: bool) -> None:
        self._trackio.finish()


def _as_markdown(values: Figures) -> str:
    lines = [f"| {name} | {json.dumps(value, ensure_ascii=False)} |" for name, value in values.items()]
    return "\n".join(["| name | value |", "|---|---|", *lines])
