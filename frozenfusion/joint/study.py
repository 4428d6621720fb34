"""What labels are worth: few of them alone, with pseudo-labels, and all, over several draws."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from frozenfusion.data.pairs import Pairs
from frozenfusion.data.splits import Split
from frozenfusion.joint.config import JointConfig, check_fraction
from frozenfusion.joint.labels import draw_labels
from frozenfusion.joint.run import JointJob, joint_inputs
from frozenfusion.model.run_folder import RunFolder
from frozenfusion.store.reader import FeatureStore
from frozenfusion.training.config import TrainConfig, where_to_train
from frozenfusion.training.inputs import TrainingInputs
from frozenfusion.training.run import TrainedRun
from frozenfusion.training.sweeps import asked, train_jobs
from frozenfusion.utils.checks import config_of
from frozenfusion.utils.errors import UsageError

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
    jobs: int | Literal["auto"] = "auto",
    ray: str | None = None,
    ray_gpus_per_worker: float | None = None,
) -> list[TrainedRun]:
    """Train one head on each fraction of the labels: on these alone and, if `joint` says so, with pseudo-labels.

    Each seed draws its own labels, and one test part serves all, so that `evaluate` can draw the curve. With
    `joint="co"` what each modality learns for itself ("self") is trained too. What is finished is not trained again; a
    run that fails does not stop the others. sweep.csv in `folder` is written anew after each.

    Args:
        fractions: parts of the train part's labels; 1 is all.
        seeds: of the draws; by default the config's alone.
        folder: for the run folders, HEAD-METHOD-FRACTION-seedSEED.
        pairs, features, joint, unlabelled, unlabelled_features, split: as for `train_jointly`.
        config: everything else; its seed draws the split, and a frozen text encoder whose weights are random.
        jobs, ray, ray_gpus_per_worker: as for `sweep`.

    Raises:
        UserError: as for `train_jointly`; at the end, for runs that failed.
    """
    config, joint, folder = config_of(TrainConfig, config), config_of(JointConfig, joint), Path(folder)
    where = where_to_train(jobs, ray, ray_gpus_per_worker)
    _, seeds = asked([head], seeds, where)
    check_fractions(fractions)
    inputs = joint_inputs(pairs, features, head, joint, config, split, unlabelled, unlabelled_features)
    runs = _jobs(inputs, head, fractions, seeds or (config.seed,), joint, config, folder)
    return train_jobs(inputs, runs, folder, resume=config.resume, at_once=where)


def _jobs(
    inputs: TrainingInputs,
    head: str,
    fractions: Sequence[float],
    seeds: Sequence[int],
    joint: JointConfig,
    config: TrainConfig,
    folder: Path,
) -> list[JointJob]:
    """The runs of a study. None needs what another makes: each draws its labels again, and does its own rounds."""
    jobs = []
    for fraction in fractions:
        hidden = draw_labels(inputs.split, inputs.pairs, fraction, config.seed)[1]  # as many by any seed
        methods = METHODS[: METHODS.index(joint.joint) + 1] if hidden or inputs.more.sources else METHODS[:1]
        for method in methods:
            chosen = JointConfig() if method is None else dataclasses.replace(joint, joint=method)
            for seed in seeds:
                run = RunFolder(folder / f"{head}-{method or 'labels'}-{fraction:g}-seed{seed}")
                own = dataclasses.replace(config, seed=seed, resume="auto")
                jobs.append(JointJob(head, own, run, chosen, fraction))
    return jobs


def check_fractions(fractions: Sequence[float]) -> None:
    """Raise UsageError for what cannot be parts of the labels, and for one that is given twice."""
    for fraction in fractions:
        check_fraction(fraction)
    if not fractions or len(set(fractions)) != len(fractions):
        raise UsageError(f"`label_fraction` needs numbers, each once: {' '.join(f'{each:g}' for each in fractions)}")
