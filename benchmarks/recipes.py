"""What each option of a training recipe is worth on held-out pairs: the reference with it against that without.

    python -m benchmarks.recipes DATA --cache FILE --text-encoder FOLDER --freeze-text --fusion concat image --splits 10

Every split draws a train, a validation and a test part anew, equal texts always in one part; each way is trained on
every split, its epoch chosen on the validation part, and measured on the test part. Differences are paired by split.
Their 95 % intervals allow for splits that share pairs (the corrected resampled t-test of Nadeau & Bengio, 2003).
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from benchmarks.common import parser, print_table, write_results
from frozenfusion.data.pairs import Pairs, load_pairs
from frozenfusion.data.splits import Split
from frozenfusion.fusion.options import parse_options
from frozenfusion.fusion.registry import head_class
from frozenfusion.model.classifier import build_model
from frozenfusion.model.inference import Arithmetic, predict
from frozenfusion.store.reader import FeatureStore, Rows
from frozenfusion.training.checkpoint import State
from frozenfusion.training.config import TrainConfig, recipe
from frozenfusion.training.inputs import TrainingInputs
from frozenfusion.training.options import effective
from frozenfusion.training.trainer import Trainer
from frozenfusion.utils.plugins import import_plugin
from frozenfusion.utils.progress import Progress, log

TEST, VAL = 0.3, 0.15  # of all pairs
REFERENCE = "reference"
WAYS: Mapping[str, Mapping[str, Any]] = {
    "adamw, decay 0.01": {"optimizer": "adamw", "weight_decay": 0.01},
    "schedule cosine": {"schedule": "cosine"},
    "lr 5e-5": {"lr": 5e-5},
    "head_lr 1e-3": {"head_lr": 1e-3},
    "lr 5e-5, head_lr 1e-3": {"lr": 5e-5, "head_lr": 1e-3},
    "warmup 1": {"warmup": 1.0},
    "clip 1": {"clip": 1.0},
    "accumulate 4": {"accumulate": 4},
    "label_smoothing 0.1": {"label_smoothing": 0.1},
    "focal 2": {"focal": 2.0},
    "class_weights": {"class_weights": True},
    "patience 3": {"patience": 3},
    "standardise_images": {"standardise_images": True},
    "region_pool attention": {"region_pool": "attention"},
    "region_pool flatten": {"region_pool": "flatten"},
    "tuned": recipe("tuned"),
}


class Measured(NamedTuple):
    """How good a model is on the test part of a split."""

    accuracy: float
    log_loss: float
    epochs: int


def main() -> None:
    given = arguments()
    for name in given.imports:
        import_plugin(name)
    log.setLevel(logging.WARNING)
    pairs, store = load_pairs(given.data), FeatureStore(given.cache)
    base = TrainConfig(
        text_encoder=given.text_encoder,
        freeze_text=given.freeze_text,
        epochs=given.epochs,
        device=given.device,
        **parse_options(given.base),
    )
    ways = {REFERENCE: {}, **{name: WAYS[name] for name in given.ways or WAYS}}
    results = {}
    for head in given.fusion:
        found = {}
        for name, changes in ways.items():
            config = dataclasses.replace(base, **changes)
            if name == REFERENCE or _is_another(config, base, head, store):
                found[name] = measure(pairs, store, config, head, given.splits)
                accuracies = " ".join(f"{each.accuracy:.1%}" for each in found[name])
                print(f"{head}, {name}: {accuracies}", flush=True)
        results[head] = {name: [each._asdict() for each in measured] for name, measured in found.items()}
        kind = "frozen text" if given.freeze_text else "fine-tuned"
        rows = [_row(name, measured, found[REFERENCE]) for name, measured in found.items()]
        print_table(
            f"{head}, {kind}, {len(store.ids):,} pairs, {given.splits} splits: against {given.base or 'the reference'}",
            ("", "accuracy", "difference, points", "95 % interval", "log loss", "difference", "interval", "epochs"),
            rows,
        )
    write_results(given.json, "recipes", {"base": given.base, "splits": given.splits, "measured": results})


def _is_another(config: TrainConfig, base: TrainConfig, head: str, store: FeatureStore) -> bool:
    """Whether an option means something to a head, on these features."""
    if config.region_pool != "mean" and len(store.shape) == 1:
        return False
    kind = head_class(head)
    return effective(config, kind) != effective(base, kind)


def measure(pairs: Pairs, store: FeatureStore, config: TrainConfig, head: str, splits: int) -> list[Measured]:
    """Train one head in one way on every split, and measure each on its test part."""
    config = effective(config, head_class(head))
    ids = [pair.id for pair in pairs if pair.label is not None]
    inputs = TrainingInputs(pairs, store, config, [head], Split("benchmark", 0, ids[:-1], ids[-1:], []))
    parts = (draw(pairs, ids, seed) for seed in range(splits))
    return [_one(inputs, dataclasses.replace(config, seed=seed), head, *rows) for seed, rows in enumerate(parts)]


def draw(pairs: Pairs, ids: Sequence[str], seed: int) -> tuple[Rows, Rows, Rows]:
    """Positions of the train, validation and test part; equal texts are in one part."""
    groups: dict[str, list[int]] = defaultdict(list)
    for place, pair in enumerate(pairs.select(ids)):
        groups[pair.text.casefold() or pair.id].append(place)
    order = np.random.default_rng(seed).permutation(len(groups))
    members = list(groups.values())
    rows = np.concatenate([np.array(members[group]) for group in order])
    ends = np.cumsum([len(members[group]) for group in order])
    test, val = (int(ends[np.searchsorted(ends, part * len(ids))]) for part in (TEST, TEST + VAL))
    return np.sort(rows[val:]), np.sort(rows[test:val]), np.sort(rows[:test])


def _one(inputs: TrainingInputs, config: TrainConfig, head: str, train: Rows, val: Rows, test: Rows) -> Measured:
    encoder = inputs.text_encoder(config.seed) if "text" in head_class(head).uses else None
    model = build_model(inputs.model_config(head), encoder, config.seed, inputs.tokenizer)
    dataset = inputs.dataset(head)
    trainer = Trainer(model, dataset, train, val, config, device=inputs.device, autocast=inputs.autocast)
    state = State({})
    best: dict[str, Any] = {}
    with Progress(config.epochs * len(train), "pairs") as progress:
        while not state.ended(config):
            state.history.append(trainer.epoch(state.epochs + 1, progress))
            if state.best == state.epochs:
                best = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(best)
    arithmetic = Arithmetic(inputs.device, inputs.autocast, 64)
    found = predict(model.eval(), dataset, arithmetic, questions={"all": None}).probabilities[test]
    labels = dataset.labels.cpu().numpy()[test]
    sure = np.clip(found[np.arange(len(test)), labels], 1e-12, 1)
    return Measured(float((found.argmax(1) == labels).mean()), float(-np.log(sure).mean()), state.epochs)


def _row(name: str, measured: Sequence[Measured], reference: Sequence[Measured]) -> list[object]:
    accuracy = 100 * np.array([[each.accuracy for each in of] for of in (measured, reference)])
    losses = np.array([[each.log_loss for each in of] for of in (measured, reference)])
    row: list[object] = [name, f"{accuracy[0].mean():.1f}"]
    row += ["", ""] if name == REFERENCE else _difference(accuracy, "+.1f")
    row += [f"{losses[0].mean():.3f}"]
    row += ["", ""] if name == REFERENCE else _difference(losses, "+.3f")
    return [*row, f"{np.mean([each.epochs for each in measured]):.1f}"]


def _difference(values: np.ndarray, how: str) -> list[str]:
    """Mean difference (2, splits) -> of the first to the second, and its interval."""
    differences = values[0] - values[1]
    splits = len(differences)
    if splits < 2:
        return [format(differences.mean(), how), ""]
    error = np.sqrt((1 / splits + TEST / (1 - TEST - VAL)) * differences.var(ddof=1))
    half = float(stats.t.ppf(0.975, splits - 1)) * error
    low, high = differences.mean() - half, differences.mean() + half
    return [format(differences.mean(), how), f"{low:{how}} to {high:{how}}"]


def arguments() -> argparse.Namespace:
    options = parser("recipes", __doc__)
    options.add_argument("data", type=Path, help="image-text pairs with labels")
    options.add_argument("--cache", type=Path, required=True, help="feature file of their images")
    options.add_argument("--text-encoder", default="albert-base-v2")
    options.add_argument("--freeze-text", action="store_true")
    options.add_argument("--fusion", nargs="+", default=["concat"])
    options.add_argument("--splits", type=int, default=10)
    options.add_argument("--epochs", type=int, default=TrainConfig().epochs)
    options.add_argument("--base", nargs="*", default=[], help="NAME=VALUE of options that all ways share")
    options.add_argument("--ways", nargs="*", help=f"some of: {'; '.join(WAYS)}")
    options.add_argument("--import", dest="imports", action="append", default=[])
    options.add_argument("--device", default="auto")
    return options.parse_args()


if __name__ == "__main__":
    main()
