"""What labels are worth: few of them alone, with pseudo-labels, and all, over several draws."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from frozenfusion.data.pairs import Pairs, require_pairs
from frozenfusion.data.splits import Split, split_pairs
from frozenfusion.joint.config import JointConfig, check_fraction
from frozenfusion.joint.run import JointData, train_run_jointly
from frozenfusion.model.run_folder import RunFolder
from frozenfusion.store.reader import FeatureStore, as_store
from frozenfusion.training.config import TrainConfig, check_seeds
from frozenfusion.training.run import TrainedRun
from frozenfusion.utils.checks import config_of
from frozenfusion.utils.errors import UsageError
from frozenfusion.utils.progress import log

DEFAULT_FOLDER = Path("runs") / "labels"
METHODS: Sequence[Literal["self", "co"] | None] = (
    None,
    "self",
    "co",
)  # each is what the one before it is compared with


def study_labels(
    pairs: Pairs,
    features: FeatureStore | str | os.PathLike[str],
    head: str = "concat",
    *,
    fractions: Sequence[float],
    joint: JointConfig | None = None,
    seeds: Sequence[int] = (),
    unlabelled: Pairs | None = None,
    unlabelled_features: FeatureStore | str | os.PathLike[str] | None = None,
    config: TrainConfig | None = None,
    folder: str | os.PathLike[str] = DEFAULT_FOLDER,
    split: Split | None = None,
) -> list[TrainedRun]:
    """Train one head on each fraction of the labels: on these alone and, if `joint` says so, with pseudo-labels.

    Each seed draws its own labels, and one test part serves all, so that `evaluate` can draw the curve. With
    `joint="co"` what each modality learns for itself ("self") is trained too. What is finished is not trained again.

    Args:
        fractions: parts of the train part's labels; 1 is all.
        seeds: of the draws; by default the config's alone.
        folder: for the run folders, HEAD-METHOD-FRACTION-seedSEED.
        pairs, features, joint, unlabelled, unlabelled_features, config, split: as for `train_jointly`.

    Raises:
        UserError: as for `train_jointly`.
    """
    require_pairs(pairs)
    config, joint = config_of(TrainConfig, config), config_of(JointConfig, joint)
    seeds = seeds or (config.seed,)
    check_seeds(seeds)
    check_fractions(fractions)
    split = split or split_pairs(pairs, seed=config.seed, val_fraction=config.val_fraction)
    more_store = None if unlabelled_features is None else as_store(unlabelled_features)
    data = JointData(pairs, as_store(features), split, 1.0, unlabelled, more_store)
    runs = []
    for fraction in fractions:
        for method in METHODS[: METHODS.index(joint.joint) + 1]:
            chosen = JointConfig() if method is None else dataclasses.replace(joint, joint=method)
            for seed in seeds:
                drawn = dataclasses.replace(data, fraction=fraction)
                if method and not drawn.part(seed).ids:
                    continue  # all is labelled
                run = RunFolder(Path(folder) / f"{head}-{method or 'labels'}-{fraction:g}-seed{seed}")
                own = dataclasses.replace(config, seed=seed, resume="auto")
                runs.append(train_run_jointly(drawn, head, chosen, own, run, talk=False))
                log.info("%s: best epoch %d of %d", run.path, runs[-1].best_epoch, runs[-1].epochs)
    return runs


def check_fractions(fractions: Sequence[float]) -> None:
    """Raise UsageError for what cannot be parts of the labels, and for one that is given twice."""
    for fraction in fractions:
        check_fraction(fraction)
    if not fractions or len(set(fractions)) != len(fractions):
        raise UsageError(f"`label_fraction` needs numbers, each once: {' '.join(f'{each:g}' for each in fractions)}")
