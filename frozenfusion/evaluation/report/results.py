"""What an evaluation leaves on the disk: predictions.csv, metrics.json, confusion.png per run, and the page.

Shapes: n pairs, c classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frozenfusion.data.folders import UNLABELLED_COURSE_PART, course_ids
from frozenfusion.evaluation import metrics
from frozenfusion.evaluation.comparison import FIGURES, Comparison
from frozenfusion.evaluation.inputs import EvaluationInputs
from frozenfusion.evaluation.predictor import Predictor
from frozenfusion.evaluation.report.html import render
from frozenfusion.evaluation.report.label_tables import curve_csv
from frozenfusion.evaluation.report.page import page_of
from frozenfusion.evaluation.report.plots import plot_confusion
from frozenfusion.evaluation.report.tables import comparison_csv, comparison_markdown
from frozenfusion.model.inference import Predicted
from frozenfusion.utils.files import replacing, write_atomically, write_json
from frozenfusion.utils.progress import log
from frozenfusion.utils.tables import to_csv, write_csv

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


def write_all_predictions(
    inputs: EvaluationInputs, found: Mapping[str, Predicted], calibrated: Mapping[str, Floats], out: Path
) -> dict[str, Path]:
    """Write what each run predicts into its folder in `out`, or into `out` if it is alone; returns the folders.

    Probabilities are the `calibrated` ones of the runs that have them; predictions are of those as they are.
    """
    folders = {name: out / name if len(found) > 1 else out for name in found}
    for name, predicted in found.items():
        path = folders[name] / "predictions.csv"
        decided, shares = predicted.probabilities.argmax(1), calibrated.get(name, predicted.probabilities)
        write_predictions(path, inputs.members.ids(), inputs.labels, inputs.label_names, decided, shares)
        if inputs.selection.name == "unlabelled" and inputs.pairs.layout == "course":
            write_course_tags(folders[name], inputs.pairs.path, inputs.selection.ids, inputs.label_names, predicted)
    return folders


def write_comparison(
    inputs: EvaluationInputs, comparison: Comparison, predictor: Predictor, folders: Mapping[str, Path], out: Path
) -> Path:
    """Write figures and the page of an evaluation beside its predictions; returns the page's path."""
    config = inputs.config
    write_metrics(folders, comparison, _about(inputs), resamples=config.bootstrap, seed=config.seed)
    page = page_of(inputs, comparison, predictor)
    write_atomically(out / "report.html", render(page))
    if page.label_curve:
        write_atomically(out / "label_curve.csv", curve_csv(page.label_curve))
    if len(folders) > 1:
        write_atomically(out / "comparison.md", comparison_markdown(comparison, page.title, page.part, page.notes))
        write_atomically(out / "comparison.csv", comparison_csv(comparison))
    return out / "report.html"


def write_course_tags(
    folder: Path, data: Path, ids: Sequence[str], label_names: Sequence[str], predicted: Predicted
) -> None:
    """Write the predictions as the course asks for them: its own file of pairs without labels, with their tags."""
    place = {id: row for row, id in enumerate(ids)}
    tags = [label_names[label] for label in predicted.probabilities.argmax(1).tolist()]
    lines = [(id, tags[place[id]]) for id in course_ids(data) if id in place]
    write_atomically(folder / UNLABELLED_COURSE_PART, to_csv([("guid", "tag"), *lines]))
    log.info("the course's file with predicted tags: %s", folder / UNLABELLED_COURSE_PART)


def _about(inputs: EvaluationInputs) -> dict[str, object]:
    """What every metrics.json says of the evaluation."""
    return {
        "data": inputs.pairs.source.words[0],
        "cache": inputs.store.path.as_posix(),
        "split": inputs.selection.name,
        "checkpoint": inputs.config.checkpoint,
        "withheld": inputs.config.without,
        "pairs": len(inputs.labels),
        "labelled": len(inputs.scored),
        "shared_with_train": {"texts": inputs.overlap.texts, "images": inputs.overlap.images},
        "notes": inputs.notes,
    }


def write_predictions(
    path: Path, ids: Iterable[str], labels: Ints, label_names: Sequence[str], decided: Ints, probabilities: Floats
) -> None:
    """Write a line per pair, in the order given: id, label (empty without one), prediction, probability per class."""
    header = ["id", "label", "prediction", *(f"p_{name}" for name in label_names)]
    lines = (
        [id, label_names[label] if label >= 0 else None, label_names[place], *(f"{share:.6f}" for share in row)]
        for id, label, place, row in zip(ids, labels, decided, probabilities, strict=True)
    )
    with replacing(path) as beside, beside.open("w", encoding="utf-8", newline="") as file:
        write_csv(file, chain([header], lines))


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
            "temperature": run.temperature,
            "ece_calibrated": None if run.calibrated is None else metrics.calibration(labels, run.calibrated).ece,
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
