"""What can be chosen in stage two."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from frozenfusion.text.choices import OPTIONS, RECURRENT
from frozenfusion.utils.checks import at_least, at_most, below, one_of, tidy, whole
from frozenfusion.utils.errors import UsageError
from frozenfusion.utils.ray_cluster import Cluster, check_gpus

ALL = "all"  # in the place of the names of heads
AUTO = "auto"  # in the place of a number of jobs
LARGEST_SEED = 2**63 - 1
MOST_WIDTH, MOST_LAYERS = 2**14, 64  # of an LSTM or GRU

# Named sets of options; `from_recipe` takes one. What each of `tuned` is worth was measured: docs/training.md.
RECIPES: Mapping[str, Mapping[str, Any]] = {"reference": {}, "tuned": {"head_lr": 1e-3}}


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

    # --- beyond the reference: docs/training.md

    optimizer: Literal["adam", "adamw"] = "adam"
    """adam adds the weight decay to the gradient, as the reference; adamw decays apart, and no norms and biases"""

    text_lr: float | None = None
    """highest learning rate of the text encoder, by default `lr`"""

    head_lr: float | None = None
    """highest learning rate of all but the text encoder, by default `lr`"""

    warmup: float = 0.0
    """epochs over which the learning rate rises from 0, step by step; parts of one too, as in 0.5"""

    clip: float = 0.0
    """largest norm of a step's gradient; 0 does not clip"""

    accumulate: int = 1
    """batches whose gradients make one step, as one batch so many times as large"""

    label_smoothing: float = 0.0
    """part of a label's probability that is spread over all classes in the loss"""

    focal: float = 0.0
    """gamma of the focal loss, in which pairs that are sure weigh less; 0 is cross-entropy"""

    patience: int = 0
    """stop after so many epochs without a better one on the validation part; 0 trains all"""

    standardise_images: bool = False
    """scale each number of the image features to mean 0 and deviation 1 over the training images"""

    region_pool: Literal["mean", "flatten", "attention"] = "mean"
    """how the regions of an image (features of --pool none) become one vector, in heads that read one"""

    device: str = "auto"
    """auto, cpu, cuda, cuda:1, …"""

    track: Sequence[str] = ()
    """where the figures of every epoch go too: tensorboard, wandb, mlflow, trackio; may be given several times"""

    resume: Literal["auto", "always", "never"] = "auto"
    """auto resumes what is there, always fails if there is nothing, never refuses to overwrite"""

    def __post_init__(self) -> None:
        given = [name for name in ("text_cache", "word_vectors") if getattr(self, name) is not None]
        tidy(self, "text_encoder", *given)
        if not isinstance(self.head_options, Mapping):
            raise UsageError(f"`head_options` is a mapping, as in {{'layers': 4}}, not {self.head_options!r}")
        plain = {name: value.item() if hasattr(value, "item") else value for name, value in self.head_options.items()}
        object.__setattr__(self, "head_options", plain)
        object.__setattr__(self, "track", (self.track,) if isinstance(self.track, str) else tuple(self.track))
        if not self.text_encoder:
            raise UsageError("`text_encoder` is empty: give a hub name or a folder")
        for name in ("epochs", "batch_size", "save_every", "accumulate", "rnn_width", "rnn_layers"):
            whole(name, getattr(self, name), 1)
        whole("max_length", self.max_length, 3)
        whole("patience", self.patience, 0)
        for name in ("lr", "weight_decay", "warmup", "clip", "focal"):
            at_least(name, getattr(self, name), 0)
        for name in ("text_lr", "head_lr"):
            if getattr(self, name) is not None:
                at_least(name, getattr(self, name), 0)
        for name in ("image_dropout", "modality_dropout", "val_fraction", "label_smoothing"):
            at_least(name, getattr(self, name), 0)
            below(name, getattr(self, name), 1)
        for name in (
            *("text_weights", "text_pool", "words", "schedule", "precision", "resume"),
            *("optimizer", "region_pool"),
        ):
            one_of(self, name)
        if self.alpha != "learned":
            at_least("alpha", self.alpha, 0)
            at_most("alpha", self.alpha, 1)
        check_seed("seed", self.seed)
        at_most("rnn_width", self.rnn_width, MOST_WIDTH)
        at_most("rnn_layers", self.rnn_layers, MOST_LAYERS)
        spelt = self.text_encoder.lower().replace("-", "").replace("_", "")
        if spelt in RECURRENT and not self.is_recurrent and not Path(self.text_encoder).expanduser().is_dir():
            raise UsageError(f"`text_encoder={self.text_encoder}`: perhaps {spelt}? (a folder of that name is ./NAME)")
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
        if self.text_lr is not None and self.freeze_text:
            raise UsageError("`text_lr` means nothing with `freeze_text=True`: leave one of them out")
        if self.focal and self.label_smoothing:
            raise UsageError("`focal` and `label_smoothing` are two ways to change one loss: give one of them")

    @property
    def is_recurrent(self) -> bool:
        """Whether the text encoder is a new LSTM or GRU."""
        return self.text_encoder in RECURRENT

    @classmethod
    def from_recipe(cls, name: str, **changes: Any) -> TrainConfig:
        """The options of a recipe, "reference" or "tuned", and beside it what is given. Raises UsageError."""
        return cls(**{**recipe(name), **changes})


def recipe(name: str) -> dict[str, Any]:
    """The options of a recipe: all that any recipe sets, so that one can take another's place. Raises UsageError."""
    if name not in RECIPES:
        raise UsageError(f"`recipe` must be one of {', '.join(RECIPES)}, not {name!r}")
    usual, names = TrainConfig(), dict.fromkeys(each for options in RECIPES.values() for each in options)
    return {**{each: getattr(usual, each) for each in names}, **RECIPES[name]}


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


def where_to_train(
    jobs: int | Literal["auto"], ray: str | None, ray_gpus_per_worker: float | None
) -> int | Literal["auto"] | Cluster:
    """How many runs are trained at once on this machine, or the cluster that trains them. Raises UsageError."""
    check_jobs(jobs)
    check_gpus(ray_gpus_per_worker)
    if ray is None:
        if ray_gpus_per_worker is not None:
            raise UsageError("`ray_gpus_per_worker` means nothing without `ray`: say which cluster")
        return jobs
    if jobs != AUTO:
        raise UsageError("`jobs` counts processes of this machine, and `ray` trains on a cluster: give one of them")
    return Cluster(ray, ray_gpus_per_worker)


def check_jobs(jobs: int | str) -> None:
    """Raise UsageError for what cannot be a number of trainings at once."""
    if jobs != AUTO:
        whole("jobs", jobs, 1)  # type: ignore[arg-type]  # which checks that
