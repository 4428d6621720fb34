"""The options of the three scripts: one dataclass each is the source of flags, defaults and help."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from frozenfusion.errors import UsageError

DEFAULT_CACHE = Path("cache/features.h5")
PILLOW_PIXELS = 178_956_970  # pictures with more are refused by Pillow itself

Resume = Literal["auto", "always", "never"]
Device = str


@dataclass
class ExtractOptions:
    """Stage one: run the frozen image network once and store one feature row an image."""

    data: Positional[Path]
    """folder or manifest of image–text pairs (with --info or --verify: the feature file itself)"""

    cache: Path = DEFAULT_CACHE
    """feature file to make, continue or bring up to date"""

    backbone: Literal[
        "efficientnet-b0",
        "efficientnet-b1",
        "efficientnet-b2",
        "efficientnet-b3",
        "efficientnet-b4",
        "efficientnet-b5",
        "efficientnet-b6",
        "efficientnet-b7",
    ] = "efficientnet-b7"
    """frozen image network"""

    weights: str = "imagenet"
    """imagenet, a state dict (.pth, .safetensors), or random (only for trying things)"""

    pool: Literal["avg", "none"] = "avg"
    """avg stores one vector an image, none its grid of region vectors"""

    image_size: int = 224
    """side in pixels that images are resized to"""

    precision: Literal["float32", "bf16", "fp16"] = "float32"
    """arithmetic of the network; bf16 and fp16 are faster where the hardware has them"""

    dtype: Literal["float32", "float16"] = "float32"
    """type of the stored numbers"""

    batch_size: int | None = None
    """images a forward pass; by default up to 4 for each thread of a CPU, 128 on a GPU"""

    workers: int | None = None
    """threads that decode images ahead of the network; by default chosen from the number of cores"""

    device: Device = "auto"
    """auto, cpu, cuda, cuda:1, …"""

    runtime: Literal["auto", "eager", "compile", "openvino"] = "auto"
    """how the network is run; auto weighs what compiling costs against the images left"""

    max_pixels: int = 100_000_000
    """images with more pixels than this are refused before they are decoded"""

    jpeg_draft: bool = False
    """decode JPEGs of several megapixels at a fraction of their size: faster, and the features differ by a trifle"""

    resume: Resume = "auto"
    """auto continues what is there, always fails if there is nothing, never refuses to overwrite"""

    rebuild: bool = False
    """make the feature file anew beside the old one, then replace it"""

    retry_failed: bool = False
    """try the images again that could not be read"""

    strict: bool = False
    """fail if any image cannot be used"""

    info: bool = False
    """say what a feature file holds, then stop"""

    verify: bool = False
    """check every stored row against its checksum (with DATA: every image file too), then stop"""

    config: Path | None = None
    """YAML or JSON file of options; flags win over it"""

    debug: bool = False
    """show the traceback of an expected failure"""

    def check(self) -> None:
        """Raise UsageError for values that cannot work."""
        _at_least("--image-size", self.image_size, 32)
        _at_most("--image-size", self.image_size, 1024)
        _at_least("--max-pixels", self.max_pixels, 1)
        _at_most("--max-pixels", self.max_pixels, PILLOW_PIXELS)
        if self.info and self.verify:
            raise UsageError("--info and --verify look at a feature file in two ways: give one of the two")
        if self.batch_size is not None:
            _at_least("--batch-size", self.batch_size, 1)
        if self.workers is not None:
            _at_least("--workers", self.workers, 1)
        if self.rebuild and self.resume == "never":
            raise UsageError("--rebuild replaces a feature file and --resume never forbids it: give one of the two")


@dataclass
class TrainOptions:
    """Stage two: fine-tune the text encoder and a fusion head against the cached image features."""

    data: Positional[Path]
    """folder or manifest of image–text pairs; not right after --fusion or --seeds, which take all words that follow"""

    cache: Path = DEFAULT_CACHE
    """feature file of stage one"""

    run: Path | None = None
    """folder for the trained model; by default runs/HEAD"""

    fusion: tuple[str, ...] = ("concat",)
    """one or several fusion heads, or all"""

    text_encoder: str = "albert-base-v2"
    """text encoder: a hub name, a local folder, or a run folder whose fine-tuned encoder is taken"""

    text_weights: Literal["pretrained", "random"] = "pretrained"
    """random trains the text encoder from scratch"""

    freeze_text: bool = False
    """keep the text encoder fixed and cache its outputs too: heads then train in seconds"""

    max_length: int = 128
    """tokens a text is cut to"""

    epochs: int = 11
    """passes over the training part"""

    batch_size: int = 8
    """pairs a training step"""

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

    alpha: float | Literal["learned"] = 0.5
    """weight of the text against the image in the heads weighted and linear"""

    class_weights: bool = False
    """weigh classes by their inverse frequency in the loss"""

    val_fraction: float = 0.1
    """part of the training pairs that choose the best epoch; 0 trains on all and keeps the last"""

    seed: int = 0
    """seed of the split, the initial weights, the order of pairs and dropout"""

    seeds: tuple[int, ...] = ()
    """repeat training with each of these seeds, on the split that --seed makes"""

    save_every: int = 5
    """keep the parameters of every so many epochs, as well as of the best and the last"""

    precision: Literal["auto", "float32", "bf16"] = "auto"
    """arithmetic; auto is bf16 where the hardware computes in it, else float32"""

    compile: bool = False
    """compile the model first: pays off in long trainings"""

    device: Device = "auto"
    """auto, cpu, cuda, cuda:1, …"""

    resume: Resume = "auto"
    """auto continues what is there, always fails if there is nothing, never refuses to overwrite"""

    config: Path | None = None
    """YAML or JSON file of options (a run's config.json too); flags win over it"""

    debug: bool = False
    """show the traceback of an expected failure"""

    def check(self) -> None:
        """Raise UsageError for values that cannot work."""
        for flag, value in (
            ("--epochs", self.epochs),
            ("--batch-size", self.batch_size),
            ("--save-every", self.save_every),
        ):
            _at_least(flag, value, 1)
        _at_least("--max-length", self.max_length, 3)
        for flag, number in (("--lr", self.lr), ("--weight-decay", self.weight_decay)):
            _at_least(flag, number, 0)
        for flag, number in (
            ("--image-dropout", self.image_dropout),
            ("--modality-dropout", self.modality_dropout),
            ("--val-fraction", self.val_fraction),
        ):
            _at_least(flag, number, 0)
            _below(flag, number, 1)
        if isinstance(self.alpha, (int, float)):
            _at_least("--alpha", self.alpha, 0)
            _at_most("--alpha", self.alpha, 1)
        if not self.fusion:
            raise UsageError("--fusion needs the name of a head, several names, or all")
        for seed in (self.seed, *self.seeds):
            _at_least("--seed", seed, 0)
        if len(set(self.seeds)) != len(self.seeds):
            raise UsageError(f"--seeds names a seed twice: {' '.join(map(str, self.seeds))}")


@dataclass
class EvaluateOptions:
    """Evaluate one or several runs offline, in batches, and compare them."""

    paths: Positional[tuple[Path, ...]]
    """one or several run folders, then the folder or manifest of image–text pairs"""

    cache: Path = DEFAULT_CACHE
    """feature file of stage one"""

    split: Literal["test", "val", "train", "all"] = "test"
    """part of the pairs to evaluate; pairs without labels are only predicted"""

    checkpoint: Literal["best", "last"] = "best"
    """parameters to use: of the best epoch on the validation part, or of the last"""

    out: Path | None = None
    """folder for the results; by default inside the run, or comparison/ beside several runs"""

    baseline: str = "concat"
    """fusion head that the others are tested against"""

    without: Literal["text", "image"] | None = None
    """hide one modality from the models"""

    bootstrap: int = 2000
    """resamples behind each interval"""

    batch_size: int = 64
    """pairs a forward pass"""

    precision: Literal["auto", "float32", "bf16"] = "auto"
    """arithmetic; auto is bf16 where the hardware computes in it, else float32"""

    device: Device = "auto"
    """auto, cpu, cuda, cuda:1, …"""

    seed: int = 0
    """seed of the resampling"""

    config: Path | None = None
    """YAML or JSON file of options; flags win over it"""

    debug: bool = False
    """show the traceback of an expected failure"""

    @property
    def runs(self) -> tuple[Path, ...]:
        """The run folders among the paths."""
        return self.paths[:-1]

    @property
    def data(self) -> Path:
        """The data among the paths: the last one."""
        return self.paths[-1]

    def check(self) -> None:
        """Raise UsageError for values that cannot work."""
        if len(self.paths) < 2:
            raise UsageError("give one or several run folders and then the data, as in: evaluate.py runs/concat DATA")
        _at_least("--batch-size", self.batch_size, 1)
        _at_least("--bootstrap", self.bootstrap, 100)
        _at_least("--seed", self.seed, 0)


def _at_least(flag: str, value: float, bound: float) -> None:
    if not value >= bound:
        raise UsageError(f"{flag} must be at least {bound}, not {value}")


def _at_most(flag: str, value: float, bound: float) -> None:
    if not value <= bound:
        raise UsageError(f"{flag} must be at most {bound}, not {value}")


def _below(flag: str, value: float, bound: float) -> None:
    if not value < bound:
        raise UsageError(f"{flag} must be below {bound}, not {value}")
