"""Stage two: train a fusion head, and the text encoder, on cached image features."""

from __future__ import annotations

import sys

from frozenfusion.cli.train import main

if __name__ == "__main__":
    sys.exit(main())
