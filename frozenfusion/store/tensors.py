"""Rows of a store as tensors.

Shapes: n rows of a store, b of a batch, r regions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from frozenfusion.store.reader import FeatureStore, Rows
from frozenfusion.store.status import OK

HELD_BYTES = 2**30  # features up to this size are held on a device, larger ones stay in the file
MAPPED_BYTES = 2**28  # of those that stay, about what is mapped before it is let go of
AROUND_BYTES = 2**16  # that the system maps with a row


class FeatureRows:
    """Rows of a store as float32 tensors on `device`.

    On a CPU they stay in the file, which all processes map; what is to be computed, or lies on another device, is held
    there when it is small. `rows` (n,) int64 are the store's; those that are not ok are not `present` (n,) and read as
    zeros. `pooled` takes the mean over regions. Raises UserError for rows that are damaged.
    """

    def __init__(
        self, store: FeatureStore, rows: Rows, device: str | torch.device = "cpu", *, pooled: bool = False
    ) -> None:
        self._store, self._rows, self._device = store, rows, torch.device(device)
        self.present = store.status[rows] == OK
        self._unchecked = self.present.copy()  # against the checksums
        self._pooled = pooled and len(store.shape) == 2
        self._held: Tensor | None = None
        self._is_large = 4 * len(rows) * math.prod(self._shape) > HELD_BYTES
        self._mapped = 0  # bytes, since they were let go of
        if not self._is_large:
            if self._pooled or self._device.type != "cpu":
                self._held = self._hold()
            else:
                for places in self._in_chunks():
                    self._check(places)

    def __getitem__(self, places: Rows) -> Tensor:
        return self.first(places, None)

    def first(self, places: Rows, parts: int | None) -> Tensor:
        """The first parts of rows that have several, tokens or regions; all of them if None."""
        if self._held is None:
            return self._read(places, parts)
        taken = self._held.index_select(0, torch.from_numpy(places).to(self._device))
        return taken if parts is None else taken[:, :parts]

    def of(self, places: Rows) -> FeatureRows:
        """Some of these rows, as they lie at `places`."""
        return FeatureRows(self._store, self._rows[places], self._device, pooled=self._pooled)

    def will_need(self, places: Rows) -> None:
        """Have rows that are wanted soon read from the disk meanwhile, where they are too many to be in memory."""
        if self._is_large:
            self._store.will_need(self._rows[places])

    @property
    def store(self) -> FeatureStore:
        """The store whose rows these are."""
        return self._store

    @property
    def _shape(self) -> tuple[int, ...]:
        return self._store.shape[-1:] if self._pooled else self._store.shape

    def _hold(self) -> Tensor:
        held = torch.empty(len(self._rows), *self._shape, device=self._device)
        for places in self._in_chunks():
            held[torch.from_numpy(places).to(self._device)] = self._read(places)
        return held

    def _in_chunks(self) -> Iterator[Rows]:
        """All places in the order of their rows in the store, some megabytes at a time."""
        order, start = np.argsort(self._rows, kind="stable"), 0
        for rows in self._store.in_chunks(self._rows[order]):
            yield order[start : start + len(rows)]
            start += len(rows)

    def _read(self, places: Rows, parts: int | None = None) -> Tensor:
        self._check(places)
        rows = self._rows[places]
        taken = self._store.gather(rows) if parts is None else self._store.features[rows, :parts]
        features = torch.from_numpy(taken).float()
        missing = ~self.present[places]
        if missing.any():
            features[torch.from_numpy(missing)] = 0.0
        if self._is_large:
            self._let_go(taken.nbytes + AROUND_BYTES * len(places))
        return (features.mean(dim=1) if self._pooled else features).to(self._device)

    def _let_go(self, more: int) -> None:
        """Count bytes that were mapped, and let go of all when they are many: memory does not grow with n."""
        self._mapped += more
        if self._mapped > MAPPED_BYTES:
            self._store.let_go(self._rows)
            self._mapped = 0

    def _check(self, places: Rows) -> None:
        """Let no damaged row be trained on or judged by: each is checked when it is read first."""
        new = places[self._unchecked[places]]
        if len(new):
            self._store.require_undamaged(self._rows[new])
            self._unchecked[new] = False
