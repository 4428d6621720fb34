"""Vision networks of transformers: features and preprocessing are the library's own, and named by one fingerprint."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from tiny import make_text_encoder

import frozenfusion as ff
from frozenfusion.data.colours import square
from frozenfusion.utils.errors import UsageError, UserError
from frozenfusion.vision.backbone import build_backbone
from frozenfusion.vision.preprocessing import read_preprocessing

SIZE = 32
TINY = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24, "image_size": SIZE,
    "patch_size": 8, "initializer_range": 0.4,
}  # fmt: skip
CLIP = {"vision_config": TINY, "text_config": TINY | {"vocab_size": 30}}
STAGES = {"num_channels": 3, "hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2}
SQUARE = {"image_processor_type": "ViTImageProcessor", "size": {"height": SIZE, "width": SIZE}}
CROPPED = {
    "image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 36},
    "crop_size": {"height": SIZE, "width": SIZE},
}  # fmt: skip
CONVNEXT = {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": SIZE}, "crop_pct": 0.875}

# family: class whose weights are saved, configuration, the class run, tokens before the patches, preprocessing.
FAMILIES: dict[str, tuple[str, dict[str, Any], str, int, dict[str, Any]]] = {
    "ViT": ("ViTModel", TINY, "ViTModel", 1, SQUARE),
    "DeiT": ("DeiTModel", TINY, "DeiTModel", 2, SQUARE),
    "Dinov2": ("Dinov2Model", TINY, "Dinov2Model", 1, CROPPED | {"image_processor_type": "BitImageProcessor"}),
    "Dinov2WithRegisters": (
        "Dinov2WithRegistersModel", TINY | {"num_register_tokens": 4}, "Dinov2WithRegistersModel", 5, CROPPED,
    ),
    "DINOv3ViT": (
        "DINOv3ViTModel", TINY | {"num_register_tokens": 4}, "DINOv3ViTModel", 5,
        SQUARE | {"image_processor_type": "DINOv3ViTImageProcessorFast"},
    ),
    "CLIPVision": (
        "CLIPVisionModelWithProjection", TINY | {"projection_dim": 12}, "CLIPVisionModelWithProjection", 1, CROPPED,
    ),
    "CLIP": ("CLIPModel", CLIP | {"projection_dim": 12}, "CLIPVisionModelWithProjection", 1, CROPPED),
    "Siglip": ("SiglipModel", CLIP, "SiglipVisionModel", 0, SQUARE | {"image_processor_type": "SiglipImageProcessor"}),
    "ConvNext": ("ConvNextModel", STAGES, "ConvNextModel", 0, CONVNEXT),
    "Swin": (
        "SwinModel",
        {"image_size": SIZE, "patch_size": 2, "embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4},
        "SwinModel", 0, SQUARE,
    ),
    "ResNet": ("ResNetModel", STAGES | {"embedding_size": 8, "layer_type": "basic"}, "ResNetModel", 0, CONVNEXT),
    "EfficientNet": (
        "EfficientNetModel",
        {"width_coefficient": 0.1, "depth_coefficient": 0.1, "hidden_dim": 128, "batch_norm_eps": 1e-12},
        "EfficientNetModel", 0, SQUARE | {"image_processor_type": "EfficientNetImageProcessor"},
    ),
}  # fmt: skip


def saved(folder: Path, family: str, **changes: Any) -> Path:
    """A folder with a tiny random network of a family and its preprocessing, which `changes` change."""
    kind, settings, _, _, preprocessing = FAMILIES[family]
    model = getattr(transformers, kind)
    torch.manual_seed(1)
    network = model(model.config_class(**settings)).eval()
    norms = [module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    if norms:  # which, as they are made, let features vanish
        for norm in norms:
            norm.momentum = 1.0
        for kernel in (value for value in network.parameters() if value.dim() == 4):
            torch.nn.init.normal_(kernel, 0, 2 * kernel[0].numel() ** -0.5)
        network.train()(pixel_values=torch.randn(8, 3, SIZE, SIZE))
    network.eval().save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessing | changes), "utf-8")
    return folder


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory):
    """Name and folder of each family's network."""
    return request.param, saved(tmp_path_factory.mktemp("network"), request.param)


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("vit"), "ViT")


@pytest.fixture(scope="module")
def pictures():
    return np.random.default_rng(0).integers(0, 256, (3, SIZE, SIZE, 3), dtype=np.uint8)


