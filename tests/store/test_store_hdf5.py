from __future__ import annotations

import json
import os
import random
import re
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from conftest import ROOT
from stores import IDS, MADE_BY, error_of, made, write, written

from frozenfusion.store.reader import FeatureStore
from frozenfusion.store.status import MISSING, OK, PENDING
from frozenfusion.store.writer import StoreWriter
from frozenfusion.utils.errors import UserError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "features.h5"


def test_any_hdf5_reader_finds_what_the_format_page_says(path: Path) -> None:
    StoreWriter.create(path, IDS, (2, 3), "float16", {**MADE_BY, "note": "é"}, {"torch": "2.13.0"}).close()
    assert path.read_bytes()[8] == 0  # the first version of the superblock: every HDF5 since 1.0 opens it
    with h5py.File(path) as file:
        assert {name: (data.shape, data.dtype.str) for name, data in file.items()} == {
            "features": ((5, 2, 3), "<f2"),
            "ids": ((5,), "|S1"),
            "status": ((5,), "|u1"),
            "digest": ((5, 16), "|u1"),
            "stat": ((5, 2), "<i8"),
            "crc32": ((5,), "<u4"),
            "check": ((5,), "<u8"),
        }
        for data in file.values():
            assert data.chunks is None
            assert data.id.get_create_plist().get_alloc_time() == h5py.h5d.ALLOC_TIME_EARLY
            assert data.id.get_offset() % 64 == 0
        assert h5py.check_string_dtype(file["ids"].dtype) == ("utf-8", 1)
        assert json.loads(file.attrs["fingerprint"]) == {**MADE_BY, "note": "é"}
        assert file.attrs["fingerprint.backbone"] == b"efficientnet-b7"
        assert file.attrs["fingerprint.image_size"] == 224
        assert file.attrs["format_version"] == 2
        assert file.attrs["created_by"].startswith(b"frozenfusion ")
    store = FeatureStore(path)
    assert store.fingerprint["note"] == "é"
    assert store.attributes["torch"] == "2.13.0"


