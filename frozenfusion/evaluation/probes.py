"""Linear probes: logistic regression on what the frozen networks make of images and texts, as a baseline.

Shapes: n pairs, d features, c classes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from frozenfusion.data.pairs import Pair
from frozenfusion.utils.errors import UserError
from frozenfusion.utils.progress import log

PROBE = "{} features + logistic regression"
PENALTIES = (1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0)  # scikit-learn's C, the strongest penalty first
FOLDS = 3
MOST_FITTED = 10_000  # train pairs, drawn from more: fitting shall not take longer than the evaluation
MOST_STEPS = 100  # of the optimiser
_PAIRS_A_TIME = 4096

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Matrix = NDArray[np.float32]


class Features(NamedTuple):
    """What a frozen network makes of pairs; rows of those that lack the modality are not `present`."""

    values: Matrix  # (n, d)
    present: NDArray[np.bool_]  # (n,)


class Labelled(NamedTuple):
    """Pairs and their labels (n,)."""

    pairs: Sequence[Pair]
    labels: Ints


class _Trial(NamedTuple):
    """What is fitted, and what the fit is judged by."""

    features: Matrix
    labels: Ints
    held_out: Matrix
    held_out_labels: Ints


def probes(
    sources: Mapping[str, Callable[[Sequence[Pair]], Features]],
    train: Labelled,
    validation: Labelled,
    pairs: Sequence[Pair],
    classes: int,
) -> dict[str, Floats]:
    """Probabilities (n, c) of `pairs` by a probe on each source of features, and by one on all side by side, by name.

    Weights are fitted on the train part alone, with the penalty that has the lowest loss on the validation part, or
    over folds of the train part where there is none. A source raises UserError where it has not the features of all
    pairs: it is left out, and that is said.
    """
    if len(np.unique(train.labels)) < 2:
        return {}
    if len(train.pairs) > MOST_FITTED:
        log.info("baselines on features are fitted on %s of %s pairs", f"{MOST_FITTED:,}", f"{len(train.pairs):,}")
        drawn = np.sort(np.random.default_rng(0).permutation(len(train.pairs))[:MOST_FITTED])
        train = Labelled([train.pairs[place] for place in drawn.tolist()], train.labels[drawn])
    found: dict[str, Floats] = {}
    readers: dict[str, Callable[[Sequence[Pair]], Matrix]] = {}
    for name, source in sources.items():
        try:
            reader = _standardised(source, train.pairs)
            found[PROBE.format(name)] = _probe(reader, train, validation, pairs, classes)
            readers[name] = reader
        except UserError as error:
            log.warning("no baseline on %s features: %s", name, error)
    if len(readers) > 1:
        both = PROBE.format(" + ".join(readers))
        found[both] = _probe(
            lambda some: np.concatenate([reader(some) for reader in readers.values()], axis=1),
            *(train, validation, pairs, classes),
        )
    return found


def _standardised(
    source: Callable[[Sequence[Pair]], Features], train: Sequence[Pair]
) -> Callable[[Sequence[Pair]], Matrix]:
    """A source whose features have mean 0 and deviation 1 on the train part; what is missing is 0, the mean."""
    values, present = source(train)
    known = values[present] if present.any() else np.zeros((1, values.shape[1]), np.float32)
    mean, deviation = known.mean(0, dtype=np.float64), known.std(0, dtype=np.float64)
    shift, scale = mean.astype(np.float32), np.where(deviation > 1e-6, deviation, 1.0).astype(np.float32)

    def read(pairs: Sequence[Pair]) -> Matrix:
        values, present = source(pairs)
        scaled: Matrix = (values - shift) / scale
        scaled[~present] = 0
        return scaled

    return read


def _probe(
    read: Callable[[Sequence[Pair]], Matrix],
    train: Labelled,
    validation: Labelled,
    pairs: Sequence[Pair],
    classes: int,
) -> Floats:
    features, labels = read(train.pairs), train.labels
    held_out = read(validation.pairs) if len(validation.pairs) else features[:0]
    model = Regression(classes)
    model.fit(features, labels, best_penalty(features, labels, held_out, validation.labels, classes))
    parts = [pairs[start : start + _PAIRS_A_TIME] for start in range(0, len(pairs), _PAIRS_A_TIME)]
    return np.concatenate([model.probabilities(read(part)) for part in parts])


def best_penalty(features: Matrix, labels: Ints, held_out: Matrix, held_out_labels: Ints, classes: int) -> float:
    """The penalty with which a fit to features (n, d) is best on held-out pairs, or over folds where there are none."""
    if len(held_out):
        return _best_penalty([_Trial(features, labels, held_out, held_out_labels)], classes)
    fold = _folds(labels)
    trials = [
        _Trial(features[fold != i], labels[fold != i], features[fold == i], labels[fold == i]) for i in range(FOLDS)
    ]
    return _best_penalty(trials, classes)


def _folds(labels: Ints) -> Ints:
    """A fold for each pair (n,), drawn so that all folds have as many of each class."""
    drawn = np.random.default_rng(0).permutation(len(labels))
    fold = np.empty(len(labels), dtype=np.int64)
    fold[drawn[np.argsort(labels[drawn], kind="stable")]] = np.arange(len(labels)) % FOLDS
    return fold


def _best_penalty(trials: Sequence[_Trial], classes: int) -> float:
    """The penalty with the lowest cross-entropy over the trials; weaker ones are not tried once it rises."""
    models = [Regression(classes) for _ in trials]
    best, lowest = PENALTIES[0], np.inf
    for penalty in PENALTIES:
        loss = 0.0
        for model, trial in zip(models, trials, strict=True):
            model.fit(trial.features, trial.labels, penalty)
            given = model.probabilities(trial.held_out)[np.arange(len(trial.held_out)), trial.held_out_labels]
            loss -= float(np.log(np.maximum(given, 1e-12)).sum())
        if loss >= lowest:
            break
        best, lowest = penalty, loss
    return best


class Regression:
    """scikit-learn's logistic regression (L2 penalty, L-BFGS) that goes on from its last fit."""

    def __init__(self, classes: int) -> None:
        from sklearn.linear_model import LogisticRegression

        self._model, self._classes = LogisticRegression(max_iter=MOST_STEPS, warm_start=True), classes

    def fit(self, features: Matrix, labels: Ints, penalty: float, weights: Floats | None = None) -> None:
        """Fit to features (n, d), whose pairs weigh `weights` (n,), alike if None."""
        from sklearn.exceptions import ConvergenceWarning

        self._model.set_params(C=penalty)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # a model that has not quite converged still counts
            self._model.fit(features, labels, sample_weight=weights)

    def probabilities(self, features: Matrix) -> Floats:
        """Probabilities (n, c), 0 for a class that the fitted pairs lack."""
        found = np.zeros((len(features), self._classes))
        found[:, self._model.classes_] = self._model.predict_proba(features)
        return found
