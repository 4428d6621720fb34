"""Stage two: train a fusion head, and the text encoder, on cached image features."""

from __future__ import annotations

import sys

from frozenfusion.cli import run
from frozenfusion.options import TrainOptions


def main(options: TrainOptions) -> None:
    """Train what the options ask for and print what came out."""
    from frozenfusion.sweep import summary, train_all  # imports torch

    print(summary(train_all(options), options))


if __name__ == "__main__":
    sys.exit(run(TrainOptions, main))
