from __future__ import annotations

import concurrent.futures
import errno
import json
import multiprocessing
import os
import pickle
import random
import re
import shutil
import subprocess
import sys
import tempfile
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from store_worker import SHAPE, check, fill

from frozenfusion import store as store_module
from frozenfusion.errors import UserError
from frozenfusion.images import MISSING, OK, PENDING, REFUSED, UNREADABLE
from frozenfusion.store import FeatureStore, StoreWriter

ROOT = Path(__file__).resolve().parent.parent
IDS = ["a", "b", "c", "d", "e"]
MADE_BY = {"backbone": "efficientnet-b7", "image_size": 224}

ids_of_any_kind = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=12)
few_examples = settings(max_examples=15, deadline=None)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "features.h5"


def made(path: Path, ids: list[str] = IDS, shape: tuple[int, ...] = (3,), dtype: str = "float32") -> StoreWriter:
    return StoreWriter.create(path, ids, shape, dtype, MADE_BY)


def written(path: Path, rows: list[int] | range = range(5), ids: list[str] = IDS) -> FeatureStore:
    """A store whose `rows` are ok and hold their own number, three times."""
    with made(path, ids) as writer:
        write(writer, rows)
    return FeatureStore(path)


def write(writer: StoreWriter, rows: list[int] | range) -> None:
    values = np.repeat(np.array(rows, dtype=np.float32)[:, None], 3, axis=1)
    writer.write(rows, values, [bytes([row]) * 16 for row in rows], [(row, 10 * row) for row in rows])


def error_of(action: Callable[[], object]) -> str:
    """The one line that `action` fails with."""
    with pytest.raises(UserError) as caught:
        action()
    message = str(caught.value)
    assert "\n" not in message
    return message


# ---- rows and ids


@few_examples
@given(st.sets(ids_of_any_kind, min_size=1, max_size=30), st.randoms(use_true_random=False))
def test_rows_come_back_under_their_ids_whatever_the_order_of_writing(ids: set[str], chance: random.Random) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.h5"
        order = list(range(len(ids)))
        chance.shuffle(order)
        values = np.arange(len(ids) * 6, dtype=np.float16).reshape(-1, 2, 3)
        with made(path, sorted(ids), (2, 3), "float16") as writer:
            for part in (order[::2], order[1::2]):
                writer.write(part, values[part], [bytes(16)] * len(part), np.zeros((len(part), 2)))
        store = FeatureStore(path)
        assert store.names() == sorted(ids)
        rows = store.rows([sorted(ids)[i] for i in order])
        assert rows.tolist() == order
        assert (store.gather(rows) == values[order]).all()
        assert store.finished


