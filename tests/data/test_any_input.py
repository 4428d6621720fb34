"""Whatever lies where pairs or options are expected, it is read or refused in one line; nothing means another thing."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import sys
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from frozenfusion.cli import parsing
from frozenfusion.cli.train import TrainOptions
from frozenfusion.data.pairs import Pairs, load_pairs
from frozenfusion.utils.errors import UsageError, UserError
from frozenfusion.utils.progress import log

KINDS = ("csv", "tsv", "jsonl", "parquet")
PROPERTY = settings(max_examples=60)


@pytest.fixture(autouse=True)
def told(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is logged reaches caplog, even after a command that kept it for the terminal."""
    monkeypatch.setattr(log, "propagate", True)


words = st.text(max_size=8) | st.sampled_from(["a", "nan", "1.0", "é", "e\u0301", "../x", "x" * 300, "\ud800", "train"])
cells = words | st.none() | st.booleans() | st.integers() | st.floats() | st.lists(words, max_size=1)
columns = st.sampled_from(["id", "image", "text", "text_path", "label", "split", "other"])
rows = st.lists(st.dictionaries(columns, cells, max_size=7), max_size=4)


def as_bytes(table: list[dict[str, Any]], kind: str) -> bytes:
    """A manifest that has the columns it needs, and any cells."""
    table = [{"id": str(number), "image": "a.jpg", "text": "x", **row} for number, row in enumerate(table)]
    if kind == "jsonl":
        return "".join(json.dumps(row) + "\n" for row in table).encode()
    if kind == "parquet":
        arrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        plain = [{name: repr(of) if isinstance(of, list) else of for name, of in row.items()} for row in table]
        names = {name for row in plain for name in row}
        written = io.BytesIO()
        kept = {name: [_text(row.get(name)) for row in plain] for name in sorted(names)}
        parquet.write_table(arrow.table(kept), written)
        return written.getvalue()
    lines = io.StringIO(newline="")
    names = sorted({name for row in table for name in row})
    writer = csv.DictWriter(lines, names, delimiter="\t" if kind == "tsv" else ",", restval="")
    writer.writeheader()
    writer.writerows(table)
    return lines.getvalue().encode("utf-8", "replace")


def _text(cell: Any) -> str | None:
    return None if cell is None else str(cell).encode("utf-8", "replace").decode()


def read(path: Path) -> Pairs | None:
    """The pairs, or None where they are refused; whatever else happens is a failure."""
    try:
        pairs = load_pairs(path)
    except UserError as error:
        assert "\n" not in str(error)  # noqa: PT017
        assert str(error).startswith(str(path.parent))  # noqa: PT017
        return None
    json.dumps([pairs.label_names, pairs.ids], ensure_ascii=False).encode()
    assert pairs.summary()
    return pairs


@pytest.mark.parametrize("kind", KINDS)
@PROPERTY
@given(content=st.binary(max_size=200))
def test_any_bytes_are_a_manifest_or_refused(tmp_path: Path, kind: str, content: bytes) -> None:
    (tmp_path / f"p.{kind}").write_bytes(content)
    read(tmp_path / f"p.{kind}")


@pytest.mark.parametrize("kind", KINDS)
@PROPERTY
@given(table=rows)
def test_any_cells_are_pairs_or_refused(tmp_path: Path, kind: str, table: list[dict[str, Any]]) -> None:
    (tmp_path / f"p.{kind}").write_bytes(as_bytes(table, kind))
    pairs = read(tmp_path / f"p.{kind}")
    if pairs is not None:
        assert len(pairs) == len(table)


@PROPERTY
@given(label_file=st.binary(max_size=60), text=st.binary(max_size=60), name=st.sampled_from(["ID-label", "train"]))
def test_any_label_file_and_text_are_pairs_or_refused(tmp_path: Path, label_file: bytes, text: bytes, name: str):
    folder = tmp_path / "data"
    folder.mkdir(exist_ok=True)
    (folder / "1.txt").write_bytes(text)
    (folder / "1.jpg").touch()
    for other in ("ID-label", "train"):
        (tmp_path / f"{other}.txt").unlink(missing_ok=True)
    header = b"ID,label\n1,0\n" if name == "ID-label" else b"guid,tag\n1,positive\n"
    (tmp_path / f"{name}.txt").write_bytes(header + label_file)
    try:
        assert load_pairs(tmp_path).summary()
    except UserError as error:
        assert "\n" not in str(error)  # noqa: PT017


options = st.dictionaries(st.sampled_from(["epochs", "lr", "fusion", "data", "head_options", "run", "x"]), cells)