def test_the_examples_of_the_format_page_work(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["1001", "1002", "1003"]
    with StoreWriter.create(path, names, (3,), "float32", MADE_BY) as writer:
        write(writer, [0, 1])
        writer.mark([2], MISSING)
    monkeypatch.chdir(path.parent)
    page = (ROOT / "cache" / "README.md").read_text(encoding="utf-8")
    examples = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert examples
    for example in examples:
        code = re.sub(r'"cache/[^"]*"', repr(str(path)), example)
        scope: dict[str, object] = {}
        exec(compile(code, "cache/README.md", "exec"), scope)
        assert np.array_equal(scope["vector"], [1, 1, 1])


def test_a_disk_that_cannot_hold_the_rows_is_told_before_anything_is_computed(path: Path) -> None:
    message = error_of(lambda: made(path, shape=(2**54,)))
    assert "features.h5" in message
    assert not list(path.parent.iterdir())


def spoiled(path: Path, change: Callable[[h5py.File], None]) -> None:
    with h5py.File(path, "r+") as file:
        change(file)


def replaced(name: str, **options: object) -> Callable[[h5py.File], None]:
    """Make dataset `name` again, with the options."""

    def change(file: h5py.File) -> None:
        data = file[name][...]
        del file[name]
        file.create_dataset(name, **{"data": data, **options})

    return change


def linked(link: object) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        del file["features"]
        file["features"] = link

    return change


def virtual(file: h5py.File) -> None:
    del file["features"]
    layout = h5py.VirtualLayout((5, 3), "<f4")
    layout[:] = h5py.VirtualSource("/etc/passwd", "x", (5, 3))
    file.create_virtual_dataset("features", layout)


def external(file: h5py.File) -> None:
    del file["features"]
    file.create_dataset("features", (5, 3), "<f4", external=[("/etc/passwd", 0, 60)])


def many_attributes(file: h5py.File) -> None:
    for i in range(600):
        file.attrs[f"a{i}"] = i


FOREIGN: dict[str, Callable[[h5py.File], None]] = {
    "no format": lambda file: file.attrs.__delitem__("format"),
    "other format": lambda file: file.attrs.modify("format_version", 3),
    "no ids checksum": lambda file: file.attrs.__delitem__("ids_crc32"),
    "fingerprint not JSON": lambda file: file.attrs.create("fingerprint", np.bytes_(b"{{{")),
    "fingerprint a list": lambda file: file.attrs.create("fingerprint", np.bytes_(b"[1]")),
    "fingerprint of lists": lambda file: file.attrs.create("fingerprint", np.bytes_(b"[" * 30_000)),
    "fingerprint an array": lambda file: file.attrs.create("fingerprint", np.zeros(9)),
    "many attributes": many_attributes,
    "no features": lambda file: file.__delitem__("features"),
    "no crc32": lambda file: file.__delitem__("crc32"),
    "group": lambda file: (file.__delitem__("stat"), file.create_group("stat")),
    "chunked": replaced("features", chunks=(1, 3)),
    "compressed": replaced("features", compression="gzip"),
    "float64": replaced("features", dtype="<f8"),
    "big endian": replaced("features", dtype=">f4"),
    "one axis": replaced("features", data=np.zeros(5, np.float32)),
    "no columns": replaced("features", data=np.zeros((5, 0), np.float32)),
    "statuses for others": replaced("status", data=np.zeros(6, np.uint8)),
    "ids as numbers": replaced("ids", data=np.arange(5)),
    "ids of any length": replaced("ids", data=["a", "b", "c", "d", "e"], dtype=h5py.string_dtype()),
    "ids not sorted": replaced("ids", data=np.array([b"b", b"a", b"c", b"d", b"e"])),
    "unknown status": replaced("status", data=np.full(5, 9, np.uint8)),
    "soft link": linked(h5py.SoftLink("/crc32")),
    "external link": linked(h5py.ExternalLink("/etc/passwd", "/features")),
    "external storage": external,
    "virtual": virtual,
}


@pytest.mark.parametrize("change", FOREIGN.values(), ids=FOREIGN.keys())
def test_other_hdf5_files_are_refused_and_left_as_they_are(path: Path, change: Callable[[h5py.File], None]) -> None:
    written(path)
    spoiled(path, change)
    before = path.read_bytes()
    for action in (
        lambda: FeatureStore(path),
        lambda: StoreWriter.open(path, MADE_BY),
        lambda: StoreWriter.extend(path, ["z"], MADE_BY),
    ):
        assert "features.h5" in error_of(action)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_a_file_of_another_version_is_told_as_such(path: Path) -> None:
    written(path)
    spoiled(path, FOREIGN["other format"])
    assert "format version 3" in error_of(lambda: FeatureStore(path))


def test_what_people_add_to_a_file_is_no_obstacle(path: Path) -> None:
    written(path)

    def notes(file: h5py.File) -> None:
        file.attrs["remark"] = "mine"
        file.attrs["list"] = [1, 2]
        file["captions"] = [1.0]

    spoiled(path, notes)
    assert FeatureStore(path).gather([4])[0, 0] == 4


@pytest.mark.parametrize(
    "content", [b"", b"<html>", b"\x89HDF\r\n\x1a\n", bytes(4096), b"\x89HDF\r\n\x1a\n" + bytes(4096)]
)
def test_files_that_are_no_hdf5_are_refused_and_left_as_they_are(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    error_of(lambda: FeatureStore(path))
    error_of(lambda: StoreWriter.open(path, MADE_BY))
    assert path.read_bytes() == content


def test_truncated_files_are_refused(path: Path) -> None:
    written(path)
    whole = path.read_bytes()
    for length in range(1, len(whole), 331):
        path.write_bytes(whole[:length])
        error_of(lambda: FeatureStore(path))


def test_paths_that_are_no_files_are_refused(path: Path) -> None:
    assert "no such" in error_of(lambda: FeatureStore(path))
    assert "no such" in error_of(lambda: StoreWriter.open(path.parent / "mistyped" / "x.h5", MADE_BY))
    assert not list(path.parent.iterdir())
    os.mkfifo(path)
    error_of(lambda: FeatureStore(path))
    error_of(lambda: FeatureStore(path.parent))
    error_of(lambda: made(path))
    (path.parent / "file").touch()
    error_of(lambda: made(path.parent / "file" / "x.h5"))


def not_padding(content: bytes) -> list[int]:
    """The places that are not amid zeros."""
    return [place for place in range(len(content)) if any(content[max(0, place - 16) : place + 16])]


def test_flipped_bits_are_found_or_refused_and_never_crash(path: Path) -> None:
    store = written(path)
    whole, features = path.read_bytes(), store.spans["features"]
    chance = random.Random(0)
    for row in range(5):
        spoilt = bytearray(whole)
        spoilt[features.offset + row * 12 + chance.randrange(12)] ^= 1 << chance.randrange(8)
        path.write_bytes(spoilt)
        assert FeatureStore(path).damaged_rows().tolist() == [row]
    places = not_padding(whole)
    for _ in range(100):
        spoilt = bytearray(whole)
        for _ in range(chance.choice([1, 2, 8])):
            spoilt[chance.choice(places)] ^= 1 << chance.randrange(8)
        path.write_bytes(spoilt)
        try:
            store = FeatureStore(path)
            store.damaged_rows()
            store.names()
            store.counts()
        except UserError:
            continue
        assert store.n == 5


def test_a_pending_row_whose_status_flips_to_ok_is_found(path: Path) -> None:
    span = written(path, [0, 1]).spans["status"]
    spoilt = bytearray(path.read_bytes())
    spoilt[span.offset + 4] ^= 1
    path.write_bytes(spoilt)
    assert FeatureStore(path).damaged_rows().tolist() == [4]


def test_no_flipped_bit_anywhere_changes_what_a_reader_is_told(path: Path) -> None:
    """But that a row may look pending, and is computed again."""
    with made(path) as writer:
        write(writer, [0, 1, 2])
        writer.mark([3], MISSING, [b"d" * 16], [(5, 6)])
    expected = FeatureStore(path)
    whole, kept = path.read_bytes(), expected.check
    assert kept is not None
    header = not_padding(whole)[::23]
    rows = [place for span in expected.spans.values() for place in range(span.offset, span.end)]
    for place in (*header, *rows):
        spoilt = bytearray(whole)
        spoilt[place] ^= 1 << place % 8
        path.write_bytes(spoilt)
        try:
            store = FeatureStore(path)
            settled = store.require_rows(IDS[:4]).tolist()
            store.require_undamaged(np.flatnonzero(store.status == OK))
        except UserError:
            continue
        assert settled == [0, 1, 2, 3]
        assert (store.fingerprint, store.attributes) == (expected.fingerprint, expected.attributes)
        for name in ("ids", "features", "digest", "stat"):
            assert np.array_equal(getattr(store, name)[settled], getattr(expected, name)[settled]), (place, name)
        assert store.status[:4].tolist() == expected.status[:4].tolist()
        assert not len(store.damaged_rows()) or store.status[4] != PENDING


def test_a_writer_does_not_build_on_damage(path: Path) -> None:
    span = written(path).spans["digest"]
    spoilt = bytearray(path.read_bytes())
    spoilt[span.offset + 2 * 16] ^= 4
    path.write_bytes(spoilt)
    assert FeatureStore(path).damaged_rows().tolist() == [2]
    for ids in ([], ["z"]):
        assert "damaged" in error_of(lambda ids=ids: StoreWriter.extend(path, ids, MADE_BY))
    assert path.read_bytes() == spoilt


def test_a_new_stat_is_checked_too(path: Path) -> None:
    written(path)
    with StoreWriter.open(path, MADE_BY) as writer:
        writer.set_stat([1, 3], [(100, 200), (300, 400)])
    store = FeatureStore(path)
    assert store.counts()["ok"] == 5
    assert store.stat[[1, 3]].tolist() == [[100, 200], [300, 400]]
    assert not len(store.damaged_rows())