def normalised(folder: Path, pictures: np.ndarray) -> torch.Tensor:
    """Pictures as the file says, computed apart: rescaled, then each mean and deviation in its turn."""
    values = json.loads((folder / "preprocessor_config.json").read_text("utf-8"))
    mean, std = np.full(3, 0.5), np.full(3, 0.5)
    if values["image_processor_type"] in ("CLIPImageProcessor", "BitImageProcessor"):
        mean, std = np.array([0.48145466, 0.4578275, 0.40821073]), np.array([0.26862954, 0.26130258, 0.27577711])
    if values["image_processor_type"].startswith("DINOv3"):
        mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    pixels = (pictures / 255 - mean) / std
    if values["image_processor_type"].startswith("EfficientNet"):
        pixels = pixels / std
    return torch.from_numpy(pixels).float().permute(0, 3, 1, 2)


@torch.no_grad()
def test_features_are_those_of_the_library(family, pictures):
    name, folder = family
    _, _, kind, before, _ = FAMILIES[name]
    if name == "CLIP":
        both = transformers.CLIPModel.from_pretrained(folder).eval()
        outputs = both.vision_model(pixel_values=normalised(folder, pictures))
        expected = both.visual_projection(outputs.pooler_output)
    else:
        model, report = getattr(transformers, kind).from_pretrained(folder, output_loading_info=True)
        assert not report["missing_keys"]
        outputs = model.eval()(pixel_values=normalised(folder, pictures))
        expected = outputs.image_embeds if name == "CLIPVision" else outputs.pooler_output.flatten(1)
    hidden = outputs.last_hidden_state
    regions = hidden.flatten(2).transpose(1, 2) if hidden.dim() == 4 else hidden[:, before:]
    for pool, wanted in (("avg", expected), ("none", regions)):
        backbone = build_backbone(str(folder), pool=pool)
        features = backbone(pictures)
        assert features.shape[1:] == backbone.feature_shape == tuple(wanted.shape[1:])
        assert wanted.std(0).mean() > 1e-3  # or the comparison would say nothing
        assert np.abs(features - wanted.numpy()).max() < 1e-5 * max(1, wanted.abs().max())
    assert backbone.fingerprint["backbone"] == f"transformers:{kind}"


def test_pictures_become_what_the_library_s_processor_makes_of_them(family):
    """Those of transformers that work with Pillow alone; DINOv3's does not."""
    _, folder = family
    processor = json.loads((folder / "preprocessor_config.json").read_text("utf-8"))["image_processor_type"]
    kind = getattr(transformers, f"{processor}Pil", None)
    if kind is None:
        assert processor == "DINOv3ViTImageProcessorFast"
        return
    ours, theirs = read_preprocessing(folder), kind.from_pretrained(folder)
    for size in ((70, 41), (33, 90), (20, 20)):
        image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (*size, 3), dtype=np.uint8))
        pixels = (square(image, ours.resize) / 255 - np.array(ours.mean)) / np.array(ours.std)
        expected = theirs(image, return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
        assert np.abs(pixels - expected).max() < 1e-5


DINOV3 = {"image_processor_type": "DINOv3ViTImageProcessor"}
LEGACY_CLIP = {"feature_extractor_type": "CLIPFeatureExtractor", "size": 36, "crop_size": 32, "do_center_crop": True}
SETTINGS = [
    (SQUARE | {"resample": 0}, "pillow-nearest", 32), (SQUARE | {"size": 48}, "pillow-bilinear", 48),
    (SQUARE | {"image_processor_type": "DeiTImageProcessor", "size": 40, "crop_size": 32},
     "pillow-bicubic, both sides 40, centre crop", 32),
    (LEGACY_CLIP, "pillow-bicubic, shorter side 36, centre crop", 32),
    (CONVNEXT | {"size": 224, "resample": 1}, "pillow-lanczos, shorter side 256, centre crop", 224),
    (CONVNEXT | {"size": {"shortest_edge": 384}}, "pillow-bicubic", 384), (DINOV3, "pillow-bilinear", 224),
]  # fmt: skip


@pytest.mark.parametrize(("values", "told", "size"), SETTINGS)
def test_what_the_file_says_is_what_is_done(values, told, size, tmp_path):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(values), "utf-8")
    resize = read_preprocessing(tmp_path).resize
    assert (str(resize), resize.size) == (told, size)


