"""Vision networks of transformers' AutoModel, from the hub or a folder: which class, with which weights.

Shapes: b images, s pixels per side, d features, r image regions, l tokens, h × w a feature map.
"""

from __future__ import annotations

import copy
import inspect
import json
import math
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import MODEL_MAPPING, AutoConfig, CLIPVisionModelWithProjection, PreTrainedModel

from frozenfusion.data.resize import Resize
from frozenfusion.utils.configurations import check_configuration, check_files, check_size, check_weight_types
from frozenfusion.utils.errors import UserError
from frozenfusion.utils.files import read_json
from frozenfusion.utils.hub import Kind, find_files, quiet, settled
from frozenfusion.utils.messages import first_line
from frozenfusion.utils.tensors import unusable, weights_sha256
from frozenfusion.vision.names import RANDOM, TRANSFORMERS
from frozenfusion.vision.network import FrozenNetwork, shape_of_features, told
from frozenfusion.vision.preprocessing import PREPROCESSOR_FILES, read_preprocessing

IMAGE_NETWORK = Kind(
    "backbone",
    (("config.json",), PREPROCESSOR_FILES),
    lambda name: "config.json, preprocessor_config.json and model.safetensors",
    "`weights=random`",
)

# What a configuration says beside the network: the names of what it was trained on, and where and how it was saved.
_BESIDE = {
    "transformers_version", "_name_or_path", "torch_dtype", "dtype", "architectures", "id2label", "label2id",
    "num_labels", "finetuning_task", "problem_type",
}  # fmt: skip
_BEFORE_PATCHES = ("cls_token", "class_embedding", "distillation_token", "register_tokens")  # parameters of tokens


def source_of(name: str, weights: str, revision: str | None) -> str:
    """Where a network is from, in one word: NAME, NAME@REVISION, a folder; with random weights after "random:"."""
    if weights not in ("imagenet", "pretrained", "random"):
        raise UserError(
            f"`weights={weights}`: a network of transformers has its weights in its folder: give that as `backbone`, "
            "and `weights` pretrained or random"
        )
    return (RANDOM if weights == "random" else "") + settled(name) + (f"@{revision}" if revision else "")


class AutoModelEncoder:
    """A vision network of `source`, see `source_of`; of CLIP and SigLIP the half that sees.

    `expected` is the name that a fingerprint has, "transformers:" and a class, of which the network has to be.
    Raises UserError for files that cannot be had, are damaged, or describe a network that is not for pictures.
    """

    def __init__(self, source: str, expected: str = "") -> None:
        self.weights = source
        where = source.removeprefix(RANDOM)
        self._random = where != source
        name, revision = where, None
        if not Path(where).is_dir() and "@" in where:
            name, _, revision = where.rpartition("@")
        folder = find_files(name, IMAGE_NETWORK, weights=not self._random, revision=revision)
        self._preprocessing = read_preprocessing(folder)
        self.normalisation = told(self._preprocessing.mean, self._preprocessing.std)
        config, kind = _configuration(folder)
        self.name = TRANSFORMERS + kind.__name__
        if expected not in ("", self.name):
            raise UserError(f"{where}: holds a network of {self.name}, not of {expected}: name its weights")
        with quiet(), torch.device("meta"):
            check_size(_new(kind, config, folder), folder / "config.json")
        self._model = _random(kind, config, folder) if self._random else _pretrained(kind, config, folder)
        self._recipe = _recipe(folder, self._model)

    @cached_property
    def weights_sha256(self) -> str:
        """What names the weights in a fingerprint, and the configuration that they belong to."""
        return weights_sha256(self._model.state_dict(), self._recipe)

    def resize(self, image_size: int | None) -> Resize:
        """What a picture becomes before the network: as its files say, or of another size."""
        return self._preprocessing.at(image_size)

    def feature_shape(self, pool: str, image_size: int) -> tuple[int, ...]:
        """(d,) for pool="avg", (r, d) for pool="none": of one picture, tried out."""
        return shape_of_features(self.build(pool, image_size), image_size, self.weights)

    def build(self, pool: str, image_size: int) -> FrozenNetwork:
        """The network as it is run."""
        return AutoNetwork(self._model, pool, self._preprocessing.mean, self._preprocessing.std, image_size)


