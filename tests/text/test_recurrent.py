"""Recurrent text encoders: what they compute, and their trainings from the texts to a prediction."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch

from frozenfusion.data.pairs import load_pairs
from frozenfusion.evaluation.evaluator import evaluate
from frozenfusion.model.classifier import PairClassifier
from frozenfusion.model.run_folder import RunFolder
from frozenfusion.text.encoder import encode, load_text_encoder
from frozenfusion.text.recurrent import RecurrentConfig, RecurrentEncoder, new_recurrent
from frozenfusion.text.tokens import tokenize
from frozenfusion.text.vectors import WordVectors
from frozenfusion.text.words import vocabulary, word_tokenizer
from frozenfusion.utils.errors import UsageError, UserError

TEXTS = ["good sun smile rain bad", "rain", "", "tree road noon tree road noon tree road noon", "good strange"]
KINDS = ("lstm", "gru", "bilstm", "bigru")


def encoder_of(kind: str, **changes: Any) -> RecurrentEncoder:
    config = RecurrentConfig(
        **{
            "cell": kind.removeprefix("bi"),
            "bidirectional": kind.startswith("bi"),
            "vocab_size": 12,
            "embedding_size": 6,
            "rnn_width": 5,
            "num_hidden_layers": 2,
            **changes,
        }
    )
    return new_recurrent(config, seed=1)


@pytest.fixture(scope="module")
def tokens() -> Any:
    return tokenize(word_tokenizer(TEXTS[:4] * 2, "space"), TEXTS, 128)


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_is_encoded_alike_whatever_stands_beside_it(kind: str, tokens: Any):
    encoder = encoder_of(kind)
    width = 10 if kind.startswith("bi") else 5
    with torch.inference_mode():
        together = encode(encoder, tokens.batch(range(len(TEXTS))))
        assert together.pooled.shape == (len(TEXTS), width)
        for row in range(len(TEXTS)):
            alone = encode(encoder, tokens.batch([row], pad_to_multiple=1))
            length = alone.tokens.shape[1]
            torch.testing.assert_close(together.pooled[row], alone.pooled[0])
            torch.testing.assert_close(together.tokens[row, :length], alone.tokens[0])
            assert together.mask[row].tolist() == [place < length for place in range(together.mask.shape[1])]
            assert not together.tokens[row, length:].any()


@pytest.mark.parametrize("kind", KINDS)
def test_the_text_feature_is_the_last_state_of_each_direction(kind: str, tokens: Any):
    with torch.inference_mode():
        pooled, states, mask = encode(encoder_of(kind), tokens.batch(range(len(TEXTS))))
    ends = states[torch.arange(len(TEXTS)), mask.sum(dim=1) - 1]
    assert pooled[:, :5].equal(ends[:, :5])
    assert pooled[:, 5:].equal(states[:, 0, 5:])


def test_word_vectors_are_the_embeddings_of_their_words_and_the_others_are_as_wide():
    config = RecurrentConfig(vocab_size=2000, embedding_size=8, rnn_width=4)
    values = np.zeros((2000, 8), np.float32)
    found = np.arange(2000) % 2 == 1
    values[found] = np.random.default_rng(0).normal(scale=0.1, size=(1000, 8))
    weight = new_recurrent(config, 0, WordVectors(values, found)).embeddings.weight
    assert (weight[found].detach().numpy() == values[found]).all()
    assert not weight[0].any()  # padding
    assert weight[~torch.from_numpy(found)].std().item() == pytest.approx(0.1, rel=0.1)
    assert not weight.equal(new_recurrent(config, 1, WordVectors(values, found)).embeddings.weight)


@pytest.mark.parametrize(
    "changes",
    [
        {"cell": "rnn"},
        {"cell": None},
        {"bidirectional": 1},
        {"rnn_width": 0},
        {"rnn_width": 2**25},
        {"num_hidden_layers": 10**6},
        {"vocab_size": 2**24, "embedding_size": 2**24},
        {"embedding_size": "9"},
        {"pad_token_id": 12},
        {"pad_token_id": -1},
        {"dropout": 1.5},
    ],
)
def test_a_configuration_that_cannot_be_is_a_line(changes: dict[str, Any], tmp_path: Path):
    encoder = encoder_of("lstm")
    encoder.save_pretrained(tmp_path)
    assert load_text_encoder(tmp_path).embeddings.weight.equal(encoder.embeddings.weight)
    values = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**values, **changes}))
    with pytest.raises(UserError, match=r"config\.json"):
        load_text_encoder(tmp_path, "random")


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> tiny.Training:
    """A bigru that was trained for three epochs."""
    changes: dict[str, Any] = {"text_encoder": "bigru", "rnn_width": 6, "rnn_layers": 2, "text_weights": "pretrained"}
    made = tiny.make_training(tmp_path_factory.mktemp("recurrent"), **changes)
    made.train()
    return made


def test_a_resumed_training_equals_an_uninterrupted_one(training: tiny.Training, tmp_path: Path):
    resumed = training.but(run=tmp_path / "run")
    resumed.but(epochs=1).train()
    resumed.train()
    for name in ("model.safetensors", "last.safetensors", "checkpoint.safetensors"):
        tiny.assert_same_tensors(resumed.run / name, training.run / name)


def test_a_run_is_used_anywhere_evaluated_and_taken_as_text_encoder(training: tiny.Training, tmp_path: Path):
    model = PairClassifier.from_pretrained(training.run)
    model.save_pretrained(tmp_path / "copy")
    pairs = load_pairs(training.data)
    probabilities = model.predict_proba(pairs, training.cache)
    again = PairClassifier.from_pretrained(tmp_path / "copy")
    assert (again.predict_proba(pairs, training.cache) == probabilities).all()
    assert again.predict_proba(texts=["good NEVER seen", None, "好"]).shape == (3, 3)
    taken = training.but(text_encoder=str(training.run), rnn_width=256, rnn_layers=1, freeze_text=True, epochs=1)
    frozen = taken.but(run=tmp_path / "frozen", fusion=("transformer",))
    frozen.train()
    loaded = PairClassifier.from_pretrained(frozen.run).text_encoder.state_dict()
    assert all(tensor.equal(loaded[name]) for name, tensor in model.text_encoder.state_dict().items())
    evaluate([training.run, frozen.run], pairs, training.cache)


def test_the_vocabulary_is_of_the_train_part_alone(training: tiny.Training, tmp_path: Path):
    lines = list(csv.DictReader(training.data.open(newline="")))
    split = RunFolder(training.run).split
    for line in lines:
        part = "train" if line["id"] in split.train else "val" if line["id"] in split.val else "test"
        line["text"] += f" only{part} only{part}"
    data = tmp_path / "pairs.csv"
    with data.open("w", newline="") as file:
        written = csv.DictWriter(file, list(lines[0]))
        written.writeheader()
        written.writerows(lines)
    words = vocabulary(training.but(data=data).inputs().tokenizer)
    assert "onlytrain" in words
    assert not {"onlyval", "onlytest"} & set(words)


def test_a_sweep_starts_all_runs_from_the_vectors_of_a_file(
    training: tiny.Training, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    (tmp_path / "vectors.txt").write_text("good 1 2\nsun 3 4\nmoon 5 6\n")
    made = training.but(word_vectors=tmp_path / "vectors.txt", freeze_text=True, run=tmp_path / "sweep", epochs=1)
    made = made.but(fusion=("text",), seeds=(0, 1))
    with caplog.at_level("INFO", "frozenfusion"):
        made.sweep()
    assert "vectors.txt: vectors of 22.2% of the words" in caplog.text
    for name in ("text-seed0", "text-seed1"):
        model = PairClassifier.from_pretrained(made.run / name)
        rows = [model.tokenizer.get_vocab()[word] for word in ("good", "sun")]
        assert model.text_encoder.embeddings.weight[rows].tolist() == [[1, 2], [3, 4]]
    made.sweep()
    with pytest.raises(UserError, match=r"rnn_layers` 2 → 1"):
        made.but(run=made.run / "text-seed0", seeds=(0,), rnn_layers=1).train()


def test_a_frozen_encoder_that_nothing_taught_is_warned_of(training: tiny.Training, caplog: pytest.LogCaptureFixture):
    training.but(freeze_text=True).inputs().text_encoder(0)
    assert "a frozen bigru that nothing taught" in caplog.text


def test_a_vocabulary_that_came_out_otherwise_is_not_trained_on(
    training: tiny.Training, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(
        "frozenfusion.training.inputs.word_tokenizer", lambda *_: word_tokenizer(["other"] * 2, "space")
    )
    with pytest.raises(UserError, match="vocabulary: another version"):
        training.but(epochs=4).train()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"text_encoder": "albert-base-v2", "rnn_width": 3}, "`rnn_width` means nothing to `text_encoder=albert"),
        ({"text_encoder": "x", "word_vectors": "y"}, "`word_vectors` means nothing"),
        ({"words": "spaces"}, "`words` must be one of auto, space, jieba, char"),
        ({"rnn_layers": 0}, "`rnn_layers` must be at least 1"),
        ({"rnn_width": 10**9}, "`rnn_width` must be at most"),
    ],
)
def test_options_that_mean_nothing_are_refused(changes: dict[str, Any], told: str, training: tiny.Training):
    with pytest.raises(UsageError, match=told):
        training.but(**{"rnn_width": 256, "rnn_layers": 1, **changes})


def test_without_gensim_word2vec_says_what_to_install(training: tiny.Training, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "gensim", None)
    monkeypatch.setitem(sys.modules, "gensim.models", None)
    with pytest.raises(UserError, match="pip install gensim"):
        training.but(word_vectors="word2vec").inputs().text_encoder(0)
