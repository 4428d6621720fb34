"""Equal tuning: trials of the same budget for every head, the best of them chosen on the validation part."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import tiny
from tiny import Training

import frozenfusion as ff
from frozenfusion.cli import train as train_command
from frozenfusion.evaluation.runs import find_runs
from frozenfusion.fusion.base import HEADS
from frozenfusion.fusion.options import Range
from frozenfusion.fusion.registry import head_class
from frozenfusion.model.run_folder import RunFolder
from frozenfusion.model.tuning import Trial, Tuning, load_tuning, save_tuning
from frozenfusion.training import run as train_module
from frozenfusion.training.config import TrainConfig
from frozenfusion.training.space import drawn, search_space
from frozenfusion.training.tuning import rounds_of
from frozenfusion.utils.errors import UsageError, UserError
from frozenfusion.utils.files import read_json, write_json


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tuning")
    tiny.make_training(folder)
    return folder


@pytest.fixture
def options(no_plots: None, folder: Path, tmp_path: Path) -> Training:
    return tiny.make_training(folder, run=tmp_path / "sweep", epochs=1, freeze_text=True, fusion=("attention", "text"))


@pytest.fixture
def epochs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The heads of the epochs that are trained."""
    found: list[str] = []
    epoch = train_module.Trainer.epoch

    def counted(self: Any, number: int, progress: Any) -> Any:
        found.append(self.model.config.fusion)
        if found[-2:] == ["text", "text"] and "stop" in found:
            raise KeyboardInterrupt
        return epoch(self, number, progress)

    monkeypatch.setattr(train_module.Trainer, "epoch", counted)
    return found


def tune(options: Training, **given: Any) -> list[ff.TrainedRun]:
    pairs = ff.load_pairs(options.data)
    given = {"seeds": options.seeds, "config": options.config, "folder": options.run, **given}
    return ff.tune(pairs, options.cache, options.fusion, **given)


def table(options: Training) -> list[dict[str, str]]:
    with (options.run / "tuning.csv").open() as file:
        return list(csv.DictReader(file))


def test_every_head_gets_the_trials_and_is_trained_with_the_best_of_them(
    options: Training, caplog: pytest.LogCaptureFixture
) -> None:
    runs = tune(options.but(seeds=(0, 5)), trials=3)
    assert [run.folder.name for run in runs] == ["attention-seed0", "attention-seed5", "text-seed0", "text-seed5"]
    lines = table(options)
    assert [(line["head"], line["trial"]) for line in lines] == [(h, str(n)) for h in options.fusion for n in range(3)]
    assert lines[0]["options"] == "lr=0.001 weight_decay=1e-06 image_dropout=0.5 head.hidden=128"
    assert lines[3]["options"] == "lr=0.001 weight_decay=1e-06"
    for run in runs:
        own = [line for line in lines if line["head"] == run.fusion]
        best = max(own, key=lambda line: (float(line["val_accuracy"]), -float(line["val_loss"])))
        assert [line["chosen"] for line in own] == [str(int(line is best)) for line in own]
        kept = read_json(run.folder / "config.json")["options"]
        told = dict(word.split("=") for word in (f"{best['options']} " + " ".join(kept["head_option"])).split())
        assert (kept["lr"], kept["weight_decay"]) == (float(told["lr"]), float(told["weight_decay"]))
        if run.seed == 0:  # the trial, once more
            assert (run.val_accuracy, run.val_loss) == (float(best["val_accuracy"]), float(best["val_loss"]))
    for path in (options.run / "trials").glob("text-*"):  # they keep their figures, and are no models
        names = {file.name for file in path.rglob("*") if file.is_file()}
        assert names == {"checkpoint.safetensors", "config.json", "metrics.jsonl", "split.json", "summary.json"}
        assert (path / "checkpoint.safetensors").stat().st_size < 5000
    caplog.clear()
    assert {run.path for run in find_runs([options.run], "best")} == {run.folder for run in runs}
    assert "trials" not in caplog.text


