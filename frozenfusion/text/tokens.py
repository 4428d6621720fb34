"""Tokens: tokenizers, texts tokenised once, batches of them padded.

Shapes: b texts of a batch, l tokens, n texts.
"""

from __future__ import annotations

import functools
import json
import secrets
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from frozenfusion.text.kind import TEXT_ENCODER
from frozenfusion.text.words import SEGMENTER, segmented, segmenter_of
from frozenfusion.utils.configurations import check_files
from frozenfusion.utils.errors import UserError
from frozenfusion.utils.files import write_atomically, writing
from frozenfusion.utils.hub import find_files, quiet
from frozenfusion.utils.messages import first_line

_TEXTS_AT_ONCE = 4096  # are tokenised


@dataclass(frozen=True)
class TokenizedTexts:
    """Texts as token ids, ragged: text i is `ids[offsets[i]:offsets[i + 1]]`.

    ids (tokens of all texts) int32, types the same shape uint8, offsets (n + 1,) int64; truncated: how many texts were
    longer than max_length.
    """

    ids: np.ndarray
    types: np.ndarray
    offsets: np.ndarray
    pad_id: int
    max_length: int
    truncated: int

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """(n,) int64: tokens of each text, special tokens included."""
        return np.diff(self.offsets)

    def batch(self, rows: Sequence[int] | np.ndarray, pad_to_multiple: int = 8) -> dict[str, Tensor]:
        """input_ids, attention_mask and token_type_ids, (b, l) int64, of some rows.

        l is the longest row's length rounded up to a multiple (for speed), but never past max_length.
        """
        rows = np.asarray(rows, dtype=np.int64)
        lengths = self.lengths[rows]
        longest = int(lengths.max(initial=1))
        width = max(longest, min(-(-longest // pad_to_multiple) * pad_to_multiple, self.max_length))
        real = np.arange(width) < lengths[:, None]
        places = np.where(real, self.offsets[rows][:, None] + np.arange(width), 0)
        ids = np.where(real, self.ids[places], self.pad_id) if len(self.ids) else np.full(real.shape, self.pad_id)
        types = np.where(real, self.types[places], 0) if len(self.types) else np.zeros(real.shape)
        return {
            "input_ids": torch.from_numpy(ids.astype(np.int64)),
            "attention_mask": torch.from_numpy(real.astype(np.int64)),
            "token_type_ids": torch.from_numpy(types.astype(np.int64)),
        }


def tokenize(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str], max_length: int) -> TokenizedTexts:
    """Tokenise all texts, special tokens included, each cut to max_length tokens.

    Special tokens are the tokenizer's to add: where a text spells one ("[SEP]"), its letters are read like any others.
    """
    ids, types, lengths, truncated = bytearray(), bytearray(), bytearray(), 0  # which grow in place
    texts = iter(texts)
    while some := list(islice(texts, _TEXTS_AT_ONCE)):  # lists of tokens take dozens of times as much as their numbers
        own, kinds, cut = _tokenized(tokenizer, segmented(tokenizer, some), max_length)
        ids += np.fromiter(chain.from_iterable(own), np.int32).tobytes()
        types += np.fromiter(chain.from_iterable(kinds), np.uint8).tobytes()
        lengths += np.fromiter(map(len, own), np.int64, len(own)).tobytes()
        truncated += sum(cut)
    return TokenizedTexts(
        ids=np.frombuffer(ids, np.int32),
        types=np.frombuffer(types, np.uint8),
        offsets=np.concatenate([np.zeros(1, np.int64), np.cumsum(np.frombuffer(lengths, np.int64))]),
        pad_id=tokenizer.pad_token_id or 0,
        max_length=max_length,
        truncated=truncated,
    )


Encoded = tuple[list[list[int]], list[list[int]], list[bool]]
"""Token ids and types of texts, and whether each was longer."""


def _tokenized(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_length: int) -> Encoded:
    ids, types, cut = _encode(tokenizer, texts, max_length)
    special, unknown = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}, tokenizer.unk_token
    added = tokenizer.num_special_tokens_to_add()
    spelt = [
        i
        for i, row in enumerate(ids)
        if sum(token in special for token in row) > added or (unknown and unknown in texts[i])
    ]
    if spelt:
        plain = _encode(_without_names(tokenizer), [texts[i] for i in spelt], max_length)
        for place, own, kinds, longer in zip(spelt, *plain, strict=True):
            ids[place], types[place], cut[place] = own, kinds, longer
    return ids, types, cut


def _encode(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_length: int) -> Encoded:
    with quiet(), _told("the tokenizer does not work", "restore its files"):
        encoded = tokenizer(
            list(texts),
            truncation=True,
            max_length=max_length,
            return_token_type_ids=True,
            return_attention_mask=False,
        )
    cut = [bool(encoding.overflowing) for encoding in encoded.encodings or ()] or [False] * len(texts)
    return encoded["input_ids"], encoded["token_type_ids"], cut


@functools.lru_cache(maxsize=2)
def _without_names(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """The same tokenizer, in which special tokens have names that no text spells; their ids stay."""
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        return tokenizer
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    model = backend["model"]
    unknown = model.get("unk_token")  # which the model itself knows by its name
    backend["added_tokens"] = [token for token in backend["added_tokens"] if token["content"] != unknown]
    names = [token["content"] for token in backend["added_tokens"] if token["special"]]
    secret = {name: f"\uffff{secrets.token_hex(8)}{name}" for name in names}
    for token in backend["added_tokens"]:
        token["content"] = secret.get(token["content"], token["content"])
    vocabulary = model["vocab"]  # whose pieces would be found in a text even where the token is not
    model["vocab"] = (
        {secret.get(name, name): id for name, id in vocabulary.items()}
        if isinstance(vocabulary, dict)
        else [[secret.get(name, name), score] for name, score in vocabulary]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(backend)), model_max_length=tokenizer.model_max_length
    )


def load_tokenizer(name_or_path: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a hub name or a local folder. Raises UserError.

    A fast one is kept as its plain `tokenizer.json`, which means the same in every version of transformers.
    """
    folder = find_files(name_or_path, TEXT_ENCODER, weights=False)
    check_files(folder)
    needs = "the folder needs config.json and tokenizer.json or spiece.model"
    with quiet(), _told(f"{folder}: cannot load a tokenizer", needs):
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        return _plain(tokenizer, folder) if isinstance(tokenizer, PreTrainedTokenizerFast) else tokenizer


@contextmanager
def _told(what: str, advice: str) -> Iterator[None]:
    """Turn whatever a tokenizer's library raises inside the block into a UserError."""
    try:
        yield
    except UserError:
        raise
    except BaseException as error:
        # any of a dozen kinds, by what is wrong with the files; a panic of the Rust half is no Exception
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise UserError(f"{what} ({first_line(error)}): {advice}") from error


def _plain(tokenizer: PreTrainedTokenizerFast, folder: Path) -> PreTrainedTokenizerFast:
    """The same tokenizer without a model's own class around it."""
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    if backend["model"]["type"] == "Unigram" and not (folder / "tokenizer.json").exists():
        # A SentencePiece file's own symbols (ALBERT: ( ) " - . and more) are pieces like others. Conversion makes them
        # added tokens, which cut a text before it is tokenised: "t.co" becomes "t", ".", "▁co". Undo that.
        backend["added_tokens"] = [token for token in backend["added_tokens"] if token["special"]]
    names = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
    segmenter = segmenter_of(tokenizer)
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(backend)),
        model_max_length=tokenizer.model_max_length,
        **{name: str(getattr(tokenizer, name)) for name in names if getattr(tokenizer, name, None) is not None},
        **({SEGMENTER: segmenter} if segmenter else {}),
    )


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write a tokenizer for `load_tokenizer`, each file whole. Raises UserError where the disk says no."""
    with writing(folder), quiet():
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with tempfile.TemporaryDirectory() as beside:  # it writes in place, and what is there may be in use
                tokenizer.save_pretrained(beside)
                for path in sorted(Path(beside).iterdir()):
                    write_atomically(folder / path.name, path.read_bytes())
        except (OSError, UserError):
            raise
        except Exception as error:  # what the Rust half makes of a full disk
            raise UserError(
                f"{folder}: cannot write the tokenizer ({first_line(error)}): make room and run again"
            ) from error
