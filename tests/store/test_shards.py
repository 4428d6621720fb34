"""A folder of shards, read as one feature file."""

from __future__ import annotations

import json
import mmap
import pickle
import shutil
import zlib
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from stores import MADE_BY, error_of

from frozenfusion.store.plan import Plan, evenly, is_sharded, read_plan, shard_path, write_plan
from frozenfusion.store.reader import FeatureStore, encode_ids
from frozenfusion.store.status import MISSING, OK
from frozenfusion.store.writer import StoreWriter

N, ROWS = 23, 5
IDS = [f"id{number:02d}{'ü' * (number % 3)}" for number in range(N)]
BAD = 7


def fill(path: Path, ids: list[str], shape: tuple[int, ...] = (3, 4)) -> Path:
    """A finished file of those ids, whose features follow from the id, and whose row of id BAD has no image."""
    numbers = np.array([IDS.index(name) for name in ids])
    features = np.stack([np.random.default_rng(number).normal(size=shape) for number in numbers]).astype(np.float32)
    ok = np.flatnonzero(numbers != BAD)
    with StoreWriter.create(path, ids, shape, "float32", MADE_BY) as writer:
        writer.write(ok, features[ok], [bytes([number]) * 16 for number in numbers[ok]], np.stack([numbers[ok]] * 2, 1))
        writer.mark(np.flatnonzero(numbers == BAD), MISSING)
    return path


def plan_of(ids: list[str] = IDS, rows: int = ROWS) -> Plan:
    store_ids = encode_ids(ids)
    attributes = {"created_by": "frozenfusion", "weights": "imagenet"}
    return Plan("0" * 64, zlib.crc32(store_ids.data), evenly(len(ids), rows), (3, 4), "float32", MADE_BY, attributes)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("shards") / "big"
    path.mkdir()
    plan = write_plan(path, plan_of(), encode_ids(IDS))
    for shard in plan.shards:
        fill(shard_path(path, shard), IDS[plan.rows(shard)])
    return path


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "big"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    return FeatureStore(fill(tmp_path_factory.mktemp("whole") / "whole.h5", IDS))


def test_a_folder_looks_like_one_file(folder: Path, whole: FeatureStore):
    store = FeatureStore(folder)
    assert (store.n, store.shape, store.dtype, store.finished) == (N, (3, 4), np.dtype("float32"), True)
    assert store.counts() == whole.counts()
    assert store.fingerprint == whole.fingerprint
    assert store.names() == IDS
    assert store.rows(["id09", IDS[22], "nobody"]).tolist() == whole.rows(["id09", IDS[22], "nobody"]).tolist()
    assert store.command("posts") == f"python extract_features.py posts --cache {folder}"
    assert not len(store.damaged_rows())
    for name in ("ids", "status", "digest", "stat", "crc32", "check", "features"):
        assert np.array_equal(getattr(store, name), getattr(whole, name)), name
    again = pickle.loads(pickle.dumps(store))
    assert np.array_equal(again.features, whole.features)
    store.close()


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [0],
        [22],
        [3, 3, 3],
        list(range(N)),
        list(range(N))[::-1],
        [4, 5, 9, 10, 0, 22, 14, 15, 4],
        [20, 21, 1, 2],
        [n * 7 % N for n in range(60)],
    ],
)
def test_rows_in_any_order_are_those_of_one_file(folder: Path, whole: FeatureStore, rows: list[int]):
    store, places = FeatureStore(folder), np.array(rows, dtype=np.int64)
    assert np.array_equal(store.gather(places), whole.gather(places))
    out = np.empty((len(rows), 3, 4), np.float32)
    assert store.gather(places, out) is out
    assert np.array_equal(out, whole.gather(places))
    assert np.array_equal(store.features[places, :2], whole.features[places, :2])
    assert np.array_equal(store.digest[places], whole.digest[places])


