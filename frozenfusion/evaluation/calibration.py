"""Temperature scaling: fitted on a run's validation part, so that a confidence of 80 % is right in 80 % of the cases.

Shapes: n pairs, c classes.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from frozenfusion.evaluation import metrics
from frozenfusion.model.calibration import HIGHEST, LOWEST, TemperatureScaling, at_temperature


def fit_temperature(labels: NDArray[np.int64], probabilities: NDArray[np.float64]) -> TemperatureScaling:
    """The temperature at which labels (n,) have the least mean negative log-likelihood by probabilities (n, c)."""
    from scipy.optimize import minimize_scalar

    def nll(temperature: float) -> float:
        given = at_temperature(probabilities, temperature)[np.arange(len(labels)), labels]
        return float(-np.log(np.maximum(given, np.finfo(np.float64).tiny)).mean())

    # in 1 / T it is convex, so that in log T too it has one minimum
    found = minimize_scalar(
        lambda power: nll(math.exp(power)),
        bounds=(math.log(LOWEST), math.log(HIGHEST)),
        method="bounded",
        options={"xatol": 1e-6},
    )
    temperature = min(max(math.exp(found.x), LOWEST), HIGHEST)
    if not nll(temperature) < nll(1.0):
        temperature = 1.0
    return TemperatureScaling(
        temperature=temperature,
        pairs=len(labels),
        ece_before=metrics.calibration(labels, probabilities).ece,
        ece_after=metrics.calibration(labels, at_temperature(probabilities, temperature)).ece,
        nll_before=nll(1.0),
        nll_after=nll(temperature),
    )
