"""Stage one: run the frozen image network once and store one feature row per image."""

from __future__ import annotations

import sys

from frozenfusion.cli.extract import main

if __name__ == "__main__":
    sys.exit(main())
