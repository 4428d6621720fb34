"""The two stages against the end-to-end network: the same logits, and the same parameters after the same training.

By default with the shapes of the reference, EfficientNet-B7 and ALBERT-base, on random weights, pixels and words. In so
deep a network of random weights rounding grows, so the yardstick is measured too: how far the end-to-end network is,
for its float32 alone, from one whose image tower computes in float64.
"""

from __future__ import annotations

import copy
import csv
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from efficientnet_pytorch import EfficientNet
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import AlbertConfig, AlbertModel, PreTrainedTokenizerFast

from benchmarks.common import parser, print_table, write_results
from frozenfusion.data.pairs import load_pairs
from frozenfusion.model.classifier import PairClassifier, build_model
from frozenfusion.model.config import ModelConfig
from frozenfusion.model.dataset import PairDataset, stored_images
from frozenfusion.store.reader import FeatureStore
from frozenfusion.store.writer import StoreWriter
from frozenfusion.text.batching import batches_by_length
from frozenfusion.text.encoder import load_text_encoder
from frozenfusion.text.tokens import load_tokenizer, tokenize
from frozenfusion.training.config import TrainConfig
from frozenfusion.training.trainer import Trainer
from frozenfusion.utils.progress import Progress
from frozenfusion.vision.backbone import Backbone, build_backbone

LABELS = ("positive", "neutral", "negative")
WORDS = [a + b + c for a in "bdfgklmnprst" for b in "aeiou" for c in "lmnrst"]
LOGITS_TOLERANCE = 1e-4
PARAMETERS_TOLERANCE, APART_TOLERANCE = 1e-5, 1e-4  # a difference, and the share of parameters with a larger one
YARDSTICKS = 3  # a difference may be so many times what float32 alone makes
LR, WEIGHT_DECAY, T_0, ETA_MIN = 1e-4, 1e-6, 10, 1e-6  # of the reference


class EndToEnd(nn.Module):
    """The reference's network in one piece, as Example 10.1 of Meng & Ou, 2023, builds it, image tower in eval mode.

    Pixels to logits: ALBERT's pooled output and EfficientNet -> average pool -> Dropout -> Linear, concatenated, then
    Linear. Written with the two packages alone, so that it shares no code with what it is compared to.
    """

    def __init__(self, text: AlbertModel, image: EfficientNet, dropout: float, classes: int) -> None:
        super().__init__()
        self.text, self.image = text, image
        self.image.requires_grad_(False)
        self.dropout = nn.Dropout(dropout)
        self.project = nn.Linear(image._conv_head.out_channels, text.config.hidden_size)
        self.classifier = nn.Linear(2 * text.config.hidden_size, classes)

    def train(self, mode: bool = True) -> EndToEnd:
        """As in torch, but the image tower stays in eval mode."""
        super().train(mode)
        self.image.eval()
        return self

    def forward(self, tokens: dict[str, Tensor], pixels: Tensor) -> Tensor:
        """Logits (b, c) of tokens (b, l) and pixels, uint8 (b, s, s, 3)."""
        t = self.text(**tokens)[1]
        v = image_feature(self.image, pixels)
        return self.classifier(torch.cat([t, self.project(self.dropout(v))], dim=1))


def image_feature(network: EfficientNet, pixels: Tensor) -> Tensor:
    """The pooled feature (b, d) of pixels, uint8 (b, s, s, 3), in the network's own precision."""
    mean, std = pixels.new_tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]], dtype=torch.float32)
    x = (pixels / 255 - mean) / std
    x = x.permute(0, 3, 1, 2).to(network._conv_stem.weight.dtype)
    return F.adaptive_avg_pool2d(network.extract_features(x), 1).flatten(1)


@dataclass
class Setting:
    """What both ways start from: pixels, uint8 (n, s, s, 3), texts and labels of n pairs, and both towers."""

    backbone: Backbone
    encoder_folder: Path
    pixels: np.ndarray
    texts: Sequence[str]
    labels: Sequence[int]
    max_length: int = 128
    image_dropout: float = 0.5
    batch_size: int = 8
    seed: int = 0


