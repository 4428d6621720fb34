"""An evaluation of runs that were tuned: what it says of their budgets, and what rows of one head are called."""

from __future__ import annotations

from pathlib import Path

import pytest
import trained

import frozenfusion as ff
from frozenfusion.evaluation.naming import told_apart
from frozenfusion.model.run_folder import RunFolder
from frozenfusion.model.tuning import Trial, Tuning, save_tuning


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained.make_world(tmp_path_factory.mktemp("world"), 30)


def tuned(run: Path, trials: int) -> Path:
    tried = [Trial({"lr": 0.001 * n, "head.<b>": "<i>"}, 0.5 + 0.1 * n, 0.5, 1.0, 2.0, 11) for n in range(trials)]
    save_tuning(RunFolder(run), Tuning(tried, 11))
    return run


def test_the_page_shows_the_tuning_and_whether_all_heads_had_the_same(world: Path, tmp_path: Path) -> None:
    pairs = ff.load_pairs(world / "data" / "pairs.csv")
    runs = [tuned(trained.make_run(world, name, name), 3) for name in ("concat", "image")]
    config = ff.EvaluateConfig(bootstrap=100, device="cpu")
    evaluation = ff.evaluate(runs, pairs, world / "features.h5", config=config)
    assert "Every head was tuned with the same budget: 3 trials of 11 epochs" in evaluation.table()
    page = evaluation.save(tmp_path).read_text(encoding="utf-8")
    assert '<section id="tuning">' in page
    assert "expected best validation accuracy of concat over the number of trials" in page
    assert "lr=0.002 head.&lt;b&gt;=&lt;i&gt;" in page
    assert "<i>" not in page
    assert "| best of 3 |" in (tmp_path / "comparison.md").read_text(encoding="utf-8")
    tuned(runs[1], 2)
    runs.append(trained.make_run(world, "text", "text"))
    uneven = ff.evaluate(runs, pairs, world / "features.h5", config=config).table()
    assert "Not every head was tuned with the same budget" in uneven
    for told in ("concat 3 trials of 11 epochs", "image 2 trials of 11 epochs", "text none"):
        assert told in uneven


def test_runs_that_were_not_tuned_say_nothing_of_it(world: Path) -> None:
    runs = [trained.make_run(world, f"plain-{seed}", "concat", seed=seed) for seed in (0, 1)]
    pairs, config = ff.load_pairs(world / "data" / "pairs.csv"), ff.EvaluateConfig(bootstrap=100, device="cpu")
    assert "tuned with" not in ff.evaluate(runs, pairs, world / "features.h5", config=config).table()


@pytest.mark.parametrize(
    ("recipes", "names"),
    [
        ([{"lr": 1e-3}], ["concat"]),
        ([{"lr": 1e-3, "epochs": 3}, {"lr": 1e-4, "epochs": 3}], ["concat lr=0.001", "concat lr=0.0001"]),
        ([{"text_lr": None}, {"text_lr": 1e-5, "head.n": 2}], ["concat", "concat text_lr=1e-05 head.n=2"]),
        ([{"lr": 0.1}, {"lr": 0.1000000001}], ["a", "b"]),  # which would be called alike
        ([dict.fromkeys("vwxyz", 1), dict.fromkeys("vwxyz", 2)], ["a", "b"]),
        ([{"text_encoder": "/x" * 50}, {"text_encoder": "albert"}], ["a", "b"]),
        ([{}, {}], ["a", "b"]),
    ],
)
def test_rows_of_one_head_are_called_by_what_differs(recipes: list[dict[str, object]], names: list[str]) -> None:
    assert told_apart("concat", recipes, ["a", "b"][: len(recipes)]) == names
