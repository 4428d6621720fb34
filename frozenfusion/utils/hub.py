"""Find the files of a pretrained network: in a local folder, in the hub's cache on this machine, or on the hub."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import (
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from frozenfusion.utils.errors import UserError
from frozenfusion.utils.messages import one_line
from frozenfusion.utils.progress import log

WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_BELOW = ["[!1]*/*", "1[!_]*/*"]  # folders of a model, but for 1_Pooling of sentence-transformers
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclass(frozen=True)
class Kind:
    """A kind of network: the option that names one, and the files it needs.

    Args:
        option: of the library.
        needed: beside the weights; of each group one file.
        by_hand: of a hub name, what messages tell to get.
        without_weights: how to start without pretrained weights.
    """

    option: str
    needed: tuple[tuple[str, ...], ...]
    by_hand: Callable[[str], str]
    without_weights: str


def settled(name_or_path: str) -> str:
    """A network's name such that the same network has the same: of what is here its whole path, else as given."""
    path = Path(name_or_path).expanduser()
    return os.path.realpath(path) if path.exists() else name_or_path


def find_files(name_or_path: str | Path, kind: Kind, *, weights: bool, revision: str | None = None) -> Path:
    """The folder of a network's files, with or without its weights: as given, or what the hub has under a name.

    `revision` is a branch, tag or commit of the hub. Raises UserError, with the files to get by hand where the hub
    cannot be reached.
    """
    folder = Path(name_or_path).expanduser()
    if folder.is_dir():
        if weights and not _has(folder, WEIGHT_FILES):
            raise UserError(
                f"{folder}: no weights there (model.safetensors or pytorch_model.bin): "
                f"put them there, or start from scratch with {kind.without_weights}"
            )
        return folder
    if folder.exists():
        raise UserError(f"`{kind.option}={folder}`: not a folder: give the folder that holds config.json")
    if not _HUB_NAME.fullmatch(str(name_or_path)):
        raise UserError(f"`{kind.option}={folder}`: no such folder: check the path")
    return _from_hub(str(name_or_path), kind, weights, revision)


def _from_hub(name: str, kind: Kind, weights: bool, revision: str | None) -> Path:
    """The files of a hub model, from its cache on this machine if all are there. Asks the network once at most."""
    wanted = ["*.json", "*.model", "*.txt"]
    try:
        folder = Path(huggingface_hub.snapshot_download(name, revision=revision, local_files_only=True))
        if _complete(folder, kind, weights):
            return folder
    except LocalEntryNotFoundError:
        pass
    except HFValidationError as error:
        raise UserError(f"`{kind.option}={name}`: no such folder, and no name of the hub: check it") from error
    log.info("fetching %s from the Hugging Face hub", name)
    try:
        for more in ([], *([["model*.safetensors"], ["pytorch_model*.bin"]] if weights else [])):
            here = huggingface_hub.snapshot_download(
                name, revision=revision, allow_patterns=wanted + more, ignore_patterns=_BELOW
            )
            folder = Path(here)
            if _complete(folder, kind, weights):
                return folder
    except RevisionNotFoundError as error:
        raise UserError(f"`revision={revision}`: {name} has no such branch, tag or commit: check it") from error
    except RepositoryNotFoundError as error:
        raise UserError(
            f"`{kind.option}={name}`: neither a folder here nor a public model on the Hugging Face hub: check the name"
        ) from error
    except Exception as error:  # the network, the hub, the disk: what to do is the same
        raise _not_fetched(name, kind, revision, one_line(error.__cause__ or error)) from error
    # offline, snapshot_download settles for a part
    raise _not_fetched(name, kind, revision, "not all of them are there")


def _complete(folder: Path, kind: Kind, weights: bool) -> bool:
    return all(_has(folder, names) for names in (*kind.needed, *([WEIGHT_FILES] if weights else [])))


def _has(folder: Path, names: Sequence[str]) -> bool:
    return any((folder / name).exists() for name in names)


def _not_fetched(name: str, kind: Kind, revision: str | None, cause: str) -> UserError:
    return UserError(
        f"`{kind.option}={name}`: its files are not on this machine and could not be fetched from the Hugging Face hub "
        f"({cause}): get {kind.by_hand(name)} from https://huggingface.co/{name}/tree/{revision or 'main'} by hand, "
        f"into one folder, and give it as `{kind.option}=FOLDER`"
    )


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers and torch from talking about what they load: our own messages say what matters."""
    from transformers.utils import logging as chatter

    verbosity, bars = chatter.get_verbosity(), chatter.is_progress_bar_enabled()
    chatter.set_verbosity_error()
    chatter.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        chatter.set_verbosity(verbosity)
        if bars:
            chatter.enable_progress_bar()
