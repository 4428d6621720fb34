"""What can be chosen in stage one."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import Literal

from frozenfusion.utils.checks import at_least, at_most, one_of, tidy, whole
from frozenfusion.utils.errors import UsageError
from frozenfusion.utils.ray_cluster import check_gpus
from frozenfusion.vision.registry import check_backbone

PILLOW_PIXELS = 178_956_970  # pictures with more are refused by Pillow itself
DAY = 86_400
_WITH_ARRAYS = ("from_arrays", "dtype", "resume", "update", "rebuild", "strict")


@dataclass(frozen=True, kw_only=True)
class ExtractConfig:
    """How images become features; checked when it is made, raises UsageError."""

    backbone: str = "efficientnet-b7"
    """frozen image network: efficientnet-b0 to b7, a transformers hub name or folder, timm:NAME, or a registered one"""

    weights: str = "imagenet"
    """imagenet or pretrained: those that the network is known for; a state dict (.pth, .safetensors) of an
    efficientnet or of timm's; or random (only for trying things)"""

    revision: str | None = None
    """branch, tag or commit of a hub name"""

    pool: Literal["avg", "none"] = "avg"
    """avg stores one vector per image, none its grid of region vectors"""

    image_size: int | None = None
    """side in pixels that images are resized to; by default the network's own, 224 of the efficientnets"""

    precision: Literal["float32", "bf16", "fp16"] = "float32"
    """arithmetic of the network; bf16 and fp16 are faster where the hardware has them"""

    dtype: Literal["float32", "float16"] = "float32"
    """type of the stored numbers"""

    jpeg_draft: bool = False
    """decode JPEGs of several megapixels at a fraction of their size: faster, and the features differ by a trifle"""

    max_pixels: int = 100_000_000
    """images with more pixels than this (178,956,970 at most) are refused before they are decoded"""

    image_seconds: float = 30.0
    """images that take longer than this to decode are refused; some files are made to"""

    batch_size: int | None = None
    """images per forward pass; by default up to 4 for each thread of a CPU, 128 on a GPU"""

    workers: int | None = None
    """images decoded at once ahead of the network; by default chosen from the number of cores"""

    device: str = "auto"
    """auto, cpu, cuda, cuda:1, …"""

    runtime: Literal["auto", "eager", "compile", "openvino"] = "auto"
    """how the network is run; auto weighs what compiling costs against the images left"""

    resume: Literal["auto", "always", "never"] = "auto"
    """auto resumes what is there, always fails if there is nothing, never refuses to overwrite"""

    update: bool = False
    """compare every image by its content, whatever its size and date, and compute again all that changed or failed"""

    rebuild: bool = False
    """make the feature file anew beside the old one, then replace it"""

    retry_failed: bool = False
    """try the images again that could not be read"""

    shards: int | None = None
    """images per shard: `cache` is a folder then, of which many machines compute the shards (docs/scaling.md)"""

    shard: str | None = None
    """3/16 computes the third of sixteen shares of the shards; by default all that nobody else computes"""

    ray: str | None = None
    """compute the shards on the Ray cluster at this address, or auto; local makes one here: docs/scaling.md"""

    ray_workers: int | None = None
    """processes of the cluster that compute; by default one per GPU, without any one per so many CPUs as torch uses"""

    ray_gpus_per_worker: float | None = None
    """GPUs of each, which may be a part of one; by default 1 where there are any"""

    from_arrays: str | None = None
    """take features that another program computed: .npz, .npy, .parquet, or clip-retrieval's folder (docs/data.md)"""

    strict: bool = False
    """fail if any image cannot be used"""

    @property
    def looks_again(self) -> bool:
        """Whether rows that were computed are looked at again."""
        return self.update or self.retry_failed

    def __post_init__(self) -> None:
        tidy(self, "weights", *(["from_arrays"] if self.from_arrays is not None else []))
        check_backbone(self.backbone, self.revision)
        for name in ("pool", "precision", "dtype", "runtime", "resume"):
            one_of(self, name)
        if self.image_size is not None:
            whole("image_size", self.image_size, 32)
            at_most("image_size", self.image_size, 1024)
        at_least("image_seconds", self.image_seconds, 0.1)
        at_most("image_seconds", self.image_seconds, DAY)
        whole("max_pixels", self.max_pixels, 1)
        at_most("max_pixels", self.max_pixels, PILLOW_PIXELS)
        if self.batch_size is not None:
            whole("batch_size", self.batch_size, 1)
        if self.workers is not None:
            whole("workers", self.workers, 1)
        if self.shards is not None:
            whole("shards", self.shards, 1)
        share_of(self.shard)
        self._check_ray()
        if self.rebuild and (self.shards or self.shard):
            raise UsageError("`rebuild=True` makes a feature file anew, not a folder of `shards`: give another `cache`")
        if self.from_arrays is not None:
            self._refuse_beside_arrays()
        if self.rebuild and self.update:
            raise UsageError("`rebuild=True` computes every image again, `update=True` those that changed: give one")
        if self.rebuild and self.resume == "never":
            raise UsageError(
                "`rebuild=True` replaces a feature file and `resume=never` forbids it: give one of the two"
            )

    def _check_ray(self) -> None:
        if self.ray is None and (self.ray_workers is not None or self.ray_gpus_per_worker is not None):
            raise UsageError("`ray_workers` and `ray_gpus_per_worker` mean nothing without `ray`: say which cluster")
        if self.ray is not None and self.shard is not None:
            raise UsageError(
                "`shard` is what one process is to compute, and `ray` hands out all shards: give one of them"
            )
        if self.ray_workers is not None:
            whole("ray_workers", self.ray_workers, 1)
        check_gpus(self.ray_gpus_per_worker)

    def _refuse_beside_arrays(self) -> None:
        """Nothing is computed then: what only says how is a mistake."""
        for field in dataclasses.fields(ExtractConfig):
            if field.name not in _WITH_ARRAYS and getattr(self, field.name) != field.default:
                raise UsageError(f"`from_arrays` takes features that are there already: leave out `{field.name}`")


def share_of(shard: str | None) -> tuple[int, int]:
    """The share (its number from 0, how many there are) that `shard` names. Raises UsageError for what is none."""
    if shard is None:
        return 0, 1
    found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", shard, re.ASCII) if isinstance(shard, str) else None
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise UsageError(f"`shard` is a share such as 3/16, the first of them 1/16, not {shard!r}")
    return int(found[1]) - 1, int(found[2])
