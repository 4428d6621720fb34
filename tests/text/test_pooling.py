"""How the tokens of a text become its one vector, and which way suits an encoder."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from safetensors.torch import load_file
from torch.testing import assert_close
from transformers import BertConfig, BertModel, DistilBertConfig, DistilBertModel

from frozenfusion.data.pairs import load_pairs
from frozenfusion.evaluation.config import EvaluateConfig
from frozenfusion.evaluation.evaluator import evaluate
from frozenfusion.model import network
from frozenfusion.model.classifier import PairClassifier, build_model
from frozenfusion.model.config import ModelConfig
from frozenfusion.model.network import count_parameters
from frozenfusion.store.reader import FeatureStore
from frozenfusion.text.encoder import choose_pool, encode, load_text_encoder
from frozenfusion.text.pooling import TEXT_POOLS, pool_tokens
from frozenfusion.text.tokens import load_tokenizer, tokenize
from frozenfusion.training.config import TrainConfig
from frozenfusion.utils.errors import UsageError, UserError

TEXTS = ["good sun smile", "", "bad rain frown tree road noon good sun smile bad rain", "tree"]
SMALL = {"vocab_size": 20, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


@pytest.fixture(scope="module")
def albert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny ALBERT with weights and tokenizer; it is only read."""
    folder = tiny.make_text_encoder(tmp_path_factory.mktemp("albert"))
    load_text_encoder(folder, "random", seed=3).save_pretrained(folder)
    return folder


def sentence_transformer(folder: Path, pooling: Any, *, others: tuple[str, ...] = (), path: Any = "1_Pooling") -> Path:
    """The files by which sentence-transformers says how it pools, beside an encoder's."""
    kinds = {"": "Transformer", path if isinstance(path, str) else "?": "Pooling"}
    modules: list[dict[str, Any]] = [
        {"idx": place, "path": name, "type": f"sentence_transformers.models.{kind}"}
        for place, (name, kind) in enumerate([*kinds.items(), *((f"2_{kind}", kind) for kind in others)])
    ]
    modules[1]["path"] = path
    folder.mkdir(exist_ok=True)
    (folder / "modules.json").write_text(json.dumps(modules))
    if pooling is not None:
        (folder / "1_Pooling").mkdir(exist_ok=True)
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return folder


# Vectors


def by_hand(outputs: Any, lengths: list[int], pool: str) -> list[np.ndarray]:
    """The vectors of texts, one after the other, from what the model says."""
    rows = [hidden[:length].numpy() for hidden, length in zip(outputs.last_hidden_state, lengths, strict=True)]
    if pool == "pooler":
        return list(outputs.pooler_output.numpy())
    return [{"cls": row[0], "mean": row.mean(axis=0), "max": row.max(axis=0)}[pool] for row in rows]


@pytest.mark.parametrize("pool", TEXT_POOLS)
def test_a_text_becomes_one_vector_whatever_its_padding(albert: Path, pool: str) -> None:
    encoder, texts = load_text_encoder(albert), tokenize(load_tokenizer(albert), TEXTS, 128)
    with torch.inference_mode():
        outputs = encoder(**texts.batch(range(4)))
        pooled = encode(encoder, texts.batch(range(4)), pool).pooled
        padded = encode(encoder, texts.batch(range(4), pad_to_multiple=128), pool).pooled
        alone = torch.cat([encode(encoder, texts.batch([row], pad_to_multiple=1), pool).pooled for row in range(4)])
    expected = torch.tensor(np.array(by_hand(outputs, texts.lengths.tolist(), pool)))
    assert pooled.shape == (4, 32)
    assert_close(pooled, expected)
    assert_close(padded, expected)
    assert_close(alone, expected)


@pytest.mark.parametrize("pool", ["mean", "max"])
def test_a_text_without_a_token_is_zero_and_bf16_is_summed_in_float32(pool: str) -> None:
    hidden = torch.full((2, 300, 4), -1.01, dtype=torch.bfloat16)
    pooled = pool_tokens(hidden, torch.tensor([[True] * 300, [False] * 300]), pool)
    assert pooled.dtype == torch.float32
    assert_close(pooled, torch.stack([hidden[0, 0].float(), torch.zeros(4)]))


# What suits an encoder


