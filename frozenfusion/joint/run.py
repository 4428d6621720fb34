"""Joint learning: rounds of pseudo-labels, and then a training of the fusion head on labels and pseudo-labels."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
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
from frozenfusion.joint.labels import LabelledPart, labelled_part
from frozenfusion.joint.record import Record, read_record, write_record, write_table
from frozenfusion.joint.rounds import Classroom, learn_rounds
from frozenfusion.joint.selection import NOT_LABELLED
from frozenfusion.joint.views import HEAD, read_views
from frozenfusion.model.rounds import JOINT_FILE
from frozenfusion.model.run_folder import RunFolder
from frozenfusion.store.reader import FeatureStore, as_store
from frozenfusion.training.checkpoint import State
from frozenfusion.training.config import TrainConfig
from frozenfusion.training.inputs import TrainingInputs
from frozenfusion.training.more import MorePairs, Source
from frozenfusion.training.origin import FROZEN_WEIGHTS, PAIRS, as_flag, refuse_changes
from frozenfusion.training.run import TrainedRun, default_folder, train_run
from frozenfusion.utils import distributed
from frozenfusion.utils.checks import config_of
from frozenfusion.utils.errors import UsageError
from frozenfusion.utils.interrupts import held_back
from frozenfusion.utils.locks import WriterLock
from frozenfusion.utils.progress import log
from frozenfusion.utils.remote import as_given
from frozenfusion.utils.tensors import weights_sha256

# What of a training's options the rounds depend on.
_READ_BY_ROUNDS = ("text_encoder", "text_weights", "text_pool", "max_length", "precision", "seed")


@dataclass(frozen=True)
class JointData:
    """What joint learning reads: pairs with labels, pairs without, and the features of both.

    Attributes:
        pairs, store, split: as for a training.
        fraction: of the train part's labels that count; the others are hidden.
        unlabelled, unlabelled_store: further pairs, of which no label is looked at, and their features, by default
            in the same file.
    """

    pairs: Pairs
    store: FeatureStore
    split: Split
    fraction: float = 1.0
    unlabelled: Pairs | None = None
    unlabelled_store: FeatureStore | None = None

    def part(self, seed: int) -> LabelledPart:
        """What is learned from and what is to be labelled, by labels that the seed draws."""
        return labelled_part(
            *(self.pairs, self.store, self.split),
            fraction=self.fraction,
            seed=seed,
            unlabelled=self.unlabelled,
            unlabelled_store=self.unlabelled_store,
        )

    def options(self, joint: JointConfig) -> dict[str, Any]:
        """How a run came by its labels, under the command line's names."""
        given = {"unlabelled": self.unlabelled, "unlabelled_cache": self.unlabelled_store}
        paths = {name: as_given(of.path.as_posix()) for name, of in given.items() if of is not None}
        return {**vars(joint), "label_fraction": [self.fraction], **(paths if joint.joint else {})}


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
    require_pairs(pairs)
    config, joint = config_of(TrainConfig, config), config_of(JointConfig, joint)
    folder = RunFolder(Path(run) if run is not None else default_folder(head))
    split = split or split_pairs(pairs, seed=config.seed, val_fraction=config.val_fraction)
    more_store = None if unlabelled_features is None else as_store(unlabelled_features)
    data = JointData(pairs, as_store(features), split, label_fraction, unlabelled, more_store)
    return train_run_jointly(data, head, joint, config, folder)


def train_run_jointly(
    data: JointData, head: str, joint: JointConfig, config: TrainConfig, folder: RunFolder, *, talk: bool = True
) -> TrainedRun:
    """What `train_jointly` does, on data that several runs may share; `talk` prints a line per round and epoch."""
    check_fraction(data.fraction)
    head_class(head)
    distributed.by_first(folder.check_free)
    part = data.part(config.seed)
    more = MorePairs(options=data.options(joint))
    if joint.joint is None:
        inputs = TrainingInputs(data.pairs, data.store, config, [head], part.split, more)
        return train_run(inputs, head, config, folder, talk=talk)
    with distributed.lock_of_first(folder.file(JOINT_FILE)) as lock:
        record = distributed.by_first(lambda: _labelled(data, part, joint, config, folder, lock, talk))
        sources = _with_labels(part.pool, record.agreed(len(part.ids)))
        more = replace(more, sources=sources, weight=joint.pseudo_weight)
        inputs = TrainingInputs(data.pairs, data.store, config, [head], part.split, more)
        return train_run(inputs, head, config, folder, talk=talk)


def _labelled(
    data: JointData,
    part: LabelledPart,
    joint: JointConfig,
    config: TrainConfig,
    folder: RunFolder,
    lock: WriterLock | None,
    talk: bool,
) -> Record:
    """The record of all rounds, those that it lacks done now."""
    folder.sweep_up()
    inputs = _inputs(data, part, joint, config)
    made_from = {
        **{as_flag(name): value for name, value in vars(joint).items()},
        **{as_flag(name): getattr(config, name) for name in _READ_BY_ROUNDS},
        "image features": dict(data.store.fingerprint),
        PAIRS: inputs.digest,
    }
    names = data.pairs.label_names
    record = read_record(folder, made_from, len(part.ids), len(names))
    if record.rounds < joint.rounds:
        if lock is not None:
            lock.require()
        frozen = {FROZEN_WEIGHTS: weights_sha256(inputs.text_encoder(config.seed).state_dict())}
        if record.rounds:
            refuse_changes(folder, State(record.made_from), frozen)
            log.info("%s: resumed after round %d", folder.path, record.rounds)
        record.made_from = {**made_from, **frozen}
        room = _classroom(data, part, inputs)

        def commit() -> None:
            with held_back():
                write_record(folder, record, part.ids, names)
            if talk:
                log.info("%s", _round_line(record.history[-1], joint.rounds))

        learn_rounds(room, joint, record, commit)
    write_table(folder, record, part.ids, names)
    _warn_of_drift(folder, record.history[-1], names)
    return record


def _inputs(data: JointData, part: LabelledPart, joint: JointConfig, config: TrainConfig) -> TrainingInputs:
    """What the rounds read: all pairs, their texts by the text encoder as it is before any training."""
    if not part.ids:
        raise UsageError(
            f"`joint={joint.joint}`: every pair has a label: give `unlabelled`, or hide some with `label_fraction`"
        )
    if not part.split.val:
        raise UsageError(
            f"`joint={joint.joint}` needs labelled pairs that are held out, and there is no validation part: raise "
            "`val_fraction`"
        )
    if config.is_recurrent:
        raise UsageError(
            f"`joint={joint.joint}` reads texts by an encoder that has learned something already, and "
            f"`text_encoder={config.text_encoder}` has not: choose another, or leave `joint` out"
        )
    read = ("text_cache", "device", "val_fraction", *_READ_BY_ROUNDS)
    frozen = TrainConfig(freeze_text=True, **{name: getattr(config, name) for name in read})
    return TrainingInputs(data.pairs, data.store, frozen, [HEAD], part.split, MorePairs(part.pool))


def _classroom(data: JointData, part: LabelledPart, inputs: TrainingInputs) -> Classroom:
    train, val = len(part.split.train), len(part.split.val)
    rows = np.arange(len(inputs.ids))
    views = read_views(inputs, learned_from=np.delete(rows, slice(train, train + val)))
    labels, held_out = (data.pairs.labels[data.pairs.rows(ids)] for ids in (part.split.train, part.split.val))
    return Classroom(views, labels, held_out, part.truth, len(data.pairs.label_names))


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
