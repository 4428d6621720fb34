"""Stage one: every image through the frozen network once, its features into the store."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from frozenfusion.data.identity import compare_files, how_to_mend
from frozenfusion.data.pairs import Pairs, require_pairs
from frozenfusion.data.places import image_address, image_stats, in_reading_order
from frozenfusion.extraction import bad_images
from frozenfusion.extraction.arrays import FeatureArrays, import_rows, reset_replaced
from frozenfusion.extraction.config import ExtractConfig, share_of
from frozenfusion.extraction.loop import ExtractionLoop, Task, Timing
from frozenfusion.extraction.sharding import Portion, agree_on_plan, compute_shards
from frozenfusion.extraction.summary import ExtractSummary, counts, warn_of_none
from frozenfusion.store.plan import Plan, is_sharded, shard_path
from frozenfusion.store.reader import FeatureStore, Rows
from frozenfusion.store.status import CRASHED, OK, PENDING
from frozenfusion.store.writer import StoreWriter
from frozenfusion.utils.checks import config_of
from frozenfusion.utils.device import choose_device
from frozenfusion.utils.errors import UserError
from frozenfusion.utils.messages import first_few
from frozenfusion.utils.progress import Progress, log
from frozenfusion.vision.backbone import Backbone, build_backbone


def extract(
    pairs: Pairs,
    cache: str | os.PathLike[str],
    *,
    backbone: str | None = None,
    weights: str | None = None,
    from_arrays: str | os.PathLike[str] | None = None,
    config: ExtractConfig | None = None,
) -> FeatureStore:
    """The features of the pairs' images, in the feature file `cache`; what is there already is not computed again.

    A bad image gets a status and a line in NAME.bad.csv, and the rest goes on. With `config.shards` the cache is a
    folder of shards, which many machines may compute at once; rows that others are at work on are pending then.

    Args:
        pairs: what `load_pairs` returned.
        cache: the feature file to make, to resume, or to bring up to date.
        backbone, weights, from_arrays: as in the config, in place of what it says.
        config: everything else.

    Raises:
        UserError: the weights, the feature file or the disk do not allow it; with `strict`, an image cannot be used.
    """
    config = config_of(ExtractConfig, config)
    config = dataclasses.replace(
        config,
        backbone=config.backbone if backbone is None else backbone,
        weights=config.weights if weights is None else weights,
        from_arrays=config.from_arrays if from_arrays is None else os.fspath(from_arrays),
    )
    return FeatureStore(update_features(pairs, cache, config).cache)


def update_features(pairs: Pairs, cache: str | os.PathLike[str], config: ExtractConfig) -> ExtractSummary:
    """What `extract` does, and what it found and did."""
    require_pairs(pairs)
    cache = Path(cache)
    sharded = config.shards is not None or is_sharded(cache)
    if config.shard is not None and not sharded:
        raise UserError(f"{cache}: no folder of shards, of which `shard` is a share: give `shards` as well")
    if config.ray is not None and not sharded:
        raise UserError(f"{cache}: no folder of shards, which `ray` hands out to workers: give `shards` as well")
    if config.ray is None:
        choose_device(config.device)  # a wrong one is told before anything is written
    if sharded:
        _check_resume(cache, config)
        summary = (_update_here if config.ray is None else _update_on_ray)(pairs, cache, config)
    else:
        summary = _update_file(pairs, cache, config, _source(pairs, config))
    _check_strict(summary, config)
    warn_of_none(summary)
    return summary


def _update_file(
    pairs: Pairs,
    cache: Path,
    config: ExtractConfig,
    source: Backbone | FeatureArrays,
    images_left: int | None = None,
    portion: Portion | None = None,
    progress: Callable[..., Progress] = Progress,
) -> ExtractSummary:
    with _open_store(pairs, cache, config, source) as writer:
        reasons = bad_images.read_list(cache)
        if isinstance(source, FeatureArrays):
            reset_replaced(writer, pairs, source, update=config.update)
        else:
            _reset_stale(writer, pairs, config, reasons)
        columns = pairs.columns
        writer.grow(columns.encoded_ids)
        rows = writer.store.rows(columns.encoded_ids)
        pending = np.flatnonzero(writer.store.status[rows] == PENDING)
        timing, imported = Timing(), None
        if portion is not None:
            pending = pending[(pending >= portion.first) & (pending < portion.stop)]
        try:
            if portion is not None and portion.crashed:
                pending = _give_up(writer, pairs, pending, rows, reasons)
            if isinstance(source, FeatureArrays):
                imported = import_rows(writer, pairs, pending, source, reasons)
            elif len(pending):
                order = map(int, in_reading_order(columns.image, pending))
                tasks = (Task(int(rows[place]), columns.image(place)) for place in order)
                loop = ExtractionLoop(writer, source, config, reasons, progress)
                timing = loop.run(tasks, len(pending), images_left)
            if config.rebuild:
                writer.publish()
        finally:
            bad_list = bad_images.write_list(cache, writer.store, functools.partial(_files, pairs), reasons)
        found = counts(writer.store.status[rows])
    return ExtractSummary(pairs, cache, found, timing, imported, bad_list)


def _files(pairs: Pairs, ids: list[str]) -> list[str]:
    """Where the images of ids are, "" for an id that is none of the pairs'."""
    return [image_address(pairs.columns.image(row)) if row >= 0 else "" for row in pairs.rows(ids).tolist()]


