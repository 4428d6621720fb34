"""The weights of a frozen network from a file: read as tensors alone, and held against what the network needs."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from frozenfusion.utils.errors import UserError
from frozenfusion.utils.messages import first_few, one_line
from frozenfusion.utils.tensors import is_real, unusable

State = dict[str, Tensor]


def read_weights(path: Path) -> Any:
    """What a .pth or .safetensors file of weights holds; nothing in it is run. Raises UserError."""
    if not path.is_file():
        raise UserError(f"`weights={path}`: no such file: give a .pth or .safetensors file, imagenet, or random")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"`weights={path}`: holds more than tensors, or is no PyTorch file, and was not run: save the network's"
            " state_dict() alone, best as .safetensors"
        ) from error
    except SafetensorError as error:
        raise UserError(f"`weights={path}`: not a whole safetensors file ({error}): fetch it again") from error
    except Exception as error:  # on damaged files torch.load raises nearly every kind of exception
        raise UserError(f"`weights={path}`: cannot be read ({one_line(error, 120)}): fetch it again") from error


def fitting(state: Any, expected: Mapping[str, Tensor], name: str, source: str) -> State:
    """`state` as float32, if it has the tensors of network `name` that are `expected`, and others only beside them.

    Raises UserError, naming the first differences, unless it does.
    """
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{source}: not a state dict of tensors: save the network's state_dict() alone")
    misshaped = [
        f"{key} {tuple(state[key].shape)} instead of {tuple(expected[key].shape)}"
        for key in expected.keys() & state.keys()
        if state[key].shape != expected[key].shape
    ]
    differences = {
        "missing": sorted(expected.keys() - state.keys()),
        "unexpected": sorted(state.keys() - expected.keys()),
        "of another shape": sorted(misshaped),
    }
    wrong = [f"{label}: {first_few(keys)}" for label, keys in differences.items() if keys]
    if wrong:
        raise UserError(f"{source}: not the weights of {name} ({'; '.join(wrong)}): check `backbone` and `weights`")
    strange = [key for key, value in state.items() if not is_real(value)]
    if strange:
        told = f"{strange[0]} is {state[strange[0]].dtype}, {state[strange[0]].layout}"
        raise UserError(
            f"{source}: not plain float weights ({told}): save the network's state_dict() as it was trained"
        )
    weights = {key: value.float() for key, value in state.items()}
    reason = unusable(weights)
    if reason:
        raise UserError(f"{source}: weights that cannot be used ({reason}): fetch the file again")
    return weights


def plain_state(state: Any) -> Any:
    """The state dict itself, out of a training checkpoint in which it has company, without DataParallel's prefix."""
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict):
        return state
    return {str(key).removeprefix("module."): value for key, value in state.items()}
