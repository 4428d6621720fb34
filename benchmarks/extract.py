"""Stage one, image by image: the reference's way, ours with every precision and runtime there is, and their ceilings.

The reference's way opens, resizes and computes batch after batch: 8 images, eager float32, the package's own network,
no workers. Ours is `extract` whole, from a folder of files to a finished feature file, but for building the network.
A ceiling is the same network run the same way on pixels that lie in memory. The ways take turns, each in a process of
its own (ours and its ceiling share one) with a network of its own: mind the memory. Weights are random unless others
are given.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from itertools import count, islice
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from efficientnet_pytorch import EfficientNet
from PIL import Image
from safetensors.torch import save_file

from benchmarks.common import (
    HELD,
    alternate,
    call_held,
    images_that_can_be_read,
    own_process,
    parser,
    print_table,
    rates,
    write_results,
)
from frozenfusion.data.images import decode_image
from frozenfusion.data.pairs import load_pairs
from frozenfusion.data.sample.build import make_sample
from frozenfusion.extraction.config import ExtractConfig
from frozenfusion.extraction.extractor import extract
from frozenfusion.utils.device import choose_device, computes_in_bf16
from frozenfusion.utils.errors import UserError
from frozenfusion.utils.memory import keep_freed_memory
from frozenfusion.vision.backbone import Backbone, build_backbone
from frozenfusion.vision.pixels import IMAGENET_MEAN, IMAGENET_STD

REFERENCE, OURS, CEILING = "reference's way", "ours", "ceiling"
REFERENCE_BATCH = 8
RUNTIMES = ("eager", "compile", "openvino")

Way = Callable[[], np.ndarray]  # one call: the features (n, d) of all images


def main() -> None:
    given = arguments()
    device = choose_device(given.device)
    with tempfile.TemporaryDirectory(prefix="benchmark-extract-") as name, ExitStack() as processes:
        folder = Path(name)
        images = some_images(given.data or make_sample(folder / "sample"), folder / "images", given.images)
        network = reference_network(given)
        given.weights = str(folder / "weights.safetensors")  # all ways have these
        save_file(network.state_dict(), given.weights)
        process = processes.enter_context(own_process())
        process.submit(hold_reference, given, images).result()
        ways, preparation, left_out = {REFERENCE: process}, {}, {}
        for label, precision, runtime in settings(given, device, left_out):
            process = processes.enter_context(own_process())
            try:
                making = process.submit(hold_ours, label, given, folder, images, precision, runtime)
                preparation[label] = making.result()
            except UserError as error:
                left_out[label] = str(error)
                process.shutdown()
            else:
                ways |= {f"{ours_or_ceiling}, {label}": process for ours_or_ceiling in (OURS, CEILING)}
        features: dict[str, np.ndarray] = {}
        calls = {name: called_there(name, process, features) for name, process in ways.items()}
        seconds = alternate(calls, rounds=given.rounds)
    found = {name: figures(name, seconds, features) for name in ways}
    print_table(
        f"{given.backbone} at {given.image_size}, {len(images)} images, {device}, {torch.get_num_threads()} threads",
        ["way", "img/s", "times the reference", "of its ceiling", "largest relative error", "least cosine"],
        [[name, *(told(value) for value in row.values())] for name, row in found.items()],
    )
    if preparation:
        print("\nto build, prepare and warm up: " + ", ".join(f"{k} {v:.0f} s" for k, v in preparation.items()))
    for label, reason in left_out.items():
        print(f"left out: {label}: {reason}")
    results = {"device": str(device), "images": len(images), "ways": found, "preparation_seconds": preparation}
    write_results(given.json, "extract", {**results, "left_out": left_out})


def arguments() -> argparse.Namespace:
    options = parser("extract", __doc__)
    options.add_argument("data", type=Path, nargs="?", help="folder or manifest of pairs (by default the sample)")
    options.add_argument("--backbone", default="efficientnet-b7", help="image network (%(default)s)")
    options.add_argument("--weights", default="random", help="its weights (%(default)s)")
    options.add_argument("--image-size", type=int, default=224, help="side of the images (%(default)s)")
    options.add_argument("--images", type=int, default=64, help="images per measurement (%(default)s)")
    options.add_argument("--rounds", type=int, default=5, help="measurements of each way (%(default)s)")
    options.add_argument("--precisions", nargs="+", default=["float32", "bf16"], help="of ours (%(default)s)")
    options.add_argument("--runtimes", nargs="+", choices=RUNTIMES, default=RUNTIMES, help="of ours (%(default)s)")
    options.add_argument("--emulate", action="store_true", help="bf16 also where the hardware has none")
    options.add_argument("--device", default="auto", help="auto, cpu, cuda (%(default)s)")
    return options.parse_args()


def settings(given: argparse.Namespace, device: torch.device, left_out: dict[str, str]) -> list[tuple[str, str, str]]:
    """Label, precision and runtime of what is to be measured; what cannot be is told in `left_out`."""
    chosen = []
    for precision in given.precisions:
        if precision == "bf16" and not given.emulate and not computes_in_bf16(device):
            left_out[precision] = f"this {device.type} has no bf16 instructions (--emulate measures it all the same)"
            continue
        for runtime in given.runtimes:
            label = f"{precision}, {runtime}"
            if runtime == "openvino" and (device.type != "cpu" or importlib.util.find_spec("openvino") is None):
                left_out[label] = "not installed, or not for this device"
            else:
                chosen.append((label, precision, runtime))
    return chosen


def some_images(data: Path, folder: Path, wanted: int) -> list[Path]:
    """Copies of the first images, in a folder of their own."""
    folder.mkdir()
    images: list[Path] = []
    for content in islice(images_that_can_be_read(data), wanted):
        images.append(folder / f"{len(images):06d}.jpg")
        images[-1].write_bytes(content)
        images[-1].with_suffix(".txt").write_text("-\n")
    return images


def reference_network(given: argparse.Namespace) -> EfficientNet:
    """The package's own network."""
    return build_backbone(given.backbone, given.weights).encoder.network(given.image_size)