def test_it_is_indexed_as_an_array_is(folder: Path, whole: FeatureStore):
    store, ok = FeatureStore(folder), whole.status == OK
    assert np.array_equal(store.features[ok], whole.features[ok])
    for index in (3, -1, slice(2, 17, 3), slice(None), np.array([[1, 2], [7, 22]]), [-1, 0]):
        assert np.array_equal(store.features[index], whole.features[index])
    for index in (N, -N - 1, [0, N]):
        with pytest.raises(IndexError):
            store.features[index]
    for rows in ([N], [-1]):
        with pytest.raises(IndexError):
            store.gather(rows)


PAGES = (64, 64)  # of float32: a row is a whole page of any machine but those of 64 KiB


@pytest.fixture(params=["side by side", "one of an older layout", "a system that cannot"])
def paged(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Path, FeatureStore, bool]:
    """A folder whose shards are whole pages, the same rows in one file, and whether they are read as one array."""
    folder = tmp_path / "paged"
    folder.mkdir()
    plan = write_plan(folder, replace(plan_of(), shape=PAGES), encode_ids(IDS))
    for shard in plan.shards:
        if (request.param, shard) == ("one of an older layout", 2):
            monkeypatch.setattr("frozenfusion.store.hdf5._PAGES", 64)
        fill(shard_path(folder, shard), IDS[plan.rows(shard)], PAGES)
    if request.param == "a system that cannot":
        monkeypatch.setattr("frozenfusion.store.adjoining._system_mmap", None)
    one_array = request.param == "side by side" and mmap.PAGESIZE <= 2**14
    return folder, FeatureStore(fill(tmp_path / "paged.h5", IDS, PAGES)), one_array


def test_shards_of_whole_pages_are_one_array(paged: tuple[Path, FeatureStore, bool]):
    folder, whole, one_array = paged
    store = FeatureStore(folder)
    assert isinstance(store.features, np.ndarray) == one_array
    rows = np.array([22, 4, 5, 4, 0, 19])
    store.will_need(rows)
    for _ in range(2):
        assert np.array_equal(store.gather(rows), whole.gather(rows))
        assert np.array_equal(store.features, whole.features)
        store.let_go(rows)
    for wrong in ([N], [-1]):
        with pytest.raises(IndexError):
            store.gather(wrong)
    if one_array:
        with pytest.raises(ValueError, match="read-only"):
            store.features[3] = 0
    kept = store.features[20:]
    store.close()
    assert np.array_equal(kept, whole.features[20:])


def test_whole_pages_that_are_not_there_yet_read_as_zeros(paged: tuple[Path, FeatureStore, bool]):
    folder, whole, _ = paged
    for shard in (0, 4):
        shard_path(folder, shard).unlink()
    store = FeatureStore(folder)
    store.will_need(np.array([0, 6]))
    assert not store.gather([*range(5), 20, 21, 22]).any()
    assert np.array_equal(store.gather(range(5, 20)), whole.gather(range(5, 20)))
    store.let_go(np.arange(N))
    assert np.array_equal(store.gather([4, 12]), [0 * whole.features[4], whole.features[12]])


def test_rows_written_again_are_seen_side_by_side(paged: tuple[Path, FeatureStore, bool]):
    folder, whole, _ = paged
    store = FeatureStore(folder)
    with StoreWriter.open(shard_path(folder, 1), MADE_BY) as writer:
        writer.reset([3])
        writer.write([3], np.ones((1, *PAGES)), [b"1" * 16], [(1, 1)])
    assert (store.gather([8]) == 1).all()
    assert np.array_equal(store.gather([6, 9]), whole.gather([6, 9]))


def test_shards_that_are_not_there_yet_are_pending_rows(folder: Path, whole: FeatureStore):
    for shard in (1, 4):
        shard_path(folder, shard).unlink()
    store = FeatureStore(folder)
    pending = [*range(5, 10), 20, 21, 22]
    assert np.flatnonzero(store.status == 0).tolist() == pending
    assert store.counts()["pending"] == 8
    assert not store.finished
    assert store.names() == IDS
    assert not store.gather(pending).any()
    assert np.array_equal(store.gather([4, 12]), whole.gather([4, 12]))
    assert "has not computed 2 of the 3 pairs" in error_of(lambda: store.require_rows([IDS[0], IDS[6], IDS[21]]))
    assert not len(store.damaged_rows())


