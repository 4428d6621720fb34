"""Heads that decide for each modality first and join the decisions: vote, max, linear, and the hybrid of both levels.

Each classifier learns from its own cross-entropy, over the pairs that have its modality, and knows nothing of the
others. Joined logits are log-probabilities, so that their softmax is the joined decision. Where one modality is missing
the other decides alone; where both are, all classes are equally likely.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from frozenfusion.fusion.base import (
    FeatureHead,
    FusionHead,
    HeadInputs,
    HeadOutput,
    given,
    log_of,
    probabilities,
    register_head,
)
from frozenfusion.fusion.feature import ALPHAS, share
from frozenfusion.fusion.options import Space


class DecisionHead(FusionHead):
    """A linear classifier per modality, (b, d) -> (b, c) each; `join` makes one decision of theirs.

    parts: text and image, each classifier's own logits (b, c).
    """

    learns_to_join = False  # whether `join` has parameters, which then learn from the joined decision

    def __init__(self, *, width: int, text_width: int, classes: int) -> None:
        super().__init__()
        self.text = nn.Linear(width, classes)
        self.image = nn.Linear(width, classes)

    def join(self, members: Tensor, present: Tensor) -> Tensor:
        """Joined probabilities (b, c) of members' probabilities (b, 2, c), of which present (b, 2) count."""
        raise NotImplementedError

    def forward(self, inputs: HeadInputs, *, attention: bool = False) -> HeadOutput:
        text = self.text(given(inputs.text)).float()
        image = self.image(given(inputs.image)).float()
        present = torch.stack([inputs.text_present, inputs.image_present], dim=1)
        # detached: how decisions are joined does not teach the classifiers
        joined = self.join(torch.stack([probabilities(text), probabilities(image)], dim=1).detach(), present)
        return HeadOutput(log_of(joined), {"text": text, "image": image}, present)

    def loss(self, output: HeadOutput, labels: Tensor, weight: Tensor | None = None) -> Tensor:
        """Sum of the modalities' cross-entropies, and of the joined decision's where the joining is learned."""
        present = given(output.present)
        text = self.cross_entropy(output.parts["text"], labels, weight, present[:, 0])
        image = self.cross_entropy(output.parts["image"], labels, weight, present[:, 1])
        joined = self.cross_entropy(output.logits, labels, weight) if self.learns_to_join else 0.0
        return text + image + joined


@register_head("vote")
class VoteHead(DecisionHead):
    """Each modality casts a vote, the majority decides, and the summed probabilities settle a tie.

    The joined probability of a class is half its share of the votes and half its mean probability. Among two voters its
    largest is always the voted class: a class without a vote has at most 1/2 of each voter, less than a vote is worth.

    Source: majority voting at decision level, Meng & Ou, 2023, ch. 10.
    """

    def join(self, members: Tensor, present: Tensor) -> Tensor:
        votes = torch.zeros_like(members).scatter_(-1, members.argmax(dim=-1, keepdim=True), 1.0)
        return (_mean(votes, present) + _mean(members, present)) / 2


@register_head("max")
class MaxHead(DecisionHead):
    """The larger probability of each class, `p_c ~ max(p_t,c, p_v,c)`, scaled to sum to one.

    Source: maximum at decision level, Meng & Ou, 2023, ch. 10; the max rule of Kittler et al., 1998.
    """

    def join(self, members: Tensor, present: Tensor) -> Tensor:
        largest = torch.where(present[..., None], members, 0.0).amax(dim=1)
        return _or_uniform(largest, present.any(dim=1))


