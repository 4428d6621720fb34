"""Train, validation and test parts of a data set, and what they have in common."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from frozenfusion.data.manifests import MANY_CLASSES
from frozenfusion.data.pairs import Pair, Pairs
from frozenfusion.data.views import PairView
from frozenfusion.utils import fits
from frozenfusion.utils.errors import UserError
from frozenfusion.utils.files import read_json, write_json
from frozenfusion.utils.messages import MOST_NAMED, first_few, printable
from frozenfusion.utils.names import encoded
from frozenfusion.utils.progress import log

TEST_FRACTION = 0.2  # the reference's 8:2
SHORTEST_TEXT = 10  # shorter normalised texts ("good morning" has 12 characters) are alike by chance
_DIGEST_BYTES = 16

Array = NDArray[Any]

_RETWEET = re.compile(r"^\s*(?:rt\s+@\w+\s*:?\s*)+")
_CUT_WORD = re.compile(r"\S*\.\.\.\s*$")  # NFKC writes … as three dots
_URL = re.compile(r"(?:https?:|www\.)\S*")
_BETWEEN_WORDS = re.compile(r"[^\w@#]+")


@dataclass(frozen=True)
class Split:
    """Which pairs are trained on, validated on, and tested on.

    Args:
        source: where the test part comes from: "files", "seeded", or a word of your own.
        seed: what drew the parts that the files do not name.
        train, val, test: ids, sorted.
    """

    source: str
    seed: int
    train: list[str]
    val: list[str]
    test: list[str]

    def save(self, path: str | Path) -> None:
        """Write the split as JSON, atomically."""
        write_json(path, asdict(self))

    @classmethod
    def load(cls, path: str | Path) -> Split:
        """Read what `save` wrote. Raises UserError for anything else."""
        values = read_json(path)
        names = [field.name for field in fields(cls)]
        if not isinstance(values, dict) or sorted(values) != sorted(names):
            raise UserError(f"{path}: not a split: expected a JSON object of {', '.join(names)}")
        wrong = fits.misfit(values, _FITS)
        if wrong:
            raise UserError(f"{path}: not a split: {wrong}: restore the file")
        return cls(**values)


_FITS: Mapping[str, fits.Fit] = {
    "source": fits.text,
    "seed": fits.whole(0, 2**63 - 1),
    **dict.fromkeys(("train", "val", "test"), fits.texts),
}


class _Labelled(NamedTuple):
    """What a draw needs of a pair."""

    id: str
    label: int


Some = TypeVar("Some", Pair, _Labelled)


class Overlap(NamedTuple):
    """How many test pairs have a text, or an image, that also occurs in the train part."""

    texts: int
    images: int


def split_pairs(
    pairs: Pairs, *, seed: int = 0, val_fraction: float = 0.1, test_fraction: float = TEST_FRACTION
) -> Split:
    """Divide the labelled pairs into train, validation and test parts, stratified.

    Parts that the files name are taken as they are, if they have labels; pairs that such files leave out are in no
    part. A test part that is missing is drawn from all labelled pairs, a validation part from what is left to train.
    Drawing depends only on the seed, the ids and the labels.

    Args:
        pairs: what `load_pairs` returned.
        seed: another one draws other parts.
        val_fraction: of what is left to train, for choosing the best epoch; 0 for none.
        test_fraction: of all labelled pairs.

    Raises:
        UserError: nothing is left to train.
    """
    given: dict[str | None, list[_Labelled]] = defaultdict(list)
    columns = pairs.columns
    for id, label, split in zip(columns.ids(), columns.label_codes.tolist(), columns.splits(), strict=True):
        if label >= 0:
            given[split].append(_Labelled(id, label))
    if not given:
        raise UserError(f"{pairs.source}: no pair has a label: {_where_labels_may_be(pairs)}")
    _check_classes(pairs, given)
    source = "files" if given["test"] else "seeded"
    train, test = given["train"], given["test"]
    if not test:
        train, test = stratified_sample(train + given[None], test_fraction, seed, "test")
    elif not train:
        train = given[None]
    val = given["val"]
    if not val:
        train, val = stratified_sample(train, val_fraction, seed, "val")
    if not train:
        raise UserError(f"{pairs.source}: no labelled pair is left to train on: add labels, or take a smaller fraction")
    wanted = {"test": (test, test_fraction), "validation": (val, val_fraction)}
    empty = [f"no {part} part" for part, (found, fraction) in wanted.items() if fraction and not found]
    if empty:
        told = f"{pairs.source}: {' and '.join(empty)}: no class has pairs enough to spare some of the"
        log.warning("%s %s", told, f"{len(train):,} labelled ones: nothing will tell how good a model is on new pairs")
    return Split(source, seed, _ids(train), _ids(val), _ids(test))


def _check_classes(pairs: Pairs, given: Mapping[str | None, Sequence[_Labelled]]) -> None:
    """Raise UserError for many classes of one pair each, of which nothing can be learnt."""
    sizes = Counter(pair.label for part in given.values() for pair in part)
    if len(sizes) >= MANY_CLASSES and max(sizes.values()) == 1:
        told = f"each of its {len(sizes):,} labelled pairs has a class of its own"
        raise UserError(f"{pairs.source}: {told}, so nothing can be learnt: is the column `label` the right one?")


def _where_labels_may_be(pairs: Pairs) -> str:
    if not pairs.unread:
        return "add labels (docs/data.md)"
    names = first_few([*map(printable, pairs.unread)], MOST_NAMED)
    return f"`columns` says which column holds them, as label=COLUMN, and there are {names}"


def stratified_sample(pairs: Sequence[Some], fraction: float, seed: int, part: str) -> tuple[list[Some], list[Some]]:
    """The pairs that stay and those drawn: `fraction` of each class, as near as whole pairs allow.

    Each class keeps at least one pair. Within a class, ids are drawn in the order of a keyed hash, so a pair that is
    added or removed moves few others, and no library's random numbers matter.
    """
    classes: dict[int | None, list[Some]] = defaultdict(list)
    for pair in sorted(pairs, key=lambda pair: _draw(pair.id, seed, part)):
        classes[pair.label].append(pair)
    quota = {label: len(members) * fraction for label, members in classes.items()}
    take = {label: int(share) for label, share in quota.items()}
    by_remainder = sorted(quota, key=lambda label: (take[label] - quota[label], str(label)))
    for label in by_remainder[: round(len(pairs) * fraction) - sum(take.values())]:
        take[label] += 1
    chosen = [pair for label, members in classes.items() for pair in members[: min(take[label], len(members) - 1)]]
    chosen_ids = {pair.id for pair in chosen}
    return [pair for pair in pairs if pair.id not in chosen_ids], chosen


def _draw(id: str, seed: int, part: str) -> bytes:
    return hashlib.blake2b(f"{seed}/{part}/{id}".encode(), digest_size=16).digest()


def _ids(pairs: Iterable[_Labelled]) -> list[str]:
    return sorted(pair.id for pair in pairs)


def overlap_between(pairs: Pairs, train: Array, test: Array, digests: Array) -> Overlap:
    """Count the test pairs whose text (see normalised) or image (by digest) is also in the train part.

    train, test: rows of pairs, int64. digests: of the image file of every pair, (n,) S, b"" where there is none.
    """
    texts = (_text_digests(PairView(pairs.columns, rows)) for rows in (test, train))
    return Overlap(_also_in(*texts), _also_in(digests[test], digests[train]))


def _also_in(test: Array, train: Array) -> int:
    """How many of the test part's digests, (k,) S, are in the train part as well; b"" is none."""
    return int(np.count_nonzero(np.isin(test[test != b""], train)))


def _text_digests(pairs: PairView) -> Array:
    """A digest of each normalised text, (k,) S, b"" of short ones: those of millions take little memory."""
    texts = map(normalised, pairs.texts())
    codes = (_digest(text) if len(text) >= SHORTEST_TEXT else bytes(_DIGEST_BYTES) for text in texts)
    return np.fromiter(codes, f"S{_DIGEST_BYTES}", len(pairs))


def _digest(text: str) -> bytes:
    return hashlib.blake2b(encoded(text), digest_size=_DIGEST_BYTES).digest()


def normalised(text: str) -> str:
    """A text reduced to what a retweet of it keeps.

    Compatibility forms and case are folded (NFKC, casefold); the leading `RT @name:`, URLs (every tweet's t.co link is
    its own) and the last word where a text was cut short (…) go; white space and punctuation become single spaces.
    Mentions, hashtags and words stay: texts that differ in one of them are different texts.
    """
    text = unicodedata.normalize("NFKC", text).casefold()
    text = _URL.sub(" ", _RETWEET.sub("", text))
    text = _CUT_WORD.sub(" ", text)
    return _BETWEEN_WORDS.sub(" ", text).strip()
