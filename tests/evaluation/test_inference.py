from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from frozenfusion.evaluation.inference import analyse

RNG = np.random.default_rng(0)


def right(seeds: int, pairs: int = 200, accuracy: float = 0.8) -> np.ndarray:
    return (RNG.random((seeds, pairs)) < accuracy).astype(float)


def test_of_one_training_each_it_is_the_paired_t_test():
    first, second = right(1), right(1, accuracy=0.7)
    found, known = analyse(first, second), stats.ttest_rel(first[0], second[0])
    assert found.p == pytest.approx(known.pvalue)
    assert found.interval() == pytest.approx(tuple(known.confidence_interval()))
    assert found.freedom == 199


def test_where_trainings_differ_as_a_whole_it_is_a_t_test_of_their_scores():
    offsets = np.array([[-0.2], [0.0], [0.2]])
    first, second = 1 + offsets + np.zeros(200), offsets[::-1] * 0.999 + np.zeros(200)
    found = analyse(first, second)
    known = stats.ttest_ind(first.mean(1), second.mean(1))
    assert found.error == pytest.approx(found.mean / known.statistic, rel=1e-6)
    assert found.freedom == pytest.approx(
        6, rel=1e-3
    )  # 4 if the variances were known to be equal; they are estimated so


def test_what_the_pairs_have_in_common_for_both_heads_is_no_luck():
    hard = 0.5 * RNG.standard_normal(200)
    plain = analyse(right(3), right(3))
    state = RNG.bit_generator.state
    first, second = right(3), right(3)
    RNG.bit_generator.state = state
    assert analyse(first + hard, second + hard).error == pytest.approx(analyse(right(3), right(3)).error)
    assert analyse(first + hard).error > 1.5 * plain.error  # of one score it is


def test_the_standard_error_is_right_on_average_where_all_kinds_of_luck_meet():
    def draw(seeds: int, count: int = 4000) -> np.ndarray:
        training = 0.1 * RNG.standard_normal((count, seeds, 1))
        return training + RNG.standard_normal((count, 1, 50)) + RNG.standard_normal((count, seeds, 50))

    found = analyse(draw(5), draw(2))
    truth = 2 / 50 + 0.01 / 5 + 0.01 / 2 + 1 / (5 * 50) + 1 / (2 * 50)
    assert np.mean(found.error**2) == pytest.approx(truth, rel=0.03)
    assert np.var(found.mean) == pytest.approx(truth, rel=0.1)


def test_several_analyses_at_once_are_those_one_by_one():
    first, second = np.stack([right(3), right(3)]), np.stack([right(4), right(4)])
    together = analyse(first, second)
    for place in range(2):
        alone = analyse(first[place], second[place])
        for name in ("mean", "error", "freedom", "p"):
            assert getattr(together, name)[place] == pytest.approx(getattr(alone, name))


def test_a_difference_that_can_be_shown_is_found_four_times_in_five():
    found = analyse(right(1, 400), right(1, 400))
    least, quantile = found.detectable(), stats.t(found.freedom).ppf(0.975)
    assert stats.nct.sf(quantile, found.freedom, least / found.error) == pytest.approx(0.8, abs=0.01)


@given(st.integers(1, 4), st.integers(1, 4), st.integers(2, 6), st.floats(0, 1), st.integers(0, 2**32 - 1))
def test_no_agreement_however_complete_is_a_proof(seeds: int, others: int, pairs: int, accuracy: float, state: int):
    draw = np.random.default_rng(state)
    first, second = ((draw.random((count, pairs)) < accuracy) * 1.0 for count in (seeds, others))
    found = analyse(first, second)
    low, high = found.interval()
    assert low < found.mean < high
    assert 0 < found.p <= 1
    assert found.freedom >= min(pairs, *(count for count in (seeds, others, pairs) if count > 1)) - 1 - 1e-9


def test_one_pair_tells_nothing():
    found = analyse(np.ones((3, 1)), np.zeros((3, 1)))
    assert found.p == 1
    assert found.interval() == (-np.inf, np.inf)
