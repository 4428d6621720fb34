"""The classifier of pairs: what goes through it, and how it is saved and loaded."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import resource
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors import safe_open
from torch import Tensor
from torch.testing import assert_close
from transformers import PreTrainedModel

from frozenfusion.fusion.registry import head_names
from frozenfusion.model.classifier import PairClassifier, build_model
from frozenfusion.model.config import ModelConfig
from frozenfusion.model.network import count_parameters, drop_modalities
from frozenfusion.model.run_folder import RunFolder
from frozenfusion.model.saving import save_model, save_setup, save_weights
from frozenfusion.text.encoder import TextFeatures, load_text_encoder
from frozenfusion.text.tokens import load_tokenizer, tokenize
from frozenfusion.utils.errors import UserError
from frozenfusion.utils.tensors import weights_sha256, write_tensors

LABELS = ("positive", "neutral", "negative")
D = 20  # width of the image features
REGIONS = {"cross-attention"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_text_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Any:
    return load_tokenizer(folder)


@pytest.fixture
def encoder(folder: Path) -> PreTrainedModel:
    return load_text_encoder(folder, "random")


@pytest.fixture
def text(tokenizer: Any) -> dict[str, Tensor]:
    return tokenize(tokenizer, ["good sun", "bad rain frown", "", "tree"], 32).batch(range(4))


PRESENT = torch.tensor([[True, True], [True, False], [False, True], [False, False]])


def images(regions: int = 0) -> Tensor:
    return torch.randn(4, *([regions] if regions else []), D, generator=torch.Generator().manual_seed(2))


def config(fusion: str = "concat", **changes: Any) -> ModelConfig:
    regions = 5 if fusion in REGIONS else 0
    return ModelConfig(fusion, LABELS, image_width=D, **{"image_regions": regions, "max_length": 32, **changes})


def a_model(
    fusion: str, encoder: PreTrainedModel | None, seed: int = 0, *, tokenizer: Any = None, **changes: Any
) -> PairClassifier:
    return build_model(config(fusion, **changes), encoder, seed, tokenizer).eval()


def load(run: Path) -> PairClassifier:
    return PairClassifier.from_pretrained(run)


def logits(model: PairClassifier, text: dict[str, Tensor]) -> Tensor:
    return model(text, images(model.config.image_regions), PRESENT)


# What goes through


def test_the_default_is_the_architecture_of_the_reference(folder: Path) -> None:
    encoder = load_text_encoder(folder, "random")
    encoder.config.hidden_size = 768  # only its width matters here
    model = build_model(ModelConfig("concat", LABELS), encoder, 0)
    dropout, image = model.image_projection
    assert dropout.p == 0.5
    assert (image.in_features, image.out_features) == (2560, 768)
    assert (model.head.classifier.in_features, model.head.classifier.out_features) == (1536, 3)
    assert isinstance(model.text_projection, torch.nn.Identity)


def test_concat_is_the_formula_of_the_reference(encoder: PreTrainedModel, text: dict[str, Tensor]) -> None:
    model = a_model("concat", encoder)
    pooled = encoder(**text)[1]
    image = images() @ model.image_projection[1].weight.T + model.image_projection[1].bias
    both = torch.cat([pooled, image], dim=1)
    expected = both @ model.head.classifier.weight.T + model.head.classifier.bias
    assert_close(model(text, images(), torch.ones(4, 2, dtype=torch.bool)), expected)


@pytest.mark.parametrize("fusion", sorted(head_names()))
def test_every_head_classifies_pairs_that_lack_something(
    fusion: str, encoder: PreTrainedModel, text: dict[str, Tensor]
) -> None:
    model = a_model(fusion, encoder).train()
    output = model.outputs(text, images(model.config.image_regions), PRESENT)
    assert output.logits.shape == (4, 3)
    model.loss(output, torch.tensor([0, 1, 2, -1])).backward()
    for parameter in model.head.parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all()


def test_text_alone_needs_no_image_and_image_alone_no_text(encoder: PreTrainedModel, text: dict[str, Tensor]) -> None:
    only_text, only_image = a_model("text", encoder), a_model("image", encoder)
    assert only_text.image_projection is None
    assert only_image.text_encoder is None
    assert only_text(text, None, PRESENT).shape == only_image(None, images(), PRESENT).shape == (4, 3)
    assert build_model(config("image"), None, 0).config.width == 768
    with pytest.raises(ValueError, match="needs the text"):
        only_text(None, images(), PRESENT)
    with pytest.raises(ValueError, match="needs the image"):
        only_image(text, None, PRESENT)


@pytest.mark.parametrize("fusion", sorted(head_names()))
def test_features_of_the_text_serve_in_place_of_its_tokens(
    fusion: str, encoder: PreTrainedModel, text: dict[str, Tensor]
) -> None:
    model = a_model(fusion, encoder)
    if "text" not in model.head.uses:
        pytest.skip("reads no text")
    features = model.encode_text(**text)
    if not model.head.needs_tokens:
        features = TextFeatures(features.pooled)
    image = images(model.config.image_regions)
    assert_close(model(features, image, PRESENT), model(text, image, PRESENT))


@pytest.mark.parametrize("fusion", sorted(set(head_names()) - REGIONS - {"transformer"}))
def test_pooled_heads_see_the_mean_of_the_regions(
    fusion: str, encoder: PreTrainedModel, text: dict[str, Tensor]
) -> None:
    model = a_model(fusion, encoder)
    assert torch.equal(model(text, images(49), PRESENT), model(text, images(49).mean(dim=1), PRESENT))


def test_the_transformer_reads_pooled_vectors_and_regions(encoder: PreTrainedModel, text: dict[str, Tensor]) -> None:
    model = a_model("transformer", encoder)
    for regions, expected in ((0, 1), (49, 49)):
        output = model.outputs(text, images(regions), PRESENT, attention=True)
        assert output.parts["attention"].shape == (4, expected)
    assert torch.equal(model(text, images(), PRESENT), model(text, images()[:, None], PRESENT))


def test_a_text_feature_of_another_width_is_projected(encoder: PreTrainedModel, text: dict[str, Tensor]) -> None:
    model = a_model("gated", encoder, width=24)
    assert (model.text_projection.in_features, model.text_projection.out_features) == (32, 24)
    assert logits(model, text).shape == (4, 3)


def test_heads_that_read_tokens_work_in_a_width_of_their_own(encoder: PreTrainedModel) -> None:
    model = a_model("transformer", encoder)
    assert model.config.width == model.image_projection[1].out_features == 128
    assert isinstance(model.text_projection, torch.nn.Identity)
    assert a_model("transformer", encoder, width=16).head.classifier.in_features == 16


def test_the_seed_draws_everything_but_the_encoder(folder: Path) -> None:
    def digest(seed: int) -> str:
        return weights_sha256(a_model("gated", load_text_encoder(folder, "random"), seed).state_dict())

    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    assert digest(0) == digest(0) != digest(1)
    assert torch.equal(torch.rand(1), expected)


def test_a_frozen_encoder_neither_trains_nor_drops(encoder: PreTrainedModel, text: dict[str, Tensor]) -> None:
    model = a_model("concat", encoder, freeze_text=True).train()
    assert not any(parameter.requires_grad for parameter in model.text_encoder.parameters())
    assert not any(module.training for module in model.text_encoder.modules())
    assert model.image_projection.training
    assert torch.equal(model.encode_text(**text).pooled, model.encode_text(**text).pooled)
    assert count_parameters(model) == D * 32 + 32 + 2 * 32 * 3 + 3 + 2 * 32
    assert count_parameters(model, trained=False) > count_parameters(model)


def test_modality_dropout_hides_one_of_both_and_never_the_only_one() -> None:
    torch.manual_seed(0)
    present = PRESENT.repeat(2000, 1)
    left = drop_modalities(present, 0.4)
    assert torch.equal(left[1::4], present[1::4])
    assert torch.equal(left[2::4], present[2::4])
    assert torch.equal(left[3::4], present[3::4])
    both = left[0::4]
    assert both.any(dim=1).all()
    assert abs(float((~both[:, 0]).float().mean()) - 0.2) < 0.04
    assert abs(float((~both[:, 1]).float().mean()) - 0.2) < 0.04


def test_modality_dropout_is_for_training_alone(encoder: PreTrainedModel, text: dict[str, Tensor]) -> None:
    model = a_model("concat", encoder, modality_dropout=0.9, image_dropout=0.0)
    model.text_encoder.requires_grad_(False)
    everything = torch.ones(4, 2, dtype=torch.bool)
    quiet = model(text, images(), everything)
    assert torch.equal(model(text, images(), everything), quiet)
    torch.manual_seed(0)
    assert not torch.allclose(model.train()(text, images(), everything), quiet)


@pytest.mark.parametrize("regions", [0, 1])
def test_cross_attention_is_refused_on_pooled_features(encoder: PreTrainedModel, regions: int) -> None:
    with pytest.raises(UserError, match=r"one pooled vector .* `pool=none`"):
        build_model(config("cross-attention", image_regions=regions), encoder, 0)


@pytest.mark.parametrize(
    ("fusion", "options", "said"),
    [
        ("sum", {}, "sum: no such fusion head"),
        ("concat", {"alpha": 0.5}, "concat: no option 'alpha'"),
        ("transformer", {"layers": 1.5}, "layers=1.5: expected a whole number"),
    ],
)
def test_what_no_head_is_or_takes_is_refused_as_soon_as_it_is_said(
    fusion: str, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        ModelConfig(fusion, LABELS, options)


def test_a_max_length_past_the_encoder_is_refused(encoder: PreTrainedModel) -> None:
    with pytest.raises(UserError, match="at most 128 tokens"):
        build_model(config(max_length=129), encoder, 0)


# Saved and loaded


@pytest.mark.parametrize("freeze", [False, True])
@pytest.mark.parametrize("fusion", sorted(head_names()))
def test_a_run_folder_is_all_that_a_model_needs(
    fusion: str, freeze: bool, encoder: PreTrainedModel, tokenizer: Any, text: dict[str, Tensor], tmp_path: Path
) -> None:
    gone = str(tmp_path / "gone")
    model = a_model(fusion, encoder, 3, tokenizer=tokenizer, freeze_text=freeze, text_encoder=gone)
    save_model(model, tmp_path / "run", options={"epochs": 11})
    shutil.move(tmp_path / "run", tmp_path / "elsewhere")
    again = load(tmp_path / "elsewhere")
    assert again.config == model.config
    assert not again.training
    assert torch.equal(logits(again, text), logits(model, text))
    tokens = tokenize(again.tokenizer, ["good sun"], 32)
    assert tokens.ids.tolist() == tokenize(tokenizer, ["good sun"], 32).ids.tolist()
    assert json.loads((tmp_path / "elsewhere" / "config.json").read_text())["options"] == {"epochs": 11}


def test_a_frozen_encoder_is_stored_once_for_several_runs(
    encoder: PreTrainedModel, tokenizer: Any, text: dict[str, Tensor], tmp_path: Path
) -> None:
    one, two = (a_model(name, encoder, tokenizer=tokenizer, freeze_text=True) for name in ("concat", "gated"))
    save_model(one, tmp_path / "one")
    save_setup(two, RunFolder(tmp_path / "two"), share=RunFolder(tmp_path / "one"))
    save_weights(two, tmp_path / "two" / "model.safetensors")
    first, second = (tmp_path / name / "text_encoder" / "model.safetensors" for name in ("one", "two"))
    assert first.samefile(second)
    with safe_open(tmp_path / "two" / "model.safetensors", framework="pt") as file:
        assert not any(name.startswith("text_encoder.") for name in file.keys())  # noqa: SIM118
    shutil.rmtree(tmp_path / "one")
    assert torch.equal(logits(load(tmp_path / "two"), text), logits(two, text))


def test_another_frozen_encoder_is_not_shared(
    folder: Path, encoder: PreTrainedModel, tokenizer: Any, text: dict[str, Tensor], tmp_path: Path
) -> None:
    save_model(a_model("concat", encoder, tokenizer=tokenizer, freeze_text=True), tmp_path / "one")
    drawn_anew = load_text_encoder(folder, "random", seed=9)
    other = a_model("concat", drawn_anew, tokenizer=tokenizer, freeze_text=True)
    save_setup(other, RunFolder(tmp_path / "two"), share=RunFolder(tmp_path / "one"))
    save_weights(other, tmp_path / "two" / "model.safetensors")
    assert torch.equal(logits(load(tmp_path / "two"), text), logits(other, text))


def test_a_frozen_encoder_is_copied_where_links_do_not_work(
    encoder: PreTrainedModel, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*_: Any, **__: Any) -> None:
        raise OSError(95, "not supported")

    monkeypatch.setattr(os, "link", no_links)
    one, two = RunFolder(tmp_path / "one"), RunFolder(tmp_path / "two")
    model = a_model("concat", encoder, tokenizer=tokenizer, freeze_text=True)
    save_setup(model, one)
    save_setup(model, two, share=one)
    first, second = one.frozen_encoder, two.frozen_encoder
    assert first.read_bytes() == second.read_bytes()
    assert not first.samefile(second)


def test_saving_over_a_shared_encoder_leaves_the_other_run_alone(
    folder: Path, encoder: PreTrainedModel, tokenizer: Any, tmp_path: Path
) -> None:
    one, two = RunFolder(tmp_path / "one"), RunFolder(tmp_path / "two")
    model = a_model("concat", encoder, tokenizer=tokenizer, freeze_text=True)
    save_setup(model, one)
    save_setup(model, two, share=one)
    before = one.frozen_encoder.read_bytes()
    drawn_anew = load_text_encoder(folder, "random", seed=9)
    save_setup(a_model("concat", drawn_anew, tokenizer=tokenizer, freeze_text=True), two)
    assert one.frozen_encoder.read_bytes() == before


@pytest.fixture
def run(encoder: PreTrainedModel, tokenizer: Any, tmp_path: Path) -> Path:
    save_model(a_model("concat", encoder, tokenizer=tokenizer), tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.parametrize("freeze", [False, True])
def test_a_runs_encoder_can_be_trained_further(
    freeze: bool, folder: Path, encoder: PreTrainedModel, tokenizer: Any, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    save_model(a_model("concat", encoder, tokenizer=tokenizer, freeze_text=freeze), run)
    assert RunFolder(run).has_text_encoder
    assert not RunFolder(folder).has_text_encoder
    training = tiny.make_training(tmp_path, text_encoder=str(run), text_weights="pretrained")
    again = training.inputs().text_encoder(seed=0)
    assert weights_sha256(again.state_dict()) == weights_sha256(load(run).text_encoder.state_dict())
    assert all(parameter.requires_grad for parameter in again.parameters())


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"fusion": "gated"}, "fusion gated there, concat here"),
        ({"label_names": ("yes", "no")}, r"label_names \['yes', 'no'\] there"),
        ({"image_width": 12}, "image_width 12 there, 20 here"),
        ({"width": 48}, "width 48 there, 32 here"),
    ],
)
def test_weights_of_another_model_are_told_by_what_differs(
    changes: dict[str, Any], difference: str, run: Path, encoder: PreTrainedModel
) -> None:
    other = build_model(dataclasses.replace(config(), **changes), encoder, 0)
    save_weights(other, run / "model.safetensors")
    with pytest.raises(UserError, match=difference):
        load(run)


def test_weights_of_another_architecture_are_told_by_their_tensors(run: Path, encoder: PreTrainedModel) -> None:
    state = a_model("concat", encoder).state_dict()
    state["head.classifier.weight"] = torch.zeros(3, 40)
    write_tensors(run / "model.safetensors", state, {})
    with pytest.raises(UserError, match=r"head.classifier.weight is \(3, 40\) there, \(3, 64\) here"):
        load(run)
    del state["head.classifier.weight"]
    write_tensors(run / "model.safetensors", state, {})
    with pytest.raises(UserError, match=r"head.classifier.weight is missing there"):
        load(run)


@pytest.mark.parametrize("fusion", ["text", "image", "concat", "transformer"])
def test_weights_of_version_0_1_are_read(
    fusion: str, encoder: PreTrainedModel, tokenizer: Any, text: dict[str, Tensor], tmp_path: Path
) -> None:
    model = a_model(fusion, encoder, 3, tokenizer=tokenizer)
    with torch.no_grad():
        for name, parameter in model.head.named_parameters():
            if name.endswith("missing_embedding"):
                parameter.normal_()
    save_model(model, tmp_path / "run")
    then = {name.replace("missing_embedding", "stand_in"): tensor for name, tensor in model.state_dict().items()}
    assert any(name.endswith("stand_in") for name in then)
    write_tensors(tmp_path / "run" / "model.safetensors", then, {})
    assert torch.equal(logits(load(tmp_path / "run"), text), logits(model, text))


def test_damaged_weights_are_told(run: Path) -> None:
    path = run / "model.safetensors"
    for content in (b"", b"{}", path.read_bytes()[:-10], b"\xff" * 200):
        path.write_bytes(content)
        with pytest.raises(UserError, match="damaged, or not a safetensors file"):
            load(run)
    path.unlink()
    with pytest.raises(UserError, match="no weights there"):
        load(run)


def test_a_malicious_pickle_is_refused_and_not_run(run: Path, tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return os.mkdir, (str(tmp_path / "mark"),)

    (run / "model.safetensors").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(UserError, match="not a safetensors file"):
        load(run)
    torch.save({"head.classifier.weight": Bomb()}, run / "model.safetensors")
    with pytest.raises(UserError, match="not a safetensors file"):
        load(run)
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize(
    "content", ["{", "[]", "{}", '{"format": 99}', '{"format": 1}', '{"format": 1, "model": {"fusion": "concat"}}']
)
def test_a_folder_that_is_no_run_is_told(run: Path, content: str) -> None:
    (run / "config.json").write_text(content)
    with pytest.raises(UserError, match=r"config.json: "):
        load(run)


def test_a_missing_run_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file or folder"):
        _ = RunFolder(tmp_path / "nothing").model_config


@pytest.mark.parametrize("missing", ["tokenizer", "text_encoder"])
def test_a_run_that_lost_a_part_is_told(run: Path, missing: str) -> None:
    shutil.rmtree(run / missing)
    with pytest.raises(UserError, match=rf"{missing}\S*: not there"):
        load(run)


def test_a_full_disk_is_told_and_leaves_the_old_weights(run: Path, encoder: PreTrainedModel) -> None:
    before = (run / "model.safetensors").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))  # Python ignores the signal that goes with it
    try:
        with pytest.raises(UserError, match="file-size limit"):
            save_weights(a_model("concat", encoder, 7), run / "model.safetensors")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (run / "model.safetensors").read_bytes() == before
    assert [path.name for path in run.glob(".*")] == []
