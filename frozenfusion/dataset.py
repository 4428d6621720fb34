"""What training and evaluation read: texts, cached image features, presence and labels, batch by batch.

No image is ever opened here. Shapes: b pairs of a batch, n pairs in all, l tokens, r image regions.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from frozenfusion.errors import UserError
from frozenfusion.images import OK, PENDING
from frozenfusion.pairs import Pairs
from frozenfusion.store import FeatureStore
from frozenfusion.text import TextFeatures

HELD_BYTES = 2**30  # features up to this size are held in memory, larger ones stay in the file

Rows = npt.NDArray[np.int64]


class Texts(Protocol):
    """The texts of a dataset, in its order: token numbers, or features of a frozen encoder."""

    @property
    def lengths(self) -> Rows:
        """Tokens of each text, (n,)."""

    def batch(self, rows: Rows) -> Mapping[str, Tensor] | TextFeatures:
        """The texts of some rows, padded to the longest of them."""


class Batch(NamedTuple):
    """Some pairs, ready for `PairClassifier`."""

    text: Mapping[str, Tensor] | TextFeatures
    image: Tensor  # (b, D) or (b, r, D) float32, zeros where there is no image
    present: Tensor  # (b, 2) bool: has a text, has an image
    labels: Tensor  # (b,) int64, -1 where there is none
    rows: Rows  # (b,) positions in the dataset


class PairDataset:
    """The pairs called `ids`, in that order, with their image features from `store` and their `texts`.

    Pairs whose image could not be read, or whose text is empty, stay: `present` says what they lack. Batches come on
    `device`; with `pooled` the image regions come as their mean, for heads that look at no single one. Raises
    UserError, with the command that mends it, if the store lacks ids or has not computed them yet.
    """

    def __init__(
        self,
        pairs: Pairs,
        ids: Sequence[str],
        store: FeatureStore,
        texts: Texts,
        *,
        data: str | Path | None = None,
        device: str | torch.device = "cpu",
        pooled: bool = False,
    ) -> None:
        self.ids = list(ids)
        self.texts = texts
        places = pairs.rows(ids)
        rows = computed_rows(store, self.ids, data or pairs.root)
        self._images = FeatureRows(store, rows, device, pooled=pooled)
        has_text = np.array([bool(pairs[place].text) for place in places.tolist()], dtype=bool)
        self.present = torch.from_numpy(np.stack([has_text, store.status[rows] == OK], axis=1)).to(device)
        self.labels = torch.from_numpy(pairs.labels[places]).to(device)

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

    def batch(self, rows: Rows) -> Batch:
        """The pairs at some positions, (b,) int64."""
        places = torch.from_numpy(rows).to(self.labels.device)
        text = self.texts.batch(rows)
        return Batch(
            _moved(text, self.labels.device),
            self._images[rows],
            self.present.index_select(0, places),
            self.labels.index_select(0, places),
            rows,
        )


def computed_rows(store: FeatureStore, ids: Sequence[str], data: str | Path) -> Rows:
    """The store's rows of `ids`. Raises UserError, with the command that mends it, unless all have been computed."""
    rows = store.rows(ids)
    absent = [id for id, row in zip(ids, rows.tolist(), strict=True) if row < 0]
    if absent:
        raise UserError(f"{store.path}: lacks {_told(absent, ids)}: {_remedy(store, data)}")
    pending = [ids[place] for place in np.flatnonzero(store.status[rows] == PENDING).tolist()]
    if pending:
        raise UserError(f"{store.path}: has not computed {_told(pending, ids)} yet: {_remedy(store, data)}")
    return rows


class FeatureRows:
    """Rows of a store as float32 tensors on `device`: held there when they are few, else read from the file.

    `rows` (n,) int64 are the store's; those that are not ok read as zeros. `pooled` takes the mean over regions. Raises
    UserError for rows that are damaged.
    """

    def __init__(
        self, store: FeatureStore, rows: Rows, device: str | torch.device = "cpu", *, pooled: bool = False
    ) -> None:
        self._store, self._rows, self._device = store, rows, torch.device(device)
        self._ok = store.status[rows] == OK
        self._checked = np.zeros(len(rows), bool)  # against the checksums
        self._pooled = pooled and len(store.shape) == 2
        size = 4 * len(rows) * math.prod(self._shape)
        self._held = self._hold() if size <= HELD_BYTES else None

    def __getitem__(self, places: Rows) -> Tensor:
        if self._held is None:
            return self._read(places)
        return self._held.index_select(0, torch.from_numpy(places).to(self._device))

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
        ok = np.flatnonzero(self._ok[places])
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


def _told(some: list[str], ids: Sequence[str]) -> str:
    first = ", ".join(some[:3]) + (", …" if len(some) > 3 else "")
    return f"{len(some):,} of the {len(ids):,} pairs that are needed ({first})"


def _remedy(store: FeatureStore, data: str | Path) -> str:
    return f"add them with python extract_features.py {data} --cache {store.path} and the options that made it"


def _moved(text: Mapping[str, Tensor] | TextFeatures, device: torch.device) -> Mapping[str, Tensor] | TextFeatures:
    if isinstance(text, TextFeatures):
        moved = (None if part is None else part.to(device) for part in text[1:])
        return TextFeatures(text.pooled.to(device), *moved)
    return {name: part.to(device) for name, part in text.items()}
