"""Cost against the number of pairs, stage by stage: seconds, and memory at its highest.

The networks that take nearly all of the time are not there, so that what is left shows: extraction has one that gives
a feature for the mean colour, and the texts are frozen features. Images are few and small, read again and again. Every
size runs in a process of its own, with rows as wide as B7's and ALBERT's. Training and evaluation take a random part
of many pairs, and their seconds are those of all.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image
from transformers import AlbertConfig, AlbertModel

from benchmarks.common import memory_mib, own_process, parser, print_table, reset_peak, write_results
from frozenfusion.data.pairs import Pairs, load_pairs
from frozenfusion.data.resize import Resize
from frozenfusion.extraction.config import ExtractConfig
from frozenfusion.extraction.extractor import extract
from frozenfusion.model.classifier import build_model
from frozenfusion.model.config import ModelConfig
from frozenfusion.model.dataset import PairDataset, stored_images
from frozenfusion.model.inference import Arithmetic, predict
from frozenfusion.store.reader import FeatureStore
from frozenfusion.store.tensors import FeatureRows
from frozenfusion.store.writer import StoreWriter
from frozenfusion.text.cache import CachedTexts
from frozenfusion.training.config import TrainConfig
from frozenfusion.training.trainer import Trainer
from frozenfusion.utils.files import replacing
from frozenfusion.utils.memory import keep_freed_memory
from frozenfusion.utils.progress import Progress

IMAGE_WIDTH, TEXT_WIDTH, BATCH_SIZE = 2560, 768, 8
IMAGES, IMAGE_SIDE = 50, 64
EVALUATED_AT_ONCE = 64
STAGES = ("extraction", "loading", "training epoch", "evaluation")

Figures = dict[str, dict[str, Any]]  # of each stage: seconds, pairs_per_second, peak_mib


def main() -> None:
    given = arguments()
    found: dict[int, Figures] = {}
    for n in sorted(given.sizes):
        with tempfile.TemporaryDirectory(dir=given.folder, prefix="benchmark-scaling-") as folder:
            found[n] = in_own_process(n, Path(folder), given.dtype, given.at_most)
            print(f"{n:,} pairs: " + ", ".join(f"{stage} {found[n][stage]['seconds']:.1f} s" for stage in STAGES))
    for figure, title in (
        ("seconds", "Seconds, without the two networks"),
        ("pairs_per_second", "Pairs per second"),
        ("peak_mib", "MiB of memory at the highest, above what the process had before the stage"),
    ):
        print_table(
            title, ["pairs", *STAGES], [[n, *(of[stage][figure] for stage in STAGES)] for n, of in found.items()]
        )
    if given.plot:
        plot(given.plot, found)
        print(f"\ndrawn in {given.plot}")
    write_results(
        given.json,
        "scaling",
        {"dtype": given.dtype, "at_most": given.at_most, "sizes": {str(n): of for n, of in found.items()}},
    )


def arguments() -> argparse.Namespace:
    options = parser("scaling", __doc__)
    options.add_argument(
        "--sizes", type=int, nargs="+", default=[1_000, 3_000, 10_000, 30_000, 100_000], help="pairs (%(default)s)"
    )
    options.add_argument(
        "--at-most", type=int, default=5_000, help="pairs to train on and to evaluate, any of all (%(default)s)"
    )
    options.add_argument("--dtype", choices=("float16", "float32"), default="float16", help="stored (%(default)s)")
    options.add_argument("--plot", type=Path, metavar="FILE", default=Path("scaling.png"), help="PNG (%(default)s)")
    options.add_argument("--folder", type=Path, help="where to make the files for the time being")
    return options.parse_args()


def in_own_process(n: int, folder: Path, dtype: str, at_most: int) -> Figures:
    """The figures of one size, from a new process, whose memory holds nothing of the sizes before."""
    with own_process() as process:
        return process.submit(all_stages, n, folder, dtype, at_most).result()


def all_stages(n: int, folder: Path, dtype: str, at_most: int) -> Figures:
    """Every stage once over `n` pairs, after a few pairs that load what is loaded once."""
    keep_freed_memory()  # as the scripts do
    stages(3 * BATCH_SIZE, folder / "warm-up", dtype, at_most)
    return stages(n, folder / "full", dtype, at_most)


def stages(n: int, folder: Path, dtype: str, at_most: int) -> Figures:
    data, cache, texts = make_pairs(folder, n), folder / "features.h5", folder / "texts.h5"
    found, device = {}, torch.device("cpu")
    some = np.sort(np.random.default_rng(2).permutation(n)[:at_most])
    _, found["extraction"] = measured(n, lambda: extraction(data, cache, dtype))
    pairs = load_pairs(data)
    make_texts(texts, pairs.ids)
    dataset, found["loading"] = measured(n, lambda: load(pairs, pairs.ids, cache, texts))
    config = TrainConfig(batch_size=BATCH_SIZE, seed=0)
    trainer = Trainer(head_on_features(pairs), dataset, some, some[:0], config, device=device)
    with Progress(len(some), "pairs") as progress:
        _, found["training epoch"] = measured(n, lambda: trainer.epoch(1, progress), len(some))
    trainer.model.eval()
    arithmetic = Arithmetic(device, None, EVALUATED_AT_ONCE)
    part = load(pairs, [pairs.ids[place] for place in some.tolist()], cache, texts)
    _, found["evaluation"] = measured(n, lambda: predict(trainer.model, part, arithmetic), len(some))
    return found


def make_pairs(folder: Path, n: int) -> Path:
    """A manifest of `n` labelled pairs that share a few pictures of noise."""
    random = np.random.default_rng(0)
    folder.mkdir()
    for number in range(IMAGES):
        pixels = random.integers(0, 256, (IMAGE_SIDE, IMAGE_SIDE, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.jpg")
    with (folder / "pairs.csv").open("w", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(["id", "text", "image", "label"])
        lines.writerows([f"{i:07d}", "some words", f"{i % IMAGES}.jpg", "abc"[i % 3]] for i in range(n))
    return folder / "pairs.csv"


class MeanColour:
    """Stands in for a Backbone and its Runner: how light an image is, d times."""

    feature_shape = (IMAGE_WIDTH,)
    batch_size, in_flight, runner = BATCH_SIZE, 1, None
    resize = Resize(IMAGE_SIDE)

    def __init__(self, dtype: str) -> None:
        self.dtype, self.fingerprint = dtype, {"backbone": "mean colour"}

    def prepare(self, *_: Any, **__: Any) -> MeanColour:
        return self

    def start(self, images: np.ndarray) -> np.ndarray:
        return images

    def finish(self, images: np.ndarray) -> np.ndarray:
        return np.repeat(images.mean((1, 2, 3))[:, None] / 255, IMAGE_WIDTH, axis=1).astype(self.dtype)


def extraction(data: Path, cache: Path, dtype: Any) -> None:
    config = ExtractConfig(image_size=IMAGE_SIDE, dtype=dtype, device="cpu")
    with mock.patch("frozenfusion.extraction.extractor.build_backbone", return_value=MeanColour(dtype)):
        extract(load_pairs(data), cache, config=config)


def make_texts(path: Path, ids: list[str]) -> None:
    """Random features in the place of a frozen text encoder's."""
    random = np.random.default_rng(1)
    with StoreWriter.create(path, ids, (TEXT_WIDTH,), "float32", {"features": "random"}) as writer:
        for rows in np.array_split(np.arange(len(ids)), -(-len(ids) // 1000)):
            features = random.standard_normal((len(rows), TEXT_WIDTH), np.float32)
            writer.write(rows, features, np.zeros((len(rows), 16), np.uint8), np.zeros((len(rows), 2), np.int64))


def load(pairs: Pairs, ids: list[str], cache: Path, texts: Path) -> PairDataset:
    members, store = pairs.select(ids), FeatureStore(texts)
    cached = CachedTexts(FeatureRows(store, store.rows(ids)), None, np.ones(len(ids), np.int64))
    return PairDataset(members, stored_images(FeatureStore(cache), members, pairs.path), cached)


def head_on_features(pairs: Pairs) -> Any:
    """A model whose text encoder is never run."""
    config = AlbertConfig(vocab_size=10, hidden_size=TEXT_WIDTH, num_attention_heads=12, intermediate_size=3072)
    return build_model(
        ModelConfig("concat", pairs.label_names, freeze_text=True, image_width=IMAGE_WIDTH), AlbertModel(config), seed=0
    )


def measured(n: int, stage: Callable[[], Any], done: int | None = None) -> tuple[Any, dict[str, float]]:
    """What a stage returns, and its figures for `n` pairs if it did `done` of them."""
    reset_peak()
    before, began = memory_mib("VmRSS"), time.perf_counter()
    result = stage()
    seconds = (time.perf_counter() - began) * n / (done or n)
    peak = max(0.0, memory_mib("VmHWM") - before)
    return result, {"seconds": seconds, "pairs_per_second": n / seconds, "peak_mib": peak}


def plot(path: Path, found: dict[int, Figures]) -> None:
    """Draw seconds and memory against the number of pairs."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.8), layout="constrained")
    for axes, name, title in zip(figure.subplots(1, 2), ("seconds", "peak_mib"), ("seconds", "MiB"), strict=True):
        for stage in STAGES:
            axes.plot(list(found), [of[stage][name] for of in found.values()], marker="o", label=stage)
        axes.set(xscale="log", xlabel="pairs", title=title)
        axes.grid(alpha=0.3)
    figure.axes[0].set_yscale("log")
    figure.axes[0].legend(frameon=False)
    with replacing(path) as beside:
        figure.savefig(beside, dpi=130)


if __name__ == "__main__":
    main()
