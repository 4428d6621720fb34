"""Find the files of a text encoder: in a local folder, in the hub's cache on this machine, or on the hub."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError

from frozenfusion.utils.errors import UserError
from frozenfusion.utils.messages import one_line
from frozenfusion.utils.progress import log

TOKENIZER_FILES = ("tokenizer.json", "spiece.model", "sentencepiece.bpe.model", "spm.model", "vocab.txt", "vocab.json")
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_DOWNLOAD_SIZES = {"albert-base-v2": "47 MB", "albert/albert-base-v2": "47 MB"}  # where we know them
_BELOW = ["[!1]*/*", "1[!_]*/*"]  # folders of a model, but for 1_Pooling of sentence-transformers
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


def settled(name_or_path: str) -> str:
    """A text encoder's name such that the same encoder has the same: of what is here its whole path, else as given."""
    path = Path(name_or_path).expanduser()
    return os.path.realpath(path) if path.exists() else name_or_path


def find_files(name_or_path: str | Path, *, weights: bool) -> Path:
    """The folder of a text encoder's files, with or without its weights: as given, or what the hub has under a name.

    Raises UserError, with the files to get by hand where the hub cannot be reached.
    """
    folder = Path(name_or_path).expanduser()
    if folder.is_dir():
        if weights and not _has(folder, WEIGHT_FILES):
            raise UserError(
                f"{folder}: no weights there (model.safetensors or pytorch_model.bin): "
                "put them there, or start from scratch with `text_weights=random`"
            )
        return folder
    if folder.exists():
        raise UserError(f"`text_encoder={folder}`: not a folder: give the folder that holds config.json")
    if not _HUB_NAME.fullmatch(str(name_or_path)):
        raise UserError(f"`text_encoder={folder}`: no such folder: check the path")
    return _from_hub(str(name_or_path), weights)


def _from_hub(name: str, weights: bool) -> Path:
    """The files of a hub model, from its cache on this machine if all are there. Asks the network once at most."""
    wanted = ["*.json", "*.model", "*.txt"]
    try:
        folder = Path(huggingface_hub.snapshot_download(name, local_files_only=True))
        if _complete(folder, weights):
            return folder
    except LocalEntryNotFoundError:
        pass
    except HFValidationError as error:
        raise UserError(f"`text_encoder={name}`: no such folder, and no name of the hub: check it") from error
    log.info("fetching %s from the Hugging Face hub", name)
    try:
        for kind in ([], *([["model*.safetensors"], ["pytorch_model*.bin"]] if weights else [])):
            here = huggingface_hub.snapshot_download(name, allow_patterns=wanted + kind, ignore_patterns=_BELOW)
            folder = Path(here)
            if _complete(folder, weights):
                return folder
    except RepositoryNotFoundError as error:
        raise UserError(
            f"`text_encoder={name}`: neither a folder here nor a public model on the Hugging Face hub: check the name"
        ) from error
    except Exception as error:  # the network, the hub, the disk: what to do is the same
        raise _not_fetched(name, one_line(error.__cause__ or error)) from error
    raise _not_fetched(name, "not all of them are there")  # offline, snapshot_download settles for a part


def _complete(folder: Path, weights: bool) -> bool:
    parts = [("config.json",), TOKENIZER_FILES, *([WEIGHT_FILES] if weights else [])]
    return all(_has(folder, names) for names in parts)


def _has(folder: Path, names: Sequence[str]) -> bool:
    return any((folder / name).exists() for name in names)


def _not_fetched(name: str, cause: str) -> UserError:
    return UserError(
        f"`text_encoder={name}`: its files are not on this machine and could not be fetched from the Hugging Face hub "
        f"({cause}): get {_files(name)} from https://huggingface.co/{name}/tree/main by hand, into one folder, and "
        "give it as `text_encoder=FOLDER`"
    )


def _files(name: str) -> str:
    tokenizer = "spiece.model (or tokenizer.json)" if "albert" in name else "tokenizer.json"
    size = f" (about {_DOWNLOAD_SIZES[name]})" if name in _DOWNLOAD_SIZES else ""
    return f"config.json, {tokenizer} and model.safetensors{size}"
