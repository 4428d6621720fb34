"""Stage two from the command line."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

import tyro
from tyro.conf import Positional

from frozenfusion.cli.caches import cache_to_read
from frozenfusion.cli.groups import Groups
from frozenfusion.cli.parsing import COMMON, READING, RESUMED, DataOptions, run
from frozenfusion.fusion.options import parse_grid, parse_options
from frozenfusion.joint.config import JointConfig, check_fraction
from frozenfusion.store.command import DataSource
from frozenfusion.training.config import ALL, TrainConfig, check_heads, check_seeds, recipe, where_to_train
from frozenfusion.training.grid import check_grid, check_halving, check_trials
from frozenfusion.utils import launched
from frozenfusion.utils.errors import UsageError

if TYPE_CHECKING:
    from frozenfusion.data.pairs import Pairs
    from frozenfusion.store.reader import FeatureStore
    from frozenfusion.training.run import TrainedRun

Config = TypeVar("Config", TrainConfig, JointConfig)


@dataclass(frozen=True, kw_only=True)
class TrainOptions(DataOptions, TrainConfig, JointConfig):
    """Stage two: fine-tune the text encoder and a fusion head against the cached image features."""

    groups: ClassVar[Groups] = {
        "files": ("cache", "run", "text_cache", "track", *READING),
        "model": (
            *("fusion", "alpha", "head_option"),
            *("text_encoder", "text_weights", "text_pool", "freeze_text", "max_length"),
        ),
        "recurrent": ("rnn_width", "rnn_layers", "words", "word_vectors"),
        "training": (
            *("epochs", "batch_size", "lr", "weight_decay", "schedule"),
            *("class_weights", "val_fraction", "seed", "seeds"),
        ),
        "tuning": ("tune", "grid", "halving"),
        "dropout": ("image_dropout", "modality_dropout"),
        "refinements": (
            *("recipe", "optimizer", "text_lr", "head_lr", "warmup", "clip", "accumulate"),
            *("label_smoothing", "focal", "patience", "standardise_images", "region_pool"),
        ),
        "joint": (
            *("joint", "rounds", "select", "per_round", "confidence", "pseudo_weight"),
            *("label_fraction", "unlabelled", "unlabelled_cache"),
        ),
        "speed": ("device", "precision", "compile", "jobs", "ray", "ray_gpus_per_worker"),
        "resuming": ("resume", "save_every"),
        "general": COMMON,
    }

    data: Positional[Path]
    """folder or manifest of image–text pairs; not right after --fusion, --seeds, --grid, which take all that follows"""

    cache: Path | None = None
    """feature file of stage one; by default the one that is named after the data, cache/NAME-*.h5"""

    run: Path | None = None
    """folder for the trained model; by default runs/HEAD, or runs/sweep for several"""

    fusion: tuple[str, ...] = ("concat",)
    """one or several fusion heads, or all"""

    head_option: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """NAME=VALUE, an option of the fusion head's own, as in layers=4; may be given several times"""

    track: tyro.conf.UseAppendAction[tuple[str, ...]] = ()

    seeds: tuple[int, ...] = ()
    """repeat training with each of these seeds, on the split that --seed makes"""

    tune: int = 0
    """trials of every head, the best on the validation part is trained: docs/tuning.md; 0 takes the options as given"""

    grid: tuple[str, ...] = ()
    """NAME=VALUE,VALUE in place of random trials: every combination, as in lr=1e-4,1e-3 head.layers=1,2"""

    halving: int = 0
    """factor of successive halving: with 4, trials begin short and the best quarter goes on; 0 does without"""

    label_fraction: tuple[float, ...] = ()
    """part of the train part's labels that counts, drawn by the seed; several, or several --seeds, make the curve"""

    unlabelled: Path | None = None
    """folder or manifest of further pairs, texts or images to be labelled; labels in it are not looked at"""

    unlabelled_cache: Path | None = None
    """feature file of their images, by default that of the data"""

    recipe: Literal["reference", "tuned"] = "reference"
    """a named set of options; those that are given beside it win"""

    jobs: int | Literal["auto"] = "auto"
    """runs of several heads, seeds or label fractions at once; auto is one per core with frozen text, or per GPU"""

    ray: str | None = None
    """train the runs on the Ray cluster at this address, or auto; local makes one of this machine: docs/scaling.md"""

    ray_gpus_per_worker: float | None = None
    """GPUs of each run there, which may be a part of one; by default 1 where there are any"""

    @classmethod
    def recipe_options(cls, name: str) -> Mapping[str, Any]:
        """The options that a recipe stands for."""
        return recipe(name)

    @property
    def when_interrupted(self) -> str:
        """What becomes of work that is interrupted."""
        return RESUMED

    def __post_init__(self) -> None:
        if self.head_option:
            object.__setattr__(self, "head_options", parse_options(self.head_option))
        super().__post_init__()
        JointConfig.__post_init__(self)
        check_heads(self.fusion)
        check_seeds(self.seeds)
        where_to_train(self.jobs, self.ray, self.ray_gpus_per_worker)
        if self.tune and self.grid:
            raise UsageError("`tune` draws its trials at random, `grid` names them: give one of them")
        if self.tune:
            check_trials(self.tune)
        check_grid(parse_grid(self.grid), _config(self))
        check_halving(self.halving, tuned=bool(self.tune or self.grid))
        self._check_joint()

    def _check_joint(self) -> None:
        for fraction in self.label_fraction:
            check_fraction(fraction)
        if len(set(self.label_fraction)) != len(self.label_fraction):
            raise UsageError("`label_fraction` names a fraction twice")
        name = "joint" if self.joint else "label_fraction"
        if self.is_joint and (len(self.fusion) > 1 or ALL in self.fusion):
            raise UsageError(f"`{name}` trains one fusion head, and several are named: choose one with `fusion`")
        if self.is_joint and (self.tune or self.grid):
            raise UsageError(
                "`tune` and `grid` choose the options of trainings on labels alone: leave out the joint ones"
            )
        if self.unlabelled is None and self.unlabelled_cache is not None:
            raise UsageError("`unlabelled_cache` means nothing without `unlabelled`: give both, or leave it out")
        if self.unlabelled is not None and self.joint is None:
            raise UsageError("`unlabelled` means nothing without `joint`: give both, or leave it out")

    @property
    def is_joint(self) -> bool:
        """Whether some labels are hidden, or pairs without a label are learned from."""
        return self.joint is not None or bool(self.label_fraction)


