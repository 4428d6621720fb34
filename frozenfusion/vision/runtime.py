"""Which runtime of a frozen network pays off: weighed once, when it is known how long eager takes.

Shapes: b images of a batch, s pixels per side.
"""

from __future__ import annotations

import importlib.util
import shutil
import time
from collections.abc import Callable

import numpy as np
import torch

from frozenfusion.utils.device import is_out_of_memory
from frozenfusion.utils.messages import first_line
from frozenfusion.utils.progress import log
from frozenfusion.vision.engines import Engine

# What is expected of a runtime before it is tried: seconds to prepare B7, and how many times faster than eager it
# is in the end, between float32 and bf16 (measured: docs/performance.md). What happens then depends on the speed
# that is measured here.
PREPARATION = {"openvino": 10.0, "compile": 60.0}
SPEED_UP = {"openvino": 1.25, "compile": 1.1}


def choose_runtime(
    make_engine: Callable[[str], Engine],
    shape: tuple[int, ...],
    *,
    device: torch.device,
    eager_seconds: float,
    batches_left: float,
) -> tuple[str, Engine] | None:
    """The faster runtime than eager that will have paid for its preparation in the end, ready to go on; None for eager.

    Args:
        make_engine: prepares the runtime of a name.
        shape: of a batch, (b, s, s, 3).
        eager_seconds: what eager takes for a batch.
        batches_left: how many are to come.
    """
    left = eager_seconds * batches_left
    for runtime in ("openvino", "compile"):
        saved = left * (1 - 1 / SPEED_UP[runtime])
        if saved < 2 * PREPARATION[runtime] or not is_available(runtime, device):
            continue
        log.info("trying %s: may save %.0f of %.0f s", runtime, saved, left)
        try:
            engine = make_engine(runtime)
            seconds = seconds_per_batch(engine, shape)
        except Exception as error:  # compilers fail in their own ways, and eager goes on working
            if is_out_of_memory(error):
                raise
            log.warning("%s failed (%s): eager continues", runtime, first_line(error))
            continue
        log.info("%s takes %.2f s per batch, eager %.2f s", runtime, seconds, eager_seconds)
        if seconds < eager_seconds:
            return runtime, engine
    return None


def seconds_per_batch(engine: Engine, shape: tuple[int, ...]) -> float:
    """How long a batch takes once it has been warmed up."""
    batch = np.zeros(shape, np.uint8)
    for _ in range(2):
        began = time.perf_counter()
        engine(batch)()
    return time.perf_counter() - began


def is_available(runtime: str, device: torch.device) -> bool:
    """Whether this machine has what a runtime needs."""
    if runtime == "openvino":
        return device.type == "cpu" and importlib.util.find_spec("openvino") is not None
    return device.type != "cpu" or any(map(shutil.which, ("g++", "clang++", "cl")))
