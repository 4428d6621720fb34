"""Runs over the same pairs, with all that they share read once.

Shapes: n pairs, b of a batch, r image regions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from frozenfusion.data.identity import require_same_images
from frozenfusion.data.pairs import Pair
from frozenfusion.data.views import ids_of, texts_of
from frozenfusion.evaluation.inputs import EvaluationInputs
from frozenfusion.evaluation.probes import Features
from frozenfusion.evaluation.runs import Run
from frozenfusion.model.classifier import PairClassifier, build_model
from frozenfusion.model.dataset import PairDataset, stored_images
from frozenfusion.model.inference import Arithmetic, Predicted, all_questions, encoded, predict
from frozenfusion.model.run_folder import RunFolder
from frozenfusion.model.saving import check_whole, load_weights
from frozenfusion.store.reader import Rows
from frozenfusion.text.cache import CachedTexts, cached_texts, text_cache
from frozenfusion.text.tokens import TokenizedTexts, load_tokenizer, tokenize
from frozenfusion.utils import distributed
from frozenfusion.utils.device import is_out_of_memory
from frozenfusion.utils.errors import UserError
from frozenfusion.utils.files import MAX_JSON_BYTES, read_file
from frozenfusion.utils.progress import Progress, log
from frozenfusion.utils.tensors import read_metadata


class Predictor:
    """The runs of an evaluation over its pairs.

    A text is tokenised once per tokenizer. What a frozen text encoder makes of it is cached beside the image features,
    as in training, so that runs that share the encoder, and later evaluations, do not read it again.
    """

    def __init__(self, inputs: EvaluationInputs, arithmetic: Arithmetic) -> None:
        self._inputs, self._arithmetic = inputs, arithmetic
        self._encoders: dict[str, PreTrainedModel] = {}
        self._datasets: dict[tuple[object, ...], PairDataset] = {}

    def predictions(self) -> Iterator[tuple[Run, Predicted]]:
        """What each run predicts of all pairs; see `predict`. Raises UserError."""
        runs, withheld = self._inputs.runs, self._inputs.config.without
        with Progress(len(runs) * len(self._inputs.members), "pairs", "evaluation") as progress:
            for run in runs:
                with progress.paused():  # texts are read and encoded, which says how far it is by itself
                    model, dataset = self._load(run, self._inputs.members)
                yield run, self._predict(run, model, dataset, all_questions(model, withheld), progress)

    def validation(self, run: Run) -> NDArray[np.float64]:
        """Probabilities (n, c) of the run's labelled validation pairs. Raises UserError."""
        members, inputs = self._inputs.validation(run).pairs, self._inputs
        if run.model.reads_image:
            rows = inputs.store.require_rows(ids_of(members), inputs.pairs.source)
            require_same_images(inputs.store, rows, members, inputs.pairs.source)
        model, dataset = self._load(run, members)
        return self._predict(run, model, dataset, {"all": None}).probabilities

    def _predict(
        self,
        run: Run,
        model: PairClassifier,
        dataset: PairDataset,
        questions: Mapping[str, str | None],
        progress: Progress | None = None,
    ) -> Predicted:
        try:
            predicted = predict(model, dataset, self._arithmetic, questions=questions, progress=progress)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise UserError(
                f"{self._arithmetic.device} has too little memory for "
                f"`batch_size={self._arithmetic.batch_size}`: choose a smaller one"
            ) from error
        if not np.isfinite(predicted.probabilities).all():
            told = "train again with a lower learning rate in another folder"
            raise UserError(f"{run.path}: its predictions are not numbers: {told}")
        return predicted

    def attention(self, run: Run, rows: Rows) -> NDArray[np.float32] | None:
        """How much a run looks at each image region of some pairs (b, r); None where its head has no such attention."""
        model, dataset = self._load(run, self._inputs.members)
        batch = dataset.batch(rows)
        with torch.inference_mode(), self._arithmetic.context():
            output = model.outputs(encoded(model, batch), batch.image, batch.present, attention=True)
        maps = output.parts.get("attention")
        return None if maps is None or maps.shape[1] < 2 else maps.float().cpu().numpy()

    def frozen_features(self) -> dict[str, Callable[[Sequence[Pair]], Features]]:
        """What reads the features that the runs' frozen networks gave pairs, by modality; nothing is computed for it.

        Texts are of the first run whose frozen encoder's outputs are cached. Reading raises UserError for pairs that
        lack features.
        """
        readers: dict[str, Callable[[Sequence[Pair]], Features]] = {}
        for run in self._inputs.runs:
            shared = _frozen_encoder(run.folder)
            for key, dataset in self._datasets.items():
                if shared is not None and key[0] == shared and isinstance(dataset.texts, CachedTexts):
                    readers.setdefault("text", partial(_pooled_texts, run, dataset.texts))
        return {**readers, "image": self._stored_images}

    def _stored_images(self, pairs: Sequence[Pair]) -> Features:
        rows = stored_images(self._inputs.store, pairs, self._inputs.pairs.source, pooled=True)
        return Features(rows[np.arange(len(pairs))].numpy(), rows.present)

    def _load(self, run: Run, members: Sequence[Pair]) -> tuple[PairClassifier, PairDataset]:
        """The run's model, and pairs as it reads them."""
        check_whole(run.folder)
        checkpoint, shared = self._inputs.config.checkpoint, _frozen_encoder(run.folder)
        if shared in self._encoders:
            model = build_model(run.model, self._encoders[shared], seed=0).eval()
            load_weights(model, run.folder.weights(checkpoint))
        else:
            model = PairClassifier.from_pretrained(run.path, checkpoint=checkpoint)
            if shared is not None and model.text_encoder is not None:
                self._encoders[shared] = model.text_encoder
        model.to(self._arithmetic.device)
        return model, self._dataset(run, members) if shared is None else self._cached(run, members, model, shared)

    def _dataset(self, run: Run, members: Sequence[Pair]) -> PairDataset:
        """The pairs with texts as the run's tokenizer cuts them."""
        key = (run.model.max_length, _digest(run.folder.tokenizer), id(members))  # lists that `inputs` keeps
        if key not in self._datasets:
            inputs, device = self._inputs, self._arithmetic.device
            tokens = tokenize(load_tokenizer(run.folder.tokenizer), texts_of(members), run.model.max_length)
            images = stored_images(inputs.store, members, inputs.pairs.source, device=device)
            self._datasets[key] = PairDataset(members, images, tokens, device=device)
        return self._datasets[key]

    def _cached(self, run: Run, members: Sequence[Pair], model: PairClassifier, encoder: str) -> PairDataset:
        """The pairs with texts as the run's frozen encoder understands them; where they cannot be kept, as tokens."""
        plain = self._dataset(run, members)
        key = (encoder, id(plain), model.head.needs_tokens, run.model.text_pool)
        if key not in self._datasets:
            texts = distributed.first_alone(lambda: self._kept_texts(run, plain, model, encoder))
            self._datasets[key] = plain if texts is None else plain.with_texts(texts)
        return self._datasets[key]

    def _kept_texts(self, run: Run, plain: PairDataset, model: PairClassifier, encoder: str) -> CachedTexts | None:
        try:
            return cached_texts(
                self._encoders[encoder],
                cast(TokenizedTexts, plain.texts),
                plain.ids,
                text_cache(self._inputs.store.path, self._inputs.config.text_cache),
                tokens=model.head.needs_tokens,
                device=self._arithmetic.device,
                autocast=self._arithmetic.autocast,
                pool=run.model.text_pool,
            )
        except UserError as error:
            log.warning("text features are not kept, each run reads the texts anew: %s", error)
            return None


