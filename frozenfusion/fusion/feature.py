"""Heads on the features of the modalities: one alone, concatenated, or combined into one vector."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from frozenfusion.fusion.base import FeatureHead, FusionHead, HeadInputs, HeadOutput, fill_missing, given, register_head
from frozenfusion.fusion.options import Space
from frozenfusion.utils.errors import UserError

ALPHAS = (0.1, 0.3, 0.5, 0.7, 0.9, "learned")  # that tuning tries


class _OneModality(FusionHead):
    """One modality alone: `x -> linear`."""

    def __init__(self, *, width: int, text_width: int, classes: int) -> None:
        super().__init__()
        self.missing_embedding = nn.Parameter(torch.zeros(width))
        self.classifier = nn.Linear(width, classes)

    def _classify(self, feature: Tensor | None, present: Tensor) -> HeadOutput:
        return HeadOutput(self.classifier(fill_missing(given(feature), present, self.missing_embedding)).float())


@register_head("text")
class TextHead(_OneModality):
    """The text alone: `t -> linear`, (b, d) -> (b, c). The image is neither read nor projected."""

    uses = frozenset({"text"})

    def forward(self, inputs: HeadInputs, *, attention: bool = False) -> HeadOutput:
        return self._classify(inputs.text, inputs.text_present)


@register_head("image")
class ImageHead(_OneModality):
    """The image alone: `v -> linear`, (b, d) -> (b, c). The text is neither read nor encoded."""

    uses = frozenset({"image"})

    def forward(self, inputs: HeadInputs, *, attention: bool = False) -> HeadOutput:
        return self._classify(inputs.image, inputs.image_present)


@register_head("concat")
class ConcatHead(FeatureHead):
    """The reference: `[t; v] -> linear`, (b, 2d) -> (b, c).

    Source: Example 10.1 of Meng & Ou, 2023.
    """

    def __init__(self, *, width: int, text_width: int, classes: int) -> None:
        super().__init__(width)
        self.classifier = nn.Linear(2 * width, classes)

    def forward(self, inputs: HeadInputs, *, attention: bool = False) -> HeadOutput:
        return HeadOutput(self.classifier(torch.cat(self.fill(inputs), dim=-1)).float())


@register_head("weighted")
class WeightedHead(FeatureHead):
    """Linear combination with the same weights for every pair: `alpha * t + beta * v -> linear`, (b, d) -> (b, c).

    alpha: a number in [0, 1], fixed, with beta = 1 - alpha (0.5 is the mean); or "learned", one pair of weights
    `alpha = sigmoid(a)`, `beta = sigmoid(b)`, each in [0, 1], that starts at the mean.
    parts: weights (b, 2).

    Source: linear combination at feature level, Meng & Ou, 2023, ch. 10.
    """

    search_space: ClassVar[Space] = {"alpha": ALPHAS}

    def __init__(self, *, width: int, text_width: int, classes: int, alpha: float | str = 0.5) -> None:
        super().__init__(width)
        self.scores = nn.Parameter(torch.zeros(2)) if alpha == "learned" else None
        self.alpha = 0.5 if alpha == "learned" else share(alpha)
        self.classifier = nn.Linear(width, classes)

    def weights(self) -> Tensor:
        """(2,): what text and image weigh."""
        if self.scores is None:
            return self.classifier.weight.new_tensor([self.alpha, 1 - self.alpha])
        return self.scores.sigmoid()

    def forward(self, inputs: HeadInputs, *, attention: bool = False) -> HeadOutput:
        text, image = self.fill(inputs)
        weights = self.weights()
        logits = self.classifier(weights[0] * text + weights[1] * image)
        return HeadOutput(logits.float(), {"weights": weights.expand(len(text), 2)})


@register_head("attention")
class AttentionHead(FeatureHead):
    """Linear combination with weights of each pair's own: `alpha * t + beta * v -> linear`, (b, d) -> (b, c).

    One additive attention over the two features x: `e = u . tanh(W x + w)`, `(alpha, beta) = softmax(e_t, e_v)`,
    so that alpha + beta = 1. W is (hidden, d), hidden 128.
    parts: weights (b, 2).

    Source: Bahdanau et al., 2015 (arXiv:1409.0473); over modalities: Hori et al., 2017 (arXiv:1701.03126).
    """

    search_space: ClassVar[Space] = {"hidden": (32, 64, 128, 256)}

    def __init__(self, *, width: int, text_width: int, classes: int, hidden: int = 128) -> None:
        super().__init__(width)
        if hidden < 1:
            raise UserError(f"hidden={hidden}: a width of one or more is needed")
        self.score = nn.Sequential(nn.Linear(width, hidden), nn.Tanh(), nn.Linear(hidden, 1, bias=False))
        self.classifier = nn.Linear(width, classes)

    def forward(self, inputs: HeadInputs, *, attention: bool = False) -> HeadOutput:
        features = torch.stack(self.fill(inputs), dim=1)  # (b, 2, d)
        weights = self.score(features).float().softmax(dim=1)  # (b, 2, 1)
        logits = self.classifier((weights * features).sum(dim=1))
        return HeadOutput(logits.float(), {"weights": weights.squeeze(-1)})


@register_head("gated")
class GatedHead(FeatureHead):
    """Gated multimodal unit, a weight for each dimension of each pair: (b, d) -> (b, c).

    `h_t = tanh(W_t t)`, `h_v = tanh(W_v v)`, `z = sigmoid(W_z [t; v])`, `h = z * h_t + (1 - z) * h_v -> linear`;
    W_t and W_v are (d, d), W_z is (d, 2d), all without bias.
    parts: weights (b, 2), the gate's mean over the dimensions.

    Source: Arevalo et al., 2017 (arXiv:1702.01992).
    """

    def __init__(self, *, width: int, text_width: int, classes: int) -> None:
        super().__init__(width)
        self.text = nn.Linear(width, width, bias=False)
        self.image = nn.Linear(width, width, bias=False)
        self.gate = nn.Linear(2 * width, width, bias=False)
        self.classifier = nn.Linear(width, classes)

    def forward(self, inputs: HeadInputs, *, attention: bool = False) -> HeadOutput:
        text, image = self.fill(inputs)
        gate = self.gate(torch.cat([text, image], dim=-1)).sigmoid()
        hidden = gate * self.text(text).tanh() + (1 - gate) * self.image(image).tanh()
        mean = gate.float().mean(dim=-1)
        return HeadOutput(self.classifier(hidden).float(), {"weights": torch.stack([mean, 1 - mean], dim=-1)})


def share(alpha: float | str) -> float:
    """A fixed weight in [0, 1]. Raises UserError for anything else."""
    try:
        number = float(alpha)
    except ValueError:
        number = float("nan")
    if not 0 <= number <= 1:
        raise UserError(f"`alpha={alpha}`: the weight of the text is a number from 0 to 1, or learned")
    return number
