"""Running a frozen network: on which device, in which precision, in how large batches.

Shapes: b images of a call, s pixels per side.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional as F

from frozenfusion.utils.device import choose_device, computes_in_bf16, is_out_of_memory
from frozenfusion.utils.errors import UserError
from frozenfusion.utils.messages import first_line
from frozenfusion.utils.progress import log
from frozenfusion.vision.engines import (
    REQUEST_IMAGES,
    Engine,
    OpenVINOEngine,
    PendingBatch,
    TorchEngine,
    compiled_engine,
)
from frozenfusion.vision.network import FrozenNetwork
from frozenfusion.vision.runtime import choose_runtime

GPU_BATCH_SIZE = 128
LEAST_COSINE = 0.999  # between features in low precision and in float32
TRIAL_BATCHES = 2  # that are waited for: the first to warm up, the second to be timed

_DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

# Tensor cores, which compute all but float32, want channels last. A rule, never the clock: each layout rounds in its
# own way, and a row must not depend on which was faster at the moment.
_GPU_LAYOUTS = {"float32": torch.contiguous_format, "bf16": torch.channels_last, "fp16": torch.channels_last}


class PendingFeatures:
    """Features on their way."""

    def __init__(self, batches: Sequence[PendingBatch]) -> None:
        self._batches = batches

    def result(self) -> np.ndarray:
        """Wait for the features, float32 (b, ...)."""
        return np.concatenate([batch() for batch in self._batches])


class Runner:
    """A frozen network on a device, in one precision, by one runtime; all of them as asked for or as found best.

    `batch_size` images go through at a time: fewer are padded, so that no row depends on how many there were. It is
    halved when memory runs out as a batch begins. `in_flight` batches may be started before the first is waited for.
    With runtime "auto", `images_left` decides whether preparing a faster one than eager can pay, and the first batches
    tell. Raises UserError for a device or runtime that is not there.
    """

    def __init__(
        self,
        network: FrozenNetwork,
        image_size: int,
        *,
        device: str = "auto",
        runtime: str = "auto",
        precision: str = "float32",
        images_left: int = 0,
        batch_size: int | None = None,
    ) -> None:
        self.device = choose_device(device)
        self.batch_size = batch_size or default_batch_size(self.device)
        self.precision = precision
        self.runtime = "eager" if runtime == "auto" else runtime
        self._image_size, self._images_left = image_size, images_left
        self._choosing, self._unchecked = runtime == "auto", precision != "float32"
        self._begun = 0  # batches
        self._exact = self._network = network.to(self.device)
        if precision != "float32":
            self._network = copy.deepcopy(network).in_precision(_DTYPES[precision])
        if precision == "bf16" and not computes_in_bf16(self.device):
            log.warning("%s has no bf16 arithmetic: `precision=float32` is likely to be faster", self.device)
        self._engine: Engine | None = None

    def __str__(self) -> str:
        return f"{self.device}, {self.runtime}, {self.precision}, batches of {self.batch_size}"

    @property
    def in_flight(self) -> int:
        """How many batches to begin before the first is waited for; torch on a CPU is done when it has begun."""
        if self.device.type == "cuda":
            return 3
        return 2 if self.runtime == "openvino" else 1

    def start(self, images: np.ndarray) -> PendingFeatures:
        """Begin with images, uint8 (b, s, s, 3), one or more. Raises UserError."""
        batches: list[PendingBatch] = []
        done = 0
        while done < len(images):
            batch = images[done : done + self.batch_size]
            pending = self._begin(batch)
            if pending is None:
                self._halve()
            else:
                batches.append(pending)
                done += len(batch)
        return PendingFeatures(batches)

    def _begin(self, images: np.ndarray) -> PendingBatch | None:
        """Begin with at most batch_size images; None where memory ran out."""
        try:
            if self._engine is None:
                self._engine = self._new_engine()
            trial = self._begun < TRIAL_BATCHES or self._unchecked
            pending = self._try_out(self._engine, images) if trial else self._engine(images)
        except UserError:
            raise
        except Exception as error:
            if is_out_of_memory(error):
                return None  # and lets go of the error, which holds on to the memory of the failed batch
            if self._begun or self.runtime == "eager":
                raise
            raise UserError(f"`runtime={self.runtime}` failed ({first_line(error)}): use `runtime=eager`") from error
        self._begun += 1
        return pending

    def _try_out(self, engine: Engine, images: np.ndarray) -> PendingBatch:
        """One of the first batches, waited for: what cannot work fails here, and its time decides on the runtime."""
        began = time.perf_counter()
        pending = engine(images)
        features = pending()
        seconds = time.perf_counter() - began
        if self._unchecked:
            self._check_precision(images, features)
        if self._choosing and self._begun + 1 >= TRIAL_BATCHES:
            self._choosing = False
            left = self._images_left / self.batch_size - TRIAL_BATCHES
            chosen = choose_runtime(
                self._engine_of, self._shape, device=self.device, eager_seconds=seconds, batches_left=left
            )
            if chosen is not None:
                self.runtime, self._engine = chosen
                self._unchecked = self.precision != "float32"
        return pending

    def _halve(self) -> None:
        if self.batch_size == 1:
            raise UserError(f"out of memory with a single image on {self.device}: free some, or use a smaller network")
        self.batch_size //= 2
        log.warning("out of memory: continuing with batches of %d", self.batch_size)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        self._engine = None  # which is made for one shape

    def _check_precision(self, images: np.ndarray, features: np.ndarray) -> None:
        exact = TorchEngine(self._exact, self.device, self._shape)(images)()
        low, full = (torch.from_numpy(of).flatten(1) for of in (features, exact))
        cosine = F.cosine_similarity(low, full).min().item()
        if not cosine >= LEAST_COSINE:
            raise UserError(
                f"`precision={self.precision}`: features differ too much from float32 (cosine {cosine:.5f} on a first"
                f" batch, {LEAST_COSINE} is needed): use `precision=float32`"
            )
        log.info("%s agrees with float32: cosine at least %.5f on a first batch", self.precision, cosine)
        self._unchecked = False

    @property
    def _shape(self) -> tuple[int, ...]:
        return self.batch_size, self._image_size, self._image_size, 3

    def _new_engine(self) -> Engine:
        if self.device.type == "cuda":
            self._network.in_layout(_GPU_LAYOUTS[self.precision])
        return self._engine_of(self.runtime)

    def _engine_of(self, runtime: str) -> Engine:
        if runtime == "eager":
            return TorchEngine(self._network, self.device, self._shape)
        if runtime == "compile":
            return compiled_engine(self._network, self.device, self._shape)
        if self.device.type != "cpu":
            raise UserError("`runtime=openvino` runs on the CPU: give `device=cpu`, or another `runtime`")
        return OpenVINOEngine(self._exact, self.precision, self._shape)


def default_batch_size(device: torch.device) -> int:
    """On a CPU as many images for each thread, so that most of what a thread computes are whole images."""
    threads = torch.get_num_threads()
    return GPU_BATCH_SIZE if device.type == "cuda" else threads * max(1, min(REQUEST_IMAGES, 64 // threads))
