"""Whether the rows of a feature file are of the image files that are there now: ids alone do not tell data sets apart.

A file of the size and mtime that its row remembers is taken as the same; any other is compared by its digest, since a
copied folder has new times. Passed over are files that are not there or cannot be read, since features outlive images,
and usable rows without a digest.
Shapes: k pairs.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count

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
    is_remote,
    reading_order,
)
from frozenfusion.store.command import ARRAYS, default_cache, extraction_command
from frozenfusion.store.reader import FeatureStore, Rows
from frozenfusion.store.status import DIGEST_BYTES, OK
from frozenfusion.utils.errors import UserError
from frozenfusion.utils.files import TooLargeError
from frozenfusion.utils.messages import first_few
from frozenfusion.utils.progress import Progress, log

# More changed images than FEW, and than this share of all that there are to compare, are hardly some that were edited.
FEW, SMALL_SHARE = 3, 0.05


@dataclass(frozen=True)
class Comparison:
    """What was found of image files; `changed` and `same` are places among those that were compared.

    Attributes:
        there: how many files could be compared.
        changed: those of other bytes than the row's digest.
        same: those that were read and have the same bytes.
        stats: size and mtime of each file, NO_FILE where there is none.
    """

    there: int
    changed: list[int]
    same: list[int]
    stats: list[Stat]

    @property
    def looks_foreign(self) -> bool:
        """Whether so much has changed that the rows are rather another data set's."""
        return len(self.changed) > max(FEW, SMALL_SHARE * self.there)


def compare_files(store: FeatureStore, rows: Rows, images: Sequence[ImagePlace], *, every: bool = False) -> Comparison:
    """Compare images with what their rows, (k,), remember of them; with `every`, whatever size and mtime say."""
    remembered = store.stat[rows].tolist()
    comparable = ((store.status[rows] != OK) | store.digest[rows].any(axis=1)).tolist()
    stats = image_stats(images)
    there = [place for place, found in enumerate(stats) if found != NO_FILE and comparable[place]]
    doubtful = [place for place in there if every or list(stats[place]) != remembered[place]]
    changed: list[int] = []
    same: list[int] = []
    unreadable = 0
    doubtful.sort(key=lambda place: reading_order(images[place]))
    digests = at_once(_digest, [images[place] for place in doubtful], waits=any(map(is_remote, images)))
    with Progress(len(doubtful), "img", "comparing") if doubtful else contextlib.nullcontext() as progress:
        for place, digest in zip(doubtful, digests, strict=True):
            if digest is None:
                unreadable += 1
            elif digest == store.digest[rows[place]].tobytes():
                same.append(place)
            else:
                changed.append(place)
            if progress:
                progress.update()
    return Comparison(len(there) - unreadable, sorted(changed), sorted(same), stats)


def identity_of(image: ImagePlace) -> tuple[bytes, Stat]:
    """What a row remembers of an image: digest, size and mtime; zeros where it is not there or cannot be read."""
    found = image_stat(image)
    return (_digest(image) if found != NO_FILE else None) or bytes(DIGEST_BYTES), found


def require_same_images(store: FeatureStore, rows: Rows, pairs: Sequence[Pair], data: str | os.PathLike[str]) -> None:
    """Raise UserError, with the command for `data`, where rows (k,) are of other images than those of the pairs.

    Images that could not be used and are others now, or were not there, count as missing; how many is told. Object
    stores are not asked: that takes a request for each image.
    """
    here = [place for place, pair in enumerate(pairs) if not is_remote(pair.image)]
    rows, pairs = rows[here], [pairs[place] for place in here]
    found, usable = compare_files(store, rows, [pair.image for pair in pairs]), store.status[rows] == OK
    others = [pairs[place].id for place in found.changed if usable[place]]
    if others:
        raise UserError(
            f"{store.path}: {len(others):,} of the {len(pairs):,} pairs that are needed have other images than those "
            f"that its rows were computed from ({first_few(others)}): {how_to_mend(found, store, data)}"
        )
    later = [pairs[place].id for place in found.changed if not usable[place]]
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