@few_examples
@given(st.sets(ids_of_any_kind, min_size=1, max_size=20), st.lists(st.text(max_size=15), max_size=20))
def test_ids_that_are_not_there_get_no_row(ids: set[str], others: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.h5"
        made(path, sorted(ids)).close()
        asked = [*others, *ids, *(name + "\0" for name in ids), "", "\udc80"]
        expected = [sorted(ids).index(name) if name in ids else -1 for name in asked]
        assert FeatureStore(path).rows(asked).tolist() == expected


def test_gather_takes_rows_in_any_order_and_refuses_rows_that_are_not_there(path: Path) -> None:
    store = written(path)
    assert store.gather([4, 0, 4])[:, 0].tolist() == [4, 0, 4]
    assert store.gather([]).shape == (0, 3)
    out = np.empty((2, 3), np.float32)
    assert store.gather(np.array([2, 1]), out=out) is out
    assert out[:, 0].tolist() == [2, 1]
    for wrong in ([-1], [5]):
        with pytest.raises(IndexError):
            store.gather(wrong)


def test_what_is_known_of_each_image_is_kept_with_its_row(path: Path) -> None:
    store = written(path, [1, 3])
    assert bytes(store.digest[3]) == b"\x03" * 16
    assert store.stat[3].tolist() == [3, 30]
    assert store.digest[0].tolist() == [0] * 16
    with StoreWriter.open(path, MADE_BY) as writer:
        writer.set_stat([3], [(7, 8)])
    assert FeatureStore(path).stat[3].tolist() == [7, 8]


def test_the_arrays_of_a_store_cannot_be_written(path: Path) -> None:
    store = written(path)
    with pytest.raises(ValueError, match="read-only"):
        store.features[0] = 1


@pytest.mark.parametrize(
    "ids",
    [
        pytest.param([], id="none"),
        pytest.param(["b", "a"], id="not sorted"),
        pytest.param(["a", "a"], id="twice"),
        pytest.param([""], id="empty"),
        pytest.param(["a\0b"], id="NUL"),
        pytest.param(["\udc80"], id="not text"),
        pytest.param(["é" * 513], id="too long"),
    ],
)
def test_ids_that_cannot_name_rows_are_refused(path: Path, ids: list[str]) -> None:
    error_of(lambda: made(path, ids))
    assert not list(path.parent.iterdir())


def test_absurd_shapes_are_refused(path: Path) -> None:
    error_of(lambda: made(path, shape=(0,)))
    error_of(lambda: made(path, shape=(2**62, 8)))
    with pytest.raises(ValueError, match="float64"):
        made(path, dtype="float64")
    with pytest.raises(ValueError, match=r"\(1, 2, 3\)"):
        made(path, shape=(1, 2, 3))
    assert not list(path.parent.iterdir())


# ---- commits


def test_rows_count_from_the_commit_on(path: Path) -> None:
    with made(path) as writer:
        write(writer, [1, 2])
        assert FeatureStore(path).counts()["pending"] == 5
        writer.commit()
        reader = FeatureStore(path)
        assert reader.counts() == {"pending": 3, "ok": 2, "missing": 0, "unreadable": 0, "refused": 0}
        write(writer, [0])
        writer.mark([3], MISSING)
        writer.mark([4], UNREADABLE, [b"x" * 16], [(1, 2)])
        assert not reader.finished
    assert reader.finished  # the same reader sees what was committed since
    assert reader.counts() == {"pending": 0, "ok": 3, "missing": 1, "unreadable": 1, "refused": 0}
    assert not len(reader.damaged_rows())


def test_commits_happen_by_themselves(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "SECONDS_BETWEEN_COMMITS", 0.0)
    with made(path) as writer:
        write(writer, [1])
        assert FeatureStore(path).status[1] == OK


def test_an_interrupted_block_keeps_what_was_written(path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), made(path) as writer:
        write(writer, [1, 2])
        raise KeyboardInterrupt
    assert FeatureStore(path).counts()["ok"] == 2
    assert not path.with_name("features.h5.lock").exists()


def test_only_pending_rows_are_written_and_reset_makes_them_so(path: Path) -> None:
    written(path)
    with StoreWriter.open(path, MADE_BY) as writer:
        for action in (lambda: write(writer, [1]), lambda: writer.mark([1], MISSING)):
            with pytest.raises(ValueError, match="pending"):
                action()
        with pytest.raises(ValueError):
            writer.mark([1], OK)
        writer.reset([3, 1])
        assert np.flatnonzero(FeatureStore(path).status == PENDING).tolist() == [1, 3]
        write(writer, [1])
        writer.mark([3], REFUSED)
    store = FeatureStore(path)
    assert store.features[:, 0].tolist() == [0, 1, 2, 0, 4]  # a row that is not ok holds zeros
    assert store.status.tolist() == [OK, OK, OK, REFUSED, OK]
    assert not len(store.damaged_rows())


def test_wrong_sizes_are_refused_and_leave_the_row_pending(path: Path) -> None:
    with made(path) as writer:
        for features, digests, stats in [
            (np.zeros((1, 4)), [bytes(16)], [(0, 0)]),
            (np.zeros((2, 3)), [bytes(16)], [(0, 0)]),
            (np.zeros((1, 3)), [bytes(15)], [(0, 0)]),
            (np.zeros((1, 3)), [bytes(16)], [(0, 0, 0)]),
        ]:
            with pytest.raises(ValueError):
                writer.write([0], features, digests, stats)
    assert FeatureStore(path).counts()["pending"] == 5


# ---- the file


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
        }
        for data in file.values():
            assert data.chunks is None
            assert data.id.get_create_plist().get_alloc_time() == h5py.h5d.ALLOC_TIME_EARLY
            assert data.id.get_offset() % 64 == 0
        assert h5py.check_string_dtype(file["ids"].dtype) == ("utf-8", 1)
        assert json.loads(file.attrs["fingerprint"]) == {**MADE_BY, "note": "é"}
        assert file.attrs["fingerprint.backbone"] == b"efficientnet-b7"
        assert file.attrs["fingerprint.image_size"] == 224
        assert file.attrs["format_version"] == 1
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
    "other format": lambda file: file.attrs.modify("format_version", 2),
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
    assert "format version 2" in error_of(lambda: FeatureStore(path))


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
    for length in range(1, len(whole), 97):
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


