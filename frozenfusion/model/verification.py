"""Whether trained runs are still as they were written: every file of them, also those that nothing reads for now."""

from __future__ import annotations

import os
from pathlib import Path

from frozenfusion.model.calibration import load_calibration
from frozenfusion.model.checksums import check_files
from frozenfusion.model.run_folder import CHECKPOINTS, RunFolder
from frozenfusion.model.saving import check_whole
from frozenfusion.model.tuning import load_tuning
from frozenfusion.utils.tensors import read_tensors


def runs_at(path: Path) -> list[RunFolder]:
    """The run that a folder is, or those in it, as in a sweep's."""
    with os.scandir(path) as entries:
        folders = sorted(Path(entry) for entry in entries if entry.is_dir())
    return [run for run in map(RunFolder, [path, *folders]) if _is_run(run)]


def verify_run(run: RunFolder) -> str:
    """Check all files of a run against their checksums; returns what was found. Raises UserError where one differs."""
    check_whole(run)
    small, parameters = check_files(run.path, all_there=True), sorted(run.path.rglob("*.safetensors"))
    for path in parameters:
        read_tensors(path)
    _ = run.split, run.history, run.summary
    load_tuning(run)
    for checkpoint in CHECKPOINTS:
        load_calibration(run, checkpoint)
    told = f"{run.path}: parameters in {len(parameters):,} files and {small:,} other files are as they were written"
    return told if small else f"{told} (no checksums: not finished, or made by version 0.1)"


def _is_run(run: RunFolder) -> bool:
    return run.exists and (run.tokenizer.is_dir() or run.checkpoint.is_file())
