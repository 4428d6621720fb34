"""Evaluate trained runs on one part of the data, beside the baselines, and compare them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from frozenfusion.data.pairs import Pairs
from frozenfusion.data.views import texts_of
from frozenfusion.evaluation.baselines import baselines
from frozenfusion.evaluation.calibration import fit_temperature
from frozenfusion.evaluation.comparison import Comparison, RunResult, compare
from frozenfusion.evaluation.config import EvaluateConfig
from frozenfusion.evaluation.inputs import EvaluationInputs
from frozenfusion.evaluation.predictor import Predictor
from frozenfusion.evaluation.probes import probes
from frozenfusion.evaluation.report.label_tables import curve_text
from frozenfusion.evaluation.report.page import curve_of
from frozenfusion.evaluation.report.results import write_all_predictions, write_comparison
from frozenfusion.evaluation.report.tables import comparison_text
from frozenfusion.evaluation.runs import Run, common_folder
from frozenfusion.model.calibration import TemperatureScaling, load_calibration, save_calibration
from frozenfusion.model.inference import Arithmetic, Predicted
from frozenfusion.model.tuning import load_tuning
from frozenfusion.store.reader import FeatureStore, as_store
from frozenfusion.utils.checks import config_of
from frozenfusion.utils.device import autocast_type, choose_device
from frozenfusion.utils.errors import UsageError, UserError
from frozenfusion.utils.messages import printable, some_of
from frozenfusion.utils.progress import log

DEFAULT_BASELINE = "concat"
FEW_PAIRS = 100  # of a validation part, for a temperature

Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


class Evaluation:
    """What came out of an evaluation: the predictions, and where there are labels the comparison.

    Args:
        inputs: runs, pairs and features.
        predictions: by the run's name; rows as `inputs.members`.
        predictor: for what the page asks the models later.
        scalings: temperatures by the run's name, where probabilities are to be calibrated.
    """

    def __init__(
        self,
        inputs: EvaluationInputs,
        predictions: Mapping[str, Predicted],
        predictor: Predictor,
        scalings: Mapping[str, TemperatureScaling],
    ) -> None:
        self.inputs, self.predictions, self.predictor, self.scalings = inputs, predictions, predictor, scalings

    @cached_property
    def calibrated(self) -> Mapping[str, NDArray[np.float64]]:
        """Probabilities (n, c) at the temperature of each run that has one, by the run's name."""
        return {name: by.scaled(self.predictions[name].probabilities) for name, by in self.scalings.items()}

    @cached_property
    def comparison(self) -> Comparison | None:
        """Scores and tests on the pairs that have labels; None where there is none."""
        inputs, config = self.inputs, self.inputs.config
        keep = inputs.scored
        if not len(keep):
            return None
        return compare(
            inputs.labels[keep],
            inputs.label_names,
            self._results(),
            self._baselines(),
            reference=config.baseline or self._default_baseline(),
            resamples=config.bootstrap,
            seed=config.seed,
        )

    def __repr__(self) -> str:
        return f"Evaluation of {', '.join(self.predictions)} on {len(self.inputs.members):,} pairs: see table(), save()"

    def table(self) -> str:
        """The figures as tables for a terminal; without labels, how often each class is predicted."""
        if self.comparison:
            curve = curve_of(self.inputs, self.comparison)
            told = comparison_text(self.comparison, self.inputs.selection.name)
            return f"{told}\n\n{curve_text(curve)}" if curve else told
        return "\n".join(self._counts(name, found) for name, found in self.predictions.items())

    def save(self, out: str | os.PathLike[str] | None = None) -> Path:
        """Write the results, and return the file to look at first.

        The folder `out` (by default `default_folder`) holds predictions.csv, metrics.json and confusion.png of each run
        (in a folder of its name where there are several) and report.html; for several runs comparison.md and
        comparison.csv as well. Temperatures go into the runs. Raises UserError where the disk says no.
        """
        out = self.default_folder if out is None else Path(out)
        self._keep_temperatures()
        folders = write_all_predictions(self.inputs, self.predictions, self.calibrated, out)
        if self.comparison is None:
            return next(iter(folders.values())) / "predictions.csv"
        return write_comparison(self.inputs, self.comparison, self.predictor, folders, out)

    def _keep_temperatures(self) -> None:
        for run in self.inputs.runs:
            if run.name in self.scalings:
                try:
                    save_calibration(run.folder, self.inputs.config.checkpoint, self.scalings[run.name])
                except UserError as error:  # a run that may only be read
                    log.warning("the temperature is not kept: %s", error)

    @property
    def default_folder(self) -> Path:
        """evaluation/ in the run, or comparison/ beside the runs; other parts than the test part have their own."""
        runs, part, without = self.inputs.runs, self.inputs.selection.name, self.inputs.config.without
        kind = "" if part == "test" else f"-{part}"
        kind += f"-without-{without}" if without else ""
        if len(runs) == 1:
            return runs[0].path / f"evaluation{kind}"
        return common_folder([run.path for run in runs]) / f"comparison{kind}"

    def _default_baseline(self) -> str:
        """The first run of the default head, whose recipe stands for it where there are several."""
        named = [run.name for run in self.inputs.runs if run.model.fusion == DEFAULT_BASELINE]
        return named[0] if named else DEFAULT_BASELINE

    def _baselines(self) -> dict[str, NDArray[np.float64]]:
        """What the baselines say of the labelled pairs; nothing where there is no train part to fit them on."""
        inputs, train = self.inputs, self.inputs.train
        if not train.pairs:
            return {}
        pairs, classes = inputs.scored_members, len(inputs.label_names)
        return {
            **baselines(texts_of(train.pairs), train.labels, texts_of(pairs), classes),
            **probes(self.predictor.frozen_features(), train, inputs.validation(inputs.runs[0]), pairs, classes),
        }

    def _results(self) -> list[RunResult]:
        keep, found = self.inputs.scored, self.predictions
        every = len(keep) == len(self.inputs.labels)

        def scored(of: NDArray[np.float64]) -> NDArray[np.float64]:
            return of if every else of[keep]

        return [
            RunResult(
                name=run.name,
                head=run.model.fusion,
                recipe=json.dumps(run.folder.recipe, sort_keys=True, default=str),
                options=run.folder.recipe,
                tuning=load_tuning(run.folder),
                probabilities=scored(found[run.name].probabilities),
                without={name: scored(of) for name, of in found[run.name].without.items()},
                parts={name: scored(of) for name, of in found[run.name].parts.items()},
                calibrated=scored(self.calibrated[run.name]) if run.name in self.scalings else None,
                temperature=self.scalings[run.name].temperature if run.name in self.scalings else None,
                validation=run.folder.validation(self.inputs.config.checkpoint),
                parameters=run.folder.summary.get("trained_parameters"),
                seconds=run.folder.summary.get("seconds_per_epoch"),
                history=run.folder.history,
            )
            for run in self.inputs.runs
        ]

    def _counts(self, name: str, found: Predicted) -> str:
        predicted = np.bincount(found.probabilities.argmax(1), minlength=len(self.inputs.label_names))
        counts = zip(predicted.tolist(), self.inputs.label_names, strict=True)
        told = some_of([f"{n:,} {printable(label)}" for n, label in counts])
        return f"{name}: {len(found.probabilities):,} pairs predicted, {told}"


