"""evaluate.py as a person runs it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from trained import make_run, make_world

import evaluate

SCRIPT = ROOT / "evaluate.py"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_world(tmp_path_factory.mktemp("world"))
    make_run(folder, "image", "image")
    return folder


def test_tables_go_to_stdout_and_messages_to_stderr(world: Path):
    done = subprocess.run(
        [sys.executable, SCRIPT, "runs/image", "data/pairs.csv", "--cache", "features.h5", "--bootstrap", "200"],
        cwd=world,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "accuracy" in done.stdout
    assert "majority class" in done.stdout
    assert "60 pairs (manifest layout)" in done.stderr
    assert "60 pairs (manifest layout)" not in done.stdout
    for name in ("predictions.csv", "metrics.json", "confusion.png", "report.html"):
        assert (world / "runs" / "image" / "evaluation" / name).is_file()


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["runs/image"], 2, "run folders and then the data"),
        (["runs/image", "data/pairs.csv", "--bootstrap", "1"], 2, "--bootstrap"),
        (["runs/tpyo", "data/pairs.csv", "--cache", "features.h5"], 1, "runs/tpyo: no such run folder"),
        (["runs/image", "data/pairs.csv", "--cache", "none.h5"], 1, "none.h5"),
        (["runs/image", "nothing", "--cache", "features.h5"], 1, "nothing"),
    ],
)
def test_mistakes_are_one_line_without_a_traceback(
    world: Path,
    arguments: list[str],
    status: int,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.chdir(world)
    assert evaluate.main(arguments, "evaluate.py") == status
    said = capsys.readouterr().err
    error = said.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert message in error
    assert "Traceback" not in said
