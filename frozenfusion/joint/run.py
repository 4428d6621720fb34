"""Joint learning: rounds of pseudo-labels, and then a training of the fusion head on labels and pseudo-labels."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frozenfusion.data.pairs import Pairs, require_pairs
from frozenfusion.data.splits import Split, split_pairs
from frozenfusion.evaluation.label_curve import drift_note
from frozenfusion.fusion.registry import head_class
from frozenfusion.joint.config import JointConfig, check_fraction
from frozenfusion.joint.labels import LabelledPart, labelled_part, unlabelled_pairs
from frozenfusion.joint.record import Record, read_record, write_record, write_table
from frozenfusion.joint.rounds import SHARE, Classroom, learn_rounds
from frozenfusion.joint.selection import NOT_LABELLED
from frozenfusion.joint.views import HEAD, read_views
from frozenfusion.model.rounds import JOINT_FILE
from frozenfusion.model.run_folder import RunFolder
from frozenfusion.store.reader import FeatureStore, as_store
from frozenfusion.training.checkpoint import State
from frozenfusion.training.config import TrainConfig
from frozenfusion.training.inputs import TrainingInputs
from frozenfusion.training.jobs import Job
from frozenfusion.training.more import MorePairs, Source
from frozenfusion.training.origin import FROZEN_WEIGHTS, PAIRS, as_flag, refuse_changes
from frozenfusion.training.run import TrainedRun, default_folder, finished_run, train_run
from frozenfusion.utils import distributed
from frozenfusion.utils.checks import config_of
from frozenfusion.utils.errors import UsageError
from frozenfusion.utils.interrupts import held_back
from frozenfusion.utils.locks import WriterLock
from frozenfusion.utils.progress import Progress, log
from frozenfusion.utils.remote import as_given
from frozenfusion.utils.tensors import weights_sha256

# What of a training's options the rounds depend on.
_READ_BY_ROUNDS = ("text_encoder", "text_weights", "text_pool", "max_length", "precision", "seed")


def train_jointly(
    pairs: Pairs,
    features: FeatureStore | str | os.PathLike[str],
    head: str = "concat",
    *,
    joint: JointConfig | None = None,
    label_fraction: float = 1.0,
    unlabelled: Pairs | None = None,
    unlabelled_features: FeatureStore | str | os.PathLike[str] | None = None,
    config: TrainConfig | None = None,
    run: str | os.PathLike[str] | None = None,
    split: Split | None = None,
) -> TrainedRun:
    """Train one fusion head where labels are few, with pseudo-labels of pairs that have none.

    Each modality's classifier labels the pairs of which it is surest and learns anew, for some rounds, at last from the
    other's labels too; then the head is trained on labels and pseudo-labels as `train` does. Whatever stops it,
    finished rounds and epochs are kept, and the same call resumes it.

    Args:
        pairs, features, head, config, run, split: as for `train`. Pairs of the train part without a label are labelled.
        joint: how; as it is by default, the labels alone are learned from.
        label_fraction: of the labels of the train part that count, drawn by the config's seed; the others are hidden,
            for studying. The validation part is cut to as many pairs as have a label.
        unlabelled: further pairs to be labelled, which may lack their text or their image.
        unlabelled_features: of their images, by default in the same file.

    Raises:
        UserError: as for `train`; where there is nothing to label.
    """
    config, joint = config_of(TrainConfig, config), config_of(JointConfig, joint)
    folder = RunFolder(Path(run) if run is not None else default_folder(head))
    job = JointJob(head, config, folder, joint, label_fraction)
    check_fraction(label_fraction)
    distributed.by_first(folder.check_free)
    inputs = joint_inputs(pairs, features, head, joint, config, split, unlabelled, unlabelled_features)
    return job.train(inputs, talk=True)


def joint_inputs(
    pairs: Pairs,
    features: FeatureStore | str | os.PathLike[str],
    head: str,
    joint: JointConfig,
    config: TrainConfig,
    split: Split | None = None,
    unlabelled: Pairs | None = None,
    unlabelled_features: FeatureStore | str | os.PathLike[str] | None = None,
) -> TrainingInputs:
    """What runs share whose labels are hidden or pseudo-labels: all pairs, as if no label were hidden.

    Beside the split are the pairs without a label, where pseudo-labels are asked for. Arguments and errors are as for
    `train_jointly`.
    """
    require_pairs(pairs)
    head_class(head)
    store = as_store(features)
    split = split or split_pairs(pairs, seed=config.seed, val_fraction=config.val_fraction)
    if joint.joint is None:
        return TrainingInputs(pairs, store, config, [head], split)
    if not split.val:
        raise UsageError(
            f"`joint={joint.joint}` needs labelled pairs that are held out, and there is no validation part: raise "
            "`val_fraction`"
        )
    more_store = None if unlabelled_features is None else as_store(unlabelled_features)
    sources = unlabelled_pairs(pairs, store, split, unlabelled, more_store)
    given = {"unlabelled": unlabelled, "unlabelled_cache": more_store}
    options = {name: as_given(of.path.as_posix()) for name, of in given.items() if of is not None}
    return TrainingInputs(pairs, store, config, [head], split, MorePairs(sources, options=options))


@dataclass(frozen=True)
class JointJob(Job):
    """A run that learns from a fraction of the labels, and as `joint` says from pseudo-labels; of `joint_inputs`."""

    joint: JointConfig
    fraction: float

    def prepare(self, inputs: TrainingInputs) -> None:
        if self.config.freeze_text:
            inputs.prepare()
        if self.joint.joint and not self.config.is_recurrent:
            inputs.frozen_texts(inputs.text_pool)

    def train(
        self, inputs: TrainingInputs, *, talk: bool = False, progress: Callable[..., Progress] = Progress
    ) -> TrainedRun:
        part = self._part(inputs)
        if distributed.world() > 1:
            self.prepare(inputs)  # by all processes, since the first alone does the rounds
        if self.joint.joint is None:
            return self._train(inputs, part, None, talk, progress)
        with distributed.lock_of_first(self.folder.file(JOINT_FILE)) as lock:
            record = distributed.by_first(lambda: self._labelled(inputs, part, lock, talk))
            return self._train(inputs, part, record, talk, progress)

    def finished(self, inputs: TrainingInputs) -> TrainedRun | None:
        if not self.folder.exists:
            return None
        part, record = self._part(inputs), None
        if self.joint.joint:
            record, _ = self._found(inputs, part)
            if record.rounds < self.joint.rounds or not self.folder.file("pseudo.csv").exists():
                return None
        return finished_run(self._inputs(inputs, part, record), self.head, self.config, self.folder)

    def pairs(self, inputs: TrainingInputs) -> int:
        labels = self.fraction * len(inputs.split.train)
        others = len(inputs.ids) - len(inputs.split.val) - labels
        return max(1, round(labels + (SHARE * others if self.joint.joint else 0)))

    def _part(self, inputs: TrainingInputs) -> LabelledPart:
        """What is learned from and what is to be labelled, by labels that the seed draws.

        Raises UsageError where there is nothing to label.
        """
        part = labelled_part(
            *(inputs.pairs, inputs.store, inputs.split, inputs.more.sources),
            fraction=self.fraction,
            seed=self.config.seed,
        )
        if self.joint.joint and not part.ids:
            raise UsageError(
                f"`joint={self.joint.joint}`: every pair has a label: give `unlabelled`, or hide some with "
                "`label_fraction`"
            )
        return part

    def _train(
        self,
        inputs: TrainingInputs,
        part: LabelledPart,
        record: Record | None,
        talk: bool,
        progress: Callable[..., Progress],
    ) -> TrainedRun:
        own = self._inputs(inputs, part, record)
        own.share = inputs.share
        run = train_run(own, self.head, self.config, self.folder, talk=talk, progress=progress)
        inputs.share = own.share
        return run

    def _inputs(self, inputs: TrainingInputs, part: LabelledPart, record: Record | None) -> TrainingInputs:
        """What the head is trained on: the labels, and the pseudo-labels that are agreed on in the end."""
        options = {**vars(self.joint), "label_fraction": [self.fraction]}
        options |= inputs.more.options if self.joint.joint else {}
        sources = [] if record is None else _with_labels(part.pool, record.agreed(len(part.ids)))
        more = MorePairs(sources, self.joint.pseudo_weight, options)
        return TrainingInputs(inputs.pairs, inputs.store, inputs.config, [self.head], part.split, more, inputs)

    def _labelled(self, inputs: TrainingInputs, part: LabelledPart, lock: WriterLock | None, talk: bool) -> Record:
        """The record of all rounds, those that it lacks done now."""
        folder, names, rounds = self.folder, inputs.pairs.label_names, self.joint.rounds
        folder.sweep_up()
        record, own = self._found(inputs, part)
        if record.rounds < rounds:
            if lock is not None:
                lock.require()
            frozen = {} if self.config.is_recurrent else {FROZEN_WEIGHTS: _weights(own)}
            if record.rounds:
                refuse_changes(folder, State(record.made_from), frozen)
                log.info("%s: resumed after round %d", folder.path, record.rounds)
            record.made_from = {**record.made_from, **frozen}

            def commit() -> None:
                with held_back():
                    write_record(folder, record, part.ids, names)
                if talk:
                    log.info("%s", _round_line(record.history[-1], rounds))

            learn_rounds(_classroom(part, own), self.joint, record, commit)
        write_table(folder, record, part.ids, names)
        _warn_of_drift(folder, record.history[-1], names)
        return record

    def _found(self, inputs: TrainingInputs, part: LabelledPart) -> tuple[Record, TrainingInputs]:
        """The record as far as it is, and what the rounds read: the text encoder is as it is before any training.

        Raises UserError where the record was made from something else.
        """
        read = {name: getattr(inputs.config, name) for name in ("text_cache", "device", *_READ_BY_ROUNDS)}
        config = TrainConfig(freeze_text=True, **read)
        own = TrainingInputs(inputs.pairs, inputs.store, config, [HEAD], part.split, MorePairs(part.pool), inputs)
        made_from = {
            **{as_flag(name): value for name, value in vars(self.joint).items()},
            **{as_flag(name): getattr(self.config, name) for name in _READ_BY_ROUNDS},
            "image features": dict(inputs.store.fingerprint),
            PAIRS: own.digest,
        }
        return read_record(self.folder, made_from, len(part.ids), len(inputs.pairs.label_names)), own


def _weights(inputs: TrainingInputs) -> str:
    return weights_sha256(inputs.text_encoder(inputs.config.seed).state_dict())


def _classroom(part: LabelledPart, inputs: TrainingInputs) -> Classroom:
    train, val = len(part.split.train), len(part.split.val)
    rows = np.arange(len(inputs.ids))
    views = read_views(inputs, learned_from=np.delete(rows, slice(train, train + val)))
    labels, held_out = (inputs.pairs.labels[inputs.pairs.rows(ids)] for ids in (part.split.train, part.split.val))
    return Classroom(views, labels, held_out, part.truth, len(inputs.pairs.label_names))


def _with_labels(pool: Sequence[Source], labels: NDArray[np.int64]) -> list[Source]:
    """The pairs of the pool that have a label now, with it."""
    found, start = [], 0
    for source in pool:
        own = labels[start : start + len(source.pairs)].tolist()
        start += len(source.pairs)
        pairs = [
            replace(pair, label=label) for pair, label in zip(source.pairs, own, strict=True) if label != NOT_LABELLED
        ]
        found += [replace(source, pairs=pairs)] if pairs else []
    return found


def _round_line(line: Mapping[str, Any], rounds: int) -> str:
    """A round's figures in one line for a person."""
    told = f"round {line['round']}/{rounds}{'  exchanged' if line['exchanged'] else ''}"
    for name in ("text", "image", "agreed"):
        told += f"  {name} {line[name]['pairs']:,}"
        told += "" if line[name]["accuracy"] is None else f" ({line[name]['accuracy']:.1%} right)"
    return told


def _warn_of_drift(folder: RunFolder, line: Mapping[str, Any], label_names: Sequence[str]) -> None:
    """Warn where the pseudo-labels that are kept leave the shares that classes have among the labelled pairs."""
    told = drift_note(line, label_names)
    if told:
        log.warning("%s: %s", folder.path, told)
