"""evaluate.py as a person runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from trained import make_run, make_world

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_world(tmp_path_factory.mktemp("world"))
    make_run(folder, "image", "image")
    return folder


def script(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "evaluate.py"), *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )


def test_tables_go_to_stdout_and_messages_to_stderr(world: Path):
    done = script("runs/image", "data/pairs.csv", "--cache", "features.h5", "--bootstrap", "200", cwd=world)
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
        (("runs/image",), 2, "run folders and then the data"),
        (("runs/tpyo", "data/pairs.csv", "--cache", "features.h5"), 1, "runs/tpyo: no such run folder"),
        (("runs/image", "data/pairs.csv", "--cache", "none.h5"), 1, "none.h5"),
        (("runs/image", "nothing", "--cache", "features.h5"), 1, "nothing"),
    ],
)
def test_mistakes_are_one_line_without_a_traceback(world: Path, arguments, status: int, message: str):
    done = script(*arguments, cwd=world)
    assert done.returncode == status
    error = done.stderr.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert message in error
    assert "Traceback" not in done.stderr
