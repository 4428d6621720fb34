"""Stage one: run the frozen image network once and store one feature row an image."""

from __future__ import annotations

import sys
from pathlib import Path

from frozenfusion.cli import run
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
    """The feature file to look at may be given in the place of DATA."""
    if options.data.suffix in {".h5", ".hdf5"}:
        return options.data, None
    return options.cache, options.data


if __name__ == "__main__":
    sys.exit(run(ExtractOptions, main))
