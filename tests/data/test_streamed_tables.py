"""Tables are read as a stream and many rows at a time, and mean what they mean read whole and row by row."""

from __future__ import annotations

import codecs
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import write_manifest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from frozenfusion.data import listing, plain_rows, records
from frozenfusion.data.pairs import Pairs, load_pairs
from frozenfusion.data.records import table_lines
from frozenfusion.utils.errors import UserError
from frozenfusion.utils.progress import log

KINDS = ("csv", "tsv", "jsonl", "parquet")
PROPERTY = settings(max_examples=100)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "propagate", True)
    monkeypatch.setattr(records, "_DECODED_AT_ONCE", 3)
    monkeypatch.setattr(plain_rows, "_ROWS_OF_A_BLOCK", 2)
    monkeypatch.setattr(listing, "_AT_ONCE", 3)


def whole(data: bytes) -> str:
    """A table's text, decoded at once."""
    marked = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    for encoding in ("utf-16", "utf-8", "gb18030") if marked else ("utf-8", "gb18030"):
        try:
            return data.decode(encoding).removeprefix("\ufeff")
        except UnicodeDecodeError:
            continue
    return data.decode("utf-8", "replace")


letters = st.text(st.sampled_from('ab,"\n\r…é好\ufeff\t '), max_size=30)
encoded = st.builds(
    lambda text, mark, encoding: (mark + text).encode(encoding),
    *(letters, st.sampled_from(["", "\ufeff"]), st.sampled_from(["utf-8", "utf-16-le", "utf-16-be", "gb18030"])),
)