def test_what_was_stopped_goes_on_and_more_trials_go_on_from_there(options: Training, epochs: list[str]) -> None:
    epochs.append("stop")
    with pytest.raises(KeyboardInterrupt):  # in the second trial of the second head
        tune(options, trials=2)
    epochs.clear()
    tune(options, trials=2)
    assert epochs == ["text", "attention", "text"]
    before = table(options)
    epochs.clear()
    tune(options, trials=2)
    assert epochs == []
    runs = tune(options, trials=4)
    assert epochs[:4] == ["attention", "attention", "text", "text"]
    assert {**table(options)[4], "chosen": ""} == {**before[2], "chosen": ""}
    for run in runs:
        tuning = load_tuning(RunFolder(run.folder))
        assert tuning is not None
        assert len(tuning.trials) == 4
        assert tuning.chosen.options["lr"] == read_json(run.folder / "config.json")["options"]["lr"]


def test_trials_of_other_options_or_epochs_are_not_gone_on_with(options: Training) -> None:
    options = options.but(fusion=("text",), epochs=2)
    tune(options, trials=2)
    for changes, told in (
        ({"batch_size": 4}, r"text-000.*was trained otherwise \(`batch_size` 8 → 4\)"),
        ({"epochs": 3}, "text-000: a trial that is finished, of which no parameters were kept"),
        ({"epochs": 1}, "text-000: a trial of 2 epochs, more than `epochs=1`"),
    ):
        with pytest.raises(UserError, match=told):
            tune(options.but(**changes), trials=2)
    with pytest.raises(UserError, match="holds a training"):
        tune(options.but(resume="never"), trials=2)


def test_a_run_that_was_not_tuned_is_never_replaced(options: Training) -> None:
    options = options.but(fusion=("text",))
    options.but(run=options.run / "text", lr=0.5).train()
    kept = (options.run / "text" / "model.safetensors").read_bytes()
    with pytest.raises(UserError, match="was trained otherwise"):
        tune(options, trials=2)
    assert load_tuning(RunFolder(options.run / "text")) is None
    assert (options.run / "text" / "model.safetensors").read_bytes() == kept


def test_a_grid_is_every_combination_and_a_loss_that_is_not_finite_is_a_result(
    options: Training, epochs: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    words = options.flags(grid=("lr=1e-3,1e38", "head.hidden=4,8"))
    assert train_command.main(words, "train_head.py") == 0
    assert epochs == [*["attention"] * 4, *["text"] * 2, "attention", "text"]  # none of them twice
    lines = table(options)
    told = [line["options"] for line in lines]
    assert told == [*(f"lr={lr} head.hidden={n}" for lr in ("0.001", "1e+38") for n in (4, 8)), "lr=0.001", "lr=1e+38"]
    assert [bool(line["val_accuracy"]) for line in lines] == [True, True, False, False, True, False]
    printed = capsys.readouterr().out
    assert printed.splitlines()[0].split()[:4] == ["trials", "best", "of", "1"]
    assert "next: python evaluate.py" in printed


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--tune", "1"], "--tune must be at least 2, not 1"),
        (["--tune", "5000"], "--tune must be at most 1000"),
        (["--tune", "3", "--grid", "lr=1"], "--tune draws its trials at random, --grid names them"),
        (["--grid", "lr"], "--grid lr: expected NAME=VALUE,VALUE"),
        (["--grid", "lr=1e-3,"], "expected NAME=VALUE,VALUE"),
        (["--grid", "lr=1e-3", "lr=1e-4"], "lr is given twice"),
        (["--grid", "epochs=1,2"], "--grid: epochs is none of lr, text_lr"),
        (["--grid", "lr=1e-3,fast"], "--lr must be a number, not 'fast'"),
        (["--grid", "text-lr=1e-3"], "--text-lr means nothing with --freeze-text"),
        (["--grid", "head.alpha=0.3"], "alpha has a place of its own"),
        (["--grid", "head.layers=1"], "--grid: head.layers means nothing to attention, text"),
        (["--grid", "head.hidden=wide"], "hidden=wide: expected a whole number"),
        (["--grid", "head.hidden=0"], "hidden=0"),
        (["--grid", "lr=" + ",".join(["1"] * 60), "clip=" + ",".join(["1"] * 60)], "3,600 trials of attention"),
        (["--halving", "4"], "--halving ends trials early, and there are none: give --tune or --grid as well"),
        (["--tune", "4", "--halving", "1"], "--halving must be at least 2, not 1"),
        (["--tune", "4", "--halving", "4"], "--halving 4: no trial can end early where --epochs 1"),
        (["--tune", "3", "--val-fraction", "0"], "--tune chooses on the validation part, and there is none"),
    ],
)
def test_what_cannot_be_tried_is_told_before_anything_is_trained(
    options: Training, capsys: pytest.CaptureFixture[str], words: list[str], told: str
) -> None:
    assert train_command.main([*options.flags(), *words], "train_head.py") in (1, 2)
    assert told in capsys.readouterr().err
    assert not options.run.exists()