def test_flipped_bits_are_found_or_refused_and_never_crash(path: Path) -> None:
    store = written(path)
    whole, features = path.read_bytes(), store.spans["features"]
    chance = random.Random(0)
    for row in range(5):
        spoilt = bytearray(whole)
        spoilt[features.offset + row * 12 + chance.randrange(12)] ^= 1 << chance.randrange(8)
        path.write_bytes(spoilt)
        assert FeatureStore(path).damaged_rows().tolist() == [row]
    for _ in range(200):
        spoilt = bytearray(whole)
        for _ in range(chance.choice([1, 2, 8])):
            spoilt[chance.randrange(len(whole))] ^= 1 << chance.randrange(8)
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


def test_features_computed_otherwise_are_refused_with_each_part_named(path: Path) -> None:
    written(path)
    for asked, parts in [
        ({**MADE_BY, "backbone": "efficientnet-b0"}, ["backbone efficientnet-b7 → efficientnet-b0"]),
        ({"backbone": "efficientnet-b7", "pool": "avg"}, ["image_size 224 → not set", "pool not set → avg"]),
        ({**MADE_BY, "image_size": "224"}, ["image_size"]),
    ]:
        message = error_of(lambda asked=asked: StoreWriter.open(path, asked))
        for part in parts:
            assert part in message
    FeatureStore(path).require_fingerprint(dict(reversed(MADE_BY.items())))


# ---- making, extending, rebuilding


def test_a_store_is_never_made_over_another_file(path: Path) -> None:
    path.write_text("mine")
    assert "already" in error_of(lambda: made(path))
    assert path.read_text() == "mine"


def test_extending_keeps_every_row_and_readers_keep_what_they_have(path: Path) -> None:
    reader = written(path, [1, 4])
    with StoreWriter.extend(path, ["c", "bb", "zé", "A", "bb"], MADE_BY) as writer:
        assert writer.store.names() == ["A", "a", "b", "bb", "c", "d", "e", "zé"]
        assert writer.store.counts()["ok"] == 2
        write(writer, [7])
    store = FeatureStore(path)
    assert store.gather(store.rows(["b", "e", "zé"]))[:, 0].tolist() == [1, 4, 7]
    assert store.stat[store.rows(["e"])].tolist() == [[4, 40]]
    assert not len(store.damaged_rows())
    assert store.attributes == reader.attributes
    assert reader.names() == IDS
    assert reader.gather([4])[0, 0] == 4


def test_extending_by_nothing_leaves_the_file_alone(path: Path) -> None:
    written(path)
    before = os.stat(path).st_ino
    StoreWriter.extend(path, IDS[:3], MADE_BY).close()
    assert os.stat(path).st_ino == before


def test_extending_and_verifying_hold_little_in_memory(path: Path) -> None:
    ids = [f"{i:05d}" for i in range(0, 20_000, 2)]
    with made(path, ids, (1000,)) as writer:
        block = np.ones((100, 1000), np.float32)
        for start in range(0, len(ids), 100):
            writer.write(range(start, start + 100), block, [bytes(16)] * 100, np.zeros((100, 2)))
    tracemalloc.start()
    try:
        with StoreWriter.extend(path, ["00001", "10001"], MADE_BY) as writer:
            assert not len(writer.store.damaged_rows())
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 16e6 < path.stat().st_size


