"""The plan of a folder of shards: which rows there are, which shard has which, and what the features are made by."""

from __future__ import annotations

import itertools
import json
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from frozenfusion.store.command import extraction_command
from frozenfusion.store.raw_file import Array
from frozenfusion.utils.errors import UserError
from frozenfusion.utils.files import (
    check_regular,
    file_error,
    put_first,
    read_json,
    replacing,
    temporary_beside,
    write_json,
)
from frozenfusion.utils.fits import mapping, misfit, scalars, text, whole
from frozenfusion.utils.messages import printable

if TYPE_CHECKING:
    from frozenfusion.store.hdf5 import Scalar

FORMAT, FORMAT_VERSION = "frozen-fusion-shards", 1
PLAN, IDS = "plan.json", "ids.npy"
_MOST_ROWS = 2**40
MOST_SHARDS = 30_000  # a reader maps each twice, and Linux gives a process 65,530 maps


@dataclass(frozen=True)
class Plan:
    """What all workers on a folder go by; made once, and never changed.

    Attributes:
        pairs_sha256: of the ids and where their images are.
        ids_crc32: of the ids as a store has them.
        bounds: shard i has the rows from bounds[i] up to bounds[i + 1].
        shape, dtype: of a row.
        fingerprint, attributes: as of a feature file.
    """

    pairs_sha256: str
    ids_crc32: int
    bounds: tuple[int, ...]
    shape: tuple[int, ...]
    dtype: str
    fingerprint: Mapping[str, Scalar]
    attributes: Mapping[str, Scalar]

    @property
    def n(self) -> int:
        """All rows."""
        return self.bounds[-1]

    @property
    def shards(self) -> range:
        """The numbers of the shards."""
        return range(len(self.bounds) - 1)

    def rows(self, shard: int) -> slice:
        """The rows of a shard."""
        return slice(self.bounds[shard], self.bounds[shard + 1])

    def command(self, folder: Path) -> str:
        """The command that computes what a folder lacks."""
        return extraction_command("DATA", folder, self.fingerprint, self.attributes.get("weights", ""))

    def differences(self, other: Plan) -> str:
        """How this plan differs from another, this one's → that one's; empty if it does not."""
        told = []
        if self.n != other.n:
            told.append(f"pairs {self.n:,} → {other.n:,}")
        elif self.pairs_sha256 != other.pairs_sha256:
            told.append("other ids, or images at other places")
        elif self.bounds != other.bounds:
            told.append(f"rows per shard {self.bounds[1]:,} → {other.bounds[1]:,}")
        here, there = (
            {**json.loads(json.dumps(dict(plan.fingerprint))), "shape": plan.shape, "dtype": plan.dtype}
            for plan in (self, other)
        )
        told += [
            f"{printable(part)} {printable(here.get(part, 'not set'))} → {printable(there.get(part, 'not set'))}"
            for part in sorted(here.keys() | there.keys())
            if here.get(part) != there.get(part)
        ]
        return "; ".join(told)


def evenly(n: int, rows: int) -> tuple[int, ...]:
    """The bounds of shards of so many rows each, but the last."""
    return (*range(0, n, rows), n)


def shard_path(folder: Path, shard: int) -> Path:
    """Where the file of a shard is."""
    return folder / f"shard-{shard:05}.h5"


def is_sharded(path: Path) -> bool:
    """Whether a folder has a plan of shards."""
    return (path / PLAN).is_file()


def read_plan(folder: Path) -> Plan:
    """The plan of a folder. Raises UserError where it is none, damaged, or of another version."""
    path = folder / PLAN
    values = read_json(path)
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise UserError(f"{path}: not a plan of shards, so {folder} is no folder of theirs: choose another")
    if values.get("format_version") != FORMAT_VERSION:
        raise UserError(
            f"{path}: format version {printable(values.get('format_version'))}, but this program reads "
            f"{FORMAT_VERSION}: use the program that made it, or another folder"
        )
    wrong = misfit(values, _FITS, _FITS)
    if wrong:
        raise UserError(f"{path}: {wrong}: restore it, or make the folder anew")
    known: dict[str, Any] = {name: values[name] for name in _FITS}
    return Plan(**known | {name: tuple(known[name]) for name in ("bounds", "shape")})


def write_plan(folder: Path, plan: Plan, ids: Array) -> Plan:
    """Give a folder its plan, unless it has one; the one that it has then, which may be another worker's.

    ids: (n,) S, the names of the rows.
    """
    path = folder / PLAN
    if not path.exists():
        write_ids(folder, ids)
        values = {"format": FORMAT, "format_version": FORMAT_VERSION, **asdict(plan)}
        beside = temporary_beside(path)
        write_json(beside, values)
        put_first(beside, path)
    return read_plan(folder)


def write_ids(folder: Path, ids: Array) -> None:
    """Keep the names of the rows, (n,) S, which shards that are not there yet cannot tell."""
    with replacing(folder / IDS) as beside, beside.open("wb") as file:
        np.save(file, ids, allow_pickle=False)


def read_ids(folder: Path, plan: Plan) -> Array:
    """The names of the rows, (n,) S, mapped. Raises UserError unless they are those of the plan."""
    path = folder / IDS
    try:
        check_regular(path)
        ids = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        raise file_error(error, path) from error
    except (ValueError, EOFError):
        ids = None
    sound = isinstance(ids, np.ndarray) and ids.dtype.kind == "S" and ids.shape == (plan.n,)
    if not sound or zlib.crc32(np.ascontiguousarray(ids).data) != plan.ids_crc32:
        raise UserError(f"{path}: damaged, or not of {folder / PLAN}: delete it and run {plan.command(folder)}")
    return np.asarray(ids)


def _are_bounds(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) > 1
        and all(map(whole(0, _MOST_ROWS), value))
        and value[0] == 0
        and all(low < high for low, high in itertools.pairwise(value))
    )


_FITS = {
    "pairs_sha256": text,
    "ids_crc32": whole(0, 2**32 - 1),
    "bounds": _are_bounds,
    "shape": lambda value: isinstance(value, list) and len(value) in (1, 2) and all(map(whole(1), value)),
    "dtype": lambda value: value in ("float32", "float16"),
    "fingerprint": mapping,
    "attributes": scalars,
}