def main(arguments: Sequence[str] | None = None, command: str | None = None) -> int:
    """Train what the options ask for and print what came out; the exit status."""
    return run(TrainOptions, _train, arguments, command, rank=launched.rank())


def _train(options: TrainOptions) -> str:
    from frozenfusion.utils.distributed import joined  # imports torch

    with joined():
        return _trained(options)


def _trained(options: TrainOptions) -> str:
    from frozenfusion.fusion.registry import head_class
    from frozenfusion.model.run_folder import RunFolder
    from frozenfusion.store.reader import FeatureStore
    from frozenfusion.training.run import default_folder
    from frozenfusion.training.sweeps import DEFAULT_FOLDER, sweep
    from frozenfusion.utils.device import choose_device
    from frozenfusion.utils.distributed import by_first
    from frozenfusion.utils.progress import log

    for name in options.fusion:
        if name != ALL:
            head_class(name)
    choose_device(options.device)
    tuned = bool(options.tune or options.grid)
    single = len(options.fusion) == 1 and options.fusion != (ALL,) and len(options.seeds) < 2 and not tuned
    single &= len(options.label_fraction) < 2
    if options.ray is not None and single:
        told = "`ray` trains the runs of several heads, seeds or label fractions, or a `tune`"
        raise UsageError(f"{told}: name them, or leave it out")
    if single:
        by_first(RunFolder(options.run or default_folder(options.fusion[0])).check_free)
    pairs = options.load(options.data)
    log.info(pairs.summary())
    store = FeatureStore(cache_to_read(pairs.source, options.cache))
    if options.is_joint:
        return _summary(*_train_jointly(options, pairs, store, single=single), store, options)
    if single:
        runs = [_train_one(options, pairs, store)]
        return _summary(runs, runs[0].folder, store, options)
    folder = options.run or DEFAULT_FOLDER
    if tuned:
        return _tune(options, pairs, store, folder)
    runs = sweep(
        pairs,
        store,
        options.fusion,
        seeds=options.seeds,
        config=_config(options),
        folder=folder,
        **_where(options),
    )
    return _summary(runs, folder, store, options)


