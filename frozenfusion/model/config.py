"""What a model is: all that shapes it, as a run's config.json holds it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from frozenfusion.fusion.base import HEADS, FusionHead
from frozenfusion.fusion.registry import check_options, head_class, source_of, unsupported_reason
from frozenfusion.model.images import REGION_POOLS, check_region_pool
from frozenfusion.text.pooling import POOLER, TEXT_POOLS
from frozenfusion.utils import fits
from frozenfusion.utils.errors import UserError
from frozenfusion.utils.progress import log

DEFAULT_WIDTH = 768  # of a model without a text encoder: the reference's


@dataclass(frozen=True)
class ModelConfig:
    """All that shapes a PairClassifier; checked when it is made.

    Args:
        fusion: name of the fusion head; `head` is its class, looked up once.
        label_names: the classes, in the order of the logits.
        fusion_options: the head's own.
        text_encoder, text_weights, freeze_text, max_length: as TrainConfig has them.
        text_pool: how the tokens of a text become its vector, one of TEXT_POOLS.
        image_width: numbers of a cached image vector.
        image_regions: regions of a cached image, 0 on pooled features.
        image_dropout, modality_dropout: as TrainConfig has them.
        width: of text and image feature in the head; None is the head's own or else the text encoder's, so that only
            the image is projected.
        image_fingerprint: of the features that the model was trained on.
        image_weights: where the weights of their image network came from: imagenet, random, or a file.
        head_source: where the head's class comes from, nothing for those that are built in.
        region_pool, standardise_images: as TrainConfig has them.

    Raises:
        UserError: an unknown head, options that it does not take, features that cannot serve it.
    """

    fusion: str
    label_names: tuple[str, ...]
    fusion_options: dict[str, Any] = field(default_factory=dict)
    text_encoder: str = "albert-base-v2"
    text_weights: str = "pretrained"
    text_pool: str = POOLER
    freeze_text: bool = False
    max_length: int = 128
    image_width: int = 2560
    image_regions: int = 0
    image_dropout: float = 0.5
    width: int | None = None
    modality_dropout: float = 0.0
    image_fingerprint: dict[str, Any] = field(default_factory=dict)
    image_weights: str = ""
    head_source: dict[str, str] = field(default_factory=dict)
    region_pool: str = "mean"
    standardise_images: bool = False

    def __post_init__(self) -> None:
        check_options(self.head, self.fusion_options)
        if self.text_pool not in TEXT_POOLS:
            raise UserError(f"`text_pool` must be one of {', '.join(TEXT_POOLS)}, not {self.text_pool!r}")
        source = source_of(self.head)
        if self.head_source and _class_and_file(self.head_source) != _class_and_file(source):
            log.warning(
                "the fusion head %s was %s, and is %s here: predictions can differ",
                self.fusion,
                " of ".join(_class_and_file(self.head_source)),
                " of ".join(_class_and_file(source)),
            )
        reason = unsupported_reason(self.head, regions=self.image_regions)
        if reason:
            raise UserError(reason)
        check_region_pool(self.region_pool, self.image_regions, self.image_width)
        object.__setattr__(self, "head_source", source)

    @cached_property
    def head(self) -> type[FusionHead]:
        """The class of the fusion head."""
        if self.head_source and HEADS.get(self.fusion) is None:
            raise UserError(_where_from(self.fusion, self.head_source))
        return head_class(self.fusion)

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.label_names)

    @property
    def reads_text(self) -> bool:
        """Whether the head looks at the text."""
        return "text" in self.head.uses

    @property
    def pools_text(self) -> bool:
        """Whether the head looks at the one vector of a text, not at its tokens."""
        return self.reads_text and not self.head.needs_tokens

    @property
    def reads_image(self) -> bool:
        """Whether the head looks at the image."""
        return "image" in self.head.uses

    @property
    def reads_regions(self) -> bool:
        """Whether the model looks at the regions of an image that has any, and not at their mean."""
        return self.head.takes_regions or (self.reads_image and self.region_pool != "mean")

    def to_json(self) -> dict[str, Any]:
        """The configuration as JSON holds it."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: Any) -> ModelConfig:
        """The configuration that JSON holds. Raises ValueError for anything that is not one, and UserError."""
        names = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(values, dict) or not {"fusion", "label_names"} <= values.keys() <= names:
            raise ValueError("not the description of a model that this program can build")
        wrong = fits.misfit(values, _FITS)
        if wrong:
            raise ValueError(wrong)
        return cls(**{**values, "label_names": tuple(values["label_names"])})


_SHARE = fits.number(0, 1 - 2**-53)


def _options(value: Any) -> bool:
    return fits.scalars(value) and fits.few_layers(value)


# What each entry of a config.json may be.
_FITS: Mapping[str, fits.Fit] = {
    "fusion": fits.text,
    "label_names": lambda value: fits.texts(value) and 0 < len(set(value)) == len(value),
    "fusion_options": _options,
    "text_encoder": fits.text,
    "text_weights": fits.text,
    "text_pool": lambda value: value in TEXT_POOLS,
    "freeze_text": fits.flag,
    "max_length": fits.whole(1),
    "image_width": fits.whole(1),
    "image_regions": fits.whole(),
    "image_dropout": _SHARE,
    "width": fits.optional(fits.whole(1)),
    "modality_dropout": _SHARE,
    "image_fingerprint": fits.scalars,
    "image_weights": fits.text,
    "head_source": lambda value: fits.scalars(value) and all(map(fits.text, value.values())),
    "region_pool": lambda value: value in REGION_POOLS,
    "standardise_images": fits.flag,
}


def _class_and_file(source: Mapping[str, str]) -> tuple[str, str]:
    """What tells a class of a user's own, wherever its file lies."""
    return source.get("class", "built in"), Path(source.get("file", source.get("module", "this package"))).name


def _where_from(name: str, source: Mapping[str, str]) -> str:
    """What to import for a head that is not registered here; nothing that a run names is imported by itself."""
    told, module, file = f"class {source.get('class')}", source.get("module"), source.get("file")
    what = file if file and file.endswith(".py") else module
    return (
        f"the fusion head {name!r} is not registered here: it was the {told} of {file or module}: "
        f"import it first (commands: --import {what})"
    )
