"""What is concluded of parts of the labels: gains paired by draw, intervals, warnings."""

from __future__ import annotations

import numpy as np
import pytest

from frozenfusion.evaluation.label_curve import LabelledRun, crossed, drift_note, label_curve
from frozenfusion.evaluation.report.label_tables import curve_charts, curve_text, findings, warnings

LABELS = np.zeros(200, np.int64)


def runs(method: str | None, shares: list[float], fraction: float = 0.1, rounds: tuple = ()) -> list[LabelledRun]:
    """A run for each draw that is right in this share of the pairs: in the first of them."""
    return [
        LabelledRun("concat", method, fraction, draw, (np.arange(200) >= round(200 * share)).astype(np.int64), rounds)
        for draw, share in enumerate(shares)
    ]


def test_a_gain_is_paired_by_draw_and_told_only_where_zero_is_outside():
    curve = label_curve(
        LABELS,
        ("a", "b"),
        [*runs(None, [0.5, 0.6, 0.55]), *runs("co", [0.6, 0.7, 0.65]), *runs("self", [0.5, 0.62, 0.53])],
    )
    alone, one, co = curve
    assert (alone.method, one.method, co.method) == ("labels alone", "self", "co")
    assert alone.gain is None
    assert co.gain.mean == pytest.approx(0.1)
    assert co.gain.low > 0  # every draw gains alike, so that the pairs' luck alone is left
    assert one.gain.low < 0 < one.gain.high
    told = findings(curve)
    assert told == [
        "self (concat): no difference is shown with 10 % of the labels.",
        "co (concat) gets more pairs right than the labels alone: +10.0 points with 10 %.",
    ]
    assert "+10.0 (" in curve_text(curve)


def test_one_draw_says_nothing_of_the_luck_of_the_draw():
    curve = label_curve(LABELS, ("a", "b"), [*runs(None, [0.5]), *runs("co", [0.9])])
    assert curve[1].gain.mean == pytest.approx(0.4)
    assert curve[1].gain.low is None
    assert findings(curve) == ["co (concat): no difference is shown with 10 % of the labels."]
    assert len(curve_charts(curve)) == 1


@pytest.mark.parametrize("draw_sd", [0.0, 0.04])
def test_the_interval_covers_the_truth_as_often_as_it_says(draw_sd: float):
    random, covered, worlds = np.random.default_rng(0), 0, 300
    for _ in range(worlds):
        of_pairs = random.normal(0, 0.3, 150)
        values = 0.1 + random.normal(0, draw_sd, (5, 1)) + of_pairs + random.normal(0, 0.3, (5, 150))
        found = crossed(values)
        covered += found.low <= 0.1 <= found.high
    assert covered / worlds > 0.92


def test_pseudo_labels_that_leave_the_prior_are_warned_of():
    def line(of_class: list[int]) -> dict:
        given = {"pairs": sum(of_class), "of_class": of_class, "accuracy": 0.5}
        return {"round": 1, "labels": [5, 5], "agreed": given}

    assert drift_note(line([11, 9]), ("a", "b")) is None
    assert "40 % of them would have to be of another class, and a has 90 % instead of 50 %" in drift_note(
        line([18, 2]), ("a", "b")
    )
    assert "no pseudo-label is kept" in drift_note(line([0, 0]), ("a", "b"))
    curve = label_curve(LABELS, ("a", "b"), [*runs(None, [0.5, 0.5]), *runs("co", [0.6, 0.6], rounds=(line([18, 2]),))])
    assert curve[1].by_round == [0.5]
    (told,) = warnings(curve)
    assert told.startswith("co, 10 %, 2 of 2 draws, most in draw 0: the pseudo-labels have other shares")