def test_a_row_that_has_rotted_is_found(folder: Path):
    path = shard_path(folder, 2)
    span = FeatureStore(path).spans["features"]
    with path.open("r+b") as file:
        file.seek(span.offset + 3 * span.row_bytes + 2)
        file.write(b"\xff\x7f")
    assert FeatureStore(folder).damaged_rows().tolist() == [13]


@pytest.mark.parametrize("how", ["truncated", "empty", "of other rows", "made otherwise", "no file"])
def test_a_shard_that_is_not_the_plan_s_is_told_with_what_mends_it(folder: Path, how: str):
    path = shard_path(folder, 2)
    if how == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "of other rows":
        shutil.copy(shard_path(folder, 1), path)
    else:
        path.unlink()
        path.mkdir() if how == "no file" else fill(path, IDS[10:15], (2, 4))
    told = error_of(lambda: FeatureStore(folder))
    assert told.startswith(f"{path}: ")
    assert f"delete it and run python extract_features.py DATA --cache {folder}" in told


@pytest.mark.parametrize("shard", range(4))
@pytest.mark.parametrize("text", [b"efficientnet-b7", b"frozen-fusion-store", b'"names"', b"frozenfusion 0."])
def test_a_header_with_a_flipped_bit_is_told_in_any_shard(folder: Path, shard: int, text: bytes):
    path = shard_path(folder, shard)
    content = bytearray(path.read_bytes())
    content[content.index(text) + 3] ^= 2
    path.write_bytes(content)
    assert error_of(lambda: FeatureStore(folder)).startswith(f"{path}: ")


def test_shards_that_are_laid_out_alike_are_opened_as_each_alone_is(tmp_path: Path):
    (tmp_path / "big").mkdir()
    write_plan(tmp_path / "big", plan_of(rows=1), encode_ids(IDS))
    alone = [FeatureStore(fill(shard_path(tmp_path / "big", shard), [id])) for shard, id in enumerate(IDS)]
    store = FeatureStore(tmp_path / "big")
    for name in ("ids", "features", "status", "digest", "stat", "crc32", "check"):
        assert np.array_equal(getattr(store, name), np.concatenate([getattr(one, name) for one in alone])), name
    assert store.finished


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"format": "other"}, "not a plan of shards"),
        ({"format_version": 2}, "format version 2"),
        ({"bounds": [0, 5, 5, 23]}, "bounds"),
        ({"bounds": [0, 5, 2**70]}, "bounds"),
        ({"dtype": "O"}, "dtype"),
        ({"shape": [3, -4]}, "shape"),
        ({"ids_crc32": 3}, "ids.npy: damaged"),
    ],
)
def test_a_plan_that_cannot_be_is_told(folder: Path, change: dict, told: str):
    path = folder / "plan.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert told in error_of(lambda: FeatureStore(folder))


def test_names_that_are_damaged_or_lead_to_a_pickle_are_refused(folder: Path):
    np.save(folder / "ids.npy", np.array([object()] * N), allow_pickle=True)
    assert "ids.npy: damaged" in error_of(lambda: FeatureStore(folder))
    (folder / "ids.npy").unlink()
    assert "ids.npy: no such file" in error_of(lambda: FeatureStore(folder))
    (folder / "ids.npy").mkdir()
    assert "not a regular file" in error_of(lambda: FeatureStore(folder))


def test_a_folder_without_a_plan_is_no_store(tmp_path: Path):
    assert not is_sharded(tmp_path)
    error_of(lambda: FeatureStore(tmp_path))


def test_a_plan_is_written_once_and_what_differs_is_named(folder: Path):
    mine = read_plan(folder)
    assert asdict(mine) == asdict(plan_of())
    other = replace(mine, bounds=evenly(N, 7), fingerprint={**MADE_BY, "image_size": 64})
    assert write_plan(folder, other, encode_ids(IDS)) == mine
    assert mine.differences(other) == "rows per shard 5 → 7; image_size 224 → 64"
    assert mine.differences(mine) == ""
    assert sorted(path.name for path in folder.iterdir() if path.suffix != ".h5") == ["ids.npy", "plan.json"]
