"""Where to compute, and in which arithmetic."""

from __future__ import annotations

import torch

from frozenfusion.errors import UsageError
from frozenfusion.progress import log

_CPU_BF16 = ("amx_bf16", "avx512_bf16", "bf16")  # instructions that multiply in bf16; emulation is slower than float32


def choose_device(name: str) -> torch.device:
    """The device of --device; auto is the first GPU, else the CPU. Raises UsageError for one that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = (str(error).splitlines() or ["unknown"])[0].rstrip(".")
        raise UsageError(f"--device {name}: cannot be used here ({reason}): try auto or cpu") from error
    return device


def computes_in_bf16(device: torch.device) -> bool:
    """Whether the hardware itself multiplies in bf16."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities()
    return device.type == "cpu" and any(capabilities.get(name) for name in _CPU_BF16)


def autocast_type(precision: str, device: torch.device) -> torch.dtype | None:
    """What torch.autocast is to compute in for --precision, None for float32."""
    if precision == "float32" or (precision == "auto" and not computes_in_bf16(device)):
        return None
    if not computes_in_bf16(device):
        log.warning("this %s has no bf16 instructions: --precision bf16 works, slower than float32", device.type)
    return torch.bfloat16


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the device's memory did not suffice."""
    told = isinstance(error, RuntimeError) and "can't allocate memory" in str(error)  # the CPU's allocator
    return told or isinstance(error, torch.OutOfMemoryError | MemoryError)
