from __future__ import annotations

import numpy as np
import pytest
import sklearn.metrics as library
from hypothesis import given, settings
from hypothesis import strategies as st

from frozenfusion.evaluation import metrics

LABELS = np.array([0, 0, 0, 0, 1, 1, 2, 2, 2, 2])
PREDICTIONS = np.array([0, 0, 0, 1, 1, 0, 2, 2, 0, 1])

labelled = st.integers(2, 4).flatmap(
    lambda classes: st.tuples(
        st.just(classes),
        st.lists(st.tuples(st.integers(0, classes - 1), st.integers(0, classes - 1)), min_size=1, max_size=60),
    )
)


def columns(pairs: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([label for label, _ in pairs]), np.array([prediction for _, prediction in pairs])


def test_scores_equal_those_worked_out_by_hand():
    confusion = metrics.confusion_matrix(LABELS, PREDICTIONS, 3)
    assert confusion.tolist() == [[3, 1, 0], [1, 1, 0], [1, 1, 2]]
    found = metrics.scores(confusion)
    assert found.accuracy == pytest.approx(6 / 10)
    np.testing.assert_allclose(found.precision, [3 / 5, 1 / 3, 1])
    np.testing.assert_allclose(found.recall, [3 / 4, 1 / 2, 1 / 2])
    np.testing.assert_allclose(found.f1, [2 / 3, 2 / 5, 2 / 3])
    assert found.macro_f1 == pytest.approx((2 / 3 + 2 / 5 + 2 / 3) / 3)
    assert found.weighted_f1 == pytest.approx(0.4 * 2 / 3 + 0.2 * 2 / 5 + 0.4 * 2 / 3)
    assert found.support.tolist() == [4, 2, 4]


@settings(max_examples=50)
@given(labelled)
def test_scores_equal_the_library_s(case):
    classes, pairs = case
    labels, predictions = columns(pairs)
    found = metrics.scores(metrics.confusion_matrix(labels, predictions, classes))
    precision, recall, f1, support = library.precision_recall_fscore_support(
        labels, predictions, labels=range(classes), zero_division=0
    )
    for ours, theirs in ((found.precision, precision), (found.recall, recall), (found.f1, f1)):
        np.testing.assert_allclose(ours, theirs)
    np.testing.assert_array_equal(found.support, support)
    assert found.accuracy == pytest.approx(library.accuracy_score(labels, predictions))
    for average, ours in (("macro", found.macro_f1), ("weighted", found.weighted_f1)):
        assert ours == pytest.approx(library.f1_score(labels, predictions, average=average, zero_division=0))


def test_scores_of_a_stack_are_the_scores_of_each():
    stack = np.random.default_rng(0).integers(0, 9, (4, 5, 3, 3))
    together = metrics.scores(stack)
    for place in np.ndindex(4, 5):
        alone = metrics.scores(stack[place])
        assert together.macro_f1[place] == pytest.approx(alone.macro_f1)
        np.testing.assert_allclose(together.recall[place], alone.recall)


def test_bootstrap_shares_its_draw_between_classifiers():
    found = metrics.bootstrap(LABELS, [PREDICTIONS, LABELS, PREDICTIONS], 3, resamples=200, seed=1)
    for figure in found:
        assert figure.shape == (3, 200)
        np.testing.assert_array_equal(figure[0], figure[2])
        np.testing.assert_array_equal(figure[1], np.ones(200))  # who is always right, is right in every resample


def test_bootstrap_figures_are_those_of_the_drawn_pairs():
    found = metrics.bootstrap(LABELS, [PREDICTIONS], 3, resamples=20, seed=5)
    stratified_sample = np.random.default_rng(5).integers(0, len(LABELS), (20, len(LABELS)))
    for place, rows in enumerate(stratified_sample):
        expected = metrics.scores(metrics.confusion_matrix(LABELS[rows], PREDICTIONS[rows], 3))
        for name in ("accuracy", "macro_f1", "weighted_f1"):
            assert getattr(found, name)[0, place] == pytest.approx(float(getattr(expected, name)))


def test_bootstrap_does_not_depend_on_how_many_resamples_are_drawn_at_a_time(monkeypatch):
    whole = metrics.bootstrap(LABELS, [PREDICTIONS], 3, resamples=50, seed=3)
    monkeypatch.setattr(metrics, "_CELLS_A_TIME", 70)
    np.testing.assert_array_equal(whole, metrics.bootstrap(LABELS, [PREDICTIONS], 3, resamples=50, seed=3))


def test_bootstrap_interval_of_accuracy_is_the_binomial_one():
    n, right = 900, 630
    labels = np.zeros(n, dtype=np.int64)
    predictions = np.where(np.arange(n) < right, 0, 1)
    low, high = metrics.interval(metrics.bootstrap(labels, [predictions], 2, resamples=4000, seed=0).accuracy[0])
    spread = 1.96 * np.sqrt(0.7 * 0.3 / n)
    assert low == pytest.approx(0.7 - spread, abs=0.004)
    assert high == pytest.approx(0.7 + spread, abs=0.004)


def test_interval_takes_the_outer_percentiles():
    assert metrics.interval(np.arange(1001) / 1000) == pytest.approx((0.025, 0.975))


def test_contributions_have_the_figures_as_their_means_and_spread_as_the_bootstrap_does():
    drawn = metrics.bootstrap(LABELS, [PREDICTIONS], 4, resamples=4000, seed=0)
    whole = metrics.scores(metrics.confusion_matrix(LABELS, PREDICTIONS, 4))
    for name, values in metrics.contributions(LABELS, PREDICTIONS, 4)._asdict().items():
        assert values.mean() == pytest.approx(getattr(whole, name))
        assert values.std() / len(LABELS) ** 0.5 == pytest.approx(getattr(drawn, name).std(), rel=0.1)


def test_mcnemar_counts_the_discordant_pairs_and_is_exact():
    labels = np.zeros(20, dtype=np.int64)
    first = np.array([0] * 9 + [1] * 1 + [0] * 5 + [1] * 5)
    second = np.array([1] * 9 + [0] * 1 + [0] * 5 + [1] * 5)
    found = metrics.mcnemar(labels, first, second)
    assert (found.only_first, found.only_second) == (9, 1)
    assert found.p == pytest.approx(2 * (1 + 10) / 2**10)  # both tails of ten fair coins, nine or more alike
    assert metrics.mcnemar(labels, first, first).p == 1.0


def test_mcnemar_takes_two_different_mistakes_for_no_difference():
    found = metrics.mcnemar(np.array([0, 0]), np.array([1, 0]), np.array([2, 0]))
    assert (found.only_first, found.only_second) == (0, 0)


def test_holm_steps_down_and_keeps_the_order_given():
    assert metrics.holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert metrics.holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert metrics.holm([]) == []


def test_calibration_error_equals_the_one_worked_out_by_hand():
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.2, 0.8], [0.4, 0.6]])
    labels = np.array([0, 1, 1, 0])
    found = metrics.calibration(labels, probabilities, bins=5)
    # bins (0.8, 1]: confidences 0.9, 0.9, half right; (0.6, 0.8]: 0.8, right; (0.4, 0.6]: 0.6, wrong
    assert found.count.tolist() == [0, 0, 1, 1, 2]
    assert found.ece == pytest.approx((1 * 0.6 + 1 * 0.2 + 2 * 0.4) / 4)


def test_calibration_holds_certain_and_uniform_predictions():
    found = metrics.calibration(np.array([0, 1]), np.array([[1.0, 0.0], [0.0, 1.0]]))
    assert found.ece == 0
    assert found.count[-1] == 2
    assert metrics.calibration(np.array([0]), np.full((1, 3), 1 / 3)).count.sum() == 1


def test_agreement_counts_who_is_right_and_what_fusion_makes_of_it():
    labels = np.array([0, 0, 0, 0, 1, 1])
    first = np.array([0, 0, 1, 1, 1, 0])
    second = np.array([0, 1, 0, 1, 1, 1])
    fused = np.array([0, 0, 0, 1, 1, 0])
    found = metrics.agreement(labels, first, second, fused, 2)
    assert found.count.tolist() == [2, 1, 2, 1]
    assert found.fused_right.tolist() == [2, 1, 1, 0]
    assert found.share == pytest.approx(3 / 6)
    assert found.kappa == pytest.approx(library.cohen_kappa_score(first, second))


def test_agreement_of_constant_classifiers_is_defined():
    constant = np.zeros(4, dtype=np.int64)
    assert metrics.agreement(constant, constant, constant, constant, 3).kappa == 0.0
