"""Where to compute, and in which arithmetic."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from frozenfusion.utils import launched
from frozenfusion.utils.errors import UsageError
from frozenfusion.utils.messages import first_line
from frozenfusion.utils.progress import log

_CPU_BF16 = ("amx_bf16", "avx512_bf16", "bf16")  # instructions that multiply in bf16; emulation is slower than float32


def choose_device(name: str) -> torch.device:
    """The device called so; auto is the first GPU, else the CPU. Raises UsageError for one that is not there.

    Of several processes that torchrun started each gets a GPU of its own.
    """
    several = launched.world_size() > 1
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
        if not several:
            return torch.device(name)
    if several and name.startswith("cuda:"):
        raise UsageError(f"`device={name}`: each process of torchrun has a GPU of its own: give cuda, or leave it out")
    if several and name == "cuda":
        name = f"cuda:{launched.local_rank()}"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # which a device without numbers, meta, does not know
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        hint = "start as many processes as there are GPUs" if several else "try auto or cpu"
        raise UsageError(f"`device={name}`: cannot be used here ({first_line(error)}): {hint}") from error
    return device


def computes_in_bf16(device: torch.device) -> bool:
    """Whether the hardware itself multiplies in bf16."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = cpu_capabilities()
    return device.type == "cpu" and any(capabilities.get(name) for name in _CPU_BF16)


def cpu_capabilities() -> Mapping[str, Any]:
    """The CPU's instructions by torch's names for them; nothing before torch 2.11, which cannot tell."""
    capabilities: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return capabilities


def autocast_type(precision: str, device: torch.device) -> torch.dtype | None:
    """What torch.autocast is to compute in for a `precision`, None for float32."""
    if precision == "float32" or (precision == "auto" and not computes_in_bf16(device)):
        return None
    if not computes_in_bf16(device):
        log.warning("this %s has no bf16 instructions: `precision=bf16` works, slower than float32", device.type)
    return torch.bfloat16


def computing_in(autocast: torch.dtype | None, device: torch.device) -> torch.autocast:
    """A context in which a device computes in what `autocast_type` found, float32 if None."""
    return torch.autocast(device.type, autocast, enabled=autocast is not None)


@contextlib.contextmanager
def on_one_thread() -> Iterator[None]:
    """Let torch compute the block on one thread of the CPU, as many as it was before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def usable_cores() -> int:
    """Cores that this process may use: those it is kept to, or as many as its container (cgroup v2) has the time of."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):  # "max" is no number
        quota, period = map(int, Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split())
        cores = min(cores, max(1, quota // period))
    return cores


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the device's memory did not suffice."""
    told = isinstance(error, RuntimeError) and "can't allocate memory" in str(error)  # the CPU's allocator
    return told or isinstance(error, torch.OutOfMemoryError | MemoryError)
