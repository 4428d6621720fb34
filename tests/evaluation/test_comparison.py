from __future__ import annotations

import numpy as np
import pytest

from frozenfusion.evaluation import metrics
from frozenfusion.evaluation.comparison import Comparison, RunResult, compare
from frozenfusion.evaluation.inference import analyse
from frozenfusion.utils.errors import UsageError

NAMES = ("positive", "neutral", "negative")
N = 300
LABELS = np.random.default_rng(0).integers(0, 3, N)
UNIFORM = np.full((N, 3), 1 / 3)


def guesses(accuracy: float, seed: int) -> np.ndarray:
    """Probabilities (N, 3) whose largest is the label in that part of the pairs."""
    generator = np.random.default_rng(seed)
    right = generator.random(N) < accuracy
    decisions = np.where(right, LABELS, (LABELS + 1) % 3)
    return np.eye(3)[decisions] * 0.7 + 0.1


def run(head: str, accuracy: float, seed: int = 0, recipe: str = "r", **about) -> RunResult:
    return RunResult(
        name=f"{head}-{recipe}-{seed}", head=head, recipe=recipe, probabilities=guesses(accuracy, seed), **about
    )


def comparison(*runs: RunResult, reference: str = "concat") -> Comparison:
    return compare(LABELS, NAMES, runs, {"majority class": UNIFORM}, reference=reference, resamples=500, seed=0)


def test_rows_are_sorted_by_accuracy_with_the_baselines_among_them():
    found = comparison(run("text", 0.2), run("concat", 0.9), run("image", 0.6))
    assert [row.name for row in found.rows] == ["concat", "image", "majority class", "text"]
    assert [row.name for row in found.heads] == ["concat", "image", "text"]


def test_runs_that_differ_in_their_seed_alone_are_one_row_with_mean_and_sample_deviation():
    runs = [run("concat", 0.8, seed) for seed in range(3)]
    row = comparison(*runs).row("concat")
    each = [metrics.scores(metrics.confusion_matrix(LABELS, r.probabilities.argmax(1), 3)) for r in runs]
    for figure in ("accuracy", "macro_f1", "weighted_f1"):
        values = [getattr(scores, figure) for scores in each]
        assert row.figures[figure].mean == pytest.approx(np.mean(values))
        assert row.figures[figure].sd == pytest.approx(np.std(values, ddof=1))
        assert row.figures[figure].low < np.mean(values) < row.figures[figure].high
    assert row.confusion.sum() == 3 * N


def test_one_seed_has_no_deviation():
    assert comparison(run("concat", 0.8)).row("concat").figures["accuracy"].sd is None


def test_several_recipes_of_one_head_are_rows_under_the_names_of_their_runs():
    found = comparison(run("concat", 0.8, recipe="a"), run("concat", 0.7, recipe="b"), reference="concat-a-0")
    assert [row.name for row in found.heads] == ["concat-a-0", "concat-b-0"]
    assert [(test.head, test.other) for test in found.tests] == [("concat-b-0", "concat-a-0")]


def test_a_reference_that_several_rows_could_be_is_refused():
    with pytest.raises(UsageError, match="name one of concat-a-0, concat-b-0"):
        comparison(run("concat", 0.8, recipe="a"), run("concat", 0.7, recipe="b"))


def test_without_the_reference_nothing_is_tested_and_it_is_said(caplog):
    found = comparison(run("text", 0.8), run("image", 0.7))
    assert found.reference is None
    assert found.tests == ()
    assert "`baseline=concat`" in caplog.text


def test_every_head_is_tested_against_the_reference_with_corrected_p_values():
    runs = [run("concat", 0.6, 1), run("gated", 0.9, 2), run("weighted", 0.62, 3)]
    found = comparison(*runs)
    tests = {test.head: test for test in found.tests}
    assert set(tests) == {"gated", "weighted"}
    decided = {r.head: r.probabilities.argmax(1) for r in runs}
    tests_right = {head: (decided[head] == LABELS)[None].astype(float) for head in decided}
    plain = {head: metrics.mcnemar(LABELS, decided[head], decided["concat"]) for head in tests}
    corrected = metrics.holm([plain[test.head].p for test in found.tests])
    assert [test.p_mcnemar for test in found.tests] == pytest.approx(corrected)
    gated = tests["gated"]
    assert (gated.only_head, gated.only_other) == (plain["gated"].only_first, plain["gated"].only_second)
    assert gated.accuracy.low > 0
    assert gated.p < 0.05
    assert tests["weighted"].p > 0.05
    alone = [analyse(*(tests_right[name] for name in (test.head, test.other))) for test in found.tests]
    assert [test.p for test in found.tests] == pytest.approx(metrics.holm([float(each.p) for each in alone]))
    assert [test.detectable for test in found.tests] == pytest.approx([float(each.detectable()) for each in alone])