def test_a_processor_s_own_file_is_read_where_there_is_no_other(tmp_path):
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": CROPPED}), "utf-8")
    assert read_preprocessing(tmp_path).resize.edge == 36


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"do_flip_channel_order": True}, "do_flip_channel_order is True"), ({"do_pad": True}, "do_pad is True"),
        ({"auto_map": {"AutoImageProcessor": "evil.Processor"}}, "auto_map"), ({"do_resize": False}, "do_resize"),
        ({"image_processor_type": "Siglip2ImageProcessor"}, "Siglip2ImageProcessor"),
        ({"resample": 9}, "resample is 9"),
        ({"image_processor_type": None}, "image_processor_type is None"), ({"image_std": [0, 1, 1]}, "image_std"),
        ({"size": {"height": 32, "width": 48}}, "size is"), ({"size": {"shortest_edge": 32}}, "no squares"),
        ({"size": {"longest_edge": 32}}, "size is"), ({"size": 10**6}, "size is"), ({"rescale_factor": "x"}, "rescale"),
        ({"do_center_crop": True, "crop_size": 48}, "cut 48 pixels out of 32"), ({"image_mean": [1, 2]}, "image_mean"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_refused(changes, told, tmp_path):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(SQUARE | changes), "utf-8")
    with pytest.raises(UserError, match=told) as refused:
        read_preprocessing(tmp_path)
    assert "\n" not in str(refused.value)


def test_without_preprocessing_nothing_is_guessed(vit, tmp_path):
    shutil.copytree(vit, tmp_path / "net")
    (tmp_path / "net" / "preprocessor_config.json").unlink()
    with pytest.raises(UserError, match=r"no preprocessor_config\.json"):
        build_backbone(str(tmp_path / "net"))


# --- the fingerprint


def test_other_preprocessing_or_weights_have_another_fingerprint(vit, tmp_path):
    plain = build_backbone(str(vit)).fingerprint
    different = [
        build_backbone(str(saved(tmp_path / str(number), "ViT", **changes))).fingerprint
        for number, changes in enumerate(
            [{"resample": 3}, {"size": {"height": 48, "width": 48}}, {"image_mean": [0, 0, 0]}]
        )
    ]
    cropped = saved(
        tmp_path / "cropped", "ViT", **(CROPPED | {"resample": 2, "image_mean": [0.5] * 3, "image_std": [0.5] * 3})
    )
    different += [build_backbone(str(cropped)).fingerprint, build_backbone(str(vit), "random").fingerprint]
    config = json.loads((vit / "config.json").read_text("utf-8"))
    shutil.copytree(vit, tmp_path / "heads")
    (tmp_path / "heads" / "config.json").write_text(json.dumps(config | {"num_attention_heads": 4}), "utf-8")
    different.append(build_backbone(str(tmp_path / "heads")).fingerprint)
    for number, other in enumerate(different):
        assert sum(other[part] != plain[part] for part in plain) == 1, number


def test_a_network_is_the_same_wherever_its_folder_lies(vit, tmp_path):
    shutil.copytree(vit, tmp_path / "moved")
    assert build_backbone(str(tmp_path / "moved")).fingerprint == build_backbone(str(vit), "pretrained").fingerprint


def test_another_size_keeps_the_way_of_resizing(vit, pictures, tmp_path):
    clip = saved(tmp_path / "clip", "CLIPVision")
    larger = build_backbone(str(clip), image_size=64)
    assert (larger.resize.size, larger.resize.edge) == (64, 72)
    assert larger.feature_shape == (12,)
    larger = build_backbone(str(vit), image_size=64, pool="none")
    assert larger.feature_shape == (64, 16)
    assert larger(pictures.repeat(2, axis=1).repeat(2, axis=2)).shape == (3, 64, 16)


# --- weights


def test_weights_in_a_bin_file_are_read_as_tensors_alone(vit, tmp_path):
    shutil.copytree(vit, tmp_path / "net")
    (tmp_path / "net" / "model.safetensors").unlink()
    state = transformers.ViTModel.from_pretrained(vit).state_dict()
    torch.save(state, tmp_path / "net" / "pytorch_model.bin")
    assert build_backbone(str(tmp_path / "net")).fingerprint == build_backbone(str(vit)).fingerprint
    torch.save(state | {"layernorm.weight": Path("x")}, tmp_path / "net" / "pytorch_model.bin")
    with pytest.raises(UserError, match="cannot load the weights"):
        build_backbone(str(tmp_path / "net"))


