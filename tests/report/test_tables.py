from __future__ import annotations

import csv
import dataclasses
import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from frozenfusion.evaluation.comparison import Comparison, Estimate, RunResult, compare
from frozenfusion.evaluation.report import tables
from frozenfusion.evaluation.report.html import render
from frozenfusion.evaluation.report.page import Page
from frozenfusion.utils.tables import as_markdown, as_text, from_csv_cell, spreadsheet_safe, to_csv

NAMES = ("yes", "no")
LABELS = np.array([0, 1] * 50)


def result(head: str, wrong: int, seed: int = 0, validation: float | None = 0.9) -> RunResult:
    decisions = LABELS.copy()
    decisions[seed : seed + wrong] = 1 - decisions[seed : seed + wrong]
    probabilities = np.eye(2)[decisions] * 0.8 + 0.1
    return RunResult(f"{head}-{seed}", head, "r", probabilities, validation=validation, parameters=1234, seconds=0.5)


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    runs = [result("concat", 40), result("concat", 44, 1), result("text", 45, 0, 0.6), result("gated", 2, 3, 0.95)]
    majority = {"majority class": np.tile([0.5, 0.5], (100, 1))}
    return compare(LABELS, NAMES, runs, majority, reference="concat", resamples=300, seed=0)


def test_numbers_are_written_as_people_read_them():
    assert tables.percent(0.8126) == "81.3"
    assert tables.percent(None) == "–"
    assert tables.points(-0.021) == "−2.1"
    assert tables.points(0.021) == "+2.1"
    assert tables.p_value(0.0004) == "< 0.001"
    assert tables.p_value(0.04) == "0.040"
    assert tables.count(1234567) == "1,234,567"
    assert tables.seconds(0.0123) == "0.0123"
    assert tables.seconds(1234.5) == "1,234"
    assert tables.score(Estimate(0.813, 0.004, 0.789, 0.836)) == "81.3 ± 0.4 (78.9–83.6)"
    assert tables.score(Estimate(0.813, None, 0.789, 0.836)) == "81.3 (78.9–83.6)"


def test_the_terminal_s_table_has_every_row_with_its_seeds_in_straight_columns(comparison: Comparison):
    lines = as_text(tables.score_table(comparison)).splitlines()
    assert [line.split("  ")[0] for line in lines[1:]] == ["gated", "concat, 2 seeds", "text", "majority class"]
    ends = {line.index(")", 30) for line in lines[1:]}
    assert len(ends) == 1


def test_columns_stay_straight_beside_wide_characters():
    text = as_text([["", "n"], ["积极", "1"], ["ab", "22"]])
    assert text.splitlines() == ["       n", "积极   1", "ab    22"]


def test_conclusions_name_the_choice_the_better_heads_and_the_gain_over_one_modality(comparison: Comparison):
    said = " ".join(tables.conclusions(comparison, "test"))
    assert "Chosen by the validation part alone: gated (95.0 % there)" in said
    assert "The test part had no say" in said
    assert "gated is better; text cannot be told apart from it" in said
    assert "Fusion by gated: +43.0 points over text alone (a real difference)" in said


@pytest.mark.parametrize(("part", "warning"), [("val", "scores are optimistic"), ("train", "were trained on")])
def test_conclusions_warn_of_parts_that_flatter(comparison: Comparison, part: str, warning: str):
    said = " ".join(tables.conclusions(comparison, part))
    assert warning in said
    assert "had no say" not in said


def test_conclusions_say_what_the_pairs_can_show_and_what_one_seed_cannot(comparison: Comparison):
    said = " ".join(tables.conclusions(comparison, "test"))
    least, most = (tables.percent(edge([test.detectable for test in comparison.tests])) for edge in (min, max))
    assert f"100 pairs can show a difference of {least} to {most} points or more" in said
    assert "There is only one seed of gated, text: the tests hold for those very trainings" in said
    twice = [result("concat", 40), result("concat", 44, 1), result("gated", 2, 3), result("gated", 4, 5)]
    found = compare(LABELS, NAMES, twice, {}, reference="concat", resamples=100, seed=0)
    assert "one seed" not in " ".join(tables.conclusions(found, "test"))


def test_nothing_is_said_of_what_could_be_shown_where_two_are_right_on_the_same_pairs():
    def one_class(head: str) -> RunResult:
        return dataclasses.replace(result(head, 0), probabilities=np.tile([0.7, 0.3], (100, 1)))

    majority = {"majority class": np.tile([0.9, 0.1], (100, 1))}
    found = compare(LABELS, NAMES, [one_class("concat")], majority, reference="concat", resamples=100, seed=0)
    assert [(test.detectable, test.p) for test in found.baseline_tests] == [(None, 1)]
    said = " ".join(tables.conclusions(found, "test"))
    assert "can show a difference" not in said
    assert "nothing tells how far they could differ: concat and majority class." in said


