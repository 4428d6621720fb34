"""Frozen backbones: weights that fit or are refused, fingerprints, and features of the package's own network."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from efficientnet_pytorch import EfficientNet
from efficientnet_pytorch.utils import url_map

from frozenfusion.utils.errors import UserError
from frozenfusion.vision.backbone import Backbone, build_backbone
from frozenfusion.vision.efficientnet import EfficientNetEncoder
from frozenfusion.vision.pixels import IMAGENET_MEAN as MEAN
from frozenfusion.vision.registry import IMAGENET_STD as STD

NAME, SIZE = "efficientnet-b0", 64


@pytest.fixture(scope="module")
def network():
    """A package network with weights and statistics of its own, and its classifier."""
    torch.manual_seed(1)
    network = EfficientNet.from_name(NAME).eval()
    network.load_state_dict(EfficientNetEncoder(NAME, "random").network(SIZE).state_dict(), strict=False)
    for name, value in network.state_dict().items():
        if "_bn" in name and name.endswith(".weight"):
            value *= torch.rand_like(value) + 0.5
        elif name.endswith(".bias"):
            value.normal_(0, 0.1)
    return network


@pytest.fixture(scope="module")
def files(network, tmp_path_factory):
    """The same weights as .pth, with the classifier, and as .safetensors, without."""
    folder = tmp_path_factory.mktemp("weights")
    state = network.state_dict()
    torch.save(state, folder / "weights.pth")
    headless = {name: value for name, value in state.items() if not name.startswith("_fc")}
    safetensors.torch.save_file(headless, folder / "weights.safetensors")
    return folder


@pytest.fixture(scope="module")
def pictures():
    return np.random.default_rng(0).integers(0, 256, (5, SIZE, SIZE, 3), dtype=np.uint8)


def backbone_of(weights, **changes):
    return build_backbone(NAME, str(weights), **({"image_size": SIZE} | changes))


def maps_of_the_package(network, pictures):
    """The reference's way: to [0, 1], normalised, extract_features."""
    pixels = torch.from_numpy(pictures).permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        return network.extract_features((pixels - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1))


def largest_difference(features, expected):
    return np.abs(features - expected).max() / np.abs(expected).max()


def test_features_are_those_of_the_package(network, files, pictures):
    expected = maps_of_the_package(network, pictures).mean((2, 3)).numpy()
    features = backbone_of(files / "weights.pth")(pictures)
    assert features.dtype == np.float32
    assert largest_difference(features, expected) < 1e-5


def test_regions_are_those_of_the_package_in_reading_order(network, files, pictures):
    backbone = backbone_of(files / "weights.pth", pool="none")
    features = backbone(pictures)
    assert backbone.feature_shape == features.shape[1:] == (4, 1280)
    maps = maps_of_the_package(network, pictures)  # [b, d, 2, 2]
    assert largest_difference(features[:, 1], maps[:, :, 0, 1].numpy()) < 1e-5
    assert largest_difference(features[:, 2], maps[:, :, 1, 0].numpy()) < 1e-5


@pytest.mark.parametrize("name", ["efficientnet-b1", "efficientnet-b4", "efficientnet-b7"])
@pytest.mark.parametrize("size", [65, 224])
def test_the_number_of_regions_is_told_without_running_the_network(name, size):
    network = EfficientNet.from_name(name, include_top=False)
    side = size
    for conv in [network._conv_stem, *(block._depthwise_conv for block in network._blocks)]:
        with torch.no_grad():
            side = conv.static_padding(torch.empty(1, 1, side, side)).shape[2] - conv.kernel_size[0]
        side = side // conv.stride[0] + 1
    described = build_backbone(name, "random", pool="none", image_size=size)
    assert described.feature_shape == (side * side, network._conv_head.out_channels)


def test_the_default_backbone_has_the_shapes_of_the_reference():
    assert build_backbone("efficientnet-b7", "random").feature_shape == (2560,)
    assert build_backbone("efficientnet-b7", "random").image_size == 224
    assert build_backbone("efficientnet-b7", "random", pool="none").feature_shape == (49, 2560)


def test_the_network_is_in_eval_mode_so_a_picture_has_one_value(files, pictures):
    backbone = backbone_of(files / "weights.pth")
    assert not any(module.training for module in backbone.encoder.network(SIZE).modules())
    assert np.array_equal(backbone(pictures), backbone(pictures))


