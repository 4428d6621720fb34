"""What a training leaves on the disk, so that a kill at any moment costs at most the running epoch.

A checkpoint is one safetensors file that is replaced whole: the trained parameters, the optimiser's state and, as
JSON in its header, the figures of every epoch so far and what the run was made from. It alone says how far a run is;
all other files follow from it or are only used once it names them.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from frozenfusion.errors import UserError
from frozenfusion.files import link_or_copy, read_json, write_atomically, write_json, writing
from frozenfusion.model import PairClassifier, save_weights, write_tensors

FORMAT = 1
MODEL = "model/"  # prefix of the model's own tensors in a checkpoint
Epoch = Mapping[str, Any]  # one line of metrics.jsonl

_OWN = {"config.json", "split.json", "tokenizer", "text_encoder", "checkpoint.safetensors", "metrics.jsonl"}
_OWN |= {"model.safetensors", "last.safetensors", "learning_rate.png", "curves.png", "summary.json"}


@dataclass(frozen=True)
class RunFolder:
    """Where the files of one training lie."""

    path: Path

    @property
    def config(self) -> Path:
        """Options and architecture."""
        return self.path / "config.json"

    @property
    def checkpoint(self) -> Path:
        """Everything that training needs to go on."""
        return self.path / "checkpoint.safetensors"

    @property
    def model(self) -> Path:
        """Parameters of the best epoch, once the run is finished."""
        return self.path / "model.safetensors"

    @property
    def last(self) -> Path:
        """Parameters of the last epoch, once the run is finished."""
        return self.path / "last.safetensors"

    @property
    def metrics(self) -> Path:
        """One JSON line an epoch."""
        return self.path / "metrics.jsonl"

    @property
    def summary(self) -> Path:
        """What came out, written last of all: without it a run is not finished."""
        return self.path / "summary.json"

    def best(self, epoch: int) -> Path:
        """Parameters of the best epoch so far, while the run goes on."""
        return self.path / f"best-{epoch:02d}.safetensors"

    def numbered(self, epoch: int) -> Path:
        """Parameters that are kept every few epochs."""
        return self.path / f"epoch-{epoch:02d}.safetensors"

    def is_finished(self, epochs: int) -> bool:
        """Whether the run was brought to its end after so many epochs."""
        return self.summary.exists() and read_json(self.summary).get("epochs") == epochs

    def check_free(self) -> None:
        """Raise UserError if the folder holds what no run of ours left there."""
        if not self.path.exists():
            return
        if self.config.exists():
            values = read_json(self.config)
            foreign = [] if isinstance(values, dict) and "options" in values else [self.config.name]
        else:
            with writing(self.path):
                foreign = sorted(entry.name for entry in os.scandir(self.path) if not _is_own(entry.name))
        if foreign:
            raise UserError(f"{self.path}: holds other files ({foreign[0]}): choose another --run")

    def sweep_up(self) -> None:
        """Remove what an interrupted write left half done."""
        for leftover in self.path.glob(".*.tmp*"):
            with contextlib.suppress(OSError):
                leftover.unlink()


def _is_own(name: str) -> bool:
    return name in _OWN or name.startswith((".", "best-", "epoch-")) or name.endswith(".lock")


@dataclass
class State:
    """How far a run is: the figures of its epochs, and what it was made from, name by name."""

    made_from: Mapping[str, Any]
    history: list[Epoch] = field(default_factory=list)

    @property
    def epochs(self) -> int:
        """Epochs done."""
        return len(self.history)

    @property
    def best(self) -> int:
        """The epoch of the highest validation accuracy, ties by the lower validation loss; else the last."""
        if not self.history or self.history[-1]["val_accuracy"] is None:
            return self.epochs
        return int(max(self.history, key=lambda line: (line["val_accuracy"], -line["val_loss"]))["epoch"])


def commit(folder: RunFolder, state: State, model: PairClassifier, optimizer: torch.optim.Optimizer) -> None:
    """Make the epoch that just ended count. Raises UserError where the disk refuses: then the one before counts."""
    done = state.epochs
    if state.best == done:
        save_weights(model, folder.best(done))
    header = json.dumps({"format": FORMAT, "made_from": state.made_from, "history": state.history})
    write_tensors(folder.checkpoint, _tensors(model, optimizer), {"state": header})
    write_metrics(folder, state)
    for old in folder.path.glob("best-*.safetensors"):
        if old != folder.best(state.best):
            old.unlink(missing_ok=True)


def write_metrics(folder: RunFolder, state: State) -> None:
    """Write metrics.jsonl anew, as the checkpoint says."""
    write_atomically(folder.metrics, "".join(json.dumps(line) + "\n" for line in state.history))


def read_state(folder: RunFolder) -> State | None:
    """How far the run in a folder is, without reading parameters; None if it has no finished epoch."""
    if not folder.checkpoint.exists():
        return None
    with _opened(folder.checkpoint) as file:
        try:
            header = json.loads((file.metadata() or {})["state"])
            if header["format"] != FORMAT:
                raise UserError(
                    f"{folder.checkpoint}: format {header['format']}, and this program reads {FORMAT}: "
                    "go on with the program that made it, or choose another --run"
                )
            return State(header["made_from"], header["history"])
        except (KeyError, TypeError, ValueError) as error:
            raise _damaged(folder.checkpoint, error) from error


def restore(folder: RunFolder, model: PairClassifier, optimizer: torch.optim.Optimizer) -> None:
    """Put the parameters and the optimiser's state of the checkpoint into the model and the optimiser.

    Raises UserError, naming the first difference, if it is the checkpoint of another model.
    """
    with _opened(folder.checkpoint) as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    wanted = _tensors(model)
    for name in sorted(wanted.keys() | {name for name in tensors if name.startswith(MODEL)}):
        here, there = (tuple(side[name].shape) if name in side else "missing" for side in (wanted, tensors))
        if here != there:
            raise UserError(
                f"{folder.checkpoint}: belongs to another model ({name.removeprefix(MODEL)} is {there} there, "
                f"{here} here): choose another --run"
            )
    model.load_state_dict({name.removeprefix(MODEL): tensors[name] for name in wanted}, strict=False)
    moments: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        part, _, parameter = name.partition("/")
        if f"{part}/" != MODEL:
            moments.setdefault(parameter, {})[part] = tensor
    state = {place: moments[name] for place, name in enumerate(_trained(model)) if name in moments}
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def finish(folder: RunFolder, state: State, model: PairClassifier, summary: Mapping[str, Any]) -> None:
    """Leave the run as its user finds it: best and last parameters, and the summary that says it is finished."""
    save_weights(model, folder.last)
    link_or_copy(folder.best(state.best), folder.model)
    write_json(folder.summary, summary)


def _trained(model: PairClassifier) -> dict[str, torch.nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def _tensors(model: PairClassifier, optimizer: torch.optim.Optimizer | None = None) -> dict[str, Tensor]:
    """All that changes while training: MODEL/name of parameters and buffers, part/name of the optimiser's state."""
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    tensors = {MODEL + name: value for name, value in model.state_dict().items() if name not in frozen}
    if optimizer is not None:
        for name, parameter in _trained(model).items():
            for part, value in optimizer.state.get(parameter, {}).items():
                tensors[f"{part}/{name}"] = value
    return tensors


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> UserError:
    return UserError(f"{path}: damaged ({error}): restore it, or remove the run folder to begin anew")