@register_head("linear")
class LinearHead(DecisionHead):
    """Weighted sum of the probabilities: `p = alpha * p_t + (1 - alpha) * p_v`.

    alpha: a number in [0, 1], fixed (0.5 is the mean), or "learned": `alpha = sigmoid(a)`, starting at 0.5, learns from
    the cross-entropy of the joined decision.
    parts: also weights (b, 2).

    Source: linear combination at decision level, Meng & Ou, 2023, ch. 10.
    """

    search_space: ClassVar[Space] = {"alpha": ALPHAS}

    def __init__(self, *, width: int, text_width: int, classes: int, alpha: float | str = 0.5) -> None:
        super().__init__(width=width, text_width=text_width, classes=classes)
        self.learns_to_join = alpha == "learned"
        self.score = nn.Parameter(torch.zeros(())) if self.learns_to_join else None
        self.alpha = 0.5 if self.learns_to_join else share(alpha)

    def weights(self) -> Tensor:
        """(2,): what text and image weigh where both are present."""
        alpha = self.text.weight.new_tensor(self.alpha) if self.score is None else self.score.sigmoid()
        return torch.stack([alpha, 1 - alpha])

    def join(self, members: Tensor, present: Tensor) -> Tensor:
        # A weight counts only between two: a modality on its own decides, even one of weight 0.
        weights = torch.where(present.all(dim=1, keepdim=True), self.weights(), present.float())
        return _or_uniform((weights[..., None] * members).sum(dim=1), present.any(dim=1))

    def forward(self, inputs: HeadInputs, *, attention: bool = False) -> HeadOutput:
        output = super().forward(inputs)
        return output._replace(parts={**output.parts, "weights": self.weights().expand(len(output.logits), 2)})


@register_head("hybrid")
class HybridHead(FeatureHead):
    """Both levels: a classifier on `[t; v]` and one per modality, joined at decision level.

    `p = w_j * p_j + w_t * p_t + w_v * p_v` with `w = softmax(s)` over the classifiers whose modality is present (the
    feature-level one always is: it has embeddings for what is missing). The three scores s start equal and learn from
    the cross-entropy of the joined decision; each classifier learns from its own.
    parts: joint, text and image, each classifier's own logits (b, c).

    Source: hybrid fusion, Meng & Ou, 2023, ch. 10.
    """

    def __init__(self, *, width: int, text_width: int, classes: int) -> None:
        super().__init__(width)
        self.joint = nn.Linear(2 * width, classes)
        self.text = nn.Linear(width, classes)
        self.image = nn.Linear(width, classes)
        self.scores = nn.Parameter(torch.zeros(3))

    def forward(self, inputs: HeadInputs, *, attention: bool = False) -> HeadOutput:
        joint = self.joint(torch.cat(self.fill(inputs), dim=-1)).float()
        text = self.text(given(inputs.text)).float()
        image = self.image(given(inputs.image)).float()
        present = torch.stack([inputs.text_present, inputs.image_present], dim=1)
        counted = torch.cat([torch.ones_like(present[:, :1]), present], dim=1)  # (b, 3)
        weights = self.scores.float().expand(counted.shape).masked_fill(~counted, -torch.inf).softmax(dim=-1)
        members = torch.stack([probabilities(logits) for logits in (joint, text, image)], dim=1).detach()
        joined = (weights[..., None] * members).sum(dim=1)
        return HeadOutput(log_of(joined), {"joint": joint, "text": text, "image": image}, present)

    def loss(self, output: HeadOutput, labels: Tensor, weight: Tensor | None = None) -> Tensor:
        """Sum of the three classifiers' cross-entropies and the joined decision's."""
        parts, present = output.parts, given(output.present)
        return (
            self.cross_entropy(output.logits, labels, weight)
            + self.cross_entropy(parts["joint"], labels, weight)
            + self.cross_entropy(parts["text"], labels, weight, present[:, 0])
            + self.cross_entropy(parts["image"], labels, weight, present[:, 1])
        )


def _mean(members: Tensor, present: Tensor) -> Tensor:
    """Mean (b, c) over the present members (b, 2, c); uniform where none is."""
    return _or_uniform((members * present[..., None]).sum(dim=1), present.any(dim=1))


def _or_uniform(scores: Tensor, decided: Tensor) -> Tensor:
    """Scores (b, c) scaled to sum to one; uniform in the rows that nobody decided (b,)."""
    scores = torch.where(decided[:, None], scores, 1.0)
    return scores / scores.sum(dim=-1, keepdim=True)