def test_padding_is_the_packages_own_not_that_of_the_image_size(network, files, pictures):
    torch.manual_seed(1)
    other = EfficientNet.from_name(NAME, image_size=SIZE - 1).eval()
    other.load_state_dict(network.state_dict())
    padded_otherwise = maps_of_the_package(other, pictures).mean((2, 3)).numpy()
    assert largest_difference(backbone_of(files / "weights.pth")(pictures), padded_otherwise) > 0.05


# --- the fingerprint


def test_the_same_weights_have_one_hash_whatever_file_they_came_in(files):
    assert backbone_of(files / "weights.pth").fingerprint == backbone_of(files / "weights.safetensors").fingerprint


def test_other_weights_have_another_hash(files, network, tmp_path):
    state = {name: value.clone() for name, value in network.state_dict().items()}
    state["_blocks.3._bn1.running_var"][0] += 1e-4
    torch.save(state, tmp_path / "other.pth")
    assert backbone_of(tmp_path / "other.pth").fingerprint != backbone_of(files / "weights.pth").fingerprint


def test_the_fingerprint_holds_all_that_changes_features_and_nothing_else(files):
    plain = backbone_of(files / "weights.pth").fingerprint
    assert set(plain) == {
        "backbone", "weights_sha256", "image_size", "resampling", "normalisation", "pooling", "precision", "dtype",
        "format",
    }  # fmt: skip
    for changes in (
        {"image_size": 65}, {"pool": "none"}, {"precision": "bf16"}, {"dtype": "float16"}, {"jpeg_draft": True}
    ):  # fmt: skip
        changed = backbone_of(files / "weights.pth", **changes).fingerprint
        assert sum(changed[part] != plain[part] for part in plain) == 1


def test_describing_a_backbone_builds_and_runs_no_network(files, monkeypatch):
    monkeypatch.setattr(EfficientNet, "extract_features", lambda *_: pytest.fail("the network was run"))
    monkeypatch.setattr(
        "frozenfusion.vision.efficientnet.FoldedEfficientNet", lambda *_: pytest.fail("the network was built")
    )
    backbone = backbone_of("random")
    assert backbone.fingerprint["backbone"] == NAME
    assert backbone.feature_shape == (1280,)


# --- random weights


def drawn(seed):
    return Backbone(NAME, EfficientNetEncoder(NAME, "random", seed), image_size=SIZE)


def test_random_weights_come_from_their_seed_alone(pictures):
    first = drawn(seed=0)
    torch.manual_seed(7)
    again, other = drawn(seed=0), drawn(seed=1)
    assert first.fingerprint == again.fingerprint
    assert first.fingerprint != other.fingerprint
    assert np.array_equal(first(pictures), again(pictures))


