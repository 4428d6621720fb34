"""Heads that read the modalities as sequences: a Transformer over both, and attention of each over the other.

They work in a width of their own, much narrower than the text encoder's: a few thousand pairs do not fill more, wider
ones lose their way at a learning rate that suits the other heads, and these train in seconds on a CPU. All blocks are
pre-norm, which trains without a warm-up.
"""

from __future__ import annotations

from typing import ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from frozenfusion.fusion.base import NOTHING, FusionHead, HeadInputs, HeadOutput, given, register_head
from frozenfusion.fusion.dropout import Dropout, dropout
from frozenfusion.fusion.options import Range, Space
from frozenfusion.utils.errors import UserError


class MultiHeadAttention(nn.Module):
    """Scaled dot-product attention, `softmax(Q K' / sqrt(d / heads)) V` in each of several heads.

    Source: Vaswani et al., 2017 (arXiv:1706.03762).
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        if heads < 1 or width % heads:
            raise UserError(f"a width of {width} is not a multiple of heads={heads}: change one of them")
        self.heads, self.dropout = heads, dropout
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(self, queries: Tensor, context: Tensor, mask: Tensor) -> Tensor:
        """(b, q, d) of queries (b, q, d) over context (b, k, d), where mask (b, k) is True."""
        query, key, value = self._split(queries, context)
        allowed = mask[:, None, None]
        if self.training and query.device.type == "cpu":  # torch has no faster way there with dropout
            scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
            weights = (scores + torch.where(allowed, 0.0, -torch.inf)).softmax(dim=-1)
            mixed = dropout(weights, self.dropout) @ value
        else:
            mixed = F.scaled_dot_product_attention(
                query, key, value, allowed, dropout_p=self.dropout if self.training else 0.0
            )
        attended: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return attended

    def weights(self, queries: Tensor, context: Tensor, mask: Tensor) -> Tensor:
        """(b, q, k): what each query takes from each key, mean of the heads, in float32."""
        query, key, _ = self._split(queries, context)
        scores: Tensor = (query @ key.transpose(-1, -2)).float() / query.shape[-1] ** 0.5
        return scores.masked_fill(~mask[:, None, None], -torch.inf).softmax(dim=-1).mean(dim=1)

    def _split(self, queries: Tensor, context: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        key, value = self.key_value(context).chunk(2, dim=-1)
        parts = (self.query(queries), key, value)
        query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        return query, key, value  # (b, heads, length, d / heads)


class Block(nn.Module):
    """Pre-norm attention and feed-forward layer: `x + attend(x, y)`, then `x + W2 gelu(W1 x)`, 4 * d wide."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.attention = MultiHeadAttention(width, heads, dropout)
        self.norm = nn.LayerNorm(width)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, 4 * width),
            nn.GELU(),
            Dropout(dropout),
            nn.Linear(4 * width, width),
        )
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, context: Tensor, mask: Tensor) -> Tensor:
        """x (b, q, d) over a normalised context (b, k, d), where mask (b, k) is True."""
        x = x + self.dropout(self.attention(self.norm(x), context, mask))
        output: Tensor = x + self.dropout(self.feed_forward(x))
        return output

    def weights(self, x: Tensor, context: Tensor, mask: Tensor) -> Tensor:
        """(b, q, k): what x takes from the context, mean of the heads."""
        return self.attention.weights(self.norm(x), context, mask)


