"""The weights of a frozen network: where they come from, whether they fit, and the hash that names them."""

from __future__ import annotations

import hashlib
import http.client
import pickle
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from efficientnet_pytorch import EfficientNet
from efficientnet_pytorch.utils import url_map
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from frozenfusion.errors import UserError
from frozenfusion.folding import has_skip
from frozenfusion.progress import log

State = dict[str, Tensor]

RANDOM_RECIPE = "random, recipe 2"  # hashed with random weights: whoever changes what they become changes its number
DOWNLOAD_TIMEOUT = 30.0  # seconds without an answer
_NAMES_SHOWN = 3


def outline(name: str) -> EfficientNet:
    """The network `name` without its last layer, all its tensors without memory, padding as the package fixes it."""
    try:
        with torch.device("meta"):
            # Without image_size: the package would fix another padding, and features would differ by half their size.
            return EfficientNet.from_name(name, include_top=False).eval()
    except (ValueError, KeyError):
        raise UserError(f"unknown backbone {name!r}: choose one of efficientnet-b0 to efficientnet-b7") from None


def load_weights(name: str, weights: str, seed: int = 0) -> State:
    """The float32 state dict of network `name`: from imagenet, a file (.pth, .safetensors), or random.

    Raises UserError if a file or download cannot be had, holds more than tensors, or belongs to another network.
    """
    network = outline(name)
    if weights == "random":
        return random_state(network, seed)
    if weights == "imagenet":
        source, state = f"imagenet weights of {name}", _download(name)
    else:
        source, state = weights, _read(Path(weights))
    return _fitting(state, network, name, source)


def weights_hash(state: Mapping[str, Tensor], recipe: str = "") -> str:
    """SHA-256 of names, types, shapes and values: the same for the same weights, whatever file they came in."""
    digest = hashlib.sha256(recipe.encode())
    for name in sorted(state):
        tensor = state[name].detach().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


# --- random weights


def random_state(network: EfficientNet, seed: int) -> State:
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
        if not _counts(name):
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
def settle(network: EfficientNet, image_size: int, seed: int = 0) -> None:
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


# --- weights from files


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
        reason = " ".join(str(error).split())[:120]
        with torch.device("meta"):  # with the classifier, which the file holds too
            megabytes = sum(4 * tensor.numel() for tensor in EfficientNet.from_name(name).state_dict().values()) / 1e6
        raise UserError(
            f"imagenet weights of {name} could not be had ({reason}): fetch {url} (about {megabytes:.0f} MB) by hand,"
            f" put it at {folder / file_name}, or name it with --weights FILE"
        ) from error


@contextmanager
def _timeout(seconds: float) -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _read(path: Path) -> Any:
    if not path.is_file():
        raise UserError(f"--weights {path}: no such file: give a .pth or .safetensors file, imagenet, or random")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"--weights {path}: holds more than tensors, or is no PyTorch file, and was not run: save the network's"
            " state_dict() alone, best as .safetensors"
        ) from error
    except SafetensorError as error:
        raise UserError(f"--weights {path}: not a whole safetensors file ({error}): fetch it again") from error
    except Exception as error:  # on damaged files torch.load raises nearly every kind of exception
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"--weights {path}: cannot be read ({reason}): fetch it again") from error


def _fitting(state: Any, network: nn.Module, name: str, source: str) -> State:
    """`state` as float32, without what no feature depends on. Raises UserError unless it is the network's."""
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]  # a training checkpoint, in which the weights have company
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{source}: not a state dict of tensors: save the network's state_dict() alone")
    state = {str(key).removeprefix("module."): value for key, value in state.items()}
    state = {key: value for key, value in state.items() if _counts(key)}
    expected = {key: value for key, value in network.state_dict().items() if _counts(key)}
    misshaped = [
        f"{key} {tuple(state[key].shape)} instead of {tuple(expected[key].shape)}"
        for key in expected.keys() & state.keys()
        if state[key].shape != expected[key].shape
    ]
    differences = {
        "missing": sorted(expected.keys() - state.keys()),
        "unexpected": sorted(state.keys() - expected.keys()),
        "of another shape": sorted(misshaped),
    }
    wrong = [f"{label}: {_first_few(keys)}" for label, keys in differences.items() if keys]
    if wrong:
        raise UserError(f"{source}: not the weights of {name} ({'; '.join(wrong)}): check --backbone and --weights")
    return {key: value.float() for key, value in state.items()}


def _counts(key: str) -> bool:
    """Whether features depend on a tensor: not on the classifier nor on how many batches were seen."""
    return not key.startswith("_fc.") and not key.endswith("num_batches_tracked")


def _first_few(names: list[str]) -> str:
    more = len(names) - _NAMES_SHOWN
    return ", ".join(names[:_NAMES_SHOWN]) + (f" and {more:,} more" if more > 0 else "")
