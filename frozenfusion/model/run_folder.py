"""The folder of one training: the one place that knows its files, where they lie and what they say."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from frozenfusion.data.splits import Split
from frozenfusion.fusion.options import HEAD
from frozenfusion.model.checksums import CHECKSUMS, without_checksum
from frozenfusion.model.config import ModelConfig
from frozenfusion.model.recipe import LATER, RECIPE
from frozenfusion.model.rounds import JOINT, JOINT_FILE
from frozenfusion.text.choices import OPTIONS, RECURRENT
from frozenfusion.utils import fits
from frozenfusion.utils.errors import UserError
from frozenfusion.utils.files import MAX_JSON_BYTES, parse_json, read_file, read_json, sweep_folder, writing
from frozenfusion.utils.hub import settled

FORMAT = 1
CHECKPOINTS = {"best": "model.safetensors", "last": "last.safetensors"}
TUNING = "tuning.json"
UNKNOWN = "unknown"  # source of the split of a model that was saved by itself

# What is figured of each epoch, and what of a whole run; shares are in [0, 1], nothing stands for no validation part.
_FIGURE, _ACCURACY = fits.number(), fits.number(0, 1)
_VALIDATED = ("val_loss", "val_accuracy", "val_macro_f1")
_EPOCH: Mapping[str, fits.Fit] = {
    "epoch": fits.whole(1),
    **dict.fromkeys(("lr", "text_lr", "train_loss", "seconds"), _FIGURE),
    "train_accuracy": _ACCURACY,
    "val_loss": fits.optional(_FIGURE),
    **dict.fromkeys(("val_accuracy", "val_macro_f1"), fits.optional(_ACCURACY)),
}
_SUMMARY: Mapping[str, fits.Fit] = {
    "fusion": fits.text,
    "seed": fits.whole(0, 2**63 - 1),
    **dict.fromkeys(("epochs", "best_epoch"), fits.whole(1)),
    "trained_parameters": fits.whole(0, 2**63 - 1),
    "seconds_per_epoch": _FIGURE,
    "val_loss": fits.optional(_FIGURE),
    **dict.fromkeys(("val_accuracy", "val_macro_f1"), fits.optional(_ACCURACY)),
}

RESTORED = "the same training command restores what a run has lost"

_TOKEN_LISTS = {"special_tokens_map.json", "added_tokens.json"}

_FILES = {
    "config.json": "options and architecture",
    "split.json": "which pairs it was trained, validated and is to be tested on",
    "tokenizer": "the text encoder's",
    "text_encoder": "its configuration; its weights where it is frozen",
    "checkpoint.safetensors": "everything that training needs to resume",
    "model.safetensors": "parameters of the best epoch, once the run is finished",
    "last.safetensors": "parameters of the last epoch, once the run is finished",
    "metrics.jsonl": "one JSON line per epoch",
    "learning_rate.png": "its curve",
    "curves.png": "loss and accuracy",
    "tracking": "what trackers keep there, a folder each",
    "checksums.json": "CRC-32 of config.json, split.json, metrics.jsonl, and of the files of the two folders",
    JOINT_FILE: "the rounds of joint learning so far, where it gave pseudo-labels",
    "pseudo.csv": "those pseudo-labels, for a person",
    "calibration.json": "the temperature of the parameters' probabilities, where one was fitted",
    TUNING: "the trials that its options were chosen from, where they were",
    "summary.json": "what came out, written last of all: without it a run is not finished",
}


@dataclass(frozen=True)
class RunFolder:
    """A training's folder; nothing is read before it is asked for. Reading raises UserError for what is no run's."""

    path: Path
    figures_only: bool = False  # whether a finished run leaves no parameters and no pictures: a trial

    # --- where the files are

    def file(self, name: str) -> Path:
        """One of the files of every run; their names, and what they hold, are in _FILES."""
        if name not in _FILES:
            raise ValueError(f"{name} is no file of a run")
        return self.path / name

    @property
    def config_file(self) -> Path:
        """Options and architecture."""
        return self.file("config.json")

    @property
    def checkpoint(self) -> Path:
        """Everything that training needs to resume."""
        return self.file("checkpoint.safetensors")

    @property
    def tokenizer(self) -> Path:
        """Folder of the tokenizer."""
        return self.file("tokenizer")

    @property
    def text_encoder(self) -> Path:
        """Folder of the text encoder's configuration."""
        return self.file("text_encoder")

    @property
    def frozen_encoder(self) -> Path:
        """Weights of a frozen text encoder."""
        return self.text_encoder / "model.safetensors"

    @property
    def summary_file(self) -> Path:
        """What came out, written last of all: without it a run is not finished."""
        return self.file("summary.json")

    @property
    def calibration_file(self) -> Path:
        """The temperature of the parameters' probabilities, where one was fitted."""
        return self.file("calibration.json")

    def weights(self, checkpoint: str) -> Path:
        """Parameters of the "best" epoch or of the "last", once the run is finished."""
        return self.file(CHECKPOINTS[checkpoint])

    def best(self, epoch: int) -> Path:
        """Parameters of the best epoch so far, while the run is under way."""
        return self.path / f"best-{epoch:02d}.safetensors"

    def numbered(self, epoch: int) -> Path:
        """Parameters that are kept every few epochs."""
        return self.path / f"epoch-{epoch:02d}.safetensors"

    def superseded(self, best: int) -> list[Path]:
        """Parameters of epochs that were the best before epoch `best`."""
        return [path for path in self.path.glob("best-*.safetensors") if path != self.best(best)]

    # --- what they say

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """What config.json holds."""
        values = read_json(self.config_file)
        found = values.get("format") if isinstance(values, dict) else None
        if found != FORMAT:
            raise UserError(
                f"{self.config_file}: not a run of this program (format {found}, not {FORMAT}): give a folder it made"
            )
        checked: Mapping[str, Any] = values
        return checked

    @cached_property
    def model_config(self) -> ModelConfig:
        """The model's configuration."""
        try:
            return ModelConfig.from_json(self.config.get("model"))
        except (TypeError, ValueError) as error:
            raise UserError(f"{self.config_file}: {error}: restore it, or remove it: {RESTORED}") from error
        except UserError as error:
            raise type(error)(f"{self.path}: {error}") from error

    @cached_property
    def recipe(self) -> Mapping[str, Any]:
        """All that the run was made with but its seed, by name; options of its head's own are called `head.NAME`."""
        options = self.config.get("options")
        options = options if isinstance(options, dict) else {}
        # what the head was given, and how texts are pooled, stands in the model's configuration
        in_model = ("alpha", "head_options", "text_pool")
        chosen = {name: options.get(name, LATER.get(name)) for name in RECIPE if name not in in_model}
        chosen |= {name: options[name] for name in JOINT if name in options}
        if chosen["text_encoder"] in RECURRENT:
            chosen |= {name: options.get(name) for name in OPTIONS}
        if isinstance(chosen["text_encoder"], str):
            chosen["text_encoder"] = settled(chosen["text_encoder"])
        model = self.model_config
        pool = model.text_pool if model.pools_text else None
        own = {name if name == "alpha" else HEAD + name: of for name, of in model.fusion_options.items()}
        return {**chosen, **own, "text_pool": pool}

    @property
    def split(self) -> Split:
        """Which pairs it was trained, validated and is to be tested on; none of a model that was saved by itself.

        Read each time: those of millions take more memory than all else of a run.
        """
        path = self.file("split.json")
        if not path.exists() and "options" not in self.config:
            return Split(UNKNOWN, 0, [], [], [])
        if not path.exists():
            raise UserError(f"{path}: not there: copy all of the run's folder ({RESTORED})")
        return Split.load(path)

    @cached_property
    def history(self) -> list[Mapping[str, Any]]:
        """The lines of metrics.jsonl, one per epoch; none where the file is missing."""
        path = self.file("metrics.jsonl")
        if not path.exists():
            return []
        lines = [line for line in read_file(path, MAX_JSON_BYTES).splitlines() if line.strip()]
        return checked_history([parse_json(line, path) for line in lines], path)

    @cached_property
    def summary(self) -> Mapping[str, Any]:
        """What training left in summary.json, or nothing."""
        if not self.summary_file.exists():
            return {}
        values = read_json(self.summary_file)
        wrong = fits.misfit(values, _SUMMARY)
        if wrong:
            raise UserError(f"{self.summary_file}: not the summary of a run ({wrong}): restore or remove the file")
        return without_checksum(values, self.summary_file)

    def validation(self, checkpoint: str) -> float | None:
        """Accuracy on the validation part at the checkpoint (best or last), None where there was no such part."""
        measured = [float(line["val_accuracy"]) for line in self.history if line.get("val_accuracy") is not None]
        if not measured:
            return None
        return max(measured) if checkpoint == "best" else measured[-1]

    # --- how far it is

    @property
    def exists(self) -> bool:
        """Whether a training has begun here."""
        return self.config_file.is_file()

    @property
    def has_text_encoder(self) -> bool:
        """Whether this is a run whose model reads text."""
        return (self.text_encoder / "config.json").is_file()

    def is_finished(self, epochs: int) -> bool:
        """Whether the run was brought to its end after so many epochs."""
        return RunFolder(self.path).summary.get("epochs") == epochs  # as it is now

    @property
    def _lost_its_config(self) -> bool:
        """Whether this is a run but for its config.json; a checkpoint alone may be another program's."""
        return self.checkpoint.is_file() and (self.file("split.json").is_file() or self.file("metrics.jsonl").is_file())

    def lost_parts(self, model: ModelConfig) -> list[Path]:
        """What loading such a model needs beside its parameters, and is not there."""
        encoder = [self.text_encoder / "config.json"] if model.reads_text else []
        encoder += [self.frozen_encoder] if model.reads_text and model.freeze_text else []
        parts = [part for part in (self.config_file, *encoder) if not part.is_file()]
        return parts if _has_vocabulary(self.tokenizer) else [*parts, self.tokenizer]

    def lost_files(self, model: ModelConfig) -> list[Path]:
        """What a finished run of such a model has, and this one has no longer; pictures are not missed."""
        if self.figures_only:
            return []
        files = [self.file(name) for name in _FILES if name.endswith((".json", ".jsonl", ".safetensors"))]
        # which not every run has
        for unneeded in (self.file(CHECKSUMS), self.calibration_file, self.file(TUNING), self.file(JOINT_FILE)):
            files.remove(unneeded)
        return list(dict.fromkeys([*self.lost_parts(model), *(file for file in files if not file.is_file())]))

    def check_free(self) -> None:
        """Raise UserError if the folder holds what no run of ours left there."""
        if not self.path.exists():
            return
        if self.config_file.exists():
            values = read_json(self.config_file)
            foreign = [] if isinstance(values, dict) and "options" in values else [self.config_file.name]
        else:
            foreign = [] if self._lost_its_config else self.foreign_files()
        if foreign:
            raise UserError(f"{self.path}: holds other files ({foreign[0]}): choose another `run`")

    def foreign_files(self) -> list[str]:
        """Names in the folder that no run of ours leaves there."""
        with writing(self.path):
            return sorted(entry.name for entry in os.scandir(self.path) if not _is_own(entry.name))

    def sweep_up(self) -> None:
        """Remove what killed processes left half written."""
        for folder in (self.path, self.text_encoder, self.tokenizer):
            sweep_folder(folder)


