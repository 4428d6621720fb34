"""The two views of a pair that teach each other: what the frozen networks make of its text and of its image.

Shapes: n pairs, d features of a view.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from frozenfusion.evaluation.baselines import TOKEN
from frozenfusion.fusion.base import MODALITIES
from frozenfusion.store.reader import Rows
from frozenfusion.training.inputs import TrainingInputs

HEAD = "concat"  # whose inputs they are: one vector of the text, one of the image
_PAIRS_A_TIME = 4096
_MOST_WORDS = 2048

Matrix = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class View:
    """One modality of pairs: features (n, d), and which pairs have it at all (n,)."""

    values: Matrix
    present: NDArray[np.bool_]


def read_views(inputs: TrainingInputs, learned_from: Rows) -> Mapping[str, View]:
    """The views of all pairs of inputs, by modality: outputs of the image network, and of the text encoder.

    A recurrent text encoder has learned nothing before it is trained: the words of the texts stand in for it. Features
    have mean 0 and deviation 1 over the pairs `learned_from` that have the modality.
    """
    dataset = inputs.dataset("image")  # texts come apart
    rows = np.arange(len(dataset))
    batches = [rows[start : start + _PAIRS_A_TIME] for start in range(0, len(rows), _PAIRS_A_TIME)]
    values = {"image": np.concatenate([dataset.images[batch].float().cpu().numpy() for batch in batches])}
    if inputs.config.is_recurrent:
        values["text"] = _words(inputs.texts, learned_from)
    else:
        texts = inputs.frozen_texts(inputs.text_pool)
        values["text"] = np.concatenate([texts.batch(batch).pooled.float().cpu().numpy() for batch in batches])
    present = dataset.present.cpu().numpy()
    return {name: _view(values[name], present[:, place], learned_from) for place, name in enumerate(MODALITIES)}


def _words(texts: Sequence[str], learned_from: Rows) -> Matrix:
    """TF-IDF (n, d) of the most frequent words of the texts that are `learned_from`."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    words = TfidfVectorizer(
        token_pattern=TOKEN, sublinear_tf=True, min_df=2, max_features=_MOST_WORDS, dtype=np.float32
    )
    try:
        words.fit([texts[row] for row in learned_from.tolist()])
    except ValueError:  # no word comes twice
        return np.zeros((len(texts), 1), np.float32)
    found: Matrix = words.transform(texts).toarray()
    return found


def _view(values: Matrix, present: NDArray[np.bool_], learned_from: Rows) -> View:
    known = values[learned_from[present[learned_from]]]
    if len(known):
        deviation = known.std(0, dtype=np.float64)
        values -= known.mean(0, dtype=np.float64).astype(np.float32)
        values /= np.where(deviation > 1e-6, deviation, 1.0).astype(np.float32)
    return View(values, present)
