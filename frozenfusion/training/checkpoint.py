"""What a training leaves on the disk, so that a kill at any moment costs at most the running epoch.

A checkpoint is one safetensors file that is replaced whole: the trained parameters, the optimiser's state and, as
JSON in its header, the figures of every epoch so far and what the run was made from. It alone says how far a run is;
all other files follow from it or are only used once it names them.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from frozenfusion.model.checksums import with_checksum, write_checksums
from frozenfusion.model.classifier import PairClassifier
from frozenfusion.model.run_folder import CHECKPOINTS, RunFolder, checked_history
from frozenfusion.model.saving import current_name, save_weights
from frozenfusion.text.pooling import POOLER
from frozenfusion.training.config import TrainConfig
from frozenfusion.utils import fits
from frozenfusion.utils.errors import UserError
from frozenfusion.utils.files import check_regular, link_or_copy, parse_json, write_atomically, write_json, writing
from frozenfusion.utils.messages import shown
from frozenfusion.utils.tensors import check_tensors, first_difference, is_whole, write_tensors

FORMAT = 1
HEAD_OPTIONS, TEXT_POOL = "--head-option", "--text-pool"  # among what a run is made from
MODEL = "model/"  # prefix of the model's own tensors in a checkpoint
Epoch = Mapping[str, Any]  # one line of metrics.jsonl


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

    def ended(self, config: TrainConfig) -> bool:
        """Whether all epochs are done, or so many without a better one that the training stops early."""
        return self.epochs >= config.epochs or 0 < config.patience <= self.epochs - self.best


def commit(folder: RunFolder, state: State, model: PairClassifier, optimizer: torch.optim.Optimizer) -> None:
    """Make the epoch that just ended count. Raises UserError where the disk refuses: then the one before counts."""
    done = state.epochs
    if state.best == done and not folder.figures_only:
        save_weights(model, folder.best(done))
    write_tensors(folder.checkpoint, _tensors(model, optimizer), _header(state))
    write_metrics(folder, state)
    _remove_superseded(folder, state)


def _header(state: State) -> dict[str, str]:
    return {"state": json.dumps({"format": FORMAT, "made_from": state.made_from, "history": state.history})}


def write_metrics(folder: RunFolder, state: State) -> None:
    """Write metrics.jsonl anew, as the checkpoint says."""
    write_atomically(folder.file("metrics.jsonl"), "".join(json.dumps(line) + "\n" for line in state.history))


def read_state(folder: RunFolder) -> State | None:
    """How far the run in a folder is, without reading parameters; None if it has no finished epoch."""
    if not folder.checkpoint.exists():
        return None
    path = folder.checkpoint
    with _opened(path) as file:
        header = parse_json((file.metadata() or {}).get("state", "{}"), path)
    wrong = fits.misfit(header, {"made_from": fits.mapping}, ("format", "made_from", "history"))
    if wrong:
        raise _damaged(path, wrong)
    if header["format"] != FORMAT:
        raise UserError(
            f"{path}: format {shown(header['format'])}, and this program reads {FORMAT}: "
            "resume with the program that made it, or choose another `run`"
        )
    # runs of version 0.1 knew no options of a head's own but alpha, and one pooling
    return State({HEAD_OPTIONS: {}, TEXT_POOL: POOLER, **header["made_from"]}, checked_history(header["history"], path))


def restore(folder: RunFolder, model: PairClassifier, optimizer: torch.optim.Optimizer) -> None:
    """Put the parameters and the optimiser's state of the checkpoint into the model and the optimiser.

    Raises UserError, naming the first difference, if it is the checkpoint of another model.
    """
    with _opened(folder.checkpoint) as file:
        # copies: the file is mapped, and Windows would not replace it as long as anybody looks into it
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        check_tensors(folder.checkpoint, tensors, file.metadata() or {})
    if not tensors:
        raise UserError(
            f"{folder.path}: a trial that is finished, of which no parameters were kept: choose another `run`"
        )
    wanted, own = _tensors(model), model.state_dict()
    tensors = {_current(name, own): tensor for name, tensor in tensors.items()}
    fixed = {MODEL + name for name in own} - wanted.keys()  # what earlier checkpoints hold of a pooler without a use
    held = {name: of for name, of in tensors.items() if name.startswith(MODEL) and name not in fixed}
    difference = first_difference(held, wanted)
    if difference:
        told = difference.removeprefix(MODEL)
        raise UserError(f"{folder.checkpoint}: belongs to another model ({told}): choose another `run`")
    model.load_state_dict({name.removeprefix(MODEL): tensors[name] for name in wanted}, strict=False)
    moments: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        part, _, parameter = name.partition("/")
        if f"{part}/" != MODEL:
            moments.setdefault(parameter, {})[part] = tensor
    for name, parameter in _trained(model).items():
        if name in moments and not _are_moments(moments[name], parameter):
            raise _damaged(folder.checkpoint, f"the optimiser's state of {name} is not Adam's")
    inside = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    places = {parameter: place for place, parameter in enumerate(inside)}
    state = {places[id(of)]: moments[name] for name, of in _trained(model).items() if name in moments}
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def finish(folder: RunFolder, state: State, model: PairClassifier, summary: Mapping[str, Any]) -> None:
    """Leave the run as its user finds it: best and last parameters, and the summary that says it is finished.

    Raises UserError where the best parameters are lost or damaged, wherever they were.
    """
    if folder.figures_only:
        write_json(folder.summary_file, with_checksum(summary))
        forget_parameters(folder, state)
        return
    save_weights(model, folder.weights("last"))
    _find_best(folder, state, model)
    link_or_copy(folder.best(state.best), folder.weights("best"))
    _remove_superseded(folder, state)  # what is left where the last epoch's commit was cut short
    write_checksums(folder.path)
    write_json(folder.summary_file, with_checksum(summary))


def forget_parameters(folder: RunFolder, state: State) -> None:
    """Leave of a finished run what tells of it; its checkpoint holds the figures and no parameters from now on."""
    write_tensors(folder.checkpoint, {}, _header(state))
    for path in [*map(folder.weights, CHECKPOINTS), *folder.path.glob("best-*"), *folder.path.glob("epoch-*")]:
        with writing(path):
            path.unlink(missing_ok=True)


def _find_best(folder: RunFolder, state: State, model: PairClassifier) -> None:
    """Put the best epoch's parameters, if they are lost or damaged, back from where else they are."""
    best, other = folder.best(state.best), folder.weights("best")
    if is_whole(best):
        return
    if state.best == state.epochs:
        save_weights(model, best)
    elif _is_of(folder.summary, state) and is_whole(other):
        link_or_copy(other, best)
    else:
        raise UserError(
            f"{best}: lost or damaged, and nothing else holds the parameters of the best epoch: restore it, or remove "
            f"{folder.path} and train again"
        )


def _is_of(summary: Mapping[str, Any], state: State) -> bool:
    """Whether a run was finished with the same best epoch, so that what it holds as the best is that."""
    best = state.history[state.best - 1]
    return (summary.get("best_epoch"), summary.get("val_loss")) == (state.best, best["val_loss"])


def _remove_superseded(folder: RunFolder, state: State) -> None:
    for old in folder.superseded(state.best):
        with writing(old):
            old.unlink(missing_ok=True)


def _current(name: str, own: Container[str]) -> str:
    """The name of a checkpoint's tensor as it is now: the optimiser's state is named by its parameter."""
    part, _, parameter = name.partition("/")
    return f"{part}/{current_name(parameter, own)}"


def _trained(model: PairClassifier) -> dict[str, torch.nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def _are_moments(parts: Mapping[str, Tensor], parameter: Tensor) -> bool:
    shapes = {"step": torch.Size(), "exp_avg": parameter.shape, "exp_avg_sq": parameter.shape}
    same = {name: part.shape for name, part in parts.items()} == shapes
    return same and all(part.is_floating_point() for part in parts.values())


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
    check_regular(path)
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: object) -> UserError:
    return UserError(f"{path}: damaged ({error}): restore it, or remove the run folder to begin anew")