def _has_vocabulary(tokenizer: Path) -> bool:
    """Whether a tokenizer's folder has its configuration, and a file beside the lists of special tokens."""
    names = {path.name for path in tokenizer.iterdir()} if tokenizer.is_dir() else set()
    return "tokenizer_config.json" in names and len(names - _TOKEN_LISTS) > 1


def _is_own(name: str) -> bool:
    return name in _FILES or name.startswith((".", "best-", "epoch-")) or name.endswith(".lock")


def checked_history(lines: Any, path: Path) -> list[Mapping[str, Any]]:
    """The figures of epochs that a file of a run holds. Raises UserError for anything else."""
    if not isinstance(lines, list):
        raise UserError(f"{path}: holds no list of epochs: restore or remove the file")
    for number, line in enumerate(lines, 1):
        wrong = fits.misfit(line, _EPOCH, _EPOCH.keys() - {"text_lr"})
        if not wrong and line["epoch"] != number:
            wrong = f"is called {line['epoch']}"
        if not wrong and len({line[name] is None for name in _VALIDATED} | {lines[0]["val_loss"] is None}) > 1:
            wrong = "has another validation part than the others"
        if wrong:
            raise UserError(f"{path}: no epoch's figures (epoch {number} {wrong}): restore or remove the file")
    return lines
