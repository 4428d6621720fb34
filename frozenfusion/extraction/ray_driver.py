"""Stage one on a Ray cluster: who computes which shard next. What is done is in the files, and nowhere else."""

from __future__ import annotations

import math
import os
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch

from frozenfusion.data.pairs import Pairs
from frozenfusion.extraction.claims import LEASE, Worker
from frozenfusion.extraction.config import ExtractConfig
from frozenfusion.extraction.loop import Timing
from frozenfusion.extraction.ray_worker import Done, NotStarted, OpenWork, Setup, ShardActor
from frozenfusion.extraction.sharding import Portion, clear, unfinished
from frozenfusion.store.plan import Plan, read_plan
from frozenfusion.utils.errors import UserError
from frozenfusion.utils.messages import one_line, printable
from frozenfusion.utils.progress import Progress, log
from frozenfusion.utils.ray_cluster import connected, result_of, room_for, wait_for
from frozenfusion.vision.registry import module_of

IN_FLIGHT = 2  # shards that a worker has been given, so that it never waits for the next
DEATHS = 2  # of the worker of some rows, after which there are to be fewer
FAILED_STARTS = 3  # in a row, after which a worker is given up
CRASHED_IN_A_ROW = 8  # images, none of which can be the reason
LOOK_SECONDS = 0.5
RETRY_SECONDS = 2.0
PATIENCE = 1.5 * LEASE  # with another worker's claim, which may be that of a dead one
_COUNT = "count"  # the group of calls that are answered while another is at work


class Computed(NamedTuple):
    """What came of it; others: shards that workers elsewhere are at work on."""

    plan: Plan
    timing: Timing
    others: int
    workers: int


@dataclass
class _Task:
    """Rows of a shard that a worker computes next: a portion, or all that are pending, which finishes the shard."""

    shard: int
    again: bool  # rows that were computed are looked at too
    portion: Portion | None = None
    deaths: int = 0
    refused_at: float | None = None  # when another was first found at it


@dataclass(eq=False)
class _Member:
    """A worker as the driver sees it; it has shards only once it has started."""

    actor: Any
    is_ready: bool = False
    starting: Any = None  # a call that is awaited before
    start_at: float = 0.0  # when to make it
    is_there: bool = False  # the process, as far as is known
    failed_starts: int = 0
    tasks: dict[Any, _Task] = field(default_factory=dict)  # by their calls, in the order in which they are computed
    counting: Any = None
    images: int = 0  # of the first of them, that are done

    @property
    def calls(self) -> list[Any]:
        """What is awaited of it, in the order in which it comes."""
        return [call for call in (self.starting, *self.tasks, self.counting) if call is not None]


def compute_on_ray(pairs: Pairs, folder: Path, config: ExtractConfig, open_work: OpenWork) -> Computed:
    """Compute the shards of a folder that are not finished, and all of them where the config `looks_again`.

    Raises UserError: what a worker raised; no connection; workers that die before they compute.
    """
    plugin = module_of(config.backbone)
    if plugin is not None and plugin[0] == "__main__":
        raise UserError(
            f"`backbone={config.backbone}` is of the program itself, which no worker can import: put it into a file"
        )
    began = time.perf_counter()
    with connected(config.ray or "") as ray:
        room = room_for(ray, config.ray_gpus_per_worker, torch.get_num_threads())
        rows = config.shards or read_plan(folder).bounds[1]
        count = min(config.ray_workers or room.workers, max(1, math.ceil(len(pairs) / rows)))
        kind = ray.remote(num_cpus=room.cpus, num_gpus=room.gpus, max_restarts=-1, concurrency_groups={_COUNT: 1})
        setup, shared = Setup(open_work, folder, config, plugin, os.getcwd()), ray.put(pairs)
        members = [_Member(kind(ShardActor).remote()) for _ in range(count)]
        driver = _Driver(ray, members, (setup, shared), pairs, folder, config)
        log.info("%d workers on Ray, each of %s", count, f"{room.gpus:g} GPUs" if room.gpus else f"{room.cpus} CPUs")
        try:
            driver.run()
        finally:
            driver.end()
    assert driver.plan is not None
    with Worker(folder) as worker:
        clear(folder, worker)
    timing = Timing(images=driver.images, total=time.perf_counter() - began)
    return Computed(driver.plan, timing, driver.others, count)


