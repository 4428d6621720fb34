"""A run folder of anybody: whatever its files say, the commands work or end with one line."""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
import trained
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from frozenfusion.cli import evaluate, train
from frozenfusion.model.classifier import PairClassifier
from frozenfusion.model.run_folder import RunFolder
from frozenfusion.training.checkpoint import read_state
from frozenfusion.utils.errors import UserError

VALUES: list[Any] = [
    *(None, True, -1, 0, 0.5, 2**31, 2**70, 1e308, float("nan"), float("inf")),
    *("", "x", "a\x00b", "\ud800", "../../x", "x" * 300, [], [None], [[]], {}, {"a": {"b": []}}),
]
READ = ("config.json", "split.json", "summary.json")
OF_TEXT = ("text_encoder/config.json", "tokenizer/tokenizer_config.json", "tokenizer/tokenizer.json")


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where a JSON value has values, itself included; the first entry of a list stands for all."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value[:1]) if isinstance(value, list) else ()
    for key, part in items:
        yield from places(part, (*path, key))


def put(value: Any, path: tuple[Any, ...], other: Any) -> Any:
    if not path:
        return other
    whole = inner = copy.deepcopy(value)
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = other
    return whole


def mutations(content: Any, *, every: int = 1) -> Iterator[Any]:
    """`content` with each of its values replaced by each of VALUES, or one in `every` of all these."""
    changes = [(path, other) for path in places(content) for other in VALUES]
    for path, other in changes[::every]:
        yield put(content, path, other)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained.make_world(tmp_path_factory.mktemp("world"), 12)


@pytest.fixture(scope="module")
def run(world: Path) -> Path:
    return trained.make_run(world, "run", "text")


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> tiny.Training:
    training = tiny.make_training(tmp_path_factory.mktemp("training"), epochs=1, fusion=("image",))
    training.train()
    return training


def assert_told(status: int, error: str) -> None:
    assert "Traceback" not in error
    if status:
        assert status in (1, 2)
        assert error.strip().splitlines()[-1].startswith("error: ")


def evaluated(run: Path, world: Path) -> int:
    words = [str(run), str(world / "data" / "pairs.csv"), "--cache", str(world / "features.h5")]
    return evaluate.main([*words, "--bootstrap", "100", "--device", "cpu"], "evaluate.py")


@pytest.mark.parametrize("name", [*READ, "metrics.jsonl"])
def test_whatever_a_file_says_it_is_read_or_refused(run: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "config.json").write_text((run / "config.json").read_text())
    content = json.loads((run / name).read_text().splitlines()[0] if name.endswith("l") else (run / name).read_text())
    for changed in mutations(content):
        (tmp_path / name).write_text(json.dumps(changed))
        folder = RunFolder(tmp_path)
        try:
            _ = folder.model_config, folder.recipe, folder.split, folder.history, folder.summary
            folder.validation("best")
            folder.check_free()
        except UserError as error:
            assert str(tmp_path) in str(error)  # noqa: PT017


@pytest.mark.parametrize(("name", "every"), [*((name, 251) for name in READ), *((name, 401) for name in OF_TEXT)])
def test_an_evaluation_of_it_works_or_ends_with_one_line(
    run: Path, world: Path, capsys: pytest.CaptureFixture[str], name: str, every: int
) -> None:
    before = (run / name).read_text()
    try:
        for changed in mutations(json.loads(before), every=every):
            (run / name).write_text(json.dumps(changed))
            assert_told(evaluated(run, world), capsys.readouterr().err)
    finally:
        (run / name).write_text(before)


def test_whatever_a_checkpoint_says_it_is_resumed_or_refused(training: tiny.Training, tmp_path: Path) -> None:
    folder, tensors = RunFolder(tmp_path), {"model/x": load_file(training.run / "model.safetensors").popitem()[1]}
    with safe_open(training.run / "checkpoint.safetensors", framework="pt") as file:
        content = json.loads(file.metadata()["state"])
    for changed in mutations(content, every=3):
        save_file(tensors, folder.checkpoint, {"state": json.dumps(changed)})
        try:
            state = read_state(folder)
            assert state is not None
            _ = state.best
        except UserError as error:
            assert str(tmp_path) in str(error)  # noqa: PT017


@pytest.mark.parametrize("name", ["config.json", "summary.json"])
def test_a_training_in_it_works_or_ends_with_one_line(
    training: tiny.Training, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    before = (training.run / name).read_text()
    try:
        for changed in mutations(json.loads(before), every=199):
            (training.run / name).write_text(json.dumps(changed))
            assert_told(train.main(training.flags(), "train_head.py"), capsys.readouterr().err)
    finally:
        (training.run / name).write_text(before)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes with names are POSIX's")
@pytest.mark.parametrize(
    "name", [*READ, "metrics.jsonl", "model.safetensors", "tokenizer/tokenizer.json", "text_encoder/config.json"]
)
def test_a_pipe_in_it_is_not_waited_for(
    world: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    copied = Path(shutil.copytree(run, tmp_path / "run"))
    (copied / name).unlink()
    os.mkfifo(copied / name)
    assert evaluated(copied, world) == 1
    assert_told(1, capsys.readouterr().err)


@pytest.mark.parametrize(
    ("entry", "value", "told"),
    [
        ("hidden_size", 10**7, "its configuration describes"),
        ("num_hidden_layers", 10**9, "more than 1024 layers"),
        ("num_hidden_groups", 10**9, "more than 1024 layers"),
        ("vocab_size", 2**40, "vocab_size is"),
        ("_attn_implementation", "some-one/some-kernel", "not on this machine"),
        ("attn_implementation", {"text": "some-one/some-kernel"}, "not on this machine"),
        ("text_config", {"_attn_implementation": "some-one/some-kernel"}, "not on this machine"),
        ("quantization_config", {"quant_method": "mxfp4"}, "quantised"),
    ],
)
def test_a_text_encoder_that_takes_all_memory_or_runs_what_is_elsewhere_is_refused(
    run: Path, tmp_path: Path, entry: str, value: object, told: str
) -> None:
    copied = Path(shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("checksums.json")))
    path = copied / "text_encoder" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), entry: value}))
    with pytest.raises(UserError, match=told):
        PairClassifier.from_pretrained(copied)
