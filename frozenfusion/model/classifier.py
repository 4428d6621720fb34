"""PairClassifier: a model as its user has it, loaded, used and saved.

Shapes: n pairs, c classes.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from frozenfusion.data.pairs import Pair
from frozenfusion.model.calibration import HOW, load_calibration
from frozenfusion.model.config import DEFAULT_WIDTH, ModelConfig
from frozenfusion.model.inference import predict_proba
from frozenfusion.model.network import PairNetwork
from frozenfusion.model.raw import AnyImage
from frozenfusion.model.run_folder import CHECKPOINTS
from frozenfusion.model.saving import find_run, load_parts, load_weights, save_model
from frozenfusion.store.reader import FeatureStore
from frozenfusion.text.encoder import check_max_length
from frozenfusion.utils.errors import UsageError, UserError


class PairClassifier(PairNetwork):
    """Classify image–text pairs: by their cached image features, or with the image network that made those.

    `from_pretrained` loads one, `train` makes one; as a module of torch it is a PairNetwork.
    """

    @classmethod
    def from_pretrained(
        cls, name_or_path: str | os.PathLike[str], *, checkpoint: str = "best", image_weights: str | None = None
    ) -> PairClassifier:
        """The model of a run folder, or of a folder that `save_pretrained` wrote, in evaluation mode and float32.

        Args:
            name_or_path: a folder, or the name of a model on the hub. Nothing outside the folder is read, but for the
                image network's weights where images come without features.
            checkpoint: parameters of the "best" epoch on the validation part, or of the "last".
            image_weights: where the weights of the image network are, if not where training had them; they are only
                needed to classify images without their features.

        Raises:
            UserError: no run there, a damaged file, a head that is not registered, no way to the hub.
        """
        if checkpoint not in CHECKPOINTS:
            raise UsageError(f"`checkpoint` must be one of {', '.join(CHECKPOINTS)}, not {checkpoint!r}")
        run = find_run(os.fspath(name_or_path), checkpoint)
        config, encoder, tokenizer = load_parts(run)
        model = build_model(config, encoder, seed=0, tokenizer=tokenizer)
        load_weights(model, run.weights(checkpoint))
        model.image_weights = image_weights
        model.calibration = load_calibration(run, checkpoint)
        model.split = run.split if run.file("split.json").is_file() else None
        return model.eval()

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write a folder that `from_pretrained` loads again, on any machine.

        Raises UserError if the folder holds a training, or the disk refuses.
        """
        save_model(self, Path(folder))

    def predict(
        self,
        pairs: Sequence[Pair] | None = None,
        features: FeatureStore | str | os.PathLike[str] | None = None,
        **options: Any,
    ) -> list[str]:
        """The likeliest class of each pair, by its name; arguments and errors are those of `predict_proba`."""
        names = self.config.label_names
        return [names[label] for label in self.predict_proba(pairs, features, **options).argmax(axis=1).tolist()]

    def predict_proba(
        self,
        pairs: Sequence[Pair] | None = None,
        features: FeatureStore | str | os.PathLike[str] | None = None,
        *,
        texts: Sequence[str | None] | None = None,
        images: Sequence[AnyImage | None] | None = None,
        batch_size: int = 64,
        precision: str = "float32",
        calibrated: bool = False,
    ) -> NDArray[np.float64]:
        """The probability of each class (columns as `config.label_names`) for each pair, (n, c).

        A missing text (None or ""), and an image that is missing or cannot be used, is treated as in training.

        Args:
            pairs: of `load_pairs`, or a part of them; without `features` their image files are read.
            features: the feature file, or the store, that holds the pairs' image features.
            texts, images: raw pairs in place of `pairs`; one of the two may be left out. An image is a path, the bytes
                of a file, a PIL image, or an array uint8 (h, w, 3); its features are computed by the network that the
                model was trained with.
            batch_size: pairs at a time.
            precision: float32, bf16, or auto, which is bf16 where the hardware computes in it.
            calibrated: at the temperature that `evaluate.py --calibrate` fitted and saved with the run; the likeliest
                class stays. Without it, probabilities are the same before and after such a fit.

        Raises:
            UserError: pairs whose features are not in the file, features of another network, weights of the image
                network that cannot be had, `calibrated` without a temperature.
            ValueError: neither pairs nor texts nor images, lists of different lengths, features without pairs, what is
                no image.
        """
        if calibrated and self.calibration is None:
            raise UserError(f"the model has no temperature, so `calibrated` cannot be: fit one with {HOW}")
        found = predict_proba(
            self, pairs, features, texts=texts, images=images, batch_size=batch_size, precision=precision
        )
        return self.calibration.scaled(found) if calibrated and self.calibration else found


def build_model(
    config: ModelConfig,
    text_encoder: PreTrainedModel | None,
    seed: int,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> PairClassifier:
    """A new model: the given text encoder (None only for heads that read no text), the rest drawn from the seed.

    Raises UserError where max_length is more than the text encoder reads, or the tokenizer has more tokens.
    """
    if not config.reads_text:
        text_encoder = None
    elif text_encoder is None:
        raise ValueError(f"the fusion head {config.fusion} needs a text encoder")
    text_width = DEFAULT_WIDTH if text_encoder is None else int(text_encoder.config.hidden_size)
    if text_encoder is not None:
        check_max_length(text_encoder, config.max_length)
        words = getattr(text_encoder.config, "vocab_size", None)
        if tokenizer is not None and isinstance(words, int) and len(tokenizer) > words:
            raise UserError(
                f"the tokenizer has {len(tokenizer):,} tokens, and the text encoder knows {words:,}: use the two of one"
                " model"
            )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return PairClassifier(config, text_encoder, text_width, tokenizer)
