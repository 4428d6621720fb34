"""The benchmark of inference, small: the page's test is right where training is steady and where it is not."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks import inference


def test_the_page_s_test_is_right_in_worlds_where_others_are_not_and_has_their_power(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lucks = ("pair", "both, 4 points")
    given = ["--pairs", "120", "--seeds", "3", "--repetitions", "1000", "--resamples", "100", "--luck", *lucks]
    monkeypatch.setattr(sys, "argv", ["benchmarks.inference", *given, "--json", str(tmp_path / "figures.json")])
    inference.main()
    found = json.loads((tmp_path / "figures.json").read_text())["results"]
    steady, shaky = found["worlds"]
    for world in (steady, shaky):
        assert 0.03 <= world["false_positives"]["two-way t"] <= 0.07
        assert 0.03 <= world["false_positives"]["of macro F1"] <= 0.07
        assert 0.93 <= world["coverage"]["two-way t"] <= 0.97
    assert shaky["false_positives"]["bootstrap, pairs"] > 0.2
    assert steady["power"]["two-way t"] > 1.5 * steady["power"]["McNemar & bootstrap"]
    assert steady["power"]["two-way t"] > 0.85 * found["best_power"]["3"]
    assert "two-way t" in capsys.readouterr().out
