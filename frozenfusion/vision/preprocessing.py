"""What becomes of a picture before a pretrained network sees it, read from its preprocessor_config.json.

Everything that the file says is done, by Pillow, or refused: nothing is passed over.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from frozenfusion.data.resize import FILTERS, Resize
from frozenfusion.utils import fits
from frozenfusion.utils.errors import UserError
from frozenfusion.utils.files import read_json
from frozenfusion.utils.messages import shown
from frozenfusion.vision.pixels import IMAGENET_MEAN, IMAGENET_STD

PREPROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")  # the second holds the first's content
MOST_PIXELS = 2048  # per side
MOST_TIMES = 4  # as large as what is cut out of it
_HALF = (0.5, 0.5, 0.5)
_CLIP = {"image_mean": (0.48145466, 0.4578275, 0.40821073), "image_std": (0.26862954, 0.26130258, 0.27577711)}
_IMAGENET = {"image_mean": IMAGENET_MEAN, "image_std": IMAGENET_STD}
_EVERY = {
    "do_resize": True, "do_center_crop": False, "do_rescale": True, "do_normalize": True, "rescale_factor": 1 / 255,
    "image_mean": _HALF, "image_std": _HALF, "size": {"height": 224, "width": 224}, "crop_size": None, "resample": 3,
}  # fmt: skip
_CROPPED = {"do_center_crop": True, "crop_size": {"height": 224, "width": 224}}
_SHORTER = {"size": {"shortest_edge": 224}, **_CROPPED}

# The image processors of transformers: what holds where their file says nothing.
_PROCESSORS: Mapping[str, Mapping[str, Any]] = {
    "ViT": {"resample": 2},
    "Siglip": {},
    "DeiT": {"size": {"height": 256, "width": 256}, **_CROPPED},
    "Beit": {"crop_size": {"height": 224, "width": 224}},
    "DINOv3ViT": {"resample": 2, **_IMAGENET},
    "Pvt": _IMAGENET,
    "CLIP": {**_SHORTER, **_CLIP},
    "Bit": {**_SHORTER, **_CLIP},
    "MobileNetV1": {**_SHORTER, "size": {"shortest_edge": 256}, "resample": 2},
    "MobileNetV2": {**_SHORTER, "size": {"shortest_edge": 256}, "resample": 2},
    "ConvNext": {"size": {"shortest_edge": 384}, "crop_pct": 224 / 256},
    "EfficientNet": {
        "size": {"height": 346, "width": 346}, "crop_size": {"height": 289, "width": 289}, "rescale_offset": False,
        "include_top": True,
    },
}  # fmt: skip
_PROCESSOR = re.compile(r"(\w+?)(?:ImageProcessor|FeatureExtractor)(?:Fast|Pil)?")
CONVNEXT_WARPS = 384  # from this size on, its processor cuts nothing out

# What says nothing about pixels.
_BESIDE = {
    "image_processor_type", "feature_extractor_type", "processor_class", "do_convert_rgb", "default_to_square",
    "_valid_processor_keys", "data_format", "input_data_format", "return_tensors", "device", "disable_grouping",
    "do_reduce_labels", "reduce_labels", "image_seq_length",
}  # fmt: skip


def _vector(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 3 and all(map(fits.number(-1e4, 1e4), value))


_FITS: Mapping[str, fits.Fit] = {
    **dict.fromkeys(("do_resize", "do_center_crop", "do_rescale", "do_normalize"), fits.flag),
    **dict.fromkeys(("rescale_offset", "include_top"), fits.flag),
    "rescale_factor": fits.number(1e-6, 1.0),
    "crop_pct": fits.number(0.25, 1.0),
    "resample": fits.whole(0, len(FILTERS) - 1),
    "image_mean": _vector,
    "image_std": lambda value: _vector(value) and all(each > 0 for each in value),
}


@dataclass(frozen=True)
class Preprocessing:
    """How a picture is resized, and the mean and deviation of RGB in [0, 1] by which it is normalised then."""

    resize: Resize
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def at(self, image_size: int | None) -> Resize:
        """The same way for another size: what is cut off stays the same part."""
        own = self.resize
        if image_size is None or image_size == own.size:
            return own
        return Resize(image_size, int(image_size * own.edge / own.size), own.keeps_shape, own.filter)


def read_preprocessing(folder: Path) -> Preprocessing:
    """What the files of a network's folder say. Raises UserError for what they lack, or what cannot be done here."""
    for name in PREPROCESSOR_FILES:
        path = folder / name
        if path.is_file():
            values = read_json(path)
            if isinstance(values, dict) and name == PREPROCESSOR_FILES[1]:
                values = values.get("image_processor")
            if values is not None:
                return _preprocessing(values, path)
    raise UserError(f"{folder}: no preprocessor_config.json there, which says how pictures are resized: put it there")


