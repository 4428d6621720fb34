from __future__ import annotations

import dataclasses
import re
import shutil
import subprocess
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from trained import history

from frozenfusion.data.pairs import Pair
from frozenfusion.evaluation.comparison import Comparison, RunResult, compare
from frozenfusion.evaluation.metrics import calibration
from frozenfusion.evaluation.report.charts import Line, line_chart, reliability_chart, ticks
from frozenfusion.evaluation.report.html import render
from frozenfusion.evaluation.report.page import LONGEST_TEXT, Page, example, modalities, most_confident_mistakes

NASTY = '<script>alert("x")</script> & <img src=x onerror=alert(1)> {{ 7 * 7 }}'
NAMES = ("yes", "<b>no</b>", "may\"be'")
N = 90
LABELS = np.arange(N) % 3
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def result(head: str, accuracy: float, seed: int = 0, **about) -> RunResult:
    generator = np.random.default_rng([seed, len(head)])
    decisions = np.where(generator.random(N) < accuracy, LABELS, (LABELS + 1) % 3)
    probabilities = np.eye(3)[decisions] * generator.uniform(0.3, 0.9, (N, 1)) + 0.1
    return RunResult(
        name=f"{head}-{seed}",
        head=head,
        recipe="r",
        probabilities=probabilities / probabilities.sum(1, keepdims=True),
        validation=accuracy,
        parameters=1000,
        seconds=0.5,
        history=history(0.5),
        **about,
    )


def compared(*runs: RunResult, names: tuple[str, ...] = NAMES) -> Comparison:
    majority = {"majority class": np.tile([0.5, 0.3, 0.2], (N, 1))}
    return compare(LABELS, names, runs, majority, reference="concat", resamples=200, seed=0)


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    without = {"text": np.full((N, 3), 1 / 3), "image": np.eye(3)[LABELS]}
    return compared(
        *(result("concat", 0.7, seed, without=without) for seed in (0, 1)),
        *(result("gated", 0.9, seed, without=without) for seed in (0, 1)),
        *(result(head, 0.5, 2) for head in ("text", "image")),
    )


@pytest.fixture
def pairs(tmp_path: Path) -> list[Pair]:
    Image.new("RGB", (64, 32), "teal").save(tmp_path / "0.png")
    found = [Pair(f"{i}", f"{NASTY} text {i}", tmp_path / f"{i % 2}.png", int(LABELS[i]), None) for i in range(N)]
    return [dataclasses.replace(found[0], id='"><script>id'), *found[1:]]


@pytest.fixture
def page(comparison: Comparison, pairs: list[Pair]) -> Page:
    maps = [example(pairs[i], NAMES[i % 3], np.array([0.1, 0.2, 0.7]), NAMES, np.arange(49.0)) for i in (0, 2)]
    return Page(
        title=NASTY,
        part="test",
        facts=[NASTY],
        notes=[NASTY],
        comparison=comparison,
        modalities=modalities(comparison),
        mistakes=most_confident_mistakes(comparison, pairs),
        attention=maps,
        attention_of="transformer",
    )


