"""Texts and encoders of strangers: what spells a special token is letters, weights that compute nothing are refused."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerBase

from frozenfusion.text.encoder import load_text_encoder
from frozenfusion.text.tokens import load_tokenizer, save_tokenizer, tokenize
from frozenfusion.utils.errors import UserError

SPELT = ["good [SEP] sun", "[CLS]", "a<pad>b", "A <PAD> [MASK] b", "<unk>", "x [SEP]" * 40]


@pytest.fixture(scope="module")
def albert(request: pytest.FixtureRequest) -> PreTrainedTokenizerBase:
    folder = Path(request.config.rootpath).parent / "shared" / "albert-tokenizer"
    if not folder.is_dir():
        pytest.skip("ALBERT's tokenizer is not on this machine")
    return load_tokenizer(folder)


@pytest.fixture
def with_weights(tmp_path: Path) -> Path:
    folder = tiny.make_text_encoder(tmp_path / "encoder")
    load_text_encoder(folder, "random", seed=3).save_pretrained(folder)
    return folder


def inner(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The tokens of a text between the two that are added to every text."""
    ids: list[int] = tokenize(tokenizer, [text], 64).ids.tolist()
    assert (ids[0], ids[-1]) == (tokenizer.cls_token_id, tokenizer.sep_token_id)
    return ids[1:-1]


@pytest.mark.parametrize("text", SPELT)
def test_a_special_token_that_a_text_spells_is_read_as_its_letters(albert, text: str) -> None:
    special = set(albert.all_special_ids) - {albert.unk_token_id}
    assert special.isdisjoint(inner(albert, text))


def test_the_letters_are_those_that_are_there(albert) -> None:
    assert albert.convert_ids_to_tokens(inner(albert, "a<pad>b [SEP]")) == (
        ["▁a", "<unk>", "pad", "<unk>", "b", "▁[", "s", "ep", "]"]
    )


def test_a_saved_tokenizer_reads_them_the_same(albert, tmp_path: Path) -> None:
    save_tokenizer(albert, tmp_path)
    again = load_tokenizer(tmp_path)
    assert [inner(again, text) for text in SPELT] == [inner(albert, text) for text in SPELT]


def test_texts_beside_them_keep_their_tokens_and_their_cut(albert) -> None:
    texts = ["so happy", *SPELT, "rain " * 100, ""]
    together = tokenize(albert, texts, 20)
    assert together.truncated == sum(tokenize(albert, [text], 20).truncated for text in texts) == 2
    for place, text in enumerate(texts):
        alone = tokenize(albert, [text], 20)
        assert together.ids[together.offsets[place] : together.offsets[place + 1]].tolist() == alone.ids.tolist()


@settings(max_examples=50)
@given(text=st.text(alphabet=st.characters(exclude_categories=["Cs"], exclude_characters="[<")))
def test_other_texts_have_the_tokens_that_they_always_had(albert, text: str) -> None:
    plain = albert([text], truncation=True, max_length=64)["input_ids"][0]
    special = set(albert.all_special_ids) - {albert.unk_token_id}
    if sum(token in special for token in plain) == 2:  # a wide ＜pad＞ is folded to the narrow one
        assert tokenize(albert, [text], 64).ids.tolist() == plain


def test_a_tokenizer_of_words_reads_them_as_words_it_lacks(with_weights: Path) -> None:
    tokenizer = load_tokenizer(with_weights)
    good, sun = inner(tokenizer, "good sun")
    assert inner(tokenizer, "good [SEP] sun") == [good, *[tokenizer.unk_token_id] * 3, sun]


# Weights


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (torch.zeros_like, "all kernels are 0"),
        (lambda tensor: tensor * float("nan"), "not finite"),
        (lambda tensor: tensor * float("inf"), "not finite"),
    ],
)
def test_weights_that_compute_nothing_are_refused(with_weights: Path, change, told: str) -> None:
    path = with_weights / "model.safetensors"
    save_file({name: change(tensor) for name, tensor in load_file(path).items()}, path, {"format": "pt"})
    with pytest.raises(UserError, match=told):
        load_text_encoder(with_weights)


def test_complex_weights_are_refused(with_weights: Path) -> None:
    state = load_file(with_weights / "model.safetensors")
    os.unlink(with_weights / "model.safetensors")
    torch.save({name: tensor.to(torch.complex64) for name, tensor in state.items()}, with_weights / "pytorch_model.bin")
    with pytest.raises(UserError, match="complex numbers"):
        load_text_encoder(with_weights)


def test_a_run_of_complex_weights_is_refused(tmp_path: Path) -> None:
    from frozenfusion.utils.tensors import fill

    layer = torch.nn.Linear(2, 2)
    state = {name: tensor.to(torch.complex64) for name, tensor in layer.state_dict().items()}
    with pytest.raises(UserError, match=r"torch\.complex64, which no parameter has"):
        fill(layer, state, tmp_path / "model.safetensors")


def test_a_tokenizer_of_another_encoder_is_refused(tmp_path: Path) -> None:
    training = tiny.make_training(tmp_path, epochs=1)
    config = tmp_path / "encoder" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "vocab_size": 5}))
    with pytest.raises(UserError, match="the tokenizer has 13 tokens, and the text encoder knows 5"):
        training.train()


# Where an encoder is


def test_a_folder_is_the_same_encoder_however_its_path_is_given(tmp_path: Path, monkeypatch) -> None:
    training = tiny.make_training(tmp_path, epochs=1, fusion=("text",), freeze_text=True)
    monkeypatch.chdir(tmp_path)
    training.but(text_encoder="encoder").train()
    cached = sorted(tmp_path.glob("features.text-*.h5"))
    run = training.but(text_encoder=str(tmp_path / "encoder"), epochs=2).train()
    assert run.epochs == 2
    assert sorted(tmp_path.glob("features.text-*.h5")) == cached
    assert json.loads((run.folder / "config.json").read_text())["model"]["text_encoder"] == "encoder"
    training.but(text_encoder="./encoder", epochs=3).train()
    shutil.copytree(tmp_path / "encoder", tmp_path / "other")
    with pytest.raises(UserError, match="was trained otherwise"):
        training.but(text_encoder="other", epochs=3).train()
