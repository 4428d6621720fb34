"""What can be chosen in stage two."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from frozenfusion.text.choices import OPTIONS, RECURRENT
from frozenfusion.utils.checks import at_least, at_most, below, one_of, tidy, whole
from frozenfusion.utils.errors import UsageError

ALL = "all"  # in the place of the names of heads
LARGEST_SEED = 2**63 - 1
MOST_WIDTH, MOST_LAYERS = 2**14, 64  # of an LSTM or GRU


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How a fusion head and its text encoder are trained; checked when it is made, raises UsageError."""

    text_encoder: str = "albert-base-v2"
    """text encoder: a hub name, a folder, a run whose fine-tuned encoder is taken, or lstm, gru, bilstm, bigru"""

    text_weights: Literal["pretrained", "random"] = "pretrained"
    """random trains the text encoder from scratch"""

    text_pool: Literal["auto", "pooler", "cls", "mean", "max"] = "auto"
    """a text as one vector: pooled output, first token, mean or highest of all; auto is the encoder's own way"""

    freeze_text: bool = False
    """keep the text encoder fixed and cache its outputs too: heads then train in seconds"""

    text_cache: str | None = None
    """folder for the outputs of frozen text encoders; by default that of the feature file"""

    max_length: int = 128
    """tokens that a text is cut to"""

    rnn_width: int = 256
    """width of an lstm or gru, of each direction"""

    rnn_layers: int = 1
    """layers of an lstm or gru"""

    words: Literal["auto", "space", "jieba", "char"] = "auto"
    """how Chinese is cut: by jieba, into characters, or only at spaces; auto is jieba where texts are Chinese"""

    word_vectors: str | None = None
    """file of vectors (GloVe, word2vec, fastText .vec) for the words; word2vec learns them from the training texts"""

    alpha: float | Literal["learned"] = 0.5
    """weight of the text against the image in the heads weighted and linear"""

    head_options: Mapping[str, Any] = field(default_factory=dict)
    """further options of the fusion head, by name"""

    epochs: int = 11
    """passes over the training part"""

    batch_size: int = 8
    """pairs per training step"""

    lr: float = 1e-4
    """highest learning rate"""

    weight_decay: float = 1e-6
    """weight decay of Adam"""

    schedule: Literal["cosine-restarts", "cosine", "linear", "constant"] = "cosine-restarts"
    """learning rate over the epochs; cosine-restarts is the reference's (restarts after 10 epochs)"""

    image_dropout: float = 0.5
    """dropout on the cached image vector"""

    modality_dropout: float = 0.0
    """chance that a training pair loses its text or its image"""

    class_weights: bool = False
    """weigh classes by their inverse frequency in the loss"""

    val_fraction: float = 0.1
    """part of the training pairs that choose the best epoch; 0 trains on all and keeps the last"""

    seed: int = 0
    """seed of the split, the initial weights, the order of pairs and dropout"""

    save_every: int = 5
    """keep the parameters of every so many epochs, as well as of the best and the last"""

    precision: Literal["auto", "float32", "bf16"] = "auto"
    """arithmetic; auto is bf16 where the hardware computes in it, else float32"""

    compile: bool = False
    """compile the model first: pays off in long trainings"""

    device: str = "auto"
    """auto, cpu, cuda, cuda:1, …"""

    resume: Literal["auto", "always", "never"] = "auto"
    """auto resumes what is there, always fails if there is nothing, never refuses to overwrite"""

    def __post_init__(self) -> None:
        given = [name for name in ("text_cache", "word_vectors") if getattr(self, name) is not None]
        tidy(self, "text_encoder", *given)
        if not isinstance(self.head_options, Mapping):
            raise UsageError(f"`head_options` is a mapping, as in {{'layers': 4}}, not {self.head_options!r}")
        plain = {name: value.item() if hasattr(value, "item") else value for name, value in self.head_options.items()}
        object.__setattr__(self, "head_options", plain)
        if not self.text_encoder:
            raise UsageError("`text_encoder` is empty: give a hub name or a folder")
        for name in ("epochs", "batch_size", "save_every", "rnn_width", "rnn_layers"):
            whole(name, getattr(self, name), 1)
        whole("max_length", self.max_length, 3)
        for name in ("lr", "weight_decay"):
            at_least(name, getattr(self, name), 0)
        for name in ("image_dropout", "modality_dropout", "val_fraction"):
            at_least(name, getattr(self, name), 0)
            below(name, getattr(self, name), 1)
        for name in ("text_weights", "text_pool", "words", "schedule", "precision", "resume"):
            one_of(self, name)
        if self.alpha != "learned":
            at_least("alpha", self.alpha, 0)
            at_most("alpha", self.alpha, 1)
        check_seed("seed", self.seed)
        at_most("rnn_width", self.rnn_width, MOST_WIDTH)
        at_most("rnn_layers", self.rnn_layers, MOST_LAYERS)
        strange = [name for name in OPTIONS if getattr(self, name) != getattr(type(self), name)]
        if strange and not self.is_recurrent:
            raise UsageError(
                f"`{strange[0]}` means nothing to `text_encoder={self.text_encoder}`: leave it out, or choose one of "
                f"{', '.join(RECURRENT)}"
            )
        if self.text_cache is not None and not self.freeze_text:
            raise UsageError("`text_cache` means nothing without `freeze_text=True`: give both, or leave it out")
        if "alpha" in self.head_options:
            raise UsageError("alpha has a place of its own beside `head_options`: give `alpha`")

    @property
    def is_recurrent(self) -> bool:
        """Whether the text encoder is a new LSTM or GRU."""
        return self.text_encoder in RECURRENT


def check_heads(names: Sequence[str]) -> None:
    """Raise UsageError where no head is named, or one twice."""
    if not names:
        raise UsageError("`heads` needs the name of a head, several names, or all")
    if len(set(names)) != len(names):
        raise UsageError(f"`heads` names a head twice: {' '.join(names)}")


def check_seed(name: str, seed: int) -> None:
    """Raise UsageError for what cannot be a seed."""
    whole(name, seed, 0)
    at_most(name, seed, LARGEST_SEED)


def check_seeds(seeds: Sequence[int]) -> None:
    """Raise UsageError for what cannot be a seed, and for one that is given twice."""
    for seed in seeds:
        check_seed("seeds", seed)
    if len(set(seeds)) != len(seeds):
        raise UsageError(f"`seeds` names a seed twice: {' '.join(map(str, seeds))}")
