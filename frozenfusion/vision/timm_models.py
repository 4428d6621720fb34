"""Networks of the package timm, where it is installed, with the preprocessing that each was trained with.

Shapes: b images, s pixels per side, d features, r image regions, l tokens, h × w a feature map.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from frozenfusion.data.resize import FILTERS, Resize
from frozenfusion.utils.errors import UserError
from frozenfusion.utils.hub import quiet
from frozenfusion.utils.messages import one_line, shown
from frozenfusion.utils.tensors import weights_sha256
from frozenfusion.vision.names import TIMM
from frozenfusion.vision.network import FrozenNetwork, shape_of_features, told
from frozenfusion.vision.preprocessing import Preprocessing
from frozenfusion.vision.weights import fitting, plain_state, read_weights


class TimmEncoder:
    """The network "timm:NAME" with its pretrained weights ("pretrained", "imagenet"), a file's, or "random" ones.

    Raises UserError where timm cannot be imported, does not know the name, or the weights cannot be had or do not fit.
    """

    def __init__(self, name: str, weights: str) -> None:
        self.name, self.weights = name, weights
        self._model = _model(name, weights)
        settings = self._model.pretrained_cfg
        self._preprocessing = _preprocessing(name, settings)
        self._fixed = bool(settings.get("fixed_input_size"))
        self.normalisation = told(self._preprocessing.mean, self._preprocessing.std)

    @cached_property
    def weights_sha256(self) -> str:
        """What names the weights in a fingerprint, and the layers that they belong to."""
        return weights_sha256(self._model.state_dict(), repr(self._model))

    def resize(self, image_size: int | None) -> Resize:
        """What a picture becomes before the network. Raises UserError for a size that it does not take."""
        own = self._preprocessing.resize.size
        if self._fixed and image_size not in (None, own):
            raise UserError(f"`image_size={image_size}`: {self.name} takes images of {own} pixels alone: leave it out")
        return self._preprocessing.at(image_size)

    def feature_shape(self, pool: str, image_size: int) -> tuple[int, ...]:
        """(d,) for pool="avg", (r, d) for pool="none": of one picture, tried out."""
        return shape_of_features(self.build(pool, image_size), image_size, self.name)

    def build(self, pool: str, image_size: int) -> FrozenNetwork:
        """The network as it is run."""
        return _TimmNetwork(self._model, pool, self._preprocessing.mean, self._preprocessing.std)


class _TimmNetwork(FrozenNetwork):
    """A network of timm: for pool="avg" what its classifier would be given, for "none" its patches or map."""

    def __init__(self, model: nn.Module, pool: str, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__(pool, mean, std)
        self.model = model
        self.freeze()

    def features(self, x: Tensor) -> Tensor:
        """Float32 features of normalised images (b, 3, s, s), pooled (b, d) or of regions (b, r, d)."""
        model: Any = self.model
        found: Tensor = model.forward_features(x)
        if self.pool == "avg":
            pooled: Tensor = model.forward_head(found, pre_logits=True)
            return pooled.flatten(1).float()
        if found.dim() == 3:
            return found[:, getattr(model, "num_prefix_tokens", 0) :].float()
        if getattr(model, "output_fmt", "NCHW") == "NHWC":
            return found.flatten(1, 2).float()
        return found.flatten(2).transpose(1, 2).float()


def _model(name: str, weights: str) -> Any:
    try:
        import timm
    except ImportError as error:
        raise UserError(
            f"`backbone={name}` needs the package timm ({one_line(error, 120)}): pip install 'frozenfusion[timm]'"
        ) from error
    plain = name.removeprefix(TIMM)
    if ":" in plain or "/" in plain or not timm.is_model(plain):
        raise UserError(f"`backbone={name}`: timm has no network of this name: look it up in timm.list_models()")
    pretrained = weights in ("imagenet", "pretrained")
    try:
        with torch.random.fork_rng(devices=[]), quiet():
            torch.manual_seed(0)
            model = timm.create_model(plain, pretrained=pretrained, num_classes=0).eval()
    except Exception as error:  # the network, the hub, the disk
        raise UserError(
            f"{name}: could not be made with `weights={weights}` ({one_line(error, 120)}): fetch its weights by hand "
            "and name them with `weights=FILE`"
        ) from error
    if not pretrained and weights != "random":
        model.load_state_dict(_read(model, weights, name), strict=False)
    return model


def _read(model: Any, weights: str, name: str) -> dict[str, Tensor]:
    """The weights of a file, without those of its classifier. Raises UserError unless they fit."""
    classifiers = model.pretrained_cfg.get("classifier") or ()
    classifiers = (classifiers,) if isinstance(classifiers, str) else tuple(classifiers)
    beside = tuple(f"{each}." for each in classifiers)

    def kept(state: Any) -> Any:
        return {
            key: value
            for key, value in state.items()
            if not key.startswith(beside) and not key.endswith("num_batches_tracked")
        }

    found = plain_state(read_weights(Path(weights)))
    expected = {key: value for key, value in kept(model.state_dict()).items() if value.is_floating_point()}
    return fitting(kept(found) if isinstance(found, dict) else found, expected, name, weights)


def _preprocessing(name: str, settings: Any) -> Preprocessing:
    """What a network's pretrained_cfg says. Raises UserError for what is not done here."""
    channels, height, width = settings.get("input_size", (3, 224, 224))
    filter, mode = settings.get("interpolation") or "bicubic", settings.get("crop_mode") or "center"
    wrong = {
        "input_size": channels != 3 or height != width,
        "interpolation": filter not in FILTERS,
        "crop_mode": mode not in ("center", "squash"),
    }
    for setting, is_wrong in wrong.items():
        if is_wrong:
            raise UserError(f"{name}: its {setting} is {shown(settings.get(setting))}, which cannot be done here")
    edge = int(height / (settings.get("crop_pct") or 0.875))
    resize = Resize(height, edge, keeps_shape=mode == "center", filter=FILTERS.index(filter))
    return Preprocessing(resize, tuple(settings["mean"]), tuple(settings["std"]))
