"""Adam and AdamW on the parameters in groups, each with a learning rate and a weight decay of its own."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from frozenfusion.model.network import PairNetwork
from frozenfusion.training.config import TrainConfig
from frozenfusion.training.schedule import learning_rate, warmed_up


def build_optimizer(model: PairNetwork, config: TrainConfig) -> torch.optim.Optimizer:
    """The optimiser of all that is trained; parameters that are treated alike are one group.

    adam is the reference's, whose weight decay is part of the gradient, of all parameters. adamw decays matrices alone,
    apart from the gradient (Loshchilov & Hutter, 2019, arXiv:1711.05101), and neither norms nor biases nor single
    vectors, as BERT was trained.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decays = config.optimizer == "adam" or parameter.dim() > 1
            key = highest_rate(config, text=_is_text(name)), config.weight_decay if decays else 0.0
            groups.setdefault(key, []).append(parameter)
    kind = torch.optim.Adam if config.optimizer == "adam" else torch.optim.AdamW
    parts = [
        {"params": parameters, "lr": rate, "weight_decay": decay, "highest": rate}
        for (rate, decay), parameters in groups.items()
    ]
    return kind(parts, lr=config.lr, weight_decay=config.weight_decay, fused=True)


def set_rates(optimizer: torch.optim.Optimizer, config: TrainConfig, epoch: int, done: float) -> None:
    """Set the learning rates of a step in `epoch` (1 is the first), of which it ends the part `done` in (0, 1]."""
    for group in optimizer.param_groups:
        group["lr"] = _rate(config, epoch, done, group["highest"])


def rates(model: PairNetwork, config: TrainConfig, epoch: int) -> dict[str, Any]:
    """The learning rates at the end of an epoch, as metrics.jsonl has them: the text encoder's where it is another."""
    text = any(_is_text(name) and parameter.requires_grad for name, parameter in model.named_parameters())
    found = {"lr": _rate(config, epoch, 1.0, highest_rate(config, text=False))}
    if text and highest_rate(config, text=True) != highest_rate(config, text=False):
        found["text_lr"] = _rate(config, epoch, 1.0, highest_rate(config, text=True))
    return found


def highest_rate(config: TrainConfig, *, text: bool) -> float:
    """The highest learning rate of the text encoder, or of all else."""
    own = config.text_lr if text else config.head_lr
    return config.lr if own is None else own


def _rate(config: TrainConfig, epoch: int, done: float, highest: float) -> float:
    rate = learning_rate(config.schedule, epoch=epoch, epochs=config.epochs, highest=highest)
    return rate * warmed_up(epoch - 1 + done, config.warmup)


def _is_text(name: str) -> bool:
    return name.startswith("text_encoder.")
