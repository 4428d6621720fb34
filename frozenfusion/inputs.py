"""All that an evaluation reads, checked before anything is computed."""

from __future__ import annotations

from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from frozenfusion.errors import UserError
from frozenfusion.fusion import head_class
from frozenfusion.images import OK
from frozenfusion.options import EvaluateOptions
from frozenfusion.pairs import Pair, read_pairs
from frozenfusion.parts import choose_part, labels_of
from frozenfusion.progress import log
from frozenfusion.runs import Run, find_runs
from frozenfusion.splits import Shared, shared_across
from frozenfusion.store import FeatureStore


class Inputs:
    """Runs, pairs, the part of them to evaluate, and the feature file; n pairs in the part.

    runs: finished runs of the same classes and split; pairs: all of the data; part: what is evaluated, by id; labels
    (n,) in the runs' order of classes, -1 where there is none. Raises UserError where they do not serve together.
    """

    def __init__(self, options: EvaluateOptions) -> None:
        self._options = options
        self.runs = find_runs(options.runs, options.checkpoint)
        self.label_names = self.runs[0].model.label_names
        self.store = FeatureStore(options.cache)
        for run in self.runs:
            self._check(run)
        self.pairs = read_pairs(options.data)
        log.info(self.pairs.summary())
        self.part = choose_part(self.pairs, self.runs, options.split, options.data)
        self.labels: NDArray[np.int64] = labels_of(self.pairs, self.part.ids, self.label_names, options.data)
        self.members: list[Pair] = [self.pairs[int(row)] for row in self.pairs.rows(self.part.ids)]

    def _check(self, run: Run) -> None:
        if run.model.label_names != self.label_names:
            told = " and ".join(f"{', '.join(each.model.label_names)} ({each.folder})" for each in (self.runs[0], run))
            raise UserError(f"the runs have different classes, {told}: evaluate them one by one")
        if "image" in head_class(run.head).uses:
            changes = self.store.differences(run.model.image_fingerprint)
            if changes:
                raise UserError(
                    f"{run.folder} was trained on other image features than {self.store.path} holds ({changes}):"
                    " give the --cache that it was trained on, or one made in the same way"
                )

    @property
    def scored(self) -> NDArray[np.int64]:
        """Positions in the part of the pairs that have a label."""
        return np.flatnonzero(self.labels >= 0)

    @cached_property
    def train(self) -> tuple[list[str], NDArray[np.int64]]:
        """Texts and labels of the train part, as far as it is in this data; nothing for new data."""
        if self.part.name == "new":
            return [], np.zeros(0, dtype=np.int64)
        rows = self.pairs.rows(self.runs[0].split.train)
        ids = [self.pairs[int(row)].id for row in rows[rows >= 0]]
        labels = labels_of(self.pairs, ids, self.label_names, self._options.data)
        texts = [self.pairs[int(row)].text for row in self.pairs.rows(ids)[labels >= 0]]
        return texts, labels[labels >= 0]

    @cached_property
    def shared(self) -> Shared:
        """How many texts and images of the part are in the train part too, where the two are apart."""
        if self.part.name not in ("test", "val"):
            return Shared(0, 0)
        rows = self.store.rows(self.pairs.ids).tolist()
        digests = {
            id: self.store.digest[row].tobytes()
            for id, row in zip(self.pairs.ids, rows, strict=True)
            if row >= 0 and self.store.status[row] == OK
        }
        return shared_across(self.pairs, self.runs[0].split.train, self.part.ids, digests)

    @cached_property
    def notes(self) -> list[str]:
        """What a reader of the figures must know, in sentences."""
        notes, n = list(self.part.notes), len(self.labels)
        if 0 < len(self.scored) < n:
            notes.append(f"{n - len(self.scored):,} of the {n:,} pairs have no label: predicted, not scored.")
        if self._options.without:
            notes.append(f"The {self._options.without} was withheld from the models.")
        if len(self.scored) and not self.train[0]:
            notes.append("No baselines: they are fitted on the run's train part, which is not in this data.")
        if any(self.shared):
            notes.append(
                f"{self.shared.texts:,} of the {n:,} {self.part.name} pairs have a text, and {self.shared.images:,} "
                "an image, that also occurs in the train part: the figures flatter."
            )
        return notes
