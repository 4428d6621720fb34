"""PairClassifier: text encoder + projected image feature + fusion head; how it is built, saved and loaded.

Shapes: b pairs, l tokens, r image regions, d hidden width, D image feature width, c classes.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn
from transformers import PreTrainedModel

from frozenfusion.errors import UserError
from frozenfusion.files import link_or_copy, read_json, write_atomically, write_json
from frozenfusion.fusion import Inputs, Output, build_head, head_class, why_not
from frozenfusion.text import (
    TextFeatures,
    check_max_length,
    encode,
    load_text_config,
    load_tokenizer,
    new_encoder,
    save_tokenizer,
    weights_digest,
)

FORMAT = 1
ENCODER_FILE = Path("text_encoder", "model.safetensors")  # weights of a frozen text encoder, within a run folder
DEFAULT_WIDTH = 768  # of a model without a text encoder: the reference's


@dataclass(frozen=True)
class ModelConfig:
    """All that shapes a PairClassifier, as it is written into config.json.

    image_regions is 0 on pooled image features. width is the width of text and image feature in the fusion head;
    None means the head's own or else the text encoder's, so that only the image is projected.
    """

    fusion: str
    label_names: tuple[str, ...]
    fusion_options: dict[str, Any] = field(default_factory=dict)
    text_encoder: str = "albert-base-v2"
    text_weights: str = "pretrained"
    freeze_text: bool = False
    max_length: int = 128
    image_width: int = 2560
    image_regions: int = 0
    image_dropout: float = 0.5
    width: int | None = None
    modality_dropout: float = 0.0
    image_fingerprint: dict[str, Any] = field(default_factory=dict)

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.label_names)

    @classmethod
    def from_json(cls, values: Any) -> ModelConfig:
        """The configuration that JSON holds. Raises ValueError for anything that is not one."""
        names = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(values, dict) or not {"fusion", "label_names"} <= values.keys() <= names:
            raise ValueError("not the description of a model that this program can build")
        return cls(**{**values, "label_names": tuple(values["label_names"])})


class PairClassifier(nn.Module):
    """Classify image–text pairs from tokens (or cached text features) and cached image features.

    The image path is the reference's `Dropout -> Linear(D, d)`; a text encoder of another width is projected as well.
    A modality that the head does not use is neither encoded nor projected.
    """

    def __init__(self, config: ModelConfig, text_encoder: PreTrainedModel | None, text_width: int) -> None:
        super().__init__()
        head = head_class(config.fusion)
        width = config.width or head.own_width or text_width
        pooled_text = "text" in head.uses and not head.needs_tokens
        self.config = dataclasses.replace(config, width=width)
        self.text_encoder = text_encoder if "text" in head.uses else None
        self.text_projection = nn.Linear(text_width, width) if pooled_text and text_width != width else nn.Identity()
        self.image_projection = (
            nn.Sequential(nn.Dropout(config.image_dropout), nn.Linear(config.image_width, width))
            if "image" in head.uses
            else None
        )
        self.head = build_head(
            config.fusion, width=width, text_width=text_width, classes=config.classes, **config.fusion_options
        )
        if config.freeze_text and self.text_encoder is not None:
            self.text_encoder.requires_grad_(False)

    def train(self, mode: bool = True) -> PairClassifier:
        """As in torch, but a frozen text encoder stays in evaluation mode."""
        super().train(mode)
        if self.config.freeze_text and self.text_encoder is not None:
            self.text_encoder.eval()
        return self

    def encode_text(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> TextFeatures:
        """Text features of tokens (b, l)."""
        if self.text_encoder is None:
            raise ValueError(f"the fusion head {self.config.fusion} has no text encoder")
        tokens = {"input_ids": input_ids, "attention_mask": attention_mask}
        if token_type_ids is not None:
            tokens["token_type_ids"] = token_type_ids
        return encode(self.text_encoder, tokens)

    def forward(
        self, text: Mapping[str, Tensor] | TextFeatures | None, image: Tensor | None, present: Tensor
    ) -> Tensor:
        """Logits (b, c), float32; see `outputs`."""
        return self.outputs(text, image, present).logits

    def outputs(
        self,
        text: Mapping[str, Tensor] | TextFeatures | None,
        image: Tensor | None,
        present: Tensor,
        *,
        attention: bool = False,
    ) -> Output:
        """All that the fusion head says of a batch.

        text: tokens as `TokenizedTexts.batch` gives them, or features; image: (b, D) or (b, r, D); present: (b, 2)
        bool, text and image. What the head does not use may be None. attention: maps over image regions as well.
        """
        if self.training and self.config.modality_dropout > 0:
            present = drop_modalities(present, self.config.modality_dropout)
        inputs = Inputs(None, None, present[:, 0], present[:, 1])
        if "text" in self.head.uses:
            inputs = self._with_text(inputs, text)
        if self.image_projection is not None:
            inputs = self._with_image(inputs, image)
        return self.head(inputs, attention=attention)

    def loss(self, output: Output, labels: Tensor, class_weights: Tensor | None = None) -> Tensor:
        """What training minimises: labels (b,) int64, -1 where unknown; class_weights (c,)."""
        return self.head.loss(output, labels, class_weights)

    def _with_text(self, inputs: Inputs, text: Mapping[str, Tensor] | TextFeatures | None) -> Inputs:
        if text is None:
            raise ValueError(f"the fusion head {self.config.fusion} needs the text")
        features = text if isinstance(text, TextFeatures) else self.encode_text(**text)
        if self.head.needs_tokens:
            return inputs._replace(text_tokens=features.tokens, text_mask=features.mask)
        return inputs._replace(text=self.text_projection(features.pooled))

    def _with_image(self, inputs: Inputs, image: Tensor | None) -> Inputs:
        if image is None or self.image_projection is None:
            raise ValueError(f"the fusion head {self.config.fusion} needs the image")
        if not self.head.takes_regions:
            pooled = image.mean(dim=1) if image.dim() == 3 else image
            return inputs._replace(image=self.image_projection(pooled))
        regions = self.image_projection(image if image.dim() == 3 else image[:, None])
        return inputs._replace(image=regions.mean(dim=1), image_regions=regions)


def drop_modalities(present: Tensor, p: float) -> Tensor:
    """Hide one modality, text or image, of complete pairs with probability p; present (b, 2) bool."""
    draw = torch.rand(len(present), 2, device=present.device)
    drop = present.all(dim=1) & (draw[:, 0] < p)
    first = draw[:, 1] < 0.5
    return present & ~torch.stack([drop & first, drop & ~first], dim=1)


def build_model(config: ModelConfig, text_encoder: PreTrainedModel | None, seed: int) -> PairClassifier:
    """A new model: the given text encoder (None only for heads that read no text), the rest drawn from the seed.

    Raises UserError where the head, its options, the image features or max_length do not fit together.
    """
    reason = why_not(config.fusion, regions=config.image_regions)
    if reason:
        raise UserError(reason)
    head = head_class(config.fusion)
    if "text" not in head.uses:
        text_encoder = None
    elif text_encoder is None:
        raise ValueError(f"the fusion head {config.fusion} needs a text encoder")
    text_width = DEFAULT_WIDTH if text_encoder is None else int(text_encoder.config.hidden_size)
    if text_encoder is not None:
        check_max_length(text_encoder, config.max_length)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return PairClassifier(config, text_encoder, text_width)


def count_parameters(model: nn.Module, *, trained: bool = True) -> int:
    """Number of the parameters that are trained, or of all."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad or not trained)