def test_auto_is_the_trained_pooler_the_mean_without_one_and_the_first_token_of_a_model_that_has_none(
    albert: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    BertModel(BertConfig(**SMALL)).save_pretrained(tmp_path / "bert")
    distilled = DistilBertConfig(vocab_size=20, dim=16, n_layers=1, n_heads=2, hidden_dim=16)
    DistilBertModel(distilled).save_pretrained(tmp_path / "distilbert")
    BertModel(BertConfig(**SMALL), add_pooling_layer=False).save_pretrained(tmp_path / "bare")
    caplog.set_level("INFO")
    for folder in (albert, tmp_path / "bert", tmp_path / "distilbert"):
        assert choose_pool("auto", folder) == "pooler", folder
    assert not caplog.records
    assert choose_pool("auto", tmp_path / "bare") == "mean"
    assert "no weights for the pooled output: a text is the mean of its tokens" in caplog.text
    assert choose_pool("auto", tmp_path / "bare", "random") == "pooler"
    assert choose_pool("pooler", tmp_path / "bare") == "pooler"
    assert "it starts at random" in caplog.text
    assert choose_pool("max", tmp_path / "nowhere") == "max"


@pytest.mark.parametrize(
    ("pooling", "expected"),
    [
        ({"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True, "pooling_mode_lasttoken": False}, "mean"),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False, "include_prompt": True}, "cls"),
        ({"pooling_mode_max_tokens": True}, "max"),
        ({"pooling_mode": "mean"}, "mean"),
        ({"pooling_mode": "cls"}, "cls"),
    ],
)
def test_auto_is_what_a_folder_of_sentence_transformers_says(tmp_path: Path, pooling: Any, expected: str) -> None:
    assert choose_pool("auto", sentence_transformer(tmp_path, pooling), "random") == expected


def test_modules_after_the_pooling_are_told_as_not_applied(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    folder = sentence_transformer(tmp_path, {"pooling_mode_mean_tokens": True}, others=("Dense", "Normalize"))
    assert choose_pool("auto", folder) == "mean"
    (line,) = caplog.messages
    assert line.endswith("also lists Dense, Normalize after its pooling: not applied")


MEAN = {"pooling_mode_mean_tokens": True}


@pytest.mark.parametrize(
    ("pooling", "path", "told"),
    [
        ({"pooling_mode_lasttoken": True}, "1_Pooling", "asks for lasttoken, .* choose `text_pool` yourself"),
        ({**MEAN, "pooling_mode_max_tokens": True}, "1_Pooling", "asks for mean_tokens and max_tokens"),
        ({"pooling_mode_mean_tokens": False}, "1_Pooling", "asks for no pooling"),
        ({"pooling_mode_mean_tokens": "yes"}, "1_Pooling", "pooling_mode_mean_tokens is 'yes', which it cannot be"),
        ([1], "1_Pooling", r"is \[1\], not an object"),
        (None, "1_Pooling", "not there, and modules.json names it"),
        (MEAN, "../1_Pooling", "the pooling's path is '../1_Pooling', which it cannot be"),
        (MEAN, "..", "which it cannot be"),
        (MEAN, 5, "which it cannot be"),
    ],
)
def test_a_pooling_that_is_not_ours_is_told_in_one_line(tmp_path: Path, pooling: Any, path: Any, told: str) -> None:
    folder = sentence_transformer(tmp_path / "model", pooling, path=path)
    with pytest.raises(UserError, match=told) as error:
        choose_pool("auto", folder)
    assert "\n" not in str(error.value)
    assert choose_pool("mean", folder) == "mean"


@pytest.mark.parametrize("content", ["{", "{}", "[1]", '[{"path": ""}]', '[{"type": 5}]'])
def test_modules_that_are_none_are_told(tmp_path: Path, content: str) -> None:
    (tmp_path / "modules.json").write_text(content)
    with pytest.raises(UserError, match=r"modules\.json"):
        choose_pool("auto", tmp_path)


# Runs


@pytest.fixture
def options(albert: Path, tmp_path: Path) -> tiny.Training:
    training = tiny.make_training(tmp_path, epochs=1, fusion=("text",))
    return training.but(text_encoder=str(albert), text_weights="pretrained")


def settled(run: Path) -> tuple[str, str]:
    values = json.loads((run / "config.json").read_text())
    return values["options"]["text_pool"], values["model"]["text_pool"]


def test_a_run_keeps_its_pooling_and_is_resumed_with_no_other(options: tiny.Training) -> None:
    options.but(text_pool="mean").train()
    assert settled(options.run) == ("mean", "mean")
    with pytest.raises(UserError, match="`text_pool` mean → max"):
        options.but(text_pool="max", epochs=2).train()
    options.but(epochs=2).train()
    assert settled(options.run) == ("mean", "mean")
    whole = options.but(text_pool="mean", epochs=2, run=options.run.parent / "whole")
    whole.train()
    tiny.assert_same_tensors(options.run / "last.safetensors", whole.run / "last.safetensors")


def test_auto_is_settled_when_a_run_begins_and_taken_over_with_its_encoder(
    options: tiny.Training, albert: Path, tmp_path: Path
) -> None:
    folder = tiny.make_text_encoder(tmp_path / "encoder")
    sentence_transformer(folder, {"pooling_mode_max_tokens": True})
    first = options.but(text_encoder=str(folder), text_weights="random")
    first.train()
    (folder / "modules.json").unlink()
    first.but(epochs=2).train()
    assert settled(first.run) == ("max", "max")
    second = options.but(text_encoder=str(first.run), run=tmp_path / "second", fusion=("transformer",))
    second.train()
    assert settled(second.run) == ("max", "max")


def a_model(folder: Path, pool: str, fusion: str = "text", *, freeze: bool = False) -> PairClassifier:
    config = ModelConfig(fusion, tiny.LABELS, text_pool=pool, image_width=tiny.WIDTH, freeze_text=freeze)
    return build_model(config, load_text_encoder(folder), 0, load_tokenizer(folder)).eval()


def test_a_pooler_without_a_use_is_neither_trained_nor_counted(albert: Path) -> None:
    counts = {pool: count_parameters(a_model(albert, pool)) for pool in TEXT_POOLS}
    assert {counts["pooler"] - counts[pool] for pool in ("cls", "mean", "max")} == {32 * 32 + 32}
    assert len({count_parameters(a_model(albert, pool, freeze=True)) for pool in TEXT_POOLS}) == 1
    for pool, fusion, gradient in (("pooler", "text", True), ("mean", "text", False), ("pooler", "transformer", False)):
        model = a_model(albert, pool, fusion)
        tokens = tokenize(load_tokenizer(albert), TEXTS, 128).batch(range(4))
        image, present = torch.zeros(4, tiny.WIDTH), torch.ones(4, 2, dtype=torch.bool)
        model.loss(model.outputs(tokens, image, present), torch.zeros(4, dtype=torch.int64)).backward()
        trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        reached = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
        assert ("text_encoder.pooler.weight" in trained) is ("text_encoder.pooler.weight" in reached) is gradient


@pytest.mark.parametrize("freeze", [False, True])
def test_a_saved_model_predicts_as_it_did(albert: Path, tmp_path: Path, freeze: bool) -> None:
    found = []
    for pool in TEXT_POOLS:
        model = a_model(albert, pool, freeze=freeze)
        model.save_pretrained(tmp_path / pool)
        again = PairClassifier.from_pretrained(tmp_path / pool)
        assert again.config.text_pool == pool
        found.append(model.predict_proba(texts=TEXTS))
        np.testing.assert_array_equal(again.predict_proba(texts=TEXTS), found[-1])
        np.testing.assert_allclose(model.predict_proba(texts=TEXTS, precision="bf16"), found[-1], atol=0.05)
    assert all(np.abs(one - other).max() > 1e-4 for one, other in itertools.combinations(found, 2))


def test_frozen_runs_of_two_poolings_share_no_vectors_and_are_evaluated_side_by_side(
    options: tiny.Training, tmp_path: Path
) -> None:
    runs = [options.but(run=tmp_path / name, text_pool=name, freeze_text=True).train() for name in ("pooler", "max")]
    stores = [FeatureStore(path) for path in tmp_path.glob("features.text-*.h5")]
    assert sorted(str(store.fingerprint.get("pool")) for store in stores) == ["None", "max"]
    pairs = load_pairs(options.data)
    evaluation = evaluate(runs, pairs, options.cache, config=EvaluateConfig(device="cpu", precision="float32"))
    for run, of in zip(runs, evaluation.predictions.values(), strict=True):
        model = PairClassifier.from_pretrained(run)
        expected = model.predict_proba(evaluation.inputs.members, options.cache)
        np.testing.assert_allclose(of.probabilities, expected, atol=1e-5)


def test_a_checkpoint_that_holds_a_pooler_without_a_use_is_resumed(
    options: tiny.Training, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As those of heads that read tokens once did."""
    options = options.but(fusion=("transformer",), epochs=2)
    whole = options.but(run=options.run.parent / "whole")
    whole.train()
    with monkeypatch.context() as patch:
        patch.setattr(network, "pooler_parameters", lambda encoder: {})
        options.but(epochs=1).train()
    assert any("pooler" in name for name in load_file(options.run / "checkpoint.safetensors"))
    options.train()
    tiny.assert_same_tensors(options.run / "last.safetensors", whole.run / "last.safetensors")


def test_a_word_that_is_no_pooling_is_refused(options: tiny.Training) -> None:
    with pytest.raises(UsageError, match="`text_pool` must be one of auto, pooler, cls, mean, max, not 'sum'"):
        TrainConfig(text_pool="sum")  # type: ignore[arg-type]
    options.train()
    path = options.run / "config.json"
    values = json.loads(path.read_text())
    for wrong in ("auto", ["mean"], 5):
        values["model"]["text_pool"] = wrong
        path.write_text(json.dumps(values))
        with pytest.raises(UserError, match=r"text_pool is .*, which it cannot be"):
            PairClassifier.from_pretrained(options.run)
