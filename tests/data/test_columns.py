"""Columns hold what lists of objects hold, in a fraction of the memory."""

from __future__ import annotations

import pickle
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frozenfusion.data import columns, pair_columns
from frozenfusion.data.columns import StringColumn, StringsMaker, TextColumn, TextsMaker
from frozenfusion.data.pairs import Pair, Pairs, load_pairs
from frozenfusion.utils.errors import UsageError

PROPERTY = settings(max_examples=40)
strings = st.lists(st.text(max_size=6) | st.sampled_from(["", "é", "…\n", "\udcff", "a" * 300, "\0"]), max_size=20)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "TEXTS_OF_A_BLOCK", 3)
    monkeypatch.setattr(columns, "ROWS_AT_ONCE", 2)
    monkeypatch.setattr(columns, "_TEXTS_AT_ONCE", 4)
    monkeypatch.setattr(pair_columns, "_AT_ONCE", 4)


def made(maker: StringsMaker | TextsMaker, parts: list[list[str]]) -> StringColumn | TextColumn:
    for part in parts:
        maker.extend(part)
    return maker.column()


@pytest.mark.parametrize("maker", [StringsMaker, TextsMaker])
@PROPERTY
@given(parts=st.lists(strings, max_size=4), data=st.data())
def test_a_column_is_a_sequence_like_a_list(maker, parts: list[list[str]], data: st.DataObject):
    column, whole = made(maker(), parts), [text for part in parts for text in part]
    for kept in (column, pickle.loads(pickle.dumps(column))):
        assert (list(kept), len(kept)) == (whole, len(whole))
    assert [column[i] for i in range(-len(whole), len(whole))] == whole * 2
    part = data.draw(st.slices(len(whole)))
    assert list(column[part]) == whole[part]
    rows = data.draw(st.lists(st.integers(0, len(whole) - 1))) if whole else []
    taken = column[part].take(np.arange(len(whole[part]))[::-1])
    assert list(taken) == whole[part][::-1]
    assert list(column.take(np.array(rows, np.int64))) == [whole[row] for row in rows]
    if isinstance(column, TextColumn):
        assert column.read(np.array(rows, np.int64)) == [whole[row] for row in rows]
    with pytest.raises(IndexError):
        column[len(whole)]


def test_strings_of_more_bytes_than_32_bits_count_are_taken_alike():
    column = StringColumn(np.frombuffer(b"abbccc", np.uint8), np.array([0, 1, 3, 6]))
    assert list(column.take(np.array([2, 0, 1]))) == ["ccc", "a", "bb"]
    assert column[1:].tolist() == ["bb", "ccc"]


ids = st.text(st.characters(exclude_characters="\0"), min_size=1, max_size=5)
pair_lists = st.lists(
    st.builds(
        Pair,
        id=ids,
        text=st.text(max_size=5),
        image=st.sampled_from([Path("data/a.jpg"), Path("data/b/é.png"), Path("/elsewhere/c.jpg"), Path("d.jpg")]),
        label=st.none() | st.integers(0, 2),
        split=st.sampled_from([None, "train", "val", "test"]),
    ),
    unique_by=lambda pair: pair.id,
    max_size=12,
)


@PROPERTY
@given(given_pairs=pair_lists, strange=ids)
def test_pairs_that_are_given_come_back_as_they_were(given_pairs: list[Pair], strange: str):
    pairs = Pairs(Path("data"), "manifest", ("a", "b", "c"), given_pairs, {}, {})
    for kept in (pairs, pickle.loads(pickle.dumps(pairs))):
        assert list(kept) == given_pairs
        assert kept == pairs
    assert [pairs[i] for i in range(-len(pairs), len(pairs))] == given_pairs * 2
    assert pairs[1:-1] == tuple(given_pairs[1:-1])
    assert pairs.labels.tolist() == [-1 if pair.label is None else pair.label for pair in given_pairs]
    asked = [*reversed(pairs.ids), strange, "", *(f"{id}\0" for id in pairs.ids)]
    place = {pair.id: row for row, pair in enumerate(given_pairs)}
    assert pairs.rows(asked).tolist() == [place.get(id, -1) for id in asked]
    assert pairs.select(reversed(pairs.ids)) == given_pairs[::-1]
    assert list(pairs.subset(pairs.ids[::-2])) == [pair for pair in given_pairs if pair.id in pairs.ids[::-2]]
    if strange not in place:
        with pytest.raises(KeyError):
            pairs.select([strange])


@pytest.mark.parametrize(("id", "split"), [("a\0", None), ("a", "holdout")])
def test_pairs_that_no_column_can_hold_are_refused(id: str, split: str | None):
    with pytest.raises(UsageError, match="neither has such a name"):
        Pairs(Path("data"), "manifest", ("a",), [Pair(id, "", Path("a.jpg"), 0, split)], {}, {})


def test_many_pairs_take_little_memory_while_they_are_read_and_after(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.undo()  # the sizes that are used
    n = 20_000
    with (tmp_path / "p.csv").open("w") as file:
        file.write("id,text,image,label\n")
        file.writelines(f"{i:08},{i} words {i * 7919 % n} {'x' * 80},pictures/{i:08}.jpg,{i % 3}\n" for i in range(n))
    load_pairs(tmp_path / "p.csv")[0]  # what is loaded once
    tracemalloc.start()
    pairs = load_pairs(tmp_path / "p.csv")
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (len(pairs), pairs[n - 1].text[:12]) == (n, "19999 words ")
    assert pairs.columns.nbytes < 100 * n
    assert held < 120 * n
    assert peak < held + 8 * 2**20