class TwoStages:
    """The product's way: features (n, d) computed once and stored, then the classifier trained against the store."""

    def __init__(self, setting: Setting, folder: Path, features: np.ndarray) -> None:
        ids = [f"p{i:04d}" for i in range(len(setting.texts))]
        folder.mkdir()
        with StoreWriter.create(folder / "f.h5", ids, features.shape[1:], "float32", {"for": "comparison"}) as writer:
            rows = np.arange(len(ids))
            writer.write(rows, features, np.zeros((len(ids), 16), np.uint8), np.zeros((len(ids), 2), np.int64))
        self.texts = tokenize(load_tokenizer(setting.encoder_folder), setting.texts, setting.max_length)
        pairs = load_pairs(_manifest(folder / "pairs.csv", ids, setting))
        images = stored_images(FeatureStore(folder / "f.h5"), pairs, pairs.path)
        self.dataset = PairDataset(pairs, images, self.texts)
        config = ModelConfig(
            "concat",
            LABELS,
            max_length=setting.max_length,
            image_width=features.shape[1],
            image_dropout=setting.image_dropout,
        )
        encoder = load_text_encoder(setting.encoder_folder, "random", setting.seed)
        self.model: PairClassifier = build_model(config, encoder, setting.seed)
        self.trainer = Trainer(
            self.model,
            self.dataset,
            np.arange(len(ids)),
            np.arange(0),
            TrainConfig(batch_size=setting.batch_size, seed=setting.seed),
            device=torch.device("cpu"),
        )

    def logits(self) -> Tensor:
        """Logits (n, c) of all pairs."""
        batch = self.dataset.batch(np.arange(len(self.dataset)))
        with torch.inference_mode():
            return self.model.eval()(batch.text, batch.image, batch.present)

    def epoch(self, number: int) -> None:
        """Train one epoch, 1 is the first."""
        with Progress(len(self.dataset), "pairs") as progress:
            self.trainer.epoch(number, progress)


