"""All that an evaluation reads, checked before anything is computed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from frozenfusion.data.identity import require_same_images
from frozenfusion.data.pairs import Pairs, require_pairs
from frozenfusion.data.splits import Overlap, overlap_between
from frozenfusion.data.views import PairView, ids_of
from frozenfusion.evaluation.config import EvaluateConfig
from frozenfusion.evaluation.probes import Labelled
from frozenfusion.evaluation.runs import Run, find_runs
from frozenfusion.evaluation.selection import Rows, model_labels, select_pairs
from frozenfusion.store.command import extraction_command
from frozenfusion.store.reader import FeatureStore
from frozenfusion.store.status import OK
from frozenfusion.utils.errors import UserError
from frozenfusion.utils.messages import printable, some_of


class EvaluationInputs:
    """Runs, pairs, the selection of them that is evaluated, and the feature file; n pairs in the selection.

    runs: finished runs of the same classes and split; pairs: all of the data; selection: what is evaluated, by id;
    members: the same as pairs; labels (n,) in the runs' order of classes, -1 where there is none. Raises UserError
    where they do not serve together.
    """

    def __init__(
        self,
        runs: Sequence[str | os.PathLike[str]],
        pairs: Pairs,
        store: FeatureStore,
        config: EvaluateConfig,
    ) -> None:
        require_pairs(pairs)
        self.config, self.pairs, self.store = config, pairs, store
        self.runs = find_runs(runs, config.checkpoint)
        self.label_names = self.runs[0].model.label_names
        for run in self.runs:
            self._check(run)
        self.selection = select_pairs(pairs, self.runs, config.split)
        self.members = self.selection.members
        self.labels: NDArray[np.int64] = model_labels(pairs, self.members.rows, self.label_names)
        self._validations: dict[bytes, Labelled] = {}  # by the rows of their pairs
        if any(run.model.reads_image for run in self.runs):
            rows = store.require_rows(ids_of(self.members), pairs.source)
            require_same_images(store, rows, self.members, pairs.source)

    def _check(self, run: Run) -> None:
        if run.model.label_names != self.label_names:
            told = " and ".join(
                f"{some_of([*map(printable, each.model.label_names)])} ({each.path})" for each in (self.runs[0], run)
            )
            raise UserError(f"the runs have different classes, {told}: evaluate them one by one")
        if run.model.reads_image:
            changes = self.store.differences(run.model.image_fingerprint)
            if changes:
                model = run.model
                make = extraction_command(self.pairs.source, "NEW.h5", model.image_fingerprint, model.image_weights)
                raise UserError(
                    f"{run.path} was trained on other image features than {self.store.path} holds ({changes}): "
                    f"give the `features` that it was trained on, or make some in the same way with {make}"
                )

    @property
    def scored(self) -> NDArray[np.int64]:
        """Positions in the part of the pairs that have a label."""
        return np.flatnonzero(self.labels >= 0)

    @property
    def scored_members(self) -> PairView:
        """The pairs of the part that have a label."""
        return PairView(self.pairs.columns, self.members.rows[self.scored])

    @cached_property
    def train(self) -> Labelled:
        """The labelled pairs of the train part, as far as it is in this data; none for new data."""
        return self._labelled(self._train_rows)

    def validation(self, run: Run) -> Labelled:
        """The labelled pairs of a run's validation part, as far as it is in this data; none for new data."""
        rows = self._here([] if self.selection.name == "new" else run.folder.split.val)
        known_as = rows.tobytes()
        if known_as not in self._validations:
            self._validations[known_as] = self._labelled(rows)
        return self._validations[known_as]

    @cached_property
    def _train_rows(self) -> Rows:
        return self._here([] if self.selection.name == "new" else self.runs[0].folder.split.train)

    def _here(self, ids: Sequence[str]) -> Rows:
        """The positions of those of some pairs that are in this data."""
        rows = self.pairs.rows(ids)
        return rows[rows >= 0]

    def _labelled(self, rows: Rows) -> Labelled:
        labels = model_labels(self.pairs, rows, self.label_names)
        keep = labels >= 0
        return Labelled(PairView(self.pairs.columns, rows[keep]), labels[keep])

    @cached_property
    def overlap(self) -> Overlap:
        """How many texts and images of the part are in the train part too, where the two are apart."""
        if self.selection.name not in ("test", "val"):
            return Overlap(0, 0)
        rows = self.store.rows(self.pairs.columns.encoded_ids)
        digests = self.store.digest[rows].view("S16")[:, 0]
        digests[(rows < 0) | (self.store.status[rows] != OK)] = b""
        return overlap_between(self.pairs, self._train_rows, self.members.rows, digests)

    @cached_property
    def notes(self) -> list[str]:
        """What a reader of the figures must know, in sentences."""
        notes, n = list(self.selection.notes), len(self.labels)
        if 0 < len(self.scored) < n:
            notes.append(f"{n - len(self.scored):,} of the {n:,} pairs have no label: predicted, not scored.")
        if self.config.without:
            notes.append(f"The {self.config.without} was withheld from the models.")
        if self.config.calibrate and self.selection.name in ("val", "all"):
            notes.append("Temperatures were fitted on pairs that are among these: calibrated ECE is optimistic.")
        if len(self.scored) and not self.train.pairs:
            notes.append("No baselines: they are fitted on the run's train part, which is not in this data.")
        first, *others = self.runs
        learned_from = first.folder.split.train
        if self.train.pairs and any(run.folder.split.train != learned_from for run in others):
            notes.append(
                f"Not all runs learned from the same pairs: baselines, and what is said of the train part, are of the "
                f"{len(self.train.pairs):,} labelled pairs of {first.path}."
            )
        if any(self.overlap):
            notes.append(
                f"{self.overlap.texts:,} of the {n:,} {self.selection.name} pairs have a text, and "
                f"{self.overlap.images:,} an image, that also occurs in the train part: scores are optimistic."
            )
        return notes
