"""What all trainings of one command share: pairs, split, cached features, and tokens, which are made on first use."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from frozenfusion.data.pairs import Pairs, require_pairs
from frozenfusion.data.splits import Split, split_pairs
from frozenfusion.fusion.registry import head_class
from frozenfusion.model.classifier import PairClassifier
from frozenfusion.model.config import ModelConfig
from frozenfusion.model.dataset import PairDataset
from frozenfusion.model.run_folder import RunFolder
from frozenfusion.store.reader import FeatureStore, Rows
from frozenfusion.store.status import OK
from frozenfusion.text.cache import CachedTexts, cached_texts, text_cache
from frozenfusion.text.encoder import choose_pool, load_text_encoder
from frozenfusion.text.pooling import AUTO, POOLER
from frozenfusion.text.tokens import TokenizedTexts, load_tokenizer, tokenize
from frozenfusion.text.vectors import WordVectors
from frozenfusion.text.words import vocabulary, word_tokenizer
from frozenfusion.training.config import TrainConfig
from frozenfusion.training.more import MorePairs, Source, joined
from frozenfusion.training.options import effective, options_for, refuse_meaningless, supported
from frozenfusion.training.recurrent import recurrent_encoder, word_vectors
from frozenfusion.training.trackers import tracker_class
from frozenfusion.utils import distributed
from frozenfusion.utils.device import autocast_type, choose_device
from frozenfusion.utils.errors import UsageError, UserError
from frozenfusion.utils.messages import first_few
from frozenfusion.utils.progress import log


class TrainingInputs:
    """Pairs, split and features for trainings of one config, whose seed makes the split where none is given.

    `heads` are the names of those that will be trained; all stands for every one that the features can serve. `more`
    are pairs beside the split: those with a label are trained on as well. `lender` are inputs of all these pairs, whose
    frozen text encoder is taken, and what it makes of texts. Raises UserError where the data or the feature file do not
    serve, and for options that none of the heads has a use for.
    """

    def __init__(
        self,
        pairs: Pairs,
        store: FeatureStore,
        config: TrainConfig,
        heads: Sequence[str],
        split: Split | None = None,
        more: MorePairs | None = None,
        lender: TrainingInputs | None = None,
    ) -> None:
        require_pairs(pairs)
        self._config, self.more = config, more or MorePairs()
        self._lender = lender if config.freeze_text else None
        self.pairs, self.store = pairs, store
        self.regions = store.shape[0] if len(store.shape) == 2 else 0  # of an image, 0 where they are pooled
        self.heads = supported(heads, self.regions)
        refuse_meaningless(config, self.heads)
        self.device = choose_device(config.device)
        self.autocast = autocast_type(config.precision, self.device)
        self.split = split or split_pairs(pairs, seed=config.seed, val_fraction=config.val_fraction)
        _check_split(pairs, self.split)
        own = [*self.split.train, *self.split.val]
        self._own = len(own)  # those of the split; the others follow them
        self._sources = [Source(pairs.select(own), store, pairs.source), *self.more.sources]
        self._members = [pair for source in self._sources for pair in source.pairs]
        self.ids = [pair.id for pair in self._members]
        for source in self._sources:
            source.require(same_images=any("image" in head_class(head).uses for head in self.heads))
        self._cached: dict[str, CachedTexts] = {}  # by their pooling
        self.share: RunFolder | None = None  # a run that has the frozen encoder already
        if config.patience and not self.split.val:
            raise UsageError(
                "`patience` needs a validation part, and there is none: leave it out, or raise `val_fraction`"
            )
        for name in config.track:
            tracker_class(name)  # which checks that it is there
        for head in self.heads:
            self.model_config(head)  # which checks what the head was given, before anything is written

    def summary(self) -> str:
        """The parts in one line for a person."""
        texts = sum(not pair.text for pair in self._members)
        images = sum(int((source.status != OK).sum()) for source in self._sources)
        pseudo = len(self.train) - len(self.split.train)
        told = f"training on {len(self.train):,} pairs"
        told += f", {pseudo:,} of them by pseudo-labels that weigh {self.more.weight:g}" if pseudo else ""
        told += f", validation on {len(self.val):,}"
        told += f"; the {len(self.split.test):,} test pairs are not looked at"
        for count, what in ((texts, "text"), (images, "image")):
            told += f"; {count:,} without {what}" if count else ""
        return told

    @property
    def config(self) -> TrainConfig:
        """What they are made by."""
        return self._config

    def prepare(self) -> None:
        """Make now what is made on first use: tokens, and the cached features of texts."""
        for head in self.heads:
            self.dataset(head, self.text_pool if "text" in head_class(head).uses else POOLER)

    @property
    def train(self) -> Rows:
        """Positions of the training pairs in the dataset."""
        beside = [place for place in range(self._own, len(self.ids)) if self._members[place].label is not None]
        return np.array([*range(len(self.split.train)), *beside], dtype=np.int64)

    @property
    def val(self) -> Rows:
        """Positions of the validation pairs in the dataset."""
        return np.arange(len(self.split.train), self._own)

    @property
    def weights(self) -> NDArray[np.float32] | None:
        """What each pair of the dataset weighs in the loss, (n,); None where all weigh alike."""
        weights = np.where(np.arange(len(self.ids)) < self._own, 1, self.more.weight).astype(np.float32)
        return None if (weights == 1).all() else weights

    @property
    def classes_without_pairs(self) -> list[str]:
        """Names of labels that no training pair has."""
        found = set(self.pairs.labels[self.pairs.rows(self.split.train)].tolist())
        return [name for label, name in enumerate(self.pairs.label_names) if label not in found]

    @cached_property
    def digest(self) -> str:
        """Digest of all that the pairs give to training: order, texts, labels, image files and what became of them."""
        digest = hashlib.blake2b(digest_size=16)
        for source in self._sources:
            for pair, status, image in zip(source.pairs, source.status.tolist(), source.digest, strict=True):
                digest.update(repr((pair.id, pair.text, pair.label, status)).encode("utf-8", "replace"))
                digest.update(image.tobytes())
        digest.update(str(len(self.split.train)).encode())
        if self.more.sources:
            digest.update(repr((self._own, self.more.weight)).encode())
        return digest.hexdigest()

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of the text encoder; of a recurrent one the words of the train part."""
        if self._lender is not None:
            return self._lender.tokenizer
        if self._config.is_recurrent:
            return word_tokenizer(self._train_texts, self._config.words)
        run = self._encoder_run
        return load_tokenizer(self._config.text_encoder if run is None else run.tokenizer)

    @property
    def vocabulary_digest(self) -> str:
        """Digest of the tokens that there are and their ids."""
        words = "\n".join(vocabulary(self.tokenizer))
        return hashlib.blake2b(words.encode("utf-8", "replace"), digest_size=16).hexdigest()

    def text_encoder(self, seed: int) -> PreTrainedModel:
        """A text encoder to be trained; all runs share a frozen one, drawn from the config's seed if it is random."""
        return self._frozen_encoder if self._config.freeze_text else self._load_encoder(seed)

    @cached_property
    def text_pool(self) -> str:
        """How a new run makes one vector of a text: as the config says, by "auto" as the text encoder asks for."""
        asked, run = self._config.text_pool, self._encoder_run
        if self._config.is_recurrent:  # whose pooled output are its last states
            return POOLER if asked == AUTO else asked
        if run is None:
            return choose_pool(asked, self._config.text_encoder, self._config.text_weights)
        return run.model_config.text_pool if asked == AUTO else asked

    def dataset(self, head: str, text_pool: str = POOLER) -> PairDataset:
        """The training and validation pairs as a fusion head needs them, texts pooled so."""
        kind = head_class(head)
        pairs = self._with_regions if self.model_config(head).reads_regions else self._with_vectors
        if not self._config.freeze_text or "text" not in kind.uses:
            return pairs
        texts = self.frozen_texts(text_pool)
        return pairs.with_texts(texts if kind.needs_tokens else texts.pooled_only())

    def model_config(self, head: str, text_pool: str = POOLER, config: TrainConfig | None = None) -> ModelConfig:
        """The model of a fusion head on these features, texts pooled so; `config` is that of a run of its own."""
        config, kind = config or self._config, head_class(head)
        own = effective(config, kind)
        return ModelConfig(
            fusion=head,
            label_names=self.pairs.label_names,
            fusion_options=options_for(kind, config),
            text_encoder=config.text_encoder,
            text_weights=config.text_weights,
            text_pool=text_pool,
            freeze_text=config.freeze_text,
            max_length=config.max_length,
            image_width=self.store.shape[-1],
            image_regions=self.regions,
            image_dropout=config.image_dropout,
            modality_dropout=config.modality_dropout,
            image_fingerprint=dict(self.store.fingerprint),
            image_weights=str(self.store.attributes.get("weights", "")),
            region_pool=own.region_pool,
            standardise_images=own.standardise_images,
        )

    @cached_property
    def _places(self) -> dict[str, int]:
        return {id: place for place, id in enumerate(self.ids)}

    @cached_property
    def _texts(self) -> TokenizedTexts:
        tokenized = tokenize(self.tokenizer, self.texts, self._config.max_length)
        if tokenized.truncated:
            cut = f"{tokenized.truncated} of {len(tokenized)} texts"
            log.info("%s are cut to %d tokens", cut, self._config.max_length)
        return tokenized

    @property
    def _encoder_run(self) -> RunFolder | None:
        """The run whose text encoder is taken, if it is a run's."""
        run = RunFolder(Path(self._config.text_encoder).expanduser())
        return run if run.has_text_encoder else None

    @property
    def texts(self) -> list[str]:
        """The texts of all pairs, in the order of the dataset."""
        return [pair.text for pair in self._members]

    @property
    def _train_texts(self) -> list[str]:
        return [self._members[place].text for place in self.train.tolist()]

    @cached_property
    def _word_vectors(self) -> WordVectors | None:
        return word_vectors(self._config, self.tokenizer, self._train_texts)

    @cached_property
    def _frozen_encoder(self) -> PreTrainedModel:
        return self._load_encoder(self._config.seed) if self._lender is None else self._lender._frozen_encoder

    def _load_encoder(self, seed: int) -> PreTrainedModel:
        if self._config.is_recurrent:
            return recurrent_encoder(self._config, len(self.tokenizer), self._word_vectors, seed)
        run, weights = self._encoder_run, self._config.text_weights
        if run is None:
            return load_text_encoder(self._config.text_encoder, weights, seed)
        if weights == "random":
            return load_text_encoder(run.text_encoder, weights, seed)
        encoder = PairClassifier.from_pretrained(run.path).text_encoder
        assert encoder is not None  # has_text_encoder
        return encoder.requires_grad_(True)

    @cached_property
    def _with_regions(self) -> PairDataset:
        return self._dataset(pooled=False) if self.regions else self._with_vectors

    @cached_property
    def _with_vectors(self) -> PairDataset:
        return self._dataset(pooled=True)

    def _dataset(self, *, pooled: bool) -> PairDataset:
        images = joined([source.images(self.device, pooled=pooled) for source in self._sources])
        return PairDataset(self._members, images, self._texts, device=self.device)

    def frozen_texts(self, pool: str) -> CachedTexts:
        """What the text encoder makes of the texts as it is before any training, pooled so, from the cache."""
        if self._lender is not None:
            places = self._lender._places
            return self._lender.frozen_texts(pool).of(np.array([places[id] for id in self.ids]))
        if pool not in self._cached:
            make = partial(
                cached_texts,
                self._frozen_encoder,
                self._texts,
                self.ids,
                text_cache(self.store.path, self._config.text_cache),
                tokens=self._config.freeze_text and any(head_class(head).needs_tokens for head in self.heads),
                device=self.device,
                autocast=self.autocast,
                pool=pool,
            )
            self._cached[pool] = distributed.first_alone(make)
        return self._cached[pool]


def _check_split(pairs: Pairs, split: Split) -> None:
    """Raise UserError for a split of a user's own that does not serve these pairs."""
    for part in ("train", "val", "test"):
        ids = getattr(split, part)
        strange = [id for id, row in zip(ids, pairs.rows(ids), strict=True) if row < 0]
        if strange and part != "test":
            raise UserError(f"the split's {part} part names pairs that are not in {pairs.source}: {first_few(strange)}")
        if len(set(ids)) != len(ids):
            raise UserError(f"the split's {part} part names a pair twice")
    if not split.train:
        raise UserError("the split's train part is empty: nothing can be learned")
    used = [*split.train, *split.val]
    bare = np.flatnonzero(pairs.labels[pairs.rows(used)] < 0)
    if len(bare):
        told = first_few([used[place] for place in bare.tolist()])
        raise UserError(f"the split has pairs without a label to train or validate on: {told}")
