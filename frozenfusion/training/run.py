"""Stage two: fine-tune the text encoder and a fusion head against the cached image features.

`train` makes one run folder from one fusion head; frozenfusion.training.sweeps makes several.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from frozenfusion.data.pairs import Pairs
from frozenfusion.data.splits import Split
from frozenfusion.fusion.registry import head_class
from frozenfusion.model.classifier import PairClassifier, build_model
from frozenfusion.model.network import count_parameters
from frozenfusion.model.run_folder import RESTORED, RunFolder
from frozenfusion.model.saving import save_setup, save_weights
from frozenfusion.store.reader import FeatureStore, as_store
from frozenfusion.text.pooling import POOLER
from frozenfusion.training.checkpoint import (
    TEXT_POOL,
    State,
    commit,
    finish,
    restore,
    write_metrics,
)
from frozenfusion.training.config import TrainConfig
from frozenfusion.training.inputs import TrainingInputs
from frozenfusion.training.messages import epoch_line, introduce
from frozenfusion.training.options import effective
from frozenfusion.training.origin import (
    FROZEN_WEIGHTS,
    TEXT_ENCODER,
    VOCABULARY,
    refuse_changes,
)
from frozenfusion.training.plots import plot_curves, plot_learning_rate
from frozenfusion.training.resuming import found_run, note_processes
from frozenfusion.training.trackers import Trackers
from frozenfusion.training.trainer import Trainer
from frozenfusion.utils import distributed
from frozenfusion.utils.checks import config_of
from frozenfusion.utils.device import is_out_of_memory
from frozenfusion.utils.errors import UserError
from frozenfusion.utils.interrupts import held_back
from frozenfusion.utils.locks import WriterLock
from frozenfusion.utils.messages import first_few, first_line
from frozenfusion.utils.progress import Progress, log
from frozenfusion.utils.remote import as_given
from frozenfusion.utils.tensors import weights_sha256


@dataclass(frozen=True)
class TrainedRun:
    """What came out of one training; stands wherever a run's path does.

    Attributes:
        folder: the run.
        fusion, seed: its head and its seed.
        epochs, best_epoch: how many were trained, and which has the highest validation accuracy.
        val_accuracy, val_macro_f1, val_loss: of the best epoch; None without a validation part.
        trained_parameters: how many numbers were learned.
        seconds_per_epoch: their median.
    """

    folder: Path
    fusion: str
    seed: int
    epochs: int
    best_epoch: int
    val_accuracy: float | None
    val_macro_f1: float | None
    val_loss: float | None
    trained_parameters: int
    seconds_per_epoch: float

    def __fspath__(self) -> str:
        """The run's folder."""
        return os.fspath(self.folder)


def train(
    pairs: Pairs,
    features: FeatureStore | str | os.PathLike[str],
    head: str = "concat",
    *,
    config: TrainConfig | None = None,
    run: str | os.PathLike[str] | None = None,
    split: Split | None = None,
) -> TrainedRun:
    """Train one fusion head into its run folder, or resume where an earlier training stopped.

    Whatever stops it, finished epochs are kept, and the same call resumes it.

    Args:
        pairs: what `load_pairs` returned; those of the train part are learned from, the test part is not looked at.
        features: the feature file of the pairs' images, or what `extract` returned.
        head: name of the fusion head.
        config: everything else.
        run: folder for the run; by default runs/HEAD.
        split: which pairs are train, validation and test part; by default the files' own, else drawn by the seed.

    Raises:
        UserError: an unknown head, features that are not there, a folder that holds something else, a run that was
            trained otherwise, too little memory or disk.
    """
    config = config_of(TrainConfig, config)
    head_class(head)
    folder = RunFolder(Path(run) if run is not None else default_folder(head))
    distributed.by_first(folder.check_free)
    return train_run(TrainingInputs(pairs, as_store(features), config, [head], split), head, config, folder)


def train_run(
    inputs: TrainingInputs,
    head: str,
    config: TrainConfig,
    folder: RunFolder,
    *,
    talk: bool = True,
    progress: Callable[..., Progress] = Progress,
) -> TrainedRun:
    """What `train` does, on inputs that several runs may share; `talk` prints a line per epoch.

    `progress` makes what is told how far the training is. Of several processes the first one writes, and tells the
    others how far the run is.
    """
    distributed.require_same([inputs.digest, dict(inputs.store.fingerprint)], "the pairs or their features")
    talk &= distributed.rank() == 0
    with distributed.lock_of_first(folder.checkpoint) as lock:
        distributed.by_first(folder.sweep_up)
        state, lost = distributed.by_first(lambda: found_run(folder, config, inputs, head))
        if lost:
            log.info("%s: not there any more, restored from the checkpoint", first_few([str(path) for path in lost]))
        elif lost is not None:
            if talk:
                more = "epochs" if state.epochs >= config.epochs else "patience"
                done = f"finished, %d epochs: nothing to do (a higher `{more}` resumes it)"
                log.info(f"%s: {done}", folder.path, state.epochs)
            return distributed.by_first(lambda: read_run(folder))
        if lock is not None:
            lock.require()
        try:
            return _run(folder, state, config, inputs, head, talk, progress)
        except (RuntimeError, MemoryError) as error:
            if is_out_of_memory(error):
                told = f"{inputs.device} has too little memory for `batch_size={config.batch_size}`"
                raise UserError(f"{told}: choose a smaller one in another `run`") from error
            if config.compile and type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                told = f"this machine cannot compile the model ({first_line(error)})"
                raise UserError(f"`compile=True`: {told}: leave it out") from error
            raise


