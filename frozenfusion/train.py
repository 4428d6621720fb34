"""Stage two: fine-tune the text encoder and a fusion head against the cached image features.

`train` makes one run folder from one fusion head and one seed; frozenfusion.sweep makes several.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from frozenfusion.checkpoints import RunFolder, State, commit, finish, read_state, restore, write_metrics
from frozenfusion.device import is_out_of_memory
from frozenfusion.errors import UserError
from frozenfusion.files import read_json
from frozenfusion.fit import Trainer
from frozenfusion.fusion import head_class
from frozenfusion.material import Material
from frozenfusion.model import PairClassifier, build_model, count_parameters, save_setup, save_weights
from frozenfusion.options import TrainOptions
from frozenfusion.progress import Progress, duration, log
from frozenfusion.report import plot_curves, plot_learning_rate
from frozenfusion.store_file import WriterLock
from frozenfusion.text import weights_digest

# Options that a training cannot change on its way: with another value it would be another run.
FIXED = (
    "text_encoder",
    "text_weights",
    "freeze_text",
    "max_length",
    "batch_size",
    "lr",
    "weight_decay",
    "schedule",
    "image_dropout",
    "modality_dropout",
    "alpha",
    "class_weights",
    "val_fraction",
    "precision",
)


PAIRS, FROZEN_WEIGHTS = "pairs", "frozen text encoder"
_TOLD = {
    PAIRS: "pairs: their texts, labels, images or split are not the same",
    FROZEN_WEIGHTS: "frozen text encoder: its weights are not the same",
}


@dataclass(frozen=True)
class TrainedRun:
    """What came out of one training; val_* are of the best epoch, None without a validation part."""

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


def train(options: TrainOptions, material: Material | None = None, *, talk: bool = True) -> TrainedRun:
    """Train one fusion head with one seed into its run folder, or go on where an earlier training stopped.

    The head is the first of options.fusion, the seed the first of options.seeds, else options.seed, which also makes
    the split. `talk` prints a line an epoch. Raises UserError; whatever stops it, finished epochs are kept.
    """
    head, seed = options.fusion[0], (options.seeds or (options.seed,))[0]
    head_class(head)
    folder = RunFolder(options.run or default_folder(head))
    folder.check_free()
    material = material or Material(options)
    with _locked(folder):
        state = _state(folder, options, material, head, seed)
        if state.epochs >= options.epochs and folder.is_finished(state.epochs):
            if talk:
                done = "finished, %d epochs: nothing to do (more --epochs go on from here)"
                log.info(f"%s: {done}", folder.path, state.epochs)
            return read_run(folder.path)
        try:
            return _run(folder, state, options, material, head, seed, talk)
        except (RuntimeError, MemoryError) as error:
            if is_out_of_memory(error):
                told = f"{material.device} has too little memory for --batch-size {options.batch_size}"
                raise UserError(f"{told}: choose a smaller one in another --run") from error
            if options.compile and type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                reason = str(error).strip().splitlines()[0]
                raise UserError(f"--compile: this machine cannot compile the model ({reason}): leave it out") from error
            raise


def default_folder(head: str) -> Path:
    """Where a run goes that names no folder."""
    return Path("runs") / head


def read_run(folder: Path) -> TrainedRun:
    """What came out of a finished run. Raises UserError if the folder has none."""
    values = read_json(folder / "summary.json")
    names = {field.name for field in dataclasses.fields(TrainedRun)} - {"folder"}
    if not isinstance(values, dict) or not names <= values.keys():
        raise UserError(f"{folder / 'summary.json'}: not the summary of a run: train it again in another --run")
    return TrainedRun(folder=folder, **{name: values[name] for name in names})


def _state(folder: RunFolder, options: TrainOptions, material: Material, head: str, seed: int) -> State:
    """How far the run is. Raises UserError where --resume or an option that changed since forbids to go on."""
    made_from = {
        "--fusion": head,
        "--seed": seed,
        **{f"--{name.replace('_', '-')}": getattr(options, name) for name in FIXED},
        "image features": dict(material.store.fingerprint),
        PAIRS: material.digest,
    }
    if options.resume == "never" and folder.config.exists():
        raise UserError(f"{folder.path}: holds a training, and --resume never keeps off those: choose another --run")
    state = read_state(folder)
    if state is None:
        if options.resume == "always":
            raise UserError(f"{folder.path}: no training to go on with, and --resume always asks for one: check --run")
        return State(made_from)
    _refuse_changes(folder, state, made_from)
    return state


def _refuse_changes(folder: RunFolder, state: State, made_from: Mapping[str, Any]) -> None:
    changes = [
        _change(name, state.made_from.get(name), value)
        for name, value in made_from.items()
        if state.made_from.get(name) != value
    ]
    if changes:
        raise UserError(
            f"{folder.path}: was trained otherwise ({'; '.join(changes)}): give the same again, or choose another --run"
        )


def _change(name: str, old: Any, new: Any) -> str:
    if name in _TOLD:
        return _TOLD[name]
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        parts = sorted(part for part in old.keys() | new.keys() if old.get(part) != new.get(part))
        return f"{name}: " + ", ".join(f"{part} {old.get(part)} → {new.get(part)}" for part in parts)
    return f"{name} {old} → {new}"


def _run(
    folder: RunFolder, state: State, options: TrainOptions, material: Material, head: str, seed: int, talk: bool
) -> TrainedRun:
    encoder = material.text_encoder(seed) if "text" in head_class(head).uses else None
    if encoder is not None and options.freeze_text:  # its weights are no part of the checkpoint
        frozen = {FROZEN_WEIGHTS: weights_digest(encoder)}
        if state.epochs:
            _refuse_changes(folder, state, frozen)
        state.made_from = {**state.made_from, **frozen}
    model = build_model(material.model_config(head), encoder, seed)
    trainer = Trainer(
        model,
        material.dataset(head),
        material.train,
        material.val,
        options,
        seed=seed,
        device=material.device,
        autocast=material.autocast,
    )
    folder.sweep_up()
    if state.epochs:
        restore(folder, model, trainer.optimizer)
        if state.epochs < options.epochs:
            log.info("%s: going on after epoch %d", folder.path, state.epochs)
    if talk:
        _introduce(material, model)
    material.split.save(folder.path / "split.json")
    save_setup(model, material.tokenizer, folder.path, share=material.share, options=_as_json(options))
    if encoder is not None:
        material.share = folder.path
    _epochs(folder, state, options, trainer, len(material.train), talk)
    return _finish(folder, state, model, head, seed)


def _epochs(folder: RunFolder, state: State, options: TrainOptions, trainer: Trainer, pairs: int, talk: bool) -> None:
    with Progress(options.epochs * pairs, "pairs", folder.path.name, done=state.epochs * pairs) as progress:
        for number in range(state.epochs + 1, options.epochs + 1):
            line = trainer.epoch(number, progress)
            state.history.append(line)
            if number % options.save_every == 0:
                save_weights(trainer.model, folder.numbered(number))
            commit(folder, state, trainer.model, trainer.optimizer)
            if talk:
                log.info(_epoch_line(line, options.epochs, best=state.best == number))


def _finish(folder: RunFolder, state: State, model: PairClassifier, head: str, seed: int) -> TrainedRun:
    best = state.history[state.best - 1]
    run = TrainedRun(
        folder=folder.path,
        fusion=head,
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
    plot_learning_rate(state.history, folder.path / "learning_rate.png")
    plot_curves(state.history, folder.path / "curves.png")
    summary = dataclasses.asdict(run)
    del summary["folder"]
    finish(folder, state, model, summary)
    return run


def _introduce(material: Material, model: PairClassifier) -> None:
    log.info("%s", material.summary())
    for name in material.classes_without_pairs:
        log.warning("no training pair is %s: the model cannot learn what that is", name)
    log.info(
        "%s: %s parameters are trained, on %s in %s",
        model.config.fusion,
        f"{count_parameters(model):,}",
        material.device,
        "float32" if material.autocast is None else str(material.autocast).removeprefix("torch."),
    )


def _epoch_line(line: Mapping[str, Any], epochs: int, *, best: bool) -> str:
    told = f"epoch {line['epoch']}/{epochs}  lr {line['lr']:.2e}  {_figures(line, 'train')}"
    if line["val_loss"] is not None:
        told += f"  {_figures(line, 'val')} macro F1 {line['val_macro_f1']:.1%}"
    return f"{told}  {seconds(line['seconds'])}{'  best' if best else ''}"


def seconds(value: float) -> str:
    """A duration of an epoch: short ones with their parts of a second."""
    return f"{value:.2f}s" if value < 10 else duration(value)


def _figures(line: Mapping[str, Any], part: str) -> str:
    return f"{part} loss {line[f'{part}_loss']:.4f} accuracy {line[f'{part}_accuracy']:.1%}"


@contextmanager
def _locked(folder: RunFolder) -> Iterator[None]:
    lock = WriterLock(folder.checkpoint)
    try:
        yield
    finally:
        lock.release()


def _as_json(options: TrainOptions) -> dict[str, Any]:
    """The options as config.json keeps them, so that --config can read them back."""
    values = dataclasses.asdict(options)
    for name in ("config", "debug", "resume"):
        del values[name]
    return {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}
