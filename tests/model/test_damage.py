"""One flipped bit in a run's parameters is found, or changes nothing."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny

import frozenfusion as ff
from frozenfusion.cli import extract
from frozenfusion.model.run_folder import RunFolder
from frozenfusion.training.run import read_run
from frozenfusion.utils.errors import UserError

FLIPS = 60


def flipped(content: bytes, place: int, bit: int) -> bytes:
    return content[:place] + bytes([content[place] ^ (1 << bit)]) + content[place + 1 :]


def places(size: int) -> list[tuple[int, int]]:
    """Places in the header, where names and shapes are, and in the parameters."""
    draw = random.Random(0)
    return [(draw.randrange(min(size, 4000) if n % 3 == 0 else size), draw.randrange(8)) for n in range(FLIPS)]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tiny.Training:
    training = tiny.make_training(tmp_path_factory.mktemp("damage"), epochs=1, fusion=("hybrid",), freeze_text=True)
    training.train()
    return training


@pytest.mark.parametrize("name", ["model.safetensors", "text_encoder/model.safetensors"])
def test_a_flipped_bit_in_the_parameters_is_an_error_or_means_nothing(run: tiny.Training, name: str):
    pairs, path = ff.load_pairs(run.data), run.run / name
    expected = ff.PairClassifier.from_pretrained(run.run).predict_proba(pairs[:4], run.cache)
    content, found = path.read_bytes(), 0
    try:
        for place, bit in places(len(content)):
            path.write_bytes(flipped(content, place, bit))
            try:
                model = ff.PairClassifier.from_pretrained(run.run)
            except UserError:
                found += 1
                continue
            np.testing.assert_array_equal(model.predict_proba(pairs[:4], run.cache), expected)
    finally:
        path.write_bytes(content)
    assert found > FLIPS * 0.8


def test_a_flipped_bit_in_a_checkpoint_is_an_error_and_no_other_training(run: tiny.Training):
    path = run.run / "checkpoint.safetensors"
    content = path.read_bytes()
    try:
        for place, bit in places(len(content))[:20]:
            path.write_bytes(flipped(content, place, bit))
            with pytest.raises(UserError):
                run.but(epochs=2).train()
    finally:
        path.write_bytes(content)


def test_a_training_that_is_resumed_mends_the_weights_of_its_frozen_text_encoder(run: tiny.Training, tmp_path: Path):
    shutil.copytree(run.run, tmp_path / "run")
    path = tmp_path / "run" / "text_encoder" / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(flipped(content, len(content) - 9, 4))
    run.but(run=tmp_path / "run", epochs=2).train()
    tiny.assert_same_tensors(path, run.run / "text_encoder" / "model.safetensors")


SMALL = (
    "config.json",
    "split.json",
    "metrics.jsonl",
    "summary.json",
    "checksums.json",
    "text_encoder/config.json",
    "tokenizer/tokenizer_config.json",
)


def results(run: tiny.Training) -> dict[str, object]:
    """All that is read of a run: what an evaluation says, without its times."""
    metrics = ff.evaluate(run.run, ff.load_pairs(run.data), run.cache)
    return {"table": metrics.table(), "summary": read_run(RunFolder(run.run)), "history": RunFolder(run.run).history}


@pytest.mark.parametrize("name", SMALL)
def test_a_flipped_bit_in_a_small_file_is_an_error_or_means_nothing(run: tiny.Training, name: str):
    expected, path, draw = results(run), run.run / name, random.Random(1)
    content, found = path.read_bytes(), 0
    try:
        for _ in range(8):
            path.write_bytes(flipped(content, draw.randrange(len(content)), draw.randrange(8)))
            try:
                assert results(run) == expected
            except UserError:
                found += 1
                assert extract.main(["--verify", str(run.run)]) != 0
    finally:
        path.write_bytes(content)
    assert found


def test_verify_tells_a_whole_run_from_one_that_lacks_or_lost_something(
    run: tiny.Training, capsys: pytest.CaptureFixture[str]
):
    assert extract.main(["--verify", str(run.run)]) == 0
    assert extract.main(["--verify", str(run.run.parent)]) == 0  # as a folder of runs
    assert capsys.readouterr().out.count("are as they were written") == 2
    for path in sorted(run.run.rglob("*")):
        if path.is_file() and path.suffix in {".safetensors", ".json", ".jsonl"} and path.name != "checksums.json":
            content = path.read_bytes()
            path.write_bytes(flipped(content, len(content) // 2, 0))
            assert extract.main(["--verify", str(run.run)]) != 0, path
            assert str(run.run) in capsys.readouterr().err
            path.write_bytes(content)
    lost = run.run / "metrics.jsonl"
    content = lost.read_bytes()
    lost.unlink()
    assert extract.main(["--verify", str(run.run)]) != 0
    assert "the run folder is not whole" in capsys.readouterr().err
    lost.write_bytes(content)


def test_a_run_that_is_trained_on_has_new_checksums(run: tiny.Training):
    longer = run.but(epochs=2)
    longer.train()
    assert extract.main(["--verify", str(run.run)]) == 0


def test_a_changed_file_is_taken_as_it_is_once_its_checksums_are_gone(run: tiny.Training):
    path = run.run / "config.json"
    path.write_text(path.read_text().replace('"weight_decay"', '"weight_decay_"'))
    with pytest.raises(UserError, match=r"if you changed it yourself, remove .*checksums\.json"):
        ff.PairClassifier.from_pretrained(run.run)
    (run.run / "checksums.json").unlink()
    ff.PairClassifier.from_pretrained(run.run)