class Reader(HTMLParser):
    """What a browser would make of a page: elements with their attributes, and the text between them."""

    VOID = frozenset({"meta", "img", "br", "link"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text += data

    def references(self) -> Iterator[str]:
        for _, attributes in self.elements:
            for name in ("src", "href", "xlink:href", "srcset", "action", "poster", "data"):
                if attributes.get(name):
                    yield str(attributes[name])


def test_every_foreign_text_is_shown_and_none_is_markup(page: Page):
    read = Reader(render(page))
    assert not read.open  # every element is closed in its place
    assert {tag for tag, _ in read.elements}.isdisjoint({"script", "iframe", "object"})
    assert not [name for _, attributes in read.elements for name in attributes if name.startswith("on")]
    assert read.text.count(NASTY) >= 4  # title, fact, note and examples, letter by letter
    for name in NAMES:
        assert name in read.text
    assert '"><script>id' in " ".join(str(v) for _, attributes in read.elements for v in attributes.values())


def test_nothing_is_fetched_from_anywhere(page: Page):
    html = render(page)
    for reference in Reader(html).references():
        assert reference.startswith(("data:image/jpeg;base64,", "data:image/png;base64,", "#")), reference[:60]
    style = html[html.index("<style>") : html.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    assert "default-src 'none'" in html


def test_every_section_s_link_leads_to_a_section(page: Page):
    read = Reader(render(page))
    places = {attributes.get("id") for _, attributes in read.elements}
    links = {reference[1:] for reference in read.references() if reference.startswith("#")}
    assert links <= places
    assert {"scores", "tests", "calibration", "modalities", "training", "mistakes", "attention"} <= links


def test_the_figures_are_those_of_the_comparison(page: Page, comparison: Comparison):
    text = " ".join(Reader(render(page)).text.split())
    for row in comparison.rows:
        figure = row.figures["accuracy"]
        assert f"{100 * figure.mean:.1f}" in text
        assert f"({100 * figure.low:.1f}–{100 * figure.high:.1f})" in text
    assert "Chosen by validation gated" in text
    assert "gated − concat" in text
    assert f"ECE {100 * comparison.row('gated').calibration(comparison.labels).ece:.1f} %" in text


def test_a_single_head_without_history_or_validation_has_a_page_too():
    run = dataclasses.replace(result("concat", 0.7), history=(), validation=None)
    html = render(Page("title", "new", [], [], compared(run)))
    read = Reader(html)
    assert not read.open
    assert "Training" not in read.text
    assert "Does fusion pay?" not in read.text
    assert "Does it beat the baselines?" in read.text


def test_a_page_of_many_heads_seeds_and_classes_stays_of_sane_size(pairs: list[Pair]):
    names = tuple(f"class {i}" for i in range(40))
    runs = [result(f"head{i}", 0.6, seed) for i in range(40) for seed in range(3)]
    wide = [dataclasses.replace(run, probabilities=np.pad(run.probabilities, ((0, 0), (0, 37)))) for run in runs]
    found = compare(LABELS, names, wide, {}, reference="head0", resamples=100, seed=0)
    html = render(Page("title", "test", [], [], found, mistakes=most_confident_mistakes(found, pairs)))
    assert len(html) < 2_000_000
    assert "Confusion matrices" not in html


def test_mistakes_are_the_surest_wrong_ones_with_their_pairs(comparison: Comparison, pairs: list[Pair]):
    found = most_confident_mistakes(comparison, pairs)
    averaged = np.mean(comparison.focus.probabilities, axis=0)
    wrong = [i for i in range(N) if averaged[i].argmax() != LABELS[i]]
    surest = sorted(wrong, key=lambda i: -averaged[i].max())[:12]
    assert [each.id for each in found] == [pairs[i].id for i in surest]
    for each, i in zip(found, surest, strict=True):
        assert each.label == NAMES[LABELS[i]]
        assert each.predicted == NAMES[averaged[i].argmax()] == each.probabilities[0][0]
        assert (each.image is None) == (i % 2 == 1)  # 1.png is not there


def test_long_texts_are_cut_and_characters_that_would_disturb_the_page_are_not_kept(tmp_path: Path):
    long = example(Pair("a", "x" * 5000, tmp_path, 0, None), "yes", np.array([1.0, 0, 0]), NAMES)
    assert len(long.text) == LONGEST_TEXT
    text = "a\x00b\u202ec\nd\u00a0\U0001f469\u200d\U0001f680"  # NUL, right-to-left override; an emoji of two
    odd = example(Pair("a", text, tmp_path, 0, None), "yes", np.array([1.0, 0, 0]), NAMES)
    assert odd.text == "a\ufffdbc\nd\u00a0\U0001f469\u200d\U0001f680"


def test_modalities_are_judged_by_their_own_heads_then_by_parts_then_by_withholding(comparison: Comparison):
    text, image = (np.eye(3)[(LABELS + shift) % 3] for shift in (0, 1))
    own = modalities(comparison)
    assert (own.fused, own.source) == ("gated", "The heads text and image see one modality each.")
    inside = modalities(compared(result("vote", 0.9, parts={"text": text, "image": image})))
    assert "classifier of its own" in inside.source
    assert inside.agreement.count.tolist() == [0, N, 0, 0]
    withheld = modalities(compared(result("concat", 0.9, without={"image": text, "text": image})))
    assert "the text alone" in withheld.source
    assert withheld.agreement.count.tolist() == [0, N, 0, 0]
    assert modalities(compared(result("text", 0.9))) is None


def test_ticks_are_round_and_inside():
    assert ticks(0, 1) == pytest.approx([0, 0.5, 1])
    assert ticks(0.35, 1.1) == pytest.approx([0.4, 0.6, 0.8, 1.0])
    for low, high in ((0.003, 0.4), (-7, 12), (1e-6, 1e-4), (5, 5)):
        found = ticks(low, high)
        assert found == sorted(found)
        assert low - 1e-9 <= found[0]
        assert found[-1] <= high + 1e-9
        assert len(found) <= 9


def test_charts_put_no_number_that_is_none_into_the_drawing():
    flat = line_chart([Line([(1.0, 0.5), (2.0, 0.5)], "train")], label="<&>")
    assert "nan" not in flat
    assert 'aria-label="&lt;&amp;&gt;"' in flat
    assert line_chart([], label="none") == ""
    assert "nan" not in reliability_chart(calibration(np.array([0]), np.array([[1.0, 0.0]])), label="one pair")


def test_an_attention_map_is_bright_where_the_head_looks(pairs: list[Pair]):
    import base64
    import io

    from frozenfusion.evaluation.report.charts import attention_chart

    stratified_sample = attention_chart("data:image/jpeg;base64,", np.array([0.7, 0.1, 0.1, 0.1]), label="x")
    content = re.search(r"data:image/png;base64,([^\"]+)", stratified_sample).group(1)
    shade = np.asarray(Image.open(io.BytesIO(base64.b64decode(content))))[..., 3]
    assert shade[0, 0] == 0
    assert (shade.ravel()[1:] > 150).all()


@pytest.mark.skipif(BROWSER is None, reason="no browser is installed")
def test_a_browser_shows_the_page_without_running_or_fetching_anything(page: Page, tmp_path: Path):
    path = tmp_path / "page.html"
    path.write_text(render(page))
    flags = (
        *("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"),
        *("--disable-component-update", "--disable-sync", f"--user-data-dir={tmp_path / 'profile'}"),
    )
    shot = tmp_path / "page.png"
    subprocess.run(
        [BROWSER, *flags, "--window-size=1000,2000", f"--screenshot={shot}", path.as_uri()],
        check=True,
        capture_output=True,
        timeout=120,
    )
    with Image.open(shot) as image:
        assert image.size == (1000, 2000)
        assert len(image.convert("RGB").getcolors(2**24)) > 100
    done = subprocess.run(
        [BROWSER, *flags, "--dump-dom", path.as_uri()], check=True, capture_output=True, text=True, timeout=120
    )
    assert "script" not in {tag for tag, _ in Reader(done.stdout).elements}
