"""What a recurrent text encoder starts from: word vectors, and the seed for the rest."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from frozenfusion.text.choices import WORD2VEC
from frozenfusion.text.recurrent import EMBEDDING_WIDTH, RecurrentConfig, new_recurrent
from frozenfusion.text.vectors import WordVectors, read_word_vectors, train_word_vectors
from frozenfusion.text.words import vocabulary, words_of
from frozenfusion.training.config import TrainConfig
from frozenfusion.utils.progress import log

TOO_LOW = 1e-4  # the default, which is for pretrained encoders


def word_vectors(
    config: TrainConfig, tokenizer: PreTrainedTokenizerBase, train_texts: Sequence[str]
) -> WordVectors | None:
    """Vectors of a tokenizer's words, where the config asks for them. Raises UserError for a file that has none."""
    if config.word_vectors is None:
        return None
    words = vocabulary(tokenizer)
    if config.word_vectors == WORD2VEC:
        return train_word_vectors(words_of(tokenizer, train_texts), words, EMBEDDING_WIDTH, config.seed)
    vectors = read_word_vectors(Path(config.word_vectors).expanduser(), words)
    log.info("%s: vectors of %.1f%% of the words", config.word_vectors, 100 * vectors.share)
    return vectors


def recurrent_encoder(config: TrainConfig, words: int, vectors: WordVectors | None, seed: int) -> PreTrainedModel:
    """The recurrent text encoder that a config names, for so many words."""
    if not config.freeze_text and (config.text_lr or config.lr) <= TOO_LOW:
        log.warning(
            "a %s that starts from nothing learns little at a rate of %g: 1e-3 suits it (`lr` or `text_lr`)",
            config.text_encoder, config.text_lr or config.lr,
        )  # fmt: skip
    if config.freeze_text and vectors is None:
        log.warning("a frozen %s that nothing taught: give `word_vectors`, or do not freeze it", config.text_encoder)
    shape = RecurrentConfig(
        cell=config.text_encoder.removeprefix("bi"),
        bidirectional=config.text_encoder.startswith("bi"),
        vocab_size=words,
        embedding_size=EMBEDDING_WIDTH if vectors is None else vectors.values.shape[1],
        rnn_width=config.rnn_width,
        num_hidden_layers=config.rnn_layers,
    )
    return new_recurrent(shape, seed, vectors)
