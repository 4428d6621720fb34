"""Fast inference of the frozen network: same features, less work."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from efficientnet_pytorch import EfficientNet
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

NORMALISATION = "imagenet mean and std"
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)

Runner = Callable[[np.ndarray], np.ndarray]
COMPUTE_TYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def choose_runner(
    network: EfficientNet,
    *,
    device: torch.device,
    runtime: str,
    precision: str,
    pool: bool,
    image_size: int,
    batch_size: int,
    images_left: int,
) -> Runner:
    """The network as a function from uint8 images (b, s, s, 3) to float32 features, b up to `batch_size`."""
    return EagerRunner(FoldedNetwork(network, pool), device, precision, batch_size)


class EagerRunner:
    """Runs full batches, so that a row does not depend on how many images came with it."""

    def __init__(self, network: nn.Module, device: torch.device, precision: str, batch_size: int) -> None:
        self._device, self._batch_size = device, batch_size
        self._type = COMPUTE_TYPES[precision]
        self._network = network.to(device, self._type).to(memory_format=torch.channels_last)
        self._mean = torch.tensor(MEAN, device=device).view(3, 1, 1) * 255
        self._std = torch.tensor(STD, device=device).view(3, 1, 1) * 255

    @torch.inference_mode()
    def __call__(self, images: np.ndarray) -> np.ndarray:
        count = len(images)
        if count < self._batch_size:
            images = np.concatenate([images, np.zeros((self._batch_size - count, *images.shape[1:]), np.uint8)])
        pixels = torch.from_numpy(images).to(self._device).permute(0, 3, 1, 2)
        normalised = ((pixels.float() - self._mean) / self._std).to(self._type)
        features = self._network(normalised.contiguous(memory_format=torch.channels_last))
        return features[:count].cpu().numpy()


class FoldedNetwork(nn.Module):
    """The feature part of an EfficientNet with its batch norms folded into the convolutions before them."""

    def __init__(self, network: EfficientNet, pool: bool) -> None:
        super().__init__()
        self.stem = _folded(network._conv_stem, network._bn0)
        self.blocks = nn.Sequential(*(FoldedBlock(block) for block in network._blocks))
        self.head = _folded(network._conv_head, network._bn1)
        self.pool = pool

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (b, 3, s, s) to float32 features, (b, d) or (b, r, d)."""
        x = self.blocks(F.silu(self.stem(images), inplace=True))
        x = F.silu(self.head(x), inplace=True).float()
        return x.mean((2, 3)) if self.pool else x.flatten(2).transpose(1, 2).contiguous()


class FoldedBlock(nn.Module):
    """An inverted-residual block with squeeze and excitation, batch norms folded."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        args = block._block_args
        self.expand = _folded(block._expand_conv, block._bn0) if args.expand_ratio != 1 else nn.Identity()
        self.expands = args.expand_ratio != 1
        self.depthwise = _folded(block._depthwise_conv, block._bn1)
        self.squeeze, self.excite = _folded(block._se_reduce), _folded(block._se_expand)
        self.project = _folded(block._project_conv, block._bn2)
        # compared as the package does: a stride given as [1] is not 1, and such a block has no skip connection
        self.skips = block.id_skip and args.stride == 1 and args.input_filters == args.output_filters

    def forward(self, x: Tensor) -> Tensor:
        y = F.silu(self.expand(x), inplace=True) if self.expands else x
        y = F.silu(self.depthwise(y), inplace=True)
        weights = self.excite(F.silu(self.squeeze(y.mean((2, 3), keepdim=True)), inplace=True)).sigmoid()
        y = self.project(y.mul_(weights))
        return y.add_(x) if self.skips else y


def _folded(conv: nn.Conv2d, norm: nn.BatchNorm2d | None = None) -> nn.Module:
    """The convolution with the batch norm behind it as one, and with its padding made explicit."""
    weight, bias = conv.weight.detach(), None if conv.bias is None else conv.bias.detach()
    if norm is not None:
        weight, bias = fuse_conv_bn_weights(
            weight, bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        )
    left, right, top, bottom = getattr(conv.static_padding, "padding", (0, 0, 0, 0))
    symmetric = left == right and top == bottom
    folded = nn.Conv2d(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,
        conv.stride,
        padding=(top, left) if symmetric else 0,
        groups=conv.groups,
    )
    folded.weight = nn.Parameter(weight.clone(), requires_grad=False)
    folded.bias = nn.Parameter(bias.clone(), requires_grad=False)  # type: ignore[union-attr]
    return folded if symmetric else nn.Sequential(nn.ZeroPad2d((left, right, top, bottom)), folded)
