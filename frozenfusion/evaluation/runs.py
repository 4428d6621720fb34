"""Which paths are trained runs, and what tells them apart."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from frozenfusion.model.config import ModelConfig
from frozenfusion.model.run_folder import RESTORED, RunFolder
from frozenfusion.model.tuning import TABLE, TRIALS
from frozenfusion.utils.errors import UserError
from frozenfusion.utils.files import writing
from frozenfusion.utils.messages import first_few
from frozenfusion.utils.progress import log


@dataclass(frozen=True)
class Run:
    """A trained run as an evaluation names it; its parameters are not loaded."""

    folder: RunFolder
    name: str  # what tells it from the runs beside it

    @property
    def path(self) -> Path:
        """Where it lies."""
        return self.folder.path

    @property
    def model(self) -> ModelConfig:
        """The model's configuration."""
        return self.folder.model_config


def find_runs(paths: Sequence[str | os.PathLike[str]], checkpoint: str) -> list[Run]:
    """The finished runs that `paths` are or hold (a sweep's folder holds several), each once, in the order given.

    What is not a run, beside others that are, is left out and named: `runs/*` also finds tables and reports. Raises
    UserError where a path does not exist and where no run is left.
    """
    folders: dict[Path, RunFolder] = {}
    for path in map(Path, paths):
        if not path.exists():
            raise UserError(f"{path}: no such run folder: check the path")
        found = _runs_in(path)
        if not found and path.is_dir():
            log.info("%s: not a run, left out", path)
        for folder in found:
            folders.setdefault(folder.path.resolve(), folder)
    finished = [folder for folder in folders.values() if _is_finished(folder, checkpoint)]
    if not finished:
        told, weights = first_few([os.fspath(path) for path in paths]), RunFolder(Path()).weights(checkpoint)
        raise UserError(f"{told}: no finished run there (config.json and {weights}): train one first; {RESTORED}")
    return [Run(folder, name) for folder, name in zip(finished, _names(finished), strict=True)]


def _runs_in(path: Path) -> list[RunFolder]:
    run = RunFolder(path)
    if run.exists:
        return [run]
    with writing(path):
        folders = [] if _lost_its_config(run) else sorted(path.iterdir()) if path.is_dir() else []
    for folder in folders:
        if _lost_its_config(RunFolder(folder)) or _holds_trials(folder):
            continue
        if not _is_there(RunFolder(folder)) and any(map(_is_there, map(RunFolder, _below(folder)))):
            log.warning("%s: holds runs of its own, left out: name it too", folder)
    return [run for run in map(RunFolder, folders) if _is_there(run)]


def _lost_its_config(run: RunFolder) -> bool:
    """Whether a folder is a run but for its config.json, which is said."""
    try:
        lost = not run.exists and (run.checkpoint.is_file() or run.weights("best").is_file())
    except OSError:
        return False
    if lost:
        log.warning("%s: has no config.json, left out: %s", run.path, RESTORED)
    return lost


def _holds_trials(folder: Path) -> bool:
    """Whether a folder is that of the trials of a sweep that was tuned, which are no models."""
    return folder.name == TRIALS and folder.with_name(TABLE).is_file()


def _below(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir()) if folder.is_dir() else []
    except OSError:
        return []


def _is_there(run: RunFolder) -> bool:
    try:
        return run.exists
    except OSError:  # a folder that others may not look into
        return False


def _is_finished(run: RunFolder, checkpoint: str) -> bool:
    weights = run.weights(checkpoint)
    if weights.is_file():
        return True
    log.warning("%s: has no %s yet, left out: the same training command resumes it", run.path, weights.name)
    return False


def _names(runs: Sequence[RunFolder]) -> list[str]:
    """What tells the folders apart: their paths below the folder that all of them share."""
    if len(runs) == 1:
        return [runs[0].path.resolve().name]
    shared = common_folder([run.path for run in runs])
    return [run.path.resolve().relative_to(shared).as_posix() for run in runs]


def common_folder(folders: Sequence[Path]) -> Path:
    """The deepest folder that holds all of `folders`."""
    return Path(os.path.commonpath([folder.resolve().parent for folder in folders]))
