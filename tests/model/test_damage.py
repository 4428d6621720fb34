"""One flipped bit in a run's parameters is found, or changes nothing."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny

import frozenfusion as ff
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
