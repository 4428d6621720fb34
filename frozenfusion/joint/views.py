"""The two views of a pair that teach each other: what the frozen networks make of its text and of its image.

Shapes: n pairs, d features of a view.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from frozenfusion.fusion.base import MODALITIES
from frozenfusion.store.reader import Rows
from frozenfusion.text.encoder import TextFeatures
from frozenfusion.training.inputs import TrainingInputs

HEAD = "concat"  # whose inputs they are: one vector of the text, one of the image
_PAIRS_A_TIME = 4096

Matrix = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class View:
    """One modality of pairs: features (n, d), and which pairs have it at all (n,)."""

    values: Matrix
    present: NDArray[np.bool_]


def read_views(inputs: TrainingInputs, learned_from: Rows) -> Mapping[str, View]:
    """The views of all pairs of inputs whose text encoder is frozen, by modality.

    Features have mean 0 and deviation 1 over the pairs `learned_from` that have the modality.
    """
    dataset = inputs.dataset(HEAD, inputs.text_pool)
    rows = np.arange(len(dataset))
    parts: dict[str, list[Matrix]] = {name: [] for name in MODALITIES}
    for start in range(0, len(rows), _PAIRS_A_TIME):
        batch = dataset.batch(rows[start : start + _PAIRS_A_TIME])
        assert isinstance(batch.text, TextFeatures)  # the encoder is frozen
        parts["text"].append(batch.text.pooled.float().cpu().numpy())
        parts["image"].append(batch.image.float().cpu().numpy())
    present = dataset.present.cpu().numpy()
    return {name: _view(parts[name], present[:, place], learned_from) for place, name in enumerate(MODALITIES)}


def _view(parts: Sequence[Matrix], present: NDArray[np.bool_], learned_from: Rows) -> View:
    values = np.concatenate(parts)
    known = values[learned_from[present[learned_from]]]
    if len(known):
        deviation = known.std(0, dtype=np.float64)
        values -= known.mean(0, dtype=np.float64).astype(np.float32)
        values /= np.where(deviation > 1e-6, deviation, 1.0).astype(np.float32)
    return View(values, present)