def _tune(options: TrainOptions, pairs: Pairs, store: FeatureStore, folder: Path) -> str:
    from frozenfusion.training.tuning import tune, tuning_table

    search: dict[str, Any] = {"trials": options.tune} if options.tune else {"grid": parse_grid(options.grid)}
    runs = tune(
        pairs,
        store,
        options.fusion,
        **search,
        halving=options.halving,
        seeds=options.seeds,
        config=_config(options),
        folder=folder,
        **_where(options),
    )
    return f"{tuning_table(runs)}\n\n{_summary(runs, folder, store, options)}"


def _train_one(options: TrainOptions, pairs: Pairs, store: FeatureStore) -> TrainedRun:
    """One run; a seed that `seeds` names is the run's, on the split of `seed`."""
    from frozenfusion.model.run_folder import RunFolder
    from frozenfusion.training.inputs import TrainingInputs
    from frozenfusion.training.run import default_folder, train_run

    config, (head,) = _config(options), options.fusion
    folder = RunFolder(options.run or default_folder(head))
    inputs = TrainingInputs(pairs, store, config, [head])
    seed = options.seeds[0] if options.seeds else config.seed
    return train_run(inputs, head, dataclasses.replace(config, seed=seed), folder)


def _train_jointly(
    options: TrainOptions, pairs: Pairs, store: FeatureStore, *, single: bool
) -> tuple[list[TrainedRun], Path]:
    """The runs that learn from few labels, from pseudo-labels or both, and where they lie."""
    from frozenfusion.joint.run import JointJob, joint_inputs
    from frozenfusion.joint.study import DEFAULT_FOLDER, study_labels
    from frozenfusion.model.run_folder import RunFolder
    from frozenfusion.training.run import default_folder

    config, joint, (head,) = _config(options), _of(JointConfig, options), options.fusion
    more = options.unlabelled and options.load(options.unlabelled)
    given: dict[str, Any] = {"joint": joint, "config": config}
    given |= {"unlabelled": more, "unlabelled_features": options.unlabelled_cache}
    fractions = options.label_fraction or (1.0,)
    if not single:
        folder = options.run or DEFAULT_FOLDER
        given |= {"fractions": fractions, "seeds": options.seeds, "folder": folder, **_where(options)}
        return study_labels(pairs, store, head, **given), folder
    own = dataclasses.replace(config, seed=options.seeds[0]) if options.seeds else config
    job = JointJob(head, own, RunFolder(options.run or default_folder(head)), joint, fractions[0])
    run = job.train(joint_inputs(pairs, store, head, **given), talk=True)
    return [run], run.folder


def _where(options: TrainOptions) -> dict[str, Any]:
    """How many runs are trained at once, or on which cluster, as every function that trains several takes it."""
    return {name: getattr(options, name) for name in ("jobs", "ray", "ray_gpus_per_worker")}


def _config(options: TrainOptions) -> TrainConfig:
    return _of(TrainConfig, options)


def _of(kind: type[Config], options: TrainOptions) -> Config:
    return kind(**{each.name: getattr(options, each.name) for each in dataclasses.fields(kind)})


def _summary(runs: Sequence[TrainedRun], folder: Path, store: FeatureStore, options: TrainOptions) -> str:
    """What was trained, as a table for a person, best first, and the command that evaluates it."""
    from frozenfusion.training.sweeps import run_table

    data = DataSource.of(options.data, **options.reading)
    words = [folder.as_posix(), *data.words, "--cache", store.path.as_posix()]
    words += [word for name in options.imports for word in ("--import", name)]
    return f"{run_table(runs)}\n\nnext: python evaluate.py {shlex.join(words)}"