def finished_run(inputs: TrainingInputs, head: str, config: TrainConfig, folder: RunFolder) -> TrainedRun | None:
    """What came out of a run that `train_run` would find finished, or None. Raises UserError as that does."""
    if not folder.exists:
        return None
    with WriterLock(folder.checkpoint):
        _, lost = found_run(folder, config, inputs, head)
        return read_run(folder) if lost == [] else None


def default_folder(head: str) -> Path:
    """Where a run goes that names no folder."""
    return Path("runs") / head


def read_run(folder: RunFolder) -> TrainedRun:
    """What came out of a finished run. Raises UserError if the folder has none."""
    values = RunFolder(folder.path).summary  # as it is now
    names = {field.name for field in dataclasses.fields(TrainedRun)} - {"folder"}
    if not names <= values.keys():
        raise UserError(f"{folder.summary_file}: not the summary of a run: remove it: {RESTORED}")
    return TrainedRun(folder=folder.path, **{name: values[name] for name in names})


def _run(
    folder: RunFolder,
    state: State,
    config: TrainConfig,
    inputs: TrainingInputs,
    head: str,
    talk: bool,
    progress: Callable[..., Progress],
) -> TrainedRun:
    named = state.made_from[TEXT_ENCODER]  # as the run began: relative or absolute, it is the same
    config = dataclasses.replace(config, text_encoder=named)
    encoder = inputs.text_encoder(config.seed) if "text" in head_class(head).uses else None
    fixed = {VOCABULARY: inputs.vocabulary_digest} if config.is_recurrent else {}  # what no checkpoint's tensors tell
    if encoder is not None and config.freeze_text:
        fixed[FROZEN_WEIGHTS] = weights_sha256(encoder.state_dict())
    if state.epochs:
        refuse_changes(folder, state, fixed)
    elif encoder is not None:
        fixed[TEXT_POOL] = inputs.text_pool
    note_processes(folder, state)
    state.made_from = {**state.made_from, **fixed}
    pool = POOLER if encoder is None else state.made_from[TEXT_POOL]
    model_config = dataclasses.replace(inputs.model_config(head, pool, config), text_encoder=named)
    model = build_model(model_config, encoder, config.seed, inputs.tokenizer)
    trainer = Trainer(
        model,
        inputs.dataset(head, pool),
        inputs.train,
        inputs.val,
        config,
        device=inputs.device,
        autocast=inputs.autocast,
        weights=inputs.weights,
    )
    if state.epochs:
        restore(folder, model, trainer.optimizer)
        if not state.ended(config):
            log.info("%s: resumed after epoch %d", folder.path, state.epochs)
    if talk:
        introduce(inputs, model)
    options = {**_as_json(inputs, config, head, folder), "text_pool": state.made_from[TEXT_POOL]}
    if distributed.rank() == 0:
        save_setup(model, folder, share=inputs.share, options=options)
        inputs.split.save(folder.file("split.json"))
    if encoder is not None:
        inputs.share = folder
    done, pairs = state.epochs, len(inputs.train)
    track = config.track if distributed.rank() == 0 else ()
    with Trackers(track, folder.path, options, state.history) as trackers:
        with progress(config.epochs * pairs, "pairs", folder.path.name, done * pairs) as told:
            _epochs(folder, state, config, trainer, told, trackers, talk)
        run = distributed.by_first(lambda: _finish(folder, state, model, config.seed))
        trackers.finish(_summary(run))
    return run


def _epochs(
    folder: RunFolder,
    state: State,
    config: TrainConfig,
    trainer: Trainer,
    progress: Progress,
    trackers: Trackers,
    talk: bool,
) -> None:
    while not state.ended(config):
        number = state.epochs + 1
        line = distributed.from_first(trainer.epoch(number, progress))
        state.history.append(line)
        if distributed.rank() == 0:
            with held_back():
                if number % config.save_every == 0:
                    save_weights(trainer.model, folder.numbered(number))
                commit(folder, state, trainer.model, trainer.optimizer)
        trackers.log(line)
        if talk:
            log.info(epoch_line(line, config.epochs, best=state.best == number))
    if talk and state.epochs < config.epochs:
        log.info("%s: stopped, no better one in %d epochs", folder.path, config.patience)


def _finish(folder: RunFolder, state: State, model: PairClassifier, seed: int) -> TrainedRun:
    best = state.history[state.best - 1]
    run = TrainedRun(
        folder=folder.path,
        fusion=model.config.fusion,
        seed=seed,
        epochs=state.epochs,
        best_epoch=state.best,
        val_accuracy=best["val_accuracy"],
        val_macro_f1=best["val_macro_f1"],
        val_loss=best["val_loss"],
        trained_parameters=count_parameters(model),
        seconds_per_epoch=median(line["seconds"] for line in state.history),
    )
    write_metrics(folder, state)
    if not folder.figures_only:
        plot_learning_rate(state.history, folder.file("learning_rate.png"))
        plot_curves(state.history, folder.file("curves.png"))
    finish(folder, state, model, _summary(run))
    return run


def _summary(run: TrainedRun) -> dict[str, Any]:
    return {name: value for name, value in dataclasses.asdict(run).items() if name != "folder"}


def _as_json(inputs: TrainingInputs, config: TrainConfig, head: str, folder: RunFolder) -> dict[str, Any]:
    """The options of the run as config.json keeps them, under the command line's names, for --config to read back."""
    values = dataclasses.asdict(effective(config, head_class(head)))
    del values["resume"], values["head_options"]
    given = {"data": inputs.pairs.path, "cache": inputs.store.path, "run": folder.path}
    return {
        **{name: as_given(path.as_posix()) for name, path in given.items()},
        "fusion": [head],
        **values,
        "seed": inputs.split.seed,
        "seeds": [config.seed] if config.seed != inputs.split.seed else [],
        "head_option": [f"{name}={json.dumps(value)}" for name, value in config.head_options.items()],
        **inputs.more.options,
    }
