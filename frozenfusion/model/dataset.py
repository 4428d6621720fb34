"""What a model reads of pairs: texts, image features, presence and labels, batch by batch.

No image is ever opened here. Shapes: b pairs of a batch, n pairs in all, l tokens, r image regions, D image width.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from frozenfusion.data.pairs import Pair
from frozenfusion.data.views import ids_of, labels_of, texts_of
from frozenfusion.store.reader import FeatureStore, Rows
from frozenfusion.store.tensors import FeatureRows
from frozenfusion.text.encoder import TextFeatures

AHEAD = 8  # batches that the disk is asked for: it answers many requests at once faster than one after another


class Texts(Protocol):
    """The texts of a dataset, in its order: token numbers, or features of a frozen encoder."""

    @property
    def lengths(self) -> Rows:
        """Tokens of each text, (n,)."""

    def batch(self, rows: Rows) -> Mapping[str, Tensor] | TextFeatures:
        """The texts of some rows, padded to the longest of them."""


class Images(Protocol):
    """The image features of a dataset, in its order."""

    @property
    def present(self) -> NDArray[np.bool_]:
        """Which pairs have an image that could be used, (n,)."""

    def __getitem__(self, places: Rows) -> Tensor:
        """Features (b, D) or (b, r, D) float32 of some rows, zeros where there is no image."""

    def will_need(self, places: Rows) -> None:
        """Have what some rows are made of read from the disk meanwhile; a hint."""


class Batch(NamedTuple):
    """Some pairs, ready for `PairClassifier`."""

    text: Mapping[str, Tensor] | TextFeatures
    image: Tensor  # (b, D) or (b, r, D) float32, zeros where there is no image
    present: Tensor  # (b, 2) bool: has a text, has an image
    labels: Tensor  # (b,) int64, -1 where there is none
    rows: Rows  # (b,) positions in the dataset


class PairDataset:
    """Pairs in the order given, with their `images` and `texts` in the same order; batches come on `device`.

    Pairs whose image could not be read, or whose text is empty, stay: `present` says what they lack.
    """

    def __init__(
        self, pairs: Sequence[Pair], images: Images, texts: Texts, *, device: str | torch.device = "cpu"
    ) -> None:
        self.ids = ids_of(pairs)
        self.images, self.texts = images, texts
        has_text = np.fromiter(map(bool, texts_of(pairs)), bool, len(pairs))
        self.present = torch.from_numpy(np.stack([has_text, images.present], axis=1)).to(device)
        self.labels = torch.from_numpy(labels_of(pairs)).to(device)

    def __len__(self) -> int:
        return len(self.ids)

    def with_texts(self, texts: Texts) -> PairDataset:
        """The same pairs with other texts; images are shared."""
        other = copy.copy(self)
        other.texts = texts
        return other

    @property
    def lengths(self) -> Rows:
        """Tokens of each text, (n,)."""
        return self.texts.lengths

    def in_turn(self, parts: Sequence[Rows], of: Rows | None = None) -> Iterator[Rows]:
        """The parts: positions in the dataset, or in rows `of` it. The disk is asked for each some parts before."""
        for place, part in enumerate(parts):
            for later in parts[place + AHEAD : place + AHEAD + 1] if place else parts[: AHEAD + 1]:
                self.images.will_need(later if of is None else of[later])
            yield part

    def batch(self, rows: Rows) -> Batch:
        """The pairs at some positions, (b,) int64."""
        places = torch.from_numpy(rows).to(self.labels.device)
        text = self.texts.batch(rows)
        return Batch(
            _moved(text, self.labels.device),
            self.images[rows],
            self.present.index_select(0, places),
            self.labels.index_select(0, places),
            rows,
        )


def stored_images(
    store: FeatureStore,
    pairs: Sequence[Pair],
    data: str | os.PathLike[str],
    *,
    device: str | torch.device = "cpu",
    pooled: bool = False,
) -> FeatureRows:
    """The image features of pairs in a store; with `pooled` regions come as their mean.

    Raises UserError, with the command for `data`, if the store lacks ids or has not computed them yet.
    """
    rows = store.require_rows(ids_of(pairs), data)
    return FeatureRows(store, rows, device, pooled=pooled)


def _moved(text: Mapping[str, Tensor] | TextFeatures, device: torch.device) -> Mapping[str, Tensor] | TextFeatures:
    if isinstance(text, TextFeatures):
        moved = (None if part is None else part.to(device) for part in text[1:])
        return TextFeatures(text.pooled.to(device), *moved)
    return {name: part.to(device) for name, part in text.items()}
