from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from trained import make_run, make_world

from frozenfusion.data.pairs import Pairs, load_pairs
from frozenfusion.data.splits import Split
from frozenfusion.evaluation.calibration import fit_temperature
from frozenfusion.evaluation.config import EvaluateConfig
from frozenfusion.evaluation.evaluator import Evaluation, evaluate
from frozenfusion.model.calibration import at_temperature
from frozenfusion.model.classifier import PairClassifier
from frozenfusion.model.run_folder import RunFolder
from frozenfusion.model.saving import save_weights
from frozenfusion.model.verification import verify_run
from frozenfusion.utils.errors import UserError


def drawn(temperature: float, n: int = 3000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Labels (n,) drawn from softmax(logits / temperature), and softmax(logits) (n, 3)."""
    random = np.random.default_rng(seed)
    logits = random.normal(size=(n, 3)) * 3
    true = np.exp(logits / temperature)
    true /= true.sum(1, keepdims=True)
    labels = (random.random((n, 1)) > true.cumsum(1)).sum(1).clip(0, 2)
    shares = np.exp(logits)
    return labels, shares / shares.sum(1, keepdims=True)


def expected_calibration_error(labels: np.ndarray, probabilities: np.ndarray, bins: int = 15) -> float:
    """By its definition, pair by pair."""
    held: dict[int, list[tuple[float, bool]]] = {}
    for label, row in zip(labels, probabilities, strict=True):
        held.setdefault(int(np.ceil(row.max() * bins)), []).append((row.max(), row.argmax() == label))
    gaps = [abs(sum(sure for sure, _ in held_in) - sum(right for _, right in held_in)) for held_in in held.values()]
    return sum(gaps) / len(labels)


@pytest.mark.parametrize("true", [0.5, 1.0, 2.5])
def test_the_temperature_is_found_and_is_that_of_an_exhaustive_search(true: float):
    labels, probabilities = drawn(true)
    fitted = fit_temperature(labels, probabilities)
    assert fitted.temperature == pytest.approx(true, rel=0.08)
    tried = np.linspace(0.8 * true, 1.25 * true, 401)
    losses = [-np.log(at_temperature(probabilities, t)[np.arange(len(labels)), labels]).mean() for t in tried]
    assert fitted.temperature == pytest.approx(tried[int(np.argmin(losses))], abs=tried[1] - tried[0])
    assert fitted.nll_after == pytest.approx(min(losses), abs=1e-6)
    assert fitted.pairs == len(labels)


def test_an_overconfident_model_gets_a_temperature_above_1_and_a_lower_error():
    labels, probabilities = drawn(3.0)
    fitted = fit_temperature(labels, probabilities)
    assert fitted.temperature > 1
    assert fitted.ece_before == pytest.approx(expected_calibration_error(labels, probabilities), abs=1e-9)
    after = expected_calibration_error(labels, fitted.scaled(probabilities))
    assert fitted.ece_after == pytest.approx(after, abs=1e-9)
    assert fitted.ece_after < 0.03 < 0.1 < fitted.ece_before
    assert fitted.nll_after < fitted.nll_before


@given(st.integers(1, 40), st.integers(2, 5), st.floats(0.05, 20), st.integers(0, 2**31))
@settings(max_examples=60)
def test_scaling_is_that_of_the_logits_and_changes_no_decision(n: int, c: int, temperature: float, seed: int):
    logits = torch.from_numpy(np.random.default_rng(seed).normal(size=(n, c)) * 4)
    probabilities = logits.softmax(1).numpy()
    scaled = at_temperature(probabilities, temperature)
    np.testing.assert_allclose(scaled, (logits / temperature).softmax(1).numpy(), atol=1e-9)
    np.testing.assert_array_equal(scaled.argmax(1), probabilities.argmax(1))


def test_degenerate_predictions_give_a_finite_temperature():
    sure, flat = np.eye(3)[[0, 1, 2]], np.full((3, 3), 1 / 3)
    labels = np.arange(3)
    assert fit_temperature(labels, flat).temperature == 1
    for right in (labels, labels[::-1]):
        fitted = fit_temperature(right, sure)
        assert np.isfinite([fitted.temperature, fitted.nll_before, fitted.nll_after]).all()
        assert np.isfinite(fitted.scaled(sure)).all()


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs by hand: `image` is far too sure, `vote` is a decision-level head."""
    world = make_world(tmp_path_factory.mktemp("world"), 120)
    make_run(world, "image", "image")
    model = PairClassifier.from_pretrained(world / "runs" / "image")
    for name, factor in (("best", 4.0), ("last", 0.01)):
        with torch.no_grad():
            model.head.classifier.weight *= factor
        save_weights(model, RunFolder(world / "runs" / "image").weights(name))
    make_run(world, "vote", "vote")
    return world


@pytest.fixture
def world(built: Path, tmp_path: Path) -> Path:
    shutil.copytree(built, tmp_path / "world")
    return tmp_path / "world"


def calibrated(world: Path, *names: str, pairs: Pairs | None = None, **changes) -> Evaluation:
    config = EvaluateConfig(
        **({"bootstrap": 100, "device": "cpu", "precision": "float32", "calibrate": True} | changes)
    )
    runs = [world / "runs" / name for name in names]
    found = evaluate(runs, pairs or load_pairs(world / "data" / "pairs.csv"), world / "features.h5", config=config)
    found.save(world / "out")
    return found


def kept(world: Path, name: str) -> dict:
    return json.loads((world / "runs" / name / "calibration.json").read_text())


def test_a_temperature_is_kept_with_the_run_told_and_changes_no_decision(world: Path):
    plain = calibrated(world, "image", "vote", calibrate=False)
    assert not (world / "runs" / "image" / "calibration.json").exists()
    found = calibrated(world, "image", "vote")
    for name in ("image", "vote"):
        np.testing.assert_array_equal(found.predictions[name].probabilities, plain.predictions[name].probabilities)
        np.testing.assert_array_equal(found.calibrated[name].argmax(1), found.predictions[name].probabilities.argmax(1))
        row, other = found.comparison.row(name), plain.comparison.row(name)
        assert row.figures == other.figures
        entry = kept(world, name)["best"]
        assert entry["temperature"] == found.scalings[name].temperature
        assert entry["pairs"] == len(Split.load(world / "runs" / name / "split.json").val)
        assert entry["nll_after"] <= entry["nll_before"]
    assert kept(world, "image")["best"]["temperature"] > 1.5
    labels, row = found.comparison.labels, found.comparison.row("image")
    assert row.calibrated(labels).ece < row.calibration(labels).ece
    assert row.calibrated(labels).ece == pytest.approx(expected_calibration_error(labels, found.calibrated["image"]))
    arrow = f"{100 * row.calibration(labels).ece:.1f} → {100 * row.calibrated(labels).ece:.1f}"
    assert arrow in found.table()
    page = (world / "out" / "report.html").read_text()
    assert arrow in page
    assert f"T = {row.temperatures[0]:.2f}" in page
    assert "→" not in plain.table()
    values = json.loads((world / "out" / "image" / "metrics.json").read_text())
    assert values["ece_calibrated"] == pytest.approx(row.calibrated(labels).ece)
    with (world / "out" / "image" / "predictions.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    shares = [[float(line[f"p_{name}"]) for name in tiny.LABELS] for line in lines]
    np.testing.assert_allclose(shares, found.calibrated["image"], atol=1e-6)


def test_a_model_gives_calibrated_probabilities_where_asked_for_and_keeps_its_temperature(world: Path, tmp_path: Path):
    pairs, features, run = load_pairs(world / "data" / "pairs.csv"), world / "features.h5", world / "runs" / "image"
    model = PairClassifier.from_pretrained(run)
    before = model.predict_proba(pairs, features)
    with pytest.raises(UserError, match=r"has no temperature.*--calibrate"):
        model.predict_proba(pairs, features, calibrated=True)
    fitted = calibrated(world, "image").scalings["image"]
    again = PairClassifier.from_pretrained(run)
    np.testing.assert_array_equal(again.predict_proba(pairs, features), before)
    expected = at_temperature(before, fitted.temperature)
    np.testing.assert_array_equal(again.predict_proba(pairs, features, calibrated=True), expected)
    assert again.predict(pairs, features, calibrated=True) == again.predict(pairs, features)
    again.save_pretrained(tmp_path / "copy")
    copy = PairClassifier.from_pretrained(tmp_path / "copy")
    np.testing.assert_array_equal(copy.predict_proba(pairs, features, calibrated=True), expected)
    with torch.no_grad():
        copy.head.classifier.weight *= 2
    copy.save_pretrained(tmp_path / "changed")
    assert PairClassifier.from_pretrained(tmp_path / "changed").calibration is None


def test_each_checkpoint_has_its_own_temperature_and_no_other_parameters_take_it(world: Path):
    calibrated(world, "image")
    calibrated(world, "image", checkpoint="last")
    found = kept(world, "image")
    assert found["best"]["temperature"] > 1 > found["last"]["temperature"]
    run = world / "runs" / "image"
    assert (
        PairClassifier.from_pretrained(run, checkpoint="last").calibration.temperature == found["last"]["temperature"]
    )
    assert load_file(run / "last.safetensors").keys() == load_file(run / "model.safetensors").keys()
    shutil.copy(run / "last.safetensors", run / "model.safetensors")  # as if it was trained on
    assert PairClassifier.from_pretrained(run).calibration is None


def test_a_damaged_or_foreign_calibration_is_told(world: Path):
    calibrated(world, "image")
    run = world / "runs" / "image"
    verify_run(RunFolder(run))
    path, values = run / "calibration.json", kept(world, "image")
    changed = {**values, "best": {**values["best"], "temperature": values["best"]["temperature"] + 0.5}}
    for content, told in (
        (changed, "not as it was written: remove it"),
        ({**values, "best": {**values["best"], "temperature": -1}}, "temperature is -1"),
        ({**values, "best": {"temperature": 2.0}}, "has no pairs"),
        ([1], "no calibration of a run"),
    ):
        path.write_text(json.dumps(content))
        for read in (PairClassifier.from_pretrained, lambda folder: verify_run(RunFolder(folder))):
            with pytest.raises(UserError, match=rf"calibration\.json: .*{told}"):
                read(run)


def test_a_run_without_a_validation_part_is_not_calibrated_and_it_is_said_in_one_line(
    world: Path, caplog: pytest.LogCaptureFixture
):
    path = world / "runs" / "vote" / "split.json"
    split = Split.load(path)
    Split(split.source, split.seed, [*split.train, *split.val], [], split.test).save(path)
    (path.parent / "checksums.json").unlink()
    found = calibrated(world, "image", "vote")
    assert list(found.scalings) == ["image"]
    assert caplog.text.count("vote: not calibrated") == 1
    assert not (path.parent / "calibration.json").exists()
    assert found.comparison.row("vote").calibrated(found.comparison.labels) is None


def test_new_pairs_get_the_probabilities_of_the_temperature_that_was_kept(world: Path):
    temperature = calibrated(world, "image").scalings["image"].temperature
    pairs = load_pairs(world / "data" / "pairs.csv")
    test = pairs.subset(Split.load(world / "runs" / "image" / "split.json").test)
    found = calibrated(world, "image", pairs=test)
    assert found.scalings["image"].temperature == temperature
    assert kept(world, "image")["best"]["temperature"] == temperature
