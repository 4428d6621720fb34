"""Frozen image networks that make features: what names the features, and what they are.

Shapes: b images, s pixels per side, d features, r image regions.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np

from frozenfusion.utils.errors import UserError
from frozenfusion.utils.progress import log
from frozenfusion.vision.names import RANDOM
from frozenfusion.vision.registry import Encoder, load_encoder
from frozenfusion.vision.runner import PendingFeatures, Runner

FORMAT_VERSION = 1  # of what a row means: whoever changes the features of the same picture changes it
JPEG_DRAFT = ", jpeg draft"  # in the fingerprint, behind the resampling


class Backbone:
    """A frozen network that turns images, uint8 (b, s, s, 3) RGB, into features (b, *feature_shape) of type `dtype`.

    Always in eval mode. A row depends on the images around it by rounding at most (a few millionths), and on most
    CPUs and at most batch sizes not at all: batches have one fixed shape, the last is padded. Describing a backbone is
    cheap; the network is built by `prepare`, or by the first call.

    Args:
        name: as `register_backbone` or the built-in list has it.
        encoder: the network and its weights.
        pool: "avg" for one vector per image, "none" for those of its regions.
        image_size: pixels per side; by default the network's own.
        precision: float32, bf16 or fp16, of the arithmetic.
        dtype: float32 or float16, of the features.
        jpeg_draft: whether JPEGs were decoded at a fraction of their size.
    """

    def __init__(
        self,
        name: str,
        encoder: Encoder,
        *,
        pool: str = "avg",
        image_size: int | None = None,
        precision: str = "float32",
        dtype: str = "float32",
        jpeg_draft: bool = False,
    ) -> None:
        self.name, self.encoder = name, encoder
        self.pool, self.resize = pool, encoder.resize(image_size)
        self.image_size = self.resize.size
        self.precision, self.dtype = precision, np.dtype(dtype)
        self.jpeg_draft = jpeg_draft
        self._runner: Runner | None = None

    @cached_property
    def feature_shape(self) -> tuple[int, ...]:
        """(d,) for pool="avg", (r, d) for pool="none"."""
        return self.encoder.feature_shape(self.pool, self.image_size)

    @cached_property
    def fingerprint(self) -> dict[str, str | int]:
        """Everything that the stored numbers depend on, and nothing else."""
        return {
            "backbone": self.name,
            "weights_sha256": self.encoder.weights_sha256,
            "image_size": self.image_size,
            "resampling": str(self.resize) + (JPEG_DRAFT if self.jpeg_draft else ""),
            "normalisation": self.encoder.normalisation,
            "pooling": self.pool,
            "precision": self.precision,
            "dtype": self.dtype.name,
            "format": FORMAT_VERSION,
        }

    @property
    def runner(self) -> Runner | None:
        """What `prepare` made."""
        return self._runner

    def prepare(
        self, device: str = "auto", runtime: str = "auto", images_left: int = 0, batch_size: int | None = None
    ) -> Runner:
        """Build the network and choose how it is run: see Runner."""
        self._runner = Runner(
            self.encoder.build(self.pool, self.image_size),
            self.image_size,
            device=device,
            runtime=runtime,
            precision=self.precision,
            images_left=images_left,
            batch_size=batch_size,
        )
        return self._runner

    def start(self, images: np.ndarray) -> PendingFeatures:
        """Begin with images, uint8 (b, s, s, 3); `finish` of the result waits for their features."""
        runner = self._runner or self.prepare(runtime="eager")
        return runner.start(images)

    def finish(self, pending: PendingFeatures) -> np.ndarray:
        """The features that `start` began with, (b, *feature_shape). Raises UserError if they are no numbers."""
        features = pending.result()
        with np.errstate(over="ignore"):
            stored = features.astype(self.dtype, copy=False)
        if not np.isfinite(stored).all():
            if np.isfinite(features).all():
                raise UserError(f"`dtype={self.dtype}`: features reach {np.abs(features).max():.3g}: use float32")
            raise UserError(
                f"{self.name} gives features that are no numbers: check `weights`, or use another `precision`"
            )
        return stored

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Features of images, uint8 (b, s, s, 3)."""
        return self.finish(self.start(images))


def build_backbone(
    name: str,
    weights: str = "imagenet",
    *,
    revision: str | None = None,
    pool: str = "avg",
    image_size: int | None = None,
    precision: str = "float32",
    dtype: str = "float32",
    jpeg_draft: bool = False,
) -> Backbone:
    """Describe the frozen network `name` with `weights`; the other arguments are Backbone's.

    weights: "imagenet" or "pretrained", a file (.pth, .safetensors), or "random". revision: of a hub name, a branch,
    tag or commit. Raises UserError if the weights cannot be had or do not fit.
    """
    if weights == "random" or weights.startswith(RANDOM):
        log.warning("random weights: features tell colours and textures apart at best; only for trying things")
    encoder = load_encoder(name, weights, revision)
    return Backbone(
        encoder.name,
        encoder,
        pool=pool,
        image_size=image_size,
        precision=precision,
        dtype=dtype,
        jpeg_draft=jpeg_draft,
    )
