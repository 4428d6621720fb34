"""Runs over pairs in large batches: every pair once, in the order of the pairs whatever the order of batches.

Shapes: n pairs, b of a batch, c classes, r image regions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import PreTrainedModel

from frozenfusion.comparison import MODALITIES
from frozenfusion.dataset import Batch, PairDataset, Rows
from frozenfusion.errors import UserError
from frozenfusion.fusion import head_class
from frozenfusion.model import ENCODER_FILE, PairClassifier, build_model, load_model, load_weights
from frozenfusion.pairs import Pairs
from frozenfusion.progress import Progress, log
from frozenfusion.runs import WEIGHTS, Run
from frozenfusion.store import FeatureStore
from frozenfusion.text import TextFeatures, TokenizedTexts, batches_in_order_of_length, load_tokenizer, tokenize
from frozenfusion.text_cache import cached_texts

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


class Predictor:
    """Runs over the pairs called `ids`, with all that they share read once.

    A text is tokenised once a tokenizer. What a frozen text encoder makes of it is cached beside the image features,
    as in training, so that runs that share the encoder, and later evaluations, do not read it again.
    """

    def __init__(
        self, pairs: Pairs, ids: Sequence[str], store: FeatureStore, data: Path, checkpoint: str, arithmetic: Arithmetic
    ) -> None:
        self._pairs, self._ids, self._store, self._data = pairs, list(ids), store, data
        self._checkpoint, self._arithmetic = checkpoint, arithmetic
        self._encoders: dict[str, PreTrainedModel] = {}
        self._datasets: dict[tuple[object, ...], PairDataset] = {}

    def predictions(self, runs: Sequence[Run], withheld: str | None = None) -> Iterator[tuple[Run, Predicted]]:
        """What each run predicts of all pairs; see `predict`. Raises UserError."""
        with Progress(len(runs) * len(self._ids), "pairs", "evaluation") as progress:
            for run in runs:
                model, dataset = self._load(run)
                try:
                    predicted = predict(model, dataset, self._arithmetic, withheld=withheld, progress=progress)
                except torch.OutOfMemoryError as error:
                    raise UserError(
                        f"{self._arithmetic.device} has too little memory for --batch-size "
                        f"{self._arithmetic.batch_size}: choose a smaller one"
                    ) from error
                if not np.isfinite(predicted.probabilities).all():
                    raise UserError(f"{run.folder}: its predictions are not numbers: train it again")
                yield run, predicted

    def attention(self, run: Run, rows: Rows) -> NDArray[np.float32] | None:
        """How much a run looks at each image region of some pairs (b, r); None where its head has no such attention."""
        model, dataset = self._load(run)
        batch = dataset.batch(rows)
        with torch.inference_mode(), _autocast(self._arithmetic):
            output = model.outputs(_encoded(model, batch), batch.image, batch.present, attention=True)
        maps = output.parts.get("attention")
        return None if maps is None or maps.shape[1] < 2 else maps.float().cpu().numpy()

    def _load(self, run: Run) -> tuple[PairClassifier, PairDataset]:
        """The run's model, and the pairs as it reads them."""
        weights, shared = WEIGHTS[self._checkpoint], _frozen_encoder(run)
        if shared in self._encoders:
            model = build_model(run.model, self._encoders[shared], seed=0).eval()
            load_weights(model, run.folder / weights)
        else:
            model, _ = load_model(run.folder, weights)
            if shared is not None and model.text_encoder is not None:
                self._encoders[shared] = model.text_encoder
        model.to(self._arithmetic.device)
        return model, self._dataset(run) if shared is None else self._cached(run, model, shared)

    def _dataset(self, run: Run) -> PairDataset:
        """The pairs with texts as the run's tokenizer cuts them."""
        key = (run.model.max_length, _digest(run.folder / "tokenizer"))
        if key not in self._datasets:
            texts = [self._pairs[int(row)].text for row in self._pairs.rows(self._ids)]
            tokens = tokenize(load_tokenizer(run.folder / "tokenizer"), texts, run.model.max_length)
            self._datasets[key] = PairDataset(
                self._pairs, self._ids, self._store, tokens, data=self._data, device=self._arithmetic.device
            )
        return self._datasets[key]

    def _cached(self, run: Run, model: PairClassifier, encoder: str) -> PairDataset:
        """The pairs with texts as the run's frozen encoder understands them; where they cannot be kept, as tokens."""
        plain = self._dataset(run)
        key = (encoder, id(plain), model.head.needs_tokens)
        if key not in self._datasets:
            try:
                texts = cached_texts(
                    self._encoders[encoder],
                    cast(TokenizedTexts, plain.texts),
                    self._ids,
                    self._store.path,
                    tokens=model.head.needs_tokens,
                    device=self._arithmetic.device,
                    autocast=self._arithmetic.autocast,
                )
                self._datasets[key] = plain.with_texts(texts)
            except UserError as error:
                log.warning("text features are not kept, each run reads the texts anew: %s", error)
                self._datasets[key] = plain
        return self._datasets[key]


@torch.inference_mode()
def predict(
    model: PairClassifier,
    dataset: PairDataset,
    arithmetic: Arithmetic,
    *,
    withheld: str | None = None,
    progress: Progress | None = None,
) -> Predicted:
    """What a model predicts of every pair.

    `withheld` hides "text" or "image". Without it, a model that uses both is also asked without each; its texts are
    encoded once for all three.
    """
    questions = _questions(model, withheld)
    logits: dict[str, Tensor] = {}
    for rows in batches_in_order_of_length(dataset.lengths, arithmetic.batch_size):
        batch = dataset.batch(rows)
        places = torch.from_numpy(rows).to(arithmetic.device)
        with _autocast(arithmetic):
            answers = _answers(model, _encoded(model, batch), batch, questions)
        for name, values in answers.items():
            logits.setdefault(name, values.new_empty(len(dataset), values.shape[1]))[places] = values
        if progress:
            progress.update(len(rows))
    return _predicted(logits)


def _autocast(arithmetic: Arithmetic) -> torch.autocast:
    return torch.autocast(arithmetic.device.type, arithmetic.autocast, enabled=arithmetic.autocast is not None)


def _questions(model: PairClassifier, withheld: str | None) -> dict[str, str | None]:
    """The passes through the head: their names, and which modality each hides."""
    if withheld or not model.head.uses.issuperset(MODALITIES):
        return {"all": withheld}
    return {"all": None, **{f"without {name}": name for name in MODALITIES}}


def _encoded(model: PairClassifier, batch: Batch) -> TextFeatures | None:
    if model.text_encoder is None:
        return None
    return batch.text if isinstance(batch.text, TextFeatures) else model.encode_text(**batch.text)


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


def _frozen_encoder(run: Run) -> str | None:
    """What names a run's frozen text encoder: equal names, equal encoders. None where it has none."""
    if not run.model.freeze_text or "text" not in head_class(run.head).uses:
        return None
    try:
        with safe_open(run.folder / ENCODER_FILE, framework="pt") as file:
            weights = (file.metadata() or {}).get("digest")
        return f"{weights} {_digest(run.folder / 'text_encoder', '.json')}" if weights else str(run.folder)
    except (SafetensorError, OSError):
        return str(run.folder)  # load_model says what is wrong


def _digest(folder: Path, suffix: str = "") -> str:
    """Digest of the files of a folder whose names end so."""
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(path for path in folder.iterdir() if path.is_file() and path.name.endswith(suffix)):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()
