"""Trackers get what metrics.jsonl gets, go on where a run is resumed, and cost no training by failing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny

import frozenfusion as ff
from frozenfusion.cli import train as train_command
from frozenfusion.model.run_folder import RunFolder
from frozenfusion.training import run as train_module
from frozenfusion.training.trackers import TRACKERS

TOLD: list[Any] = []


class Notes(ff.Tracker):
    """Keeps what it is told, and fails when it is told to."""

    fails: str | None = None

    def __init__(self, run: ff.TrackedRun) -> None:
        self._told("begin", run.name, run.epochs, run.options["lr"], run.identity())

    def log(self, epoch: int, figures: Any) -> None:
        self._told("log", epoch, figures)

    def finish(self, summary: Any) -> None:
        self._told("finish", summary)

    def close(self, *, finished: bool) -> None:
        self._told("close", finished)

    def _told(self, what: str, *more: Any) -> None:
        if self.fails == what:
            raise OSError("no way\nto the server")
        TOLD.append((what, *more))


@pytest.fixture(autouse=True)
def notes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    TOLD.clear()
    ff.register_tracker("notes")(Notes)
    yield
    TRACKERS.remove("notes")
    Notes.fails = None


@pytest.fixture
def options(tmp_path: Path, no_plots: None) -> tiny.Training:
    return tiny.make_training(tmp_path, epochs=2, fusion=("image",))


def test_a_tracker_gets_every_line_of_a_run_and_of_its_resumption(options: tiny.Training) -> None:
    options.but(track=["notes"]).train()
    begin, *lines, finish, close = TOLD
    identity = begin[-1]
    assert begin[:-1] == ("begin", options.run.as_posix(), 0, 1e-3)
    history = RunFolder(options.run).history
    assert [("log", line["epoch"], {name: of for name, of in line.items() if name != "epoch"}) for line in history] == (
        lines
    )
    assert finish[1]["best_epoch"] == RunFolder(options.run).summary["best_epoch"]
    assert close == ("close", True)

    TOLD.clear()
    options.but(track=["notes"], epochs=4).train()
    begin, *lines, _, _ = TOLD
    assert begin == ("begin", options.run.as_posix(), 2, 1e-3, identity)
    assert [line[1] for line in lines] == [2, 3, 4]  # the last of before once more
    TOLD.clear()
    options.but(track=["notes"], epochs=4).train()  # nothing to do
    assert not TOLD


@pytest.mark.parametrize("what", ["begin", "log", "finish", "close"])
def test_a_tracker_that_fails_is_told_of_once_and_costs_nothing(
    options: tiny.Training, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Notes.fails = what
    assert train_command.main([*options.flags(epochs=3), "--track", "notes"]) == 0
    said = capsys.readouterr().err
    assert said.count("warning: ") == 1
    assert "the tracker notes failed (no way to the server): the training goes on without it" in said
    options.but(run=options.run.with_name("plain"), epochs=3).train()
    tiny.assert_same_tensors(options.run / "last.safetensors", options.run.with_name("plain") / "last.safetensors")


def test_a_tracker_hears_that_a_training_was_stopped(options: tiny.Training, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(train_module, "commit", stop)
    with pytest.raises(KeyboardInterrupt):
        options.but(track=["notes"]).train()
    assert [told[0] for told in TOLD] == ["begin", "close"]
    assert TOLD[-1] == ("close", False)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing", "--track nothing: no such tracker: choose from tensorboard, wandb, mlflow, trackio"),
        ("absent", "--track absent: needs a package that is not installed: pip install no_such_package"),
    ],
)
def test_what_cannot_track_is_refused_before_anything_is_written(
    options: tiny.Training, name: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    ff.register_tracker("absent")(type("Absent", (Notes,), {"package": "no_such_package"}))
    try:
        assert train_command.main([*options.flags(), "--track", name]) == 2
        assert message in capsys.readouterr().err
        assert not options.run.exists()
    finally:
        TRACKERS.remove("absent")


def test_tensorboard_reads_back_what_metrics_jsonl_has(options: tiny.Training) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for epochs in (2, 3):
        options.but(track=["tensorboard"], epochs=epochs).train()
    events = EventAccumulator(str(options.run / "tracking" / "tensorboard"))
    events.Reload()
    for name in ("train_loss", "val_accuracy", "lr", "seconds"):
        found = [(event.step, event.value) for event in events.Scalars(name)]
        assert found == [(line["epoch"], pytest.approx(line[name])) for line in RunFolder(options.run).history], name
    assert {"options/text_summary", "summary/text_summary"} <= set(events.Tags()["tensors"])


def test_options_of_a_run_name_its_trackers_again(options: tiny.Training) -> None:
    pytest.importorskip("tensorboard")
    flags = options.flags()
    assert train_command.main([*flags, "--track", "tensorboard", "--track", "notes"]) == 0
    assert list(RunFolder(options.run).config["options"]["track"]) == ["tensorboard", "notes"]
    TOLD.clear()
    again = ["--config", str(options.run / "config.json"), "--run", str(options.run.with_name("again"))]
    assert train_command.main(again) == 0
    assert TOLD[0][0] == "begin"
