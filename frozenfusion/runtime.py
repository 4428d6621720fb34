"""Running a frozen network as fast as the machine can: which way, in which precision, in how large batches.

Shapes: b images of a call, s pixels a side.
"""

from __future__ import annotations

import copy
import importlib.util
import shutil
import time

import numpy as np
import torch
from torch.nn import functional as F

from frozenfusion.device import choose_device, computes_in_bf16, is_out_of_memory
from frozenfusion.engines import REQUEST_IMAGES, Engine, OpenVINOEngine, Part, TorchEngine, compiled_engine
from frozenfusion.errors import UserError
from frozenfusion.folding import FoldedEfficientNet
from frozenfusion.progress import log

GPU_BATCH_SIZE = 128
LEAST_COSINE = 0.999  # between features in low precision and in float32

# What auto expects of a runtime before it tries one: seconds to prepare B7, and how many times faster than eager it
# is in the end, between float32 and bf16 (measured: docs/performance.md). What auto does then depends on the speed
# that it measures itself.
PREPARATION = {"openvino": 10.0, "compile": 60.0}
SPEED_UP = {"openvino": 1.25, "compile": 1.1}

_DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Ticket:
    """Features on their way, in parts."""

    def __init__(self, parts: list[Part]) -> None:
        self._parts = parts

    def result(self) -> np.ndarray:
        """Wait for the features, float32 (b, ...)."""
        return np.concatenate([part() for part in self._parts])


