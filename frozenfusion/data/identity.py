"""Whether the rows of a feature file are of the image files that are there now: ids alone do not tell data sets apart.

A file of the size and mtime that its row remembers is taken as the same; any other is compared by its digest, since a
copied folder has new times. Passed over are files that are not there or cannot be read, since features outlive images,
and usable rows without a digest.
Shapes: k pairs.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count

import numpy as np
from numpy.typing import NDArray

from frozenfusion.data.images import MAX_FILE_BYTES, file_digest
from frozenfusion.data.pairs import Pair
from frozenfusion.data.places import (
    NO_FILE,
    ImagePlace,
    Stat,
    at_once,
    image_bytes,
    image_stat,
    image_stats,
    in_reading_order,
    is_remote,
)
from frozenfusion.data.views import image_of
from frozenfusion.store.command import ARRAYS, default_cache, extraction_command
from frozenfusion.store.reader import FeatureStore, Rows
from frozenfusion.store.status import DIGEST_BYTES, OK
from frozenfusion.utils.errors import UserError
from frozenfusion.utils.files import TooLargeError
from frozenfusion.utils.messages import first_few
from frozenfusion.utils.progress import Progress, log

# More changed images than FEW, and than this share of all that there are to compare, are hardly some that were edited.
FEW, SMALL_SHARE = 3, 0.05
_AT_ONCE = 2**14  # images that are looked at


@dataclass(frozen=True)
class Comparison:
    """What was found of image files; `changed` and `same` are places among the pairs, ascending.

    Attributes:
        there: how many files could be compared.
        changed: those of other bytes than the row's digest.
        same: those that were read and have the same bytes.
        stats: size and mtime of each that is the same, (k, 2) int64.
    """

    there: int
    changed: Rows
    same: Rows
    stats: NDArray[np.int64]

    @property
    def looks_foreign(self) -> bool:
        """Whether so much has changed that the rows are rather another data set's."""
        return len(self.changed) > max(FEW, SMALL_SHARE * self.there)


def compare_files(
    store: FeatureStore, rows: Rows, image: Callable[[int], ImagePlace], *, every: bool = False
) -> Comparison:
    """Compare the images of pairs with what their rows, (k,), remember of them; pairs of row -1 are passed over.

    image: where the image of a pair is, by its place. every: compare their digests, whatever size and mtime say.
    """
    known, waits = np.flatnonzero(rows >= 0), False
    stats = np.zeros((len(known), 2), np.int64)
    there, doubtful = np.zeros((2, len(known)), bool)
    for start in range(0, len(known), _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        images, own = [*map(image, known[part].tolist())], rows[known[part]]
        stats[part] = image_stats(images)
        comparable = (store.status[own] != OK) | store.digest[own].any(axis=1)
        there[part] = comparable & (stats[part] != NO_FILE).any(axis=1)
        doubtful[part] = there[part] & (every | (stats[part] != store.stat[own]).any(axis=1))
        waits |= any(map(is_remote, images))
    places, stats = known[doubtful], stats[doubtful]
    same, changed = np.zeros((2, len(places)), bool)
    reading = in_reading_order(image, places)
    digests = at_once(_digest, (image(int(place)) for place in reading), waits=waits)
    with Progress(len(places), "img", "comparing") if len(places) else contextlib.nullcontext() as progress:
        for place, digest in zip(reading, digests, strict=True):
            if digest is not None:
                as_it_was = digest == store.digest[rows[place]].tobytes()
                (same if as_it_was else changed)[np.searchsorted(places, place)] = True
            if progress:
                progress.update()
    unreadable = np.count_nonzero(~(same | changed))
    return Comparison(int(np.count_nonzero(there) - unreadable), places[changed], places[same], stats[same])


def identity_of(image: ImagePlace) -> tuple[bytes, Stat]:
    """What a row remembers of an image: digest, size and mtime; zeros where it is not there or cannot be read."""
    found = image_stat(image)
    return (_digest(image) if found != NO_FILE else None) or bytes(DIGEST_BYTES), found


def require_same_images(store: FeatureStore, rows: Rows, pairs: Sequence[Pair], data: str | os.PathLike[str]) -> None:
    """Raise UserError, with the command for `data`, where rows (k,) are of other images than those of the pairs.

    Images that could not be used and are others now, or were not there, count as missing; how many is told. Object
    stores are not asked: that takes a request for each image.
    """
    image = partial(image_of, pairs)
    here = np.fromiter((not is_remote(image(place)) for place in range(len(pairs))), bool, len(pairs))
    found = compare_files(store, np.where(here, rows, -1), image)
    usable = store.status[rows[found.changed]] == OK
    others = [pairs[place].id for place in found.changed[usable].tolist()]
    if others:
        raise UserError(
            f"{store.path}: {len(others):,} of the {len(pairs):,} pairs that are needed have other images than those "
            f"that its rows were computed from ({first_few(others)}): {how_to_mend(found, store, data)}"
        )
    later = [pairs[place].id for place in found.changed[~usable].tolist()]
    if later:
        log.warning(
            "%s images could not be used, and are there or were replaced since (%s): they count as missing until %s",
            f"{len(later):,}",
            first_few(later),
            store.command(data),
        )


def how_to_mend(found: Comparison, store: FeatureStore, data: str | os.PathLike[str]) -> str:
    """What to do about a feature file whose rows are of other images than `data` has: commands that help."""
    own = default_cache(data, str(store.fingerprint.get("backbone", "")))
    if store.fingerprint.get("backbone") == ARRAYS:
        return (
            f"if the features are of the images that are there now, {store.command(data, '--update')} says so; "
            "if not, make a feature file from a file of theirs"
        )
    replaced = f"{store.command(data, '--update')} computes them again"
    if not found.looks_foreign:
        return replaced
    if own.absolute() == store.path.absolute():  # of other data that is called the same
        free = (own.with_name(f"{own.stem}-{number}.h5") for number in count(2))
        own = next(path for path in free if not path.exists())
    made = extraction_command(data, own, store.fingerprint, store.attributes.get("weights", ""))
    return (
        f"if the file is another data set's, {made} makes one for this data, to be given as `features`; "
        f"if these images were replaced, {replaced}"
    )


def _digest(image: ImagePlace) -> bytes | None:
    """The digest of an image, one that none has where it is too large to be read, None where it cannot be read."""
    try:
        return file_digest(image_bytes(image, MAX_FILE_BYTES))
    except TooLargeError:
        return b""
    except (OSError, ValueError):
        return None
