"""A Ray cluster: the way in, what it has room for, and what its workers must have in common with this process."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import platform
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from frozenfusion.utils.checks import at_least
from frozenfusion.utils.errors import UsageError, UserError
from frozenfusion.utils.interrupts import held_back
from frozenfusion.utils.messages import first_line
from frozenfusion.utils.progress import log
from frozenfusion.utils.remote import address_of

Told = list[tuple[int, str]]  # levels, and what was said

LOCAL = "local"
SECONDS_TO_ANSWER = 10.0
_HOME = Path(__file__).resolve().parents[2]  # of the package


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster by its address, and the GPUs of each worker: see `room_for`."""

    address: str
    gpus_per_worker: float | None = None


@dataclass(frozen=True)
class Room:
    """What each worker is given, and how many of them the cluster has room for now."""

    cpus: int
    gpus: float
    workers: int


@contextlib.contextmanager
def connected(address: str) -> Iterator[Any]:
    """The module `ray`, for the block connected to the cluster at an address, or to one of this machine ("local").

    Where the program has connected itself, that connection is used and left. Raises UserError.
    """
    try:
        import ray
    except ImportError as error:
        raise UserError(f"`ray={address}` needs a package that is not here: pip install frozenfusion[ray]") from error
    with contextlib.ExitStack() as stack:
        if not ray.is_initialized():
            stack.enter_context(contextlib.redirect_stdout(sys.stderr))  # Ray tells of deaths on standard output
            with _keeping_its_signals():
                _connect(ray, address)
            stack.callback(ray.shutdown)
        try:
            yield ray
        except ray.exceptions.RayError as error:
            raise UserError(
                f"`ray={address}`: the cluster was lost ({type(error).__name__}): finished work is kept, the same "
                "command goes on with it"
            ) from error


def _connect(ray: Any, address: str) -> None:
    host, _, port = address.rpartition(":")
    own = {"include_dashboard": False} if address == LOCAL else {}
    try:
        if port.isdecimal():  # Ray itself waits for more than a minute where nobody answers
            socket.create_connection((host.strip("[]"), int(port)), SECONDS_TO_ANSWER).close()
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR, runtime_env=_environment(), **own)
    except ray.exceptions.AuthenticationError as error:
        raise UserError(
            f"`ray={address}`: {first_line(error)}: give this machine the cluster's token (docs/scaling.md)"
        ) from error
    except (RuntimeError, ValueError, OSError, OverflowError, ray.exceptions.RayError) as error:
        raise UserError(
            f"`ray={address}`: no connection ({first_line(error)}): check that the cluster runs, its address, and "
            "its token (docs/scaling.md)"
        ) from error


def _environment() -> dict[str, Any]:
    """Let workers find the package where this process has it, unless it is installed, as it must be there then."""
    if "site-packages" in _HOME.parts:
        return {}
    return {"env_vars": {"PYTHONPATH": os.pathsep.join([str(_HOME), "${PYTHONPATH}"])}}


@contextlib.contextmanager
def _keeping_its_signals() -> Iterator[None]:
    """Ray takes SIGTERM for itself as it connects."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


def room_for(ray: Any, gpus: float | None, threads: int) -> Room:
    """Room for workers of so many GPUs, by default one where there are any; without, of so many threads of a CPU.

    Raises UsageError for GPUs that are not there.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    most = max((node.get("GPU", 0.0) for node in nodes), default=0.0)
    if gpus is None:
        gpus = min(1.0, most)
    if gpus > most:
        raise UsageError(
            f"`ray_gpus_per_worker={gpus:g}`: no node of the cluster has more than {most:g}: ask for fewer"
        )
    if gpus:
        return Room(1, gpus, sum(math.floor(node.get("GPU", 0.0) / gpus + 1e-9) for node in nodes))
    cpus = [int(node["CPU"]) for node in nodes if node.get("CPU", 0) >= 1]
    if not cpus:
        raise UserError("the Ray cluster has no CPU to give: check it with ray status")
    threads = min(threads, *cpus)
    return Room(threads, 0.0, sum(of // threads for of in cpus))


def check_gpus(gpus: float | None) -> None:
    """Raise UsageError for what cannot be GPUs of a worker."""
    if gpus is not None:
        at_least("ray_gpus_per_worker", gpus, 0)
        if gpus > 1 and gpus != int(gpus):
            raise UsageError(f"`ray_gpus_per_worker` is a part of one or a whole number, not {gpus:g}")


def wait_for(ray: Any, calls: Sequence[Any], seconds: float) -> list[Any]:
    """Those of the calls that have ended, in their order, as soon as one has; none after so many seconds."""
    with held_back():  # in Ray's hands SIGTERM becomes Ctrl-C
        if not calls:
            time.sleep(seconds)
            return []
        ray.wait(calls, timeout=seconds)
        ended: list[Any] = ray.wait(calls, num_returns=len(calls), timeout=0)[0]
        return ended


def result_of(ray: Any, call: Any) -> Any:
    """What a call gave. What the worker raised is raised as it was; Ray's own errors tell that it died."""
    try:
        return ray.get(call)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None


@contextlib.contextmanager
def keeping_warnings() -> Iterator[Told]:
    """In a worker, keep what is logged in the block, for the driver to tell, where it is a warning or worse."""
    told: Told = []
    keeper = logging.Handler(logging.WARNING)
    keeper.emit = lambda record: told.append((record.levelno, record.getMessage()))  # type: ignore[method-assign]
    log.handlers, log.propagate = [keeper], False
    yield told


def go_to(folder: str, *paths: Path) -> None:
    """Work, in a worker, in the driver's folder, for relative paths to mean the same. Raises UserError."""
    try:
        os.chdir(folder)
    except OSError as error:
        relative = [path for path in paths if not path.is_absolute() and address_of(path) is None]
        if relative:
            raise UserError(
                f"{folder}: not on {platform.node()}, where a worker is: give {relative[0]} as an absolute path, of a "
                "folder that all nodes share"
            ) from error