def test_what_is_drawn_follows_from_seed_head_and_number_and_lies_in_the_space() -> None:
    config = TrainConfig()
    space = search_space(head_class("transformer"), config)
    assert list(space) == [
        *("head_lr", "text_lr", "weight_decay", "image_dropout", "head.layers", "head.heads", "head.dropout"),
    ]
    assert drawn(space, 0, "transformer", 3) == drawn(space, 0, "transformer", 3)
    others = [drawn(space, 1, "transformer", 3), drawn(space, 0, "gated", 3), drawn(space, 0, "transformer", 4)]
    assert drawn(space, 0, "transformer", 3) not in others
    rates = [drawn(space, 0, "concat", number)["head_lr"] for number in range(1000)]
    assert min(rates) >= 3e-5
    assert max(rates) <= 1e-2
    assert 0.45 < sum(rate < (3e-5 * 1e-2) ** 0.5 for rate in rates) / 1000 < 0.55  # every power of ten as likely
    assert {drawn(space, 0, "concat", number)["head.layers"] for number in range(50)} == {1, 2, 3}


def test_a_head_of_a_user_s_own_gets_what_is_common_and_what_it_declares() -> None:
    frozen = TrainConfig(freeze_text=True)
    try:

        @ff.register_head("declared")
        class Declared(ff.FeatureHead):
            search_space = {"depth": (1, 2)}  # noqa: RUF012

            def __init__(self, *, width: int, text_width: int, classes: int, depth: int = 1) -> None:
                super().__init__(width)

        assert list(search_space(Declared, frozen)) == ["lr", "weight_decay", "image_dropout", "head.depth"]
        assert "head_lr" in search_space(Declared, TrainConfig(freeze_text=True, head_lr=1e-3))
        for nothing in ((), "abc", None):
            Declared.search_space = {"depth": nothing}
            with pytest.raises(UsageError, match="search_space: depth needs a Range, or a tuple of values"):
                search_space(Declared, frozen)
    finally:
        HEADS.remove("declared")
    assert list(search_space(head_class("image"), TrainConfig())) == ["lr", "weight_decay", "image_dropout"]
    for wrong in ((1, 1, False), (2, 1, False), (0, 1, True), (0, float("inf"), False)):
        with pytest.raises(UsageError, match="a range goes from a lower number to a higher one"):
            Range(*wrong)


def trial(accuracy: float | None, loss: float | None = 1.0, epochs: int = 11) -> Trial:
    return Trial({"lr": 0.1}, accuracy, accuracy, None if accuracy is None else loss, 1.0, epochs)


def test_the_expected_best_is_the_mean_maximum_of_draws_with_replacement() -> None:
    values = [0.3, 0.9, 0.6]
    expected = Tuning([trial(value) for value in values], 1).expected_best()
    pairs = [max(one, other) for one in values for other in values]
    assert expected[0] == pytest.approx(0.6)
    assert expected[1] == pytest.approx(sum(pairs) / 9)
    assert len(expected) == 3
    assert Tuning([trial(None), trial(0.5)], 1).expected_best() == pytest.approx([0.25, 0.375])


