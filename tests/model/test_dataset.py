"""Batches of texts and cached image features."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from frozenfusion.data.pairs import Pairs, load_pairs
from frozenfusion.model.dataset import PairDataset, stored_images
from frozenfusion.store import tensors
from frozenfusion.store.reader import FeatureStore
from frozenfusion.store.tensors import FeatureRows
from frozenfusion.store.writer import StoreWriter
from frozenfusion.text.tokens import TokenizedTexts, load_tokenizer, tokenize
from frozenfusion.utils.errors import UserError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dataset")
    tiny.make_data(folder)
    tiny.make_store(folder / "features.h5")
    tiny.make_text_encoder(folder / "encoder")
    return folder


@pytest.fixture(scope="module")
def pairs(folder: Path) -> Pairs:
    return load_pairs(folder / "pairs.csv")


@pytest.fixture(scope="module")
def store(folder: Path) -> FeatureStore:
    return FeatureStore(folder / "features.h5")


def texts_of(folder: Path, pairs: Pairs, ids: list[str]) -> TokenizedTexts:
    return tokenize(load_tokenizer(folder / "encoder"), [pair.text for pair in pairs.select(ids)], 128)


def dataset_of(folder: Path, pairs: Pairs, ids: list[str], store: FeatureStore) -> PairDataset:
    chosen = pairs.select(ids)
    return PairDataset(chosen, stored_images(store, chosen, "my/data"), texts_of(folder, pairs, ids))


def test_batches_follow_the_ids_whatever_the_order_of_the_store(
    folder: Path, pairs: Pairs, store: FeatureStore
) -> None:
    ids = ["p020", "p001", "p010"]
    texts = texts_of(folder, pairs, ids)
    dataset = dataset_of(folder, pairs, ids, store)
    batch = dataset.batch(np.array([2, 0]))
    assert batch.image.numpy() == pytest.approx(store.features[[10, 20]])
    assert batch.labels.tolist() == [10 % 3, 20 % 3]
    assert batch.text["input_ids"].equal(texts.batch(np.array([2, 0]))["input_ids"])
    assert batch.rows.tolist() == [2, 0]
    assert len(dataset) == 3
    assert dataset.lengths.tolist() == texts.lengths.tolist()


def test_a_pair_without_image_or_text_stays_and_says_so(folder: Path, pairs: Pairs, store: FeatureStore) -> None:
    ids = [tiny.MISSING_IMAGE, tiny.EMPTY_TEXT, "p007"]
    batch = dataset_of(folder, pairs, ids, store).batch(np.arange(3))
    assert batch.present.tolist() == [[True, False], [False, True], [True, True]]
    assert not batch.image[0].any()
    assert batch.image[1].any()


def test_pairs_without_labels_have_label_minus_one(tmp_path: Path, store: FeatureStore, folder: Path) -> None:
    (tmp_path / "new.csv").write_text("id,text,image\np000,good sun,x.jpg\n")
    pairs = load_pairs(tmp_path / "new.csv")
    batch = dataset_of(folder, pairs, ["p000"], store).batch(np.arange(1))
    assert batch.labels.tolist() == [-1]


def test_ids_that_the_store_lacks_are_counted_and_the_command_that_adds_them_is_told(
    folder: Path, pairs: Pairs, tmp_path: Path
) -> None:
    small = FeatureStore(tiny.make_store(tmp_path / "small.h5", ids=pairs.ids[:40]))
    with pytest.raises(UserError) as error:
        stored_images(small, pairs, "my/data")
    said = str(error.value)
    assert "lacks 8 of the 48 pairs that are needed (p040, p041, p042, …)" in said
    assert f"python extract_features.py my/data --cache {tmp_path / 'small.h5'}" in said


def test_rows_that_are_still_pending_are_refused(folder: Path, pairs: Pairs, tmp_path: Path) -> None:
    path = tmp_path / "pending.h5"
    with StoreWriter.create(path, pairs.ids, (16,), "float32", {}) as writer:
        done = np.arange(2, len(pairs))
        writer.write(done, np.ones((len(done), 16), np.float32), np.zeros((len(done), 16), np.uint8), [[1, 1]] * 46)
    with pytest.raises(UserError, match=r"has not computed 2 of the 48 pairs that are needed \(p000, p001\) yet"):
        stored_images(FeatureStore(path), pairs, "my/data")


@pytest.mark.parametrize("regions", [0, 5])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_features_are_the_same_from_memory_and_from_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, regions: int, dtype: str
) -> None:
    store = FeatureStore(tiny.make_store(tmp_path / "features.h5", 24, regions=regions, dtype=dtype))
    rows = np.array([7, 3, 3, 20, 0])
    held = FeatureRows(store, rows)
    monkeypatch.setattr(tensors, "HELD_BYTES", 0)
    mapped = FeatureRows(store, rows)
    for places in (np.array([4, 1, 0]), np.arange(5), np.array([], dtype=np.int64)):
        assert held[places].equal(mapped[places])
        assert held[places].dtype == torch.float32
        assert held[places].shape == (len(places), *store.shape)
    assert held[np.array([0])][0].numpy() == pytest.approx(store.features[7].astype("float32"))
    assert not mapped[np.array([1])].any()  # p003 has no image
    assert mapped.present.tolist() == [True, False, False, True, True]


@pytest.mark.parametrize("held_bytes", [2**30, 0])
def test_pooled_features_are_the_mean_over_the_regions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held_bytes: int
) -> None:
    monkeypatch.setattr(tensors, "HELD_BYTES", held_bytes)
    monkeypatch.setattr("frozenfusion.store.reader.CHUNK_BYTES", 1000)  # some rows at a time
    store = FeatureStore(tiny.make_store(tmp_path / "features.h5", 24, regions=5))
    found = FeatureRows(store, np.arange(24), pooled=True)[np.array([9, 3, 0])]
    assert found.numpy() == pytest.approx(np.stack([store.features[row].mean(axis=0) for row in (9, 3, 0)]), abs=1e-6)
    vectors = FeatureStore(tiny.make_store(tmp_path / "vectors.h5", 24))
    assert FeatureRows(vectors, np.arange(24), pooled=True)[np.array([2])][0].tolist() == vectors.features[2].tolist()


def test_rows_of_large_files_are_asked_for_before_they_are_read(
    folder: Path, pairs: Pairs, store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(FeatureStore, "will_need", lambda _, rows: asked.extend(rows.tolist()))
    some = np.random.default_rng(0).permutation(len(pairs))
    parts = np.array_split(np.random.default_rng(1).permutation(len(pairs)), 20)
    small = dataset_of(folder, pairs, pairs.ids, store)
    expected = [small.batch(some[part]) for part in small.in_turn(parts, some)]
    assert not asked
    monkeypatch.setattr(tensors, "HELD_BYTES", 0)
    monkeypatch.setattr(tensors, "MAPPED_BYTES", 0)  # let go of after each batch
    large = dataset_of(folder, pairs, pairs.ids, store)
    for part, same in zip(large.in_turn(parts, some), expected, strict=True):
        assert set(some[part]) <= set(asked)
        assert large.batch(some[part]).image.equal(same.image)
    assert sorted(asked) == list(range(len(pairs)))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_does_not_grow_with_the_rows_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    n = 4_096
    with StoreWriter.create(tmp_path / "large.h5", [f"{i:04}" for i in range(n)], (2_048,), "float32", {}) as writer:
        writer.write(
            np.arange(n), np.ones((n, 2_048), np.float32), np.zeros((n, 16), np.uint8), np.zeros((n, 2), np.int64)
        )
    monkeypatch.setattr(tensors, "HELD_BYTES", 0)
    monkeypatch.setattr(tensors, "MAPPED_BYTES", 0)
    images = FeatureRows(FeatureStore(tmp_path / "large.h5"), np.arange(n))
    before, most = mapped_bytes(), 0
    for places in np.random.default_rng(0).permutation(n).reshape(-1, 32):
        assert images[places].eq(1).all()
        most = max(most, mapped_bytes() - before)
    assert most < n * 8_192 / 8


def mapped_bytes() -> int:
    """Pages of files that this process has in memory."""
    return 1024 * int(Path("/proc/self/status").read_text().partition("RssFile:")[2].split()[0])


@pytest.mark.parametrize("held_bytes", [2**30, 0])
def test_damaged_rows_are_refused_by_name_and_their_neighbours_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held_bytes: int
) -> None:
    monkeypatch.setattr(tensors, "HELD_BYTES", held_bytes)
    path = tiny.make_store(tmp_path / "features.h5", 24)
    store = FeatureStore(path)
    with path.open("rb+") as file:
        file.seek(store.spans["features"].offset + 7 * tiny.WIDTH * 4 + 5)
        file.write(b"\x55")
    rest = np.delete(np.arange(24), 7)
    assert FeatureRows(store, rest)[np.arange(23)].isfinite().all()
    with pytest.raises(
        UserError, match=r"features\.h5: the rows of p007 are damaged or not finite: restore it, or delete it"
    ):
        FeatureRows(store, np.arange(24))[np.arange(24)]


@settings(max_examples=25)
@given(places=st.lists(st.integers(0, 47), max_size=12))
def test_any_batch_gathers_the_rows_of_its_pairs(places: list[int], folder: Path, pairs: Pairs) -> None:
    store = FeatureStore(folder / "features.h5")
    ids = pairs.ids[::-1]
    batch = dataset_of(folder, pairs, ids, store).batch(np.array(places, dtype=np.int64))
    expected = store.gather(store.rows([ids[place] for place in places]))
    assert batch.image.numpy().tolist() == expected.tolist()
    assert batch.labels.tolist() == [pairs.labels[47 - place] for place in places]
