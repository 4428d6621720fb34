"""A folder of shards in the place of a feature file: training, evaluation and prediction end in the same bits."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pytest
import tiny

import frozenfusion as ff
from frozenfusion.cli import evaluate as evaluate_command
from frozenfusion.cli import train as train_command
from frozenfusion.store.plan import Plan, evenly, shard_path, write_plan
from frozenfusion.store.reader import FeatureStore, encode_ids
from frozenfusion.store.status import OK
from frozenfusion.store.writer import StoreWriter


def sharded(store: FeatureStore, folder: Path, rows: int) -> Path:
    """The same rows in shards."""
    ids = encode_ids(store.names())
    bounds = evenly(store.n, rows)
    folder.mkdir()
    plan = Plan("", zlib.crc32(ids.data), bounds, store.shape, str(store.dtype), store.fingerprint, store.attributes)
    for shard in write_plan(folder, plan, ids).shards:
        part = np.arange(store.n)[plan.rows(shard)]
        path, names = shard_path(folder, shard), store.names(part)
        with StoreWriter.create(path, names, store.shape, store.dtype, store.fingerprint) as writer:
            for row in part:
                local = [row - part[0]]
                if store.status[row] == OK:
                    writer.write(local, store.features[[row]], store.digest[[row]], store.stat[[row]])
                else:
                    writer.mark(local, int(store.status[row]))
    return folder


@pytest.mark.parametrize("regions", [0, 3], ids=["vectors", "regions"])
def test_training_and_what_follows_do_not_tell_a_folder_from_a_file(tmp_path: Path, regions: int):
    cache = tiny.make_store(tmp_path / "one.h5", regions=regions)
    folder = sharded(FeatureStore(cache), tmp_path / "big", 7)
    training = tiny.make_training(tmp_path, cache=cache, epochs=1, freeze_text=not regions)
    runs = [training.but(cache=of, run=tmp_path / f"run-{of.stem}").train() for of in (cache, folder)]
    tiny.assert_same_tensors(*(run.folder / "model.safetensors" for run in runs))
    assert bool(regions) != bool(list(tmp_path.glob("big.text-*.h5")))  # features of frozen texts, beside the folder
    pairs = ff.load_pairs(training.data)
    model = ff.PairClassifier.from_pretrained(runs[0].folder)
    whole, parts = (model.predict_proba(pairs, features=of) for of in (cache, folder))
    assert np.array_equal(whole, parts)


def test_the_commands_take_the_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    training = tiny.make_training(tmp_path, epochs=1)
    folder = sharded(FeatureStore(training.cache), tmp_path / "big", 20)
    assert train_command.main(training.flags(cache=folder, epochs=1)) == 0
    assert f"--cache {folder}" in capsys.readouterr().out
    evaluated = [str(training.run), str(training.data), "--cache", str(folder), "--device", "cpu"]
    assert evaluate_command.main(evaluated) == 0
    shard_path(folder, 1).unlink()
    assert train_command.main(training.flags(cache=folder, epochs=1, run=tmp_path / "other")) == 1
    told = capsys.readouterr().err.splitlines()[-1]
    assert "has not computed" in told
    assert f"{training.data} --cache {folder}" in told
