"""Which files a text encoder needs."""

from __future__ import annotations

from frozenfusion.utils.hub import Kind

_TOKENIZER_FILES = ("tokenizer.json", "spiece.model", "sentencepiece.bpe.model", "spm.model", "vocab.txt", "vocab.json")
_DOWNLOAD_SIZES = {"albert-base-v2": "47 MB", "albert/albert-base-v2": "47 MB"}  # where we know them


def _by_hand(name: str) -> str:
    tokenizer = "spiece.model (or tokenizer.json)" if "albert" in name else "tokenizer.json"
    size = f" (about {_DOWNLOAD_SIZES[name]})" if name in _DOWNLOAD_SIZES else ""
    return f"config.json, {tokenizer} and model.safetensors{size}"


TEXT_ENCODER = Kind("text_encoder", (("config.json",), _TOKENIZER_FILES), _by_hand, "`text_weights=random`")
