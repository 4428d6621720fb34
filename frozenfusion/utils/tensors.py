"""Tensors on the disk, as safetensors and never as pickle, and the digest that names them."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from frozenfusion.utils.errors import UserError
from frozenfusion.utils.files import check_regular, write_atomically

MEND = "restore it, or remove it and run again what made it"
CHECKSUM = "crc32"  # of all that a file holds, in its metadata


def weights_sha256(state: Mapping[str, Tensor], recipe: str = "") -> str:
    """SHA-256 of names, types, shapes and values: the same for the same weights, whatever file or device they are on.

    `recipe` is hashed in front: what the numbers depend on beside their values.
    """
    digest = hashlib.sha256(recipe.encode())
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file whole or not at all. Raises UserError where the disk says no."""
    # as bytes: safetensors' own writer reports a full disk as an error of its own, without the cause
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    about = {"format": "pt", **metadata}
    write_atomically(path, save(state, {**about, CHECKSUM: _checksum(state, about)}))


def check_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Raise UserError where a file's content is not what was written; files of version 0.1 carry no checksum."""
    about = dict(metadata)
    written = about.pop(CHECKSUM, None)
    if written is not None and written != _checksum(tensors, about):
        raise UserError(f"{path}: damaged (its checksum does not match): {MEND}")


def _checksum(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """CRC-32 of names, types, shapes, values and metadata."""
    crc = zlib.crc32(repr(sorted(metadata.items())).encode("utf-8", "backslashreplace"))
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        crc = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode(), crc)
        crc = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, crc)
    return f"{crc:08x}"


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file. Raises UserError for a missing or damaged one."""
    check_regular(path)
    try:
        tensors = load_file(path)
        check_tensors(path, tensors, read_metadata(path))
        return tensors
    except FileNotFoundError as error:
        raise UserError(f"{path}: no weights there: finish the training first, or check the path") from error
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: damaged, or not a safetensors file ({error}): {MEND}") from error


def is_whole(path: Path) -> bool:
    """Whether a safetensors file is there and holds what was written."""
    try:
        read_tensors(path)
    except UserError:
        return False
    return True


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file; nothing where it cannot be read. Raises UserError for a pipe."""
    check_regular(path)
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError):
        return {}


def fill(module: nn.Module, tensors: Mapping[str, Tensor], path: Path, own: Mapping[str, Tensor] | None = None) -> None:
    """Put `tensors`, read from `path`, into a module, of whose state they are to fill `own` (by default all).

    Raises UserError, naming the first difference, unless names and shapes are the same.
    """
    own = module.state_dict() if own is None else own
    difference = first_difference(tensors, own)
    if difference:
        raise UserError(f"{path}: weights of another architecture ({difference}): use those of this run")
    for name, tensor in tensors.items():
        if own[name].is_floating_point() and not is_real(tensor):
            raise UserError(f"{path}: {name} is of type {tensor.dtype}, which no parameter has: restore the file")
    module.load_state_dict(tensors, strict=False)


def is_real(tensor: Tensor) -> bool:
    """Whether a tensor holds plain numbers with a fraction, every one of them: none complex, sparse or quantised."""
    return tensor.is_floating_point() and tensor.layout == torch.strided and not tensor.is_meta


def unusable(state: Mapping[str, Tensor]) -> str | None:
    """Why float weights compute nothing: numbers that are not finite, or kernels that are all 0; None where they do."""
    for name, tensor in state.items():
        if not tensor.isfinite().all():
            return f"{name} holds numbers that are not finite"
    kernels = [tensor for tensor in state.values() if tensor.dim() > 1]
    return "all kernels are 0" if kernels and not any(tensor.any() for tensor in kernels) else None


def first_difference(there: Mapping[str, Tensor], here: Mapping[str, Tensor]) -> str | None:
    """Where two sets of tensors first differ in name or shape, in words; None where they do not."""
    for name in sorted(here.keys() | there.keys()):
        found, wanted = (tuple(side[name].shape) if name in side else "missing" for side in (there, here))
        if found != wanted:
            return f"{name} is {found} there, {wanted} here"
    return None
