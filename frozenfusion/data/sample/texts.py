"""Texts of the built-in sample, and a small text encoder's folder made from them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from frozenfusion.utils.files import write_json


def _words(commas: str) -> list[str]:
    return [word.strip() for word in commas.split(",")]


_MOODS = (  # positive, neutral, negative
    _words("happy, lovely, great, sunny, proud, thankful, amazing, delicious, smiling, gorgeous"),
    _words("scheduled, weekly, official, annual, regional, listed, printed, updated, standard, digital"),
    _words("sad, awful, broken, angry, lost, tired, crying, lonely, ruined, hopeless"),
)
_OPENERS = _words("look at, this is, just saw, here comes, waiting for, back to, all about, still with, meet, time for")
_PLAIN = _words("new, old, big, small, second, other, whole, next, first, same, long, open")
_THINGS = _words(
    """morning, dinner, train, garden, office, game, house, street, dog, cat, coffee, team, school, concert, river,
    market, kitchen, window, photo, station, bike, book, beach, party, road, shop, city, door, phone, dress, museum"""
)
_PLACES = _words("today, tonight, at home, in town, this week, at work, on monday, by the lake, near the park, again")
_CLOSERS = _words("who else?, what do you think?, see you there, more soon, no filter, &amp; that is it, <b>wow</b>")
_USERS = _words("anna, ben, carla, dmitri, emre, fatima, goran, hana, ivan, june, kofi, lena")
_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"

SPECIAL_TOKENS = ("<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]")


def write_tweet(random: np.random.Generator, mood: int | None) -> str:
    """A short tweet-like sentence that tells a mood in one to three of its words, or none."""
    thing = _pick(random, _THINGS)
    if mood is None:
        quality, tag = _pick(random, _PLAIN), thing
    else:
        quality = _pick(random, _MOODS[mood])
        if random.random() < 0.5:
            quality += f" and {_pick(random, _MOODS[mood])}"
        tag = _pick(random, _MOODS[mood]) if random.random() < 0.8 else thing
    parts = [_pick(random, _OPENERS), "the" if random.random() < 0.5 else "our", quality, thing, _pick(random, _PLACES)]
    if random.random() < 0.3:
        parts.insert(0, f"@{_pick(random, _USERS)}")
    if random.random() < 0.12:
        parts.insert(0, f"RT @{_pick(random, _USERS)}:")
    if random.random() < 0.4:
        parts.append(_pick(random, _CLOSERS))
    if random.random() < 0.7:
        parts.append(f"#{tag}")
    if random.random() < 0.5:
        parts.append("http://t.co/" + "".join(random.choice(list(_LETTERS), 6)))
    return " ".join(parts)


def _pick(random: np.random.Generator, words: list[str]) -> str:
    return words[random.integers(len(words))]


def make_text_encoder(folder: str | Path, texts: Iterable[str]) -> Path:
    """Write a tokenizer of the words in `texts` and the configuration of a small ALBERT, without weights.

    The folder loads as any text encoder does, to be trained from scratch (--text-weights random). Words that come
    twice are tokens, others are spelt. Returns the folder.
    """
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

    folder = Path(folder)
    any_url = normalizers.Replace(Regex(r"https?://\S+"), "http")  # each is unlike all others, and says nothing
    normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase(), any_url])
    splitter = pre_tokenizers.BertPreTokenizer()
    words = Counter(word for text in texts for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text)))
    letters = sorted({letter for word in words for letter in word})
    pieces = [*SPECIAL_TOKENS, *letters, *(f"##{letter}" for letter in letters)]
    pieces += sorted(word for word, count in words.items() if count > 1 and len(word) > 1)
    vocabulary = {piece: number for number, piece in enumerate(pieces)}

    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="<unk>", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = splitter
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(name, vocabulary[name]) for name in ("[CLS]", "[SEP]")],
    )
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "tokenizer.json", json.loads(tokenizer.to_str()))
    write_json(folder / "tokenizer_config.json", _TOKENIZER_CONFIG)
    write_json(folder / "config.json", {**_ALBERT_CONFIG, "vocab_size": len(vocabulary)})
    return folder


_TOKENIZER_CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "model_max_length": 128,
    "model_input_names": ["input_ids", "token_type_ids", "attention_mask"],
    "pad_token": "<pad>",
    "unk_token": "<unk>",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
_ALBERT_CONFIG = {
    "model_type": "albert",
    "architectures": ["AlbertModel"],
    "embedding_size": 64,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_hidden_groups": 1,
    "inner_group_num": 1,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "type_vocab_size": 2,
    "hidden_act": "gelu_new",
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    # At ALBERT's 0.02 so narrow a network hardly lets its words through, which matters where it stays as it starts
    # (--freeze-text).
    "initializer_range": 0.04,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 3,
}
