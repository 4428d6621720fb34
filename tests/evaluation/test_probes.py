from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from frozenfusion.data.pairs import Pair, load_pairs
from frozenfusion.evaluation import probes as module
from frozenfusion.evaluation.config import EvaluateConfig
from frozenfusion.evaluation.evaluator import evaluate
from frozenfusion.evaluation.probes import PENALTIES, PROBE, Features, Labelled, probes
from frozenfusion.utils.errors import UserError

N, TRAIN, VALIDATION = 240, slice(0, 150), slice(150, 190)
LABELS = np.arange(N) % 3
PAIRS = [Pair(str(place), "text", Path(), int(label), None) for place, label in enumerate(LABELS)]


def table(signal: float, seed: int, width: int = 12) -> np.ndarray:
    """Features (n, width) on odd scales, of which three tell the label as far as `signal` is strong."""
    random = np.random.default_rng(seed)
    values = random.normal(size=(N, width))
    values[:, :3] += signal * np.eye(3)[LABELS]
    return (values * random.uniform(0.01, 100, width) + random.normal(size=width)).astype(np.float32)


def source(values: np.ndarray, missing: tuple[int, ...] = ()):
    def read(pairs):
        rows = [int(pair.id) for pair in pairs]
        return Features(values[rows], np.array([row not in missing for row in rows], dtype=bool))

    return read


def probed(sources, validation: slice = VALIDATION, labels: np.ndarray = LABELS):
    parts = (Labelled(PAIRS[part], labels[part]) for part in (TRAIN, validation))
    return probes(sources, *parts, PAIRS[190:], 3)


def test_a_probe_is_the_library_s_regression_with_the_penalty_that_the_validation_part_likes_best():
    values = table(1.0, 0)
    scaled = (values - values[TRAIN].mean(0)) / values[TRAIN].std(0)
    models = [LogisticRegression(C=c, max_iter=1000).fit(scaled[TRAIN], LABELS[TRAIN]) for c in PENALTIES]
    best = min(models, key=lambda model: log_loss(LABELS[VALIDATION], model.predict_proba(scaled[VALIDATION])))
    assert best.C not in (PENALTIES[0], PENALTIES[-1])  # else there was nothing to choose
    found = probed({"image": source(values)})
    assert list(found) == [PROBE.format("image")]
    np.testing.assert_allclose(found[PROBE.format("image")], best.predict_proba(scaled[190:]), atol=2e-3)


def test_two_sources_side_by_side_know_more_than_either():
    one, other = table(1.2, 0), table(1.2, 1)
    found = probed({"text": source(one), "image": source(other)})
    right = {name: (of.argmax(1) == LABELS[190:]).mean() for name, of in found.items()}
    both = PROBE.format("text + image")
    assert list(found) == [PROBE.format("text"), PROBE.format("image"), both]
    assert right[both] > max(right[PROBE.format(name)] for name in ("text", "image")) > 0.5


def test_what_is_missing_is_the_mean_and_has_no_say_in_it():
    values = table(1.0, 0)
    values[[0, 10, 200]] = 1e9  # must never be looked at
    missing = probed({"image": source(values, (0, 10, 200))})[PROBE.format("image")]
    present = np.delete(values[TRAIN], [0, 10], axis=0)
    values[[0, 10, 200]] = present.mean(0)
    filled = probed({"image": source(values, (0, 10))})[PROBE.format("image")]
    np.testing.assert_allclose(missing, filled, atol=1e-4)


def test_nothing_but_the_train_part_is_fitted_and_again_gives_the_same():
    values = table(1.0, 0)
    first, changed = probed({"image": source(values)}), values.copy()
    changed[195:] *= -3
    again = probed({"image": source(changed)})
    np.testing.assert_array_equal(first[PROBE.format("image")][:5], again[PROBE.format("image")][:5])


def test_without_a_validation_part_the_penalty_is_chosen_over_folds_of_the_train_part():
    found = probed({"image": source(table(3.0, 0))}, slice(0, 0))[PROBE.format("image")]
    assert (found.argmax(1) == LABELS[190:]).mean() > 0.8
    np.testing.assert_allclose(found.sum(1), 1)


def test_a_class_that_the_train_part_lacks_has_probability_0_and_one_class_is_no_probe():
    two = np.where(LABELS == 2, 0, LABELS)
    assert (probed({"image": source(table(1.0, 0))}, labels=two)[PROBE.format("image")][:, 2] == 0).all()
    assert probed({"image": source(table(1.0, 0))}, labels=np.zeros_like(LABELS)) == {}


def test_of_a_large_train_part_some_are_drawn_and_it_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    caplog.set_level("INFO", logger="frozenfusion")
    monkeypatch.setattr(module, "MOST_FITTED", 90)
    monkeypatch.setattr(module, "_PAIRS_A_TIME", 7)  # the last part is a smaller one
    found = probed({"image": source(table(3.0, 0))})[PROBE.format("image")]
    assert "fitted on 90 of 150 pairs" in caplog.text
    assert (found.argmax(1) == LABELS[190:]).mean() > 0.8


def test_a_source_that_lacks_features_is_left_out_and_it_is_said(caplog: pytest.LogCaptureFixture):
    def refuse(_):
        raise UserError("not cached here")

    assert list(probed({"text": refuse, "image": source(table(1.0, 0))})) == [PROBE.format("image")]
    assert "no baseline on text features: not cached here" in caplog.text


def test_a_frozen_text_encoder_s_cached_outputs_are_a_baseline_and_are_not_computed_for_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    training = tiny.make_training(tmp_path, freeze_text=True, epochs=1)
    run, pairs = training.train(), load_pairs(training.data)
    options = {"bootstrap": 100, "device": "cpu", "precision": "float32"}
    found = evaluate([run], pairs, training.cache, config=EvaluateConfig(**options)).comparison
    assert {PROBE.format(name) for name in ("text", "image", "text + image")} <= {row.name for row in found.rows}
    assert {test.other for test in found.baseline_tests} == {row.name for row in found.rows if not row.runs}
    elsewhere = EvaluateConfig(**options, text_cache=str(tmp_path / "other"))  # there only the test part is
    rows = [row.name for row in evaluate([run], pairs, training.cache, config=elsewhere).comparison.rows]
    assert PROBE.format("image") in rows
    assert PROBE.format("text") not in rows
    assert "outputs of the train part are not cached" in caplog.text