@PROPERTY
@given(data=encoded | st.binary(max_size=30))
def test_lines_are_those_of_the_whole_file(tmp_path: Path, data: bytes):
    (tmp_path / "p.txt").write_bytes(data)
    expected = re.findall(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+", whole(data))
    assert list(table_lines(tmp_path / "p.txt")) == expected


def test_lines_that_nobody_asks_for_end_in_silence_though_their_file_is_closed(tmp_path: Path):
    (tmp_path / "p.txt").write_text("a\nb\n")
    lines = table_lines(tmp_path / "p.txt")
    assert next(lines) == "a\n"
    lines.gi_frame.f_locals["file"].close()  # as the garbage collector may, before it ends the generator
    lines.close()


def test_a_line_or_a_cell_longer_than_any_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(records, "MAX_LINE", 40)
    (tmp_path / "p.jsonl").write_text('{"id": 1, "text": "", "image": "a"}\n' + " " * 41)
    with pytest.raises(UserError, match=r"p\.jsonl:2: a line of more than 40 letters"):
        load_pairs(tmp_path / "p.jsonl")
    monkeypatch.setattr("frozenfusion.data.manifests.MAX_LINE", 20)
    (tmp_path / "p.csv").write_text('id,text,image\n1,"' + "x\n" * 30 + '",a\n')
    with pytest.raises(UserError, match=r"p\.csv:12: malformed line: field larger"):
        load_pairs(tmp_path / "p.csv")


def test_more_pairs_than_can_be_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(listing, "MAX_PAIRS", 3)
    rows = [{"id": str(number), "text": "", "image": "a"} for number in range(4)]
    assert len(load_pairs(write_manifest(tmp_path / "p.csv", rows[:3]))) == 3
    with pytest.raises(UserError, match="more than 3 pairs"):
        load_pairs(write_manifest(tmp_path / "p.csv", rows))


def test_what_is_wrong_is_told_in_the_order_of_the_file(tmp_path: Path):
    (tmp_path / "p.csv").write_text("id,text,image\n0,x,a\n1,x,a\n2,x,a\n3,x,../a\n4,x\n")
    with pytest.raises(UserError, match=r"p\.csv:5: path '\.\./a' leaves"):
        load_pairs(tmp_path / "p.csv")


# Many rows at a time

odd_names = st.sampled_from(
    [
        *("", " a", "b ", "IMG 1.jpg", "a..b", "é", "e\u0301.jpg", ".a", "x" * 255, "x" * 256, "\ud800", "c/d.jpg"),
        *("..", "a/../b", "/a", "a//b", "a/./b", "./a", "a/", "a\\b", "a:b", "a\nb", "a\0b", "\n", "/", "\x7f"),
    ]
)
odd_cells = st.one_of(
    st.tuples(st.sampled_from(["id", "image", "text_path", "both"]), odd_names),
    st.tuples(st.just("text"), odd_names | st.sampled_from(["one\ntwo", "\ufffd", " \u3000", "好 "])),
    st.tuples(
        st.just("label"),
        st.sampled_from(["", " a", "1.0", "1", "nan", "None", "Positive", "x" * 256, "a\nb", "e\u0301"]),
    ),
    st.tuples(st.just("split"), st.sampled_from(["train", " Dev", "test", "holdout"])),
)
odd = st.lists(st.tuples(st.integers(0, 4), odd_cells), min_size=1, max_size=2)


def outcome(path: Path, *, follow_links: bool) -> tuple[Any, ...]:
    try:
        pairs = load_pairs(path, follow_links=follow_links)
    except UserError as error:
        return (str(error),)
    return (list(pairs), pairs.label_names, list(pairs.text_counts.items()), pairs.dropped, pairs.layout)


@pytest.mark.parametrize("kind", KINDS)
@PROPERTY
@example(odd=[(1, ("text", "\ud800"))], typed=False)
@given(odd=odd, typed=st.booleans())
def test_rows_in_blocks_mean_what_they_mean_one_by_one(
    tmp_path: Path, caplog, kind: str, odd: list[tuple[int, tuple[str, str]]], typed: bool
):
    assume(sys.version_info >= (3, 11) or not any("\0" in cell for _, (_, cell) in odd))  # csv did not write it
    (tmp_path / "c").mkdir(exist_ok=True)
    (tmp_path / "c" / "d.jpg").write_text("in a file\n")
    plain = {"text": "x", "text_path": "", "image": "a b/c.jpg", "label": "a", "split": ""}
    rows: list[dict[str, Any]] = [{"id": str(number), **plain} for number in range(5)]
    for place, (column, cell) in odd:
        if column == "both":
            rows[place] |= {"text": "x", "text_path": cell}
        else:
            rows[place] |= {column: cell} | ({"text": ""} if column == "text_path" else {})
    if typed and kind in ("jsonl", "parquet"):
        rows = [{**row, "id": number, "label": 1.0 if number else None} for number, row in enumerate(rows)]
    if kind == "parquet":
        rows = [{name: _valid(cell) for name, cell in row.items()} for row in rows]
    write_manifest(tmp_path / f"p.{kind}", rows)
    found, told = [], []
    for follow_links in (True, False):  # without links, each row is looked at
        caplog.clear()
        found.append(outcome(tmp_path / f"p.{kind}", follow_links=follow_links))
        told.append(caplog.messages)
    assert found[0] == found[1]
    assert told[0] == told[1]


def _valid(cell: Any) -> Any:
    return cell.encode("utf-8", "replace").decode() if isinstance(cell, str) else cell


@pytest.mark.parametrize("kind", KINDS)
def test_an_id_that_comes_twice_far_apart_is_told_with_both_lines(tmp_path: Path, kind: str):
    ids = [f"{number:03}" for number in range(200, 0, -1)]
    ids[150], ids[180] = ids[3], ids[2]  # the first that repeats another is told, in the order of the file
    rows = [{"id": id, "text": "two\nlines", "image": "a.jpg"} for id in ids]
    with pytest.raises(UserError) as caught:
        load_pairs(write_manifest(tmp_path / f"p.{kind}", rows))
    first, second = {"jsonl": (":4", ":151"), "parquet": (": row 4", ": row 151")}.get(kind, (":9", ":303"))
    path = tmp_path / f"p.{kind}"
    assert str(caught.value) == f"{path}{second}: id '197' was already given at {path}{first}: keep one of them"


@pytest.mark.parametrize("kind", KINDS)
def test_pairs_are_in_the_order_of_their_ids_whatever_the_file_s(tmp_path: Path, kind: str):
    ids = ["b", "好", "a", "é", "a1", "Z", "😀", "\uffff"]
    rows = [{"id": id, "text": f"text {id}", "image": f"{id}.jpg", "label": id} for id in ids]
    pairs = load_pairs(write_manifest(tmp_path / f"p.{kind}", rows))
    assert pairs.ids == sorted(ids)
    for pair in pairs:
        assert (pair.text, pair.image) == (f"text {pair.id}", tmp_path / f"{pair.id}.jpg")
        assert pairs.label_names[pair.label] == pair.id


# Texts in files


@pytest.fixture
def in_files(tmp_path: Path) -> Path:
    for name in "abc":
        (tmp_path / f"{name}.txt").write_text(f"of {name}")
    rows = [{"id": str(number), "text": "", "text_path": f"{name}.txt"} for number, name in enumerate("cabd")]
    rows[2] |= {"text": "in the table", "text_path": ""}
    return write_manifest(tmp_path / "p.csv", [{**row, "image": "x.jpg"} for row in rows])


def test_texts_of_many_files_are_read_when_they_are_asked_for(in_files: Path, monkeypatch: pytest.MonkeyPatch):
    pairs = load_pairs(in_files)
    assert pairs.text_counts == {"utf-8": 3, "missing": 1}
    monkeypatch.setattr(listing, "MOST_FILES", 2)
    later = load_pairs(in_files)
    assert later.text_counts == {"utf-8": 1, "in files that are read when needed": 3}
    assert "texts: 1 utf-8, 3 in files that are read when needed" in later.summary()
    assert [pair.text for pair in later] == [pair.text for pair in pairs] == ["of c", "of a", "in the table", ""]
    (in_files.parent / "a.txt").write_text("changed")
    assert (later[1].text, later.select(["1"])[0].text, pairs[1].text) == ("changed", "changed", "of a")
    part: Pairs = later.subset(["1", "2"])
    assert [pair.text for pair in part] == ["changed", "in the table"]
