"""Rows of a store as tensors.

Shapes: n rows of a store, b of a batch, r regions.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from frozenfusion.store.reader import FeatureStore, Rows
from frozenfusion.store.status import OK

HELD_BYTES = 2**30  # features up to this size are held in memory, larger ones stay in the file


class FeatureRows:
    """Rows of a store as float32 tensors on `device`: held there when they are few, else read from the file.

    `rows` (n,) int64 are the store's; those that are not ok are not `present` (n,) and read as zeros. `pooled` takes
    the mean over regions. Raises UserError for rows that are damaged.
    """

    def __init__(
        self, store: FeatureStore, rows: Rows, device: str | torch.device = "cpu", *, pooled: bool = False
    ) -> None:
        self._store, self._rows, self._device = store, rows, torch.device(device)
        self.present = store.status[rows] == OK
        self._checked = np.zeros(len(rows), bool)  # against the checksums
        self._pooled = pooled and len(store.shape) == 2
        size = 4 * len(rows) * math.prod(self._shape)
        self._held = self._hold() if size <= HELD_BYTES else None

    def __getitem__(self, places: Rows) -> Tensor:
        if self._held is None:
            return self._read(places)
        return self._held.index_select(0, torch.from_numpy(places).to(self._device))

    @property
    def store(self) -> FeatureStore:
        """The store whose rows these are."""
        return self._store

    @property
    def _shape(self) -> tuple[int, ...]:
        return self._store.shape[-1:] if self._pooled else self._store.shape

    def _hold(self) -> Tensor:
        held = torch.empty(len(self._rows), *self._shape, device=self._device)
        for places in self._store.in_chunks(np.arange(len(self._rows))):
            held[places[0] : places[-1] + 1] = self._read(places)
        return held

    def _read(self, places: Rows) -> Tensor:
        features = torch.zeros(len(places), *self._store.shape)
        ok = np.flatnonzero(self.present[places])
        rows = self._rows[places[ok]]
        if len(ok):
            self._check(places[ok])
            order = np.argsort(rows, kind="stable")  # in the order of the file
            features[torch.from_numpy(ok[order])] = torch.from_numpy(self._store.gather(rows[order])).float()
        return (features.mean(dim=1) if self._pooled else features).to(self._device)

    def _check(self, places: Rows) -> None:
        """Let no damaged row be trained on or judged by: each is checked when it is read first."""
        new = places[~self._checked[places]]
        self._store.require_undamaged(self._rows[new])
        self._checked[new] = True