def test_random_features_neither_vanish_nor_explode():
    shades = np.random.default_rng(0).integers(0, 256, (12, 4, 4, 3), dtype=np.uint8)
    pictures = shades.repeat(SIZE // 4, axis=1).repeat(SIZE // 4, axis=2)
    spread = backbone_of("random")(pictures).std(axis=0)
    assert 0.05 < np.median(spread) < 5
    assert spread.max() < 50


def test_random_branches_are_small_beside_what_they_are_added_to_and_there_alone():
    """Others would fade away from block to block, until a deep network carries its own rounding (bf16)."""
    network = backbone_of("random").encoder.network(SIZE)
    narrow = [block._block_args.input_filters == block._block_args.output_filters for block in network._blocks]
    skips = [same and block._block_args.stride in (1, [1]) for same, block in zip(narrow, network._blocks, strict=True)]
    assert 0 < sum(skips) < len(skips)
    for block, skip in zip(network._blocks, skips, strict=True):
        assert block._bn2.weight.unique().tolist() == pytest.approx([0.1 if skip else 1.0])


def test_random_weights_are_warned_about(caplog):
    backbone_of("random")
    assert "random weights" in caplog.text


# --- weights that cannot be used


def test_weights_of_another_network_are_refused_naming_what_differs(files):
    with pytest.raises(UserError) as refused:
        build_backbone("efficientnet-b1", str(files / "weights.pth"))
    message = str(refused.value)
    assert "not the weights of efficientnet-b1" in message
    assert "missing: _blocks.16._bn0.bias" in message
    assert "…" in message
    assert "(" in message.split("of another shape")[1]


def test_a_classifier_alone_does_not_matter(network, tmp_path):
    state = network.state_dict() | {"_fc.weight": torch.zeros(3, 1280), "_fc.bias": torch.zeros(3)}
    torch.save({"state_dict": {f"module.{name}": value for name, value in state.items()}}, tmp_path / "tuned.pth")
    torch.save(network.state_dict(), tmp_path / "plain.pth")
    assert backbone_of(tmp_path / "tuned.pth").fingerprint == backbone_of(tmp_path / "plain.pth").fingerprint


class Malicious:
    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("save", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_a_malicious_pickle_is_refused_and_nothing_of_it_runs(tmp_path, save):
    attack = Malicious()
    attack.path = tmp_path / "hacked"
    save({"_conv_stem.weight": attack}, tmp_path / "weights.pth")
    with pytest.raises(UserError, match=r"state_dict\(\)"):
        backbone_of(tmp_path / "weights.pth")
    assert not (tmp_path / "hacked").exists()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", b"PK\x03\x04 half", "cut"])
def test_a_damaged_file_is_told_in_one_line(files, tmp_path, suffix, content):
    path = tmp_path / f"damaged{suffix}"
    path.write_bytes((files / f"weights{suffix}").read_bytes()[:100_000] if content == "cut" else content)
    with pytest.raises(UserError, match="damaged") as refused:
        backbone_of(path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("value", [[1, 2], {"a": 1}, torch.zeros(3)])
def test_a_file_of_something_else_is_refused(tmp_path, value):
    torch.save(value, tmp_path / "other.pth")
    with pytest.raises(UserError, match="state dict"):
        backbone_of(tmp_path / "other.pth")


@pytest.mark.parametrize("weights", ["imagnet", "no/such.pth", "."])
def test_a_path_without_weights_names_the_choices(weights):
    with pytest.raises(UserError, match="imagenet, or random"):
        backbone_of(weights)


def test_an_unknown_backbone_names_the_choices():
    with pytest.raises(UserError, match="efficientnet-b7"):
        build_backbone("resnet50", "random")


# --- ImageNet weights


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """torch's folder of downloads, empty, on a machine without a network."""

    def unreachable(*_, **__):
        raise OSError("Network is unreachable")

    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    monkeypatch.setattr("torch.hub.urlopen", unreachable)
    return tmp_path / "checkpoints"


def test_offline_the_file_to_fetch_its_size_and_its_place_are_named(hub):
    with pytest.raises(UserError) as refused:
        backbone_of("imagenet")
    message = str(refused.value)
    assert url_map[NAME] in message
    assert "21 MB" in message
    assert str(hub / "efficientnet-b0-355c32eb.pth") in message
    assert "`weights=FILE`" in message


def test_weights_fetched_by_hand_are_found(hub, files):
    hub.mkdir()
    (hub / "efficientnet-b0-355c32eb.pth").write_bytes((files / "weights.pth").read_bytes())
    assert backbone_of("imagenet").fingerprint == backbone_of(files / "weights.pth").fingerprint


def test_a_damaged_download_is_told(hub):
    hub.mkdir()
    (hub / "efficientnet-b0-355c32eb.pth").write_bytes(b"<html>")
    with pytest.raises(UserError, match=r"efficientnet-b0-355c32eb\.pth"):
        backbone_of("imagenet")


# --- what is stored


def test_features_beyond_float16_are_an_error_not_infinity(files, network, pictures, tmp_path):
    state = {name: value.clone() for name, value in network.state_dict().items()}
    state["_bn1.weight"] *= 1e5
    torch.save(state, tmp_path / "large.pth")
    assert backbone_of(files / "weights.pth", dtype="float16")(pictures).dtype == np.float16
    with pytest.raises(UserError, match="float32"):
        backbone_of(tmp_path / "large.pth", dtype="float16")(pictures)


def test_weights_that_are_no_numbers_are_an_error(network, pictures, tmp_path):
    state = {name: value.clone() for name, value in network.state_dict().items()}
    state["_conv_head.weight"][0] = float("nan")
    torch.save(state, tmp_path / "broken.pth")
    with pytest.raises(UserError, match="not finite"):
        backbone_of(tmp_path / "broken.pth")(pictures)
