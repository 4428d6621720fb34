"""Run folders as evaluation finds them: which paths are trained runs, and what each says of itself."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from frozenfusion.errors import UserError
from frozenfusion.files import MAX_JSON_BYTES, NotRegularError, TooLargeError, file_error, read_json, read_regular_file
from frozenfusion.model import ModelConfig, load_config
from frozenfusion.progress import log
from frozenfusion.splits import Split

WEIGHTS = {"best": "model.safetensors", "last": "last.safetensors"}

# Training options that tell repetitions of one recipe from different recipes.
_RECIPE = (
    *("epochs", "batch_size", "lr", "weight_decay", "schedule", "class_weights", "precision", "val_fraction"),
    *("text_encoder", "text_weights", "freeze_text", "max_length", "image_dropout", "modality_dropout"),
)


@dataclass(frozen=True)
class Run:
    """A trained run's folder, its parameters not loaded. Every part is read when it is first asked for."""

    folder: Path
    name: str  # what tells it from the runs beside it

    @cached_property
    def model(self) -> ModelConfig:
        """The model's configuration. Raises UserError for a folder that is not a run's."""
        return load_config(self.folder)

    @property
    def head(self) -> str:
        """Name of the fusion head."""
        return self.model.fusion

    @cached_property
    def recipe(self) -> str:
        """All that the run was made with but its seed."""
        options = read_json(self.folder / "config.json").get("options")
        chosen = {name: options.get(name) for name in _RECIPE} if isinstance(options, dict) else {}
        return json.dumps([chosen, self.model.fusion_options], sort_keys=True, default=str)

    @cached_property
    def split(self) -> Split:
        """Which pairs it was trained, validated and is to be tested on."""
        return Split.load(self.folder / "split.json")

    @cached_property
    def history(self) -> list[Mapping[str, Any]]:
        """The lines of metrics.jsonl, one an epoch; none where the file is missing."""
        return _read_lines(self.folder / "metrics.jsonl")

    @cached_property
    def summary(self) -> Mapping[str, Any]:
        """What training left in summary.json, or nothing."""
        path = self.folder / "summary.json"
        values = read_json(path) if path.exists() else {}
        return values if isinstance(values, dict) else {}

    def validation(self, checkpoint: str) -> float | None:
        """Accuracy on the validation part at the checkpoint (best or last), None where there was no such part."""
        measured = [float(line["val_accuracy"]) for line in self.history if line.get("val_accuracy") is not None]
        if not measured:
            return None
        return max(measured) if checkpoint == "best" else measured[-1]


def find_runs(paths: Sequence[Path], checkpoint: str) -> list[Run]:
    """The finished runs that `paths` are or hold (a sweep's folder holds several), each once, in the order given.

    What is not a run, beside others that are, is left out and named: `runs/*` also finds tables and reports. Raises
    UserError where a path does not exist and where no run is left.
    """
    folders: dict[Path, Path] = {}
    for path in paths:
        if not path.exists():
            raise UserError(f"{path}: no such run folder: check the path")
        found = _runs_in(path)
        if not found and path.is_dir():
            log.info("%s: not a run, left out", path)
        for folder in found:
            folders.setdefault(folder.resolve(), folder)
    finished = [folder for folder in folders.values() if _is_finished(folder, checkpoint)]
    if not finished:
        told = ", ".join(map(str, paths[:3]))
        raise UserError(f"{told}: no finished run there (config.json and {WEIGHTS[checkpoint]}): train one first")
    return [Run(folder, name) for folder, name in zip(finished, _names(finished), strict=True)]


def _runs_in(path: Path) -> list[Path]:
    if (path / "config.json").is_file():
        return [path]
    return sorted(config.parent for config in path.glob("*/config.json")) if path.is_dir() else []


def _is_finished(folder: Path, checkpoint: str) -> bool:
    if (folder / WEIGHTS[checkpoint]).is_file():
        return True
    log.warning("%s: has no %s yet, left out: the same training command goes on with it", folder, WEIGHTS[checkpoint])
    return False


def _names(folders: Sequence[Path]) -> list[str]:
    """What tells the folders apart: their paths below the folder that all of them share."""
    if len(folders) == 1:
        return [folders[0].resolve().name]
    shared = common_folder(folders)
    return [folder.resolve().relative_to(shared).as_posix() for folder in folders]


def common_folder(folders: Sequence[Path]) -> Path:
    """The deepest folder that holds all of `folders`."""
    return Path(os.path.commonpath([folder.resolve().parent for folder in folders]))


def _read_lines(path: Path) -> list[Mapping[str, Any]]:
    if not path.exists():
        return []
    try:
        lines = [json.loads(line) for line in read_regular_file(path, MAX_JSON_BYTES).splitlines() if line.strip()]
    except OSError as error:
        raise file_error(error, path) from error
    except (NotRegularError, TooLargeError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not lines of JSON ({error}): restore or remove the file") from error
    if not all(isinstance(line, dict) and "epoch" in line for line in lines):
        raise UserError(f"{path}: a line is no epoch's figures: restore or remove the file")
    return lines