def test_a_rebuild_takes_its_place_only_when_published(path: Path) -> None:
    written(path)
    new = {**MADE_BY, "image_size": 300}
    with StoreWriter.rebuild(path, IDS, (3,), "float32", new) as writer:
        write(writer, [0, 1])
        with pytest.raises(ValueError, match="pending"):
            writer.publish()
    assert FeatureStore(path).fingerprint == MADE_BY
    with StoreWriter.rebuild(path, IDS, (3,), "float32", new) as writer:
        assert writer.store.counts()["ok"] == 2  # gone on with
        writer.mark([2, 3, 4], MISSING)
        writer.publish()
        assert writer.store.path == path
        writer.reset([0])
        write(writer, [0])
    assert FeatureStore(path).fingerprint == new
    assert FeatureStore(path).counts()["ok"] == 2
    assert list(path.parent.iterdir()) == [path]


def test_a_rebuild_of_something_else_begins_anew(path: Path) -> None:
    for ids, shape, dtype, made_by in [
        (IDS, (3,), "float32", MADE_BY),
        (IDS, (3,), "float32", {**MADE_BY, "image_size": 300}),
        (IDS[:4], (3,), "float32", MADE_BY),
        (IDS, (4,), "float32", MADE_BY),
        (IDS, (3,), "float16", MADE_BY),
    ]:
        with StoreWriter.rebuild(path, ids, shape, dtype, made_by) as writer:
            assert writer.store.counts()["pending"] == len(ids)
            writer.mark([0], MISSING)
    path.with_name("features.h5.rebuild").write_text("spoilt")
    with StoreWriter.rebuild(path, IDS, (3,), "float32", MADE_BY) as writer:
        assert writer.store.counts()["pending"] == 5


def test_what_killed_runs_left_is_taken_away(path: Path) -> None:
    written(path)
    for name in ("features.h5.new", "features.h5.rebuild.new"):
        path.with_name(name).write_bytes(b"half")
    path.with_name("features.h5.lock").write_text("1")
    StoreWriter.open(path, MADE_BY).close()
    assert list(path.parent.iterdir()) == [path]


def test_a_linked_store_is_extended_where_it_lies(tmp_path: Path, path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    written(tmp_path / "scratch" / "real.h5")
    path.symlink_to("scratch/real.h5")
    StoreWriter.extend(path, ["z"], MADE_BY).close()
    assert path.is_symlink()
    assert FeatureStore(tmp_path / "scratch" / "real.h5").n == 6


# ---- processes


def test_stores_pickle_and_spawn(path: Path) -> None:
    store = written(path)
    assert pickle.loads(pickle.dumps(store)).names() == IDS
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=spawn) as pool:
        assert pool.submit(store.gather, [3]).result()[0, 0] == 3


def test_a_pickled_store_is_refused_once_its_rows_have_moved(path: Path) -> None:
    pickled = pickle.dumps(written(path))
    StoreWriter.extend(path, ["0"], MADE_BY).close()
    assert "while it was in use" in error_of(lambda: pickle.loads(pickled))


def test_the_second_writer_is_told_who_the_first_is_and_readers_go_on(path: Path) -> None:
    with made(path) as writer:
        for action in (
            lambda: StoreWriter.open(path, MADE_BY),
            lambda: made(path),
            lambda: StoreWriter.rebuild(path, IDS, (3,), "float32", MADE_BY),
        ):
            message = error_of(action)
            assert "features.h5" in message
            assert str(os.getpid()) in message
        write(writer, [2])
        writer.commit()
        assert FeatureStore(path).status[2] == OK
    with StoreWriter.open(path, MADE_BY):
        pass


