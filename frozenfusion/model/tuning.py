"""How a run's options were chosen: the trials of its head, kept in tuning.json beside its parameters."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from frozenfusion.fusion.options import MOST_TRIALS
from frozenfusion.model.checksums import with_checksum, without_checksum
from frozenfusion.model.run_folder import TUNING, RunFolder
from frozenfusion.utils import fits
from frozenfusion.utils.errors import UserError
from frozenfusion.utils.files import read_json, write_json

TRIALS, TABLE = "trials", "tuning.csv"  # beside the runs whose options they chose: their folder, and what they reached
_SHARE = fits.optional(fits.number(0, 1))


@dataclass(frozen=True)
class Trial:
    """One set of options and what it reached on the validation part; None each where its loss was not finite.

    The options of a head's own are called `head.NAME`.
    """

    options: Mapping[str, Any]
    val_accuracy: float | None
    val_macro_f1: float | None
    val_loss: float | None
    seconds: float | None  # of all epochs
    epochs: int  # fewer than others had, where the trial ended early


@dataclass(frozen=True)
class Tuning:
    """The trials of a head, in the order in which they were made, of so many epochs each, or at most."""

    trials: Sequence[Trial]
    epochs: int

    @cached_property
    def best(self) -> int:
        """Number of the trial with the highest validation accuracy, ties by the lower loss, then the earlier.

        Of those that ended early only if no other has a score.
        """
        return ranked(dict(enumerate(self.trials)))[0]

    @property
    def chosen(self) -> Trial:
        """The best trial."""
        return self.trials[self.best]

    @property
    def trials_told(self) -> str:
        """Their number in words: `20 trials`."""
        return _counted(len(self.trials), "trial")

    @property
    def budget(self) -> str:
        """Their number and their epochs in words: `20 trials of 1 epoch, the best 5 of 3 epochs`."""
        lengths = sorted({trial.epochs for trial in self.trials})
        reached = [sum(trial.epochs >= length for trial in self.trials) for length in lengths]
        told = f"{self.trials_told} of {_counted(lengths[0], 'epoch')}"
        longer = zip(reached[1:], lengths[1:], strict=True)
        return told + "".join(f", the best {count} of {_counted(length, 'epoch')}" for count, length in longer)

    @property
    def is_done(self) -> bool:
        """Whether any trial came to its end."""
        return self.chosen.val_accuracy is not None

    def expected_best(self) -> list[float]:
        """Expected best validation accuracy of 1, 2, … trials, as many as there are.

        The expected maximum of n draws, with replacement, from the accuracies of the trials (Dodge et al., 2019,
        arXiv:1909.03004); a trial whose loss was not finite counts as 0, and one that ended early as it then was.
        """
        ordered = sorted(trial.val_accuracy or 0.0 for trial in self.trials)
        size = len(ordered)
        return [
            sum(value * ((place / size) ** n - ((place - 1) / size) ** n) for place, value in enumerate(ordered, 1))
            for n in range(1, size + 1)
        ]


def _counted(number: int, name: str) -> str:
    return f"{number} {name}" if number == 1 else f"{number} {name}s"


def ranked(trials: Mapping[int, Trial]) -> list[int]:
    """The numbers of trials, best first; see `Tuning.best`."""
    return sorted(trials, key=lambda number: _rank(trials[number]), reverse=True)


def _rank(trial: Trial) -> tuple[float, float, float]:
    if trial.val_accuracy is None or trial.val_loss is None:
        return -1, 0.0, 0.0
    return trial.epochs, trial.val_accuracy, -trial.val_loss


_TRIAL: Mapping[str, fits.Fit] = {
    "options": fits.scalars,
    **dict.fromkeys(("val_accuracy", "val_macro_f1"), _SHARE),
    **dict.fromkeys(("val_loss", "seconds"), fits.optional(fits.number())),
    "epochs": fits.whole(1),
}
_ALWAYS = _TRIAL.keys() - {"epochs"}  # which were those of the tuning, before trials ended early


def save_tuning(run: RunFolder, tuning: Tuning) -> None:
    """Keep how a run's options were chosen beside it. Raises UserError where the disk says no."""
    values = {"epochs": tuning.epochs, "trials": [dataclasses.asdict(trial) for trial in tuning.trials]}
    write_json(run.file(TUNING), with_checksum(values))


def load_tuning(run: RunFolder) -> Tuning | None:
    """How a run's options were chosen, None where they were not. Raises UserError for a damaged file."""
    path = run.file(TUNING)
    if not path.is_file():
        return None
    values = read_json(path)
    wrong = fits.misfit(values, {"epochs": fits.whole(1), "trials": _is_list}, ("epochs", "trials"))
    for trial in values["trials"] if not wrong else ():
        wrong = wrong or fits.misfit(trial, _TRIAL, _ALWAYS)
        wrong = wrong or ("has other entries" if len(trial) > len(_TRIAL) else None)
    if wrong:
        raise UserError(f"{path}: not the tuning of a run ({wrong}): restore or remove the file")
    values = without_checksum(values, path, "the same tuning command")
    return Tuning([Trial(**{"epochs": values["epochs"], **trial}) for trial in values["trials"]], values["epochs"])


def _is_list(value: Any) -> bool:
    return isinstance(value, list) and 0 < len(value) <= MOST_TRIALS


def options_line(options: Mapping[str, Any]) -> str:
    """Options in one line: `lr=0.003 head.layers=2`."""
    return " ".join(f"{name}={of:g}" if type(of) is float else f"{name}={of}" for name, of in options.items())


def tuning_cells(tunings: Mapping[str, Tuning]) -> list[list[str]]:
    """A table of what was chosen, by the name that each tuning has, and the expected best accuracy of fewer trials."""
    counts = _counts(max((len(tuning.trials) for tuning in tunings.values()), default=0))
    cells = [["", "trials", *(f"best of {count}" for count in counts), "chosen"]]
    for name, tuning in tunings.items():
        expected = tuning.expected_best()
        best = [f"{100 * expected[count - 1]:.1f}" if count <= len(expected) else "–" for count in counts]
        cells.append([name, str(len(tuning.trials)), *best, options_line(tuning.chosen.options)])
    return cells


def _counts(most: int) -> list[int]:
    """Numbers of trials that a table shows: 1, 2, 5, 10, … and all."""
    return [*(count for count in (1, 2, 5, 10, 20, 50, 100, 200, 500) if count < most), most]
