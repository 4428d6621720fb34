"""The built-in sample from the command line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from tyro.conf import Positional

from frozenfusion.cli.groups import Groups
from frozenfusion.cli.parsing import COMMON, CommonOptions, run
from frozenfusion.data.sample.size import FEWEST_PAIRS, PAIRS
from frozenfusion.utils.checks import whole


@dataclass(frozen=True, kw_only=True)
class SampleOptions(CommonOptions):
    """Make the built-in sample: image–text pairs to try things on, and a small text encoder's folder."""

    groups: ClassVar[Groups] = {"sample": ("pairs", "seed"), "general": COMMON}

    folder: Positional[Path]
    """where to put the sample; the text encoder goes to text-encoder/ in it"""

    pairs: int = PAIRS
    """image–text pairs to make"""

    seed: int = 0
    """seed: the same one makes the same files"""

    def __post_init__(self) -> None:
        whole("pairs", self.pairs, FEWEST_PAIRS)
        whole("seed", self.seed, 0)


def main(arguments: Sequence[str] | None = None, command: str | None = None) -> int:
    """Make the sample and the text encoder's folder, and say what is there; the exit status."""
    return run(SampleOptions, _sample, arguments, command)


def _sample(options: SampleOptions) -> str:
    from frozenfusion.data.pairs import load_pairs
    from frozenfusion.data.sample.build import TEXT_ENCODER, make_sample
    from frozenfusion.data.sample.texts import make_text_encoder

    folder = make_sample(options.folder, options.pairs, options.seed)
    pairs = load_pairs(folder)
    make_text_encoder(folder / TEXT_ENCODER, (pair.text for pair in pairs if pair.split == "train"))
    return (
        f"{folder}: {pairs.summary()}\n"
        f"{folder / TEXT_ENCODER}: tokenizer and configuration of a small ALBERT, without weights"
    )
