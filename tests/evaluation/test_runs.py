from __future__ import annotations

import json
from pathlib import Path

import pytest
from trained import make_run, make_world

from frozenfusion.evaluation.runs import find_runs
from frozenfusion.model.run_folder import RunFolder
from frozenfusion.utils.errors import UserError


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    world = make_world(tmp_path_factory.mktemp("world"), 12)
    for name, options in (("a-seed0", {"seed": 0}), ("a-seed1", {"seed": 1}), ("b", {"image_dropout": 0.1})):
        make_run(world, name, "image", **options)
    (world / "runs" / "sweep.csv").write_text("fusion\n")
    (world / "runs" / "comparison" / "a-seed0").mkdir(parents=True)
    return world / "runs"


def test_a_folder_of_runs_stands_for_the_runs_in_it(runs: Path):
    assert [run.name for run in find_runs([runs], "best")] == ["a-seed0", "a-seed1", "b"]


def test_what_a_shell_s_star_finds_beside_the_runs_is_left_out(runs: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level("INFO", logger="frozenfusion")
    assert [run.name for run in find_runs(sorted(runs.iterdir()), "best")] == ["a-seed0", "a-seed1", "b"]
    assert "comparison: not a run" in caplog.text


def test_a_run_that_is_named_twice_is_one_run(runs: Path):
    assert [run.name for run in find_runs([runs / "b", runs / "a-seed0" / ".." / "b", runs], "best")] == [
        "b",
        "a-seed0",
        "a-seed1",
    ]


def test_runs_of_several_folders_are_told_apart_by_their_paths(runs: Path, tmp_path: Path):
    (tmp_path / "x").symlink_to(runs)
    one, other = tmp_path / "1" / "run", tmp_path / "2" / "run"
    for copy in (one, other):
        copy.mkdir(parents=True)
        for name in ("config.json", "model.safetensors"):
            (copy / name).write_bytes((runs / "b" / name).read_bytes())
    assert [run.name for run in find_runs([one, other], "best")] == ["1/run", "2/run"]
    assert [run.name for run in find_runs([one], "best")] == ["run"]


def test_an_unfinished_run_is_left_out_and_said(runs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "config.json").write_bytes((runs / "b" / "config.json").read_bytes())
    assert [run.path for run in find_runs([tmp_path / "begun", runs / "b"], "best")] == [runs / "b"]
    assert "no model.safetensors yet" in caplog.text
    with pytest.raises(UserError, match="no finished run there"):
        find_runs([tmp_path / "begun"], "best")


def test_a_path_that_does_not_exist_is_an_error_even_beside_runs(runs: Path):
    with pytest.raises(UserError, match="no such run folder"):
        find_runs([runs / "b", runs / "tpyo"], "best")


def test_runs_that_differ_in_their_seed_alone_have_one_recipe(runs: Path):
    first, second, other = find_runs([runs], "best")
    assert first.folder.recipe == second.folder.recipe
    config = json.loads((other.path / "config.json").read_text())
    config["options"]["epochs"] = 50
    (other.path / "config.json").write_text(json.dumps(config))
    assert RunFolder(other.path).recipe != first.folder.recipe


def test_validation_is_that_of_the_checkpoint(runs: Path):
    run = find_runs([runs / "b"], "best")[0].folder
    assert run.validation("best") == pytest.approx(0.5)
    assert run.validation("last") == pytest.approx(0.4)


def test_missing_figures_are_no_error_and_damaged_ones_are(runs: Path, tmp_path: Path):
    assert RunFolder(tmp_path).history == []
    assert RunFolder(tmp_path).summary == {}
    assert RunFolder(tmp_path).validation("best") is None
    for damaged in ("{", "[1]", '{"lr": 1}'):
        (tmp_path / "metrics.jsonl").write_text(damaged)
        with pytest.raises(UserError, match=r"metrics\.jsonl"):
            _ = RunFolder(tmp_path).history


@pytest.mark.parametrize("content", ["{}", "[]", '{"format": 1, "model": {"fusion": "concat"}}', "not json"])
def test_a_configuration_that_is_not_a_run_s_is_named(tmp_path: Path, content: str):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=r"config\.json"):
        _ = RunFolder(tmp_path).model_config


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        ("label_names", [1, 2, 3]),
        ("label_names", []),
        ("fusion", ["concat"]),
        ("fusion_options", "alpha"),
        ("head_source", {"file": 5}),
        ("image_fingerprint", None),
        ("image_width", 10**12),
        ("image_width", "16"),
        ("image_regions", -1),
        ("image_dropout", 7),
        ("max_length", None),
        ("freeze_text", 1),
        ("width", 0),
    ],
)
def test_an_entry_that_no_model_has_is_named(runs: Path, tmp_path: Path, entry: str, value: object):
    config = json.loads((runs / "b" / "config.json").read_text())
    config["model"][entry] = value
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=rf"config\.json: {entry} is .*, which it cannot be"):
        _ = RunFolder(tmp_path).model_config


def test_a_summary_or_figures_of_another_kind_are_no_traceback(tmp_path: Path):
    (tmp_path / "summary.json").write_text("[]")
    with pytest.raises(UserError, match="not the summary of a run"):
        RunFolder(tmp_path).is_finished(2)
    (tmp_path / "metrics.jsonl").write_text('{"epoch": 1, "val_accuracy": "y"}')
    with pytest.raises(UserError, match="no epoch's figures"):
        RunFolder(tmp_path).validation("best")
