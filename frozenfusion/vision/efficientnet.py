"""EfficientNet-B0 to B7 of the package efficientnet_pytorch: which network, with which weights.

Shapes: b images, s pixels per side, d features, r image regions.
"""

from __future__ import annotations

import http.client
import pickle
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from efficientnet_pytorch import EfficientNet
from efficientnet_pytorch.utils import url_map

from frozenfusion.data.resize import Resize
from frozenfusion.utils.errors import UserError
from frozenfusion.utils.messages import one_line
from frozenfusion.utils.progress import log
from frozenfusion.utils.tensors import weights_sha256
from frozenfusion.vision.folding import FoldedEfficientNet, affects_features, region_side
from frozenfusion.vision.pixels import IMAGE_SIZE, IMAGENET
from frozenfusion.vision.random_weights import RANDOM_RECIPE, calibrate_batchnorm, random_state
from frozenfusion.vision.weights import State, fitting, plain_state, read_weights

DOWNLOAD_TIMEOUT = 30.0  # seconds without an answer


class EfficientNetEncoder:
    """The network `name` with weights: "imagenet", a file (.pth, .safetensors), or "random", drawn from `seed`.

    Raises UserError if a file or download cannot be had, holds more than tensors, or belongs to another network.
    """

    normalisation = IMAGENET

    def __init__(self, name: str, weights: str, seed: int = 0) -> None:
        self.name, self.weights = name, weights
        self._random = weights == "random"
        self._state = load_weights(name, weights, seed)

    @cached_property
    def weights_sha256(self) -> str:
        """What names the weights in a fingerprint."""
        return weights_sha256(self._state, RANDOM_RECIPE if self._random else "")

    def resize(self, image_size: int | None) -> Resize:
        """What a picture becomes before the network."""
        return Resize(image_size or IMAGE_SIZE)

    def feature_shape(self, pool: str, image_size: int) -> tuple[int, ...]:
        """(d,) for pool="avg", (r, d) for pool="none"."""
        network = outline(self.name)
        width = int(network._conv_head.out_channels)
        return (width,) if pool == "avg" else (region_side(network, image_size) ** 2, width)

    def network(self, image_size: int) -> EfficientNet:
        """The package's own network with these weights, float32, in eval mode, for comparison and folding."""
        network = outline(self.name)
        state = {key: torch.zeros_like(value, device="cpu") for key, value in network.state_dict().items()}  # counters
        network.load_state_dict(state | {key: value.clone() for key, value in self._state.items()}, assign=True)
        network.requires_grad_(False).eval()
        if self._random:
            calibrate_batchnorm(network, image_size)
        return network

    def build(self, pool: str, image_size: int) -> FoldedEfficientNet:
        """The network as it is run."""
        return FoldedEfficientNet(self.network(image_size), pool)


def outline(name: str) -> EfficientNet:
    """The network `name` without its last layer, all its tensors without memory, padding as the package fixes it."""
    try:
        with torch.device("meta"):
            # Without image_size: the package would fix another padding, and features would differ by half their size.
            return EfficientNet.from_name(name, include_top=False).eval()
    except (ValueError, KeyError):
        raise UserError(f"unknown backbone {name!r}: choose one of efficientnet-b0 to efficientnet-b7") from None


def load_weights(name: str, weights: str, seed: int = 0) -> State:
    """The float32 state dict of network `name`, without what no feature depends on: see EfficientNetEncoder."""
    network = outline(name)
    if weights == "random":
        return random_state(network, seed)
    if weights == "imagenet":
        source, found = f"imagenet weights of {name}", _download(name)
    else:
        source, found = weights, read_weights(Path(weights))
    state = plain_state(found)
    if isinstance(state, dict):
        state = {key: value for key, value in state.items() if affects_features(key)}
    expected = {key: value for key, value in network.state_dict().items() if affects_features(key)}
    return fitting(state, expected, name, source)


def _download(name: str) -> Any:
    url = url_map[name]
    file_name = url.rsplit("/", 1)[-1]
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    if not (folder / file_name).exists():
        log.info("downloading %s", url)
    try:
        with _timeout(DOWNLOAD_TIMEOUT):
            return torch.hub.load_state_dict_from_url(
                url, map_location="cpu", check_hash=True, progress=False, weights_only=True
            )
    except (OSError, http.client.HTTPException, RuntimeError, pickle.UnpicklingError, EOFError) as error:
        with torch.device("meta"):  # with the classifier, which the file holds too
            megabytes = sum(4 * tensor.numel() for tensor in EfficientNet.from_name(name).state_dict().values()) / 1e6
        raise UserError(
            f"imagenet weights of {name} could not be had ({one_line(error, 120)}): fetch {url} (about "
            f"{megabytes:.0f} MB) by hand, put it at {folder / file_name}, or name it with `weights=FILE`"
        ) from error


@contextmanager
def _timeout(seconds: float) -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
