"""Several heads and seeds with one command."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import tiny
from tiny import Training

from frozenfusion.cli import train as train_command
from frozenfusion.data.splits import Split
from frozenfusion.fusion.registry import head_names
from frozenfusion.training import run as train_module
from frozenfusion.training import sweeps as sweep
from frozenfusion.training.run import TrainedRun
from frozenfusion.utils.errors import UserError
from frozenfusion.utils.files import read_json


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sweep")
    tiny.make_training(folder)
    tiny.make_store(folder / "regions.h5", regions=4)
    return folder


@pytest.fixture
def options(no_plots: None, folder: Path, tmp_path: Path) -> Training:
    return tiny.make_training(folder, run=tmp_path / "sweep", epochs=2, freeze_text=True, fusion=("concat", "text"))


def changed(options: Training, **changes: Any) -> Training:
    return options.but(**changes)


def train_all(options: Training) -> list[TrainedRun]:
    """As train_head.py does: one head with one seed is a run of its own."""
    single = len(options.fusion) == 1 and options.fusion != ("all",) and len(options.seeds) < 2
    return [options.train()] if single else options.sweep()


def table(options: Training) -> list[dict[str, str]]:
    with (options.run / "sweep.csv").open() as file:
        return list(csv.DictReader(file))


def test_every_head_with_every_seed_gets_a_run_folder_and_a_line(options: Training) -> None:
    options = changed(options, seeds=(0, 5), seed=3)
    runs = train_all(options)
    names = ["concat-seed0", "concat-seed5", "text-seed0", "text-seed5"]
    assert [run.folder for run in runs] == [options.run / name for name in names]
    assert [line["folder"] for line in table(options)] == [str(options.run / name) for name in names]
    assert [(line["fusion"], line["seed"]) for line in table(options)] == [
        *(("concat", "0"), ("concat", "5"), ("text", "0"), ("text", "5")),
    ]
    assert float(table(options)[0]["val_accuracy"]) == runs[0].val_accuracy
    splits = {(options.run / name / "split.json").read_text() for name in names}
    assert len(splits) == 1
    assert Split.load(options.run / names[0] / "split.json").seed == 3


def test_the_configuration_of_a_run_of_a_sweep_makes_that_run_again(options: Training) -> None:
    (run, *_) = train_all(changed(options, seeds=(0, 5), seed=3))
    kept = read_json(run.folder / "config.json")["options"]
    assert (kept["fusion"], kept["seed"], kept["seeds"]) == (["concat"], 3, [0])


@pytest.mark.parametrize("freeze", [True, False], ids=["frozen text", "trained text"])
def test_a_run_of_a_sweep_equals_the_same_run_alone(options: Training, tmp_path: Path, freeze: bool) -> None:
    options = changed(options, freeze_text=freeze)
    together = train_all(options)
    for run in together:
        (alone,) = train_all(changed(options, fusion=(run.fusion,), run=tmp_path / "alone" / run.fusion))
        for name in ("model", "last"):
            tiny.assert_same_tensors(run.folder / f"{name}.safetensors", alone.folder / f"{name}.safetensors")


def test_all_leaves_out_what_the_features_cannot_serve_and_says_so(
    options: Training, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep.log, "propagate", True)
    runs = train_all(changed(options, fusion=("all",), epochs=1))
    assert [run.fusion for run in runs] == [name for name in head_names() if name != "cross-attention"]
    assert "left out: cross-attention attends over image regions" in caplog.text


def test_all_on_region_features_is_every_head(options: Training, folder: Path) -> None:
    runs = train_all(changed(options, fusion=("all",), cache=folder / "regions.h5", epochs=1))
    assert [run.fusion for run in runs] == list(head_names())


def test_a_head_that_the_features_cannot_serve_is_refused_when_it_is_named(options: Training) -> None:
    with pytest.raises(UserError, match="`pool=none`"):
        train_all(changed(options, fusion=("concat", "cross-attention")))
    assert not options.run.exists()


def test_an_unknown_head_and_one_named_twice_are_told_before_anything_is_read(
    options: Training, capsys: pytest.CaptureFixture[str]
) -> None:
    options = changed(options, data=Path("nowhere"))
    assert train_command.main(changed(options, fusion=("concat", "concatt")).flags()) == 2
    assert "concatt: no such fusion head" in capsys.readouterr().err
    assert train_command.main(changed(options, fusion=("concat", "text", "concat")).flags()) == 2
    assert "twice" in capsys.readouterr().err


def test_a_sweep_that_was_stopped_goes_on_and_trains_nothing_twice(
    options: Training, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = changed(options, fusion=("image", "text", "concat"))
    epochs: list[str] = []
    epoch = train_module.Trainer.epoch

    def counted(self: Any, number: int, progress: Any) -> Any:
        if len(epochs) == 3:  # in the second of three runs
            epochs.clear()
            raise KeyboardInterrupt
        epochs.append(f"{self.model.config.fusion} {number}")
        return epoch(self, number, progress)

    monkeypatch.setattr(train_module.Trainer, "epoch", counted)
    with pytest.raises(KeyboardInterrupt):
        train_all(options)
    assert [line["fusion"] for line in table(options)] == ["image"]
    assert [run.fusion for run in train_all(options)] == ["image", "text", "concat"]
    assert epochs == ["text 2", "concat 1", "concat 2"]
    assert [line["fusion"] for line in table(options)] == ["image", "text", "concat"]


@pytest.mark.parametrize("error", [UserError("no room"), RuntimeError("shapes differ")])
def test_a_run_that_fails_does_not_lose_the_others(
    options: Training, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    options = changed(options, fusion=("image", "text", "concat"))
    epoch = train_module.Trainer.epoch

    def failing(self: Any, number: int, progress: Any) -> Any:
        if self.model.config.fusion == "text":
            raise error
        return epoch(self, number, progress)

    with monkeypatch.context() as patch, pytest.raises(UserError) as raised:
        patch.setattr(train_module.Trainer, "epoch", failing)
        train_all(options)
    assert f"1 of 3 runs failed, the first {options.run / 'text'} ({error})" in str(raised.value)
    assert [line["fusion"] for line in table(options)] == ["image", "concat"]
    assert len(train_all(options)) == 3


def test_features_and_texts_are_read_once(options: Training, monkeypatch: pytest.MonkeyPatch) -> None:
    from frozenfusion.training import inputs

    calls: list[str] = []

    def counted(name: str) -> Any:
        function = getattr(inputs, name)
        return lambda *args, **kwargs: calls.append(name) or function(*args, **kwargs)

    names = ("joined", "tokenize", "load_tokenizer", "load_text_encoder", "cached_texts")
    for name in names:
        monkeypatch.setattr(inputs, name, counted(name))
    train_all(changed(options, fusion=("text", "concat", "weighted", "image"), epochs=1))
    assert sorted(calls) == sorted(names)


def test_frozen_encoder_weights_lie_on_the_disk_once(options: Training) -> None:
    runs = train_all(options)
    weights = [run.folder / "text_encoder" / "model.safetensors" for run in runs]
    assert weights[0].stat().st_ino == weights[1].stat().st_ino


def test_resume_always_and_never_speak_of_the_whole_sweep(options: Training) -> None:
    with pytest.raises(UserError, match="no training to resume"):
        train_all(changed(options, resume="always"))
    train_all(changed(options, resume="never"))
    with pytest.raises(UserError, match="holds a training"):
        train_all(changed(options, resume="never"))
    assert len(train_all(changed(options, resume="always", fusion=("concat", "text", "image")))) == 3


def test_the_command_prints_a_table_and_the_next_command(options: Training, capsys: pytest.CaptureFixture[str]) -> None:
    assert train_command.main(options.flags(), "train_head.py") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:2] == ["head", "seed"]
    assert {line.split()[0] for line in lines[1:3]} == {"concat", "text"}
    assert lines[-1] == f"next: python evaluate.py {options.run} {options.data} --cache {options.cache}"
    alone = changed(options, fusion=("concat",), run=options.run / "concat", seeds=())
    assert train_command.main(alone.flags(), "train_head.py") == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith(f"next: python evaluate.py {options.run / 'concat'} ")


def test_a_run_of_a_sweep_resumes_alone_from_its_own_configuration(
    options: Training, capsys: pytest.CaptureFixture[str]
) -> None:
    """Options that mean nothing to its head are not its own: they would be refused."""
    asked = changed(options, fusion=("image", "concat", "weighted"), alpha=0.3)
    runs = train_all(asked)
    for run in runs:
        words = ["--config", str(run.folder / "config.json"), "--epochs", "3"]
        assert train_command.main(words, "train_head.py") == 0, capsys.readouterr().err
    alpha = [read_json(run.folder / "config.json")["options"]["alpha"] for run in runs]
    assert alpha == [0.5, 0.5, 0.3]