def test_a_killed_writer_lets_the_next_one_in(path: Path) -> None:
    code = (
        "import sys, time; from frozenfusion.store import StoreWriter\n"
        "writer = StoreWriter.create(sys.argv[1], ['a'], (3,), 'float32', {})\n"
        "print('ready', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, path], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline() == "ready\n"
        assert f"process {process.pid}" in error_of(lambda: StoreWriter.open(path, {}))
        process.kill()
        process.wait()
    StoreWriter.open(path, {}).close()


def test_a_forked_worker_that_outlives_its_parent_does_not_keep_the_lock(path: Path) -> None:
    reading, writing = os.pipe()
    writer = made(path)
    child = os.fork()
    if not child:
        os.close(writing)
        os.read(reading, 1)  # until the parent closes its end
        os._exit(0)
    try:
        writer.close()
        StoreWriter.open(path, MADE_BY).close()
    finally:
        os.close(writing)
        os.close(reading)
        os.waitpid(child, 0)


def test_writers_killed_at_random_moments_leave_no_wrong_row(tmp_path: Path) -> None:
    killed, whole = tmp_path / "killed.h5", tmp_path / "whole.h5"
    command = [sys.executable, str(ROOT / "tests" / "store_worker.py"), str(killed), "0", "30"]
    run = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False, timeout=120
    )
    assert run.returncode == 0, run.stderr
    ended = FeatureStore(killed)
    check(ended)
    with StoreWriter.create(whole, ended.names(), SHAPE, "float32", ended.fingerprint) as writer:
        fill(writer)
    uninterrupted = FeatureStore(whole)
    for name in ("ids", "status", "features", "crc32", "digest", "stat"):
        assert np.array_equal(getattr(ended, name), getattr(uninterrupted, name)), name


