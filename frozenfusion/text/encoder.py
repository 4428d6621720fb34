"""Text encoders: loaded from a folder or the hub, made from a configuration, run on tokens.

Shapes: b texts, l tokens, d hidden width.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedModel

from frozenfusion.text.kernels import use_fast_kernels
from frozenfusion.text.kind import TEXT_ENCODER
from frozenfusion.utils.configurations import check_configuration, check_files, check_size, check_weight_types
from frozenfusion.utils.errors import UsageError, UserError
from frozenfusion.utils.hub import find_files, quiet
from frozenfusion.utils.messages import first_line
from frozenfusion.utils.progress import log
from frozenfusion.utils.tensors import unusable


class TextFeatures(NamedTuple):
    """What the text encoder makes of texts: pooled (b, d); tokens (b, l, d) and mask (b, l) bool, or None."""

    pooled: Tensor
    tokens: Tensor | None = None
    mask: Tensor | None = None


def encode(encoder: nn.Module, tokens: dict[str, Tensor]) -> TextFeatures:
    """Run the encoder on input_ids, attention_mask and token_type_ids, (b, l) each.

    pooled is the pooled output (`outputs[1]` of the reference), or the first token of a model that has no pooler.
    """
    outputs = encoder(**{name: tokens[name] for name in _accepted(type(encoder)) if name in tokens})
    hidden = outputs.last_hidden_state
    pooled = getattr(outputs, "pooler_output", None)
    return TextFeatures(hidden[:, 0] if pooled is None else pooled, hidden, tokens["attention_mask"].bool())


def _accepted(encoder: type[nn.Module]) -> list[str]:
    parameters = inspect.signature(encoder.forward).parameters
    return [name for name in ("input_ids", "attention_mask", "token_type_ids") if name in parameters]


def load_text_encoder(name_or_path: str | Path, weights: str = "pretrained", seed: int = 0) -> PreTrainedModel:
    """The text encoder of a hub name or a local folder, in evaluation mode and float32.

    weights: "pretrained", or "random" to start from the configuration alone (seeded). Raises UserError.
    """
    folder = find_files(name_or_path, TEXT_ENCODER, weights=weights == "pretrained")
    config = load_text_config(folder)
    with torch.device("meta"):  # which takes no memory
        check_size(new_encoder(config), folder / "config.json")
    if weights != "random":
        check_weight_types(folder)
    with torch.random.fork_rng(devices=[]), quiet():
        torch.manual_seed(seed)  # also settles the parts that a pretrained file lacks
        encoder = new_encoder(config) if weights == "random" else _pretrained(folder, config)
    if "input_ids" not in _accepted(type(encoder)):
        raise UserError(f"{folder}: {type(encoder).__name__} does not read text: choose a text encoder")
    encoder.eval()
    return encoder


def load_text_config(folder: Path) -> Any:
    """The configuration of the text encoder in a folder. Raises UserError."""
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder}: no config.json there: give the folder of a text encoder")
    check_files(folder)
    check_configuration(folder / "config.json")
    try:
        with quiet():
            config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:
        raise UserError(f"{folder}: cannot read config.json ({first_line(error)}): restore the file") from error
    if getattr(config, "is_encoder_decoder", False):
        raise UserError(
            f"{folder}: {config.model_type} is an encoder-decoder: choose an encoder such as albert-base-v2"
        )
    return config


def new_encoder(config: Any) -> PreTrainedModel:
    """A text encoder of a configuration, its weights drawn from torch's random state, in float32. Raises UserError."""
    try:
        with quiet():
            encoder: PreTrainedModel = AutoModel.from_config(config, trust_remote_code=False, dtype=torch.float32)
    except Exception as error:
        raise UserError(
            f"{config.model_type}: cannot build this text encoder ({first_line(error)}): check config.json"
        ) from error
    use_fast_kernels(encoder)
    return encoder


def _pretrained(folder: Path, config: Any) -> PreTrainedModel:
    encoder: PreTrainedModel
    try:
        encoder, report = AutoModel.from_pretrained(
            folder,
            config=config,
            trust_remote_code=False,
            local_files_only=True,
            dtype=torch.float32,
            output_loading_info=True,
        )
    except Exception as error:
        raise UserError(
            f"{folder}: cannot load the text encoder's weights ({first_line(error)}): fetch the file again"
        ) from error
    missing = sorted(report["missing_keys"])
    lost = [name for name in missing if "pooler" not in name]
    if lost:
        raise UserError(
            f"{folder}: the weights do not fit config.json ({len(lost)} parameters are missing, {lost[0]} first): "
            "use the two files of one model"
        )
    reason = unusable(encoder.state_dict())
    if reason:
        raise UserError(f"{folder}: weights that cannot be used ({reason}): fetch the file again")
    if missing:
        log.warning("%s has no weights for the pooled output: it starts at random and is trained", folder)
    use_fast_kernels(encoder)
    return encoder


def longest_text(encoder: nn.Module) -> int | None:
    """How many tokens the encoder can read, or None where it has no limit."""
    for name, module in encoder.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            skipped = 0 if module.padding_idx is None else module.padding_idx + 1  # RoBERTa's positions start there
            return module.num_embeddings - skipped
    limit = getattr(encoder.config, "max_position_embeddings", None)
    return int(limit) if isinstance(limit, int) and limit > 0 else None


def check_max_length(encoder: nn.Module, max_length: int) -> None:
    """Raise UsageError where texts could get longer than the encoder can read."""
    limit = longest_text(encoder)
    if limit is not None and max_length > limit:
        raise UsageError(
            f"`max_length={max_length}`: the text encoder reads at most {limit} tokens: choose {limit} or less"
        )
