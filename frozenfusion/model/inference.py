"""Predicting: every pair once, in batches of like length, in the order of the pairs whatever the order of batches.

Shapes: n pairs, b of a batch, c classes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from frozenfusion.data.identity import require_same_images
from frozenfusion.data.pairs import Pair
from frozenfusion.data.records import clean_text
from frozenfusion.fusion.base import MODALITIES
from frozenfusion.model.dataset import Batch, Images, PairDataset, stored_images
from frozenfusion.model.network import PairNetwork
from frozenfusion.model.raw import AnyImage, NoImages, RawImages, backbone_of
from frozenfusion.store.command import extraction_command
from frozenfusion.store.reader import FeatureStore, as_store
from frozenfusion.text.batching import batches_in_order_of_length
from frozenfusion.text.encoder import TextFeatures
from frozenfusion.text.tokens import tokenize
from frozenfusion.utils import distributed
from frozenfusion.utils.checks import whole
from frozenfusion.utils.device import autocast_type, computing_in
from frozenfusion.utils.errors import UsageError, UserError
from frozenfusion.utils.progress import Progress

Floats = NDArray[np.float64]

PRECISIONS = ("auto", "float32", "bf16")


class Arithmetic(NamedTuple):
    """Where, in what and in how large batches to compute; `autocast` None is float32."""

    device: torch.device
    autocast: torch.dtype | None
    batch_size: int

    def context(self) -> torch.autocast:
        """The arithmetic as a context."""
        return computing_in(self.autocast, self.device)


@dataclass(frozen=True, eq=False)
class Predicted:
    """Probabilities (n, c) of one model."""

    probabilities: Floats
    without: Mapping[str, Floats]  # with "text", and with "image", withheld
    parts: Mapping[str, Floats]  # of the classifiers that see one modality, in heads that have them


def predict_proba(
    model: PairNetwork,
    pairs: Sequence[Pair] | None,
    features: FeatureStore | str | os.PathLike[str] | None,
    *,
    texts: Sequence[str | None] | None,
    images: Sequence[AnyImage | None] | None,
    batch_size: int,
    precision: str,
) -> Floats:
    """What PairClassifier.predict_proba says."""
    if (pairs is None) == (texts is None and images is None) or (pairs is None and features is not None):
        raise ValueError("give pairs, with their features or without, or else texts and images")
    if isinstance(pairs, Pair) or isinstance(texts, str) or isinstance(images, str | bytes | os.PathLike | Image.Image):
        raise ValueError("give lists, as in pairs[:1], texts=[text], images=[image]")
    whole("batch_size", batch_size, 1)
    if precision not in PRECISIONS:
        raise UsageError(f"`precision` must be one of {', '.join(PRECISIONS)}, not {precision!r}")
    if model.tokenizer is None:
        raise ValueError("the model was built without a tokenizer: give it one, or load it with from_pretrained")
    device = next(model.parameters()).device
    if pairs is None:
        pairs, images = _as_pairs(texts, images)
    elif features is None:
        images = [pair.image for pair in pairs]
    if not len(pairs):
        return np.zeros((0, model.config.classes))
    pairs = list(pairs)
    store = None if features is None else as_store(features)
    if store is not None and model.config.reads_image:
        changes = store.differences(model.config.image_fingerprint)
        if changes:
            config = model.config
            make = extraction_command("DATA", "NEW.h5", config.image_fingerprint, config.image_weights)
            raise UserError(
                f"{store.path}: holds other image features than the model was trained on ({changes}): give those, or "
                f"make some in the same way with {make}"
            )
    found = _images(model, pairs, images, store, device)
    tokens = tokenize(model.tokenizer, [pair.text for pair in pairs], model.config.max_length)
    arithmetic = Arithmetic(device, autocast_type(precision, device), batch_size)
    training = model.training
    try:
        dataset = PairDataset(pairs, found, tokens, device=device)
        return predict(model.eval(), dataset, arithmetic, questions={"all": None}).probabilities
    finally:
        model.train(training)


def _as_pairs(
    texts: Sequence[str | None] | None, images: Sequence[AnyImage | None] | None
) -> tuple[list[Pair], Sequence[AnyImage | None]]:
    """Raw texts and images as pairs, and the images apart, since they need not be files."""
    count = len(texts) if texts is not None else len(images) if images is not None else 0
    if images is not None and len(images) != count:
        raise ValueError(f"{count} texts and {len(images)} images: give as many of one as of the other")
    written = [None] * count if texts is None else texts
    nowhere = Path()
    pairs = [Pair(str(place), _text(text), nowhere, None, None) for place, text in enumerate(written)]
    return pairs, [None] * count if images is None else images


def _text(text: str | None) -> str:
    """A text as pairs have it; None, and what stands for nothing in a table, is no text."""
    if text is None or text != text:  # NaN
        return ""
    if not isinstance(text, str):
        raise ValueError(f"a text is a string or None, not {text!r}")
    return clean_text(text)


def _images(
    model: PairNetwork,
    pairs: Sequence[Pair],
    images: Sequence[AnyImage | None] | None,
    store: FeatureStore | None,
    device: torch.device,
) -> Images:
    config = model.config
    shape = (config.image_regions, config.image_width) if config.image_regions else (config.image_width,)
    if not config.reads_image:
        return NoImages(len(pairs), shape, device)
    if store is not None:
        require_same_images(store, store.require_rows([pair.id for pair in pairs]), pairs, "DATA")
        return stored_images(store, pairs, "DATA", device=device, pooled=not config.reads_regions)
    if images is None or all(image is None for image in images):
        return NoImages(len(pairs), shape, device)
    if model.image_backbone is None:
        weights = model.image_weights or config.image_weights or "imagenet"
        model.image_backbone = backbone_of(config.image_fingerprint, weights)
    return RawImages(images, model.image_backbone, device)


@torch.inference_mode()
def predict(
    model: PairNetwork,
    dataset: PairDataset,
    arithmetic: Arithmetic,
    *,
    questions: Mapping[str, str | None] | None = None,
    progress: Progress | None = None,
) -> Predicted:
    """What a model predicts of every pair.

    `questions` are the passes through the head, by default `all_questions`; texts are encoded once for all of them.
    Where several processes predict (`distributed`) each does its share of the batches, and all return the whole.
    """
    questions = all_questions(model) if questions is None else questions
    logits: dict[str, Tensor] = {}
    batches, world = batches_in_order_of_length(dataset.lengths, arithmetic.batch_size), distributed.world()
    own = batches[distributed.rank() :: world]
    for turn, rows in enumerate(dataset.in_turn(own or batches[:1])):  # who has none learns what there is to add up
        batch = dataset.batch(rows)
        places = torch.from_numpy(rows).to(arithmetic.device)
        with arithmetic.context():
            answers = _answers(model, encoded(model, batch), batch, questions)
        for name, values in answers.items():
            of_all = logits.setdefault(name, values.new_zeros(len(dataset), values.shape[1]))
            if own:
                of_all[places] = values
        if progress:
            progress.update(sum(map(len, batches[turn * world : (turn + 1) * world])))
    return _predicted({name: distributed.total(values) for name, values in logits.items()})


def all_questions(model: PairNetwork, withheld: str | None = None) -> dict[str, str | None]:
    """The passes through the head: their names, and which modality each hides.

    `withheld` hides "text" or "image". Without it, a model that uses both is also asked without each.
    """
    if withheld or not model.head.uses.issuperset(MODALITIES):
        return {"all": withheld}
    return {"all": None, **{f"without {name}": name for name in MODALITIES}}


def encoded(model: PairNetwork, batch: Batch) -> TextFeatures | None:
    """The texts of a batch as the model's encoder understands them; None where it reads no text."""
    if model.text_encoder is None:
        return None
    return batch.text if isinstance(batch.text, TextFeatures) else model.encode_text(**batch.text)


def _answers(
    model: PairNetwork, text: TextFeatures | None, batch: Batch, hidden: Mapping[str, str | None]
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
