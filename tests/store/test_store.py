from __future__ import annotations

import concurrent.futures
import multiprocessing
import os
import pickle
import random
import tempfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stores import IDS, MADE_BY, error_of, made, write, written

from frozenfusion.store import writer as store_module
from frozenfusion.store.reader import FeatureStore, encode_ids
from frozenfusion.store.status import MISSING, OK, PENDING, REFUSED, UNREADABLE
from frozenfusion.store.writer import StoreWriter
from frozenfusion.utils.errors import UserError
from frozenfusion.utils.files import temporary_beside

ids_of_any_kind = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=12)
few_examples = settings(max_examples=15)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "features.h5"


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
        assert FeatureStore(path).rows([name + "\0" for name in sorted(ids)]).tolist() == [-1] * len(ids)


@few_examples
@given(st.sets(ids_of_any_kind, min_size=2, max_size=20), st.integers(1, 90))
def test_ids_in_an_array_are_the_ids_in_a_list(ids: set[str], wider: int) -> None:
    names = sorted(ids)
    encoded = np.array([name.encode() for name in names])
    array = encoded.astype(f"S{encoded.itemsize + wider}")
    assert encode_ids(array).tobytes() == encode_ids(names).tobytes()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.h5"
        made(path, names[1:]).close()
        assert FeatureStore(path).rows(array).tolist() == [-1, *range(len(names) - 1)]
        with StoreWriter.open(path, MADE_BY) as writer:
            writer.grow(array)
            assert writer.store.names() == names
            assert writer.store.ids.dtype == encoded.dtype
            for kind in (str, object):  # as NumPy and pandas have strings
                assert writer.store.rows(np.array(names, kind)).tolist() == [*range(len(names))]


@pytest.mark.parametrize("ids", [[b""], [b"b", b"a"], [b"a", b"a"], [b"a\0b"], [b"\xed\xb2\x80"], [b"x" * 1025]])
def test_ids_in_an_array_that_cannot_name_rows_are_refused(ids: list[bytes]) -> None:
    with pytest.raises(UserError):
        encode_ids(np.array(ids))


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
        assert reader.counts() == {"pending": 3, "ok": 2, "missing": 0, "unreadable": 0, "refused": 0, "crashed": 0}
        write(writer, [0])
        writer.mark([3], MISSING)
        writer.mark([4], UNREADABLE, [b"x" * 16], [(1, 2)])
        assert not reader.finished
    assert reader.finished  # the same reader sees what was committed since
    assert reader.counts() == {"pending": 0, "ok": 3, "missing": 1, "unreadable": 1, "refused": 0, "crashed": 0}
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
    for left in (path, path.with_name("features.h5.rebuild")):
        temporary_beside(left).write_bytes(b"half")
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


def test_a_closed_store_lets_go_of_its_file(path: Path) -> None:
    store = written(path)
    kept = store.gather([3])
    store.close()
    assert str(path) not in Path("/proc/self/maps").read_text()
    assert kept[0, 0] == 3


def test_an_array_of_a_closed_store_keeps_its_memory(path: Path) -> None:
    store = written(path)
    kept = store.features
    store.close()
    assert kept[:, 0].tolist() == [0, 1, 2, 3, 4]


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


@pytest.mark.parametrize("content", [b"years of work", b"\x89HDF\r\n\x1a\n" + bytes(3000), b""])
def test_a_rebuild_replaces_nothing_but_a_feature_file(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(UserError, match="not a feature file, so it is not replaced"):
        StoreWriter.rebuild(path, IDS, (3,), "float32", MADE_BY)
    assert path.read_bytes() == content
    assert [beside.name for beside in path.parent.iterdir()] == [path.name]


def test_a_rebuild_replaces_a_damaged_feature_file(path: Path) -> None:
    written(path)
    path.write_bytes(path.read_bytes()[:-20])
    with StoreWriter.rebuild(path, IDS, (3,), "float32", MADE_BY) as writer:
        write(writer, range(5))
        writer.publish()
    assert FeatureStore(path).finished
