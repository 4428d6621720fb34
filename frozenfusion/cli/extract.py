"""Stage one from the command line."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from tyro.conf import Positional

from frozenfusion.cli.caches import cache_to_make, cache_to_read
from frozenfusion.cli.groups import Groups
from frozenfusion.cli.parsing import COMMON, READING, RESUMED, DataOptions, run
from frozenfusion.data.layouts import is_data
from frozenfusion.extraction.config import ExtractConfig
from frozenfusion.store.command import ARRAYS, DataSource
from frozenfusion.store.plan import is_sharded
from frozenfusion.utils.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class ExtractOptions(DataOptions, ExtractConfig):
    """Stage one: run the frozen image network once and store one feature row per image."""

    groups: ClassVar[Groups] = {
        "files": ("cache", "from_arrays", "max_pixels", "image_seconds", "jpeg_draft", *READING),
        "network": ("backbone", "weights", "revision", "pool", "image_size", "precision", "dtype"),
        "speed": ("device", "runtime", "batch_size", "workers"),
        "resuming": ("resume", "update", "rebuild", "retry_failed", "strict"),
        "sharing": ("shards", "shard", "ray", "ray_workers", "ray_gpus_per_worker"),
        "looking": ("info", "verify", "merge"),
        "general": COMMON,
    }

    data: Positional[Path]
    """folder or manifest of image–text pairs (with --info or --verify: a feature file; with --verify: or a run)"""

    cache: Path | None = None
    """feature file (with --shards: folder) to make, resume or bring up to date; by default cache/NAME-b7.h5, after the
    data and the backbone"""

    info: bool = False
    """say what a feature file holds, then stop"""

    verify: bool = False
    """check all that was stored against its checksums (with DATA: the image files too), then stop"""

    merge: Path | None = None
    """copy a finished folder of shards, given in the place of DATA, into this feature file, then stop"""

    @property
    def when_interrupted(self) -> str:
        """What becomes of work that is interrupted."""
        return super().when_interrupted if self._only_looks else RESUMED

    @classmethod
    def passes_over(cls, option: str, flags: Sequence[str]) -> bool:
        """With --info, --verify or --merge, what a configuration file says of extracting."""
        looking = {flag.partition("=")[0] for flag in flags} & {"--info", "--verify", "--merge"}
        return bool(looking) and option in {each.name for each in dataclasses.fields(ExtractConfig)}

    def __post_init__(self) -> None:
        super().__post_init__()
        looking = [name for name in ("info", "verify", "merge") if getattr(self, name)]
        if len(looking) > 1:
            raise UsageError(
                f"`{looking[0]}` and `{looking[1]}` look at a feature file in two ways: give one of the two"
            )
        if looking:
            self._refuse_beside(looking[0])
        elif self.shards is not None and self.cache is None:
            raise UsageError("`shards` makes a folder of feature files: say which with `cache`")

    @property
    def _only_looks(self) -> bool:
        return self.info or self.verify or self.merge is not None

    def _refuse_beside(self, looking: str) -> None:
        for field in dataclasses.fields(ExtractConfig):
            if getattr(self, field.name) != field.default:
                raise UsageError(f"`{looking}` only looks at a feature file: leave out `{field.name}`")


def main(arguments: Sequence[str] | None = None, command: str | None = None) -> int:
    """Look at a feature file, or make it and bring it up to date; the exit status."""
    return run(ExtractOptions, _extract, arguments, command)


def _extract(options: ExtractOptions) -> str:
    if options.info:
        from frozenfusion.extraction.inspection import info

        return info(_file_and_data(options)[0])
    if options.merge is not None:
        from frozenfusion.extraction.merging import merge_shards

        return merge_shards(_file_and_data(options)[0], options.merge)
    if options.verify:
        from frozenfusion.extraction.inspection import verify

        if options.data.is_dir() and not is_sharded(options.data):
            from frozenfusion.model.verification import runs_at, verify_run  # imports torch

            runs = runs_at(options.data)
            if runs:
                return "\n".join(map(verify_run, runs))
        return verify(*_file_and_data(options), **options.reading)
    from frozenfusion.extraction.extractor import update_features  # imports torch
    from frozenfusion.utils.progress import log

    pairs = options.load(options.data)
    log.info(pairs.summary())
    cache = options.cache or cache_to_make(pairs.source, _made_by(options))
    return str(update_features(pairs, cache, options))


def _made_by(options: ExtractOptions) -> str:
    return options.backbone if options.from_arrays is None else ARRAYS


def _file_and_data(options: ExtractOptions) -> tuple[Path, Path | None]:
    """The feature file to look at, or its shards, may be given in the place of DATA, a folder or a manifest."""
    if is_sharded(options.data):
        return options.data, None
    if not options.data.is_dir() and not is_data(options.data):
        return options.data, None
    return cache_to_read(DataSource.of(options.data, **options.reading), options.cache), options.data
