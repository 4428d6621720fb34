"""Joint learning from the pairs to the run, stopped and resumed, with pairs of all kinds."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

import frozenfusion as ff
from frozenfusion.cli import evaluate as evaluate_command
from frozenfusion.cli import train as train_command
from frozenfusion.data.splits import split_pairs
from frozenfusion.evaluation.report import results
from frozenfusion.joint import run as joint_run
from frozenfusion.training import run as train_module
from frozenfusion.training.inputs import TrainingInputs
from frozenfusion.training.more import MorePairs, Source

CO = ff.JointConfig(joint="co", rounds=3)
N = 60


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("joint")
    tiny.make_data(folder / "data", N)
    tiny.make_store(folder / "features.h5", N)
    tiny.make_text_encoder(folder / "encoder")
    return folder


@pytest.fixture(autouse=True)
def no_plots_at_all(no_plots: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "plot_confusion", lambda *given: None)


@pytest.fixture
def given(world: Path, tmp_path: Path) -> dict[str, Any]:
    """What `train_jointly` is called with."""
    config = tiny.make_training(world, freeze_text=True, epochs=1).config
    pairs = ff.load_pairs(world / "data" / "pairs.csv")
    return {"pairs": pairs, "features": world / "features.h5", "config": config, "run": tmp_path / "run"}


def train(given: Mapping[str, Any], **changes: Any) -> ff.TrainedRun:
    return ff.train_jointly(**{"joint": CO, "label_fraction": 0.3, **given, **changes})


def pseudo(run: Any) -> list[dict[str, str]]:
    with (Path(run) / "pseudo.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def kept(run: Any) -> dict[str, str]:
    return {line["id"]: line["label"] for line in pseudo(run) if line["kept"] == "1"}


def test_a_joint_run_learns_from_labels_and_from_what_the_modalities_agree_on(given):
    run = train(given)
    split = ff.Split.load(run.folder / "split.json")
    whole = split_pairs(given["pairs"], seed=0, val_fraction=0.2)
    assert set(split.train) < set(whole.train)
    assert split.test == whole.test
    hidden = set(whole.train) - set(split.train)
    assert {line["id"] for line in pseudo(run)} <= hidden
    assert {line["teacher"] for line in pseudo(run)} == {"text", "image"}
    truth = {pair.id: tiny.LABELS[pair.label] for pair in given["pairs"]}
    right = [label == truth[id] for id, label in kept(run).items()]
    assert len(right) > 5
    assert np.mean(right) > 0.6
    record = json.loads((run.folder / "joint.json").read_text())
    assert [line["exchanged"] for line in record["history"]] == [False, True, True]
    assert record["history"][-1]["agreed"]["pairs"] == len(right)
    assert record["history"][-1]["agreed"]["accuracy"] == pytest.approx(np.mean(right))
    options = json.loads((run.folder / "config.json").read_text())["options"]
    assert (options["joint"], options["label_fraction"], options["rounds"]) == ("co", [0.3], 3)


def test_the_test_part_and_hidden_labels_change_nothing(given, tmp_path: Path):
    run = train(given)
    split, pairs = split_pairs(given["pairs"], seed=0, val_fraction=0.2), given["pairs"]
    labelled = set(ff.Split.load(run.folder / "split.json").train)
    hidden = set(split.train) - labelled
    strange = [
        replace(pair, text="rain", label=0)
        if pair.id in split.test
        else replace(pair, label=None, split="train")
        if pair.id in hidden
        else pair
        for pair in pairs
    ]
    other = ff.Pairs(pairs.path, "manifest", pairs.label_names, tuple(strange), {}, {})
    cut = replace(split, train=sorted(labelled), val=ff.Split.load(run.folder / "split.json").val)
    again = train(given, pairs=other, split=cut, label_fraction=1.0, run=tmp_path / "again")
    tiny.assert_same_tensors(run.folder / "model.safetensors", again.folder / "model.safetensors")
    assert pseudo(run) == pseudo(again)


def test_stopped_in_any_round_and_resumed_equals_uninterrupted(given, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    whole = train(given)
    write, calls = joint_run.write_record, 0

    def stop(*arguments: Any) -> None:
        nonlocal calls
        calls += 1
        if calls % 2:  # before the round counts, and the next time after it
            raise KeyboardInterrupt
        write(*arguments)
        raise KeyboardInterrupt

    again = {**given, "run": tmp_path / "again"}
    monkeypatch.setattr(joint_run, "write_record", stop)
    for _ in range(2 * CO.rounds):
        with pytest.raises(KeyboardInterrupt):
            train(again)
    run = train(again)
    for name in ("joint.json", "pseudo.csv"):
        assert (run.folder / name).read_bytes() == (whole.folder / name).read_bytes()
    tiny.assert_same_tensors(run.folder / "model.safetensors", whole.folder / "model.safetensors")


def test_what_a_run_was_made_from_may_not_change(given):
    run = train(given)
    assert train(given) == run  # nothing to do
    with pytest.raises(ff.UserError, match=r"was trained otherwise .*`rounds` 3 → 5.* or delete the folder"):
        train(given, joint=replace(CO, rounds=5))
    with pytest.raises(ff.UserError, match=r"was trained otherwise .*pairs: "):
        train(given, label_fraction=0.4)
    (run.folder / "joint.json").write_text('{"format": 1, "made_from": {}, "history": [{}], "given": [[1]]}')
    with pytest.raises(ff.UserError, match=r"joint\.json: no record of joint learning \(has no round\): remove it"):
        train(given)


def test_images_alone_and_texts_alone_are_labelled_too_and_their_labels_are_not_looked_at(
    given, world: Path, tmp_path: Path
):
    ids = [f"m{number:02}" for number in range(24)]  # of which the last 12 have no image
    tiny.make_store(tmp_path / "more.h5", ids=ids[:12])
    for number in range(12):
        (tmp_path / f"{number}.jpg").write_bytes(b"not opened")

    def more(label: str) -> ff.Pairs:
        lines = [f"{id},{n}.jpg,,{label}" for n, id in enumerate(ids[:12])]
        lines += [f"{id},,{tiny.WORDS[n % 3][0]} {tiny.WORDS[n % 3][1]},{label}" for n, id in enumerate(ids[12:])]
        path = tmp_path / "more.csv"
        path.write_text("id,image,text,label\n" + "\n".join(lines) + "\n")
        return ff.load_pairs(path)

    both = {"label_fraction": 1.0, "unlabelled_features": tmp_path / "more.h5"}
    with pytest.raises(ff.UserError, match="have other images than those that its rows were computed from"):
        train(given, unlabelled=more("positive"), **both)
    for number in range(12):
        (tmp_path / f"{number}.jpg").unlink()  # features outlive images
    run = train(given, unlabelled=more("positive"), **both)
    teachers = {line["id"]: line["teacher"] for line in pseudo(run)}
    assert {teachers[id] for id in teachers if id in ids[:12]} == {"image"}
    assert {teachers[id] for id in teachers if id in ids[12:]} == {"text"}
    again = train(given, unlabelled=more("negative"), run=tmp_path / "again", **both)
    assert pseudo(run) == pseudo(again)
    tiny.assert_same_tensors(run.folder / "model.safetensors", again.folder / "model.safetensors")


def test_two_parts_of_one_data_set_have_their_own_features(given, tmp_path: Path):
    ids = given["pairs"].ids
    parts = {"pairs": given["pairs"].subset(ids[:40]), "unlabelled": given["pairs"].subset(ids[40:])}
    stores = {
        "features": tiny.make_store(tmp_path / "features.h5", ids=ids[:40]),
        "unlabelled_features": tiny.make_store(tmp_path / "more.h5", ids=ids[40:]),
    }
    run = train(given, **parts, **stores)
    assert {line["id"] for line in pseudo(run)} & set(ids[40:])


@pytest.mark.parametrize("freeze_text", [False, True])
def test_the_words_of_texts_stand_in_for_a_recurrent_encoder_until_it_is_trained(given, freeze_text: bool):
    config = replace(given["config"], text_encoder="bigru", rnn_width=4, freeze_text=freeze_text, epochs=2)
    few = {"config": config, "label_fraction": 0.2}
    run = train(given, **few)
    truth = {pair.id: tiny.LABELS[pair.label] for pair in given["pairs"]}
    by_text = [line for line in pseudo(run) if line["teacher"] == "text" and line["round"] == "1"]
    assert np.mean([truth[line["id"]] == line["label"] for line in by_text]) > 0.6
    labelled = ff.Split.load(run.folder / "split.json").train
    texts = {pair.id: pair.text for pair in given["pairs"]}
    counts = Counter(word for id in [*labelled, *kept(run)] for word in texts[id].split())
    model = ff.PairClassifier.from_pretrained(run)
    assert {word for word in counts if counts[word] > 1} <= set(model.tokenizer.get_vocab())
    assert train(given, **few) == run  # nothing to do


def test_what_cannot_be_learned_from_is_told(given, world: Path, tmp_path: Path):
    with pytest.raises(ff.UserError, match=r"every pair has a label: give `unlabelled`, or hide some"):
        train(given, label_fraction=1.0)
    with pytest.raises(ff.UserError, match=r"ids that .* has too"):
        train(given, unlabelled=given["pairs"])
    with pytest.raises(ff.UserError, match="`joint=co` needs labelled pairs that are held out"):
        train(given, config=replace(given["config"], val_fraction=0))
    assert not (tmp_path / "run" / "joint.json").exists()


def test_a_pair_weighs_in_the_loss_what_its_label_is_worth(world: Path, given):
    pairs, store = given["pairs"], ff.FeatureStore(world / "features.h5")
    config = replace(given["config"], batch_size=N, image_dropout=0.0)
    split = ff.Split("mine", 0, pairs.ids[:20], [], [])
    pool = [Source([replace(pair, label=0) for pair in pairs[20:50]], store, pairs.path)]

    def loss(weight: float, sources: list[Source]) -> float:
        inputs = TrainingInputs(pairs, store, config, ["concat"], split, MorePairs(sources, weight))
        folder = train_module.RunFolder(given["run"].with_name(f"weight-{weight}-{len(sources)}"))
        train_module.train_run(inputs, "concat", config, folder, talk=False)
        return folder.history[0]["train_loss"]

    alone, together = loss(1.0, []), loss(1.0, pool)
    others = (50 * together - 20 * alone) / 30
    assert loss(0.5, pool) == pytest.approx((20 * alone + 15 * others) / 35, rel=1e-5)


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--rounds", "3"], "--rounds means nothing without --joint"),
        (["--joint", "co", "--confidence", "0.8"], "--confidence means nothing to --select balanced"),
        (["--joint", "co", "--pseudo-weight", "1.5"], "--pseudo-weight must be at most 1"),
        (["--label-fraction", "0"], "--label-fraction must be above 0"),
        (["--label-fraction", "0.1", "0.1"], "--label-fraction names a fraction twice"),
        (["--unlabelled", "more.csv"], "--unlabelled means nothing without --joint"),
        (["--joint", "co", "--fusion", "text", "image"], "--joint trains one fusion head"),
    ],
)
def test_options_that_mean_nothing_are_refused(capsys: pytest.CaptureFixture[str], flags: list[str], told: str):
    assert train_command.main(["data.csv", *flags]) == 2
    assert told in capsys.readouterr().err


def test_a_study_of_fractions_and_its_curve(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    training = tiny.make_training(world, freeze_text=True, epochs=1, run=tmp_path / "study", seeds=(0, 1))
    flags = training.flags()
    flags[0] = str(world / "data" / "pairs.csv")
    assert train_command.main([*flags, "--joint", "self", "--rounds", "2", "--label-fraction", "0.3"]) == 0
    names = {path.name for path in (tmp_path / "study").iterdir() if path.is_dir()}
    assert names == {f"concat-{how}-0.3-seed{seed}" for how in ("labels", "self") for seed in (0, 1)}
    first, second = (
        ff.Split.load(tmp_path / "study" / f"concat-self-0.3-seed{seed}" / "split.json") for seed in (0, 1)
    )
    assert first.test == second.test
    assert first.train != second.train
    cache = ["--cache", str(world / "features.h5"), "--bootstrap", "100"]
    assert evaluate_command.main([str(tmp_path / "study"), flags[0], *cache, "--out", str(tmp_path / "out")]) == 0
    told = capsys.readouterr()
    assert "what labels are worth" in told.out
    assert "Not all runs learned from the same pairs: baselines" in told.out + told.err
    with (tmp_path / "out" / "label_curve.csv").open(newline="") as file:
        lines = {line["method"]: line for line in csv.DictReader(file)}
    assert lines.keys() == {"labels alone", "self"}
    assert lines["labels alone"]["gain"] == ""
    gain = float(lines["self"]["accuracy"]) - float(lines["labels alone"]["accuracy"])
    assert float(lines["self"]["gain"]) == pytest.approx(gain, abs=1e-5)
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert 'id="labels"' in page
    assert "How many pseudo-labels are right" in page
