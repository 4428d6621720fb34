"""Random weights that keep pictures apart: for the demo and for trying things, where no pretrained ones can be had.

An untrained network as its package draws it gives nearly the same features for every picture.
"""

from __future__ import annotations

import torch
from efficientnet_pytorch import EfficientNet
from torch import Tensor, nn
from torch.nn import functional as F

from frozenfusion.vision.folding import affects_features, has_skip

RANDOM_RECIPE = "random, recipe 2"  # hashed with random weights: whoever changes what they become changes its number


def random_state(network: EfficientNet, seed: int) -> dict[str, Tensor]:
    """Random weights for an outline, drawn name by name from one generator.

    An untrained network of 55 blocks is easily chaotic, and carries rounding errors further than the picture. So gates
    of squeeze and excitation begin nearly even, residual branches small beside what they are added to, and kernels
    without a mean, which pass on how channels differ and not what they have in common. The last scale makes features
    spread by about 1 over photographs.
    """
    generator = torch.Generator().manual_seed(seed)
    small = {f"_blocks.{i}._bn2.weight" for i, block in enumerate(network._blocks) if has_skip(block)}
    state = {}
    for name, tensor in sorted(network.state_dict().items()):
        if not affects_features(name):
            continue
        if tensor.dim() == 4:
            gate, depthwise = "_se_" in name, tensor.shape[1] == 1
            deviation = (0.3 if gate else 1.0) * tensor[0].numel() ** -0.5
            value = torch.empty(tensor.shape).normal_(0.0, deviation, generator=generator)
            if not gate and not depthwise:
                value -= value.mean((1, 2, 3), keepdim=True)
        else:
            value = torch.full(tensor.shape, float(name.endswith(("weight", "running_var"))))
            if name in small:  # the end of a residual branch
                value *= 0.1
            elif name == "_bn1.weight":  # the last of all
                value *= 4.0
        state[name] = value
    return state


@torch.no_grad()
def calibrate_batchnorm(network: EfficientNet, image_size: int, seed: int = 0) -> None:
    """Set the batch-norm statistics of a random network from one fixed batch; untouched, features would vanish.

    Layer by layer in a single pass: each batch norm takes over the statistics of the batch that it normalises. The
    network is in eval mode before and after.
    """
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0  # the running statistics become the batch's
        norm.train()  # these alone: drop-connect stays off
    network.extract_features(_coloured_noise(16, image_size, seed))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    network.eval()


def _coloured_noise(count: int, side: int, seed: int) -> Tensor:
    """Pictures with as much detail at every scale, as natural ones have, float32 (count, 3, side, side)."""
    generator = torch.Generator().manual_seed(seed)
    pictures = torch.zeros(count, 3, side, side)
    cells = 1
    while cells <= side:
        grey, colour = (torch.randn(count, c, cells, cells, generator=generator) for c in (1, 3))
        strength = torch.rand(count, 1, 1, 1, generator=generator)
        pictures += F.interpolate((0.8 * grey + 0.6 * colour) * strength, size=(side, side), mode="bilinear")
        cells *= 2
    return pictures
