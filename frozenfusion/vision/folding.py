"""EfficientNet for inference alone: batch norm inside the convolutions, padding without copies.

Shapes: b images, s pixels per side, d features, h × w the feature map.
"""

from __future__ import annotations

import torch
from efficientnet_pytorch import EfficientNet
from efficientnet_pytorch.model import MBConvBlock
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_weights

from frozenfusion.vision.network import FrozenNetwork


class FoldedEfficientNet(FrozenNetwork):
    """The features of `EfficientNet.extract_features` in eval mode, in float32 up to rounding, in far fewer steps.

    The network given is left as it is.
    """

    any_size = True

    def __init__(self, network: EfficientNet, pool: str) -> None:
        super().__init__(pool)
        self.stem = fold(network._conv_stem, network._bn0)
        self.blocks = nn.Sequential(*map(_Block, network._blocks))
        self.head = fold(network._conv_head, network._bn1)
        self.freeze()

    def feature_map(self, x: Tensor) -> Tensor:
        """The last feature map (b, d, h, w) of normalised images (b, 3, s, s)."""
        x = F.silu(self.stem(x), inplace=True)
        return F.silu(self.head(self.blocks(x)), inplace=True)


class _Block(nn.Module):
    """One inverted bottleneck with squeeze and excitation."""

    def __init__(self, block: MBConvBlock) -> None:
        super().__init__()
        self.expand = fold(block._expand_conv, block._bn0) if block._block_args.expand_ratio != 1 else None
        self.depthwise = fold(block._depthwise_conv, block._bn1)
        self.squeeze = fold(block._se_reduce)
        self.excite = fold(block._se_expand)
        self._widen_gate()
        self.project = fold(block._project_conv, block._bn2)
        self.skip = has_skip(block)

    def _widen_gate(self) -> None:
        """Give the gate idle channels up to a multiple of 32, so that every image's fill whole vectors.

        PyTorch computes up to 32 numbers at a time, and what is left over at the end by other instructions, which
        round otherwise: an image's features would depend the more on its place in the batch.
        """
        idle = -self.squeeze.out_channels % 32
        assert self.squeeze.bias is not None
        for conv in (self.squeeze, self.excite):
            padding = (0, 0, 0, 0, 0, 0, 0, idle) if conv is self.squeeze else (0, 0, 0, 0, 0, idle)
            conv.weight = nn.Parameter(F.pad(conv.weight, padding), requires_grad=False)
        self.squeeze.bias = nn.Parameter(F.pad(self.squeeze.bias, (0, idle)), requires_grad=False)
        self.squeeze.out_channels = self.excite.in_channels = self.squeeze.out_channels + idle

    def forward(self, inputs: Tensor) -> Tensor:
        x = inputs if self.expand is None else F.silu(self.expand(inputs), inplace=True)
        x = F.silu(self.depthwise(x), inplace=True)
        gate = F.silu(self.squeeze(x.mean((2, 3), keepdim=True)), inplace=True)
        projected: Tensor = self.project(x.mul_(torch.sigmoid(self.excite(gate))))
        return projected.add_(inputs) if self.skip else projected


def has_skip(block: MBConvBlock) -> bool:
    """Whether a block adds its inputs to what it computes."""
    arguments = block._block_args
    same_shape = arguments.stride == 1 and arguments.input_filters == arguments.output_filters
    return bool(block.id_skip and same_shape)  # the package's own condition, word for word: [1] is no 1 to it


def fold(conv: nn.Conv2d, norm: nn.BatchNorm2d | None = None) -> nn.Conv2d:
    """A plain convolution that gives what `conv` with its static padding and then `norm`, in eval mode, give.

    Padding that is wider behind than in front becomes even by zeros in front of the kernel: the sums are the same,
    and no padded copy of the activations is made.
    """
    weight, bias = conv.weight, conv.bias
    if norm is not None:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        weight, bias = fuse_conv_bn_weights(
            weight, bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        )
    assert bias is not None
    before, after, *_ = getattr(conv.static_padding, "padding", (0, 0))
    weight = F.pad(weight, (after - before, 0, after - before, 0))
    folded = nn.Conv2d(
        conv.in_channels,
        conv.out_channels,
        weight.shape[-1],
        conv.stride[0],
        padding=after,
        groups=conv.groups,
        device="meta",
    )
    folded.weight = nn.Parameter(weight.detach(), requires_grad=False)
    folded.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return folded


def region_side(network: EfficientNet, image_size: int) -> int:
    """How many regions per side the network makes of an image: 7 of 224 pixels."""
    side = image_size
    for conv in (network._conv_stem, *(block._depthwise_conv for block in network._blocks)):
        before, after, *_ = getattr(conv.static_padding, "padding", (0, 0))
        side = (side + before + after - conv.kernel_size[0]) // conv.stride[0] + 1
    return side


def affects_features(key: str) -> bool:
    """Whether features depend on a tensor of the network: not on the classifier nor on how many batches were seen."""
    return not key.startswith("_fc.") and not key.endswith("num_batches_tracked")
