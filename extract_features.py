"""Stage one: run the frozen image network once and store one feature row an image."""

from __future__ import annotations

import sys
from pathlib import Path

from frozenfusion.cli import run
from frozenfusion.manifests import READERS
from frozenfusion.options import ExtractOptions


def main(options: ExtractOptions) -> None:
    """Look at a feature file, or make it and bring it up to date."""
    cache, data = _file_and_data(options)
    if options.info:
        from frozenfusion.inspection import info

        print(info(cache))
    elif options.verify:
        from frozenfusion.inspection import verify

        print(verify(cache, data))
    else:
        from frozenfusion.extract import extract  # imports torch

        print(extract(options))


def _file_and_data(options: ExtractOptions) -> tuple[Path, Path | None]:
    """The feature file to look at may be given in the place of DATA, which is a folder or a manifest."""
    looking = options.info or options.verify
    if looking and not options.data.is_dir() and options.data.suffix.lower() not in READERS:
        return options.data, None
    return options.cache, options.data


if __name__ == "__main__":
    sys.exit(run(ExtractOptions, main))