@settings(PROPERTY, max_examples=30)
@given(content=st.binary(max_size=80) | options.map(lambda values: json.dumps(values).encode()))
@example(content=b'{"data": "\\ud800"}')
def test_any_configuration_gives_options_or_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "o.yaml").write_bytes(content)
    with contextlib.suppress(UsageError):
        parsing.parse(TrainOptions, ["--config", str(tmp_path / "o.yaml")])


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("a: &a [x]\nb: *a\n", r"\*a stands for another value"),
        ("epochs: " + "9" * 5000, "not valid YAML"),
        ("[" * 5_000, "not valid YAML"),
        ("fusion: [[concat]]", "fusion is"),
        ('run: "a\\0b"', "run is"),
        ("lr: .inf", "`lr` must be a number"),
        ("text_encoder: ''", "`text_encoder` is empty"),
    ],
)
def test_a_configuration_that_means_nothing_is_refused(tmp_path: Path, content: str, told: str) -> None:
    (tmp_path / "o.yaml").write_text(content)
    with pytest.raises(UsageError, match=told):
        parsing.parse(TrainOptions, ["data", "--config", str(tmp_path / "o.yaml")])


@pytest.mark.parametrize(
    "words", [["x" * 300], ["data", "--run", "x" * 300], ["data", "--text-encoder", "a/" + "x" * 300]]
)
def test_a_name_that_no_file_system_has_is_refused(words: list[str]) -> None:
    with pytest.raises(UsageError, match="longer than the 255 bytes of a name"):
        parsing.parse(TrainOptions, words)


# Labels


@pytest.mark.parametrize("kind", KINDS)
def test_a_label_is_the_same_class_from_every_kind_of_table(tmp_path: Path, kind: str) -> None:
    labels: list[Any] = [1.0, 2.5, None, 10.0]
    path = tmp_path / f"p.{kind}"
    if kind == "parquet":
        arrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        ids = [str(number) for number in range(4)]
        parquet.write_table(arrow.table({"id": ids, "image": ids, "text": ids, "label": labels}), path)
    else:
        path.write_bytes(as_bytes([{"label": label} for label in labels], kind))
    pairs = load_pairs(path)
    assert [None if pair.label is None else pairs.label_names[pair.label] for pair in pairs] == ["1", "2.5", None, "10"]


@pytest.mark.parametrize("kind", KINDS)
def test_empty_cells_by_another_name_are_no_classes_and_told(tmp_path: Path, caplog, kind: str) -> None:
    labels = ["nan", "None", "NA", "", "null", "<NA>", "happy"]
    (tmp_path / f"p.{kind}").write_bytes(as_bytes([{"label": label} for label in labels], kind))
    pairs = load_pairs(tmp_path / f"p.{kind}")
    assert pairs.label_names == ("happy",)
    assert pairs.labels.tolist() == [-1] * 6 + [0]
    assert "read as no label: 1 <NA>, 1 NA, 1 None, 1 nan" in caplog.text


def test_labels_that_look_like_ids_are_told(tmp_path: Path, caplog) -> None:
    (tmp_path / "p.csv").write_bytes(as_bytes([{"label": f"user {number}"} for number in range(2000)], "csv"))
    assert len(load_pairs(tmp_path / "p.csv").label_names) == 2000
    assert "2,000 of the 2,000 classes have one pair alone" in caplog.text


def test_accents_of_two_forms_are_one_class(tmp_path: Path) -> None:
    forms = [{"label": unicodedata.normalize(form, "café")} for form in ("NFC", "NFD")]
    (tmp_path / "p.csv").write_bytes(as_bytes(forms, "csv"))
    assert load_pairs(tmp_path / "p.csv").label_names == (unicodedata.normalize("NFC", "café"),)


# What tables and files can hold


