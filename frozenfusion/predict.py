"""Runs over pairs in large batches: every pair once, in the order of the pairs whatever the order of batches.

Shapes: n pairs, b of a batch, c classes, r image regions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from frozenfusion.comparison import MODALITIES
from frozenfusion.dataset import Batch, PairDataset, Rows
from frozenfusion.errors import UserError
from frozenfusion.model import PairClassifier, load_model
from frozenfusion.pairs import Pairs
from frozenfusion.progress import Progress
from frozenfusion.runs import WEIGHTS, Run
from frozenfusion.store import FeatureStore
from frozenfusion.text import TextFeatures, batches_in_order_of_length, tokenize, weights_digest

MODELS_AT_ONCE = 16  # that share a frozen text encoder and are in memory together

Floats = NDArray[np.float64]


class Arithmetic(NamedTuple):
    """Where, in what and in how large batches to compute; `autocast` None is float32."""

    device: torch.device
    autocast: torch.dtype | None
    batch_size: int


@dataclass(frozen=True, eq=False)
class Predicted:
    """Probabilities (n, c) of one model."""

    probabilities: Floats
    without: Mapping[str, Floats]  # with "text", and with "image", withheld
    parts: Mapping[str, Floats]  # of the classifiers that see one modality, in heads that have them


class Loaded(NamedTuple):
    """A run with its model, and the pairs as its tokenizer reads them."""

    run: Run
    model: PairClassifier
    dataset: PairDataset
    reader: str | None  # names the text encoder: equal names, equal parameters; None where no text is read


class Predictor:
    """Runs over the pairs called `ids`: texts are tokenised once a tokenizer, and a frozen encoder that runs share
    reads them once for up to MODELS_AT_ONCE of them."""

    def __init__(
        self, pairs: Pairs, ids: Sequence[str], store: FeatureStore, data: Path, checkpoint: str, arithmetic: Arithmetic
    ) -> None:
        self._pairs, self._ids, self._store, self._data = pairs, list(ids), store, data
        self._checkpoint, self._arithmetic = checkpoint, arithmetic
        self._datasets: dict[str, PairDataset] = {}

    def predictions(self, runs: Sequence[Run], withheld: str | None = None) -> Iterator[tuple[Run, Predicted]]:
        """What each run predicts of all pairs, in the order of the runs; see `predict`. Raises UserError."""
        with Progress(len(runs) * len(self._ids), "pairs", "evaluation") as progress:
            for group in self._groups(runs):
                models = [loaded.model for loaded in group]
                try:
                    found = predict(models, group[0].dataset, self._arithmetic, withheld=withheld, progress=progress)
                except torch.OutOfMemoryError as error:
                    raise UserError(
                        f"{self._arithmetic.device} has too little memory for --batch-size "
                        f"{self._arithmetic.batch_size}: choose a smaller one"
                    ) from error
                for loaded, predicted in zip(group, found, strict=True):
                    if not np.isfinite(predicted.probabilities).all():
                        raise UserError(f"{loaded.run.folder}: its predictions are not numbers: train it again")
                    yield loaded.run, predicted

    def attention(self, run: Run, rows: Rows) -> NDArray[np.float32] | None:
        """How much a run looks at each image region of some pairs (b, r); None where its head has no such attention."""
        loaded = self._load(run)
        batch = loaded.dataset.batch(rows)
        with torch.inference_mode(), _autocast(self._arithmetic):
            text = _encoded(loaded.model, batch)
            output = loaded.model.outputs(text, batch.image, batch.present, attention=True)
        maps = output.parts.get("attention")
        return None if maps is None or maps.shape[1] < 2 else maps.float().cpu().numpy()

    def _groups(self, runs: Sequence[Run]) -> Iterator[list[Loaded]]:
        """The runs, loaded, together where one text encoder serves all of a group."""
        group: list[Loaded] = []
        for run in runs:
            loaded = self._load(run)
            if group and not _belongs(loaded, group):
                yield group
                group = []
            first = next((each for each in group if each.reader is not None), None)
            if first is not None and loaded.reader is not None:
                loaded.model.text_encoder = first.model.text_encoder  # its own copy can go
            group.append(loaded)
        yield group

    def _load(self, run: Run) -> Loaded:
        model, tokenizer = load_model(run.folder, WEIGHTS[self._checkpoint])
        key = f"{model.config.max_length} {_digest(run.folder / 'tokenizer')}"
        if key not in self._datasets:
            texts = [self._pairs[int(row)].text for row in self._pairs.rows(self._ids)]
            tokens = tokenize(tokenizer, texts, model.config.max_length)
            self._datasets[key] = PairDataset(
                self._pairs, self._ids, self._store, tokens, data=self._data, device=self._arithmetic.device
            )
        reader = None
        if model.text_encoder is not None:
            reader = weights_digest(model.text_encoder) if model.config.freeze_text else str(run.folder)
        return Loaded(run, model.to(self._arithmetic.device), self._datasets[key], reader)


def _belongs(loaded: Loaded, group: Sequence[Loaded]) -> bool:
    readers = {each.reader for each in group if each.reader is not None}
    return (
        len(group) < MODELS_AT_ONCE
        and loaded.dataset is group[0].dataset
        and (loaded.reader is None or not readers or loaded.reader in readers)
    )


@torch.inference_mode()
def predict(
    models: Sequence[PairClassifier],
    dataset: PairDataset,
    arithmetic: Arithmetic,
    *,
    withheld: str | None = None,
    progress: Progress | None = None,
) -> list[Predicted]:
    """What each model predicts of every pair; models that read the text share one text encoder, which runs once.

    `withheld` hides "text" or "image". Without it, models that use both are also asked without each.
    """
    asked = [_questions(model, withheld) for model in models]
    found: list[dict[str, Tensor]] = [{} for _ in models]
    reader = next((model for model in models if model.text_encoder is not None), None)
    for rows in batches_in_order_of_length(dataset.lengths, arithmetic.batch_size):
        batch = dataset.batch(rows)
        places = torch.from_numpy(rows).to(arithmetic.device)
        with _autocast(arithmetic):
            text = _encoded(reader, batch)
            for model, hidden, kept in zip(models, asked, found, strict=True):
                for name, logits in _answers(model, text, batch, hidden).items():
                    kept.setdefault(name, logits.new_empty(len(dataset), logits.shape[1]))[places] = logits
        if progress:
            progress.update(len(rows) * len(models))
    return [_predicted(kept) for kept in found]


def _autocast(arithmetic: Arithmetic) -> torch.autocast:
    return torch.autocast(arithmetic.device.type, arithmetic.autocast, enabled=arithmetic.autocast is not None)


def _questions(model: PairClassifier, withheld: str | None) -> dict[str, str | None]:
    """The passes through the head: their names, and which modality each hides."""
    if withheld or not model.head.uses.issuperset(MODALITIES):
        return {"all": withheld}
    return {"all": None, **{f"without {name}": name for name in MODALITIES}}


def _encoded(reader: PairClassifier | None, batch: Batch) -> TextFeatures | None:
    if reader is None or reader.text_encoder is None:
        return None
    return batch.text if isinstance(batch.text, TextFeatures) else reader.encode_text(**batch.text)


def _answers(
    model: PairClassifier, text: TextFeatures | None, batch: Batch, hidden: Mapping[str, str | None]
) -> dict[str, Tensor]:
    """Logits (b, c) by name: of each pass, and of the parts of the full one."""
    answers = {}
    for name, modality in hidden.items():
        present = batch.present
        if modality is not None:
            present = present.clone()
            present[:, MODALITIES.index(modality)] = False
        output = model.outputs(text, batch.image, present)
        answers[name] = output.logits
        if name == "all":
            answers |= {f"part {part}": output.parts[part] for part in MODALITIES if part in output.parts}
    return answers


def _predicted(logits: Mapping[str, Tensor]) -> Predicted:
    probabilities = {name: of.double().softmax(dim=1).cpu().numpy() for name, of in logits.items()}
    return Predicted(
        probabilities=probabilities["all"],
        without={m: probabilities[f"without {m}"] for m in MODALITIES if f"without {m}" in probabilities},
        parts={m: probabilities[f"part {m}"] for m in MODALITIES if f"part {m}" in probabilities},
    )


def _digest(folder: Path) -> str:
    """Digest of the files of a folder."""
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()