class OneNetwork:
    """The reference's way: every image through the network in every epoch, texts padded to the full length."""

    def __init__(self, setting: Setting, network: EfficientNet, other: TwoStages) -> None:
        self.setting, self.texts = setting, other.texts
        self.pixels, self.labels = torch.from_numpy(setting.pixels), torch.tensor(setting.labels)
        encoder = AlbertModel(other.model.text_encoder.config)
        self.model = EndToEnd(encoder, network, setting.image_dropout, len(LABELS))
        for name, theirs in self.parameters().items():
            theirs.data.copy_(counterparts(other.model)[name])
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.Adam(trained, lr=LR, weight_decay=WEIGHT_DECAY)
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(self.optimizer, T_0, 1, ETA_MIN)

    def parameters(self) -> dict[str, Tensor]:
        """All trained parameters by name."""
        return {name: value for name, value in self.model.named_parameters() if value.requires_grad}

    def forward(self, rows: np.ndarray) -> Tensor:
        """Logits (b, c) of some pairs."""
        return self.model(self.texts.batch(rows, pad_to_multiple=self.setting.max_length), self.pixels[rows])

    def logits(self) -> Tensor:
        """Logits (n, c) of all pairs."""
        self.model.eval()
        with torch.inference_mode():
            parts = np.array_split(np.arange(len(self.labels)), -(-len(self.labels) // 8))
            return torch.cat([self.forward(rows) for rows in parts])

    def epoch(self, number: int) -> None:
        """Train one epoch on the batches, and with the dropout, of the other way."""
        self.model.train()
        batches = batches_by_length(self.texts.lengths, self.setting.batch_size, seed=self.setting.seed, epoch=number)
        torch.manual_seed(int(np.random.SeedSequence([self.setting.seed, number]).generate_state(1)[0]))
        for rows in batches:
            self.optimizer.zero_grad()
            F.cross_entropy(self.forward(rows), self.labels[rows]).backward()
            self.optimizer.step()
        self.schedule.step()


def counterparts(model: PairClassifier) -> dict[str, Tensor]:
    """The parameters of the two-stage model under the names that they have in `EndToEnd`."""
    names = {"text_encoder.": "text.", "image_projection.1.": "project.", "head.classifier.": "classifier."}
    found = {}
    for name, parameter in model.named_parameters():
        for ours, theirs in names.items():
            if name.startswith(ours):
                found[theirs + name.removeprefix(ours)] = parameter.detach()
    return found


def compare(setting: Setting, epochs: int) -> dict[str, Any]:
    """Train the ways side by side: differences from the end-to-end network, and seconds per epoch.

    The ways are `two stages` and, as the yardstick, `float64 tower`: the same with image features computed in float64.
    """
    with tempfile.TemporaryDirectory(prefix="equivalence-") as folder:
        two = TwoStages(setting, Path(folder, "two"), setting.backbone(setting.pixels))
        network = setting.backbone.encoder.network(setting.backbone.image_size)
        exact = TwoStages(setting, Path(folder, "exact"), exact_features(network, setting.pixels))
        one = OneNetwork(setting, network, two)
        start = {name: value.detach().clone() for name, value in one.parameters().items()}
        before = one.logits()
        stages = {"two stages": two, "float64 tower": exact}
        figures: dict[str, Any] = {"largest_logit": float(before.abs().max())}
        figures |= {name: {"logits_before": _difference(way.logits(), before)} for name, way in stages.items()}
        seconds: dict[str, list[float]] = {name: [] for name in ("end to end", *stages)}
        for number in range(1, epochs + 1):
            for name, way in (("end to end", one), *stages.items()):
                began = time.perf_counter()
                way.epoch(number)
                seconds[name].append(time.perf_counter() - began)
        after, trained = one.logits(), one.parameters()
        for name, way in stages.items():
            figures[name] |= {"logits_after": _difference(way.logits(), after), **_apart(way.model, trained)}
    figures["parameters_moved"] = max(_difference(start[name], trained[name]) for name in trained)
    figures["seconds_an_epoch"] = {name: min(taken) for name, taken in seconds.items()}
    return figures


def exact_features(network: EfficientNet, pixels: np.ndarray) -> np.ndarray:
    """Image features (n, d) of the end-to-end network's tower in float64, rounded to float32."""
    network = copy.deepcopy(network).double()
    with torch.inference_mode():
        parts = torch.from_numpy(pixels).split(4)
        return torch.cat([image_feature(network, part).float() for part in parts]).numpy()


def _apart(model: PairClassifier, trained: dict[str, Tensor]) -> dict[str, float]:
    ours = counterparts(model)
    if ours.keys() != trained.keys():
        raise SystemExit(f"error: the parameters are not the same: {sorted(ours.keys() ^ trained.keys())}")
    apart = sum(int(((ours[name] - trained[name]).abs() > PARAMETERS_TOLERANCE).sum()) for name in ours)
    return {
        "parameters": max(_difference(ours[name], trained[name]) for name in ours),
        "parameters_apart": apart / sum(parameter.numel() for parameter in ours.values()),
    }


def _difference(a: Tensor, b: Tensor) -> float:
    return float((a.detach() - b.detach()).abs().max())


def _manifest(path: Path, ids: Sequence[str], setting: Setting) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        lines = csv.writer(file)
        lines.writerow(["id", "text", "image", "label"])
        for id, text, label in zip(ids, setting.texts, setting.labels, strict=True):
            lines.writerow([id, text, f"{id}.jpg", LABELS[label]])
    return path


def make_encoder(folder: Path, **shape: int) -> Path:
    """A folder with a word tokenizer and an ALBERT configuration, ALBERT-base's unless `shape` says otherwise."""
    vocabulary = {word: place for place, word in enumerate(["<pad>", "<unk>", "[CLS]", "[SEP]", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(folder)
    base = {"vocab_size": 30_000, "hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072}
    AlbertConfig(**{**base, **shape}, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0).save_pretrained(folder)
    return folder


def make_setting(backbone: Backbone, encoder_folder: Path, n: int, **changes: Any) -> Setting:
    """n pairs of random pixels, 2 to 40 random words, and labels."""
    chance = np.random.default_rng(0)
    size = backbone.image_size
    colours = chance.integers(0, 256, (n, 1, 1, 3))  # a tint each, or all pictures would look alike
    noise = chance.integers(0, 256, (n, size, size, 3))
    return Setting(
        backbone=backbone,
        encoder_folder=encoder_folder,
        pixels=((colours + noise) // 2).astype(np.uint8),
        texts=[" ".join(chance.choice(WORDS, chance.integers(2, 41))) for _ in range(n)],
        labels=[i % len(LABELS) for i in range(n)],
        **changes,
    )


def main() -> None:
    options = parser("equivalence", __doc__)
    options.add_argument("--backbone", default="efficientnet-b7", help="image network (%(default)s)")
    options.add_argument("--image-size", type=int, default=224, help="side of the images (%(default)s)")
    options.add_argument("--pairs", type=int, default=16, help="pairs to train on (%(default)s)")
    options.add_argument("--epochs", type=int, default=2, help="epochs to train (%(default)s)")
    given = options.parse_args()
    with tempfile.TemporaryDirectory(prefix="equivalence-") as folder:
        backbone = build_backbone(given.backbone, "random", image_size=given.image_size)
        setting = make_setting(backbone, make_encoder(Path(folder)), given.pairs)
        figures = compare(setting, given.epochs)
    report(f"{given.backbone} at {given.image_size} + ALBERT-base, {given.pairs} pairs, {given.epochs} epochs", figures)
    write_results(given.json, "equivalence", figures)
    if wrong := too_far_apart(figures):
        raise SystemExit(f"error: the two stages are too far from the end-to-end network: {', '.join(wrong)}")


def too_far_apart(figures: dict[str, Any]) -> list[str]:
    """Which figures of the two stages pass both their tolerance and what float32 alone makes.

    Of the trained models the parameters are held to it, not the logits, into which a few loose parameters go.
    """
    limits = {"logits_before": LOGITS_TOLERANCE, "parameters_apart": APART_TOLERANCE}
    ours, yardstick = figures["two stages"], figures["float64 tower"]
    return [name for name, limit in limits.items() if ours[name] > max(limit, YARDSTICKS * yardstick[name])]


def report(title: str, figures: dict[str, Any]) -> None:
    """Print the comparison for a person."""
    ours, yardstick = figures["two stages"], figures["float64 tower"]
    logits, moved = figures["largest_logit"], figures["parameters_moved"]
    print_table(
        title,
        ["largest difference from the end-to-end network", "two stages", "float64 tower", "of"],
        [
            ["logits before training", ours["logits_before"], yardstick["logits_before"], logits],
            ["logits after training", ours["logits_after"], yardstick["logits_after"], logits],
            ["parameters after training", ours["parameters"], yardstick["parameters"], moved],
            [
                f"share of parameters more than {PARAMETERS_TOLERANCE} apart",
                ours["parameters_apart"],
                yardstick["parameters_apart"],
                1,
            ],
        ],
    )
    print(
        "Parameters that are apart have gradients no larger than rounding: Adam divides a gradient by its own size.\n"
        "The float64 tower is the yardstick: what the end-to-end network's own float32 does."
    )
    seconds = figures["seconds_an_epoch"]
    print_table(
        "Seconds per epoch (the two stages' features are computed before)",
        ["two stages", "end to end", "times"],
        [[seconds["two stages"], seconds["end to end"], seconds["end to end"] / seconds["two stages"]]],
    )


if __name__ == "__main__":
    main()
