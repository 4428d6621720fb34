"""Word vectors out of files, which may hold anything."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frozenfusion.text.vectors import read_word_vectors, train_word_vectors
from frozenfusion.text.words import SPECIAL
from frozenfusion.utils.errors import UserError

WORDS = [*SPECIAL, "sun", "好", "rain", "paris", "absent"]
VALUES = {
    "the": [9, 9, 9],
    "sun": [1, -2, 0.5],
    "好": [3, 4, 5],
    "Rain": [7, 7, 7],
    "rain": [6, 6, 6],
    "Paris": [0, 1, 0],
}


def text(header: bool = False, end: str = "\n") -> bytes:
    lines = [f"{len(VALUES)} 3"] if header else []
    return "".join(
        f"{line}{end}" for line in [*lines, *(f"{w} {' '.join(map(str, v))}" for w, v in VALUES.items())]
    ).encode()


def binary(end: bytes = b"\n") -> bytes:
    rows = [word.encode() + b" " + np.array(value, "<f4").tobytes() + end for word, value in VALUES.items()]
    return f"{len(VALUES)} 3\n".encode() + b"".join(rows)


FILES = {
    "glove.txt": text(),
    "word2vec.txt": text(header=True),
    "fasttext.vec": text(header=True, end=" \n"),
    "no-newline.txt": text().rstrip(),
    "windows.txt": text(end="\r\n"),
    "google.bin": binary(),
    "word2vec.bin": binary(b""),
    "glove.txt.gz": gzip.compress(text()),
    "google.bin.gz": gzip.compress(binary()),
    "spaces.txt": text() + b". . . 1 2 3\nsun . 1 2 3\n",
}


@pytest.mark.parametrize("name", FILES)
def test_vectors_of_every_form_are_read_for_the_words_that_are_known(name: str, tmp_path: Path):
    path = tmp_path / name
    path.write_bytes(FILES[name])
    vectors = read_word_vectors(path, WORDS)
    assert vectors.found.tolist() == [False, False, False, True, True, True, True, False]
    wanted = [[0, 0, 0]] * 3 + [[1, -2, 0.5], [3, 4, 5], [6, 6, 6], [0, 1, 0], [0, 0, 0]]
    assert vectors.values.tolist() == wanted
    assert vectors.share == 4 / 5


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (text(header=True)[:-12], "cut or damaged"),
        (binary()[:-9], "it ends in vector 6 of 6"),
        (b"9 3\n" + binary().partition(b"\n")[2], "it ends in vector 7 of 9"),
        (b"9 3\n" + text(), "it has 6 vectors of 9"),
        (b"sun 1 2 3\nrain 1 2\n", "its vector 2 has not 3 numbers"),
        (b"sun 1 2 3\nrain 1 2 x\n", "are no numbers"),
        (b"sun 1 2 nan\n", "3 finite numbers"),
        (b"sun 1 2 1e300\n", "3 finite numbers"),
        (binary().replace(np.float32(-2).tobytes(), np.float32(np.inf).tobytes()), "3 finite numbers"),
        (b"moon 1 2 3\n", "none of the 5 words"),
        (b"", "is empty"),
        (b"PK\x03\x04" + bytes(100), "no word vectors"),
        (b"999999999 999999999\n", "no word vectors"),
        (b"999999999 300\n", "it ends in vector 1"),
        (b"sun" * 10**6, "no word vectors"),
        (b"sun 1 2\n" + b"x" * 10**6, "its vector 2"),
        (b"9 3\n" + bytes(10**5), "its word 1 has no end"),
    ],
)
def test_what_is_cut_damaged_or_no_vectors_is_a_line(content: bytes, told: str, tmp_path: Path):
    path = tmp_path / "vectors"
    path.write_bytes(content)
    with pytest.raises(UserError, match=told) as caught:
        read_word_vectors(path, WORDS)
    assert str(path) in str(caught.value)


def test_a_gz_that_is_cut_or_none_and_what_is_no_file_are_a_line(tmp_path: Path):
    for name, content in {"cut.gz": gzip.compress(binary() * 9)[:-20], "none.gz": text()}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match="cut or damaged"):
            read_word_vectors(tmp_path / name, WORDS)
    with pytest.raises(UserError, match="no such file"):
        read_word_vectors(tmp_path / "gone", WORDS)
    with pytest.raises(UserError, match="not a regular file"):
        read_word_vectors(tmp_path, WORDS)


@settings(max_examples=100)
@given(
    st.sampled_from(["a.bin", "a.gz"]),
    st.one_of(
        st.binary(max_size=300),
        st.tuples(st.sampled_from(list(FILES.values())), st.binary(max_size=9), st.integers(0, 80)).map(
            lambda parts: parts[0][: parts[2]] + parts[1] + parts[0][parts[2] + len(parts[1]) :]
        ),
    ),
)
def test_any_bytes_give_finite_vectors_or_a_line(tmp_path_factory: pytest.TempPathFactory, name: str, content: bytes):
    path = tmp_path_factory.getbasetemp() / name
    path.write_bytes(content)
    try:
        vectors = read_word_vectors(path, WORDS)
    except UserError:
        return
    assert vectors.values.shape[0] == len(WORDS)
    assert np.isfinite(vectors.values).all()
    assert vectors.found.any()


def test_a_file_larger_than_a_block_is_read_whole(tmp_path: Path):
    random = np.random.default_rng(0)
    values = {f"w{number}": random.normal(size=50).astype("<f4") for number in range(12_000)}
    (tmp_path / "large.bin").write_bytes(
        b"12000 50\n" + b"".join(word.encode() + b" " + value.tobytes() for word, value in values.items())
    )
    vectors = read_word_vectors(tmp_path / "large.bin", [*SPECIAL, *values])
    assert vectors.share == 1
    assert (vectors.values[len(SPECIAL) :] == np.stack(list(values.values()))).all()


def test_word2vec_learns_the_same_from_the_same_texts():
    pytest.importorskip("gensim")
    texts = [["sun", "rain", "sun"], ["rain", "好", "never known"], []] * 5
    one, same, other = (train_word_vectors(texts, WORDS, 8, seed) for seed in (1, 1, 2))
    assert one.found.tolist() == [False, False, False, True, True, True, False, False]
    assert (one.values == same.values).all()
    assert (one.values != other.values).any()


def test_word2vec_of_no_words_is_a_line():
    pytest.importorskip("gensim")
    with pytest.raises(UserError, match="no word comes 2 times"):
        train_word_vectors([["once"], []], [*SPECIAL], 8, 0)
