"""The five steps of docs/scaling.md, typed as they stand there, each end in the same features."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import tiny
from conftest import ROOT
from PIL import Image

from frozenfusion.cli import extract as extract_command
from frozenfusion.cli import train as train_command
from frozenfusion.store.reader import FeatureStore
from frozenfusion.vision.registry import BACKBONES

SMALL = """
import torch
from frozenfusion import register_backbone

@register_backbone("small")
def small(weights):
    torch.manual_seed(0)
    return torch.nn.Conv2d(3, 4, 16, stride=16)
"""


def steps() -> dict[str, list[list[str]]]:
    """The words of each command, by the number of its step."""
    text = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
    section = text.partition("in five steps\n")[2].partition("\n## ")[0]
    parts = re.split(r"^\*\*(\d)\. ", section, flags=re.MULTILINE)[1:]
    return {
        number: [line.split()[1:] for line in re.findall(r"^python .*", part, re.MULTILINE)]
        for number, part in zip(parts[::2], parts[1::2], strict=True)
    }


@pytest.mark.usefixtures("no_plots")
def test_the_five_steps_run_and_end_in_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "small.py").write_text(SMALL)
    data = tiny.make_data(tmp_path / "data", 24)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 50, 3), np.uint8)).save(data.parent / "x.jpg")
    encoder = tiny.make_text_encoder(tmp_path / "encoder")
    network = f"--import {tmp_path / 'small.py'} --backbone small --image-size 32 --device cpu".split()
    texts = f"--text-encoder {encoder} --text-weights random --epochs 1 --device cpu".split()

    def typed(script: str, *words: str) -> None:
        small = [{"DATA": str(data), "2048": "12"}.get(word, word) for word in words]
        if script == "train_head.py":
            assert train_command.main([*small, *texts]) == 0
        else:
            assert extract_command.main([*small, *(() if "--info" in small else network)]) == 0

    commands = steps()
    assert list(commands) == ["1", "2", "3", "4", "5"]
    try:
        for place, numbers in (("one", "1"), ("processes", "2"), ("machines", "35")):
            (tmp_path / place).mkdir()
            monkeypatch.chdir(tmp_path / place)
            for number in numbers:
                assert commands[number]
                for words in commands[number]:
                    typed(*words)
    finally:
        BACKBONES.remove("small")
    one, *others = (tmp_path / path for path in ("one/cache/posts.h5", "processes/cache/big", "machines/cache/big"))
    assert FeatureStore(one).finished
    for other in others:
        assert np.array_equal(FeatureStore(one).features, FeatureStore(other).features)
    runs = [tmp_path / run / "model.safetensors" for run in ("one/runs/posts", "machines/runs/big")]
    tiny.assert_same_tensors(*runs)