def test_a_long_cell_is_read(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_bytes(as_bytes([{"text": "x" * 200_000}], "csv"))
    assert len(load_pairs(tmp_path / "p.csv")[0].text) == 200_000


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf_16_is_read_by_its_mark(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "1.txt").write_bytes("\ufeffschön 😀".encode(encoding))
    (tmp_path / "p.csv").write_bytes("\ufeffid,text_path,image,label\n1,1.txt,ü.jpg,ja\n".encode(encoding))
    pairs = load_pairs(tmp_path / "p.csv")
    assert (pairs[0].text, pairs[0].image.name, pairs.text_counts) == ("schön 😀", "ü.jpg", {"utf-16": 1})


def test_a_time_that_python_does_not_have_is_told(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    times = arrow.array([1_700_000_000_000_000_001], arrow.timestamp("ns"))
    parquet.write_table(arrow.table({"id": times, "image": ["a"], "text": ["a"]}), tmp_path / "p.parquet")
    assert read(tmp_path / "p.parquet") is None


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS finds a name in either form by itself")
@pytest.mark.parametrize(("listed", "there"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_a_file_whose_name_has_the_other_form_of_accents_is_found(tmp_path: Path, listed: str, there: str) -> None:
    name, id = (unicodedata.normalize(form, "é") for form in (there, listed))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / f"{name}.jpg").touch()
    (tmp_path / "data" / f"{name}.txt").write_text("oui")
    (tmp_path / "ID-label.txt").write_text(f"ID,label\n{id},0\n", encoding="utf-8")
    pairs = load_pairs(tmp_path)
    assert (pairs.ids, pairs[0].text, pairs[0].image.exists(), pairs.dropped) == ([id], "oui", True, {})
    (tmp_path / "p.csv").write_text(f"id,text_path,image\n1,data/{id}.txt,data/{id}.jpg\n", encoding="utf-8")
    pairs = load_pairs(tmp_path / "p.csv")
    assert (pairs[0].text, pairs[0].image.exists()) == ("oui", True)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_a_file_name_that_is_not_utf_8_is_named(tmp_path: Path, caplog) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "1.jpg").touch()
    with open(os.fsencode(tmp_path / "data") + b"/caf\xe9.jpg", "wb"):
        pass
    (tmp_path / "ID-label.txt").write_text("ID,label\n1,0\n")
    assert load_pairs(tmp_path).ids == ["1"]
    assert r"caf\xe9.jpg" in caplog.text


@pytest.mark.parametrize("name", ["x" * 300, "x" * 300 + ".csv", "x" * 300 + "/p.csv"])
def test_a_path_that_no_file_system_has_is_told(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError):
        load_pairs(tmp_path / name)


# Links


@pytest.fixture
def stranger(tmp_path: Path) -> Path:
    """A manifest of five pairs, whose texts and images are links, inside the folder and out of it."""
    folder = tmp_path / "data"
    (folder / "own").mkdir(parents=True)
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "a.txt").write_text("password")
    (folder / "own" / "a.txt").write_text("hello")
    try:
        (folder / "inside.txt").symlink_to(folder / "own" / "a.txt")
        (folder / "out.txt").symlink_to(tmp_path / "secret" / "a.txt")
        (folder / "up.txt").symlink_to(Path("..") / "secret" / "a.txt")
        (folder / "folder").symlink_to(tmp_path / "secret", target_is_directory=True)
    except OSError:
        pytest.skip("links may not be made here")
    names = ("own/a.txt", "inside.txt", "out.txt", "up.txt", "folder/a.txt")
    lines = [f"{number},{name},{name}\n" for number, name in enumerate(names)]
    (folder / "p.csv").write_text("id,text_path,image\n" + "".join(lines))
    return folder / "p.csv"


def test_links_are_followed_unless_they_are_forbidden_to_lead_out(stranger: Path, caplog) -> None:
    assert [pair.text for pair in load_pairs(stranger)] == ["hello", "hello", *["password"] * 3]
    pairs = load_pairs(stranger, follow_links=False)
    assert [pair.text for pair in pairs] == ["hello", "hello", "", "", ""]
    assert [pair.image.exists() for pair in pairs] == [True, True, False, False, False]
    assert "6 texts and images are links out of the folder, and count as missing: 2 (image), 2 (text)" in caplog.text
    assert pairs[2].image.as_posix().endswith("not followed, a link out of the data folder/out.txt")


def test_a_label_file_that_is_a_link_is_refused_where_links_are(tmp_path: Path, stranger: Path) -> None:
    folder = tmp_path / "other"
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "1.jpg").touch()
    (tmp_path / "labels.txt").write_text("ID,label\n1,0\n")
    (folder / "ID-label.txt").symlink_to(tmp_path / "labels.txt")
    assert len(load_pairs(folder)) == 1
    with pytest.raises(UserError, match="a link that leads out of"):
        load_pairs(folder, follow_links=False)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes with names are POSIX's")
@pytest.mark.parametrize("kind", [*KINDS, "yaml"])
def test_a_pipe_is_not_waited_for(tmp_path: Path, kind: str) -> None:
    os.mkfifo(tmp_path / f"p.{kind}")
    with pytest.raises(UserError, match="not a regular file"):
        if kind == "yaml":
            parsing.parse(TrainOptions, ["--config", str(tmp_path / "p.yaml")])
        else:
            load_pairs(tmp_path / f"p.{kind}")
