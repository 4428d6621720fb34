"""One training by several processes, each of which computes its part of every batch; what they tell each other.

The processes are those of torch's default group, which `joined` makes where torchrun has started several. All make the
same calls in the same order. In a process alone nothing is told, and every value is its own.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn

from frozenfusion.utils import launched
from frozenfusion.utils.device import choose_device
from frozenfusion.utils.errors import UsageError, UserError
from frozenfusion.utils.interrupts import pass_over_signals
from frozenfusion.utils.locks import WriterLock
from frozenfusion.utils.messages import first_line
from frozenfusion.utils.progress import log

PATIENCE = datetime.timedelta(days=7)  # others wait as long for the first one, which may encode millions of texts
_FAILED = "frozenfusion/failed"  # where a process leaves why it ended

_apart: ContextVar[bool] = ContextVar("apart", default=False)  # whether the first process works without the others

Value = TypeVar("Value")
Rows = NDArray[np.int64]


class PeerLost(UserError):
    """Another process of the training ended, so that no more can be told to it."""


def rank() -> int:
    """The number of this process; the first, 0, alone writes and talks."""
    return dist.get_rank() if _are_several() else 0


def world() -> int:
    """How many processes train together."""
    return dist.get_world_size() if _are_several() else 1


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Join the processes that torchrun has started for the block; nothing where it has started no others.

    What goes wrong in any of them ends all, and the first one raises it: the others end without a word.
    """
    if launched.world_size() == 1:
        yield
        return
    from torch.distributed.rendezvous import rendezvous

    backend = "gloo"
    if torch.cuda.is_available() and dist.is_nccl_available():
        backend = "cpu:gloo,cuda:nccl"
        torch.cuda.set_device(choose_device("auto"))
    store, number, count = next(iter(rendezvous("env://")))
    dist.init_process_group(backend, store=store, rank=number, world_size=count, timeout=PATIENCE)
    try:
        yield
    except BaseException as error:
        if number:
            _leave_word(store, error, number)
            raise SystemExit(UserError.exit_status) from error
        # torchrun ends this process as soon as another has ended, perhaps before that was noticed here
        pass_over_signals()
        reason = _reason(store) if isinstance(error, PeerLost | KeyboardInterrupt) else None
        if reason is None:
            raise
        raise reason from error
    finally:
        dist.destroy_process_group()


def from_first(value: Value) -> Value:
    """What the first process calls with, which may be anything that can be pickled."""
    if world() == 1:
        return value
    values: list[Any] = [value]
    with _lost():
        dist.broadcast_object_list(values, device=torch.device("cpu"))
    found: Value = values[0]
    return found


def by_first(make: Callable[[], Value]) -> Value:
    """What `make` returns in the first process, which alone calls it, while the others wait: in it none are asked."""
    if world() == 1:
        return make()
    token = _apart.set(True)
    try:
        made = [make() for _ in range(dist.get_rank() == 0)]
    finally:
        _apart.reset(token)
    return from_first(made)[0]


def first_alone(make: Callable[[], Value]) -> Value:
    """What `make` returns; the others call it when the first process has, and find the files that it made."""
    made = [make()] if rank() == 0 else []
    from_first(None)
    return made[0] if made else make()


def lock_of_first(path: Path) -> contextlib.AbstractContextManager[WriterLock | None]:
    """The lock of a file, which the first process alone holds."""
    return WriterLock(path) if rank() == 0 else contextlib.nullcontext()


def own_part(batch: Rows) -> tuple[Rows, int]:
    """Which pairs of a batch (b,) this process computes, and how many of them count.

    Where there are fewer pairs than processes, the last ones compute one that counts nothing, to take part.
    """
    part = np.array_split(batch, world())[rank()]
    return (part, len(part)) if len(part) else (batch[:1], 0)


def total(value: Tensor) -> Tensor:
    """The sum over all processes."""
    if world() == 1:
        return value
    value = value.clone()
    with _lost():
        dist.all_reduce(value)
    return value


def mean(value: Tensor) -> Tensor:
    """The mean over all processes."""
    return value if world() == 1 else total(value) / world()


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Give all processes the mean of their gradients; a parameter that has none in any of them keeps none."""
    if world() == 1:
        return
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    # on the CPU, where a process that has ended is noticed at once
    known = total(torch.tensor([parameter.grad is not None for parameter in trained], dtype=torch.int64)).tolist()
    learned = [parameter for parameter, count in zip(trained, known, strict=True) if count]
    gradients = [torch.zeros_like(each) if each.grad is None else each.grad for each in learned]
    averaged = mean(torch.cat([gradient.flatten() for gradient in gradients]))
    for parameter, part in zip(learned, averaged.split([each.numel() for each in learned]), strict=True):
        parameter.grad = part.view_as(parameter)


def align(tensors: Iterable[Tensor]) -> None:
    """Give all processes the values that the first one has."""
    if world() == 1:
        return
    with _lost():
        for tensor in tensors:
            dist.broadcast(tensor.data, 0)


def require_same(values: Sequence[Any], what: str) -> None:
    """Raise UserError in a process that has other values than the first one."""
    if from_first(values) != values:
        raise UserError(f"{what} of process {rank()} are not those of the first one: give all the same files")


def _are_several() -> bool:
    return not _apart.get() and dist.is_available() and dist.is_initialized()


@contextlib.contextmanager
def _lost() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise PeerLost(
            "another process of the training ended, or its machine: finished epochs are kept, the same command resumes"
        ) from error


def _leave_word(store: Any, error: BaseException, number: int) -> None:
    """Write down why this process ends, unless another, or a signal, ended it."""
    if isinstance(error, PeerLost) or not isinstance(error, Exception):
        return
    trace = "" if isinstance(error, UserError) else traceback.format_exc()
    told = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {first_line(error)}"
    with contextlib.suppress(RuntimeError):  # whoever keeps the store is gone
        store.set(_FAILED, json.dumps([f"{told} (process {number})", trace, isinstance(error, UsageError)]))


def _reason(store: Any) -> UserError | None:
    """Why another process ended, where it left word."""
    try:
        if not store.check([_FAILED]):
            return None
        told, trace, is_usage = json.loads(store.get(_FAILED))
    except RuntimeError:
        return None
    if trace:
        log.error("%s", trace)
    return (UsageError if is_usage else UserError)(told)