def test_of_equal_trials_the_lower_loss_is_chosen_then_the_earlier() -> None:
    assert Tuning([trial(0.5, 0.9), trial(0.5, 0.8), trial(0.5, 0.8), trial(None)], 1).best == 1
    assert not Tuning([trial(None)], 1).is_done


def test_one_that_ended_early_is_chosen_only_where_no_other_has_a_score() -> None:
    early, late = trial(0.9, epochs=3), trial(0.5)
    assert Tuning([early, late], 11).best == 1
    assert Tuning([early, trial(None)], 11).best == 0
    assert Tuning([early, late, trial(0.7, epochs=3)], 11).budget == "3 trials of 3 epochs, the best 1 of 11 epochs"
    assert Tuning([trial(0.5, epochs=1)], 1).budget == "1 trial of 1 epoch"


@pytest.mark.parametrize(
    ("epochs", "trials", "factor", "rounds"),
    [
        (11, 20, 0, [(11, 20)]),
        (11, 20, 4, [(1, 20), (3, 5), (11, 1)]),
        (11, 20, 3, [(1, 20), (4, 6), (11, 2)]),
        (11, 6, 2, [(3, 6), (6, 3), (11, 1)]),
        (2, 20, 3, [(1, 20), (2, 6)]),
        (1, 20, 3, [(1, 20)]),
        (11, 2, 3, [(11, 2)]),
    ],
)
def test_rounds_begin_with_every_trial_and_end_with_all_epochs(
    epochs: int, trials: int, factor: int, rounds: list[tuple[int, int]]
) -> None:
    assert rounds_of(epochs, trials, factor) == rounds


def test_halving_trains_on_only_what_was_best(options: Training, epochs: list[str]) -> None:
    options = options.but(epochs=2)
    epochs.append("stop")
    with pytest.raises(KeyboardInterrupt):  # in the second trial of the second head
        tune(options, trials=4, halving=2)
    epochs.clear()
    runs = tune(options, trials=4, halving=2)
    assert epochs == ["text"] * 3 + (["attention"] * 4 + ["text"] * 4) + (["attention"] * 2 + ["text"] * 2)
    epochs.clear()
    for run, lines in zip(runs, (table(options)[:4], table(options)[4:]), strict=True):
        tuning = load_tuning(RunFolder(run.folder))
        assert tuning is not None
        assert tuning.budget == "4 trials of 1 epoch, the best 2 of 2 epochs"
        early = [number for number, of in enumerate(tuning.trials) if of.epochs == 1]
        late = [number for number, of in enumerate(tuning.trials) if of.epochs == 2]
        assert [line["epochs"] for line in lines] == [str(of.epochs) for of in tuning.trials]
        assert tuning.best in late
        short = options.run / "trials" / "epochs-1"
        reached = [RunFolder(short / f"{run.fusion}-{number:03d}").summary["val_accuracy"] for number in range(4)]
        assert max(reached[number] for number in early) <= min(reached[number] for number in late)
    tune(options, trials=4)  # as if nothing had ended early: what did is trained to its end
    assert sorted(epochs[:8]) == ["attention"] * 4 + ["text"] * 4
    assert {line["epochs"] for line in table(options)} == {"2"}


@pytest.mark.parametrize(
    "changes",
    [
        {"trials": []},
        {"trials": [{"options": {}}]},
        {"epochs": 0},
        {"trials": [{**vars(trial(0.5)), "val_accuracy": 7}]},
        {"epochs": 12},
    ],
)
def test_a_damaged_tuning_is_told(tmp_path: Path, changes: dict[str, Any]) -> None:
    run = RunFolder(tmp_path)
    save_tuning(run, Tuning([trial(0.5)], 11))
    assert load_tuning(run) == Tuning([trial(0.5)], 11)
    write_json(run.file("tuning.json"), {**read_json(run.file("tuning.json")), **changes})
    with pytest.raises(UserError, match=r"tuning.json: not "):
        load_tuning(run)
