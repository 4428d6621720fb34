from __future__ import annotations

import json
import sys
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import decode, scale, store
from frozenfusion.data.sample.build import make_sample
from frozenfusion.vision.registry import BACKBONES


def test_the_store_benchmark_writes_its_figures_and_leaves_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "scratch").mkdir()
    figures = tmp_path / "store.json"
    options = f"--rows 20 --batch-size 4 --sizes 30 --rounds 1 --folder {tmp_path / 'scratch'} --json {figures}"
    monkeypatch.setattr(sys, "argv", ["benchmarks.store", *options.split()])
    store.main()
    found = json.loads(figures.read_text())
    assert found["machine"]["cores"] >= 1
    assert set(found["results"]["random_rows"][0]["rows_per_second"]) == set(store.SHARE)
    assert found["results"]["open_and_resume"][0]["rows"] == 30
    assert "row chunks" in capsys.readouterr().out
    assert not list((tmp_path / "scratch").iterdir())


def test_the_decoding_benchmark_compares_both_ways_of_each_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = tmp_path / "decode.json"
    data = make_sample(tmp_path / "data", 40)
    options = f"{data} --megapixels 0.01 0.3 --images 2 --rounds 1 --image-size 64 --json {figures}"
    monkeypatch.setattr(sys, "argv", ["benchmarks.decode", *options.split()])
    decode.main()
    small, large = json.loads(figures.read_text())["results"].values()
    assert small["largest_difference"] == 0 < large["largest_difference"]
    assert "megapixels" in capsys.readouterr().out


class Here:
    """In the place of a process of its own: what is submitted is done at once, in this one."""

    def submit(self, work: Callable[..., Any], *given: Any) -> Future[Any]:
        done: Future[Any] = Future()
        done.set_result(work(*given))
        return done


def here() -> AbstractContextManager[Here]:
    return nullcontext(Here())


def test_the_benchmark_of_scale_shows_goals_beside_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(scale, "own_process", here)
    monkeypatch.setattr(scale, "find_spec", lambda name: None)  # Ray takes longer to start than all the rest
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    (tmp_path / "scratch").mkdir()
    figures = tmp_path / "scale.json"
    options = (
        f"--backbone {scale.STUB} --images 3 --image-size {scale.STUB_SIDE} --rows 100 --width 8 --shards 32 64 "
        f"--end-to-end 10 --rounds 1 --json {figures}"
    )
    monkeypatch.setattr(sys, "argv", ["benchmarks.scale", *options.split(), "--folder", str(tmp_path / "scratch")])
    scale.register_stub(8)
    try:
        scale.main()
    finally:
        BACKBONES.remove(scale.STUB)
    found = json.loads(figures.read_text())["results"]
    assert found["ray"] == "left out"
    assert list(found["rows"]["shards"]) == list(found["end to end"]) == ["32", "64"]
    assert set(found["rows"]["shards"]["32"]["random_rows"]) == {"8", "64", "512"}
    assert "≥ 0.9" in capsys.readouterr().out
    assert not list((tmp_path / "scratch").iterdir())