def test_a_power_cut_leaves_no_wrong_row(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replays the writer's own writes: all up to the last sync have happened, of those since any, whole or in part."""
    made(path, shape=(100,)).close()
    image, log = path.read_bytes(), recorded(monkeypatch, path)
    with StoreWriter.open(path, MADE_BY) as writer:
        for version in range(1, 40):
            rows = [version % 5, (version + 2) % 5]
            writer.reset(rows)
            writer.write(rows, np.full((2, 100), version), [bytes([version]) * 16] * 2, np.full((2, 2), version))
            writer.commit()
    chance = random.Random(0)
    for _ in range(150):
        cut = chance.randrange(len(log))
        synced = max((i for i in range(cut) if log[i] is None), default=0)
        survivors = bytearray(image)
        for i, write in enumerate(log[:cut]):
            if write is not None and (i < synced or chance.random() < 0.5):
                offset, content = write
                kept = len(content) if i < synced else chance.randint(1, len(content))
                survivors[offset : offset + kept] = content[:kept]
        path.write_bytes(survivors)
        store = FeatureStore(path)
        assert not len(store.damaged_rows())
        for row in np.flatnonzero(store.status == OK):
            assert set(store.features[row]) == set(store.digest[row]) == set(store.stat[row])


def recorded(monkeypatch: pytest.MonkeyPatch, path: Path) -> list[tuple[int, bytes] | None]:
    """The writes to `path` from now on, as (offset, content); None is a sync."""
    log: list[tuple[int, bytes] | None] = []
    pwrite, sync = os.pwrite, os.fdatasync

    def recording_write(fd: int, content: bytes, offset: int) -> int:
        if os.path.samestat(os.fstat(fd), os.stat(path)):
            log.append((offset, bytes(content)))
        return pwrite(fd, content, offset)

    def recording_sync(fd: int) -> None:
        log.append(None)
        sync(fd)

    monkeypatch.setattr(os, "pwrite", recording_write)
    monkeypatch.setattr(os, "fdatasync", recording_sync)
    return log


# ---- disks that say no


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB; skips where none can be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    if (
        mount is None
        or subprocess.run([mount, "-t", "tmpfs", "-o", "size=256k", "tmpfs", folder], check=False).returncode
    ):
        pytest.skip("mounting a small file system takes root")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_a_full_disk_refuses_a_new_store_and_keeps_the_old_one(small_disk: Path) -> None:
    path = small_disk / "x.h5"
    assert "full" in error_of(lambda: made(path, shape=(100_000,)))
    assert not list(small_disk.iterdir())
    store = written(path)
    assert "full" in error_of(lambda: StoreWriter.extend(path, [f"{i:06d}" * 50 for i in range(900)], MADE_BY))
    assert "full" in error_of(lambda: StoreWriter.rebuild(path, IDS, (100_000,), "float32", MADE_BY))
    assert list(small_disk.iterdir()) == [path]
    assert (FeatureStore(path).features == store.features).all()


def test_a_disk_that_fills_up_keeps_the_finished_rows_and_the_same_run_goes_on(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "posix_fallocate", lambda *_: (_ for _ in ()).throw(OSError(errno.EOPNOTSUPP, "not here")))
    path, ballast = small_disk / "x.h5", small_disk / "ballast"
    block = np.ones((1, 5000), np.float32)
    with made(path, shape=(5000,)) as writer:  # on a file system that cannot reserve
        ballast.write_bytes(bytes(180_000))

        def write_all() -> None:
            for row in range(5):
                writer.write([row], block, [bytes(16)], [(0, 0)])
                writer.commit()

        assert "full" in error_of(write_all)
    kept = FeatureStore(path).counts()
    assert 0 < kept["ok"] < 5
    assert not len(FeatureStore(path).damaged_rows())
    ballast.unlink()
    with StoreWriter.open(path, MADE_BY) as writer:
        for row in np.flatnonzero(writer.store.status == PENDING):
            writer.write([row], block, [bytes(16)], [(0, 0)])
    assert FeatureStore(path).counts()["ok"] == 5


LIMITED = """
import resource, sys
import numpy as np
from frozenfusion.errors import UserError
from frozenfusion.store import StoreWriter
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    StoreWriter.create(sys.argv[1], ["a", "b"], (20_000,), "float32", {})
except UserError as error:
    print(error)
StoreWriter.create(sys.argv[1], ["a", "b"], (1000,), "float32", {}).close()
"""


def test_a_file_size_limit_is_told_in_one_line(path: Path) -> None:
    run = subprocess.run([sys.executable, "-c", LIMITED, path], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert "limit" in run.stdout
    assert len(run.stdout.splitlines()) == 1
    assert FeatureStore(path).n == 2


UNPRIVILEGED = """
import os, sys
from pathlib import Path
from frozenfusion.errors import UserError
from frozenfusion.store import FeatureStore, StoreWriter
if os.getuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
path = Path(sys.argv[1])
print(FeatureStore(path).n)
for action in (
    lambda: StoreWriter.open(path, {}),
    lambda: StoreWriter.create(path.with_name("new.h5"), ["a"], (3,), "float32", {}),
):
    try:
        action()
    except UserError as error:
        print(error)
"""


def test_a_read_only_folder_is_read_and_a_writer_told_in_one_line() -> None:
    with tempfile.TemporaryDirectory() as name:  # not tmp_path: other users cannot enter that
        folder = Path(name)
        StoreWriter.create(folder / "x.h5", ["a", "b"], (3,), "float32", {}).close()
        folder.chmod(0o555)
        command = [sys.executable, "-c", UNPRIVILEGED, folder / "x.h5"]
        run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        folder.chmod(0o755)
        assert run.returncode == 0, run.stderr
        lines = run.stdout.splitlines()
        assert len(lines) == 3
        assert lines[0] == "2"
        assert all("permission denied" in line for line in lines[1:])
        assert [entry.name for entry in folder.iterdir()] == ["x.h5"]


def test_rows_whose_sync_fails_stay_pending(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(fd: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    def write_and_fail() -> None:
        with made(path) as writer:
            write(writer, [0])
            monkeypatch.setattr(os, "fdatasync", failing)
            writer.commit()

    error_of(write_and_fail)
    monkeypatch.undo()
    assert FeatureStore(path).counts()["pending"] == 5
    StoreWriter.open(path, MADE_BY).close()