_OF_ONE_FILE: Mapping[str, Any] = {
    **dict.fromkeys(("shards", "shard", "ray", "ray_workers", "ray_gpus_per_worker")),
    "strict": False,
    "resume": "auto",
}


class ShardWork:
    """Computes shards of a folder in this process: has their plan, and the network, which is loaded once.

    Raises UserError as `extract` does.
    """

    def __init__(
        self, pairs: Pairs, folder: Path, config: ExtractConfig, progress: Callable[..., Progress] = Progress
    ) -> None:
        self._source, self._progress = _source(pairs, config), progress
        if isinstance(self._source, FeatureArrays):
            raise UserError(
                f"{folder}: a folder of shards, and `from_arrays` fills one feature file: choose another `cache`"
            )
        shape, fingerprint = self._source.feature_shape, self._source.fingerprint
        self.plan = agree_on_plan(pairs, folder, config, shape, fingerprint, _about(config, self._source))
        self._config = dataclasses.replace(config, **_OF_ONE_FILE)
        self.timing = Timing()

    def compute(
        self, part: Pairs, path: Path, images: int, portion: Portion | None = None, *, again: bool = True
    ) -> None:
        """Bring a shard's file up to date, or a portion of it; not `again` where that is a matter of pending rows."""
        config = self._config if again else dataclasses.replace(self._config, update=False, retry_failed=False)
        self.timing += _update_file(part, path, config, self._source, images, portion, self._progress).timing


def _update_here(pairs: Pairs, folder: Path, config: ExtractConfig) -> ExtractSummary:
    work = ShardWork(pairs, folder, config)
    share, shares = share_of(config.shard)
    shards = work.plan.shards[share::shares]
    others = compute_shards(pairs, folder, work.plan, shards, work.compute, again=config.looks_again)
    return _summary_of_shards(pairs, folder, work.plan, work.timing, others)


def _update_on_ray(pairs: Pairs, folder: Path, config: ExtractConfig) -> ExtractSummary:
    from frozenfusion.extraction.ray_driver import compute_on_ray

    done = compute_on_ray(pairs, folder, config, ShardWork)
    return _summary_of_shards(pairs, folder, done.plan, done.timing, done.others, done.workers)


def _summary_of_shards(
    pairs: Pairs, folder: Path, plan: Plan, timing: Timing, others: int, workers: int | None = None
) -> ExtractSummary:
    store = FeatureStore(folder)
    there = sum(shard_path(folder, shard).exists() for shard in plan.shards)
    told = f"{there:,} of {len(plan.shards):,} are there"
    if others:
        told += f"; others are computing {others:,}"
    listed = folder / "shard-*.bad.csv" if any(folder.glob("shard-*.bad.csv")) else None
    return ExtractSummary(pairs, folder, counts(store.status), timing, None, listed, told, workers)


def _give_up(writer: StoreWriter, pairs: Pairs, places: Rows, rows: Rows, reasons: dict[str, str]) -> Rows:
    """Mark the pairs at `places` as crashed; what is left of them to compute, which is nothing."""
    reasons |= {pairs.ids[place]: "the process that computed it died, whichever it was" for place in places.tolist()}
    writer.mark(rows[places], CRASHED, None, image_stats([*map(pairs.columns.image, places.tolist())]))
    writer.commit()
    return places[:0]


def _check_strict(summary: ExtractSummary, config: ExtractConfig) -> None:
    bad = len(summary.pairs) - summary.counts["ok"] - (summary.counts["pending"] if summary.shards else 0)
    if config.strict and bad:
        log.info(str(summary))
        mend = (
            "mend them and run again with `retry_failed=True`" if summary.imported is None else "give features of them"
        )
        raise UserError(
            f"{summary.cache}: {bad:,} of {len(summary.pairs):,} images cannot be used, as {summary.bad_list} lists: "
            f"{mend}, or leave out `strict=True`"
        )


