"""A worker of a Ray cluster: a process that runs stage one on the shards that the driver gives it."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from frozenfusion.data.pairs import Pairs
from frozenfusion.extraction.claims import Worker
from frozenfusion.extraction.config import ExtractConfig
from frozenfusion.extraction.loop import Timing
from frozenfusion.extraction.sharding import Portion, compute_shard
from frozenfusion.store.plan import Plan
from frozenfusion.utils.plugins import import_again
from frozenfusion.utils.progress import Progress
from frozenfusion.utils.ray_cluster import Told, go_to, keeping_warnings


class Work(Protocol):
    """What computes shards in a process: see `ShardWork`."""

    plan: Plan
    timing: Timing

    def compute(
        self, part: Pairs, path: Path, images: int, portion: Portion | None = None, *, again: bool = True
    ) -> None:
        """Bring a shard's file up to date, or a portion of it."""


class OpenWork(Protocol):
    """Makes such work, in the process that will do it."""

    def __call__(self, pairs: Pairs, folder: Path, config: ExtractConfig, progress: Any) -> Work: ...


class Setup(NamedTuple):
    """What every worker is made from."""

    open_work: OpenWork
    folder: Path
    config: ExtractConfig
    plugin: tuple[str, str | None] | None  # the module that has the network, and its file
    cwd: str  # of the driver, for relative paths


class Done(NamedTuple):
    """What became of a shard, or a portion of it: `claimed` is False where another worker is at it."""

    claimed: bool
    timing: Timing
    told: Told


class NotStarted(Exception):
    """The process is a new one, which has not loaded the network yet."""


class ShardActor:
    """The worker. It answers with counts, never with features: those are in the folder."""

    def __init__(self) -> None:
        self._work: Work | None = None
        self._counting = _Counting()

    def ping(self) -> None:
        """Tell that the process is there."""

    def start(self, setup: Setup, pairs: Pairs) -> Plan:
        """Load the network; the plan of the folder, which is made if there is none."""
        if self._work is not None:
            return self._work.plan
        go_to(setup.cwd, pairs.path, setup.folder)
        if setup.plugin is not None:
            import_again(*setup.plugin)
        self._pairs, self._folder = pairs, setup.folder
        self._work = setup.open_work(pairs, setup.folder, setup.config, self._counting)
        return self._work.plan

    def compute(self, shard: int, portion: Portion | None, images: int, again: bool) -> Done:
        """Compute a shard, or a portion of it; images: how many this worker is to expect in all."""
        if self._work is None:
            raise NotStarted
        self._counting.images, folder = 0, self._folder
        self._work.timing = Timing()
        compute = partial(self._work.compute, portion=portion, again=again)
        with keeping_warnings() as told, Worker(folder) as worker:
            claims = worker.claims().get(shard, {})
            claimed = compute_shard(
                worker, claims, self._pairs, folder, self._work.plan, shard, images, compute, again=again
            )
        return Done(claimed, self._work.timing, told)

    def count(self) -> int:
        """How many images of the shard at hand are done; asked for from another thread."""
        return self._counting.images


class _Counting:
    """Counts what is under way, in the place of showing it."""

    def __init__(self) -> None:
        self.images = 0

    def __call__(self, total: int, unit: str, label: str = "") -> Progress:
        counting = self

        class Counted(Progress):
            def update(self, n: int = 1, **figures: float | str) -> None:
                counting.images += n

        return Counted(total, unit, label)
