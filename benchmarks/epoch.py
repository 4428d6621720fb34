"""Training, pair by pair: the reference end to end, ours on cached images, and ours on cached images and texts.

End to end means the image network in every step (in eval mode, as in ours), texts padded to 128 tokens, float32 and
Adam as torch makes it; pixels are in memory already, which spares the reference its decoding. Every way has a process
of its own. Weights (but for --weights) and image features are random numbers, since no step takes longer or shorter
for what is in them.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers import AlbertConfig, AutoModel

from benchmarks.common import (
    HELD,
    alternate,
    call_held,
    own_process,
    parser,
    print_table,
    rates,
    write_results,
)
from benchmarks.equivalence import EndToEnd
from frozenfusion.data.pairs import Pairs, load_pairs
from frozenfusion.data.sample.build import make_sample
from frozenfusion.data.sample.texts import make_text_encoder
from frozenfusion.data.splits import split_pairs
from frozenfusion.model.classifier import build_model
from frozenfusion.model.config import ModelConfig
from frozenfusion.model.dataset import PairDataset, stored_images
from frozenfusion.store.reader import FeatureStore, Rows
from frozenfusion.store.writer import StoreWriter
from frozenfusion.text.batching import batches_by_length
from frozenfusion.text.cache import cached_texts
from frozenfusion.text.encoder import load_text_config, load_text_encoder
from frozenfusion.text.tokens import TokenizedTexts, load_tokenizer, tokenize
from frozenfusion.training.config import TrainConfig
from frozenfusion.training.trainer import Trainer
from frozenfusion.utils.device import autocast_type, choose_device
from frozenfusion.utils.memory import keep_freed_memory
from frozenfusion.utils.progress import Progress
from frozenfusion.vision.backbone import build_backbone

BATCH_SIZE, MAX_LENGTH, LR, WEIGHT_DECAY = 8, 128, 1e-4, 1e-6  # of the reference
REFERENCE, OURS, AUTO, FROZEN = (
    "reference, end to end",
    "ours, float32",
    "ours, --precision auto",
    "ours, --freeze-text",
)
EPOCH = 3609  # pairs of the reference's training part
ALBERT_BASE = {"vocab_size": 30_000, "hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072}


@dataclass
class Material:
    """What all ways train on: n pairs, their texts as tokens, and random image features."""

    folder: Path
    encoder: Path
    pairs: Pairs
    ids: list[str]
    texts: TokenizedTexts
    dataset: PairDataset
    width: int
    device: torch.device

    def text_encoder(self) -> Any:
        """A new text encoder, the same each time."""
        return load_text_encoder(self.encoder, "random", seed=0)

    def representative(self, steps: int) -> Rows:
        """The rows of so many batches, evenly from those of the longest texts to those of the shortest."""
        batches = batches_by_length(self.texts.lengths, BATCH_SIZE, seed=0, epoch=1)
        full = sorted(
            (b for b in batches if len(b) == BATCH_SIZE), key=lambda rows: int(self.texts.lengths[rows].max())
        )
        places = (np.arange(steps) + 0.5) / steps * len(full)
        return np.concatenate([full[int(place)] for place in places])


def main() -> None:
    given = arguments()
    device = choose_device(given.device)
    bf16 = autocast_type("auto", device)
    names = [name for name in (REFERENCE, OURS, AUTO, FROZEN) if name != AUTO or bf16 is not None]
    with tempfile.TemporaryDirectory(prefix="benchmark-epoch-") as name, ExitStack() as processes:
        given.data = given.data or make_sample(Path(name, "data"))
        tokens, units, ways = 0.0, {}, {}
        for number, way in enumerate(names):
            process = processes.enter_context(own_process())
            folder = Path(name, str(number))
            folder.mkdir()
            units[way], tokens = process.submit(hold, way, folder, given).result()
            ways[way] = lambda process=process, way=way: process.submit(call_held, way).result()
        found = rates(alternate(ways, rounds=given.rounds), units)
    print_table(
        f"{given.backbone} at {given.image_size} + {given.text_encoder or 'ALBERT-base shapes'}, on {device}: "
        f"batches of {BATCH_SIZE}, texts of {tokens:.0f} tokens on average",
        ["way to train", "pairs/s", "times the reference", f"s for {EPOCH:,} pairs"],
        [[way, rate, rate / found[REFERENCE], EPOCH / rate] for way, rate in found.items()],
    )
    if bf16 is None:
        print(f"\n{AUTO} is float32 here: this {device.type} has no bf16 instructions")
    write_results(
        given.json,
        "epoch",
        {
            "device": str(device),
            "tokens_on_average": tokens,
            "pairs_per_second": found,
            "ratios": {way: rate / found[REFERENCE] for way, rate in found.items()},
            "seconds_an_epoch": {way: EPOCH / rate for way, rate in found.items()},
        },
    )


def arguments() -> argparse.Namespace:
    options = parser("epoch", __doc__)
    options.add_argument("--data", type=Path, help="folder or manifest of pairs (by default the built-in sample)")
    options.add_argument(
        "--text-encoder", type=Path, help="folder with tokenizer and configuration (ALBERT-base shapes)"
    )
    options.add_argument("--backbone", default="efficientnet-b7", help="image network (%(default)s)")
    options.add_argument("--weights", default="random", help="weights of the image network (%(default)s)")
    options.add_argument("--image-size", type=int, default=224, help="side of the images (%(default)s)")
    options.add_argument("--pairs", type=int, default=256, help="pairs to take from the training part (%(default)s)")
    options.add_argument("--steps", type=int, default=4, help="steps of ours per measurement (%(default)s)")
    options.add_argument("--rounds", type=int, default=5, help="measurements of each way (%(default)s)")
    options.add_argument("--device", default="auto", help="auto, cpu, cuda (%(default)s)")
    return options.parse_args()


def gather(folder: Path, given: argparse.Namespace) -> Material:
    """Pairs, tokens and random features as the options say."""
    pairs = load_pairs(given.data)
    train = split_pairs(pairs, seed=0, val_fraction=0.0).train
    ids = sorted(np.random.default_rng(0).permutation(train)[: given.pairs].tolist())
    members = pairs.select(ids)
    words = [pair.text for pair in members]
    encoder = given.text_encoder or base_shapes(make_text_encoder(folder / "encoder", words))
    backbone = build_backbone(given.backbone, given.weights, image_size=given.image_size)
    width = backbone.feature_shape[-1]
    with StoreWriter.create(folder / "features.h5", ids, (width,), "float32", {"features": "random"}) as writer:
        features = np.random.default_rng(1).random((len(ids), width), np.float32)
        rows = np.arange(len(ids))
        writer.write(rows, features, np.zeros((len(ids), 16), np.uint8), np.zeros((len(ids), 2), np.int64))
    texts = tokenize(load_tokenizer(encoder), words, MAX_LENGTH)
    device = choose_device(given.device)
    images = stored_images(FeatureStore(folder / "features.h5"), members, pairs.path, device=device)
    dataset = PairDataset(members, images, texts, device=device)
    return Material(folder, encoder, pairs, ids, texts, dataset, width, device)


def base_shapes(encoder: Path) -> Path:
    """The same tokenizer with the configuration of ALBERT-base."""
    AlbertConfig(**ALBERT_BASE, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0).save_pretrained(encoder)
    return encoder


def hold(way: str, folder: Path, given: argparse.Namespace) -> tuple[int, float]:
    """Make a way in this process: how many pairs a call of it takes, and how many tokens texts have on average."""
    material = gather(folder, given)
    steps, everything = material.representative(given.steps), np.arange(len(material.ids))
    bf16 = autocast_type("auto", material.device)
    rows = everything if way == FROZEN else steps
    if way == REFERENCE:
        rows = rows[:BATCH_SIZE]
        HELD[way] = end_to_end(material, rows, given)
    else:
        keep_freed_memory()  # as the scripts do
        autocast = None if way == OURS else bf16
        HELD[way] = ours(material, rows, freeze_text=way == FROZEN, autocast=autocast)
    return len(rows), float(material.texts.lengths.mean())


def end_to_end(material: Material, rows: Rows, given: argparse.Namespace) -> Callable[[], object]:
    """One step of the reference on the same pairs each time: nothing in it depends on the texts' lengths."""
    image = build_backbone(given.backbone, given.weights).encoder.network(given.image_size)
    text = AutoModel.from_config(load_text_config(material.encoder), dtype=torch.float32)  # as the reference has it
    model = EndToEnd(text, image, 0.5, len(material.pairs.label_names)).to(material.device)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=LR, weight_decay=WEIGHT_DECAY)
    shape = (len(rows), given.image_size, given.image_size, 3)
    pixels = torch.from_numpy(np.random.default_rng(2).integers(0, 256, shape, np.uint8))
    labels = material.dataset.batch(rows).labels
    model.train()

    def step() -> float:
        tokens = material.texts.batch(rows, pad_to_multiple=MAX_LENGTH)
        tokens = {name: part.to(material.device) for name, part in tokens.items()}
        optimizer.zero_grad()
        loss = F.cross_entropy(model(tokens, pixels.to(material.device)), labels)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def ours(
    material: Material, rows: Rows, *, freeze_text: bool = False, autocast: torch.dtype | None = None
) -> Callable[[], object]:
    """An epoch of the product over some rows, as `train_head.py` runs it."""
    encoder = material.text_encoder()
    config = ModelConfig(
        "concat", material.pairs.label_names, freeze_text=freeze_text, max_length=MAX_LENGTH, image_width=material.width
    )
    dataset = material.dataset
    if freeze_text:
        cache = material.folder / "features.h5"
        texts = cached_texts(encoder, material.texts, material.ids, cache, tokens=False, device=material.device)
        dataset = dataset.with_texts(texts)
    trainer = Trainer(
        build_model(config, encoder, seed=0),
        dataset,
        rows,
        np.arange(0),
        TrainConfig(batch_size=BATCH_SIZE, lr=LR, weight_decay=WEIGHT_DECAY, seed=0),
        device=material.device,
        autocast=autocast,
    )
    epochs = iter(range(1, 10**9))

    def epoch() -> float:
        with Progress(len(rows), "pairs") as progress:
            return float(trainer.epoch(next(epochs), progress)["train_loss"])

    return epoch


if __name__ == "__main__":
    main()
