"""Frozen image encoders: their weights, their fingerprint, and images in, features out."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import safetensors.torch
import torch
from efficientnet_pytorch import EfficientNet
from efficientnet_pytorch.utils import get_model_params, round_filters, url_map
from safetensors import SafetensorError
from torch import Tensor

from frozenfusion.errors import UsageError, UserError
from frozenfusion.files import file_error
from frozenfusion.images import RESAMPLING
from frozenfusion.progress import log
from frozenfusion.random_weights import RECIPE, random_network, settle
from frozenfusion.runtime import NORMALISATION, Runner, choose_runner

FORMAT = 1  # of the fingerprint; raise it when the same parts come to mean other features
NAMED_AT_MOST = 3


class Backbone:
    """A frozen network with its weights and preprocessing: uint8 images (b, s, s, 3) in, float32 features out.

    Features are (b, d), the mean over the image, or (b, r, d) region vectors with pool "none". `prepare` comes before
    the first call; `fingerprint` needs neither a device nor a prepared network.
    """

    def __init__(
        self, name: str, network: EfficientNet, *, weights: str, pool: str, image_size: int, precision: str, dtype: str
    ) -> None:
        self.name, self.weights, self.pool, self.image_size = name, weights, pool, image_size
        self.precision, self.dtype = precision, dtype
        self._network = network
        self._runner: Runner | None = None
        self.weights_sha256 = state_sha256(network.state_dict())

    @property
    def feature_shape(self) -> tuple[int, ...]:
        """(d,) or (r, d)."""
        width = feature_width(self.name)
        return (width,) if self.pool == "avg" else (regions(self._network, self.image_size), width)

    @property
    def fingerprint(self) -> dict[str, str | int]:
        """All that the stored features depend on; see docs of the file format."""
        return {
            "backbone": self.name,
            "weights_sha256": self.weights_sha256 + (f" ({RECIPE})" if self.weights == "random" else ""),
            "image_size": self.image_size,
            "resampling": RESAMPLING,
            "normalisation": NORMALISATION,
            "pooling": self.pool,
            "precision": self.precision,
            "dtype": self.dtype,
            "format": FORMAT,
        }

    def prepare(
        self, device: torch.device, *, runtime: str = "auto", images_left: int = 0, batch_size: int = 8
    ) -> None:
        """Make the network ready to compute batches of up to `batch_size` images on `device`."""
        if self.weights == "random":
            settle(self._network)
        self._runner = choose_runner(
            self._network,
            device=device,
            runtime=runtime,
            precision=self.precision,
            pool=self.pool == "avg",
            image_size=self.image_size,
            batch_size=batch_size,
            images_left=images_left,
        )

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Features of `images`; a row does not depend on the other images of its batch."""
        if self._runner is None:
            raise RuntimeError("prepare comes before the first call")
        return self._runner(images)


def build_backbone(
    name: str,
    weights: str,
    *,
    pool: str = "avg",
    image_size: int = 224,
    precision: str = "float32",
    dtype: str = "float32",
) -> Backbone:
    """A backbone of `efficientnet_pytorch` with `weights`: imagenet, a state dict's path, or random.

    Raises UserError if the weights cannot be had, are damaged, or belong to another architecture.
    """
    if weights == "random":
        log.warning(
            "--weights random: the image network is untrained. Good for trying things; its features say nothing about "
            "what real weights reach"
        )
        network = random_network(name)
    else:
        path = _imagenet_file(name) if weights == "imagenet" else Path(weights)
        network = _loaded(name, path)
    return Backbone(name, network, weights=weights, pool=pool, image_size=image_size, precision=precision, dtype=dtype)


def feature_width(name: str) -> int:
    """Channels of the last feature map: 2560 for B7."""
    _, params = get_model_params(name, None)
    return int(round_filters(1280, params))


