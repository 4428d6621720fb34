"""A data set, a feature store and a text encoder small enough to train in tests; no image is ever opened."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AlbertConfig, PreTrainedTokenizerFast

from frozenfusion.data.pairs import load_pairs
from frozenfusion.data.splits import split_pairs
from frozenfusion.store.reader import FeatureStore
from frozenfusion.store.status import MISSING
from frozenfusion.store.writer import StoreWriter
from frozenfusion.training.config import TrainConfig
from frozenfusion.training.inputs import TrainingInputs
from frozenfusion.training.run import TrainedRun, train
from frozenfusion.training.sweeps import sweep

LABELS = ("positive", "neutral", "negative")
WORDS = (("good", "sun", "smile"), ("tree", "road", "noon"), ("bad", "rain", "frown"))
WIDTH = 16
MISSING_IMAGE, EMPTY_TEXT = "p003", "p005"


def make_data(folder: Path, n: int = 48, seed: int = 0) -> Path:
    """A manifest of n labelled pairs: texts whose words half tell the label, of 1 to 18 words; one text is empty."""
    random = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "pairs.csv"
    with path.open("w", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(["id", "text", "image", "label"])
        for number in range(n):
            label = number % 3
            kinds = np.where(random.random(random.integers(1, 19)) < 0.6, label, random.integers(0, 3))
            text = " ".join(WORDS[kind][random.integers(0, 3)] for kind in kinds)
            lines.writerow([f"p{number:03}", "" if f"p{number:03}" == EMPTY_TEXT else text, "x.jpg", LABELS[label]])
    return path


def make_store(
    path: Path, n: int = 48, *, regions: int = 0, dtype: str = "float32", ids: Sequence[str] | None = None
) -> Path:
    """A feature store of n rows that half tell the label; one image is missing, and row i of `ids` is for label i."""
    ids = [f"p{number:03}" for number in range(n)] if ids is None else ids
    shape = (regions, WIDTH) if regions else (WIDTH,)
    random = np.random.default_rng(1)
    labels = np.arange(len(ids)) % 3
    features = random.normal(size=(len(ids), *shape)).astype(dtype)
    features[..., :3] += 2 * np.eye(3, dtype=dtype)[labels].reshape(len(ids), *[1] * (len(shape) - 1), 3)
    present = np.array([place for place, id in enumerate(ids) if id != MISSING_IMAGE])
    digests = np.array([list(hashlib.blake2b(id.encode(), digest_size=16).digest()) for id in ids], np.uint8)
    with StoreWriter.create(path, ids, shape, dtype, {"backbone": "tiny", "format": 1}) as writer:
        writer.write(present, features[present], digests[present], np.ones((len(present), 2)))
        missing = np.setdiff1d(np.arange(len(ids)), present)
        if len(missing):
            writer.mark(missing, MISSING)
    return path


def make_text_encoder(folder: Path, *, layers: int = 1) -> Path:
    """A folder with a word tokenizer and the configuration of a tiny ALBERT with dropout; it has no weights."""
    vocabulary = ["<pad>", "<unk>", "[CLS]", "[SEP]", *(word for words in WORDS for word in words)]
    tokenizer = Tokenizer(models.WordLevel({word: place for place, word in enumerate(vocabulary)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", cls_token="[CLS]", sep_token="[SEP]"
    )
    fast.save_pretrained(folder)
    AlbertConfig(
        vocab_size=len(vocabulary),
        embedding_size=8,
        hidden_size=32,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=128,
        hidden_dropout_prob=0.1,
        attention_probs_dropout_prob=0.1,
    ).save_pretrained(folder)
    return folder


@dataclass(frozen=True)
class Training:
    """What `train` and `sweep` are given, kept together so that a test can repeat it with a change."""

    data: Path
    cache: Path
    run: Path
    config: TrainConfig
    fusion: tuple[str, ...] = ("concat",)
    seeds: tuple[int, ...] = ()

    def but(self, **changes: Any) -> Training:
        """The same with other values; names that are no field's are the config's."""
        own = {name: changes.pop(name) for name in list(changes) if name in ("data", "cache", "run", "fusion", "seeds")}
        return replace(self, config=replace(self.config, **changes), **own)

    def inputs(self) -> TrainingInputs:
        return TrainingInputs(load_pairs(self.data), FeatureStore(self.cache), self.config, self.fusion)

    def train(self) -> TrainedRun:
        """One run, as train_head.py makes it: a seed of `seeds` is the run's, on the split of the config's."""
        pairs, (head,) = load_pairs(self.data), self.fusion
        split = split_pairs(pairs, seed=self.config.seed, val_fraction=self.config.val_fraction)
        config = replace(self.config, seed=self.seeds[0]) if self.seeds else self.config
        return train(pairs, self.cache, head, config=config, run=self.run, split=split)

    def sweep(self) -> list[TrainedRun]:
        pairs = load_pairs(self.data)
        return sweep(pairs, self.cache, self.fusion, seeds=self.seeds, config=self.config, folder=self.run)

    def flags(self, **more: Any) -> list[str]:
        """The same as arguments of train_head.py."""
        given = {"cache": self.cache, "run": self.run, **vars(self.config), "seeds": self.seeds, **more}
        words = [str(self.data), "--fusion", *self.fusion]
        for name, value in given.items():
            if isinstance(value, tuple):
                words += [f"--{name}", *map(str, value)] if value else []
            elif value is True or not isinstance(value, bool | dict):
                words += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
        return words


def make_training(folder: Path, **changes: Any) -> Training:
    """A training on new tiny data below `folder`, which takes about a second."""
    data, cache, encoder = folder / "data" / "pairs.csv", folder / "features.h5", folder / "encoder"
    if not data.exists():
        make_data(data.parent)
    if not cache.exists():
        make_store(cache)
    if not encoder.exists():
        make_text_encoder(encoder)
    config = TrainConfig(
        text_encoder=str(encoder),
        text_weights="random",
        epochs=3,
        lr=1e-3,
        val_fraction=0.2,
        device="cpu",
        precision="float32",
    )
    return Training(data, cache, folder / "run", config).but(**changes)


def assert_same_tensors(one: Path, other: Path) -> None:
    """The same parameters bit for bit (the bytes of the files may differ: the order of a header means nothing)."""
    tensors, others = load_file(one), load_file(other)
    assert tensors.keys() == others.keys()
    different = [name for name in tensors if not tensors[name].equal(others[name])]
    assert not different, f"{one} and {other}: {different}"
