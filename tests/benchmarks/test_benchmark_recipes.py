from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import tiny

from benchmarks import recipes
from frozenfusion.data.pairs import load_pairs


def test_the_recipes_benchmark_measures_every_way_beside_the_reference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data, cache = tiny.make_data(tmp_path / "data"), tiny.make_store(tmp_path / "features.h5")
    ways = ["--ways", "head_lr 1e-3", "accumulate 4", "region_pool flatten"]
    given = (
        f"{data} --cache {cache} --fusion image --splits 2 --epochs 2 --device cpu --json {tmp_path / 'figures.json'}"
    )
    encoder = tiny.make_text_encoder(tmp_path / "encoder")
    words = [*given.split(), "--text-encoder", str(encoder), "--base", "image_dropout=0.1", *ways]
    monkeypatch.setattr(sys, "argv", ["benchmarks.recipes", *words])
    recipes.main()
    found = json.loads((tmp_path / "figures.json").read_text())["results"]["measured"]["image"]
    assert found.keys() == {recipes.REFERENCE, "head_lr 1e-3", "accumulate 4"}  # there are no regions
    assert found["accumulate 4"] != found[recipes.REFERENCE]
    assert all(0 <= split["accuracy"] <= 1 and split["epochs"] == 2 for way in found.values() for split in way)
    assert "95 % interval" in capsys.readouterr().out


def test_equal_texts_are_in_one_part_and_parts_are_whole(tmp_path: Path) -> None:
    pairs = load_pairs(tiny.make_data(tmp_path, 300))
    ids = [pair.id for pair in pairs]
    texts = [pair.text or pair.id for pair in pairs]
    assert len(set(texts)) < len(texts)
    for seed in range(3):
        parts = recipes.draw(pairs, ids, seed)
        assert sorted(row for rows in parts for row in rows) == list(range(300))
        held = [{texts[row] for row in rows} for rows in parts]
        assert sum(map(len, held)) == len(set(texts))
        assert len(parts[2]) == pytest.approx(90, abs=10)
