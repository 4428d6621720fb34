"""What every frozen image network is when it runs: pixels in, features out, nothing trained.

Shapes: b images, s pixels per side, d features, r image regions, h × w the feature map.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from frozenfusion.utils.errors import UserError
from frozenfusion.utils.messages import first_line
from frozenfusion.vision.pixels import IMAGENET_MEAN, IMAGENET_STD


class FrozenNetwork(nn.Module):
    """Normalises pixels, asks `features`, which pools a `feature_map`: frozen, in evaluation mode.

    `forward` takes images, uint8 (b, s, s, 3) RGB, and returns float32: their pooled features (b, d), or with
    pool="none" those of every region in reading order (b, r, d).
    """

    scale: Tensor
    shift: Tensor
    any_size = False  # whether it computes the same way on pictures of another size than it was built for

    def __init__(self, pool: str, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD) -> None:
        super().__init__()
        self.pool = pool
        self.dtype = torch.float32  # of the network's arithmetic: see `in_precision`
        self.layout = torch.channels_last  # of activations and kernels in memory: see `in_layout`
        deviation = torch.tensor(std).view(3, 1, 1)
        self.register_buffer("scale", 1 / (255 * deviation), persistent=False)
        self.register_buffer("shift", -torch.tensor(mean).view(3, 1, 1) / deviation, persistent=False)

    def feature_map(self, x: Tensor) -> Tensor:
        """Features (b, d, h, w) of normalised images (b, 3, s, s)."""
        raise NotImplementedError

    def features(self, x: Tensor) -> Tensor:
        """Float32 features of normalised images (b, 3, s, s), pooled (b, d) or of regions (b, r, d)."""
        x = self.feature_map(x).float()
        return x.mean((2, 3)) if self.pool == "avg" else x.flatten(2).transpose(1, 2)

    def forward(self, images: Tensor) -> Tensor:
        x = images.permute(0, 3, 1, 2) * self.scale + self.shift  # (b, 3, s, s)
        return self.features(x.to(self.dtype).contiguous(memory_format=self.layout))

    def freeze(self) -> FrozenNetwork:
        """Train nothing, in evaluation mode, laid out as most machines like it best."""
        self.requires_grad_(False).eval()
        return self.in_layout(torch.channels_last)

    def in_layout(self, layout: torch.memory_format) -> FrozenNetwork:
        """Hold kernels and activations as torch.channels_last or torch.contiguous_format."""
        self.layout = layout
        self.to(memory_format=layout)  # type: ignore[call-overload]
        return self

    def in_precision(self, dtype: torch.dtype) -> FrozenNetwork:
        """Compute in `dtype`; pixels are normalised and features pooled in float32 all the same."""
        self.dtype = dtype
        for child in self.children():
            child.to(dtype)
        return self


def shape_of_features(network: FrozenNetwork, image_size: int, name: str) -> tuple[int, ...]:
    """(d,), or (r, d) with pool="none": of one picture, tried out twice.

    Raises UserError where the network fails on it, or does not give the same both times.
    """
    device = network.scale.device
    picture = torch.arange(image_size * image_size * 3, device=device).view(1, image_size, image_size, 3)
    picture, found = picture.to(torch.uint8), []
    with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.inference_mode():
        for seed in range(2):
            torch.manual_seed(seed)
            try:
                found.append(network(picture))
            except UserError:
                raise
            except Exception as error:  # whatever a network of somebody else's does
                raise UserError(
                    f"backbone {name}: fails on an image of {image_size} pixels ({first_line(error)}): see "
                    "docs/backbones.md"
                ) from error
    if not torch.allclose(found[0], found[1], equal_nan=True):
        raise UserError(f"backbone {name}: draws random numbers, so that a picture has no one vector: choose another")
    return tuple(found[0].shape[1:])


def told(mean: Sequence[float], std: Sequence[float]) -> str:
    """A normalisation as a fingerprint names it."""
    return f"mean {' '.join(map(str, mean))}, std {' '.join(map(str, std))}"
