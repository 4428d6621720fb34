"""What the files of a pretrained network may say, checked before any of it is believed: they may come from anybody."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from frozenfusion.utils import fits
from frozenfusion.utils.errors import UserError
from frozenfusion.utils.files import MAX_JSON_BYTES, check_regular, read_json
from frozenfusion.utils.messages import shown

MOST_PARAMETERS = 2**32  # of a network
_WIDTHS = (
    *("hidden_size", "intermediate_size", "embedding_size", "vocab_size", "max_position_embeddings", "dim"),
    "rnn_width",
)
_STAGES = ("depths", "num_block_repeats")  # layers of each

# The ways to compute attention that are on this machine; any other name is fetched from the hub and run.
_ATTENTION = {None, "eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention"}
_OF_ATTENTION = ("attn_implementation", "_attn_implementation", "_attn_implementation_internal")


def check_configuration(path: Path) -> None:
    """Raise UserError for a config.json that would take all memory or time, or run what is not on this machine."""
    values = read_json(path)
    if not isinstance(values, dict):
        raise UserError(f"{path}: not the configuration of a network: restore the file")
    for part in _parts(values):
        _check_part(part, path)


def check_files(folder: Path) -> None:
    """Raise UserError for a pipe, a device or a huge file among those of a tokenizer or configuration."""
    for path in sorted(folder.glob("*")):
        if path.suffix in (".json", ".model", ".txt", ".jinja") and not path.is_dir():
            check_regular(path, MAX_JSON_BYTES)


def check_weight_types(folder: Path) -> None:
    """Raise UserError for weights that are complex numbers, of which only a half would be read.

    What cannot be read at all is left to who loads it.
    """
    for path, kinds in _weight_files(folder):
        for name, kind in kinds.items():
            if kind.startswith(("C", "torch.complex")):
                raise UserError(f"{path}: {name} is of complex numbers, which no network here is: fetch it again")


def weight_names(folder: Path) -> set[str]:
    """Names of all parameters in the weights of a folder, those that can be read."""
    return {name for _, kinds in _weight_files(folder) for name in kinds}


def _weight_files(folder: Path) -> Iterator[tuple[Path, dict[str, str]]]:
    """The files of weights that can be read, with their tensors' types by name."""
    for path in sorted([*folder.glob("*.safetensors"), *folder.glob("pytorch_model*.bin")]):
        check_regular(path)
        try:
            kinds = _types(path)
        except Exception:  # of a dozen kinds, by what is wrong with the file
            continue
        yield path, kinds


def _types(path: Path) -> dict[str, str]:
    if path.suffix == ".bin":
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        return {name: str(tensor.dtype) for name, tensor in state.items()}
    with safe_open(path, framework="pt") as file:
        return {name: str(file.get_slice(name).get_dtype()) for name in file.keys()}  # noqa: SIM118


def check_size(network: torch.nn.Module, path: Path) -> None:
    """Raise UserError for a network, built without memory, that no machine of ours would hold."""
    count = sum(parameter.numel() for parameter in network.parameters())
    if count > MOST_PARAMETERS:
        raise UserError(f"{path}: describes {count:,} parameters, more than any network here: check the file")


def _parts(values: Any) -> Iterator[Mapping[str, Any]]:
    """All objects in what JSON says, however deep."""
    waiting = [values]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            yield value
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value


def _few_stages(value: Any) -> bool:
    return not isinstance(value, list) or (all(map(fits.whole(), value)) and sum(value) <= fits.MOST_LAYERS)


def _check_part(part: Mapping[str, Any], path: Path) -> None:
    for name in _OF_ATTENTION:
        ways = part.get(name)
        for way in ways.values() if isinstance(ways, dict) else [ways]:
            if not (way is None or isinstance(way, str)) or way not in _ATTENTION:
                raise UserError(f"{path}: {name} is {shown(way)}, which is not on this machine: take it out")
    if part.get("quantization_config"):
        raise UserError(f"{path}: the network is quantised (quantization_config): choose it in float32 or bf16")
    sizes: dict[str, fits.Fit] = {name: fits.optional(fits.whole(1)) for name in _WIDTHS}
    sizes |= {f"{name}_coefficient": fits.optional(fits.number(0, 16)) for name in ("depth", "width")}
    sizes |= dict.fromkeys(_STAGES, _few_stages)
    wrong = fits.misfit(part, {**sizes, "num_labels": fits.optional(fits.whole(0, 2**16))})
    if not wrong and not fits.few_layers(part):
        wrong = f"more than {fits.MOST_LAYERS} layers"
    if wrong:
        raise UserError(f"{path}: {wrong}: restore the file")