def test_of_many_classes_those_with_the_most_pairs_are_shown():
    names = tuple(f"class {number}" for number in range(300))
    labels = np.repeat(np.arange(300), [3] * 10 + [1] * 280 + [2] * 10)
    run = dataclasses.replace(result("concat", 0), probabilities=np.eye(300)[labels])
    found = compare(labels, names, [run], {}, reference="concat", resamples=100, seed=0)
    lines = tables.class_table(found.rows[0], names)
    assert [line[0] for line in lines[1:]] == [*names[:10], *names[290:], "and 280 more"]
    assert lines[1][1:] == ["100.0", "100.0", "100.0", "3"]
    for told in (tables.comparison_text(found, "test"), tables.comparison_markdown(found, "t", "test", [])):
        assert "class 9" in told
        assert "class 12" not in told
        assert "the matrix of 300 classes is in metrics.json" in told
    page = render(Page("t", "test", [], [], found))
    assert "Of 300 classes the 20 with the most\n  pairs are shown" in page
    assert "class 299" in page
    assert "class 289" not in page


def test_the_csv_has_plain_numbers_that_a_program_can_read(comparison: Comparison):
    lines = {line["name"]: line for line in csv.DictReader(io.StringIO(tables.comparison_csv(comparison)))}
    row = comparison.row("gated")
    assert float(lines["gated"]["accuracy"]) == pytest.approx(row.figures["accuracy"].mean, rel=1e-5)
    assert float(lines["gated"]["difference"]) == pytest.approx(0.98 - (0.60 + 0.56) / 2, abs=1e-5)
    (test,) = (test for test in comparison.tests if test.head == "gated")
    assert float(lines["gated"]["p"]) == pytest.approx(test.p, rel=1e-5)
    assert float(lines["gated"]["detectable"]) == pytest.approx(test.detectable, rel=1e-5)
    assert lines["gated"]["chosen"] == "1"
    assert lines["gated"]["parameters"] == "1234"
    assert lines["majority class"]["seconds_per_epoch"] == ""
    assert lines["concat"]["reference"] == ""


def test_markdown_escapes_what_would_be_markup():
    names = ("<b>yes", "n|o_*")
    found = compare(LABELS, names, [result("concat", 10)], {}, reference="concat", resamples=100, seed=0)
    page = tables.comparison_markdown(found, "<script>alert(1)</script>", "test", ["a [note](x)"])
    assert "\\<b\\>yes" in page
    assert "n\\|o\\_\\*" in page
    assert "# \\<script\\>" in page
    assert "\\[note\\]" in page


@pytest.mark.parametrize(
    ("cell", "safe"),
    [
        ("=cmd|' !A0", "'=cmd|' !A0"),
        ('=HYPERLINK("x")', '\'=HYPERLINK("x")'),
        ("@SUM(1,2)", "'@SUM(1,2)"),
        ("-2+3+cmd|' /C calc'!A0", "'-2+3+cmd|' /C calc'!A0"),
        ("\t=1+1", "'\t=1+1"),
        ("=A1", "'=A1"),
        ("＝cmd|x", "'＝cmd|x"),
        ("-5", "-5"),
        ("+1", "+1"),
        ("@someone", "@someone"),
        ("a=b(c)", "a=b(c)"),
        ("", ""),
    ],
)
def test_cells_that_a_spreadsheet_would_run_are_defused_and_plain_ids_stay(cell: str, safe: str):
    assert spreadsheet_safe(cell) == safe
    assert from_csv_cell(safe) == cell


@given(st.text(st.sampled_from("='+-@\t\r\n a1|(\x1b"), max_size=6))
def test_a_cell_is_one_line_that_is_no_formula_and_is_read_back(cell: str):
    ((safe,),) = csv.reader(io.StringIO(to_csv([[cell]]), newline="")) if cell else ((cell,),)
    assert not any(letter in safe for letter in "\t\r\n\x1b")
    assert not safe.lstrip().startswith("=")
    assert from_csv_cell(safe) == "".join(" " if letter in "\t\r\n\x1b" else letter for letter in cell)


def test_what_would_break_a_table_or_steer_the_terminal_does_not():
    cells = [["", "n"], ["two\nlines", "1"], ["\x1b[2Jred", "22"]]
    assert as_text(cells).splitlines() == ["            n", "two?lines   1", "?[2Jred    22"]
    assert len(as_markdown(cells).splitlines()) == 4


def test_the_terminal_says_that_p_values_are_corrected(comparison: Comparison):
    assert "Holm-corrected for 2 comparisons." in tables.comparison_text(comparison, "test")
