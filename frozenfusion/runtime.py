"""Running a frozen network as fast as the machine can: batches of one shape, several in flight on a GPU.

Shapes: b images of a call, s pixels a side.
"""

from __future__ import annotations

import copy
import importlib.util
import shutil
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from frozenfusion.device import choose_device, computes_in_bf16, is_out_of_memory
from frozenfusion.errors import UserError
from frozenfusion.folding import FoldedEfficientNet
from frozenfusion.progress import log

GPU_BATCH_SIZE = 128
IN_FLIGHT = {"cpu": 1, "cuda": 3}  # batches begun before the first is waited for
LEAST_COSINE = 0.999  # between features in low precision and in float32

# What auto expects of a runtime before it tries one: seconds to prepare B7, and how many times faster than eager it
# is in the end (measured: docs/performance.md). What it does after trying depends on the speed that it then measures.
PREPARATION = {"openvino": 20.0, "compile": 90.0}
SPEED_UP = {"openvino": 1.25, "compile": 1.15}

_DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_OPENVINO_PRECISION = {"float32": "f32", "bf16": "bf16", "fp16": "f16"}

Engine = Callable[[Tensor], Tensor]  # images uint8 (batch_size, s, s, 3) on the device → float32 features


class Ticket:
    """Features on their way, in parts."""

    def __init__(self, parts: list[Callable[[], np.ndarray]]) -> None:
        self._parts = parts

    def result(self) -> np.ndarray:
        """Wait for the features, float32 (b, ...)."""
        return np.concatenate([part() for part in self._parts])


