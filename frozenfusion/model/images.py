"""What becomes of cached image features before they are projected: standardised, and regions made one vector.

Shapes: n pairs, b of a batch, r image regions, D image feature width.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from frozenfusion.utils.errors import UserError

REGION_POOLS = ("mean", "flatten", "attention")
WIDEST = 2**17  # numbers of a flattened image: B7's at 224 pixels are 125,440, of which 768 make 96 M parameters
ATTENTION_WIDTH = 128


def check_region_pool(pool: str, regions: int, width: int) -> None:
    """Raise UserError where image features of so many regions (0: pooled) cannot be made one vector that way."""
    if pool != "mean" and regions < 2:
        raise UserError(
            f"`region_pool={pool}` needs image regions, and the features are one pooled vector per image: extract with"
            " `pool=none`, or leave it out"
        )
    if pool == "flatten" and regions * width > WIDEST:
        raise UserError(
            f"`region_pool=flatten` makes one vector of {regions} x {width} = {regions * width:,} numbers, and the "
            f"widest is {WIDEST:,}: extract smaller images, or choose another"
        )


class Standardise(nn.Module):
    """`(x - mean) / std` of each number of image features (..., D); mean and std (D,) are buffers, set once."""

    mean: Tensor
    std: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("std", torch.ones(width))

    def measure(self, features: Iterable[Tensor]) -> None:
        """Take mean and std from features (n, D) or (n, r, D), given in parts; where nothing varies, std is 1."""
        count, total, squares = 0, torch.zeros(()), torch.zeros(())
        for part in features:
            rows = part.reshape(-1, part.shape[-1]).cpu().double()
            count, total, squares = count + len(rows), total + rows.sum(dim=0), squares + rows.square().sum(dim=0)
        if count:
            mean = total / count
            std = (squares / count - mean.square()).clamp_min(0).sqrt()
            self.mean.copy_(mean)
            self.std.copy_(torch.where(std > 1e-6, std, 1.0))

    def forward(self, features: Tensor) -> Tensor:
        standardised: Tensor = (features - self.mean) / self.std
        return standardised


class AttentionPool(nn.Module):
    """A weight for each region: `v = sum_i a_i x_i`, `a = softmax_i(w . tanh(U x_i))`, (b, r, D) -> (b, D).

    w starts at zero, so that at first all regions weigh the same, as in their mean.

    Source: attention pooling of Ilse et al., 2018 (arXiv:1802.04712).
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(width, ATTENTION_WIDTH)
        self.score = nn.Linear(ATTENTION_WIDTH, 1, bias=False)
        nn.init.zeros_(self.score.weight)

    def forward(self, regions: Tensor) -> Tensor:
        weights = self.score(self.hidden(regions).tanh()).float().softmax(dim=1)  # (b, r, 1)
        pooled: Tensor = (weights * regions).sum(dim=1)
        return pooled
