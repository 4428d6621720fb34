"""Word vectors: read from files that may come from anybody, or trained on the training texts.

Files are streamed, and only the vectors of known words are kept. Shapes: v words, d numbers of a vector.
"""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

import numpy as np
from numpy.typing import NDArray

from frozenfusion.text.words import MIN_COUNT, SPECIAL
from frozenfusion.utils.errors import UserError
from frozenfusion.utils.files import check_regular, file_error

MOST_NUMBERS = 2048  # of a vector
MOST_BYTES = 4096  # of a word
_MOST_LINE = MOST_BYTES + 64 * MOST_NUMBERS  # bytes
_BLOCK = 2**20
_HEADER = re.compile(rb"(\d{1,9}) (\d{1,9})\s*")
_EPOCHS = 20  # of word2vec: training texts are few

Entry = tuple[bytes, bytes | NDArray[np.float32]]
"""A word and its vector, which in a text file is still digits."""


@dataclass(frozen=True)
class WordVectors:
    """Vectors of words: values (v, d) float32, 0 where there is none; found (v,) bool."""

    values: NDArray[np.float32]
    found: NDArray[np.bool_]

    @property
    def share(self) -> float:
        """Of the words, special tokens left out, how many have one."""
        return float(self.found.sum() / max(len(self.found) - len(SPECIAL), 1))


def read_word_vectors(path: Path, words: Sequence[str]) -> WordVectors:
    """Vectors that a file has of words: GloVe's text, word2vec's text or binary, fastText's .vec, each also as .gz.

    A word that the file has in capitals alone gets that vector. Raises UserError for any other file, for one that is
    cut or damaged, and where it has none of the words.
    """
    check_regular(path)
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            return _read(cast(IO[bytes], file), path, words)
    except FileNotFoundError as error:
        raise UserError(f"`word_vectors={path}`: no such file: check the path") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path}: cut or damaged ({error}): fetch it again") from error
    except OSError as error:
        raise file_error(error, path) from error


def train_word_vectors(texts: Sequence[Sequence[str]], words: Sequence[str], width: int, seed: int) -> WordVectors:
    """Vectors that word2vec (skip-gram) learns from texts, given as their words; in one thread, so always the same.

    Raises UserError where gensim is not installed, or there are no words to learn.
    """
    try:
        from gensim.models import Word2Vec
    except ImportError as error:
        raise UserError(
            "`word_vectors=word2vec`: needs gensim, which is not installed: pip install gensim, or give a file"
        ) from error
    known = set(words)
    sentences = [[word for word in text if word in known] for text in texts]
    if not any(sentences):
        raise UserError(f"`word_vectors=word2vec`: no word comes {MIN_COUNT} times in the training texts: leave it out")
    model = Word2Vec(sentences, vector_size=width, min_count=1, sg=1, epochs=_EPOCHS, seed=seed % 2**32, workers=1)
    return _as_vectors(dict(zip(model.wv.index_to_key, model.wv.vectors, strict=True)), words, width)


def _read(file: IO[bytes], path: Path, words: Sequence[str]) -> WordVectors:
    wanted = {word.encode("utf-8", "replace"): word for word in words if word not in SPECIAL}
    width, entries = _entries(file, path)
    found: dict[str, NDArray[np.float32]] = {}
    exact: set[str] = set()
    for spelt, value in entries:
        word = wanted.get(spelt)
        same = word is not None
        if word is None:
            word = wanted.get(spelt.lower())
        if word is None or word in exact or (not same and word in found):
            continue
        found[word] = _numbers(value, width, path, word)
        if same:
            exact.add(word)
    if not found:
        raise UserError(
            f"`word_vectors={path}`: has none of the {len(wanted):,} words of the training texts: "
            "choose vectors of their language"
        )
    return _as_vectors(found, words, width)


