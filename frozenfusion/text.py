"""The text side: find a tokenizer and an encoder, tokenise once, make batches of texts of one length.

Shapes: b pairs, l tokens, d hidden width, n texts.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils import logging as chatter

from frozenfusion.errors import UsageError, UserError
from frozenfusion.files import writing
from frozenfusion.hub import find_files
from frozenfusion.kernels import use_fast_kernels
from frozenfusion.progress import log

_BUCKET_BATCHES = 50  # rows are sorted by length within so many batches: little padding, still random


class TextFeatures(NamedTuple):
    """What the text encoder makes of texts: pooled (b, d); tokens (b, l, d) and mask (b, l) bool, or None."""

    pooled: Tensor
    tokens: Tensor | None = None
    mask: Tensor | None = None


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


def tokenize(tokenizer: Any, texts: Sequence[str], max_length: int) -> TokenizedTexts:
    """Tokenise all texts at once, special tokens included, each cut to max_length tokens."""
    ids: list[list[int]] = []
    types: list[list[int]] = []
    truncated = 0
    if texts:
        with quiet():
            encoded = tokenizer(
                list(texts),
                truncation=True,
                max_length=max_length,
                return_token_type_ids=True,
                return_attention_mask=False,
            )
        ids, types = encoded["input_ids"], encoded["token_type_ids"]
        truncated = sum(bool(encoding.overflowing) for encoding in encoded.encodings or ())
    lengths = np.array([len(row) for row in ids], dtype=np.int64)
    return TokenizedTexts(
        ids=np.fromiter((token for row in ids for token in row), dtype=np.int32, count=int(lengths.sum())),
        types=np.fromiter((kind for row in types for kind in row), dtype=np.uint8, count=int(lengths.sum())),
        offsets=np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)]),
        pad_id=tokenizer.pad_token_id or 0,
        max_length=max_length,
        truncated=truncated,
    )


def batches_by_length(lengths: np.ndarray, batch_size: int, *, seed: int, epoch: int) -> list[np.ndarray]:
    """Random batches of rows of like length: every row exactly once; the same for the same (seed, epoch).

    Rows are shuffled, sorted by padded length within stretches of some batches, cut, and the batches shuffled.
    """
    random = np.random.default_rng([seed, epoch])
    rows = random.permutation(len(lengths))
    padded = -(-np.asarray(lengths) // 8)
    stretch = _BUCKET_BATCHES * batch_size
    batches = []
    for start in range(0, len(rows), stretch):
        part = rows[start : start + stretch]
        part = part[np.argsort(padded[part], kind="stable")]
        batches += [part[first : first + batch_size] for first in range(0, len(part), batch_size)]
    return [batches[i] for i in random.permutation(len(batches))]


def batches_in_order_of_length(lengths: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Batches of rows from the longest to the shortest (so memory runs out at once or never), for evaluation."""
    rows = np.argsort(-np.asarray(lengths), kind="stable")
    return [rows[first : first + batch_size] for first in range(0, len(rows), batch_size)]


def encode(encoder: nn.Module, tokens: dict[str, Tensor]) -> TextFeatures:
    """Run the encoder on input_ids, attention_mask and token_type_ids, (b, l) each.

    pooled is the pooled output (`outputs[1]` of the reference), or the first token of a model that has no pooler.
    """
    outputs = encoder(**{name: tokens[name] for name in _accepted(type(encoder)) if name in tokens})
    hidden = outputs.last_hidden_state
    pooled = getattr(outputs, "pooler_output", None)
    return TextFeatures(hidden[:, 0] if pooled is None else pooled, hidden, tokens["attention_mask"].bool())


def _accepted(encoder: type) -> list[str]:
    parameters = inspect.signature(encoder.forward).parameters  # type: ignore[attr-defined]
    return [name for name in ("input_ids", "attention_mask", "token_type_ids") if name in parameters]


def load_tokenizer(name_or_path: str | Path) -> Any:
    """The tokenizer of a hub name or a local folder. Raises UserError.

    A fast one is kept as its plain `tokenizer.json`, which means the same in every version of transformers.
    """
    folder = find_files(name_or_path, weights=False)
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # any of a dozen kinds, by what is wrong with the files
        raise UserError(
            f"{folder}: cannot load a tokenizer ({_first_line(error)}): "
            "the folder needs config.json and tokenizer.json or spiece.model"
        ) from error
    return _plain(tokenizer, folder) if tokenizer.is_fast else tokenizer


