"""What an error advises helps: the command in it is run as it stands, and what failed then works."""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import tiny
import torch
from PIL import Image

import frozenfusion as ff
from frozenfusion.cli import evaluate, extract, train
from frozenfusion.store.reader import FeatureStore
from frozenfusion.training import run as training_run
from frozenfusion.utils.errors import UserError
from frozenfusion.vision.registry import BACKBONES, register_backbone

SCRIPTS = {"extract_features.py": extract, "train_head.py": train, "evaluate.py": evaluate}
COMMAND = re.compile(r"python (\w+\.py) (.*?)(?= makes| computes|, or |$)", re.MULTILINE)
N = 24


def make_data(folder: Path, seed: int) -> Path:
    """A manifest of N pairs whose ids are numbers, with their pictures."""
    random = np.random.default_rng(seed)
    (folder / "pictures").mkdir(parents=True)
    path = folder / f"{folder.name}.csv"
    with path.open("w", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(["id", "text", "image", "label"])
        for number in range(N):
            lines.writerow([number, "good sun", f"pictures/{number}.png", tiny.LABELS[number % 3]])
            draw(folder / "pictures" / f"{number}.png", int(random.integers(2**31)))
    return path


def draw(path: Path, seed: int) -> None:
    """A picture whose file has the same size whatever is on it."""
    pixels = np.random.default_rng(seed).integers(0, 255, (20, 20, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, format="BMP")


class Desk:
    """A folder of two data sets, and the commands as a user types them there."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys

    def run(self, script: str, *words: str) -> tuple[int, str]:
        """Exit status and what was said."""
        status = SCRIPTS[script].main(words, script)
        said = self.capsys.readouterr()
        return status, said.err + said.out

    def succeeds(self, script: str, *words: str) -> str:
        status, said = self.run(script, *words)
        assert status == 0, said
        return said

    def fails(self, script: str, *words: str) -> str:
        status, said = self.run(script, *words)
        assert status == 1, said
        assert said.count("error: ") == 1
        return said

    def extract(self, data: str, *more: str) -> tuple[str, ...]:
        return ("extract_features.py", data, "--backbone", "small", "--image-size", "32", *more)

    def train(self, data: str, *more: str) -> tuple[str, ...]:
        options = ("--text-encoder", "encoder", "--text-weights", "random", "--epochs", "1", "--device", "cpu")
        return ("train_head.py", data, "--run", f"runs/{len(list(Path('runs').glob('*')))}", *options, *more)

    def follow(self, said: str, number: int = 0) -> list[str]:
        """Run the command that a message tells; its words."""
        script, words = COMMAND.findall(said)[number]
        self.succeeds(script, *shlex.split(words))
        return shlex.split(words)


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Desk]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(training_run, "plot_curves", lambda *_: None)
    monkeypatch.setattr(training_run, "plot_learning_rate", lambda *_: None)
    make_data(tmp_path / "cats", 1)
    make_data(tmp_path / "dogs", 2)
    tiny.make_text_encoder(tmp_path / "encoder")
    (tmp_path / "runs").mkdir()

    @register_backbone("small")
    def small(weights: str) -> torch.nn.Module:
        torch.manual_seed(0)
        return torch.nn.Conv2d(3, 4, 16, stride=16)

    yield Desk(capsys)
    BACKBONES.remove("small")


def replace_quietly(data: str, count: int) -> None:
    """Other pictures in files of the same size and time."""
    for number in range(count):
        path = Path(data) / "pictures" / f"{number}.png"
        before = path.stat()
        draw(path, 1000 + number)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert path.stat().st_size == before.st_size


def replace(data: str, count: int) -> None:
    for number in range(count):
        path = Path(data) / "pictures" / f"{number}.png"
        draw(path, 1000 + number)
        os.utime(path, ns=(1, 1))


def test_a_file_of_another_data_set_is_not_trained_on_and_each_of_two_ways_helps(desk: Desk):
    desk.succeeds(*desk.extract("cats/cats.csv", "--cache", "one.h5"))
    desk.succeeds(*desk.train("cats/cats.csv", "--cache", "one.h5"))
    before = Path("one.h5").read_bytes()
    said = desk.fails(*desk.train("dogs/dogs.csv", "--cache", "one.h5"))
    assert "pairs that are needed have other images" in said
    assert "evaluate.py" not in said
    words = desk.follow(said, 0)
    assert "to be given as --cache" in said
    desk.succeeds(*desk.train("dogs/dogs.csv", "--cache", words[words.index("--cache") + 1]))
    assert Path("one.h5").read_bytes() == before
    desk.follow(said, 1)
    desk.succeeds(*desk.train("dogs/dogs.csv", "--cache", "one.h5"))
    assert "other images" in desk.fails(*desk.train("cats/cats.csv", "--cache", "one.h5"))


def test_extraction_does_not_replace_another_data_sets_rows_unless_told_to(desk: Desk):
    desk.succeeds(*desk.extract("cats/cats.csv", "--cache", "one.h5"))
    before = Path("one.h5").read_bytes()
    with Path("dogs/dogs.csv").open("a") as file:  # an id that the file lacks does not make it grow either
        file.write("new,good,pictures/0.png,positive\n")
    said = desk.fails(*desk.extract("dogs/dogs.csv", "--cache", "one.h5"))
    assert "looks like another data set's, and was left as it is: 24 of 24 images" in said
    assert Path("one.h5").read_bytes() == before
    words = desk.follow(said, 0)
    desk.succeeds(*desk.train("dogs/dogs.csv", "--cache", words[words.index("--cache") + 1]))
    assert Path("one.h5").read_bytes() == before
    desk.follow(said, 1)
    assert FeatureStore("one.h5").n == N + 1
    desk.succeeds(*desk.train("dogs/dogs.csv", "--cache", "one.h5"))


def test_evaluation_finds_a_file_of_another_data_set_too(desk: Desk):
    desk.succeeds(*desk.extract("cats/cats.csv", "--cache", "one.h5"))
    _, _, _, run, *_ = words = desk.train("cats/cats.csv", "--cache", "one.h5")
    desk.succeeds(*words)
    given = ("evaluate.py", run, "dogs/dogs.csv", "--device", "cpu", "--bootstrap", "100", "--cache")
    words = desk.follow(desk.fails(*given, "one.h5"), 0)
    desk.succeeds(*given, words[words.index("--cache") + 1])
    model, dogs = ff.PairClassifier.from_pretrained(run), ff.load_pairs("dogs/dogs.csv")
    with pytest.raises(UserError, match=r"3 of the 3 pairs that are needed have other images"):
        model.predict(dogs[:3], "one.h5")
    assert len(model.predict(ff.load_pairs("cats/cats.csv")[:3], "one.h5")) == 3
    text_only = desk.train("cats/cats.csv", "--cache", "one.h5", "--fusion", "text")
    desk.succeeds(*text_only)
    desk.succeeds("evaluate.py", text_only[3], *given[2:], "one.h5")  # which looks at no image


def test_data_sets_of_one_name_do_not_share_a_file(desk: Desk):
    shutil.move(make_data(Path("other") / "cats", 3), "other/cats.csv")
    shutil.move("other/cats/pictures", "other/pictures")
    desk.succeeds(*desk.extract("cats/cats.csv"))
    before = Path("cache/cats-small.h5").read_bytes()
    words = desk.follow(desk.fails(*desk.extract("other/cats.csv")), 0)
    assert Path("cache/cats-small.h5").read_bytes() == before
    desk.succeeds(*desk.train("other/cats.csv", "--cache", words[words.index("--cache") + 1]))
    assert "cache/cats-small.h5" in desk.succeeds(*desk.train("cats/cats.csv"))  # the only one of that name


@pytest.mark.parametrize("count", [2, 20])
def test_replaced_images_stop_training_until_they_are_computed_again(desk: Desk, count: int):
    desk.succeeds(*desk.extract("cats/cats.csv"))
    replace("cats", count)
    said = desk.fails(*desk.train("cats/cats.csv"))
    assert ("another data set" in said) == (count > 2)
    desk.follow(said, -1)
    assert "other images" not in desk.succeeds(*desk.train("cats/cats.csv"))


def test_a_few_replaced_images_are_computed_again_without_a_question(desk: Desk):
    desk.succeeds(*desk.extract("cats/cats.csv"))
    replace("cats", 3)
    assert "3 images have changed" in desk.succeeds(*desk.extract("cats/cats.csv"))


@pytest.mark.parametrize("count", [1, 20])
def test_what_verify_advises_helps_where_size_and_time_are_the_same(desk: Desk, count: int):
    desk.succeeds(*desk.extract("cats/cats.csv", "--cache", "one.h5"))
    replace_quietly("cats", count)
    check = ("extract_features.py", "cats/cats.csv", "--verify", "--cache", "one.h5")
    said = desk.fails(*check)
    desk.follow(said, -1)
    assert "come from the 24 image files" in desk.succeeds(*check)


def test_damaged_rows_are_made_anew(desk: Desk):
    desk.succeeds(*desk.extract("cats/cats.csv", "--cache", "one.h5"))
    store = FeatureStore("one.h5")
    with Path("one.h5").open("rb+") as file:
        file.seek(store.spans["features"].offset + 5)
        file.write(b"\xaa")
    check = ("extract_features.py", "cats/cats.csv", "--verify", "--cache", "one.h5")
    desk.follow(desk.fails(*check))
    desk.succeeds(*check)


def test_pairs_that_the_file_lacks_are_added(desk: Desk):
    desk.succeeds(*desk.extract("cats/cats.csv", "--cache", "one.h5"))
    with Path("cats/cats.csv").open("a") as file:
        file.writelines(f"new{number},good,pictures/{number}.png,positive\n" for number in range(9))
    said = desk.fails(*desk.train("cats/cats.csv", "--cache", "one.h5"))
    desk.follow(said)
    desk.succeeds(*desk.train("cats/cats.csv", "--cache", "one.h5"))


COLUMNS = "text=caption,label=mood"


def test_commands_in_messages_read_the_data_as_it_was_read(desk: Desk):
    lines = Path("cats/cats.csv").read_text().replace("text", "caption", 1).replace("label", "mood", 1)
    Path("cats/cats.csv").write_text(lines)
    reading = ("--columns", COLUMNS, "--remote", "--no-follow-links")
    desk.succeeds(*desk.extract("cats/cats.csv", *reading))
    with Path("cats/cats.csv").open("a") as file:
        file.write("new,good,pictures/0.png,positive\n")
    assert set(desk.follow(desk.fails(*desk.train("cats/cats.csv", *reading)))) >= {*reading}
    said = desk.succeeds(*desk.train("cats/cats.csv", *reading))
    assert set(desk.follow(said)) >= {"cats/cats.csv", *reading}
    said = desk.fails(*desk.train("cats/cats.csv", *reading, "--cache", "none.h5"))
    assert "extract_features.py cats/cats.csv --no-follow-links --remote --columns text=caption" in said


@pytest.fixture
def store() -> Iterator[Any]:
    found = fsspec.filesystem("memory")
    yield found
    found.store.clear()


def test_data_in_a_store_is_told_by_its_address(desk: Desk, store: Any):
    store.put("cats/", "/all/", recursive=True)
    said = desk.succeeds(*desk.extract("memory://all/cats.csv"))
    words = desk.train("memory://all/cats.csv")
    said += desk.succeeds(*words)
    evaluated = desk.follow(said)
    assert evaluated[1] == "memory://all/cats.csv"
    names = ("evaluation/metrics.json", "config.json")
    metrics, config = (json.loads(Path(words[3], name).read_text()) for name in names)
    assert metrics["data"] == config["options"]["data"] == "memory://all/cats.csv"
    said += desk.fails(*desk.train("memory://all/dogs.csv"))
    assert "memory:/" not in said.replace("memory://", "")


def test_images_that_came_later_are_told_of_once_and_count_after_the_command(desk: Desk):
    for number in range(N):
        if number % 2:
            Path(f"cats/pictures/{number}.png").rename(f"cats/pictures/{number}.later")
    desk.succeeds(*desk.extract("cats/cats.csv", "--cache", "one.h5"))
    for path in Path("cats/pictures").glob("*.later"):
        path.rename(path.with_suffix(".png"))
    said = desk.succeeds(*desk.train("cats/cats.csv", "--cache", "one.h5", "--fusion", "concat", "gated"))
    assert said.count("are there or were replaced since") == 1
    desk.follow(said)
    said = desk.succeeds(*desk.train("cats/cats.csv", "--cache", "one.h5"))
    assert "since" not in said
    assert "without image" not in said


def test_a_run_of_other_features_is_evaluated_on_those_that_the_message_makes(desk: Desk):
    desk.succeeds(*desk.extract("cats/cats.csv", "--cache", "one.h5"))
    words = desk.train("cats/cats.csv", "--cache", "one.h5")
    desk.succeeds(*words)
    made = ("--image-size", "64", "--pool", "none", "--dtype", "float16", "--jpeg-draft", "--weights", "random")
    desk.succeeds("extract_features.py", "cats/cats.csv", "--backbone", "small", *made, "--cache", "two.h5")
    given = ("evaluate.py", words[3], "cats/cats.csv", "--device", "cpu", "--bootstrap", "100", "--cache")
    desk.follow(desk.fails(*given, "two.h5"))
    desk.succeeds(*given, "NEW.h5")
    regions = desk.train("cats/cats.csv", "--cache", "two.h5")
    desk.succeeds(*regions)
    Path("NEW.h5").unlink()
    desk.follow(desk.fails("evaluate.py", regions[3], *given[2:], "one.h5"))
    assert FeatureStore("NEW.h5").fingerprint == FeatureStore("two.h5").fingerprint


def test_a_copied_folder_is_the_same_data(desk: Desk):
    desk.succeeds(*desk.extract("cats/cats.csv", "--cache", "one.h5"))
    shutil.copytree("cats", "copy")
    for path in Path("copy/pictures").iterdir():
        os.utime(path, ns=(7, 7))
    desk.succeeds(*desk.train("copy/cats.csv", "--cache", "one.h5"))
    assert "nothing to compute" in desk.succeeds(*desk.extract("copy/cats.csv", "--cache", "one.h5"))
    shutil.rmtree("copy/pictures")  # features outlive images
    desk.succeeds(*desk.train("copy/cats.csv", "--cache", "one.h5"))


def test_a_file_is_named_after_data_and_backbone_and_found_again(desk: Desk):
    said = desk.succeeds(*desk.extract("cats/cats.csv"))
    assert "cache/cats-small.h5" in said
    words = desk.train("cats/cats.csv", "--freeze-text")  # which puts text features beside it
    said = desk.succeeds(*words)
    assert "--cache cache/cats-small.h5" in said
    assert list(Path("cache").glob("cats-small.text-*.h5"))
    Path("cache/cats-small.bad.csv").write_text("id,file,status,reason\n")
    Path("cache/cats-and-dogs-small.h5").write_bytes(b"another data set's")
    desk.succeeds("evaluate.py", words[3], "cats/cats.csv", "--device", "cpu", "--bootstrap", "100")
    assert "rows" in desk.succeeds("extract_features.py", "cats", "--info", "--cache", "cache/cats-small.h5")
    assert "all 24 rows" in desk.succeeds("extract_features.py", "cats/cats.csv", "--verify")
    said = desk.fails(*desk.train("dogs/dogs.csv"))
    assert "dogs/dogs.csv has no feature file in cache: make it with python extract_features.py dogs/dogs.csv" in said
    shutil.copy("cache/cats-small.h5", "cache/cats-b0.h5")
    said = desk.fails(*desk.train("cats/cats.csv"))
    assert "cache/cats-b0.h5, cache/cats-small.h5: choose one with --cache" in said


def test_the_one_file_of_version_0_1_goes_on_being_used_where_there_is_no_other(desk: Desk):
    desk.succeeds(*desk.extract("cats/cats.csv", "--cache", "cache/features.h5"))
    said = desk.succeeds(*desk.extract("cats/cats.csv"))
    assert "nothing to compute" in said
    assert "the default of version 0.1" in said
    desk.succeeds(*desk.train("cats/cats.csv"))
    words = desk.follow(desk.fails(*desk.extract("dogs/dogs.csv")), 0)
    assert "cache/dogs-small.h5" in words
    assert "cache/dogs-small.h5" in desk.succeeds(*desk.train("dogs/dogs.csv"))
    Path("cache/features.h5").rename("cache/cats-small.h5")
    assert "nothing to compute" in desk.succeeds(*desk.extract("cats/cats.csv"))


# --- a finished run that lost something


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tiny.Training:
    """A finished run whose best epoch is not its last."""
    folder = tmp_path_factory.mktemp("finished")
    training = tiny.make_training(folder, freeze_text=True, epochs=4, lr=0.05)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_run, "plot_curves", lambda *_: None)
        patch.setattr(training_run, "plot_learning_rate", lambda *_: None)
        assert training.train().best_epoch < 4
    return training


@pytest.fixture
def broken(finished: tiny.Training, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tiny.Training:
    """A copy of it to break."""
    monkeypatch.setattr(training_run, "plot_curves", lambda *_: None)
    monkeypatch.setattr(training_run, "plot_learning_rate", lambda *_: None)
    shutil.copytree(finished.run, tmp_path / "run")
    return finished.but(run=tmp_path / "run")


def predicted(training: tiny.Training) -> np.ndarray:
    """What an evaluation of the run says, by pair and class."""
    config = ff.EvaluateConfig(device="cpu", precision="float32", bootstrap=100)
    (found,) = ff.evaluate(
        training.run, ff.load_pairs(training.data), training.cache, config=config
    ).predictions.values()
    return found.probabilities


LOST = [
    *("config.json", "split.json", "metrics.jsonl", "summary.json", "model.safetensors", "last.safetensors"),
    *("tokenizer", "tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json"),
    *("text_encoder", "text_encoder/config.json", "text_encoder/model.safetensors"),
]


@pytest.mark.parametrize("lost", LOST)
def test_training_again_restores_what_a_finished_run_lost(finished: tiny.Training, broken: tiny.Training, lost: str):
    path = broken.run / lost
    (broken.run / "notes.txt").write_text("a user's own")
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    if lost not in ("metrics.jsonl", "summary.json", "last.safetensors"):
        with pytest.raises(UserError, match="same training command"):
            predicted(broken)
    broken.train()
    np.testing.assert_array_equal(predicted(broken), predicted(finished))
    for name in (name for name in LOST if "." in name):
        if name.endswith(".safetensors"):
            tiny.assert_same_tensors(finished.run / name, broken.run / name)
        elif name != "config.json":  # which tells the folder
            assert (broken.run / name).read_bytes() == (finished.run / name).read_bytes(), name
    before = {path: path.stat().st_mtime_ns for path in broken.run.rglob("*")}
    broken.train()
    assert {path: path.stat().st_mtime_ns for path in broken.run.rglob("*")} == before  # there is nothing to do


@pytest.mark.parametrize("folder", ["tokenizer", "text_encoder"])
def test_a_folder_that_cannot_be_read_is_made_anew(finished: tiny.Training, broken: tiny.Training, folder: str):
    for path in (broken.run / folder).glob("*.json"):
        path.write_text("{")
    with pytest.raises(UserError, match="and the same training command writes it again"):
        ff.PairClassifier.from_pretrained(broken.run)
    shutil.rmtree(broken.run / folder)
    broken.train()
    np.testing.assert_array_equal(predicted(broken), predicted(finished))


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["model.safetensors", "text_encoder/model.safetensors"])
def test_damaged_parameters_that_are_removed_come_back(finished: tiny.Training, broken: tiny.Training, name: str):
    damage(broken.run / name)
    with pytest.raises(UserError, match="remove it and run again what made it"):
        predicted(broken)
    (broken.run / name).unlink()
    broken.train()
    tiny.assert_same_tensors(broken.run / name, finished.run / name)
    np.testing.assert_array_equal(predicted(broken), predicted(finished))


def test_best_parameters_come_from_wherever_they_still_are(broken: tiny.Training, finished: tiny.Training):
    (best,) = broken.run.glob("best-*.safetensors")
    damage(best)
    (broken.run / "last.safetensors").unlink()  # so that there is something to do
    broken.train()
    for name in (best.name, "model.safetensors", "last.safetensors"):
        tiny.assert_same_tensors(broken.run / name, finished.run / name)
    damage(best)
    (broken.run / "model.safetensors").unlink()
    (broken.run / "last.safetensors").unlink()
    with pytest.raises(
        UserError, match=r"best-\d+\.safetensors: lost or damaged, .* remove .* and train again"
    ) as error:
        broken.train()
    assert str(broken.run) in str(error.value)
    shutil.rmtree(broken.run)
    broken.train()
    tiny.assert_same_tensors(broken.run / "model.safetensors", finished.run / "model.safetensors")
