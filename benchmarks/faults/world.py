"""What the faults happen to: a small data set, and commands that make and change files in one folder."""

from __future__ import annotations

import contextlib
import csv
import functools
import hashlib
import importlib
import io
import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from PIL import Image

from frozenfusion.data.sample import make_text_encoder
from frozenfusion.utils.files import write_atomically

LABELS = ("positive", "neutral", "negative")
WORDS = (("good", "sun", "smile"), ("tree", "road", "noon"), ("bad", "rain", "frown"))
NETWORK = """
import torch

import frozenfusion as ff


@ff.register_backbone("faults", mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
def network(weights: str) -> torch.nn.Module:
    torch.manual_seed(int(weights))
    return torch.nn.Conv2d(3, 12, 16, stride=16)
"""
PAIRS, FEWER, CHANGED = 36, 24, 6


Words = tuple[str, ...]


@dataclass(frozen=True)
class Command:
    """A command that the faults happen to; its words with the name of the script first.

    before: what is done in the empty folder first. in_place: whether a feature file may have pending rows meanwhile.
    """

    words: Words
    before: tuple[Words, ...] = ()
    in_place: bool = True


class World:
    """A folder with the data, the networks, and `out`, where every command works.

    Data is in three states: `few.csv` has the first pairs, `all.csv` all, `changed.csv` all with other pictures for
    some. One picture is missing and one damaged, until `changed.csv` mends that one and damages another.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.out = folder, folder / "out"
        (folder / "images").mkdir()
        self._write_manifests()
        (folder / "faults_network.py").write_text(NETWORK)
        encoder = make_text_encoder(folder / "encoder", [" ".join(words) for words in WORDS] * 2)
        small = {"embedding_size": 8, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
        config = json.loads((encoder / "config.json").read_text())
        (encoder / "config.json").write_text(json.dumps({**config, **small, "num_attention_heads": 2}))
        _make_repeatable_and_fast()

    @property
    def commands(self) -> dict[str, Command]:
        """Those that the faults happen to, by name."""
        create, train = self.extract("all"), self.train("run", "concat", epochs=2)
        return {
            "create": Command(create),
            "extend": Command(create, (self.extract("few"),)),
            "rebuild": Command(self.extract("all", "--rebuild", weights=1), (create,), in_place=False),
            "update": Command(self.extract("changed", "--update"), (create,)),
            "train": Command(train, (create,)),
            "resume": Command(self.train("run", "concat", epochs=3), (create, train)),
            "sweep": Command(self.train("sweep", "concat", "hybrid", "--freeze-text", epochs=1), (create,)),
            "evaluate": Command(self.evaluate("out/run/evaluation"), (create, train)),
        }

    def extract(self, pairs: str, *more: str, weights: int = 0) -> Words:
        """Extraction of few, all or changed pairs."""
        words = [self.folder / f"{pairs}.csv", "--cache", self.out / "features.h5"]
        network = ["--import", self.folder / "faults_network.py", "--backbone", "faults", "--weights", weights]
        options = ["--image-size", 32, "--batch-size", 8, "--workers", 1, "--device", "cpu", "--runtime", "eager"]
        return tuple(map(str, ["extract", *words, *network, *options, *more]))

    def train(self, run: str, *heads: str, epochs: int) -> Words:
        """Training of heads (and further options) on all pairs, in a folder of a name."""
        options = ["--text-encoder", self.folder / "encoder", "--text-weights", "random", "--val-fraction", 0.2]
        options += ["--cache", self.out / "features.h5", "--run", self.out / run, "--epochs", epochs, "--lr", 1e-3]
        words = [self.folder / "all.csv", *options, "--device", "cpu", "--precision", "float32", "--fusion", *heads]
        return tuple(map(str, ["train", *words]))

    def evaluate(self, folder: str, *more: str) -> Words:
        """Evaluation of the run on all pairs, into a folder."""
        words = [self.out / "run", self.folder / "all.csv", "--cache", self.out / "features.h5"]
        options = ["--split", "all", "--bootstrap", "100", "--batch-size", "64", "--out", self.folder / folder]
        return tuple(map(str, ["evaluate", *words, *options, *more]))

    def prepare(self, before: Sequence[Words]) -> None:
        """Bring `out` into the state that these commands leave; it is made once and copied from then on."""
        kept = self.folder / "before" / hashlib.sha256(repr(before).encode()).hexdigest()[:8]
        shutil.rmtree(self.out, ignore_errors=True)
        if kept.exists():
            shutil.copytree(kept, self.out)
            return
        self.out.mkdir()
        for words in before:
            call(words)
        shutil.copytree(self.out, kept)

    def _write_manifests(self) -> None:
        random = np.random.default_rng(0)
        lines = []
        for number in range(PAIRS):
            kinds = np.where(random.random(random.integers(1, 9)) < 0.7, number % 3, random.integers(0, 3))
            text = " ".join(WORDS[kind][random.integers(0, 3)] for kind in kinds)
            lines.append([f"p{number:02}", text, f"images/p{number:02}.png", LABELS[number % 3]])
            self._draw(random, f"p{number:02}.png")
        (self.folder / "images/p02.png").unlink()
        (self.folder / "images/p04.png").write_bytes(b"<html>")
        changed = [list(line) for line in lines]
        for line in changed[4 : 4 + CHANGED]:
            line[2] = line[2].replace("images/", "images/other-")
            self._draw(random, f"other-{line[0]}.png")
        (self.folder / "images/other-p05.png").write_bytes(b"")
        for name, part in (("few", lines[:FEWER]), ("all", lines), ("changed", changed)):
            with (self.folder / f"{name}.csv").open("w", newline="") as file:
                csv.writer(file).writerows([["id", "text", "image", "label"], *part])

    def _draw(self, random: np.random.Generator, name: str) -> None:
        pixels = random.integers(0, 255, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(self.folder / "images" / name)


def call(words: Words) -> None:
    """Do a command in this process, which has to succeed."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        status = main_of(words[0])(list(words[1:]))
    if status:
        raise SystemExit(f"error: {' '.join(words)} failed without a fault: {said.getvalue()}")


def main_of(command: str) -> Callable[[list[str]], int]:
    """What the command line calls for a command."""
    found: Callable[[list[str]], int] = importlib.import_module(f"frozenfusion.cli.{command}").main
    return found


def _make_repeatable_and_fast() -> None:
    """Let every run make the same calls, and spend no time on what decides nothing: options, pictures, pages."""
    from frozenfusion.cli import parsing
    from frozenfusion.evaluation.report import results
    from frozenfusion.store import writer
    from frozenfusion.training import run

    writer.SECONDS_BETWEEN_COMMITS = 0.0  # a commit after every batch, by a clock that stands still
    writer.time = SimpleNamespace(monotonic=lambda: 0.0)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # its threads would not outlive a fork
    parse = functools.cache(parsing.parse)  # options are frozen
    parsing.parse = lambda kind, arguments, command="": parse(kind, tuple(arguments), command)
    run.plot_curves = run.plot_learning_rate = lambda metrics, path: write_atomically(path, "a picture")
    results.plot_confusion = lambda confusion, names, path: write_atomically(path, "a picture")
    results.render = lambda page: "a page"
