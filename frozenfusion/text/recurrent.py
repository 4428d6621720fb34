"""Recurrent text encoders: an embedding of each word, and an LSTM or GRU over them.

They are models of transformers', and text/encoder.py registers them there: saved and loaded as any other encoder is.
Shapes: b texts, l tokens, w width of one direction, d = w or 2 w.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from frozenfusion.text.vectors import WordVectors

EMBEDDING_WIDTH = 300  # where no file of word vectors says otherwise
DROPOUT = 0.3  # on the embeddings, and between layers
_CELLS = {"lstm": nn.LSTM, "gru": nn.GRU}


class RecurrentConfig(PretrainedConfig):
    """What shapes a recurrent text encoder. Raises ValueError for what cannot be one."""

    model_type = "frozenfusion-recurrent"

    def __init__(
        self,
        *,
        cell: str = "lstm",
        bidirectional: bool = False,
        vocab_size: int = 1,
        embedding_size: int = EMBEDDING_WIDTH,
        rnn_width: int = 256,
        num_hidden_layers: int = 1,
        dropout: float = DROPOUT,
        pad_token_id: int = 0,
        **others: Any,
    ) -> None:
        if cell not in _CELLS:
            raise ValueError(f"cell is {cell!r}, not one of {', '.join(_CELLS)}")
        if type(bidirectional) is not bool:
            raise ValueError(f"bidirectional is {bidirectional!r}, not true or false")
        for size in (vocab_size, embedding_size, rnn_width, num_hidden_layers):
            if type(size) is not int or size < 1:
                raise ValueError(f"a size is {size!r}, not a whole number of 1 or more")
        if type(pad_token_id) is not int or not 0 <= pad_token_id < vocab_size:
            raise ValueError(f"pad_token_id is {pad_token_id!r}, not a place in the vocabulary")
        if type(dropout) not in (int, float) or not 0 <= dropout < 1:
            raise ValueError(f"dropout is {dropout!r}, not in [0, 1)")
        others.pop("hidden_size", None)  # it follows from the others
        super().__init__(**others)
        self.cell, self.bidirectional, self.dropout = cell, bidirectional, dropout
        self.vocab_size, self.pad_token_id = vocab_size, pad_token_id
        self.embedding_size, self.rnn_width, self.num_hidden_layers = embedding_size, rnn_width, num_hidden_layers
        self.hidden_size = rnn_width * (1 + bidirectional)


class RecurrentEncoder(PreTrainedModel):
    """Word embeddings -> dropout -> LSTM or GRU, of one direction or two. Padding is never read."""

    config_class = RecurrentConfig
    base_model_prefix = "encoder"

    def __init__(self, config: RecurrentConfig) -> None:
        super().__init__(config)
        self.embeddings = nn.Embedding(config.vocab_size, config.embedding_size, padding_idx=config.pad_token_id)
        self.dropout = nn.Dropout(config.dropout)
        self.rnn = _CELLS[config.cell](
            config.embedding_size,
            config.rnn_width,
            config.num_hidden_layers,
            batch_first=True,
            bidirectional=config.bidirectional,
            dropout=config.dropout if config.num_hidden_layers > 1 else 0.0,
        )
        self.post_init()  # type: ignore[no-untyped-call]

    def _init_weights(self, module: nn.Module) -> None:
        """As torch draws them: embeddings from N(0, 1), the rest uniformly."""
        if isinstance(module, nn.Embedding | nn.RNNBase):
            module.reset_parameters()

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> BaseModelOutputWithPooling:
        """Of tokens (b, l) padded on the right: last_hidden_state (b, l, d), 0 at padding, and pooler_output (b, d).

        The latter are the last layer's states behind the last word, and of a second direction before the first.
        """
        embedded = self.dropout(self.embeddings(input_ids))
        lengths = attention_mask.sum(dim=1).clamp(min=1).cpu()
        packed = pack_padded_sequence(embedded, lengths, batch_first=True, enforce_sorted=False)
        outputs, states = self.rnn(packed)
        hidden = states[0] if isinstance(states, tuple) else states  # (layers * directions, b, w)
        pooled = torch.cat(list(hidden[-2:] if self.config.bidirectional else hidden[-1:]), dim=-1)
        tokens, _ = pad_packed_sequence(outputs, batch_first=True, total_length=input_ids.shape[1])
        return BaseModelOutputWithPooling(last_hidden_state=tokens, pooler_output=pooled)  # type: ignore[arg-type]


def new_recurrent(config: RecurrentConfig, seed: int, vectors: WordVectors | None = None) -> RecurrentEncoder:
    """A recurrent text encoder drawn from a seed, in evaluation mode.

    vectors: the embeddings of their words; those of the other words are drawn as widely spread as they are.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = RecurrentEncoder(config)
    if vectors is not None:
        found, values = torch.from_numpy(vectors.found), torch.from_numpy(vectors.values)
        with torch.no_grad():
            encoder.embeddings.weight *= values[found].std(correction=0)
            encoder.embeddings.weight[found] = values[found]
    nn.Module.eval(encoder)
    return encoder
