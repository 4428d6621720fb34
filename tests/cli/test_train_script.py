"""train_head.py as a user runs it: a process of its own, which can be killed."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
from warm import Script

import train_head
from frozenfusion.utils.files import read_json

SECONDS = 120


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("script")
    tiny.make_training(folder)
    return folder


def command(folder: Path, run: Path, *more: str) -> list[str]:
    options = tiny.make_training(folder)
    return [
        *(str(options.data), "--cache", str(options.cache), "--run", str(run)),
        *("--text-encoder", options.config.text_encoder, "--text-weights", "random", "--device", "cpu"),
        *("--precision", "float32", "--save-every", "100", *more),
    ]


def run_here(arguments: list[str]) -> int:
    """What the script does, in this process: its imports take seconds."""
    return train_head.main(arguments, "train_head.py")


def stopped(arguments: list[str], how: signal.Signals, when: Callable[[], bool]) -> tuple[int | None, str]:
    """Exit status and messages of a process that is sent a signal once `when` holds."""
    process, deadline = Script("train_head.py", *arguments), time.monotonic() + SECONDS
    while not when() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(how)
    status, _, messages = process.finish()
    return status, messages


def epochs_done(run: Path) -> int:
    try:
        return len((run / "metrics.jsonl").read_text().splitlines())
    except FileNotFoundError:
        return 0


def test_a_killed_and_an_interrupted_training_go_on_to_the_same_end(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, run = tmp_path / "whole", tmp_path / "run"
    epochs = ("--epochs", "30")
    assert run_here(command(folder, whole, *epochs)) == 0
    said = capsys.readouterr()
    assert "epoch 11/30  lr 1.00e-04" in said.err
    assert f"next: python evaluate.py {whole}" in said.out

    status, _ = stopped(command(folder, run, *epochs), signal.SIGKILL, lambda: epochs_done(run) >= 3)
    assert status == -signal.SIGKILL
    assert not (run / "summary.json").exists()
    before = epochs_done(run)
    status, messages = stopped(command(folder, run, *epochs), signal.SIGINT, lambda: epochs_done(run) >= before + 5)
    assert status == 130
    assert "Traceback" not in messages
    assert messages.splitlines()[-1].startswith("interrupted: finished work is kept")
    assert run_here(command(folder, run, *epochs)) == 0
    assert "resumed after epoch" in capsys.readouterr().err

    for name in ("model", "last", "checkpoint"):
        tiny.assert_same_tensors(run / f"{name}.safetensors", whole / f"{name}.safetensors")
    histories = [
        [{**json.loads(line), "seconds": 0} for line in (place / "metrics.jsonl").read_text().splitlines()]
        for place in (run, whole)
    ]
    assert histories[0] == histories[1]
    assert read_json(run / "summary.json")["epochs"] == 30


def test_a_users_mistake_is_one_line_and_exit_status_one(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = command(folder, tmp_path / "run")
    arguments[arguments.index("--cache") + 1] = str(tmp_path / "nowhere.h5")
    assert run_here(arguments) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"error: {tmp_path / 'nowhere.h5'}: no such feature")
    assert not (tmp_path / "run").exists()


def test_a_folder_that_cannot_be_written_is_told(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "file" / "run"
    target.parent.write_text("in the way")
    assert run_here(command(folder, target)) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"error: {target}")


def test_a_configuration_file_of_a_run_is_a_configuration(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    assert run_here(command(folder, first, "--epochs", "1", "--fusion", "weighted", "--alpha", "learned")) == 0
    again = ["--config", str(first / "config.json"), "--run", str(second)]
    assert run_here(again) == 0
    tiny.assert_same_tensors(first / "model.safetensors", second / "model.safetensors")
    assert str(second) in capsys.readouterr().out