def save_model(model: PairClassifier, tokenizer: Any, folder: str | Path, **about: Any) -> None:
    """Write a run folder: all that `load_model` needs, on any machine. Raises UserError where the disk says no."""
    save_setup(model, tokenizer, folder, **about)
    save_weights(model, Path(folder) / "model.safetensors")


def save_setup(
    model: PairClassifier, tokenizer: Any, folder: str | Path, *, share: Path | None = None, **about: Any
) -> None:
    """Write what training does not change: config.json, tokenizer/, text_encoder/ (with its weights if frozen).

    share: another run folder; where it has the same frozen text encoder, its file gets a second name here instead of
    being written again. about: further entries of config.json.
    """
    folder = Path(folder)
    encoder = model.text_encoder
    if encoder is not None:
        write_atomically(folder / "text_encoder" / "config.json", encoder.config.to_json_string())
        if model.config.freeze_text:
            _save_frozen(encoder, folder / ENCODER_FILE, share and share / ENCODER_FILE)
    save_tokenizer(tokenizer, folder / "tokenizer")
    write_json(folder / "config.json", {"format": FORMAT, **about, "model": dataclasses.asdict(model.config)})


def save_weights(model: PairClassifier, path: str | Path) -> None:
    """Write the model's weights, those of a frozen text encoder left out, as safetensors. Raises UserError."""
    write_tensors(path, _own_state(model), {"model": json.dumps(dataclasses.asdict(model.config))})


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file whole or not at all. Raises UserError where the disk says no."""
    # as bytes: safetensors' own writer reports a full disk as an error of its own, without the cause
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_atomically(path, save(state, {"format": "pt", **metadata}))


def _own_state(model: PairClassifier) -> dict[str, Tensor]:
    frozen = "text_encoder." if model.config.freeze_text else None
    return {name: tensor for name, tensor in model.state_dict().items() if not (frozen and name.startswith(frozen))}


def _save_frozen(encoder: PreTrainedModel, path: Path, same: Path | None) -> None:
    digest = weights_digest(encoder)
    if same is not None and same.is_file() and _metadata(same).get("digest") == digest:
        if not (path.exists() and path.samefile(same)):
            link_or_copy(same, path)
    elif not (path.is_file() and _metadata(path).get("digest") == digest):
        write_tensors(path, encoder.state_dict(), {"digest": digest})


def load_model(folder: str | Path, weights: str = "model.safetensors") -> tuple[PairClassifier, Any]:
    """The model and the tokenizer of a run folder, in evaluation mode. Reads nothing outside the folder.

    Raises UserError for a folder that is no run, a damaged file, or weights of another architecture.
    """
    folder = Path(folder)
    config = load_config(folder)
    reads_text = "text" in head_class(config.fusion).uses
    for part in ("tokenizer", *(["text_encoder"] if reads_text else [])):
        if not (folder / part).is_dir():
            raise UserError(f"{folder / part}: not there: the run folder is not whole: copy all of it")
    encoder = None
    if reads_text:
        encoder = new_encoder(load_text_config(folder / "text_encoder"))
        if config.freeze_text:
            _fill(encoder, _read_tensors(folder / ENCODER_FILE), folder / ENCODER_FILE)
    model = build_model(config, encoder, seed=0)
    load_weights(model, folder / weights)
    return model.eval(), load_tokenizer(folder / "tokenizer")


def is_run(folder: str | Path) -> bool:
    """Whether `folder` is a run folder whose model reads text."""
    return (Path(folder) / "text_encoder" / "config.json").is_file()


def load_run_encoder(folder: str | Path) -> PreTrainedModel:
    """The text encoder that a run has fine-tuned, to start another training from. Raises UserError."""
    encoder = load_model(folder)[0].text_encoder
    assert encoder is not None  # is_run
    return encoder.requires_grad_(True)


def load_config(folder: str | Path) -> ModelConfig:
    """The configuration of the model in a run folder. Raises UserError."""
    path = Path(folder) / "config.json"
    values = read_json(path)
    found = values.get("format") if isinstance(values, dict) else None
    if found != FORMAT:
        raise UserError(f"{path}: not a run of this program (format {found}, not {FORMAT}): give a folder it made")
    try:
        return ModelConfig.from_json(values.get("model"))
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: {error}: restore the file") from error


def load_weights(model: PairClassifier, path: str | Path) -> None:
    """Put the weights of a safetensors file into the model. Raises UserError that names what differs."""
    path = Path(path)
    tensors = _read_tensors(path)
    try:
        written = json.loads(_metadata(path).get("model", "{}"))
    except ValueError:
        written = {}
    ours = json.loads(json.dumps(dataclasses.asdict(model.config)))
    differences = [
        f"{name} {written[name]} there, {ours[name]} here"
        for name in ("fusion", "fusion_options", "label_names", "image_width", "width", "text_encoder", "freeze_text")
        if name in written and written[name] != ours[name]
    ]
    if differences:
        raise UserError(f"{path}: weights of another model ({'; '.join(differences)}): use those of this run")
    _fill(model, tensors, path, _own_state(model))


def _fill(
    module: nn.Module, tensors: Mapping[str, Tensor], path: Path, own: Mapping[str, Tensor] | None = None
) -> None:
    own = module.state_dict() if own is None else own
    for name in sorted(own.keys() | tensors.keys()):
        there, here = (tuple(side[name].shape) if name in side else "missing" for side in (tensors, own))
        if there != here:
            raise UserError(
                f"{path}: weights of another architecture ({name} is {there} there, {here} here): use those of this run"
            )
    module.load_state_dict(tensors, strict=False)


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no weights there: finish the training first, or check the path") from error
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: damaged, or not a safetensors file ({error}): restore it") from error


def _metadata(path: Path) -> dict[str, str]:
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError):
        return {}
