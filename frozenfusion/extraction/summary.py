"""What stage one found and did, for a person."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from frozenfusion.data.pairs import Pairs
from frozenfusion.data.places import image_address
from frozenfusion.extraction.loop import Timing
from frozenfusion.store.status import STATUS_NAMES
from frozenfusion.utils.progress import duration, log


@dataclass
class ExtractSummary:
    """What stage one found and did; `counts` are the statuses of this data's images."""

    pairs: Pairs
    cache: Path
    counts: dict[str, int]
    timing: Timing = field(default_factory=Timing)
    imported: int | None = None  # rows that were taken from arrays, where there are any
    bad_list: Path | None = None
    shards: str | None = None  # of a folder of shards: what there is of them
    workers: int | None = None  # of a cluster, where it computed them

    def __str__(self) -> str:
        if self.timing.images and self.workers:
            rate = f"{self.timing.images / self.timing.total:.1f} img/s"
            done = f"{self.timing.images:,} images in {duration(self.timing.total)} by {self.workers:,} workers, {rate}"
        elif self.timing.images:
            done = str(self.timing)
        elif self.imported is not None:
            done = f"{self.imported:,} rows taken from the arrays"
        elif self.bad_list is None:
            done = "nothing to compute: every image is in the cache already"
        else:
            done = "nothing to compute; `retry_failed=True` tries the images again that cannot be used"
        images = ", ".join(f"{count:,} {name}" for name, count in self.counts.items() if count or name == "ok")
        lines = [f"pairs   {self.pairs.summary()}", f"images  {images}", f"work    {done}", f"cache   {self.cache}"]
        if self.shards is not None:
            lines.insert(2, f"shards  {self.shards}")
        if self.bad_list is not None:
            lines.append(f"listed  {self.bad_list}: the images that cannot be used, and why")
        return "\n".join(lines)


def counts(statuses: np.ndarray) -> dict[str, int]:
    """How many rows have each status, by its name; statuses: (n,) uint8."""
    counted = np.bincount(statuses, minlength=len(STATUS_NAMES))
    return {name: int(counted[status]) for status, name in STATUS_NAMES.items()}


def warn_of_none(summary: ExtractSummary) -> None:
    """Say where images were looked for, if none of them can be used."""
    pairs, counted = summary.pairs, summary.counts
    if len(pairs) and summary.imported is None and not (counted["ok"] or counted["pending"]):
        first = image_address(pairs.columns.image(0))
        log.warning("not one of %s images can be used: is %s where the first of them is?", f"{len(pairs):,}", first)
