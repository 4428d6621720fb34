"""The network of a model: text encoder + projected image feature + fusion head.

Shapes: b pairs, l tokens, r image regions, d hidden width, D image feature width, c classes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from frozenfusion.data.splits import Split
from frozenfusion.fusion.base import HeadInputs, HeadOutput
from frozenfusion.fusion.dropout import Dropout
from frozenfusion.fusion.registry import build_head
from frozenfusion.model.calibration import TemperatureScaling
from frozenfusion.model.config import ModelConfig
from frozenfusion.model.images import AttentionPool, Standardise
from frozenfusion.text.encoder import TextFeatures, encode, pooler_parameters
from frozenfusion.text.pooling import POOLER
from frozenfusion.utils.errors import UserError
from frozenfusion.vision.backbone import Backbone


class PairNetwork(nn.Module):
    """Logits of image–text pairs from tokens (or cached text features) and cached image features: see `outputs`.

    The image path is the reference's `Dropout -> Linear(D, d)`; a text encoder of another width is projected as well. A
    modality that the head does not use is neither encoded nor projected.

    Args:
        config: what shapes the model.
        text_encoder: None only for heads that read no text.
        text_width: width of the text encoder's outputs.
        tokenizer: what turns texts into tokens; needed to predict and to save.
    """

    def __init__(
        self,
        config: ModelConfig,
        text_encoder: PreTrainedModel | None,
        text_width: int,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> None:
        super().__init__()
        width = config.width or config.head.own_width or text_width
        self.config = dataclasses.replace(config, width=width)
        self.tokenizer = tokenizer
        self.image_weights: str | None = None  # another place for the image network's weights: see from_pretrained
        self.image_backbone: Backbone | None = None  # that network, once it was needed
        self.calibration: TemperatureScaling | None = None  # for probabilities, where one was fitted
        self.split: Split | None = None  # which pairs it was trained on, where that is known
        self.modality_dropout = config.modality_dropout  # 0 where the training drops before it asks
        self.text_encoder = text_encoder if config.reads_text else None
        self.text_projection = (
            nn.Linear(text_width, width) if config.pools_text and text_width != width else nn.Identity()
        )
        flat = config.image_regions if config.region_pool == "flatten" and not config.head.takes_regions else 1
        dropout = Dropout if config.head.takes_regions else nn.Dropout  # of so many numbers that it is worth it
        self.image_projection = (
            nn.Sequential(dropout(config.image_dropout), nn.Linear(flat * config.image_width, width))
            if config.reads_image
            else None
        )
        self.head = build_head(
            config.head, width=width, text_width=text_width, classes=config.classes, **config.fusion_options
        )
        self.region_pool = (
            AttentionPool(config.image_width)
            if config.reads_image and config.region_pool == "attention" and not config.head.takes_regions
            else None
        )
        self.standardise = Standardise(config.image_width) if config.reads_image and config.standardise_images else None
        if config.freeze_text and self.text_encoder is not None:
            self.text_encoder.requires_grad_(False)
        if self.text_encoder is not None and not (config.pools_text and config.text_pool == POOLER):
            for parameter in pooler_parameters(self.text_encoder).values():
                parameter.requires_grad_(False)  # no loss depends on it

    def train(self, mode: bool = True) -> PairNetwork:
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
        return encode(self.text_encoder, tokens, self.config.text_pool)

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
    ) -> HeadOutput:
        """All that the fusion head says of a batch.

        text: tokens as `TokenizedTexts.batch` gives them, or features; image: (b, D) or (b, r, D); present: (b, 2)
        bool, text and image. What the head does not use may be None. attention: maps over image regions as well.
        """
        if self.training and self.modality_dropout > 0:
            present = drop_modalities(present, self.modality_dropout)
        inputs = HeadInputs(None, None, present[:, 0], present[:, 1])
        if "text" in self.head.uses:
            inputs = self._with_text(inputs, text)
        if self.image_projection is not None:
            inputs = self._with_image(inputs, image)
        output: HeadOutput = self.head(inputs, attention=attention)
        wanted = len(present), self.config.classes
        if not isinstance(output, HeadOutput) or tuple(output.logits.shape) != wanted:
            found = tuple(output.logits.shape) if isinstance(output, HeadOutput) else type(output).__name__
            raise UserError(
                f"fusion head {self.config.fusion}: forward gave {found}, not a HeadOutput of {wanted} logits"
            )
        return output

    def loss(self, output: HeadOutput, labels: Tensor, class_weights: Tensor | None = None) -> Tensor:
        """What training minimises: labels (b,) int64, -1 where unknown; class_weights (c,)."""
        return self.head.loss(output, labels, class_weights)

    def _with_text(self, inputs: HeadInputs, text: Mapping[str, Tensor] | TextFeatures | None) -> HeadInputs:
        if text is None:
            raise ValueError(f"the fusion head {self.config.fusion} needs the text")
        features = text if isinstance(text, TextFeatures) else self.encode_text(**text)
        if self.head.needs_tokens:
            return inputs._replace(text_tokens=features.tokens, text_mask=features.mask)
        return inputs._replace(text=self.text_projection(features.pooled))

    def _with_image(self, inputs: HeadInputs, image: Tensor | None) -> HeadInputs:
        if image is None or self.image_projection is None:
            raise ValueError(f"the fusion head {self.config.fusion} needs the image")
        if self.standardise is not None:
            image = self.standardise(image)
        if not self.head.takes_regions:
            return inputs._replace(image=self.image_projection(self._pooled(image)))
        regions = self.image_projection(image if image.dim() == 3 else image[:, None])
        return inputs._replace(image=regions.mean(dim=1), image_regions=regions)

    def _pooled(self, image: Tensor) -> Tensor:
        """One vector of an image's regions, (b, r, D) -> (b, D) or (b, r * D); of what is one vector, itself."""
        if image.dim() == 2:
            return image
        if self.region_pool is not None:
            pooled: Tensor = self.region_pool(image)
            return pooled
        return image.flatten(1) if self.config.region_pool == "flatten" else image.mean(dim=1)


def drop_modalities(present: Tensor, p: float, generator: torch.Generator | None = None) -> Tensor:
    """Hide one modality, text or image, of complete pairs with probability p; present (b, 2) bool."""
    draw = torch.rand(len(present), 2, device=present.device, generator=generator)
    drop = present.all(dim=1) & (draw[:, 0] < p)
    first = draw[:, 1] < 0.5
    return present & ~torch.stack([drop & first, drop & ~first], dim=1)


def count_parameters(model: nn.Module, *, trained: bool = True) -> int:
    """Number of the parameters that are trained, or of all."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad or not trained)