class AutoNetwork(FrozenNetwork):
    """A vision model of transformers: its own vector for pool="avg", its patches or map for "none"."""

    def __init__(
        self, model: PreTrainedModel, pool: str, mean: tuple[float, ...], std: tuple[float, ...], image_size: int
    ) -> None:
        super().__init__(pool, mean, std)
        self.model = model
        self._before = _tokens_before_patches(model)
        built_for = getattr(model.config, "image_size", image_size)
        built_for = built_for[0] if isinstance(built_for, list | tuple) else built_for
        resizable = "interpolate_pos_encoding" in inspect.signature(model.forward).parameters
        self._given = {"interpolate_pos_encoding": True} if resizable and built_for != image_size else {}
        self.freeze()

    def features(self, x: Tensor) -> Tensor:
        """Float32 features of normalised images (b, 3, s, s), pooled (b, d) or of regions (b, r, d)."""
        outputs = self.model(pixel_values=x, **self._given)
        return (self._pooled(outputs) if self.pool == "avg" else self._regions(outputs.last_hidden_state)).float()

    def _pooled(self, outputs: Any) -> Tensor:
        """The projected vector, that of the pooler, the first token, or the mean: the first that there is."""
        for name in ("image_embeds", "pooler_output"):
            found: Tensor | None = getattr(outputs, name, None)
            if found is not None:
                return found.flatten(2).mean(2) if found.dim() > 2 else found
        hidden: Tensor = outputs.last_hidden_state
        if hidden.dim() == 3 and self._before:
            return hidden[:, 0]
        return self._regions(hidden).mean(1)

    def _regions(self, hidden: Tensor) -> Tensor:
        """(b, r, d) in reading order, of a map (b, d, h, w) or of tokens (b, l, d)."""
        if hidden.dim() == 4:
            return hidden.flatten(2).transpose(1, 2)
        patches = hidden[:, self._before :]
        if math.isqrt(patches.shape[1]) ** 2 != patches.shape[1]:
            raise UserError(
                f"{type(self.model).__name__} gives {patches.shape[1]} vectors that are no square of regions: choose "
                "`pool=avg`, or another network"
            )
        return patches


def _tokens_before_patches(model: PreTrainedModel) -> int:
    """How many tokens stand before those of the patches: [CLS], the distilled one, registers."""
    found = {name.rpartition(".")[2]: value for name, value in model.named_parameters()}
    tokens = [found[name] for name in _BEFORE_PATCHES if name in found]
    return sum(value.shape[1] if value.dim() == 3 else 1 for value in tokens)


def _configuration(folder: Path) -> tuple[Any, type[PreTrainedModel]]:
    """The configuration of the vision network in a folder, and its class. Raises UserError."""
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(f"{folder}: no config.json there: give the folder of an image network")
    check_files(folder)
    check_configuration(path)
    if "auto_map" in read_json(path):
        raise UserError(f"{path}: auto_map names code of its own, which is not run: choose a network of transformers")
    try:
        with quiet():
            config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:
        raise UserError(f"{folder}: cannot read config.json ({first_line(error)}): restore the file") from error
    architectures = config.architectures
    if config.model_type == "clip":
        width = config.projection_dim
        config = config.vision_config
        config.projection_dim = width
    elif config.model_type == "siglip":
        config = config.vision_config
    kind: Any = MODEL_MAPPING.get(type(config), None)
    if config.model_type == "clip_vision_model" and architectures != ["CLIPVisionModel"]:
        kind = CLIPVisionModelWithProjection
    if getattr(kind, "main_input_name", "") != "pixel_values":
        raise UserError(f"{folder}: {config.model_type} is no network that sees pictures alone: choose one that does")
    return config, kind


def _new(kind: type[PreTrainedModel], config: Any, folder: Path) -> PreTrainedModel:
    try:
        network: PreTrainedModel = kind._from_config(copy.deepcopy(config), dtype=torch.float32)
    except Exception as error:
        raise UserError(f"{folder}: cannot build this network ({first_line(error)}): check config.json") from error
    return network


def _random(kind: type[PreTrainedModel], config: Any, folder: Path) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]), quiet():
        torch.manual_seed(0)
        return _new(kind, config, folder)


def _pretrained(kind: type[PreTrainedModel], config: Any, folder: Path) -> PreTrainedModel:
    check_weight_types(folder)
    model: Any  # from_pretrained is typed as if it returned the model alone
    report: Any
    try:
        with torch.random.fork_rng(devices=[]), quiet():
            model, report = kind.from_pretrained(  # type: ignore[misc]
                folder,
                config=config,
                trust_remote_code=False,
                local_files_only=True,
                weights_only=True,
                dtype=torch.float32,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # which are told of below
            )
    except Exception as error:
        raise UserError(f"{folder}: cannot load the weights ({first_line(error)}): fetch the file again") from error
    missing = {name for name in report["missing_keys"] if not name.endswith("mask_token")}  # which no picture needs
    pooler = {name for name in missing if name.startswith("pooler.")}
    if missing - pooler or report["mismatched_keys"]:
        lost = sorted(map(str, (missing - pooler) | set(report["mismatched_keys"])))
        raise UserError(
            f"{folder}: the weights do not fit config.json ({len(lost)} parameters are missing or of another shape, "
            f"{lost[0]} first): use the two files of one network"
        )
    if pooler:  # classifiers are saved without one; at random it would tell nothing
        model.pooler = None
    reason = unusable({name: value for name, value in model.state_dict().items() if value.is_floating_point()})
    if reason:
        raise UserError(f"{folder}: weights that cannot be used ({reason}): fetch the file again")
    loaded: PreTrainedModel = model
    return loaded


def _recipe(folder: Path, model: PreTrainedModel) -> str:
    """All that the numbers depend on beside the weights: the configuration as it lies there."""
    values = read_json(folder / "config.json")
    if "vision_config" in values:
        values = {"projection_dim": values.get("projection_dim"), **values["vision_config"]}
    kept = {name: value for name, value in values.items() if name not in _BESIDE}
    pooled = "" if getattr(model, "pooler", True) is not None else ", without a pooler"
    return f"{type(model).__name__}{pooled} {json.dumps(kept, sort_keys=True)}"
