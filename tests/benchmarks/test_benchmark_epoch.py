from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import tiny

from benchmarks import epoch


def test_the_epoch_benchmark_measures_every_way_beside_the_reference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data, encoder = tiny.make_data(tmp_path / "data"), tiny.make_text_encoder(tmp_path / "encoder")
    shapes = f"--backbone efficientnet-b0 --image-size 32 --text-encoder {encoder} --device cpu"
    given = f"--data {data} {shapes} --pairs 24 --steps 1 --rounds 1 --json {tmp_path / 'figures.json'}"
    monkeypatch.setattr(sys, "argv", ["benchmarks.epoch", *given.split()])
    monkeypatch.setattr(epoch, "own_process", lambda: ThreadPoolExecutor(1))  # each would load torch and transformers
    epoch.main()
    found = json.loads((tmp_path / "figures.json").read_text())["results"]
    assert {epoch.REFERENCE, epoch.OURS, epoch.FROZEN} <= found["ratios"].keys()
    assert found["ratios"][epoch.REFERENCE] == 1
    assert epoch.FROZEN in capsys.readouterr().out
    assert not list(tmp_path.glob("*.h5"))