def _preprocessing(values: Any, path: Path) -> Preprocessing:
    if not isinstance(values, dict):
        raise UserError(f"{path}: is no object of settings: restore the file")
    kind = values.get("image_processor_type") or values.get("feature_extractor_type")
    match = _PROCESSOR.fullmatch(kind) if isinstance(kind, str) else None
    if match is None or match[1] not in _PROCESSORS:
        raise UserError(
            f"{path}: image_processor_type is {shown(kind)}, which is not known here (known are "
            f"{', '.join(_PROCESSORS)}): choose another network"
        )
    known = {**_EVERY, **_PROCESSORS[match[1]]}
    strange = [name for name, value in values.items() if name not in known and name not in _BESIDE and value]
    if strange:
        told = f"{strange[0]} is {shown(values[strange[0]])}"
        raise UserError(f"{path}: {told}, which cannot be done here: choose another network")
    settings = known | {name: value for name, value in values.items() if name in known and value is not None}
    if isinstance(settings["size"], int):  # as files before version 4.26 of transformers have it
        settings["size"] = dict.fromkeys(known["size"], settings["size"])
    wrong = fits.misfit(settings, _FITS)
    if wrong:
        raise UserError(f"{path}: {wrong}: restore the file")
    mean, std = _normalisation(settings)
    try:
        return Preprocessing(_resize(settings), mean, std)
    except ValueError as error:
        raise UserError(f"{path}: {error}, which cannot be done here: choose another network") from error


def _normalisation(settings: Mapping[str, Any]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of pixels in [0, 1] that do what all the file's steps do, one after another."""
    scale = 255 * settings["rescale_factor"] if settings["do_rescale"] else 255.0
    scale = 1.0 if abs(scale - 1) < 1e-6 else scale
    offset = 1.0 if settings["do_rescale"] and settings.get("rescale_offset") else 0.0
    mean, std = (0.0,) * 3, (1.0,) * 3
    if settings["do_normalize"]:
        mean, std = tuple(settings["image_mean"]), tuple(settings["image_std"])
    again = tuple(settings["image_std"]) if settings.get("include_top") else (1.0,) * 3
    return (
        tuple((each + offset) / scale for each in mean),
        tuple(one * other / scale for one, other in zip(std, again, strict=True)),
    )


def _resize(settings: Mapping[str, Any]) -> Resize:
    """What the file's sizes come to. Raises ValueError for what leaves no square, or is none of the known ways."""
    if not settings["do_resize"]:
        raise ValueError("do_resize is false")
    filter, crops = settings["resample"], settings["do_center_crop"]
    square, shorter = _sides(settings["size"], "size")
    if "crop_pct" in settings:
        if crops or not shorter:
            raise ValueError("do_center_crop is true" if crops else f"size is {shown(settings['size'])}")
        if shorter >= CONVNEXT_WARPS:
            return Resize(shorter, filter=filter)
        return Resize(shorter, int(shorter / settings["crop_pct"]), keeps_shape=True, filter=filter)
    if not crops:
        if shorter:
            raise ValueError(f"size is {shown(settings['size'])} and do_center_crop false, which leaves no squares,")
        return Resize(square, filter=filter)
    side, _ = _sides(settings["crop_size"], "crop_size")
    if not side or square + shorter > MOST_TIMES * side:
        raise ValueError(f"crop_size is {shown(settings['crop_size'])}")
    return Resize(side, shorter or square, keeps_shape=bool(shorter), filter=filter)


def _sides(size: Any, name: str) -> tuple[int, int]:
    """(side, 0) of a square, (0, side) of the shorter side alone. Raises ValueError for anything else."""
    fit = fits.whole(1, MOST_PIXELS)
    if fit(size):
        return size, 0
    given = {key: value for key, value in size.items() if value is not None} if isinstance(size, dict) else {}
    if given.keys() == {"height", "width"} and given["height"] == given["width"] and fit(given["height"]):
        return given["height"], 0
    if given.keys() == {"shortest_edge"} and fit(given["shortest_edge"]):
        return 0, given["shortest_edge"]
    raise ValueError(f"{name} is {shown(size)}")
