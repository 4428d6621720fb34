"""PairClassifier: text encoder + projected image feature + fusion head; how it is built, saved and loaded.

Shapes: b pairs, l tokens, r image regions, d hidden width, D image feature width, c classes.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModel

from frozenfusion.errors import UserError
from frozenfusion.files import read_json, replacing, write_json
from frozenfusion.fusion import FUSION_HEADS, Inputs, Output, build_head, why_not
from frozenfusion.text import (
    TextFeatures,
    check_max_length,
    encode,
    load_text_config,
    load_tokenizer,
    quiet,
    weights_digest,
)

FORMAT = 1
DEFAULT_WIDTH = 768


@dataclass(frozen=True)
class ModelConfig:
    """All that shapes a PairClassifier, as it is written into config.json.

    image_regions is 0 on pooled image features. width is the width of text and image feature in the fusion head;
    None means the text encoder's own, so that only the image is projected.
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


class PairClassifier(nn.Module):
    """Classify image–text pairs from tokens (or cached text features) and cached image features.

    The image path is the reference's `Dropout -> Linear(D, d)`; a text encoder of another width is projected as well.
    A modality that the head does not use is neither encoded nor projected.
    """

    def __init__(self, config: ModelConfig, text_encoder: nn.Module | None, text_width: int) -> None:
        super().__init__()
        head = FUSION_HEADS[config.fusion]
        width = config.width or text_width
        self.config = config
        self.text_encoder = text_encoder if "text" in head.uses else None
        self.text_projection = (
            nn.Linear(text_width, width) if "text" in head.uses and text_width != width else nn.Identity()
        )
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
        inputs = inputs._replace(text=self.text_projection(features.pooled))
        if not self.head.needs_tokens:
            return inputs
        return inputs._replace(text_tokens=features.tokens, text_mask=features.mask)

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


def build_model(config: ModelConfig, text_encoder: nn.Module | None, seed: int) -> PairClassifier:
    """A new model: the given text encoder (None only for heads that read no text), the rest drawn from the seed.

    Raises UserError where the head, its options, the image features or max_length do not fit together.
    """
    reason = why_not(config.fusion, regions=config.image_regions)
    if reason:
        raise UserError(reason)
    if text_encoder is None and "text" in FUSION_HEADS[config.fusion].uses:
        raise ValueError(f"the fusion head {config.fusion} needs a text encoder")
    if text_encoder is not None:
        check_max_length(text_encoder, config.max_length)
    text_width = DEFAULT_WIDTH if text_encoder is None else int(text_encoder.config.hidden_size)
    config = dataclasses.replace(config, width=config.width or text_width)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return PairClassifier(config, text_encoder, text_width)


def count_parameters(model: nn.Module, *, trained: bool = True) -> int:
    """Number of parameters, or of the trained ones."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trained)


def save_model(model: PairClassifier, tokenizer: Any, folder: str | Path, **about: Any) -> None:
    """Write all that `load_model` needs into a run folder: weights, tokenizer, configurations."""
    save_setup(model, tokenizer, folder, **about)
    save_weights(model, Path(folder) / "model.safetensors")


def save_setup(
    model: PairClassifier, tokenizer: Any, folder: str | Path, *, share: Path | None = None, **about: Any
) -> None:
    """Write what stays the same while training: config.json, tokenizer/, text_encoder/ (with weights if frozen)."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder / "tokenizer")
    if model.text_encoder is not None:
        model.text_encoder.config.save_pretrained(folder / "text_encoder")
    write_json(folder / "config.json", {"format": FORMAT, **about, "model": dataclasses.asdict(model.config)})


def save_weights(model: PairClassifier, path: str | Path) -> None:
    """Write the model's weights as safetensors, atomically."""
    with replacing(path) as temporary:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}, temporary)


def load_model(folder: str | Path, weights: str = "model.safetensors") -> tuple[PairClassifier, Any]:
    """The model and the tokenizer of a run folder, in evaluation mode. Needs nothing but the folder.

    Raises UserError for a folder that is no run, a damaged file, or weights of another architecture.
    """
    folder = Path(folder)
    written = read_json(folder / "config.json")["model"]
    config = ModelConfig(**{**written, "label_names": tuple(written["label_names"])})
    encoder = None
    if (folder / "text_encoder").is_dir():
        with quiet():
            encoder = AutoModel.from_config(load_text_config(folder / "text_encoder"))
    model = build_model(config, encoder, seed=0)
    load_weights(model, folder / weights)
    return model.eval(), load_tokenizer(folder / "tokenizer")


def load_weights(model: PairClassifier, path: str | Path) -> None:
    """Put the weights of a safetensors file into the model. Raises UserError that names what differs."""
    try:
        state = load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: cannot read the weights ({error}): restore the file") from error
    model.load_state_dict(state)


_ = (os, shutil, safe_open, weights_digest)
