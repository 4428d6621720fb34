"""What a person sees of a training under way."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from frozenfusion.model.classifier import PairClassifier
from frozenfusion.model.network import count_parameters
from frozenfusion.training.inputs import TrainingInputs
from frozenfusion.utils.messages import printable, some_of
from frozenfusion.utils.progress import duration, log


def introduce(inputs: TrainingInputs, model: PairClassifier) -> None:
    """Say what is trained, on what, and what cannot be learned."""
    log.info("%s", inputs.summary())
    lacking = [*map(printable, inputs.classes_without_pairs)]
    if lacking:
        log.warning("no training pair is %s: the model cannot learn what that is", some_of(lacking))
    log.info(
        "%s: %s parameters are trained, on %s in %s",
        model.config.fusion,
        f"{count_parameters(model):,}",
        inputs.device,
        "float32" if inputs.autocast is None else str(inputs.autocast).removeprefix("torch."),
    )


def epoch_line(line: Mapping[str, Any], epochs: int, *, best: bool) -> str:
    """An epoch's figures in one line for a person."""
    told = f"epoch {line['epoch']}/{epochs}  lr {line['lr']:.2e}  {_figures(line, 'train')}"
    if line["val_loss"] is not None:
        told += f"  {_figures(line, 'val')} macro F1 {line['val_macro_f1']:.1%}"
    return f"{told}  {seconds(line['seconds'])}{'  best' if best else ''}"


def seconds(value: float) -> str:
    """A duration of an epoch: short ones with their parts of a second."""
    return f"{value:.2f}s" if value < 10 else duration(value)


def _figures(line: Mapping[str, Any], part: str) -> str:
    return f"{part} loss {line[f'{part}_loss']:.4f} accuracy {line[f'{part}_accuracy']:.1%}"
