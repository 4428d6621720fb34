"""Evaluate trained runs on held-out pairs, and compare them."""

from __future__ import annotations

import sys

from frozenfusion.cli import run
from frozenfusion.options import EvaluateOptions


def main(options: EvaluateOptions) -> None:
    """Evaluate what the options name and print the figures."""
    from frozenfusion.evaluation import evaluate  # imports torch

    print(evaluate(options).summary())


if __name__ == "__main__":
    sys.exit(run(EvaluateOptions, main))
