"""What an evaluation leaves on the disk for each run: predictions.csv, metrics.json, confusion.png.

Shapes: n pairs, c classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frozenfusion import metrics
from frozenfusion.comparison import FIGURES, Comparison
from frozenfusion.files import write_atomically, write_json
from frozenfusion.report import plot_confusion
from frozenfusion.tables import spreadsheet_safe, to_csv

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


def write_predictions(
    path: Path, ids: Sequence[str], labels: Ints, label_names: Sequence[str], probabilities: Floats
) -> None:
    """Write a line a pair, in the order given: id, label (empty without one), prediction, probability of each class."""
    names = [spreadsheet_safe(name) for name in label_names]
    lines: list[list[object]] = [["id", "label", "prediction", *(f"p_{name}" for name in label_names)]]
    for id, label, row in zip(ids, labels.tolist(), probabilities, strict=True):
        told = names[label] if label >= 0 else None
        lines.append([spreadsheet_safe(id), told, names[int(row.argmax())], *(f"{share:.6f}" for share in row)])
    write_atomically(path, to_csv(lines))


def write_metrics(
    folders: Mapping[str, Path], comparison: Comparison, about: Mapping[str, Any], *, resamples: int, seed: int
) -> None:
    """Write metrics.json and confusion.png of each run into its folder; `about` goes into each metrics.json."""
    labels, names = comparison.labels, comparison.label_names
    runs = [run for row in comparison.heads for run in row.runs]
    predictions = [run.probabilities.argmax(1) for run in runs]
    drawn = metrics.bootstrap(labels, predictions, len(names), resamples=resamples, seed=seed)
    beside = {row.name: _scores(labels, row.probabilities[0], len(names)) for row in comparison.rows if not row.runs}
    for place, (run, predicted) in enumerate(zip(runs, predictions, strict=True)):
        confusion = metrics.confusion_matrix(labels, predicted, len(names))
        intervals = {f"{name}_interval": metrics.interval(getattr(drawn, name)[place]) for name in FIGURES}
        values = {
            "run": run.name,
            "fusion": run.head,
            **about,
            **_scores(labels, run.probabilities, len(names)),
            **intervals,
            "ece": metrics.calibration(labels, run.probabilities).ece,
            "classes": _by_class(confusion, names),
            "confusion": confusion.tolist(),
            "without": {name: _scores(labels, of, len(names)) for name, of in run.without.items()},
            "baselines": beside,
            "validation_accuracy": run.validation,
            "parameters": run.parameters,
            "seconds_per_epoch": run.seconds,
        }
        write_json(folders[run.name] / "metrics.json", values)
        plot_confusion(confusion, names, folders[run.name] / "confusion.png")


def _scores(labels: Ints, probabilities: Floats, classes: int) -> dict[str, float]:
    """Accuracy, macro and weighted F1 by name."""
    found = metrics.scores(metrics.confusion_matrix(labels, probabilities.argmax(1), classes))
    return {name: float(getattr(found, name)) for name in FIGURES}


def _by_class(confusion: Ints, label_names: Sequence[str]) -> dict[str, dict[str, float]]:
    found = metrics.scores(confusion)
    return {
        name: {
            "precision": float(found.precision[place]),
            "recall": float(found.recall[place]),
            "f1": float(found.f1[place]),
            "support": int(found.support[place]),
        }
        for place, name in enumerate(label_names)
    }