def _pooled_texts(run: Run, cached: CachedTexts, pairs: Sequence[Pair]) -> Features:
    tokens = tokenize(load_tokenizer(run.folder.tokenizer), texts_of(pairs), run.model.max_length)
    rows = cached.pooled_of(tokens, ids_of(pairs))
    if rows is None:
        raise UserError(f"{run.path}: its frozen text encoder's outputs of the train part are not cached here")
    return Features(rows[np.arange(len(pairs))].numpy(), np.fromiter(map(bool, texts_of(pairs)), bool, len(pairs)))


def _frozen_encoder(run: RunFolder) -> str | None:
    """What names a run's frozen text encoder: equal names, equal encoders. None where it has none."""
    if not run.model_config.freeze_text or not run.model_config.reads_text:
        return None
    weights = read_metadata(run.frozen_encoder).get("digest")
    return f"{weights} {_digest(run.text_encoder, '.json')}" if weights else str(run.path)  # loading says what is wrong


def _digest(folder: Path, suffix: str = "") -> str:
    """Digest of the files of a folder whose names end so."""
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(path for path in folder.iterdir() if path.is_file() and path.name.endswith(suffix)):
        digest.update(path.name.encode() + b"\0" + read_file(path, MAX_JSON_BYTES))
    return digest.hexdigest()
