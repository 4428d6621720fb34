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
from frozenfusion.text.pooling import AUTO, POOLER, listed_pool, pool_tokens
from frozenfusion.text.recurrent import RecurrentConfig, RecurrentEncoder
from frozenfusion.utils.configurations import (
    check_configuration,
    check_files,
    check_size,
    check_weight_types,
    weight_names,
)
from frozenfusion.utils.errors import UsageError, UserError
from frozenfusion.utils.hub import find_files, quiet
from frozenfusion.utils.messages import first_line
from frozenfusion.utils.progress import log
from frozenfusion.utils.tensors import unusable

AutoConfig.register(RecurrentConfig.model_type, RecurrentConfig, exist_ok=True)
AutoModel.register(RecurrentConfig, RecurrentEncoder, exist_ok=True)


class TextFeatures(NamedTuple):
    """What the text encoder makes of texts: pooled (b, d); tokens (b, l, d) and mask (b, l) bool, or None."""

    pooled: Tensor
    tokens: Tensor | None = None
    mask: Tensor | None = None


def encode(encoder: nn.Module, tokens: dict[str, Tensor], pool: str = POOLER) -> TextFeatures:
    """Run the encoder on input_ids, attention_mask and token_type_ids, (b, l) each.

    pool, one of TEXT_POOLS, says what pooled is; by default the pooled output (`outputs[1]` of the reference), or the
    first token of a model that has no pooler.
    """
    outputs = encoder(**{name: tokens[name] for name in _accepted(type(encoder)) if name in tokens})
    hidden, mask = outputs.last_hidden_state, tokens["attention_mask"].bool()
    pooled = getattr(outputs, "pooler_output", None) if pool == POOLER else None
    if pooled is None:
        pooled = pool_tokens(hidden, mask, "cls" if pool == POOLER else pool)
    return TextFeatures(pooled, hidden, mask)


def pooler_parameters(encoder: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters, by name, that make the pooled output of the hidden states."""
    return {name: parameter for name, parameter in encoder.named_parameters() if "pooler" in name}


def choose_pool(asked: str, name_or_path: str | Path, weights: str = "pretrained") -> str:
    """One of TEXT_POOLS for the text encoder of a hub name or a local folder: what is asked, or what suits if "auto".

    That is what a folder of sentence-transformers says; else the pooled output, but the mean of the tokens where the
    weights have no pooler. Raises UserError.
    """
    if asked not in (AUTO, POOLER):
        return asked
    folder = find_files(name_or_path, TEXT_ENCODER, weights=False)
    listed = listed_pool(folder) if asked == AUTO else None
    if listed is not None:
        return listed
    if weights == "pretrained" and _lacks_pooler(folder):
        told = f"{folder} has no weights for the pooled output"
        if asked == AUTO:
            log.info("%s: a text is the mean of its tokens (another `text_pool` changes that)", told)
            return "mean"
        log.warning("%s: it starts at random (`text_pool=auto` would choose the mean of the tokens)", told)
    return POOLER


def _lacks_pooler(folder: Path) -> bool:
    with torch.device("meta"):
        wanted = pooler_parameters(new_encoder(load_text_config(folder)))
    names = weight_names(folder)
    return not all(any(f".{name}".endswith(f".{own}") for name in names) for own in wanted)


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
