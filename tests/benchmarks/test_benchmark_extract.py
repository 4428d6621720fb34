"""The benchmarks of extraction and of scaling run on small shapes and write their figures; no test looks at times."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import extract, scaling
from frozenfusion.data.sample.build import make_sample


def figures_of(benchmark: Any, options: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    path = folder / "figures.json"
    monkeypatch.setattr(sys, "argv", ["benchmark", *options.split(), "--json", str(path)])
    benchmark.main()
    return json.loads(path.read_text())["results"]


def test_ours_and_its_ceiling_give_the_features_of_the_reference_s_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make_sample(tmp_path / "sample", 40)
    options = (
        f"{data} --backbone efficientnet-b0 --image-size 32 --images 6 --rounds 1 --runtimes eager --precisions float32"
    )
    found = figures_of(extract, options, tmp_path, monkeypatch)
    assert list(found["ways"]) == ["reference's way", "ours, float32, eager", "ceiling, float32, eager"]
    assert all(way["largest_relative_error"] < 1e-4 for way in found["ways"].values())


def test_scaling_measures_every_stage_and_draws_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = tmp_path / "scaling.png"
    monkeypatch.setattr(scaling, "in_own_process", scaling.all_stages)
    options = f"--sizes 40 --at-most 16 --folder {tmp_path} --plot {picture}"
    found = figures_of(scaling, options, tmp_path, monkeypatch)
    assert list(found["sizes"]["40"]) == list(scaling.STAGES)
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["figures.json", "scaling.png"]
