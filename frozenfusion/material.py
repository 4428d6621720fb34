"""What all trainings of one command share: pairs, split, cached features, tokens. Each is read once, on first use."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from frozenfusion.dataset import PairDataset, Rows, computed_rows
from frozenfusion.device import autocast_type, choose_device
from frozenfusion.errors import UserError
from frozenfusion.fusion import FUSION_HEADS, head_class, head_options, why_not
from frozenfusion.images import OK
from frozenfusion.model import ModelConfig, is_run, load_run_encoder
from frozenfusion.options import TrainOptions
from frozenfusion.pairs import read_pairs
from frozenfusion.progress import log
from frozenfusion.splits import split_pairs
from frozenfusion.store import FeatureStore
from frozenfusion.text import TokenizedTexts, load_text_encoder, load_tokenizer, tokenize
from frozenfusion.text_cache import CachedTexts, cached_texts


class Material:
    """Pairs, split and features for `options`. Raises UserError where the data or the feature file do not serve.

    `heads` are those that will be trained, of options.fusion; all names every one that the features can serve.
    """

    def __init__(self, options: TrainOptions) -> None:
        self._options = options
        self.device = choose_device(options.device)
        self.autocast = autocast_type(options.precision, self.device)
        self.pairs = read_pairs(options.data)
        log.info(self.pairs.summary())
        self.split = split_pairs(self.pairs, seed=options.seed, val_fraction=options.val_fraction)
        self.store = FeatureStore(options.cache)
        self.ids = [*self.split.train, *self.split.val]
        self._rows = computed_rows(self.store, self.ids, options.data)
        self.heads = _servable(options.fusion, self.regions)

        self.share: Path | None = None  # a run folder that has the frozen encoder already

    def summary(self) -> str:
        """The parts in one line for a person."""
        texts = sum(not self.pairs[int(place)].text for place in self.pairs.rows(self.ids))
        images = int((self.store.status[self._rows] != OK).sum())
        told = f"training on {len(self.train):,} pairs, validation on {len(self.val):,}"
        told += f"; the {len(self.split.test):,} test pairs are not looked at"
        for count, what in ((texts, "text"), (images, "image")):
            told += f"; {count:,} without {what}" if count else ""
        return told

    @property
    def train(self) -> Rows:
        """Positions of the training pairs in the dataset."""
        return np.arange(len(self.split.train))

    @property
    def val(self) -> Rows:
        """Positions of the validation pairs in the dataset."""
        return np.arange(len(self.split.train), len(self.ids))

    @property
    def regions(self) -> int:
        """Regions of an image in the feature file, 0 where they are pooled."""
        return self.store.shape[0] if len(self.store.shape) == 2 else 0

    @property
    def classes_without_pairs(self) -> list[str]:
        """Names of labels that no training pair has."""
        found = set(self.pairs.labels[self.pairs.rows(self.split.train)].tolist())
        return [name for label, name in enumerate(self.pairs.label_names) if label not in found]

    @cached_property
    def digest(self) -> str:
        """Digest of all that the pairs give to training: order, texts, labels, image files and what became of them."""
        digest = hashlib.blake2b(digest_size=16)
        for id, place, row in zip(self.ids, self.pairs.rows(self.ids), self._rows, strict=True):
            pair = self.pairs[int(place)]
            digest.update(repr((id, pair.text, pair.label, int(self.store.status[row]))).encode("utf-8", "replace"))
            digest.update(self.store.digest[row].tobytes())
        digest.update(str(len(self.split.train)).encode())
        return digest.hexdigest()

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer of --text-encoder."""
        name = self._options.text_encoder
        return load_tokenizer(Path(name) / "tokenizer" if is_run(name) else name)

    def text_encoder(self, seed: int) -> Any:
        """A text encoder to be trained; with --freeze-text the one that all runs share, drawn from --seed if random."""
        return self._frozen_encoder if self._options.freeze_text else self._load_encoder(seed)

    def dataset(self, head: str) -> PairDataset:
        """The training and validation pairs as a fusion head needs them."""
        kind = head_class(head)
        pairs = self._with_regions if kind.takes_regions else self._with_vectors
        if not self._options.freeze_text or "text" not in kind.uses:
            return pairs
        return pairs.with_texts(self._cached_texts if kind.needs_tokens else self._cached_texts.pooled_only())

    def model_config(self, head: str) -> ModelConfig:
        """The model of a fusion head on these features."""
        options = self._options
        given = {"alpha": options.alpha}
        return ModelConfig(
            fusion=head,
            label_names=self.pairs.label_names,
            fusion_options={name: given[name] for name in head_options(head) if name in given},
            text_encoder=options.text_encoder,
            text_weights=options.text_weights,
            freeze_text=options.freeze_text,
            max_length=options.max_length,
            image_width=self.store.shape[-1],
            image_regions=self.regions,
            image_dropout=options.image_dropout,
            modality_dropout=options.modality_dropout,
            image_fingerprint=dict(self.store.fingerprint),
        )

    @cached_property
    def _texts(self) -> TokenizedTexts:
        texts = [self.pairs[int(place)].text for place in self.pairs.rows(self.ids)]
        tokenized = tokenize(self.tokenizer, texts, self._options.max_length)
        if tokenized.truncated:
            log.info("%s of %s texts are cut to %d tokens", tokenized.truncated, len(texts), self._options.max_length)
        return tokenized

    @cached_property
    def _frozen_encoder(self) -> Any:
        return self._load_encoder(self._options.seed)

    def _load_encoder(self, seed: int) -> Any:
        name, weights = self._options.text_encoder, self._options.text_weights
        if is_run(name) and weights == "pretrained":
            return load_run_encoder(name)
        return load_text_encoder(Path(name) / "text_encoder" if is_run(name) else name, weights, seed)

    @cached_property
    def _with_regions(self) -> PairDataset:
        return self._dataset(pooled=False) if self.regions else self._with_vectors

    @cached_property
    def _with_vectors(self) -> PairDataset:
        return self._dataset(pooled=True)

    def _dataset(self, *, pooled: bool) -> PairDataset:
        return PairDataset(
            self.pairs,
            self.ids,
            self.store,
            self._texts,
            data=self._options.data,
            device=self.device,
            pooled=pooled,
        )

    @cached_property
    def _cached_texts(self) -> CachedTexts:
        return cached_texts(
            self._frozen_encoder,
            self._texts,
            self.ids,
            self.store.path,
            tokens=any(head_class(head).needs_tokens for head in self.heads),
            device=self.device,
            autocast=self.autocast,
        )


def _servable(names: Sequence[str], regions: int) -> list[str]:
    """The heads that are meant; `all` leaves out, and says so, those that the features cannot serve."""
    reasons = {name: why_not(name, regions=regions) for name in (FUSION_HEADS if "all" in names else names)}
    for name, reason in reasons.items():
        if reason and name in names:
            raise UserError(reason)
        if reason:
            log.warning("left out: %s", reason)
    return [name for name, reason in reasons.items() if not reason]
