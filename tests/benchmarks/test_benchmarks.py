from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks import decode, store


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
    options = f"--megapixels 0.01 0.3 --images 2 --rounds 1 --image-size 64 --json {figures}"
    monkeypatch.setattr(sys, "argv", ["benchmarks.decode", *options.split()])
    decode.main()
    small, large = json.loads(figures.read_text())["results"].values()
    assert small["largest_difference"] == 0 < large["largest_difference"]
    assert "megapixels" in capsys.readouterr().out
