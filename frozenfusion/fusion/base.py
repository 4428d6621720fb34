"""What every fusion head is: its inputs, its output, its loss, and the registry that names it.

A head is one class. It is a `torch.nn.Module` whose constructor takes `width`, `text_width`, `classes` and its own
options as keywords, and whose `forward` turns `HeadInputs` into an `HeadOutput`::

    @register_head("product")
    class Product(FeatureHead):
        '''Element-wise product of text and image: `(t * v) -> linear`.'''

        def __init__(self, *, width: int, text_width: int, classes: int) -> None:
            super().__init__(width)
            self.classifier = nn.Linear(width, classes)

        def forward(self, inputs: HeadInputs, *, attention: bool = False) -> HeadOutput:
            text, image = self.fill(inputs)
            return HeadOutput(self.classifier(text * image))

Shapes: b pairs, l tokens, r image regions, d hidden width, c classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import ClassVar, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from frozenfusion.fusion.options import Space
from frozenfusion.utils.errors import UsageError
from frozenfusion.utils.plugins import Registry

MODALITIES = ("text", "image")

NOTHING: Mapping[str, Tensor] = MappingProxyType({})


class HeadInputs(NamedTuple):
    """What a head sees. Modalities that the head does not use, or that nobody has, are None."""

    text: Tensor | None  # (b, d) the text feature, for heads without needs_tokens
    image: Tensor | None  # (b, d) the projected image feature (the mean where there are regions)
    text_present: Tensor  # (b,) bool
    image_present: Tensor  # (b,) bool
    text_tokens: Tensor | None = None  # (b, l, text_width), for heads with needs_tokens
    text_mask: Tensor | None = None  # (b, l) bool, False at padding
    image_regions: Tensor | None = None  # (b, r, d), for heads with takes_regions; r is 1 on pooled features


class HeadOutput(NamedTuple):
    """What a head says: joined logits (b, c) in float32, and parts of the way there.

    parts: `text`, `image` and, in a hybrid, `joint` are each classifier's own logits (b, c) before they are joined;
    `weights` (b, 2) what text and image weighed; `attention` (b, r) how much each image region was looked at.
    """

    logits: Tensor
    parts: Mapping[str, Tensor] = NOTHING
    present: Tensor | None = None  # (b, 2) bool: which pairs had a text, an image; for losses per modality


class FusionHead(nn.Module):
    """Base of all heads: what joins text and image features (b, d) into logits (b, c).

    The constructor takes `width` (d), `text_width` (of text tokens) and `classes` (c) as keywords, and the head's own
    options with their defaults.

    Attributes:
        uses: the modalities that the head looks at; the model computes no other.
        needs_tokens: the head reads the text token by token, not its pooled feature.
        takes_regions: the head reads each image region where there are any; other heads see their mean.
        needs_regions: the head makes no sense on one pooled image vector.
        search_space: what tuning tries of its own options, as in `{"layers": (1, 2), "dropout": Range(0, 0.5)}`.
        own_width: the width it works in unless the model's configuration says otherwise; None is the text encoder's.
        label_smoothing, focal: what `cross_entropy` does while training; set by the training, 0 is the plain one.
        over_processes: mean over the processes that train together; set by the training, None of one alone.
    """

    name: ClassVar[str]
    uses: ClassVar[frozenset[str]] = frozenset({"text", "image"})
    needs_tokens: ClassVar[bool] = False
    takes_regions: ClassVar[bool] = False
    needs_regions: ClassVar[bool] = False
    own_width: ClassVar[int | None] = None
    search_space: ClassVar[Space] = MappingProxyType({})
    label_smoothing: float = 0.0
    focal: float = 0.0
    over_processes: Callable[[Tensor], Tensor] | None = None

    def forward(self, inputs: HeadInputs, *, attention: bool = False) -> HeadOutput:
        """Join the modalities; `attention` asks for maps over image regions, where the head has any."""
        raise NotImplementedError

    def loss(self, output: HeadOutput, labels: Tensor, weight: Tensor | None = None) -> Tensor:
        """Mean cross-entropy of the joined logits; labels (b,) int64, -1 where unknown; weight (c,) per class."""
        return self.cross_entropy(output.logits, labels, weight)

    def cross_entropy(
        self, logits: Tensor, labels: Tensor, weight: Tensor | None, present: Tensor | None = None
    ) -> Tensor:
        """`cross_entropy`, smoothed or focal in training mode alone: what is measured is the plain one."""
        changes = {"smoothing": self.label_smoothing, "focal": self.focal} if self.training else {}
        return cross_entropy(logits, labels, weight, present, over_processes=self.over_processes, **changes)


class FeatureHead(FusionHead):
    """A head on the features of both modalities, with a learned embedding for a missing one.

    The embeddings start at zero, so that a missing modality at first adds nothing.
    """

    def __init__(self, width: int, text_width: int | None = None) -> None:
        super().__init__()
        self.text_missing_embedding = nn.Parameter(torch.zeros(text_width or width))
        self.image_missing_embedding = nn.Parameter(torch.zeros(width))

    def fill(self, inputs: HeadInputs) -> tuple[Tensor, Tensor]:
        """The features (b, d) of text and image, embeddings where a modality is missing."""
        text = fill_missing(given(inputs.text), inputs.text_present, self.text_missing_embedding)
        image = fill_missing(given(inputs.image), inputs.image_present, self.image_missing_embedding)
        return text, image


def given(feature: Tensor | None) -> Tensor:
    """The feature, which the caller of the head owes it."""
    if feature is None:
        raise ValueError("the head needs what it was not given: a feature, or the `present` of its own output")
    return feature


def fill_missing(feature: Tensor, present: Tensor, vector: Tensor) -> Tensor:
    """`feature` (b, d) with `vector` (d,) in the rows that are not present (b,)."""
    return torch.where(present[:, None], feature, vector.to(feature.dtype))


def cross_entropy(
    logits: Tensor,
    labels: Tensor,
    weight: Tensor | None,
    present: Tensor | None = None,
    *,
    smoothing: float = 0.0,
    focal: float = 0.0,
    over_processes: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Mean cross-entropy, in float32, over the labelled rows that are present; zero where there is none.

    smoothing: what of a label's probability is spread over all classes (Szegedy et al., 2016, arXiv:1512.00567).
    focal: gamma of `(1 - p)^gamma`, by which a row of which the model is sure weighs less (Lin et al., 2017,
    arXiv:1708.02002).
    over_processes: the mean of a number over processes, each of which has some of the rows; then the mean of what
    these return is that of all rows.
    """
    counted = labels >= 0 if present is None else (labels >= 0) & present
    wanted = labels.masked_fill(~counted, -1)
    if focal:
        each = F.cross_entropy(logits.float(), wanted, ignore_index=-1, reduction="none")  # -log p of the label
        unsure = (-torch.expm1(-each)).clamp_min(torch.finfo(torch.float32).eps)  # powers below 1 are steep at 0
        each = unsure**focal * each
        total = (each if weight is None else each * weight[labels.clamp_min(0)]).sum()
    else:
        total = F.cross_entropy(
            logits.float(), wanted, weight=weight, ignore_index=-1, reduction="sum", label_smoothing=smoothing
        )
    shares = (counted.float() if weight is None else counted * weight[labels.clamp_min(0)]).sum()
    if over_processes is not None:
        shares = over_processes(shares)
    return total / shares.clamp_min(torch.finfo(torch.float32).tiny)  # no branch: a GPU need not wait for it


