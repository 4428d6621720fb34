"""Every input layout becomes one sequence ordered by id; what is wrong is told with its file and line."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from conftest import write_manifest
from hypothesis import given
from hypothesis import strategies as st

from frozenfusion.data import records
from frozenfusion.data.folders import joined_label
from frozenfusion.data.manifests import label_names
from frozenfusion.data.pairs import load_pairs
from frozenfusion.data.records import decode_text
from frozenfusion.utils.errors import UserError

SENTIMENTS = ("positive", "neutral", "negative")


def write(root: Path, files: dict[str, str | bytes]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return root


def with_data(root: Path, *ids: str) -> Path:
    return write(root, {f"data/{id}{suffix}": f"text {id}" for id in ids for suffix in (".jpg", ".txt")})


def failure(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        load_pairs(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# The reference's layout


def test_reads_the_reference_layout_with_its_split(tmp_path):
    with_data(tmp_path, "10", "2", "3")
    write(
        tmp_path,
        {
            "ID-label.txt": "ID,label\n10,0\n2,1\n3,2\n",
            "ID-label-train.txt": "ID,label\n2,1\n",
            "ID-label-test.txt": "ID,label\n10,0\n",
        },
    )
    pairs = load_pairs(tmp_path)
    assert (pairs.layout, pairs.label_names) == ("reference", SENTIMENTS)
    assert pairs.ids == ["10", "2", "3"]
    assert [(pair.label, pair.split) for pair in pairs] == [(0, "test"), (1, "train"), (2, None)]
    assert pairs.labels.dtype == np.int64
    assert pairs[0].text == "text 10"
    assert pairs[0].image == tmp_path / "data" / "10.jpg"


def test_split_files_alone_are_enough(tmp_path):
    with_data(tmp_path, "1", "2", "3")
    for id, part in ("1", "train"), ("2", "val"), ("3", "test"):
        write(tmp_path, {f"ID-label-{part}.txt": f"ID,label\n{id},1\n"})
    assert [pair.split for pair in load_pairs(tmp_path)] == ["train", "val", "test"]


@pytest.mark.parametrize(
    "content",
    [
        "ID,label\n1,0\n2,2\n",
        "1,0\n2,2",
        "\ufeffID,label\r\n1,0\r\n2,2\r\n\r\n",
        "\nID,label\n\n 1 , 0 \n2,2\n",
        "#ID\t,label\r1,0\r2,2",
    ],
)
def test_headers_byte_order_marks_line_ends_and_blanks_do_not_matter(tmp_path, content):
    write(with_data(tmp_path, "1", "2"), {"ID-label.txt": content})
    pairs = load_pairs(tmp_path)
    assert pairs.ids == ["1", "2"]
    assert pairs.labels.tolist() == [0, 2]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("2,3", "unknown label '3'"),
        ("2,positive", "unknown label 'positive'"),
        ("2,", "unknown label ''"),
        ("2", "malformed line '2'"),
        ("2,1,1", "malformed line"),
        ("1,0", "was already given at"),
        (",1", "empty id"),
        ("../2,1", "is a path"),
        ("/etc/passwd,1", "is a path"),
        ("..,1", "is a path"),
        ("a\\b,1", "is a path"),
        ("a\0b,1", "control characters"),
        ("a\x1b[2Jb,1", "control characters"),
        ("é" * 128 + ",1", "longer than 255 bytes"),
    ],
)
def test_a_bad_line_is_told_with_file_and_line(tmp_path, line, told):
    write(with_data(tmp_path, "1"), {"ID-label.txt": f"ID,label\n1,0\n\n{line}\n"})
    message = failure(tmp_path)
    assert message.startswith(f"{tmp_path}/ID-label.txt:4: ")
    assert told in message
    assert message.isprintable()


def test_an_unknown_label_on_a_first_line_is_no_header(tmp_path):
    write(with_data(tmp_path, "1"), {"ID-label.txt": "1,7\n"})
    assert "ID-label.txt:1: unknown label '7'" in failure(tmp_path)


def test_an_id_in_two_parts_is_told(tmp_path):
    write(with_data(tmp_path, "1"), {"ID-label-train.txt": "ID,label\n1,0\n", "ID-label-test.txt": "ID,label\n1,0\n"})
    message = failure(tmp_path)
    assert "ID-label-test.txt:2" in message
    assert "ID-label-train.txt:2" in message


def test_parts_that_do_not_fit_the_whole_are_told(tmp_path):
    write(with_data(tmp_path, "1"), {"ID-label.txt": "ID,label\n1,0\n", "ID-label-train.txt": "ID,label\n1,1\n"})
    assert "another label than at" in failure(tmp_path)
    write(tmp_path, {"ID-label-train.txt": "ID,label\n2,1\n"})
    assert "ID-label-train.txt:2: id '2' is not in ID-label.txt" in failure(tmp_path)


def test_label_files_without_pairs_or_data_are_told(tmp_path):
    write(tmp_path, {"ID-label.txt": "ID,label\n"})
    assert f"{tmp_path}/data" in failure(tmp_path)
    (tmp_path / "data").mkdir()
    assert "no pairs" in failure(tmp_path)


def test_pairs_without_their_files_stay(tmp_path):
    write(with_data(tmp_path, "1"), {"ID-label.txt": "ID,label\n1,0\n2,1\n"})
    pairs = load_pairs(tmp_path)
    assert pairs[1].text == ""
    assert pairs[1].image == tmp_path / "data" / "2.jpg"
    assert pairs.text_counts == {"utf-8": 1, "missing": 1}


def test_files_that_no_label_file_lists_are_counted(tmp_path):
    write(with_data(tmp_path, "1", "2", "3"), {"ID-label.txt": "ID,label\n1,0\n"})
    assert load_pairs(tmp_path).dropped == {"not in the label files": 2}


def test_images_with_other_endings_are_found_and_jpg_comes_first(tmp_path):
    write(tmp_path, {"ID-label.txt": "a,0\nb,0\nc.d,0\n"})
    write(tmp_path / "data", dict.fromkeys(("a.PNG", "b.webp", "b.jpg", "b.png", "c.d.jpeg", ".a.jpg", "a.doc"), b""))
    assert [pair.image.name for pair in load_pairs(tmp_path)] == ["a.PNG", "b.jpg", "c.d.jpeg"]


# The raw archive


def test_reads_the_raw_archive_with_the_label_rule(tmp_path):
    with_data(tmp_path, *"12345")
    lines = ["1\tneutral,positive", "2\tnegative,negative", "3\tpositive,negative", "4\tnegative,neutral"]
    write(tmp_path, {"labelResultAll.txt": "ID\ttext,image\n" + "\n".join(lines) + "\n5\tneutral,neutral\n"})
    pairs = load_pairs(tmp_path)
    assert pairs.layout == "mvsa"
    assert {pair.id: pair.label for pair in pairs} == {"1": 0, "2": 2, "4": 2, "5": 1}
    assert pairs.dropped == {"contradicting labels": 1}
    assert "1 contradicting labels" in pairs.summary()


@pytest.mark.parametrize("text", SENTIMENTS)
@pytest.mark.parametrize("image", SENTIMENTS)
def test_the_label_rule_is_symmetric_and_keeps_what_agrees(text, image):
    label = joined_label(text, image)
    assert label == joined_label(image, text)
    polar = {text, image} - {"neutral"}
    assert label == ("contradicting labels" if len(polar) == 2 else next(iter(polar), "neutral"))


@pytest.mark.parametrize("line", ["2\tgood,positive", "2\tpositive", "2,positive,positive", "2\ta,b\tc,d"])
def test_a_bad_line_of_the_raw_archive_is_told(tmp_path, line):
    write(with_data(tmp_path, "1"), {"labelResultAll.txt": f"ID\ttext,image\n1\tneutral,neutral\n{line}\n"})
    assert "labelResultAll.txt:3: " in failure(tmp_path)


# The course release


def test_reads_the_course_release(tmp_path):
    with_data(tmp_path, "4597", "8", "9")
    write(
        tmp_path,
        {"train.txt": "guid,tag\n4597,negative\n8,positive\n", "test_without_label.txt": "guid,tag\n9,null\n"},
    )
    pairs = load_pairs(tmp_path)
    assert pairs.layout == "course"
    assert [(pair.id, pair.label, pair.split) for pair in pairs] == [
        ("4597", 2, "train"),
        ("8", 0, "train"),
        ("9", None, "test"),
    ]
    assert pairs.labels.tolist() == [2, 0, -1]
    write(tmp_path, {"train.txt": "guid,tag\n8,sad\n"})
    assert "train.txt:2: unknown label 'sad'" in failure(tmp_path)


# Folders without labels


@pytest.mark.parametrize("inner", ["data", "."])
def test_a_folder_without_labels_is_read_for_prediction(tmp_path, inner):
    write(tmp_path / inner, {"b.jpg": b"", "b.txt": "hello", "a.png": b""})
    pairs = load_pairs(tmp_path)
    assert pairs.layout == "unlabelled"
    assert [(pair.id, pair.text, pair.label, pair.split) for pair in pairs] == [
        ("a", "", None, None),
        ("b", "hello", None, None),
    ]


def test_notes_beside_images_are_no_pairs(tmp_path):
    write(tmp_path, {"a.jpg": b"", "README.txt": "notes"})
    assert load_pairs(tmp_path).ids == ["a"]


def test_what_is_no_data_is_told(tmp_path):
    assert "no image–text pairs" in failure(tmp_path)
    assert "no such folder" in failure(tmp_path / "none")
    assert "not a manifest" in failure(write(tmp_path, {"pairs.xls": b""}) / "pairs.xls")
    assert f"file:///a%20b.csv: a file of this machine is given by its path: {Path('/a b.csv')}" in failure(
        "file:///a%20b.csv"
    )
    assert "'http://host/posts.csv': only s3://" in failure("http://host/posts.csv")


# Texts


@pytest.mark.parametrize(
    ("data", "text", "how"),
    [
        (b"plain \r\n", "plain", "utf-8"),
        ("\ufeffmarked …\n".encode(), "marked …", "utf-8"),
        ("cut …\n".encode("gb18030"), "cut …", "gb18030"),
        (b"\xff\xfa\xfe ok", "\ufffd\ufffd\ufffd ok", "replaced"),
        (b" \r\n\t", "", "empty"),
        (b"", "", "empty"),
        (b"one\ntwo\r\nthree", "one\ntwo\r\nthree", "utf-8"),
    ],
)
def test_texts_decode_as_utf8_else_gb18030_else_with_replacement(data, text, how):
    assert decode_text(data) == (text, how)


@given(st.binary(max_size=40))
def test_any_bytes_become_a_text_that_can_be_encoded(data):
    text, how = decode_text(data)
    assert text == text.strip()
    assert text.encode()[:0] == b""
    assert how in {"utf-8", "gb18030", "replaced", "empty"}


def test_texts_are_counted_by_how_they_were_read(tmp_path):
    texts = {"a": b"x", "b": b"\xa1\xad", "c": b"\xff\xff\xff", "d": b"", "e": b"one\ntwo", "f": b"x\n"}
    write(tmp_path, {f"data/{id}.txt": text for id, text in texts.items()})
    write(tmp_path, {"ID-label.txt": "".join(f"{id},0\n" for id in "abcdefg")})
    counts = load_pairs(tmp_path).text_counts
    assert counts == {"utf-8": 3, "gb18030": 1, "replaced": 1, "empty": 1, "missing": 1, "several lines": 1}


def test_a_pipe_or_folder_as_text_is_missing_and_never_waited_for(tmp_path):
    write(tmp_path, {"ID-label.txt": "a,0\nb,0\nc,0\n"})
    (tmp_path / "data" / "b.txt").mkdir(parents=True)
    os.mkfifo(tmp_path / "data" / "a.txt")
    (tmp_path / "data" / "c.txt").symlink_to(tmp_path / "data" / "c.txt")
    assert load_pairs(tmp_path).text_counts == {"missing": 3}


def test_an_id_that_fits_but_whose_file_name_does_not_has_no_text(tmp_path):
    (tmp_path / "data").mkdir()
    assert load_pairs(write(tmp_path, {"ID-label.txt": f"{'x' * 254},0\n"})).text_counts == {"missing": 1}


def test_of_a_huge_text_the_beginning_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "MAX_TEXT_BYTES", 10)
    write(with_data(tmp_path, "1"), {"ID-label.txt": "1,0\n", "data/1.txt": "ab é é é é é é é"})
    pairs = load_pairs(tmp_path)
    assert pairs[0].text == "ab é é"
    assert pairs.text_counts == {"utf-8": 1}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_text_that_may_not_be_read_is_told(tmp_path):
    write(with_data(tmp_path, "1"), {"ID-label.txt": "1,0\n"})
    (tmp_path / "data" / "1.txt").chmod(0)
    assert "permission denied" in failure(tmp_path)


# Manifests

ROWS = [
    {"id": "b", "text": 'says "hi",\nthen goes', "image": "pictures/b.jpg", "label": "2", "split": "train"},
    {"id": "a", "text": "…", "image": "pictures/a.jpg", "label": "10", "split": "test"},
    {"id": "c", "text": "", "image": "", "label": "", "split": ""},
]


def manifest(root: Path, kind: str, rows: list[dict] = ROWS) -> Path:
    return write_manifest(root / f"pairs.{kind}", rows)


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
def test_reads_a_manifest(tmp_path, kind):
    pairs = load_pairs(manifest(tmp_path, kind))
    assert (pairs.layout, pairs.path) == ("manifest", tmp_path / f"pairs.{kind}")
    assert pairs.label_names == ("2", "10")
    assert [(pair.id, pair.label, pair.split) for pair in pairs] == [
        ("a", 1, "test"),
        ("b", 0, "train"),
        ("c", None, None),
    ]
    assert pairs[1].text == 'says "hi",\nthen goes'
    assert pairs[1].image == tmp_path / "pictures" / "b.jpg"
    assert not pairs[2].image.exists()
    assert pairs.text_counts == {"utf-8": 2, "empty": 1, "several lines": 1}


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_manifest_may_name_text_files(tmp_path, kind):
    write(tmp_path, {"texts/1.txt": "cut …".encode("gb18030")})
    rows = [{"id": id, "text_path": f"texts/{id}.txt", "image": "x.jpg"} for id in "12"]
    pairs = load_pairs(manifest(tmp_path, kind, rows))
    assert [pair.text for pair in pairs] == ["cut …", ""]
    assert pairs.text_counts == {"gb18030": 1, "missing": 1}


def test_numbers_in_typed_manifests_stand_for_their_digits(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text(
        '{"id": 7, "text": "x", "image": "a", "label": 1.0}\n{"id": 8, "text": null, "image": "a", "label": NaN}\n'
    )
    pairs = load_pairs(path)
    assert pairs.ids == ["7", "8"]
    assert pairs.label_names == ("1",)
    assert pairs.labels.tolist() == [0, -1]


def test_a_manifest_from_a_spreadsheet_is_read(tmp_path):
    (tmp_path / "p.csv").write_bytes("\ufeffID,Text,Image,old.jpg\r\n1,é,a.jpg,\r\n\r\n2,b,b.jpg,x\r\n".encode())
    assert [pair.text for pair in load_pairs(tmp_path / "p.csv")] == ["é", "b"]


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ({"negative", "positive"}, SENTIMENTS),
        ({"10", "9", "a"}, ("9", "10", "a")),
        ({"sad", "happy", None}, ("happy", "sad")),
        ({None}, SENTIMENTS),
    ],
)
def test_label_names_have_a_lasting_order(labels, names):
    assert label_names(labels) == names


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
@pytest.mark.parametrize(
    ("cells", "told"),
    [
        ({"id": "a"}, "already given"),
        ({"id": "x/../../y"}, "is a path"),
        ({"image": "../secret.jpg"}, "leaves"),
        ({"image": "/etc/passwd"}, "leaves"),
        ({"image": "a/" + "x" * 300}, "longer than a file system allows"),
        ({"image": "/9j/" + "4AAQSkZJRg" * 30}, "is a picture as text: store it as a file"),
        ({"image": "data:image/png;base64,iVBO"}, "is a picture as text: store it as a file"),
        ({"text": "", "text_path": "a/../../b.txt"}, "leaves"),
        ({"split": "holdout"}, "unknown split 'holdout'"),
        ({"image": "a\x07.jpg"}, "control characters"),
    ],
)
def test_a_bad_row_is_told_with_file_and_line(tmp_path, kind, cells, told):
    good = {"id": "a", "text": "x", "text_path": "", "image": "a.jpg", "split": ""}
    message = failure(manifest(tmp_path, kind, [good, {**good, "id": "b", **cells}]))
    line = {"parquet": ": row 2: ", "jsonl": ":2: "}.get(kind, ":3: ")
    assert message.startswith(f"{tmp_path}/pairs.{kind}{line}")
    assert told in message


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("p.csv", "id,text,image\n1,x\n", "p.csv:2: malformed line: 2 cells"),
        ("p.csv", 'id,text,image\n1,"x,a\n', "malformed line"),
        ("p.csv", "id,text\n1,x\n", "p.csv:1: no column image"),
        ("p.csv", "", "no pairs"),
        ("p.csv", "id;text;image\n1;x;a.jpg\n", "p.csv:1: semicolons stand between the columns"),
        ("p.csv", "id\ttext\timage\n1\tx\ta.jpg\n", "p.csv:1: tabs stand between the columns: call it .tsv"),
        ("p.tsv", "id,text,image\n1,x,a.jpg\n", "p.tsv:1: commas stand between the columns: call it .csv"),
        ("p.csv", "1,so happy,a.JPG,positive\n", "p.csv:1: 1, so happy, a.JPG, …: the first line is a pair"),
        (
            "p.csv",
            "id,caption,image,a,b\n1,x,a.jpg,,\n",
            "no column text or text_path, but id, caption, image, a, b:",
        ),
        ("p.jsonl", '{"id": "1", "text": "x", "image": "a"}\n{"id":\n', "p.jsonl:2: malformed line"),
        ("p.jsonl", "[1]\n", "p.jsonl:1: malformed line"),
        ("p.jsonl", "[" * 100_000, "p.jsonl:1: malformed line"),
        ("p.jsonl", '{"id": ["1"], "text": "x", "image": "a"}\n', "p.jsonl:1: id is ['1']"),
        ("p.jsonl", '{"id": "1", "image": "a"}\n', "no column text or text_path"),
        ("p.jsonl", '{"id": "\\ud800", "text": "x", "image": "a"}\n', "not valid Unicode"),
        ("p.parquet", "PAR1 no", "cannot be read as Parquet"),
    ],
)
def test_a_malformed_manifest_is_told(tmp_path, name, content, told):
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    assert told in failure(write(tmp_path, {name: content}) / name)


def test_halves_of_characters_in_json_are_replaced(tmp_path):
    write(tmp_path, {"p.jsonl": '{"id": "1", "text": "a \\ud83d", "image": "a"}\n'})
    pairs = load_pairs(tmp_path / "p.jsonl")
    assert pairs[0].text == "a \ufffd"
    assert pairs.text_counts == {"replaced": 1}


def test_parquet_without_its_library_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    assert "pip install pyarrow" in failure(write(tmp_path, {"p.parquet": b""}) / "p.parquet")


def test_a_pipe_as_manifest_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "p.csv")
    assert "not a regular file" in failure(tmp_path / "p.csv")


def test_a_huge_manifest_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "MAX_TABLE_BYTES", 10)
    assert "more than 10" in failure(write(tmp_path, {"p.csv": "id,text,image\n"}) / "p.csv")


# The sequence


def test_pairs_are_a_sequence_with_positions_by_id(tmp_path):
    pairs = load_pairs(manifest(tmp_path, "jsonl"))
    assert len(pairs) == 3
    assert [pair.id for pair in pairs[1:]] == ["b", "c"]
    assert pairs.rows(["c", "z", "a"]).tolist() == [2, -1, 0]


def test_the_summary_names_layout_classes_and_texts(tmp_path):
    with_data(tmp_path, "1", "2")
    write(tmp_path, {"ID-label.txt": "1,0\n2,2\n", "data/2.txt": "…".encode("gb18030")})
    assert load_pairs(tmp_path).summary() == (
        "2 pairs (reference layout); 1 positive, 1 negative; texts: 1 utf-8, 1 gb18030"
    )


def test_the_real_sample_reads_whole(mvsa_sample):
    pairs = load_pairs(mvsa_sample)
    assert (len(pairs), pairs.layout) == (301, "reference")
    assert pairs.text_counts == {"utf-8": 242, "gb18030": 59}
    assert [sum(pair.split == part for pair in pairs) for part in ("train", "test")] == [240, 61]
    assert all(pair.image.is_file() for pair in pairs)
