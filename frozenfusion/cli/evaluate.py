"""Evaluation from the command line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from tyro.conf import Positional

from frozenfusion.cli.caches import cache_to_read
from frozenfusion.cli.groups import Groups
from frozenfusion.cli.parsing import COMMON, READING, DataOptions, run
from frozenfusion.evaluation.config import EvaluateConfig
from frozenfusion.store.command import DataSource
from frozenfusion.utils import launched
from frozenfusion.utils.errors import UsageError, UserError
from frozenfusion.utils.files import check_writable

if TYPE_CHECKING:
    from frozenfusion.evaluation.evaluator import Evaluation


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(DataOptions, EvaluateConfig):
    """Evaluate one or several runs offline, in batches, and compare them."""

    groups: ClassVar[Groups] = {
        "files": ("cache", "split", "out", "text_cache", *READING),
        "models": ("checkpoint", "without", "calibrate"),
        "comparison": ("baseline", "bootstrap", "seed"),
        "speed": ("device", "precision", "batch_size"),
        "general": COMMON,
    }

    paths: Positional[tuple[Path, ...]]
    """one or several run folders, then the folder or manifest of image–text pairs"""

    cache: Path | None = None
    """feature file of stage one; by default the one that is named after the data, cache/NAME-*.h5"""

    out: Path | None = None
    """folder for the results; by default inside the run, or comparison/ beside several runs"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.paths) < 2:
            raise UsageError("give one or several run folders and then the data, as in: evaluate.py runs/concat DATA")


def main(arguments: Sequence[str] | None = None, command: str | None = None) -> int:
    """Evaluate what the options name and print the figures; the exit status."""
    return run(EvaluateOptions, _evaluate, arguments, command, rank=launched.rank())


def _evaluate(options: EvaluateOptions) -> str:
    from frozenfusion.utils.distributed import by_first, joined  # imports torch

    with joined():
        evaluation = _evaluated(options)
        return by_first(lambda: _saved(evaluation, options))


def _evaluated(options: EvaluateOptions) -> Evaluation:
    from frozenfusion.evaluation.evaluator import evaluate
    from frozenfusion.evaluation.runs import common_folder, find_runs
    from frozenfusion.model.run_folder import RunFolder
    from frozenfusion.store.reader import FeatureStore
    from frozenfusion.utils.device import choose_device
    from frozenfusion.utils.progress import log

    *paths, data = options.paths
    if RunFolder(data).exists:
        raise UsageError(f"{data} is a run: give the run folders first, and the data last")
    choose_device(options.device)
    found = find_runs(paths, options.checkpoint)  # before the data, which may be large
    runs = [run.path for run in found]
    _check_out(options.out or (runs[0] if len(runs) == 1 else common_folder(runs)))
    image_network = found[0].model.image_fingerprint, found[0].model.image_weights
    store = FeatureStore(cache_to_read(DataSource.of(data, **options.reading), options.cache, *image_network))
    pairs = options.load(data)
    log.info(pairs.summary())
    return evaluate(runs, pairs, store, config=options)


def _saved(evaluation: Evaluation, options: EvaluateOptions) -> str:
    from frozenfusion.utils.progress import log

    try:
        look = evaluation.save(options.out)
    except UserError:
        log.info("%s", evaluation.table())  # what came out is told even where it cannot be kept
        raise
    return f"{evaluation.table()}\n\nresults in {options.out or evaluation.default_folder}: look at {look}"


def _check_out(folder: Path) -> None:
    try:
        check_writable(folder)
    except UserError as error:
        raise UserError(f"{error} (`out` names another folder for the results)") from error
