"""A run's temperature: what makes its probabilities as sure as they are right, kept in calibration.json.

Shapes: n pairs, c classes.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frozenfusion.model.checksums import with_checksum, without_checksum
from frozenfusion.model.run_folder import CHECKPOINTS, RunFolder
from frozenfusion.utils import fits
from frozenfusion.utils.errors import UserError
from frozenfusion.utils.files import read_json, write_json
from frozenfusion.utils.progress import log
from frozenfusion.utils.tensors import CHECKSUM, read_metadata

Floats = NDArray[np.float64]

LOWEST, HIGHEST = 0.05, 20.0  # temperatures; beyond, a few pairs that are all right or all wrong would lead anywhere
HOW = "evaluate.py RUN DATA --calibrate"


@dataclass(frozen=True)
class TemperatureScaling:
    """Probabilities `softmax(log p / T)`, which of a softmax is `softmax(logits / T)`; T > 1 makes a model less sure.

    The figures are of the pairs that T was fitted on. Source: Guo et al., On Calibration of Modern Neural Networks,
    ICML 2017.
    """

    temperature: float
    pairs: int
    ece_before: float
    ece_after: float
    nll_before: float  # mean, in nats
    nll_after: float
    parameters: str = ""  # which ones it was fitted for, once it is kept

    def scaled(self, probabilities: Floats) -> Floats:
        """Probabilities (n, c) at this temperature; their order stays."""
        return at_temperature(probabilities, self.temperature)


def at_temperature(probabilities: Floats, temperature: float) -> Floats:
    """`softmax(log p / T)` of probabilities (n, c)."""
    logits = np.log(np.maximum(probabilities, np.finfo(np.float64).tiny)) / temperature
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    scaled: Floats = shares / shares.sum(axis=1, keepdims=True)
    return scaled


_FITS: Mapping[str, fits.Fit] = {
    "temperature": fits.number(LOWEST, HIGHEST),
    "pairs": fits.whole(1, 2**63 - 1),
    **dict.fromkeys(("ece_before", "ece_after"), fits.number(0, 1)),
    **dict.fromkeys(("nll_before", "nll_after"), fits.number(0, 1e6)),
    "parameters": fits.text,
}


def load_calibration(run: RunFolder, checkpoint: str) -> TemperatureScaling | None:
    """What was fitted for a run's parameters, "best" or "last"; None where nothing was, or for others than these.

    Raises UserError for a damaged file.
    """
    values = _read(run).get(checkpoint)
    if values is None or not run.weights(checkpoint).is_file():
        return None
    if values["parameters"] != _identity(run, checkpoint):
        log.warning("%s: fitted for other parameters, not used: fit it again with %s", run.calibration_file, HOW)
        return None
    return TemperatureScaling(**values)


def save_calibration(run: RunFolder, checkpoint: str, fitted: TemperatureScaling) -> None:
    """Keep what was fitted for a run's parameters beside them. Raises UserError where the disk says no.

    What was kept before for other parameters, as of a model that was trained on, is left out, and that is said.
    """
    parameters = _identity(run, checkpoint)
    if fitted.parameters not in ("", parameters):
        log.warning("%s: the model's temperature was fitted for other parameters, and is not kept", run.path)
        return
    entry = dataclasses.asdict(dataclasses.replace(fitted, parameters=parameters))
    write_json(run.calibration_file, with_checksum({**_read(run), checkpoint: entry}))


def _read(run: RunFolder) -> dict[str, dict[str, Any]]:
    path = run.calibration_file
    if not path.is_file():
        return {}
    values = read_json(path)
    wrong = fits.misfit(values, dict.fromkeys((*CHECKPOINTS, "crc32"), lambda value: isinstance(value, dict | str)))
    for name in CHECKPOINTS if not wrong else ():
        if name in values:
            wrong = wrong or fits.misfit(values[name], _FITS, _FITS)
            wrong = wrong or ("has other entries" if len(values[name]) > len(_FITS) else None)
    if wrong:
        raise UserError(f"{path}: no calibration of a run ({wrong}): remove it, and write it again with {HOW}")
    return without_checksum(values, path, HOW)


def _identity(run: RunFolder, checkpoint: str) -> str:
    """What tells a run's parameters from others: the checksum that they carry, or their file's in version 0.1."""
    path = run.weights(checkpoint)
    return read_metadata(path).get(CHECKSUM) or f"file {zlib.crc32(path.read_bytes()):08x}"
