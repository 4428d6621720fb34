"""Files of version 0.1.0, made by it and kept in v0.1.0/: read as it read them, resumed as it would have.

The data are tiny.make_data and tiny.make_store with 24 pairs; two runs of two epochs; what 0.1.0's evaluation said of
them, and what its own third epoch gave.
"""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny
from conftest import ROOT

import frozenfusion as ff
from frozenfusion.cli import evaluate, extract, train
from frozenfusion.store.writer import StoreWriter
from frozenfusion.training.checkpoint import read_state

OLD = ROOT / "tests" / "v0.1.0"


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy, in which its relative paths lead where they led."""
    shutil.copytree(OLD, tmp_path / "old")
    monkeypatch.chdir(tmp_path / "old")
    return Path()


def probabilities(path: Path) -> dict[str, list[float]]:
    with path.open(newline="", encoding="utf-8") as file:
        return {line["id"]: [float(line[f"p_{name}"]) for name in tiny.LABELS] for line in csv.DictReader(file)}


def test_a_feature_file_is_read_and_verified(old: Path, capsys: pytest.CaptureFixture[str]):
    assert extract.main(["--verify", "features.h5"]) == 0
    assert "all 23 rows are as they were written" in capsys.readouterr().out
    store = ff.FeatureStore("features.h5")
    assert store.counts() == {"pending": 0, "ok": 23, "missing": 1, "unreadable": 0, "refused": 0, "crashed": 0}


def test_a_feature_file_grows_into_one_with_checksums(old: Path):
    before = ff.FeatureStore("features.h5")
    assert before.check is None
    with StoreWriter.open("features.h5", before.fingerprint) as writer:
        writer.reset([3])
        writer.write([3], before.gather([3]), before.digest[[3]], before.stat[[3]])
    with StoreWriter.extend("features.h5", ["one more"], before.fingerprint) as writer:
        assert writer.store.check is not None
    after = ff.FeatureStore("features.h5")
    rows = after.require_rows(before.names())
    for name in ("features", "status", "crc32", "digest", "stat"):
        np.testing.assert_array_equal(getattr(after, name)[rows], getattr(before, name))
    assert not len(after.damaged_rows())
    assert after.attributes == before.attributes


@pytest.mark.parametrize("name", ["concat", "hybrid"])
def test_a_run_predicts_what_it_predicted(old: Path, name: str):
    """hybrid has a frozen text encoder, and embeddings of missing modalities, which had another name then."""
    expected = probabilities(old / "expected" / name / "predictions.csv")
    flags = ["--cache", "features.h5", "--precision", "float32", "--device", "cpu", "--out", "now"]
    assert evaluate.main([f"runs/{name}", "pairs.csv", *flags]) == 0
    found = probabilities(Path("now/predictions.csv"))
    assert found.keys() == expected.keys()
    for id, of in expected.items():
        assert found[id] == pytest.approx(of, abs=2e-6)
    before = json.loads((old / "expected" / name / "metrics.json").read_text())
    now = json.loads(Path("now/metrics.json").read_text())
    same = ("accuracy", "macro_f1", "confusion", "accuracy_interval", "shared_with_train", "validation_accuracy")
    assert {key: now[key] for key in same} == {key: before[key] for key in same}
    model = ff.PairClassifier.from_pretrained(f"runs/{name}")
    pairs = ff.load_pairs("pairs.csv").select(expected)
    np.testing.assert_allclose(model.predict_proba(pairs, "features.h5"), list(expected.values()), atol=2e-5)


def test_a_training_is_resumed_to_what_it_would_have_become(old: Path):
    assert train.main(["--config", "runs/concat/config.json", "--epochs", "3", "--device", "cpu"]) == 0
    tiny.assert_same_tensors(
        *(
            _renamed(path)
            for path in (Path("runs/concat/last.safetensors"), OLD / "expected/concat/three_epochs.safetensors")
        )
    )
    histories = [
        [{**json.loads(line), "seconds": 0} for line in path.read_text().splitlines()]
        for path in (Path("runs/concat/metrics.jsonl"), OLD / "expected" / "concat" / "three_epochs.jsonl")
    ]
    assert histories[0] == histories[1]


def test_a_training_that_was_resumed_with_another_option_is_refused_by_its_name(
    old: Path, capsys: pytest.CaptureFixture[str]
):
    assert train.main(["--config", "runs/concat/config.json", "--epochs", "3", "--lr", "0.1"], "train_head.py") == 1
    assert "--lr 0.001 → 0.1" in capsys.readouterr().err


def test_its_configuration_makes_the_run_again(old: Path):
    assert train.main(["--config", "runs/hybrid/config.json", "--run", "again"]) == 0
    state = read_state(ff.model.RunFolder(Path("again")))
    before = read_state(ff.model.RunFolder(Path("runs/hybrid")))
    assert [line["val_loss"] for line in state.history] == [line["val_loss"] for line in before.history]


def _renamed(path: Path) -> Path:
    """A copy of a file of parameters under the names of now."""
    from safetensors.torch import load_file, save_file

    target = Path(f"renamed-{len(list(Path().glob('renamed-*')))}.safetensors")
    tensors = load_file(path)
    save_file({name.replace("stand_in", "missing_embedding"): of for name, of in tensors.items()}, target)
    return target
