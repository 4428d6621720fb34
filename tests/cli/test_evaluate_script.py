"""evaluate.py as a person runs it."""

from __future__ import annotations

from pathlib import Path

import pytest
from trained import make_run, make_world
from warm import Script

import evaluate


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_world(tmp_path_factory.mktemp("world"))
    make_run(folder, "image", "image")
    return folder


def test_tables_go_to_stdout_and_messages_to_stderr(world: Path):
    words = ("runs/image", "data/pairs.csv", "--cache", "features.h5", "--bootstrap", "200")
    done = Script("evaluate.py", *words, cwd=world).finish()
    assert done.status == 0, done.err
    assert "accuracy" in done.out
    assert "majority class" in done.out
    assert "60 pairs (manifest layout)" in done.err
    assert "60 pairs (manifest layout)" not in done.out
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
