"""Which texts go together in a batch: those of like length, so that little is padding.

Shapes: n texts, b of a batch.
"""

from __future__ import annotations

import numpy as np

_BUCKET_BATCHES = 50  # rows are sorted by length within so many batches: little padding, still random


def batches_by_length(lengths: np.ndarray, batch_size: int, *, seed: int, epoch: int) -> list[np.ndarray]:
    """Random batches of rows of like length: every row exactly once; the same for the same (seed, epoch).

    Rows are shuffled, sorted by padded length within stretches of some batches, cut, and the batches shuffled.
    """
    random = np.random.default_rng([seed, epoch])
    rows = random.permutation(len(lengths))
    padded = -(-np.asarray(lengths) // 8)
    stretch = _BUCKET_BATCHES * batch_size
    batches = []
    for start in range(0, len(rows), stretch):
        part = rows[start : start + stretch]
        part = part[np.argsort(padded[part], kind="stable")]
        batches += [part[first : first + batch_size] for first in range(0, len(part), batch_size)]
    return [batches[i] for i in random.permutation(len(batches))]


def batches_in_order_of_length(lengths: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Batches of rows from the longest to the shortest (so memory runs out at once or never), for evaluation."""
    rows = np.argsort(-np.asarray(lengths), kind="stable")
    return [rows[first : first + batch_size] for first in range(0, len(rows), batch_size)]
