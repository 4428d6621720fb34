"""Random weights whose features do not vanish: for demos and tests, where no trained ones can be had."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from efficientnet_pytorch import EfficientNet
from torch import Tensor, nn

RECIPE = "random, settled 1"  # of the settling below; part of the fingerprint
SEED = 0
SETTLING_IMAGES, SETTLING_SIZE = 16, 96


def random_network(name: str) -> EfficientNet:
    """A network with PyTorch's own initial weights, from a fixed seed; `settle` comes before its use."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        return EfficientNet.from_name(name, include_top=False).eval().requires_grad_(False)


@torch.no_grad()
def settle(network: EfficientNet) -> None:
    """Set every batch norm's statistics to those of a fixed batch of patches and noise, first layer to last.

    Untouched, they are mean 0 and variance 1, and B7's features come out near 1e-12. One pass suffices, because each
    layer normalises with the batch's own statistics what it hands to the next.
    """
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0  # the running statistics become the batch's
        norm.train()  # these alone: drop-connect stays off
    network.extract_features(_patches())
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    network.eval()


def _patches() -> Tensor:
    """Seeded pictures in normalised units: coarse to fine coloured patches, as photographs have them."""
    generator = torch.Generator().manual_seed(SEED)
    images = torch.zeros(SETTLING_IMAGES, 3, SETTLING_SIZE, SETTLING_SIZE)
    cells = 1
    while cells <= SETTLING_SIZE:
        layer = torch.randn(SETTLING_IMAGES, 3, cells, cells, generator=generator)
        strength = torch.rand(SETTLING_IMAGES, 1, 1, 1, generator=generator)
        images += strength * F.interpolate(layer, size=images.shape[2:], mode="bilinear")
        cells *= 2
    return images
