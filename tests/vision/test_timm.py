"""Networks of timm: what the package itself gives, where it is installed; one line where it is not."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from frozenfusion.utils.errors import UserError
from frozenfusion.vision.backbone import build_backbone


@pytest.fixture(scope="module")
def timm():
    return pytest.importorskip("timm", exc_type=ImportError)


def test_without_timm_what_to_install_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r"needs the package timm .*pip install 'frozenfusion\[timm\]'") as refused:
        build_backbone("timm:test_vit")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["test_vit2", "test_convnext", "test_efficientnet", "swin_s3_tiny_224"])
@torch.no_grad()
def test_features_are_those_of_timm_with_a_file_s_weights(name, timm, tmp_path):
    torch.manual_seed(1)
    model = timm.create_model(name).eval()
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    config = model.pretrained_cfg
    side = config["input_size"][1]
    pictures = np.random.default_rng(0).integers(0, 256, (2, side, side, 3), dtype=np.uint8)
    pixels = torch.from_numpy((pictures / 255 - np.array(config["mean"])) / np.array(config["std"])).float()
    found = model.forward_features(pixels.permute(0, 3, 1, 2))
    pooled = model.forward_head(found, pre_logits=True)
    width = pooled.shape[-1]
    if found.dim() == 3:
        found = found[:, model.num_prefix_tokens :]
    elif found.shape[1] == model.num_features:
        found = found.permute(0, 2, 3, 1)
    for pool, wanted in (("avg", pooled), ("none", found.reshape(2, -1, model.num_features))):
        backbone = build_backbone(f"timm:{name}", str(tmp_path / "weights.pth"), pool=pool)
        features = backbone(pictures)
        assert features.shape[1:] == backbone.feature_shape == tuple(wanted.shape[1:])
        assert np.abs(features - wanted.numpy()).max() < 1e-5 * max(1, wanted.abs().max())
    assert width == features.shape[-1] or name == "test_efficientnet"
    assert (backbone.resize.size, backbone.resize.edge) == (side, int(side / config["crop_pct"]))
    assert str(backbone.resize).startswith(f"pillow-{config['interpolation']}")


def test_names_sizes_and_weights_that_do_not_fit_are_refused(timm, tmp_path):
    for name in ("timm:no_such_network", "timm:hf-hub:org/name", "timm:local-dir:/tmp"):
        with pytest.raises(UserError, match="timm has no network of this name"):
            build_backbone(name, "random")
    with pytest.raises(UserError, match="takes images of"):
        build_backbone("timm:test_vit2", "random", image_size=320)
    torch.save({"weight": torch.ones(3)}, tmp_path / "weights.pth")
    with pytest.raises(UserError, match="not the weights of timm:test_vit2"):
        build_backbone("timm:test_vit2", str(tmp_path / "weights.pth"))
    with pytest.raises(UserError, match="weights=FILE"):
        build_backbone("timm:test_vit2")
