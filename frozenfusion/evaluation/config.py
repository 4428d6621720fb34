"""What can be chosen in an evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from frozenfusion.utils.checks import one_of, tidy, whole


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """How runs are evaluated and compared; checked when it is made, raises UsageError."""

    split: Literal["test", "val", "train", "all", "unlabelled"] = "test"
    """part of the pairs to evaluate; pairs without labels are only predicted"""

    checkpoint: Literal["best", "last"] = "best"
    """parameters to use: of the best epoch on the validation part, or of the last"""

    without: Literal["text", "image"] | None = None
    """hide one modality from the models"""

    calibrate: bool = False
    """fit a temperature on each run's validation part, keep it in the run and write calibrated probabilities"""

    baseline: str | None = None
    """fusion head that the others are tested against; by default concat"""

    bootstrap: int = 2000
    """resamples behind the interval of a single run"""

    seed: int = 0
    """seed of the resampling"""

    text_cache: str | None = None
    """folder for the outputs of frozen text encoders; by default that of the feature file"""

    batch_size: int = 64
    """pairs per forward pass"""

    precision: Literal["auto", "float32", "bf16"] = "auto"
    """arithmetic; auto is bf16 where the hardware computes in it, else float32"""

    device: str = "auto"
    """auto, cpu, cuda, cuda:1, …"""

    def __post_init__(self) -> None:
        tidy(self, *(["text_cache"] if self.text_cache is not None else []))
        for name in ("split", "checkpoint", "precision"):
            one_of(self, name)
        if self.without is not None:
            one_of(self, "without")
        whole("batch_size", self.batch_size, 1)
        whole("bootstrap", self.bootstrap, 100)
        whole("seed", self.seed, 0)