class Runner:
    """A folded network on a device, in one precision, by one runtime; all of them as asked for or as found best.

    `batch_size` images go through at a time: fewer are padded, so that no row depends on how many there were. It is
    halved when memory runs out. `in_flight` batches may be started before the first is waited for. With runtime
    "auto", `images_left` decides whether preparing a faster one than eager can pay, and the first batches tell.
    Raises UserError for a device or runtime that is not there.
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
        self.in_flight = IN_FLIGHT.get(self.device.type, 1)
        self.precision = precision
        self._image_size, self._images_left = image_size, images_left
        self._batches, self._deciding, self._unchecked = 0, runtime == "auto", precision != "float32"
        self._exact = self._network = network.to(self.device)
        if precision != "float32":
            self._network = copy.deepcopy(network).in_precision(_DTYPES[precision])
        self._check_hardware()
        if self.device.type == "cuda":
            self._copies = torch.cuda.Stream(self.device)
            self._network.in_layout(self._faster_layout())
        self.runtime = "eager" if runtime == "auto" else runtime
        self._engine: Engine | None = None

    def __str__(self) -> str:
        return f"{self.device}, {self.runtime}, {self.precision}, batches of {self.batch_size}"

    def start(self, images: np.ndarray) -> Ticket:
        """Begin with images, uint8 (b, s, s, 3), any number of them. Raises UserError."""
        parts: list[Callable[[], np.ndarray]] = []
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

    def _launched(self, images: np.ndarray) -> Callable[[], np.ndarray] | None:
        """The way to the features of at most batch_size images; None where memory ran out."""
        try:
            began = time.perf_counter()
            part = self._launch(images)
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

    @torch.no_grad()
    def _launch(self, images: np.ndarray) -> Callable[[], np.ndarray]:
        count = len(images)
        if self._engine is None:
            self._engine = self._engine_of(self.runtime)
        if self.device.type != "cuda":
            computed = self._engine(self._padded(images)).cpu().numpy()
            return lambda: computed[:count]
        with torch.cuda.device(self.device):
            compute = torch.cuda.current_stream()
            with torch.cuda.stream(self._copies):
                pixels = self._padded(images).to(self.device, non_blocking=True)
            compute.wait_stream(self._copies)
            pixels.record_stream(compute)
            features = self._engine(pixels)
            back = torch.empty(features.shape, dtype=features.dtype, pin_memory=True)
            back.copy_(features, non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record(compute)

        def wait() -> np.ndarray:
            arrived.synchronize()
            return back.numpy()[:count]

        return wait

    def _padded(self, images: np.ndarray) -> Tensor:
        """`images` in a batch of the one shape; in page-locked memory where a GPU is to fetch it."""
        pinned = self.device.type == "cuda"
        if len(images) == self.batch_size and not pinned:
            return torch.from_numpy(np.ascontiguousarray(images))
        batch = self._blank(pinned)
        batch[: len(images)] = torch.from_numpy(images)
        return batch

    def _blank(self, pinned: bool = False) -> Tensor:
        size = self._image_size
        return torch.zeros(self.batch_size, size, size, 3, dtype=torch.uint8, pin_memory=pinned)

    def _halve(self) -> None:
        if self.batch_size == 1:
            raise UserError(f"out of memory with a single image on {self.device}: free some, or use a smaller network")
        self.batch_size //= 2
        log.warning("out of memory: going on with batches of %d", self.batch_size)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        self._engine = None  # OpenVINO's is made for one shape

    # --- precision

    def _check_hardware(self) -> None:
        if self.precision == "float32":
            if self.device.type == "cuda":  # TF32 would round every product to 10 bits
                torch.backends.cudnn.allow_tf32 = False
                torch.backends.cuda.matmul.allow_tf32 = False
        elif self.precision == "bf16" and not computes_in_bf16(self.device):
            log.warning("%s has no bf16 arithmetic: --precision float32 is likely to be faster", self.device)

    @torch.no_grad()
    def _check_precision(self, images: np.ndarray, features: np.ndarray) -> None:
        exact = self._exact(self._padded(images).to(self.device))[: len(images)].cpu()
        cosine = F.cosine_similarity(torch.from_numpy(features).flatten(1), exact.flatten(1)).min().item()
        if not cosine >= LEAST_COSINE:
            raise UserError(
                f"--precision {self.precision}: features differ too much from float32 (cosine {cosine:.5f} on a first"
                f" batch, {LEAST_COSINE} is needed): use --precision float32"
            )
        log.info("%s agrees with float32: cosine at least %.5f on a first batch", self.precision, cosine)
        self._unchecked = False

    # --- runtimes

    def _engine_of(self, runtime: str) -> Engine:
        if runtime == "eager":
            return self._network
        if runtime == "compile":
            return _compiled(self._network, self.device)
        return _openvino(self._exact, self._blank(), self.precision, self.device)

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
        return min(layouts, key=lambda layout: self._seconds(self._network.in_layout(layout)))

    @torch.no_grad()
    def _seconds(self, engine: Engine) -> float:
        """How long a batch takes once it has been warmed up."""
        batch = self._blank().to(self.device)
        for _ in range(2):
            began = time.perf_counter()
            engine(batch).cpu()
        return time.perf_counter() - began


def _compiled(network: FoldedEfficientNet, device: torch.device) -> Engine:
    options: dict[str, str | int | bool | Callable] = {"freezing": True}
    if device.type == "cuda":
        options["triton.cudagraphs"] = True
    compiled = torch.compile(network, dynamic=False, options=options)

    def engine(images: Tensor) -> Tensor:
        torch.compiler.cudagraph_mark_step_begin()
        return compiled(images)

    return engine


def _openvino(network: FoldedEfficientNet, blank: Tensor, precision: str, device: torch.device) -> Engine:
    if device.type != "cpu":
        raise UserError("--runtime openvino runs on the CPU: give --device cpu, or another --runtime")
    try:
        import openvino
    except ImportError as error:
        raise UserError(f"--runtime openvino: {error}: pip install openvino, or choose another --runtime") from error
    hints = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": _OPENVINO_PRECISION[precision],
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }
    model = openvino.convert_model(network, example_input=blank[:1, :32, :32].contiguous())  # small: traced quickly
    model.reshape(list(blank.shape))
    compiled = openvino.Core().compile_model(model, "CPU", hints)
    return lambda images: torch.from_numpy(compiled(images.numpy())[0])


def _batch_size(device: torch.device) -> int:
    """On a CPU about 8, as many for each thread: what a thread computes then begins and ends with whole images."""
    threads = torch.get_num_threads()
    return GPU_BATCH_SIZE if device.type == "cuda" else threads * max(1, round(8 / threads))


def _is_available(runtime: str, device: torch.device) -> bool:
    if runtime == "openvino":
        return device.type == "cpu" and importlib.util.find_spec("openvino") is not None
    return device.type != "cpu" or any(map(shutil.which, ("g++", "clang++", "cl")))


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