class _Driver:
    """Keeps every worker supplied, and learns from those that die which rows kill them."""

    def __init__(
        self,
        ray: Any,
        members: list[_Member],
        given: tuple[Setup, Any],
        pairs: Pairs,
        folder: Path,
        config: ExtractConfig,
    ) -> None:
        """given: what a worker starts with."""
        self._ray, self._members, self._given = ray, members, given
        self._pairs, self._folder, self._config = pairs, folder, config
        self.plan: Plan | None = None
        self.images = self.others = 0
        self._todo: set[int] = set()
        self._queue: deque[_Task] = deque()
        self._rest: dict[int, list[_Task]] = {}  # what follows in a shard, the next one last
        self._later: list[tuple[float, _Task]] = []
        self._all = self._done = self._shown = 0  # images of unfinished shards
        self._crashed = 0
        self._told: set[str] = set()
        self._counted_at = 0.0
        self._progress: Progress | None = None

    def run(self) -> None:
        """Hand out shards until none is left."""
        while self.plan is None or self._todo:
            self._start()
            self._hand_out()
            calls = {call: member for member in self._members for call in member.calls}
            for call in wait_for(self._ray, [*calls], LOOK_SECONDS):
                if calls[call] in self._members:  # else it has died meanwhile
                    self._take(calls[call], call)
            self._show()

    def end(self) -> None:
        """End the workers."""
        for member in self._members:
            self._ray.kill(member.actor)
        if self._progress is not None:
            self._progress.close()

    def _start(self) -> None:
        """Ask for workers' processes, for which there may be no room yet; once one is there it loads the network."""
        for member in self._members:
            if not member.is_ready and member.starting is None and time.monotonic() >= member.start_at:
                member.starting = member.actor.ping.remote()

    def _hand_out(self) -> None:
        now = time.monotonic()
        self._queue += [task for at, task in self._later if at <= now]
        self._later = [(at, task) for at, task in self._later if at > now]
        ready = [member for member in self._members if member.is_ready]
        for place in range(IN_FLIGHT):
            for member in ready:
                scarce = place and len(self._queue) < len(self._members)  # the last are for who is free first
                if self._queue and len(member.tasks) == place and not scarce:
                    task = self._queue.popleft()
                    expected = self._all // len(self._members)
                    member.tasks[member.actor.compute.remote(task.shard, task.portion, expected, task.again)] = task
        if now >= self._counted_at + LOOK_SECONDS:
            self._counted_at = now
            for member in ready:
                if member.tasks and member.counting is None:
                    member.counting = member.actor.count.options(concurrency_group=_COUNT).remote()

    def _take(self, member: _Member, call: Any) -> None:
        """See what came of a call."""
        try:
            result = result_of(self._ray, call)
        except NotStarted:  # it died when it had nothing to do
            self._lost(member, None)
        except self._ray.exceptions.RayActorError as error:
            if call == member.counting:  # the others tell
                member.counting = None
            else:
                self._lost(member, error)
        else:
            if call == member.counting:
                member.counting, member.images = None, result
            elif call in member.tasks:
                self._ended(member, member.tasks.pop(call), result)
            elif member.is_there:
                member.is_ready, member.starting, member.failed_starts = True, None, 0
                self._begin(result)
            else:
                member.is_there, member.starting = True, member.actor.start.remote(*self._given)

    def _begin(self, plan: Plan) -> None:
        """Find, when the first worker tells the plan, what there is to do."""
        if self.plan is not None:
            return
        self.plan = plan
        self._todo = set(plan.shards) if self._config.looks_again else unfinished(self._folder, plan)
        self._queue += [_Task(shard, self._config.looks_again) for shard in sorted(self._todo)]
        self._all = sum(map(self._size, self._todo))
        self._progress = Progress(self._all, "img", "extracting")

    def _ended(self, member: _Member, task: _Task, done: Done) -> None:
        member.images = 0
        self.images += done.timing.images
        for level, text in done.told:
            if text not in self._told:
                self._told.add(text)
                log.log(level, "%s", text)
        if not done.claimed:
            now = time.monotonic()
            task.refused_at = task.refused_at or now
            if now < task.refused_at + PATIENCE:
                self._later.append((now + RETRY_SECONDS, task))
            else:
                self.others += 1
                self._close(task.shard)
            return
        if done.timing.images:
            self._crashed = 0
        if self._rest.get(task.shard):
            self._queue.appendleft(self._rest[task.shard].pop())
        else:
            self._close(task.shard)

    def _close(self, shard: int) -> None:
        self._todo.discard(shard)
        self._done += self._size(shard)

    def _lost(self, member: _Member, error: Exception | None) -> None:
        """Go on after a worker died: Ray starts it again, and the shard that it was at is tried again, or divided."""
        tasks = [*member.tasks.values()]
        self._queue.extendleft(reversed(tasks if error is None else tasks[1:]))
        if tasks and error is not None:
            self._blame(tasks[0])
        failed = member.failed_starts + (member.is_there and not member.is_ready)
        if failed < FAILED_STARTS and not isinstance(error, self._ray.exceptions.ActorDiedError):  # that is for good
            place = self._members.index(member)
            self._members[place] = _Member(member.actor, start_at=time.monotonic() + 1, failed_starts=failed)
            return
        self._members.remove(member)
        self._ray.kill(member.actor)
        if not self._members:
            reason = one_line(error or RuntimeError("they ended"), 300)
            raise UserError(
                f"every worker of the Ray cluster died as it started ({reason}): see Ray's logs, and whether all nodes "
                "have the package and the folders (docs/scaling.md)"
            )

    def _blame(self, task: _Task) -> None:
        """Have rows whose worker died computed again; after some deaths first one half of them, then the other."""
        whole = Portion(0, self._size(task.shard))
        first, stop, _ = task.portion or whole
        task.deaths += 1
        log.warning("shard %d: the worker died that computed %d rows of it", task.shard + 1, stop - first)
        if task.deaths < DEATHS:
            self._queue.appendleft(task)
            return
        rest = self._rest.setdefault(task.shard, [])
        if task.portion is None:
            rest.append(_Task(task.shard, again=False))  # which finishes it
        if stop - first > 1:
            middle = (first + stop) // 2
            rest += [self._part(task.shard, middle, stop), self._part(task.shard, first, middle)]
        else:
            self._give_up(task.shard, first)
            rest.append(_Task(task.shard, again=False, portion=Portion(first, stop, crashed=True)))
        if task.again:  # all that is to be computed again pends before any portion is
            rest.append(_Task(task.shard, again=True, portion=Portion(0, 0)))
        self._queue.appendleft(rest.pop())

    def _part(self, shard: int, first: int, stop: int) -> _Task:
        """A half; it is halved again after one death, for somewhere in it is what killed, but a row has its chance."""
        return _Task(shard, again=False, portion=Portion(first, stop), deaths=DEATHS - 1 if stop - first > 1 else 0)

    def _give_up(self, shard: int, row: int) -> None:
        assert self.plan is not None
        name = self._pairs[self.plan.bounds[shard] + row].id
        self._crashed += 1
        if self._crashed > CRASHED_IN_A_ROW:
            raise UserError(
                f"{self._folder}: workers die of one image after another ({name} is the last), which cannot be the "
                "images' fault: see Ray's logs, then run the same command with `retry_failed=True`"
            )
        log.warning("%s: workers die of its image, which counts as crashed", printable(name))

    def _size(self, shard: int) -> int:
        assert self.plan is not None
        return self.plan.bounds[shard + 1] - self.plan.bounds[shard]

    def _show(self) -> None:
        if self._progress is not None and self.plan is not None:
            done = max(self._shown, min(self._all, self._done + sum(member.images for member in self._members)))
            shards = f"{len(self.plan.shards) - len(self._todo):,}/{len(self.plan.shards):,}"
            self._progress.update(done - self._shown, shards=shards)
            self._shown = done
