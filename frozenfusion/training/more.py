"""Pairs that are trained on beside those of the split: where they come from, and what their labels are worth.

Shapes: n pairs, b of a batch, r image regions, D image width.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from frozenfusion.data.identity import require_same_images
from frozenfusion.data.pairs import Pair
from frozenfusion.data.places import NO_FILE, image_stat
from frozenfusion.model.dataset import Images
from frozenfusion.store.reader import FeatureStore, Rows
from frozenfusion.store.status import DIGEST_BYTES, MISSING
from frozenfusion.store.tensors import FeatureRows


@dataclass(frozen=True)
class Source:
    """Pairs and the feature file of their images; a pair that it lacks, and whose image is not there, has no image.

    `data` is the folder or manifest that they are of.
    """

    pairs: Sequence[Pair]
    store: FeatureStore
    data: str | os.PathLike[str]
    strict: bool = True  # every pair needs a row, if only one that says that its image is missing

    @cached_property
    def rows(self) -> Rows:
        """The row of each pair, (n,); -1 where it has none and needs none."""
        ids = [pair.id for pair in self.pairs]
        rows = self.store.rows(ids)
        needed = [id for id, row, pair in zip(ids, rows, self.pairs, strict=True) if row >= 0 or self._needs(pair)]
        self.store.require_rows(needed, self.data)
        return rows

    def _needs(self, pair: Pair) -> bool:
        return self.strict or image_stat(pair.image) != NO_FILE

    @cached_property
    def status(self) -> NDArray[np.uint8]:
        """What became of each image, (n,)."""
        return np.where(self.rows >= 0, self.store.status[self.rows], MISSING).astype(np.uint8)

    @cached_property
    def digest(self) -> NDArray[np.uint8]:
        """Digest of each image's file, (n, 16), zeros where there is no row."""
        digest = np.zeros((len(self.pairs), DIGEST_BYTES), np.uint8)
        digest[self.rows >= 0] = self.store.digest[self.rows[self.rows >= 0]]
        return digest

    def require(self, *, same_images: bool) -> None:
        """Raise UserError where rows are lacking, or where they are of other images than those of the pairs."""
        places = np.flatnonzero(self.rows >= 0)
        if same_images:
            some = [self.pairs[place] for place in places.tolist()]
            require_same_images(self.store, self.rows[places], some, self.data)

    def images(self, device: torch.device, *, pooled: bool) -> Images:
        """The features of the images, in the order of the pairs; with `pooled` regions come as their mean."""
        if (self.rows >= 0).all():
            return FeatureRows(self.store, self.rows, device, pooled=pooled)
        return _SomeImages(FeatureRows(self.store, self.rows[self.rows >= 0], device, pooled=pooled), self.rows >= 0)


@dataclass(frozen=True)
class MorePairs:
    """Pairs beside the split: with the labels that they are to be trained on, or without, to be read alone.

    Attributes:
        sources: the pairs.
        weight: of each of their labels in the loss, where a label of the split weighs 1.
        options: what gave them their labels, for the run's config.json.
    """

    sources: Sequence[Source] = ()
    weight: float = 1.0
    options: Mapping[str, Any] = field(default_factory=dict)


def joined(parts: Sequence[Images]) -> Images:
    """The images of several sources as one."""
    return parts[0] if len(parts) == 1 else _JoinedImages(parts)


class _JoinedImages:
    """Images of several sources, one source's after the other's."""

    def __init__(self, parts: Sequence[Images]) -> None:
        self._parts = parts
        self.present: NDArray[np.bool_] = np.concatenate([part.present for part in parts])
        self._ends = np.cumsum([len(part.present) for part in parts])

    def __getitem__(self, places: Rows) -> Tensor:
        """Features (b, D) or (b, r, D) float32 of some rows, zeros where there is no image."""
        of = np.searchsorted(self._ends, places, side="right")
        starts = self._ends - [len(part.present) for part in self._parts]
        found = torch.cat([part[places[of == i] - starts[i]] for i, part in enumerate(self._parts)])
        order = np.argsort(np.argsort(of, kind="stable"))  # where each of them came to lie
        return found[torch.from_numpy(order).to(found.device)]

    def will_need(self, places: Rows) -> None:
        """Have what some rows are made of read from the disk meanwhile."""
        of = np.searchsorted(self._ends, places, side="right")
        for i, part in enumerate(self._parts):
            part.will_need(places[of == i] - (self._ends[i] - len(part.present)))


class _SomeImages:
    """Images of which not every pair has a row."""

    def __init__(self, images: FeatureRows, has_row: NDArray[np.bool_]) -> None:
        self._images = images
        self._places = np.where(has_row, np.cumsum(has_row) - 1, -1)
        self.present: NDArray[np.bool_] = np.zeros(len(has_row), bool)
        self.present[has_row] = images.present

    def __getitem__(self, places: Rows) -> Tensor:
        rows = self._places[places]
        some = self._images[rows[rows >= 0]]
        features = some.new_zeros(len(places), *some.shape[1:])
        features[torch.from_numpy(rows >= 0).to(some.device)] = some
        return features

    def will_need(self, places: Rows) -> None:
        """Have what some rows are made of read from the disk meanwhile."""
        rows = self._places[places]
        self._images.will_need(rows[rows >= 0])