def _as_vectors(found: dict[str, NDArray[np.float32]], words: Sequence[str], width: int) -> WordVectors:
    values = np.zeros((len(words), width), np.float32)
    has = np.array([word in found for word in words])
    for place in np.flatnonzero(has).tolist():
        values[place] = found[words[place]]
    return WordVectors(values, has)


def _numbers(value: bytes | NDArray[np.float32], width: int, path: Path, word: str) -> NDArray[np.float32]:
    if isinstance(value, bytes):
        try:
            with np.errstate(over="ignore"):
                value = np.array([float(part) for part in value.split()], np.float64).astype(np.float32)
        except ValueError as error:
            raise _damaged(path, f"what stands for the vector of {word!r} are no numbers") from error
    if value.shape != (width,) or not np.isfinite(value).all():
        raise _damaged(path, f"the vector of {word!r} is not {width} finite numbers")
    return value


def _entries(file: IO[bytes], path: Path) -> tuple[int, Iterator[Entry]]:
    """How many numbers a vector has, and all words with theirs."""
    first = file.readline(_MOST_LINE)
    if not first:
        raise UserError(f"`word_vectors={path}`: is empty: fetch it again")
    header = _HEADER.fullmatch(first)
    if header is None:
        width = len(first.split()) - 1
        _check_width(width, path)
        _check_text(first, width, path)
        return width, _text_entries(first, file, path, width, None)
    count, width = map(int, header.groups())
    _check_width(width, path)
    second = file.readline(_MOST_LINE)
    try:
        _check_text(second, width, path)
    except UserError:
        return width, _binary_entries(second, file, path, width, count)
    return width, _text_entries(second, file, path, width, count)


def _check_width(width: int, path: Path) -> None:
    if not 1 < width <= MOST_NUMBERS:
        raise _unknown(path)


def _check_text(line: bytes, width: int, path: Path) -> None:
    """Raise UserError for what is no line of a text file."""
    parts = line.rsplit(maxsplit=width)
    try:
        if len(parts) == width + 1 and [float(part) for part in parts[1:]]:
            return
    except ValueError:
        pass
    raise _unknown(path)


def _text_entries(line: bytes, file: IO[bytes], path: Path, width: int, count: int | None) -> Iterator[Entry]:
    number = 0
    while line:
        if line.strip():
            number += 1
            parts = line.rstrip()
            spaces = parts.count(b" ")
            if spaces < width or len(line) >= _MOST_LINE:
                raise _damaged(path, f"its vector {number:,} has not {width} numbers")
            if spaces == width:  # else the word has spaces, and is none of ours
                word, _, values = parts.partition(b" ")
                yield word, values
        line = file.readline(_MOST_LINE)
    if count is not None and number != count:
        raise _damaged(path, f"it has {number:,} vectors of {count:,}")


def _binary_entries(start: bytes, file: IO[bytes], path: Path, width: int, count: int) -> Iterator[Entry]:
    buffer, place, size = start, 0, 4 * width
    for number in range(1, count + 1):
        while True:
            end = buffer.find(b" ", place, place + MOST_BYTES)
            if end >= 0 and len(buffer) > end + size:
                break
            if end < 0 and len(buffer) - place >= MOST_BYTES:
                raise _damaged(path, f"its word {number:,} has no end")
            more = file.read(_BLOCK)
            if not more and end >= 0 and len(buffer) == end + 1 + size:
                break
            if not more:
                raise _damaged(path, f"it ends in vector {number:,} of {count:,}")
            buffer, place = buffer[place:] + more, 0
        yield buffer[place:end].lstrip(b"\n"), np.frombuffer(buffer, "<f4", width, end + 1).astype(np.float32)
        place = end + 1 + size


def _damaged(path: Path, what: str) -> UserError:
    return UserError(f"{path}: cut or damaged ({what}): fetch it again")


def _unknown(path: Path) -> UserError:
    return UserError(
        f"`word_vectors={path}`: no word vectors as GloVe, word2vec or fastText (.vec) write them: give a file of "
        "them, unpacked or as .gz (of fastText the .vec, not the .bin)"
    )
