"""Stage one from the command line."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from tyro.conf import Positional

from frozenfusion.cli.parsing import COMMON, CommonOptions, Groups, run
from frozenfusion.data.manifests import READERS
from frozenfusion.extraction.config import ExtractConfig
from frozenfusion.utils.errors import UsageError

DEFAULT_CACHE = Path("cache/features.h5")


@dataclass(frozen=True, kw_only=True)
class ExtractOptions(CommonOptions, ExtractConfig):
    """Stage one: run the frozen image network once and store one feature row per image."""

    groups: ClassVar[Groups] = {
        "files": ("cache", "max_pixels", "image_seconds", "jpeg_draft"),
        "network": ("backbone", "weights", "pool", "image_size", "precision", "dtype"),
        "speed": ("device", "runtime", "batch_size", "workers"),
        "resuming": ("resume", "rebuild", "retry_failed", "strict"),
        "looking": ("info", "verify"),
        "general": COMMON,
    }

    data: Positional[Path]
    """folder or manifest of image–text pairs (with --info or --verify: the feature file itself)"""

    cache: Path = DEFAULT_CACHE
    """feature file to make, resume or bring up to date"""

    info: bool = False
    """say what a feature file holds, then stop"""

    verify: bool = False
    """check every stored row against its checksum (with DATA: every image file too), then stop"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.info and self.verify:
            raise UsageError("`info` and `verify` look at a feature file in two ways: give one of the two")
        if self.info or self.verify:
            self._refuse_beside("info" if self.info else "verify")

    def _refuse_beside(self, looking: str) -> None:
        for field in dataclasses.fields(ExtractConfig):
            if getattr(self, field.name) != field.default:
                raise UsageError(f"`{looking}` only looks at a feature file: leave out `{field.name}`")


def main(arguments: Sequence[str] | None = None, command: str | None = None) -> int:
    """Look at a feature file, or make it and bring it up to date; the exit status."""
    return run(ExtractOptions, _extract, arguments, command)


def _extract(options: ExtractOptions) -> str:
    cache, data = _file_and_data(options)
    if options.info:
        from frozenfusion.extraction.inspection import info

        return info(cache)
    if options.verify:
        from frozenfusion.extraction.inspection import verify

        return verify(cache, data)
    from frozenfusion.data.pairs import load_pairs
    from frozenfusion.extraction.extractor import update_features  # imports torch
    from frozenfusion.utils.progress import log

    pairs = load_pairs(options.data)
    log.info(pairs.summary())
    return str(update_features(pairs, cache, options))


def _file_and_data(options: ExtractOptions) -> tuple[Path, Path | None]:
    """The feature file to look at may be given in the place of DATA, which is a folder or a manifest."""
    looking = options.info or options.verify
    if looking and not options.data.is_dir() and options.data.suffix.lower() not in READERS:
        return options.data, None
    return options.cache, options.data
