"""Frozen image encoders: which network, with which weights, and what names the features that it gives.

Shapes: b images, s pixels a side, d features, r image regions.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch
from efficientnet_pytorch import EfficientNet

from frozenfusion.errors import UserError
from frozenfusion.folding import NORMALISATION, FoldedEfficientNet, region_side
from frozenfusion.images import RESAMPLING
from frozenfusion.progress import log
from frozenfusion.runtime import Runner, Ticket
from frozenfusion.weights import RANDOM_RECIPE, State, load_weights, outline, settle, weights_hash

FORMAT_VERSION = 1  # of what a row means: whoever changes the features of the same picture changes it


class Backbone:
    """A frozen network that turns images, uint8 (b, s, s, 3) RGB, into features (b, *feature_shape) of type `dtype`.

    Always in eval mode. A row depends on the images around it by rounding at most (a few millionths), and on most
    CPUs and at most batch sizes not at all: batches have one fixed shape, the last is padded. Describing a backbone is
    cheap; the network is built by `prepare`, or by the first call.
    """

    def __init__(
        self,
        name: str,
        state: State,
        *,
        random: bool,
        pool: str,
        image_size: int,
        precision: str,
        dtype: str,
        jpeg_draft: bool,
    ) -> None:
        """Not to be called: see `build_backbone`."""
        self.name, self.pool, self.image_size = name, pool, image_size
        self.precision, self.dtype = precision, np.dtype(dtype)
        self._resampling = f"{RESAMPLING}, jpeg draft" if jpeg_draft else RESAMPLING
        self._state, self._random = state, random
        self._runner: Runner | None = None

    @cached_property
    def feature_shape(self) -> tuple[int, ...]:
        """(d,) for pool="avg", (r, d) for pool="none"."""
        network = outline(self.name)
        width = network._conv_head.out_channels
        return (width,) if self.pool == "avg" else (region_side(network, self.image_size) ** 2, width)

    @cached_property
    def fingerprint(self) -> dict[str, str | int]:
        """Everything that the stored numbers depend on, and nothing else."""
        return {
            "backbone": self.name,
            "weights_sha256": weights_hash(self._state, RANDOM_RECIPE if self._random else ""),
            "image_size": self.image_size,
            "resampling": self._resampling,
            "normalisation": NORMALISATION,
            "pooling": self.pool,
            "precision": self.precision,
            "dtype": self.dtype.name,
            "format": FORMAT_VERSION,
        }

    def network(self) -> EfficientNet:
        """The package's own network with these weights, float32, in eval mode, for comparison and folding."""
        network = outline(self.name)
        state = {key: torch.zeros_like(value, device="cpu") for key, value in network.state_dict().items()}  # counters
        network.load_state_dict(state | {key: value.clone() for key, value in self._state.items()}, assign=True)
        network.requires_grad_(False).eval()
        if self._random:
            settle(network, self.image_size)
        return network

    def prepare(
        self, device: str = "auto", runtime: str = "auto", images_left: int = 0, batch_size: int | None = None
    ) -> Runner:
        """Build the network and choose how it is run: see Runner."""
        folded = FoldedEfficientNet(self.network(), self.pool)
        self._runner = Runner(
            folded,
            self.image_size,
            device=device,
            runtime=runtime,
            precision=self.precision,
            images_left=images_left,
            batch_size=batch_size,
        )
        return self._runner

    def start(self, images: np.ndarray) -> Ticket:
        """Begin with images, uint8 (b, s, s, 3); `finish` of the result waits for their features."""
        runner = self._runner or self.prepare(runtime="eager")
        return runner.start(images)

    def finish(self, ticket: Ticket) -> np.ndarray:
        """The features that `start` began with, (b, *feature_shape). Raises UserError if they are no numbers."""
        features = ticket.result()
        with np.errstate(over="ignore"):
            stored = features.astype(self.dtype, copy=False)
        if not np.isfinite(stored).all():
            if np.isfinite(features).all():
                raise UserError(f"--dtype {self.dtype}: features reach {np.abs(features).max():.3g}: use float32")
            raise UserError(
                f"{self.name} gives features that are no numbers: check --weights, or use another --precision"
            )
        return stored

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Features of images, uint8 (b, s, s, 3)."""
        return self.finish(self.start(images))


def build_backbone(
    name: str,
    weights: str,
    *,
    pool: str = "avg",
    image_size: int = 224,
    precision: str = "float32",
    dtype: str = "float32",
    jpeg_draft: bool = False,
    seed: int = 0,
) -> Backbone:
    """Describe the frozen network `name` with weights: imagenet, a file (.pth, .safetensors), or random.

    pool is avg or none, precision float32, bf16 or fp16, dtype (of the features) float32 or float16; jpeg_draft says
    how the images will have been decoded; `seed` draws random weights. Raises UserError if the weights cannot be had
    or do not fit.
    """
    if weights == "random":
        log.warning("random weights: features tell colours and textures apart at best; only for trying things")
    state = load_weights(name, weights, seed)
    return Backbone(
        name,
        state,
        random=weights == "random",
        pool=pool,
        image_size=image_size,
        precision=precision,
        dtype=dtype,
        jpeg_draft=jpeg_draft,
    )