def _source(pairs: Pairs, config: ExtractConfig) -> Backbone | FeatureArrays:
    """Where the features come from."""
    if config.from_arrays is not None:
        arrays = FeatureArrays(config.from_arrays, config.dtype)
        arrays.require_rows(pairs)
        return arrays
    return build_backbone(
        config.backbone,
        config.weights,
        revision=config.revision,
        pool=config.pool,
        image_size=config.image_size,
        precision=config.precision,
        dtype=config.dtype,
        jpeg_draft=config.jpeg_draft,
    )


def _open_store(pairs: Pairs, path: Path, config: ExtractConfig, source: Backbone | FeatureArrays) -> StoreWriter:
    there = _check_resume(path, config)
    if there and not config.rebuild:
        return StoreWriter.open(path, source.fingerprint)
    make = StoreWriter.rebuild if config.rebuild else StoreWriter.create
    ids, about = pairs.columns.encoded_ids, _about(config, source)
    return make(path, ids, source.feature_shape, config.dtype, source.fingerprint, about)


def _check_resume(path: Path, config: ExtractConfig) -> bool:
    """Whether there is something to resume. Raises UserError where that is not as it should be."""
    there = os.path.lexists(path)
    if there and config.resume == "never":
        raise UserError(f"{path}: is there already, and `resume=never` does not touch it: choose another `cache`")
    if not there and config.resume == "always":
        raise UserError(f"{path}: there is nothing to resume: check `cache`, or leave out `resume=always`")
    return there


def _about(config: ExtractConfig, source: Backbone | FeatureArrays) -> dict[str, str]:
    """Who makes the features and by what, for people who ask later."""
    origin = source.encoder.weights if isinstance(source, Backbone) else str(config.from_arrays)
    about = {"weights": origin.encode(errors="backslashreplace").decode()}
    return {**about, **_versions()} if config.from_arrays is None else about


@functools.cache  # packages' files are read, which takes longer than to make a shard's file
def _versions() -> Mapping[str, str]:
    """What made the features, for people who ask later; not a part of the fingerprint."""
    from importlib.metadata import version

    packages = ("torch", "efficientnet_pytorch", "transformers", "pillow", "numpy", "h5py")
    return {f"{name}_version": version(name) for name in packages}


def _reset_stale(writer: StoreWriter, pairs: Pairs, config: ExtractConfig, reasons: Mapping[str, str]) -> None:
    """Turn rows back to pending whose image changed since, or that could not be used and are to be tried again.

    An image that was deleted after its features were computed keeps them; a bad one is tried again if a kill lost the
    reason why it is bad. Raises UserError, and changes nothing, where the file looks like another data set's.
    """
    store, columns = writer.store, pairs.columns
    rows = store.rows(columns.encoded_ids)
    settled = (rows >= 0) & (store.status[rows] != PENDING)
    usable = settled & (store.status[rows] == OK)
    changed = _changed(writer, pairs, np.where(usable, rows, -1), config)
    if len(changed):
        log.info(f"{len(changed):,} images have changed since their features were computed: computing them again")
    bad = np.flatnonzero(settled & ~usable).tolist()
    again = [
        rows[place]
        for place, stat in zip(bad, image_stats([*map(columns.image, bad)]), strict=True)
        if config.retry_failed
        or config.update
        or stat != tuple(store.stat[rows[place]])
        or pairs[place].id not in reasons
    ]
    if again or len(changed):
        writer.reset([*again, *changed])


def _changed(writer: StoreWriter, pairs: Pairs, rows: Rows, config: ExtractConfig) -> Rows:
    """Those rows of pairs, (k,), -1 for none, whose file has other bytes; the others get their new size and mtime."""
    found = compare_files(writer.store, rows, pairs.columns.image, every=config.update)
    if found.looks_foreign and not (config.update or config.rebuild):
        some = first_few([pairs[place].id for place in found.changed.tolist()])
        raise UserError(
            f"{writer.path}: looks like another data set's, and was left as it is: {len(found.changed):,} of "
            f"{found.there:,} images of {pairs.source} are not those that its rows were computed from ({some}): "
            f"{how_to_mend(found, writer.store, pairs.source)}"
        )
    if len(found.same):
        writer.set_stat(rows[found.same], found.stats)
    changed: Rows = rows[found.changed]
    return changed