def test_a_difference_of_a_head_to_its_own_copy_is_zero_as_far_as_the_pairs_can_tell():
    found = comparison(run("concat", 0.6), run("gated", 0.6))
    (test,) = found.tests
    assert test.accuracy.mean == 0
    assert 0 < test.accuracy.high == -test.accuracy.low < 3 / N
    assert (test.p_mcnemar, test.p) == (1, 1)


def test_a_test_names_the_heads_that_have_one_seed_and_no_baseline_among_them():
    found = comparison(run("concat", 0.6, 1), run("gated", 0.7, 2), run("gated", 0.7, 3))
    assert [test.single for test in found.tests] == [("concat",)]
    assert [test.single for test in found.baseline_tests] == [("concat",)]


def test_what_the_trainings_differ_by_is_held_against_a_difference():
    steady = comparison(
        *(run("concat", 0.6, seed) for seed in range(3)), *(run("gated", 0.75, 9 + seed) for seed in range(3))
    )
    shaky = comparison(
        *(run("concat", 0.6 + off, seed) for seed, off in enumerate((-0.1, 0, 0.1))),
        *(run("gated", 0.75 + off, 9 + seed) for seed, off in enumerate((-0.1, 0, 0.1))),
    )
    assert steady.tests[0].p < 0.05 < shaky.tests[0].p
    assert shaky.tests[0].p_mcnemar < 0.05  # which does not ask how another training would have gone
    assert steady.tests[0].detectable < shaky.tests[0].detectable


def test_seeds_widen_the_interval_of_a_head_that_depends_on_them():
    steady = comparison(run("concat", 0.7, 1), run("concat", 0.7, 2)).row("concat").figures["accuracy"]
    shaky = comparison(run("concat", 0.9, 1), run("concat", 0.5, 2)).row("concat").figures["accuracy"]
    assert shaky.high - shaky.low > 2 * (steady.high - steady.low)


def test_mcnemar_of_several_seeds_decides_by_the_averaged_probabilities():
    sure, unsure = np.eye(3)[LABELS], np.eye(3)[(LABELS + 1) % 3] * 0.02 + 0.98 / 3
    runs = [
        RunResult(name=str(seed), head="gated", recipe="r", probabilities=probabilities)
        for seed, probabilities in enumerate((sure, unsure))
    ]
    found = comparison(*runs, run("concat", 0.0))
    assert (found.tests[0].only_head, found.tests[0].only_other) == (N, 0)


def test_the_head_is_chosen_by_validation_and_not_by_what_is_evaluated():
    found = comparison(run("concat", 0.9, validation=0.7), run("gated", 0.5, validation=0.8))
    assert found.chosen == "gated"


def test_equal_validation_chooses_the_smaller_head():
    found = comparison(
        run("concat", 0.9, validation=0.7, parameters=10), run("gated", 0.9, validation=0.7, parameters=5)
    )
    assert found.chosen == "gated"


def test_means_over_seeds_that_differ_by_rounding_alone_are_equal():
    accuracies = (0.1, 0.2, 0.3)
    assert np.mean(accuracies) != np.mean(accuracies[::-1])
    found = comparison(
        *(run("concat", 0.9, seed, validation=value, parameters=10) for seed, value in enumerate(accuracies)),
        *(run("gated", 0.9, seed, validation=value, parameters=5) for seed, value in enumerate(accuracies[::-1])),
    )
    assert found.chosen == "gated"
    found = comparison(
        *(run("concat", 0.9, seed, validation=value, parameters=10) for seed, value in enumerate(accuracies[::-1])),
        *(run("gated", 0.9, seed, validation=value, parameters=5) for seed, value in enumerate(accuracies)),
    )
    assert found.chosen == "gated"


def test_no_head_is_chosen_where_a_run_has_no_validation_or_there_is_only_one():
    assert comparison(run("concat", 0.9, validation=0.7), run("gated", 0.5)).chosen is None
    assert comparison(run("concat", 0.9, validation=0.7)).chosen is None


def test_the_chosen_head_is_tested_against_each_single_modality():
    found = comparison(
        run("text", 0.5, 1, validation=0.5), run("image", 0.5, 2, validation=0.5), run("gated", 0.95, 3, validation=0.9)
    )
    assert sorted((test.head, test.other) for test in found.fusion_tests) == [("gated", "image"), ("gated", "text")]
    assert all(test.p < 0.05 and test.p_mcnemar < 0.05 for test in found.fusion_tests)


def test_the_same_seed_gives_the_same_intervals():
    runs = [run("concat", 0.7, 1), run("gated", 0.8, 2)]
    first, second = comparison(*runs), comparison(*runs)
    assert first.row("gated").figures == second.row("gated").figures
    assert first.tests == second.tests
