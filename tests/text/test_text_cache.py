"""Cached outputs of a frozen text encoder."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch

from frozenfusion.store.reader import FeatureStore
from frozenfusion.store.status import OK
from frozenfusion.text import cache as text_cache
from frozenfusion.text.cache import CachedTexts, cached_texts
from frozenfusion.text.encoder import encode, load_text_encoder
from frozenfusion.text.tokens import TokenizedTexts, load_tokenizer, tokenize

SENTENCES = ["good sun smile", "rain", "", "bad rain frown tree road noon good sun smile bad rain", "tree road"] * 20
IDS = [f"p{number:03}" for number in range(len(SENTENCES))]


@pytest.fixture(scope="module")
def encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_text_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def encoder(encoder_folder: Path) -> Any:
    return load_text_encoder(encoder_folder, "random", seed=3)


@pytest.fixture(scope="module")
def tokenizer(encoder_folder: Path) -> Any:
    return load_tokenizer(encoder_folder)


@pytest.fixture
def cache(tmp_path: Path, encoder: Any, tokenizer: Any) -> Callable[..., CachedTexts]:
    def make(
        texts: list[str] = SENTENCES, ids: list[str] = IDS, *, tokens: bool = False, model: Any = encoder
    ) -> CachedTexts:
        tokenized = tokenize(tokenizer, texts, 128)
        return cached_texts(model, tokenized, ids, tmp_path / "mvsa.h5", tokens=tokens, device=torch.device("cpu"))

    return make


def live(encoder: Any, texts: TokenizedTexts, rows: np.ndarray) -> Any:
    with torch.inference_mode():
        return encode(encoder, texts.batch(rows))


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("mvsa.text-*.h5"))


def counted(monkeypatch: pytest.MonkeyPatch, stop_after: int | None = None) -> list[int]:
    """Sizes of the batches that the encoder is run on, in a list that grows; a batch too many interrupts."""
    sizes: list[int] = []

    def counting(model: Any, tokens: dict[str, torch.Tensor], pool: str) -> Any:
        if stop_after is not None and len(sizes) == stop_after:
            raise KeyboardInterrupt
        sizes.append(len(tokens["input_ids"]))
        return encode(model, tokens, pool)

    monkeypatch.setattr(text_cache, "encode", counting)
    return sizes


def test_cached_features_are_those_of_the_encoder(
    cache: Callable[..., CachedTexts], encoder: Any, tokenizer: Any
) -> None:
    texts = tokenize(tokenizer, SENTENCES, 128)
    cached = cache(tokens=True)
    rows = np.array([1, 3, 2, 99])
    expected, found = live(encoder, texts, rows), cached.batch(rows)
    assert found.pooled.numpy() == pytest.approx(expected.pooled.numpy(), abs=1e-6)
    length = int(texts.lengths[rows].max())
    assert found.mask.tolist() == expected.mask[:, :length].tolist()
    difference = (found.tokens - expected.tokens[:, :length]) * found.mask[..., None]
    assert difference.abs().max() < 2e-3  # they are kept in float16
    assert cached.lengths.tolist() == texts.lengths.tolist()


def test_token_features_are_kept_only_where_they_are_asked_for(
    cache: Callable[..., CachedTexts], tmp_path: Path
) -> None:
    assert cache().batch(np.arange(4)).tokens is None
    assert [FeatureStore(path).shape for path in files(tmp_path)] == [(32,)]
    cache(tokens=True)
    assert sorted(FeatureStore(path).shape for path in files(tmp_path)) == [(16, 32), (32,)]


def test_both_outputs_come_from_one_pass(cache: Callable[..., CachedTexts], monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = counted(monkeypatch)
    both = cache(tokens=True)
    assert sum(sizes) == 100
    assert both.pooled_only().batch(np.arange(9)).pooled.equal(cache().batch(np.arange(9)).pooled)
    assert sum(sizes) == 100


def test_pooled_features_need_no_batches_of_like_length(cache: Callable[..., CachedTexts]) -> None:
    assert set(cache().lengths.tolist()) == {1}


def test_a_second_use_computes_nothing_and_needs_no_lock(
    cache: Callable[..., CachedTexts], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    first = cache().batch(np.arange(100))
    sizes = counted(monkeypatch)
    monkeypatch.setattr(text_cache, "_writer", None)
    assert cache().batch(np.arange(100)).pooled.equal(first.pooled)
    assert sizes == []


def test_an_interrupted_computation_goes_on_and_ends_in_the_same_bits(
    cache: Callable[..., CachedTexts], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole = cache().batch(np.arange(100))
    files(tmp_path)[0].unlink()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        counted(patch, stop_after=2)
        cache()
    assert 0 < int((FeatureStore(files(tmp_path)[0]).status == OK).sum()) < 100
    sizes = counted(monkeypatch)
    assert cache().batch(np.arange(100)).pooled.equal(whole.pooled)
    assert sum(sizes) < 100


def test_a_changed_text_alone_is_computed_again(
    cache: Callable[..., CachedTexts], monkeypatch: pytest.MonkeyPatch, encoder: Any, tokenizer: Any
) -> None:
    before = cache().batch(np.arange(100)).pooled
    changed = ["noon noon noon", *SENTENCES[1:]]
    after = cache(changed).batch(np.arange(100)).pooled
    assert after[1:].equal(before[1:])
    expected = live(encoder, tokenize(tokenizer, changed, 128), np.array([0])).pooled
    assert after[:1].numpy() == pytest.approx(expected.numpy(), abs=1e-6)


def test_new_ids_are_added_to_what_is_there(
    cache: Callable[..., CachedTexts], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cache(SENTENCES[:64], IDS[:64])
    cache()
    (path,) = files(tmp_path)
    store = FeatureStore(path)
    assert (store.n, store.finished) == (100, True)
    assert cache(SENTENCES[10:20], IDS[10:20]).batch(np.arange(10)).pooled.numpy() == pytest.approx(
        store.features[10:20]
    )


def test_another_encoder_has_a_file_of_its_own_and_the_same_one_elsewhere_has_not(
    cache: Callable[..., CachedTexts], encoder_folder: Path, tmp_path: Path
) -> None:
    cache()
    moved = tmp_path / "moved"
    shutil.copytree(encoder_folder, moved)
    cache(model=load_text_encoder(moved, "random", seed=3))
    assert len(files(tmp_path)) == 1
    cache(model=load_text_encoder(moved, "random", seed=4))
    assert len(files(tmp_path)) == 2