class SequenceHead(FusionHead):
    """Text tokens projected to the width of the image regions; a learned token for a missing modality."""

    needs_tokens = True
    takes_regions = True
    own_width = 128
    search_space: ClassVar[Space] = {"layers": (1, 2, 3), "heads": (4, 8), "dropout": Range(0.0, 0.5)}

    def __init__(self, *, width: int, text_width: int, layers: int) -> None:
        super().__init__()
        if layers < 1:
            raise UserError(f"layers={layers}: one or more are needed")
        self.project_text = nn.Linear(text_width, width)
        self.text_missing_embedding = nn.Parameter(torch.empty(width).normal_(std=0.02))
        self.image_missing_embedding = nn.Parameter(torch.empty(width).normal_(std=0.02))

    def sequences(self, inputs: HeadInputs) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Text (b, l, d) with its mask (b, l), image (b, r, d) with its mask (b, r).

        A missing modality is its embedding in the first place and masked elsewhere.
        """
        text, regions = self.project_text(given(inputs.text_tokens)), given(inputs.image_regions)
        every = torch.ones(regions.shape[:2], dtype=torch.bool, device=regions.device)
        text, text_mask = _fill(text, given(inputs.text_mask), inputs.text_present, self.text_missing_embedding)
        image, image_mask = _fill(regions, every, inputs.image_present, self.image_missing_embedding)
        return text, text_mask, image, image_mask


def _fill(x: Tensor, mask: Tensor, present: Tensor, missing_embedding: Tensor) -> tuple[Tensor, Tensor]:
    first = torch.arange(x.shape[1], device=x.device) == 0
    x = torch.where(present[:, None, None], x, missing_embedding.to(x.dtype))
    return x, torch.where(present[:, None], mask, first)


@register_head("transformer")
class TransformerHead(SequenceHead):
    """A Transformer encoder over `[CLS], text tokens, image tokens`; its `[CLS]` -> norm -> linear.

    Text tokens (b, l, text_width) are projected to the width of the image tokens (b, r, d), and both get their
    modality's embedding; padding is masked. r is 1 on pooled image features, 49 on the regions of B7 at 224. The text
    encoder has put position into its tokens already, and regions are a set.
    parts: attention (b, r), what [CLS] takes from each region in the last layer, mean of the heads.

    Source: the Transformer encoder as fusion step, Meng & Ou, 2023, ch. 10; modality embeddings as in VisualBERT,
    Li et al., 2019 (arXiv:1908.03557); pre-norm, Xiong et al., 2020 (arXiv:2002.04745).
    """

    def __init__(
        self,
        *,
        width: int,
        text_width: int,
        classes: int,
        layers: int = 2,
        heads: int = 8,
        dropout: float = 0.1,
    ) -> None:
        super().__init__(width=width, text_width=text_width, layers=layers)
        self.cls = nn.Parameter(torch.empty(width).normal_(std=0.02))
        self.modality = nn.Parameter(torch.empty(2, width).normal_(std=0.02))
        self.blocks = nn.ModuleList(Block(width, heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.classifier = nn.Linear(width, classes)

    def forward(self, inputs: HeadInputs, *, attention: bool = False) -> HeadOutput:
        text, text_mask, image, image_mask = self.sequences(inputs)
        cls = self.cls.to(text.dtype).expand(len(text), 1, -1)
        x = torch.cat([cls, text + self.modality[0], image + self.modality[1]], dim=1)
        mask = torch.cat([torch.ones_like(text_mask[:, :1]), text_mask, image_mask], dim=1)
        *blocks, last = cast(list[Block], list(self.blocks))
        for block in blocks:
            x = block(x, block.norm(x), mask)
        cls, context = x[:, :1], last.norm(x)  # of the last layer only [CLS] is read, so only it is computed
        parts = {"attention": last.weights(cls, context, mask)[:, 0, -image.shape[1] :]} if attention else NOTHING
        return HeadOutput(self.classifier(self.norm(last(cls, context, mask)[:, 0])).float(), parts)


@register_head("cross-attention")
class CrossAttentionHead(SequenceHead):
    """Text tokens attend over image regions, and regions over text tokens; the two readings are concatenated.

    `T' = block(T over V)`, `V' = block(V over T)`, `[T'_1; mean of V'] -> norm -> linear`, (b, 2d) -> (b, c),
    where T'_1 is the text's first token. It needs region features: over one pooled vector the softmax is constant.
    parts: attention (b, r), what the text's first token takes from each region in the last layer, mean of the heads.

    Source: co-attention as in ViLBERT, Lu et al., 2019 (arXiv:1908.02265).
    """

    needs_regions = True

    def __init__(
        self,
        *,
        width: int,
        text_width: int,
        classes: int,
        layers: int = 1,
        heads: int = 8,
        dropout: float = 0.1,
    ) -> None:
        super().__init__(width=width, text_width=text_width, layers=layers)
        self.text_blocks = nn.ModuleList(Block(width, heads, dropout) for _ in range(layers))
        self.image_blocks = nn.ModuleList(Block(width, heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(2 * width)
        self.classifier = nn.Linear(2 * width, classes)

    def forward(self, inputs: HeadInputs, *, attention: bool = False) -> HeadOutput:
        text, text_mask, image, image_mask = self.sequences(inputs)
        blocks = cast(list[tuple[Block, Block]], list(zip(self.text_blocks, self.image_blocks, strict=True)))
        parts = NOTHING
        for number, (over_image, over_text) in enumerate(blocks, 1):
            # a block's norm serves its own queries and what the other block attends over
            seen_text, seen_image = over_image.norm(text), over_text.norm(image)
            if number == len(blocks):
                text = text[:, :1]  # of the last layer only the first text token is read, so only it is computed
                if attention:
                    parts = {"attention": over_image.weights(text, seen_image, image_mask)[:, 0]}
            text, image = over_image(text, seen_image, image_mask), over_text(image, seen_text, text_mask)
        regions = (image * image_mask[..., None]).sum(dim=1) / image_mask.sum(dim=1, keepdim=True)
        return HeadOutput(self.classifier(self.norm(torch.cat([text[:, 0], regions], dim=-1))).float(), parts)