def evaluate(
    runs: Paths,
    pairs: Pairs,
    features: FeatureStore | str | os.PathLike[str],
    *,
    config: EvaluateConfig | None = None,
) -> Evaluation:
    """Predict a part of the pairs with every run, and compare the runs where there are labels.

    Nothing is written but the cached outputs of frozen text encoders, beside the features: see `Evaluation.save`. With
    `calibrate`, each run also predicts its validation part, and its temperature is fitted there.

    Args:
        runs: run folders, sweeps' folders, what `train` returned; or one of them.
        pairs: what `load_pairs` returned.
        features: the feature file of the pairs' images, or what `extract` returned.
        config: which part, which parameters, how to compare.

    Raises:
        UserError: a run, the pairs or the features do not serve.
    """
    config = config_of(EvaluateConfig, config)
    device = choose_device(config.device)
    arithmetic = Arithmetic(device, autocast_type(config.precision, device), config.batch_size)
    paths = [runs] if isinstance(runs, str | os.PathLike) else list(runs)
    if not paths or not all(isinstance(path, str | os.PathLike) for path in paths):
        raise UsageError("`runs` are run folders, or what train returned: give one or several")
    inputs = EvaluationInputs(paths, pairs, as_store(features), config)
    if config.baseline is not None and not any(config.baseline in (run.name, run.model.fusion) for run in inputs.runs):
        raise UsageError(f"`baseline={config.baseline}`: none of the runs: name one of their heads, or a run")
    if config.baseline is not None and len(inputs.runs) == 1:
        raise UsageError(f"`baseline={config.baseline}` means nothing to one run: give several, or leave it out")
    for note in inputs.notes:
        log.warning(note)
    predictor = Predictor(inputs, arithmetic)
    predictions = {run.name: predicted for run, predicted in predictor.predictions()}
    found = {run.name: _scaling(run, inputs, predictor) for run in inputs.runs} if config.calibrate else {}
    scalings = {name: by for name, by in found.items() if by is not None}
    if scalings:
        _tell_calibration(list(scalings.values()))
    return Evaluation(inputs, predictions, predictor, scalings)


def _tell_calibration(scalings: Sequence[TemperatureScaling]) -> None:
    """What the temperatures come from, since how many pairs that were says how much they are worth."""
    pairs = min(scaling.pairs for scaling in scalings)
    low, high = (f"{of(scaling.temperature for scaling in scalings):.2f}" for of in (min, max))
    told = low if low == high else f"{low} to {high}"
    log.info("probabilities are calibrated: T %s, fitted on %d validation pairs", told, pairs)
    if pairs < FEW_PAIRS:
        log.warning("a temperature fitted on %d pairs is uncertain: the calibration error may rise instead", pairs)


def _scaling(run: Run, inputs: EvaluationInputs, predictor: Predictor) -> TemperatureScaling | None:
    """A run's temperature: fitted on its validation part, or where the data has none of that, the saved one."""
    labels = inputs.validation(run).labels
    if len(labels):
        return fit_temperature(labels, predictor.validation(run))
    saved = load_calibration(run.folder, inputs.config.checkpoint)
    if saved is None:
        log.warning("%s: not calibrated: its validation part is not in this data, and it has no temperature", run.path)
    return saved
