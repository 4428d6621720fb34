"""Which pairs have a label that is learned from, and which are there to be labelled.

Shapes: n pairs to be labelled.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from frozenfusion.data.pairs import Pair, Pairs
from frozenfusion.data.splits import Split, stratified_sample
from frozenfusion.store.reader import FeatureStore
from frozenfusion.training.more import Source
from frozenfusion.utils.errors import UserError
from frozenfusion.utils.messages import first_few
from frozenfusion.utils.progress import log

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class LabelledPart:
    """What is learned from.

    Attributes:
        split: its train part has labels that count, its validation part is no larger than that.
        pool: where the pairs to be labelled are, without a label.
        truth: the labels that were hidden, (n,), -1 where none is known; for reports alone.
    """

    split: Split
    pool: Sequence[Source]
    truth: Ints

    @cached_property
    def ids(self) -> list[str]:
        """Ids of the pairs to be labelled, (n,), in the order of the sources."""
        return [pair.id for source in self.pool for pair in source.pairs]


def draw_labels(split: Split, pairs: Pairs, fraction: float, seed: int) -> tuple[Split, list[str]]:
    """The split with a fraction of the train part's labels, stratified, and the ids of which the label is hidden.

    Each class keeps a label. Of the validation part so many pairs stay as there are labels, since nobody who has few
    of them has more to validate on; the test part stays as it is.
    """
    train, val = pairs.select(split.train), pairs.select(split.val)
    kept, hidden = stratified_sample(train, 1 - fraction, seed, "hidden labels") if fraction < 1 else (train, [])
    if len(val) > len(kept):
        _, val = stratified_sample(val, len(kept) / len(val), seed, "validation labels")
    return dataclasses.replace(split, train=_ids(kept), val=_ids(val)), _ids(hidden)


def unlabelled_pairs(
    pairs: Pairs,
    store: FeatureStore,
    split: Split,
    unlabelled: Pairs | None = None,
    unlabelled_store: FeatureStore | None = None,
) -> list[Source]:
    """The pairs of the data that have no label, and all of `unlabelled`, whatever labels it has.

    Never one of a test or validation part. Raises UserError where `unlabelled` has an id of the data, or features that
    were made otherwise.
    """
    named = {*split.train, *split.val, *split.test}
    bare = [pair for pair in pairs if pair.label is None and pair.split in (None, "train") and pair.id not in named]
    sources = [Source(bare, store, pairs.source)] if bare else []
    return sources if unlabelled is None else [*sources, _foreign(unlabelled, unlabelled_store or store, pairs, store)]


def labelled_part(
    pairs: Pairs, store: FeatureStore, split: Split, unlabelled: Sequence[Source], *, fraction: float, seed: int
) -> LabelledPart:
    """Part the pairs into those of which the label counts, and those that are to be labelled.

    These are `unlabelled`, which are as `unlabelled_pairs` has them (those of `pairs` are strict, whatever their names
    say: both may be parts of one data set), and those of which the label is hidden.
    """
    drawn, hidden = draw_labels(split, pairs, fraction, seed)
    bare = [pair for source in unlabelled if source.strict for pair in source.pairs]
    own = sorted([*pairs.select(hidden), *bare], key=lambda pair: pair.id)
    pool = [Source(_without_labels(own), store, pairs.source)] if own else []
    pool += [source for source in unlabelled if not source.strict]
    truth = [-1 if pair.label is None else pair.label for pair in own]
    truth += [-1] * (sum(len(source.pairs) for source in pool) - len(own))
    return LabelledPart(drawn, pool, np.array(truth, dtype=np.int64))


def _foreign(unlabelled: Pairs, features: FeatureStore, pairs: Pairs, store: FeatureStore) -> Source:
    """Pairs of another data set, but for those that its files call a test part."""
    both = sorted(set(unlabelled.ids) & set(pairs.ids))
    if both:
        raise UserError(
            f"{unlabelled.source}: has {len(both):,} ids that {pairs.source} has too ({first_few(both)}): give the "
            "pairs without a label ids of their own"
        )
    changes = features.differences(store.fingerprint)
    if changes:
        raise UserError(
            f"{features.path}: its features were made otherwise than those of {store.path} ({changes}): make them in "
            f"the same way with {store.command(unlabelled.source)}"
        )
    used = [pair for pair in unlabelled if pair.split != "test"]
    if len(used) < len(unlabelled):
        log.info("%s: its test part, %d pairs, is left out", unlabelled.source, len(unlabelled) - len(used))
    return Source(_without_labels(used), features, unlabelled.source, strict=False)


def _without_labels(pairs: Sequence[Pair]) -> list[Pair]:
    return [replace(pair, label=None) for pair in pairs]


def _ids(pairs: Sequence[Pair]) -> list[str]:
    return sorted(pair.id for pair in pairs)