def regions(network: EfficientNet, image_size: int) -> int:
    """Cells of the last feature map: 49 at 224 pixels."""
    side = image_size
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d) and module.stride[0] == 2:
            left, right, *_ = getattr(module.static_padding, "padding", (0, 0, 0, 0))
            side = (side + left + right - module.kernel_size[0]) // 2 + 1
    return side * side


def state_sha256(state: dict[str, Tensor]) -> str:
    """SHA-256 of the names, types, shapes and bytes of a state dict, without what plays no part in the features."""
    digest = hashlib.sha256()
    for name in sorted(state):
        if _is_used(name):
            value = state[name].detach().cpu().contiguous()
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
            digest.update(value.numpy().data)
    return digest.hexdigest()


def _is_used(name: str) -> bool:
    return not name.startswith("_fc.") and not name.endswith("num_batches_tracked")


def _imagenet_file(name: str) -> Path:
    """The file of the ImageNet weights, downloaded on first use into torch's hub folder, and checked by its hash."""
    url = url_map[name]
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]
    if not path.exists():
        log.info(f"downloading {url} to {path}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            hash_prefix = path.stem.rsplit("-", 1)[-1]
            torch.hub.download_url_to_file(url, str(path), hash_prefix)
        except (URLError, OSError, RuntimeError) as error:
            raise UserError(
                f"{name}: its ImageNet weights could not be downloaded ({_reason(error)}): fetch {url} "
                f"({_DOWNLOAD_MB[name]} MB) by hand and put it at {path}, or anywhere and give --weights FILE"
            ) from error
    return path


_DOWNLOAD_MB = dict(zip(url_map, (20, 30, 35, 47, 74, 117, 165, 255), strict=True))


def _loaded(name: str, path: Path) -> EfficientNet:
    """The network with the weights of a file; built without image_size, which would fix another padding."""
    state = {key: value for key, value in _read_state(path).items() if _is_used(key)}
    with torch.device("meta"):
        network = EfficientNet.from_name(name, include_top=False)
    expected = {key: value for key, value in network.state_dict().items() if _is_used(key)}
    wrong = [f"{key} is missing" for key in expected.keys() - state.keys()]
    wrong += [f"{key} is not part of it" for key in state.keys() - expected.keys()]
    wrong += [
        f"{key} is {tuple(state[key].shape)}, not {tuple(value.shape)}"
        for key, value in expected.items()
        if key in state and state[key].shape != value.shape
    ]
    if wrong:
        some = "; ".join(sorted(wrong)[:NAMED_AT_MOST]) + ("; …" if len(wrong) > NAMED_AT_MOST else "")
        raise UserError(f"{path}: weights of another network than {name} ({len(wrong):,} differences: {some})")
    tracked = {key: torch.zeros((), dtype=torch.long) for key in network.state_dict() if key not in expected}
    state = {key: value.to(torch.float32) for key, value in state.items()}
    network.load_state_dict(state | tracked, assign=True)
    return network.eval().requires_grad_(False)


def _read_state(path: Path) -> dict[str, Tensor]:
    """A state dict from .safetensors, or from torch's format without running any code that it may hold."""
    try:
        if path.is_dir():
            raise UserError(f"{path}: a folder, and --weights wants a state dict file: name the file in it")
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        if path.suffix or "/" in str(path):
            raise UserError(f"{path}: no such file: check --weights") from error
        raise UsageError(f"--weights {path}: expected imagenet, random, or the path of a state dict") from error
    except OSError as error:
        raise file_error(error, path) from error
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path}: refused, because it is damaged or would run code when it is loaded: use a plain state dict"
        ) from error
    except (SafetensorError, RuntimeError, EOFError, ValueError, KeyError, TypeError, IndexError) as error:
        raise UserError(f"{path}: not a readable state dict ({_reason(error)}): fetch it again") from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{path}: not a state dict: expected names with tensors")
    return {str(key).removeprefix("module."): value for key, value in state.items()}


def _reason(error: BaseException) -> str:
    return " ".join(str(getattr(error, "reason", error)).split())[:160] or type(error).__name__