class Runner:
    """A folded network on a device, in one precision, by one runtime; all of them as asked for or as found best.

    `batch_size` images go through at a time: fewer are padded, so that no row depends on how many there were. It is
    halved when memory runs out as a batch begins. `in_flight` batches may be started before the first is waited for.
    With runtime "auto", `images_left` decides whether preparing a faster one than eager can pay, and the first batches
    tell. Raises UserError for a device or runtime that is not there.
    """

    def __init__(
        self,
        network: FoldedEfficientNet,
        image_size: int,
        *,
        device: str = "auto",
        runtime: str = "auto",
        precision: str = "float32",
        images_left: int = 0,
        batch_size: int | None = None,
    ) -> None:
        self.device = choose_device(device)
        self.batch_size = batch_size or _batch_size(self.device)
        self.precision = precision
        self._image_size, self._images_left = image_size, images_left
        self._batches, self._deciding, self._unchecked = 0, runtime == "auto", precision != "float32"
        self._exact = self._network = network.to(self.device)
        if precision != "float32":
            self._network = copy.deepcopy(network).in_precision(_DTYPES[precision])
        self._check_hardware()
        self.runtime = "eager" if runtime == "auto" else runtime
        self._engine: Engine | None = None

    def __str__(self) -> str:
        return f"{self.device}, {self.runtime}, {self.precision}, batches of {self.batch_size}"

    @property
    def in_flight(self) -> int:
        """How many batches to begin before the first is waited for; torch on a CPU is done when it has begun."""
        if self.device.type == "cuda":
            return 3
        return 2 if self.runtime == "openvino" else 1

    def start(self, images: np.ndarray) -> Ticket:
        """Begin with images, uint8 (b, s, s, 3), one or more. Raises UserError."""
        parts: list[Part] = []
        done = 0
        while done < len(images):
            batch = images[done : done + self.batch_size]
            part = self._launched(batch)
            if part is None:
                self._halve()
            else:
                parts.append(part)
                done += len(batch)
        return Ticket(parts)

    # --- one batch

    def _launched(self, images: np.ndarray) -> Part | None:
        """The way to the features of at most batch_size images; None where memory ran out."""
        try:
            began = time.perf_counter()
            if self._engine is None:
                if self.device.type == "cuda":
                    self._network.in_layout(self._faster_layout())
                self._engine = self._engine_of(self.runtime)
            part = self._engine(images)
            if not self._batches:
                part()  # so that what cannot work at all fails here
            if self._unchecked:
                self._check_precision(images, part())
            if self._deciding:
                part()
                self._decide(time.perf_counter() - began)
        except UserError:
            raise
        except Exception as error:
            if is_out_of_memory(error):
                return None  # and lets go of the error, which holds on to the memory of the failed batch
            if self._batches or self.runtime == "eager":
                raise
            raise UserError(f"--runtime {self.runtime} failed ({_first_line(error)}): use --runtime eager") from error
        self._batches += 1
        return part

    def _halve(self) -> None:
        if self.batch_size == 1:
            raise UserError(f"out of memory with a single image on {self.device}: free some, or use a smaller network")
        self.batch_size //= 2
        log.warning("out of memory: going on with batches of %d", self.batch_size)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        self._engine = None  # which is made for one shape

    # --- precision

    def _check_hardware(self) -> None:
        if self.precision == "float32":
            if self.device.type == "cuda":  # TF32 would round every product to 10 bits
                torch.backends.cudnn.allow_tf32 = False
                torch.backends.cuda.matmul.allow_tf32 = False
        elif self.precision == "bf16" and not computes_in_bf16(self.device):
            log.warning("%s has no bf16 arithmetic: --precision float32 is likely to be faster", self.device)

    def _check_precision(self, images: np.ndarray, features: np.ndarray) -> None:
        exact = TorchEngine(self._exact, self.device, self._shape)(images)()
        low, full = (torch.from_numpy(of).flatten(1) for of in (features, exact))
        cosine = F.cosine_similarity(low, full).min().item()
        if not cosine >= LEAST_COSINE:
            raise UserError(
                f"--precision {self.precision}: features differ too much from float32 (cosine {cosine:.5f} on a first"
                f" batch, {LEAST_COSINE} is needed): use --precision float32"
            )
        log.info("%s agrees with float32: cosine at least %.5f on a first batch", self.precision, cosine)
        self._unchecked = False

    # --- runtimes

    @property
    def _shape(self) -> tuple[int, ...]:
        return self.batch_size, self._image_size, self._image_size, 3

    def _engine_of(self, runtime: str) -> Engine:
        if runtime == "eager":
            return TorchEngine(self._network, self.device, self._shape)
        if runtime == "compile":
            return compiled_engine(self._network, self.device, self._shape)
        if self.device.type != "cpu":
            raise UserError("--runtime openvino runs on the CPU: give --device cpu, or another --runtime")
        return OpenVINOEngine(self._exact, self.precision, self._shape)

    def _decide(self, seconds: float) -> None:
        """Once the second batch was timed, leave eager for a faster runtime if one will have paid in the end."""
        if self._batches < 1:
            return
        self._deciding = False
        left = seconds * (self._images_left / self.batch_size - 2)
        for runtime in ("openvino", "compile"):
            saved = left * (1 - 1 / SPEED_UP[runtime])
            if saved < 2 * PREPARATION[runtime] or not _is_available(runtime, self.device):
                continue
            log.info("trying %s: may save %.0f of %.0f s", runtime, saved, left)
            try:
                engine = self._engine_of(runtime)
                faster = self._seconds(engine)
            except Exception as error:  # compilers fail in their own ways, and eager goes on working
                if is_out_of_memory(error):
                    raise
                log.warning("%s failed (%s): going on with eager", runtime, _first_line(error))
                continue
            log.info("%s takes %.2f s a batch, eager %.2f s", runtime, faster, seconds)
            if faster < seconds:
                self._engine, self.runtime = engine, runtime
                self._unchecked = self.precision != "float32"
                return

    def _faster_layout(self) -> torch.memory_format:
        layouts = (torch.channels_last, torch.contiguous_format)
        engine = self._engine_of("eager")

        def seconds(layout: torch.memory_format) -> float:
            self._network.in_layout(layout)
            return self._seconds(engine)

        return min(layouts, key=seconds)

    def _seconds(self, engine: Engine) -> float:
        """How long a batch takes once it has been warmed up."""
        batch = np.zeros(self._shape, np.uint8)
        for _ in range(2):
            began = time.perf_counter()
            engine(batch)()
        return time.perf_counter() - began


def _batch_size(device: torch.device) -> int:
    """On a CPU as many images for each thread, so that most of what a thread computes are whole images."""
    threads = torch.get_num_threads()
    return GPU_BATCH_SIZE if device.type == "cuda" else threads * max(1, min(REQUEST_IMAGES, 64 // threads))


def _is_available(runtime: str, device: torch.device) -> bool:
    if runtime == "openvino":
        return device.type == "cpu" and importlib.util.find_spec("openvino") is not None
    return device.type != "cpu" or any(map(shutil.which, ("g++", "clang++", "cl")))


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
