"""Networks of a user's own: a module of torch, run as it is.

Shapes: b images, s pixels per side, d features, r image regions, h × w the feature map.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from torch import Tensor, nn

from frozenfusion.data.resize import Resize
from frozenfusion.utils.errors import UserError
from frozenfusion.utils.tensors import weights_sha256
from frozenfusion.vision.network import FrozenNetwork, shape_of_features, told
from frozenfusion.vision.pixels import IMAGE_SIZE


class PlainNetwork(FrozenNetwork):
    """A module of torch as it is: normalised images (b, 3, s, s) in, a feature map (b, d, h, w) out."""

    def __init__(self, module: nn.Module, pool: str, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__(pool, mean, std)
        self.module = module
        self.freeze()

    def feature_map(self, x: Tensor) -> Tensor:
        """What the module makes of normalised images."""
        found: Tensor = self.module(x)
        if found.dim() != 4:
            raise UserError(
                f"the network gives {tuple(found.shape)}, not a feature map (b, d, h, w): see docs/backbones.md"
            )
        return found


class PlainEncoder:
    """A network that a registered function made: see `register_backbone`."""

    def __init__(self, name: str, weights: str, module: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        if not isinstance(module, nn.Module):
            raise UserError(f"backbone {name}: its function returned {type(module).__name__}, not a torch.nn.Module")
        self.name, self.weights = name, weights
        self._module, self._mean, self._std = module, mean, std
        self.normalisation = told(mean, std)

    @cached_property
    def weights_sha256(self) -> str:
        """What names the weights in a fingerprint, and the layers that they belong to."""
        return weights_sha256(self._module.state_dict(), repr(self._module))

    def resize(self, image_size: int | None) -> Resize:
        """What a picture becomes before the network."""
        return Resize(image_size or IMAGE_SIZE)

    def feature_shape(self, pool: str, image_size: int) -> tuple[int, ...]:
        """(d,) for pool="avg", (r, d) for pool="none": of one picture, tried out."""
        return shape_of_features(self.build(pool, image_size), image_size, self.name)

    def build(self, pool: str, image_size: int) -> PlainNetwork:
        """The network as it is run."""
        return PlainNetwork(self._module, pool, self._mean, self._std)
