"""Images that have no cached features: decoded, and run through the network that the model was trained with.

Shapes: n images, b of a batch, D or (r, D) of their features.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from frozenfusion.data.colours import square
from frozenfusion.data.decoding import Decoder, no_memory
from frozenfusion.data.images import BadImage, quiet_pillow, read_image_file
from frozenfusion.data.places import Place
from frozenfusion.data.resize import Resize
from frozenfusion.store.command import ARRAYS
from frozenfusion.store.reader import Rows
from frozenfusion.store.status import UNREADABLE
from frozenfusion.utils.errors import UserError
from frozenfusion.utils.messages import first_few, one_line
from frozenfusion.utils.progress import log
from frozenfusion.vision.backbone import JPEG_DRAFT, Backbone, build_backbone
from frozenfusion.vision.runner import default_batch_size

AnyImage = str | os.PathLike[str] | Place | bytes | Image.Image | NDArray[np.uint8]

DECODED_AHEAD = 4  # batches


class RawImages:
    """Features of images, in the place of a feature file's rows; those that cannot be used are not `present`."""

    def __init__(self, images: Sequence[AnyImage | None], backbone: Backbone, device: torch.device) -> None:
        self.present = np.zeros(len(images), dtype=bool)
        features = np.zeros((len(images), *backbone.feature_shape), dtype=np.float32)
        runner = backbone.prepare(str(device), "eager", batch_size=min(len(images), default_batch_size(device)))
        reasons = []
        workers = min(16, os.cpu_count() or 1)
        decoder = Decoder(backbone.resize, draft=backbone.jpeg_draft, workers=workers)
        with quiet_pillow(), ThreadPoolExecutor(workers, "decode") as pool, decoder:
            rest = iter(enumerate(images))
            while part := list(islice(rest, DECODED_AHEAD * runner.batch_size)):
                decoded = list(pool.map(lambda item: _decoded(item[1], decoder, backbone.resize), part))
                reasons += [
                    f"number {row + 1} ({found})"
                    for (row, _), found in zip(part, decoded, strict=True)
                    if isinstance(found, BadImage)
                ]
                usable = [(row, found) for (row, _), found in zip(part, decoded, strict=True) if _is_array(found)]
                for rows, pixels in _batches(usable, runner.batch_size):
                    features[rows] = backbone(pixels)
                    self.present[rows] = True
        if reasons:
            told = f"{len(reasons):,} of {len(images):,} images"
            log.warning("%s cannot be used, and count as missing: %s", told, first_few(reasons))
        self._features = torch.from_numpy(features).to(device)

    def __getitem__(self, places: Rows) -> Tensor:
        return self._features[torch.from_numpy(places).to(self._features.device)]

    def will_need(self, places: Rows) -> None:
        """Nothing: they are in memory."""


class NoImages:
    """Pairs without images."""

    def __init__(self, count: int, shape: tuple[int, ...], device: torch.device) -> None:
        self.present = np.zeros(count, dtype=bool)
        self._nothing = torch.zeros(shape, device=device)

    def __getitem__(self, places: Rows) -> Tensor:
        return self._nothing.expand(len(places), *self._nothing.shape)

    def will_need(self, places: Rows) -> None:
        """Nothing: no disk has them."""


def backbone_of(fingerprint: Mapping[str, Any], weights: str) -> Backbone:
    """The network that made features of a fingerprint, with `weights` from there. Raises UserError."""
    if fingerprint.get("backbone") == ARRAYS:
        raise UserError(
            f"the model was trained on image features of {weights}, which another program computed: they cannot be "
            "computed for other images: give `features`, made from such a file"
        )
    try:
        name, drafted = fingerprint["backbone"], str(fingerprint["resampling"]).endswith(JPEG_DRAFT)
        given = {"precision": fingerprint["precision"], "dtype": fingerprint["dtype"], "jpeg_draft": drafted}
        backbone = build_backbone(
            name, weights, pool=fingerprint["pooling"], image_size=fingerprint["image_size"], **given
        )
    except KeyError as error:
        raise UserError(
            f"the model does not say what its image features were made with (no {error}): give `features`"
        ) from error
    except UserError as error:
        raise UserError(
            f"to classify images without their features, the image network of the model is needed: {error}; its weights"
            f" can be named with `image_weights`, or give `features`"
        ) from error
    for part, wanted in fingerprint.items():
        if backbone.fingerprint.get(part) != wanted:
            raise UserError(
                f"{name} with weights {weights} is not the network that the model was trained with ({part} is"
                f" {backbone.fingerprint.get(part)}, not {wanted}): name its weights with `image_weights`"
            )
    return backbone


def _decoded(image: AnyImage | None, decoder: Decoder, resize: Resize) -> NDArray[np.uint8] | BadImage | None:
    if image is None:
        return None
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim not in (2, 3) or image.shape[2:] not in ((), (3,), (4,)):
            raise ValueError(f"an image's array is uint8 (h, w, 3), not {image.dtype} {image.shape}")
        image = Image.fromarray(image)
    if not isinstance(image, Image.Image | bytes | str | os.PathLike | Place):
        raise ValueError(
            f"an image is a path, the bytes of a file, a PIL image or an array, not {type(image).__name__}"
        )
    try:
        if isinstance(image, Image.Image):
            return square(image, resize)
        if isinstance(image, bytes):
            return decoder.decode(image)
        with decoder.reading(image):
            return decoder.decode(read_image_file(image))
    except BadImage as error:
        return error
    except OSError as error:  # a picture that is only read now
        return BadImage(UNREADABLE, one_line(error))
    except MemoryError as error:
        raise no_memory("an image" if isinstance(image, Image.Image | bytes) else image) from error


def _is_array(found: object) -> bool:
    return isinstance(found, np.ndarray)


def _batches(usable: Sequence[tuple[int, Any]], size: int) -> Iterator[tuple[list[int], NDArray[np.uint8]]]:
    for first in range(0, len(usable), size):
        part = usable[first : first + size]
        yield [row for row, _ in part], np.stack([pixels for _, pixels in part])