def probabilities(logits: Tensor) -> Tensor:
    """Softmax over the classes, in float32."""
    return logits.float().softmax(dim=-1)


def log_of(joined: Tensor) -> Tensor:
    """Logarithm of joined probabilities (b, c), finite also where one is zero."""
    return joined.clamp_min(torch.finfo(torch.float32).tiny).log()


Head = TypeVar("Head", bound=type[FusionHead])

BUILT_IN = (
    *("text", "image", "concat", "weighted", "attention", "gated", "vote", "max", "linear", "hybrid"),
    *("transformer", "cross-attention"),
)
HEADS: Registry[type[FusionHead]] = Registry("fusion head", "frozenfusion.heads")


def register_head(name: str) -> Callable[[Head], Head]:
    """Class decorator that makes a head a value of `head` (`--fusion` on the command line) under `name`.

    The class is a FusionHead: see there. Raises UsageError for a name that is taken, or that could not stand for a
    folder, and for anything else than such a class.
    """
    if not isinstance(name, str):
        raise UsageError("register_head takes the head's name, as in @register_head('product')")

    def add(head: Head) -> Head:
        if not (isinstance(head, type) and issubclass(head, FusionHead)):
            raise UsageError(f"fusion head {name!r}: register a subclass of FusionHead or FeatureHead, not {head!r}")
        if name in BUILT_IN and not head.__module__.startswith("frozenfusion."):
            raise UsageError(f"fusion head {name!r} is built in: choose another name")
        HEADS.add(name, head, head)
        head.name = name
        return head

    return add