def test_a_classifier_s_network_without_a_pooler_gives_its_first_token(tmp_path, pictures):
    folder = saved(tmp_path / "net", "ViT")
    model = transformers.ViTForImageClassification(transformers.ViTConfig(**TINY)).eval()
    model.save_pretrained(folder)
    with torch.no_grad():
        expected = model.vit(normalised(folder, pictures)).last_hidden_state[:, 0].numpy()
    assert np.abs(build_backbone(str(folder))(pictures) - expected).max() < 1e-5


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"auto_map": {"AutoModel": "evil.Net"}}, "auto_map"), ({"hidden_size": 32}, "do not fit config.json"),
        ({"num_hidden_layers": 10**6}, "layers"), ({"hidden_size": 2**23}, "parameters|build"),
        ({"model_type": "bert"}, "no network that sees pictures"), ({"model_type": "evil"}, "cannot read"),
        ({"quantization_config": {"bits": 4}}, "quantised"), ({"hidden_act": "evil"}, "cannot build"),
    ],
)  # fmt: skip
def test_a_configuration_that_cannot_be_used_is_refused(changes, told, vit, tmp_path):
    shutil.copytree(vit, tmp_path / "net")
    config = json.loads((vit / "config.json").read_text("utf-8"))
    (tmp_path / "net" / "config.json").write_text(json.dumps(config | changes), "utf-8")
    with pytest.raises(UserError, match=told) as refused:
        build_backbone(str(tmp_path / "net"))
    assert "\n" not in str(refused.value)


def test_a_network_that_draws_random_numbers_is_refused(tmp_path):
    folder = saved(tmp_path / "net", "ViT")
    transformers.ViTMAEModel(transformers.ViTMAEConfig(**TINY, mask_ratio=0.75)).save_pretrained(folder)
    with pytest.raises(UserError, match="random numbers"):
        _ = build_backbone(str(folder)).feature_shape


def test_weights_elsewhere_and_revisions_of_folders_are_refused(vit):
    with pytest.raises(UserError, match="has its weights in its folder"):
        build_backbone(str(vit), "weights.pth")
    with pytest.raises(UsageError, match="revision"):
        build_backbone(str(vit), revision="main")


# --- the hub


def test_offline_the_files_to_fetch_are_named():
    with pytest.raises(UserError) as refused:
        build_backbone("org/name", revision="v2")
    message = str(refused.value)
    assert "`backbone=org/name`" in message
    assert "config.json, preprocessor_config.json and model.safetensors" in message
    assert "https://huggingface.co/org/name/tree/v2" in message


def test_a_hub_name_is_looked_up_at_its_revision(vit, monkeypatch):
    asked = []

    def snapshot(name, **options):
        asked.append((name, options["revision"]))
        return str(vit)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    backbone = build_backbone("org/name", revision="v2")
    assert backbone.encoder.weights == "org/name@v2"
    again = build_backbone(backbone.name, backbone.encoder.weights)
    assert again.fingerprint == backbone.fingerprint == build_backbone(str(vit)).fingerprint
    assert set(asked) == {("org/name", "v2")}


# --- the whole way


def test_features_are_stored_and_new_pictures_get_the_same(tmp_path):
    folder = saved(tmp_path / "clip", "CLIP")
    (tmp_path / "data").mkdir()
    rows = []
    for number in range(8):
        picture = np.random.default_rng(number).integers(0, 256, (40, 60 + number, 3), dtype=np.uint8)
        Image.fromarray(picture).save(tmp_path / "data" / f"{number}.png")
        rows.append(f"{number},good {number},{number}.png,{'ab'[number % 2]}")
    (tmp_path / "data" / "pairs.csv").write_text("\n".join(["id,text,image,label", *rows]), "utf-8")
    pairs = ff.load_pairs(tmp_path / "data" / "pairs.csv")
    store = ff.extract(pairs, tmp_path / "features.h5", backbone=str(folder))
    assert store.shape == (12,)
    config = ff.TrainConfig(
        text_encoder=str(make_text_encoder(tmp_path / "text")), text_weights="random", epochs=1, device="cpu"
    )
    ff.train(pairs, store, "concat", config=config, run=tmp_path / "run")
    model = ff.PairClassifier.from_pretrained(tmp_path / "run")
    assert np.abs(model.predict_proba(pairs) - model.predict_proba(pairs, features=store)).max() < 1e-5
    shutil.move(folder, tmp_path / "moved")
    with pytest.raises(UserError, match="image_weights"):
        ff.PairClassifier.from_pretrained(tmp_path / "run").predict(pairs)
    moved = ff.PairClassifier.from_pretrained(tmp_path / "run", image_weights=str(tmp_path / "moved"))
    assert np.array_equal(moved.predict_proba(pairs), model.predict_proba(pairs))
    other = ff.ExtractConfig(backbone=str(saved(tmp_path / "vit", "ViT")))
    with pytest.raises(UserError, match="transformers:ViTModel"):
        ff.extract(pairs, tmp_path / "features.h5", config=other)
