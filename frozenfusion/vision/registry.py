"""The frozen image networks there are: what `backbone` can name, and how another one is added.

Shapes: b images, s pixels per side, d features, r image regions, h × w the feature map.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

from frozenfusion.data.resize import Resize
from frozenfusion.store.command import ARRAYS
from frozenfusion.utils.errors import UsageError, UserError
from frozenfusion.utils.messages import first_line
from frozenfusion.utils.plugins import Registry
from frozenfusion.vision.names import TIMM, TRANSFORMERS
from frozenfusion.vision.pixels import IMAGENET_MEAN, IMAGENET_STD

if TYPE_CHECKING:
    from torch import nn

    from frozenfusion.vision.network import FrozenNetwork


EFFICIENTNETS = tuple(f"efficientnet-b{size}" for size in range(8))


class Encoder(Protocol):
    """A network with its weights, described: cheap until it is built."""

    name: str  # of the network, as the fingerprint has it
    weights: str  # where they came from: with the name, enough to find them again
    normalisation: str  # of pixels, as the fingerprint names it

    @property
    def weights_sha256(self) -> str:
        """What names the weights in the fingerprint."""

    def resize(self, image_size: int | None) -> Resize:
        """What a picture becomes before the network: of its own size, or of another."""

    def feature_shape(self, pool: str, image_size: int) -> tuple[int, ...]:
        """(d,) for pool="avg", (r, d) for pool="none"."""

    def build(self, pool: str, image_size: int) -> FrozenNetwork:
        """The network as it is run."""


NetworkFunction = Callable[[str], "nn.Module"]
Function = TypeVar("Function", bound=NetworkFunction)


@dataclass(frozen=True)
class _Registered:
    """What `register_backbone` was told."""

    network: NetworkFunction
    mean: tuple[float, ...]
    std: tuple[float, ...]


BACKBONES: Registry[_Registered] = Registry("backbone", "frozenfusion.backbones")


def register_backbone(
    name: str, *, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD
) -> Callable[[Function], Function]:
    """Decorator that makes a function's network a value of `backbone`.

    The function takes `weights` (the option: "imagenet", "random", or a file's path, as it likes) and returns a
    `torch.nn.Module` that turns images, float32 (b, 3, s, s), into a feature map (b, d, h, w). It is run frozen, in
    evaluation mode.

    Args:
        name: the value of `backbone`.
        mean, std: of RGB in [0, 1], by which images are normalised.

    Raises:
        UsageError: the name is taken, or could not stand for a folder.

    Example::

        @ff.register_backbone("my-network")
        def my_network(weights: str) -> torch.nn.Module:
            network = MyNetwork()
            network.load_state_dict(safetensors.torch.load_file(weights))
            return network.features
    """

    if not isinstance(name, str):
        raise UsageError("register_backbone takes the network's name, as in @register_backbone('my-network')")

    def add(function: Function) -> Function:
        if name in (*EFFICIENTNETS, ARRAYS):
            raise UsageError(f"backbone {name!r} is built in: choose another name")
        BACKBONES.add(name, _Registered(function, tuple(mean), tuple(std)), function)
        return function

    return add


def backbone_names() -> list[str]:
    """What `backbone` can name beside hub names and folders: built-in networks, registered ones, those of packages."""
    return [*EFFICIENTNETS, *BACKBONES.names()]


def module_of(name: str) -> tuple[str, str | None] | None:
    """The module, and its file, that registered a network; None for those that are built in."""
    registered = BACKBONES.get(name)
    if registered is None:
        return None
    module = registered.network.__module__
    return module, getattr(sys.modules.get(module), "__file__", None)


def check_backbone(name: str, revision: str | None = None) -> None:
    """Raise UsageError, with the names there are, for an unknown one, and for a revision of what has none."""
    known = name in EFFICIENTNETS or name.startswith((TIMM, TRANSFORMERS)) or BACKBONES.get(name) is not None
    folder = not known and Path(name).expanduser().is_dir()
    if not known and not folder and "/" not in name:
        raise UsageError(
            f"`backbone={name}`: no such image network: choose from {', '.join(backbone_names())}, give a hub name "
            "(org/name), a folder or timm:NAME, or import the file that registers it (--import FILE, or in Python)"
        )
    if revision is not None and (known or folder):
        raise UsageError(f"`revision={revision}` is for a network of the hub, and {name} is none: leave it out")


def load_encoder(name: str, weights: str, revision: str | None = None) -> Encoder:
    """The network `name` with `weights`. Raises UserError if either cannot be had."""
    check_backbone(name, revision)
    registered = BACKBONES.get(name)
    if registered is not None:
        return _of_function(name, weights, registered)
    if name.startswith(TIMM):
        from frozenfusion.vision.timm_models import TimmEncoder

        return TimmEncoder(name, weights)
    if name in EFFICIENTNETS:
        from frozenfusion.vision.efficientnet import EfficientNetEncoder

        return EfficientNetEncoder(name, "imagenet" if weights == "pretrained" else weights)
    from frozenfusion.vision.automodel import AutoModelEncoder, source_of

    if name.startswith(TRANSFORMERS):
        return AutoModelEncoder(weights, name)
    return AutoModelEncoder(source_of(name, weights, revision))


def _of_function(name: str, weights: str, registered: _Registered) -> Encoder:
    from frozenfusion.vision.plain import PlainEncoder

    try:
        module = registered.network(weights)
    except UserError:
        raise
    except Exception as error:  # whatever a user's function does
        raise UserError(
            f"backbone {name}: its function failed with `weights={weights}` ({type(error).__name__}: "
            f"{first_line(error)}): give the weights that it expects"
        ) from error
    return PlainEncoder(name, weights, module, registered.mean, registered.std)
