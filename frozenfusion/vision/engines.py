"""The ways to run a frozen network: a batch is begun now and waited for later.

Shapes: b images of a batch, s pixels per side.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from frozenfusion.utils.errors import UserError
from frozenfusion.vision.network import FrozenNetwork

REQUEST_IMAGES = 4  # of an OpenVINO request: what one core computes fits its caches (measured: docs/performance.md)

_OPENVINO_PRECISION = {"float32": "f32", "bf16": "bf16", "fp16": "f16"}

PendingBatch = Callable[[], np.ndarray]  # waits for the features of a batch, float32 (b, ...)


class Engine(Protocol):
    """Begins with the features of images, uint8 (b, s, s, 3), at most as many as the engine was made for."""

    def __call__(self, images: np.ndarray) -> PendingBatch: ...


@contextmanager
def exact_products(device: torch.device) -> Iterator[None]:
    """Products in float32 as such on a GPU: TF32 would round each to 10 bits. Other code's choice comes back."""
    if device.type != "cuda":
        yield
        return
    switches: list[Any] = [torch.backends.cudnn, torch.backends.cuda.matmul]
    name: str = "allow_tf32"
    exact: bool | str = False
    try:
        before = [getattr(switch, name) for switch in switches]
    except RuntimeError:  # whoever chose by torch's newer switches cannot read the older ones
        convolutions = torch.backends.cudnn.conv  # type: ignore[attr-defined]
        switches, name, exact = [convolutions, torch.backends.cuda.matmul], "fp32_precision", "ieee"
        before = [getattr(switch, name) for switch in switches]
    try:
        for switch in switches:
            setattr(switch, name, exact)
        yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            setattr(switch, name, value)


class TorchEngine:
    """A module of torch, compiled or not, on a CPU or GPU, in batches of one shape: fewer images are padded.

    On a GPU nothing waits: pixels go there from page-locked memory on a stream of their own, while it computes.
    """

    def __init__(self, network: Callable[[Tensor], Tensor], device: torch.device, shape: tuple[int, ...]) -> None:
        """shape: of a batch, (batch_size, s, s, 3)."""
        self._network, self._device, self._shape = network, device, shape
        self._copies = torch.cuda.Stream(device) if device.type == "cuda" else None

    @torch.no_grad()
    def __call__(self, images: np.ndarray) -> PendingBatch:
        with exact_products(self._device):
            return self._begun(images)

    def _begun(self, images: np.ndarray) -> PendingBatch:
        count = len(images)
        if self._copies is None:
            computed = self._network(self._padded(images).to(self._device)).cpu().numpy()
            return lambda: computed[:count]
        with torch.cuda.device(self._device):
            compute = torch.cuda.current_stream()
            with torch.cuda.stream(self._copies):
                pixels = self._padded(images).to(self._device, non_blocking=True)
            compute.wait_stream(self._copies)
            pixels.record_stream(compute)
            features = self._network(pixels)
            back = torch.empty(features.shape, dtype=features.dtype, pin_memory=True)
            back.copy_(features, non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record(compute)

        def wait() -> np.ndarray:
            arrived.synchronize()
            return back.numpy()[:count]

        return wait

    def _padded(self, images: np.ndarray) -> Tensor:
        pinned = self._copies is not None
        if len(images) == self._shape[0] and not pinned:
            return torch.from_numpy(np.ascontiguousarray(images))
        batch = torch.zeros(self._shape, dtype=torch.uint8, pin_memory=pinned)
        batch.numpy()[: len(images)] = images
        return batch


def compiled_engine(network: FrozenNetwork, device: torch.device, shape: tuple[int, ...]) -> Engine:
    """The network compiled by torch.compile, on a GPU with CUDA graphs. Compiles at the first call."""
    options: dict[str, str | int | bool | Callable[..., object]] = {"freezing": True}
    if device.type == "cuda":
        options["triton.cudagraphs"] = True
    compiled = torch.compile(network, dynamic=False, options=options)

    def run(images: Tensor) -> Tensor:
        torch.compiler.cudagraph_mark_step_begin()
        features: Tensor = compiled(images)
        return features

    return TorchEngine(run, device, shape)


class OpenVINOEngine:
    """The network in OpenVINO, on a CPU: a batch is cut into requests, which the cores compute side by side.

    So no core waits for another, nor for one that decodes an image meanwhile. Raises UserError where OpenVINO is not
    installed.
    """

    def __init__(self, network: FrozenNetwork, precision: str, shape: tuple[int, ...]) -> None:
        try:
            import openvino
        except ImportError as error:
            raise UserError(
                f"`runtime=openvino`: {error}: pip install openvino, or choose another `runtime`"
            ) from error
        batch_size, side, *_ = shape
        threads = torch.get_num_threads()
        self._size = max(1, min(REQUEST_IMAGES, batch_size // threads))
        traced = 32 if network.any_size else side  # a small picture is quicker
        model = openvino.convert_model(network, example_input=torch.zeros(1, traced, traced, 3, dtype=torch.uint8))
        model.reshape([self._size, side, side, 3])
        hints = {
            "PERFORMANCE_HINT": "THROUGHPUT",
            "INFERENCE_PRECISION_HINT": _OPENVINO_PRECISION[precision],
            "INFERENCE_NUM_THREADS": threads,
            "ENABLE_CPU_PINNING": False,  # cores are shared with the threads that decode
        }
        compiled = openvino.Core().compile_model(model, "CPU", hints)
        count = 2 * compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")  # one computed, the next at hand
        self._requests = deque(_Request(compiled.create_infer_request()) for _ in range(count))

    def __call__(self, images: np.ndarray) -> PendingBatch:
        parts = [self._begun(images[first : first + self._size]) for first in range(0, len(images), self._size)]
        return lambda: np.concatenate([part() for part in parts])

    def _begun(self, images: np.ndarray) -> PendingBatch:
        request = self._requests.popleft()  # the one that began first
        self._requests.append(request)
        padding = ((0, self._size - len(images)), (0, 0), (0, 0), (0, 0))
        return request.begin(np.pad(images, padding), len(images))


class _Request:
    """One of OpenVINO's requests; what it computes is kept when it begins anew."""

    def __init__(self, request: Any) -> None:
        self._request = request
        self._part: PendingBatch = lambda: np.empty(0)

    def begin(self, images: np.ndarray, count: int) -> PendingBatch:
        self._part()
        self._request.start_async([images])
        found: list[np.ndarray] = []

        def part() -> np.ndarray:
            if not found:
                self._request.wait()
                found.append(self._request.get_output_tensor().data[:count].copy())
            return found[0]

        self._part = part
        return part
