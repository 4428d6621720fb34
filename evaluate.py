"""Evaluate trained runs on held-out pairs, and compare them."""

from __future__ import annotations

import sys

from frozenfusion.cli.evaluate import main

if __name__ == "__main__":
    sys.exit(main())