def hold_reference(given: argparse.Namespace, images: Sequence[Path]) -> None:
    """Make the reference's way in this process."""
    device = choose_device(given.device)
    HELD[REFERENCE] = reference(reference_network(given).to(device), images, given.image_size, device)


def hold_ours(
    label: str, given: argparse.Namespace, folder: Path, images: Sequence[Path], precision: str, runtime: str
) -> float:
    """Make ours and its ceiling in this process, and return the seconds that took. Raises UserError."""
    keep_freed_memory()  # as the scripts do
    pixels = np.stack([decode_image(image.read_bytes(), given.image_size) for image in images])
    began = time.perf_counter()
    backbone = ready(given, precision, runtime, pixels)
    HELD[f"{OURS}, {label}"] = ours(backbone, folder, given)
    HELD[f"{CEILING}, {label}"] = lambda: backbone(pixels)
    return time.perf_counter() - began


def reference(network: EfficientNet, images: Sequence[Path], size: int, device: torch.device) -> Way:
    """The reference's loop, with the package alone."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))

    def opened(path: Path) -> torch.Tensor:
        with Image.open(path) as image:
            pixels = np.array(image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR))
        return (torch.from_numpy(pixels).permute(2, 0, 1) / 255 - mean) / std

    @torch.no_grad()
    def run() -> np.ndarray:
        features = []
        for start in range(0, len(images), REFERENCE_BATCH):
            batch = torch.stack([opened(path) for path in images[start : start + REFERENCE_BATCH]])
            maps = network.extract_features(batch.to(device))
            features.append(maps.mean((2, 3)).cpu().numpy())
        return np.concatenate(features)

    return run


def ready(given: argparse.Namespace, precision: str, runtime: str, pixels: np.ndarray) -> Backbone:
    """A backbone that has run and is not prepared again. Raises UserError where it cannot run."""
    backbone = build_backbone(given.backbone, given.weights, image_size=given.image_size, precision=precision)
    runner = backbone.prepare(given.device, runtime, images_left=len(pixels))
    backbone(pixels[: runner.batch_size])
    backbone.prepare = lambda *_, **__: runner  # type: ignore[method-assign]
    return backbone


def ours(backbone: Backbone, folder: Path, given: argparse.Namespace) -> Way:
    """`extract` into a new feature file each time."""
    number = count()
    config = ExtractConfig(image_size=given.image_size, device=given.device)

    def run() -> np.ndarray:
        cache = Path(tempfile.mkdtemp(dir=folder)) / f"{next(number)}.h5"
        with mock.patch("frozenfusion.extraction.extractor.build_backbone", return_value=backbone):
            store = extract(load_pairs(folder / "images"), cache, config=config)
        return np.array(store.features)

    return run


def called_there(name: str, process: ProcessPoolExecutor, features: dict[str, np.ndarray]) -> Callable[[], None]:
    def run() -> None:
        features[name] = process.submit(call_held, name).result()

    return run


def figures(
    name: str, seconds: Mapping[str, Sequence[float]], features: Mapping[str, np.ndarray]
) -> dict[str, float | None]:
    """Medians of the rounds' rates and ratios, and how far the features are from the reference's."""

    def ratio(other: str) -> float:
        return statistics.median(np.array(seconds[other]) / np.array(seconds[name]))

    found, expected = features[name], features[REFERENCE]
    cosine = (found * expected).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(expected, axis=1)
    return {
        "images_per_second": rates({name: seconds[name]}, {name: len(found)})[name],
        "times_the_reference": ratio(REFERENCE),
        "of_its_ceiling": ratio(name.replace(OURS, CEILING)) if name.startswith(OURS) else None,
        "largest_relative_error": float(np.abs(found - expected).max() / np.abs(expected).max()),
        "least_cosine": float(cosine.min()),
    }


def told(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.1e}" if 0 < value < 1e-3 else f"{value:.4g}"


if __name__ == "__main__":
    main()