def _plain(tokenizer: Any, folder: Path) -> Any:
    """The same tokenizer without a model's own class around it."""
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    if backend["model"]["type"] == "Unigram" and not (folder / "tokenizer.json").exists():
        # A SentencePiece file's own symbols (ALBERT: ( ) " - . and more) are pieces like others. Conversion makes them
        # added tokens, which cut a text before it is tokenised: "t.co" becomes "t", ".", "▁co". Undo that.
        backend["added_tokens"] = [token for token in backend["added_tokens"] if token["special"]]
    names = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(backend)),
        model_max_length=tokenizer.model_max_length,
        **{name: str(getattr(tokenizer, name)) for name in names if getattr(tokenizer, name, None) is not None},
    )


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Write a tokenizer so that `load_tokenizer` finds it again. Raises UserError where the disk says no."""
    with writing(folder), quiet():
        folder.mkdir(parents=True, exist_ok=True)
        try:
            tokenizer.save_pretrained(folder)
        except OSError:
            raise
        except Exception as error:  # what the Rust half makes of a full disk
            raise UserError(
                f"{folder}: cannot write the tokenizer ({_first_line(error)}): make room and run again"
            ) from error


def load_text_encoder(name_or_path: str | Path, weights: str = "pretrained", seed: int = 0) -> PreTrainedModel:
    """The text encoder of a hub name or a local folder, in evaluation mode and float32.

    weights: "pretrained", or "random" to start from the configuration alone (seeded). Raises UserError.
    """
    folder = find_files(name_or_path, weights=weights == "pretrained")
    config = load_text_config(folder)
    with torch.random.fork_rng(devices=[]), quiet():
        torch.manual_seed(seed)  # also settles the parts that a pretrained file lacks
        encoder = new_encoder(config) if weights == "random" else _pretrained(folder, config)
    if "input_ids" not in _accepted(type(encoder)):
        raise UserError(f"{folder}: {type(encoder).__name__} does not read text: choose a text encoder")
    return encoder.eval()


def load_text_config(folder: Path) -> Any:
    """The configuration of the text encoder in a folder. Raises UserError."""
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder}: no config.json there: give the folder of a text encoder")
    try:
        with quiet():
            config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:
        raise UserError(f"{folder}: cannot read config.json ({_first_line(error)}): restore the file") from error
    if getattr(config, "is_encoder_decoder", False):
        raise UserError(
            f"{folder}: {config.model_type} is an encoder-decoder: choose an encoder such as albert-base-v2"
        )
    return config


def new_encoder(config: Any) -> PreTrainedModel:
    """A text encoder of a configuration, its weights drawn from torch's random state, in float32. Raises UserError."""
    try:
        with quiet():
            encoder = AutoModel.from_config(config, trust_remote_code=False, dtype=torch.float32)
    except Exception as error:
        raise UserError(
            f"{config.model_type}: cannot build this text encoder ({_first_line(error)}): check config.json"
        ) from error
    use_fast_kernels(encoder)
    return encoder


def _pretrained(folder: Path, config: Any) -> PreTrainedModel:
    try:
        encoder, report = AutoModel.from_pretrained(
            folder,
            config=config,
            trust_remote_code=False,
            local_files_only=True,
            dtype=torch.float32,
            output_loading_info=True,
        )
    except Exception as error:
        raise UserError(
            f"{folder}: cannot load the text encoder's weights ({_first_line(error)}): fetch the file again"
        ) from error
    missing = sorted(report["missing_keys"])
    lost = [name for name in missing if "pooler" not in name]
    if lost:
        raise UserError(
            f"{folder}: the weights do not fit config.json ({len(lost)} parameters are missing, {lost[0]} first): "
            "use the two files of one model"
        )
    if missing:
        log.warning("%s has no weights for the pooled output: it starts at random and is trained", folder)
    use_fast_kernels(encoder)
    return encoder


def longest_text(encoder: nn.Module) -> int | None:
    """How many tokens the encoder can read, or None where it has no limit."""
    for name, module in encoder.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            skipped = 0 if module.padding_idx is None else module.padding_idx + 1  # RoBERTa's positions start there
            return module.num_embeddings - skipped
    limit = getattr(encoder.config, "max_position_embeddings", None)
    return int(limit) if isinstance(limit, int) and limit > 0 else None


def check_max_length(encoder: nn.Module, max_length: int) -> None:
    """Raise UsageError where texts could get longer than the encoder can read."""
    limit = longest_text(encoder)
    if limit is not None and max_length > limit:
        raise UsageError(
            f"--max-length {max_length}: the text encoder reads at most {limit} tokens: choose {limit} or less"
        )


def weights_digest(module: nn.Module) -> str:
    """SHA-256 of all parameters and buffers that a module saves, by name: the same wherever they lie."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data if tensor.numel() else b"")
    return digest.hexdigest()


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".:")


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers and torch from talking about what they load: our own messages say what matters."""
    verbosity, bars = chatter.get_verbosity(), chatter.is_progress_bar_enabled()
    chatter.set_verbosity_error()
    chatter.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        chatter.set_verbosity(verbosity)
        if bars:
            chatter.enable_progress_bar()
